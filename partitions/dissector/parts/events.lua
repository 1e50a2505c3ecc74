-- Trace events that are no packets: hypercalls, interrupts, states. A recording has them as custom blocks of pcapng,
-- which Wireshark shows as frames of nothing but data; here they get words.
--
-- A block holds the letters PTE1, a length and a map in MessagePack: time in 100 ns, layer, event, partition and what
-- else there is to say.

return function(vmbus)
    local field, format = vmbus.event_field, string.format
    local MAGIC, ENTERPRISE, DEEPEST = 0x50544531, 32473, 8

    -- MessagePack. Each reader returns the value and where the next one begins; without that, the bytes are none.
    -- Arrays and maps are lists; a map's entries are pairs.
    local read

    -- Guests have a hand in texts, and tshark writes columns to a terminal as they are: C0, C1 and DEL are spelled out.
    local function shown(text)
        local function spelled(char)
            return format("\\x%02x", char:byte(-1))
        end
        return (text:gsub("%c", spelled):gsub("\xC2[\x80-\x9F]", spelled))
    end

    local function read_many(tvb, at, stop, count, depth, named)
        local values = { named = named }
        for index = 1, count do
            local key, value
            if named then
                key, at = read(tvb, at, stop, depth)
                if not at then
                    return nil
                end
            end
            value, at = read(tvb, at, stop, depth)
            if not at then
                return nil
            end
            values[index] = named and { key, value } or value
        end
        return values, at
    end

    local function read_bytes(tvb, at, stop, size, text)
        if at + size > stop then
            return nil
        end
        if size == 0 then
            return "", at
        end
        local range = tvb(at, size)
        return text and shown(range:string(ENC_UTF_8)) or tostring(range:bytes()), at + size
    end

    -- First byte to {bytes of the number or length that follows, kind}.
    local forms = {
        [0xC4] = { 1, "bytes" },
        [0xC5] = { 2, "bytes" },
        [0xC6] = { 4, "bytes" },
        [0xCC] = { 1, "uint" },
        [0xCD] = { 2, "uint" },
        [0xCE] = { 4, "uint" },
        [0xCF] = { 8, "uint" },
        [0xD0] = { 1, "int" },
        [0xD1] = { 2, "int" },
        [0xD2] = { 4, "int" },
        [0xD3] = { 8, "int" },
        [0xCA] = { 4, "float" },
        [0xCB] = { 8, "float" },
        [0xD9] = { 1, "text" },
        [0xDA] = { 2, "text" },
        [0xDB] = { 4, "text" },
        [0xDC] = { 2, "array" },
        [0xDD] = { 4, "array" },
        [0xDE] = { 2, "map" },
        [0xDF] = { 4, "map" },
    }

    read = function(tvb, at, stop, depth)
        if at >= stop or depth > DEEPEST then
            return nil
        end
        local first = tvb(at, 1):uint()
        if first < 0x80 then
            return first, at + 1
        elseif first < 0x90 then
            return read_many(tvb, at + 1, stop, first - 0x80, depth + 1, true)
        elseif first < 0xA0 then
            return read_many(tvb, at + 1, stop, first - 0x90, depth + 1)
        elseif first < 0xC0 then
            return read_bytes(tvb, at + 1, stop, first - 0xA0, true)
        elseif first == 0xC0 then
            return "none", at + 1
        elseif first == 0xC2 or first == 0xC3 then
            return first == 0xC3, at + 1
        elseif first >= 0xE0 then
            return first - 256, at + 1
        end
        local form = forms[first]
        if not form or at + 1 + form[1] > stop then
            return nil
        end
        local range, kind = tvb(at + 1, form[1]), form[2]
        at = at + 1 + form[1]
        if kind == "uint" then
            return form[1] == 8 and range:uint64() or range:uint(), at
        elseif kind == "int" then
            return form[1] == 8 and range:int64() or range:int(), at
        elseif kind == "float" then
            return range:float(), at
        elseif kind == "array" or kind == "map" then
            return read_many(tvb, at, stop, range:uint(), depth + 1, kind == "map")
        end
        return read_bytes(tvb, at, stop, range:uint(), kind == "text")
    end

    local function plain(value)
        if type(value) ~= "table" then
            return tostring(value)
        end
        local each = {}
        for index, entry in ipairs(value) do
            each[index] = value.named and plain(entry[1]) .. "=" .. plain(entry[2]) or plain(entry)
        end
        return table.concat(each, " ")
    end

    -- The entries of a map that have texts for keys.
    local function by_name(map)
        local found = {}
        for _, entry in ipairs(map) do
            if type(entry[1]) == "string" then
                found[entry[1]] = entry[2]
            end
        end
        return found
    end

    -- A number in whatever form it came; 0 for what is none.
    local function number_of(value)
        if type(value) == "userdata" and tostring(value):find("^%d+$") then
            return UInt64.new(tostring(value))
        elseif type(value) == "number" and value >= 0 and value < 2 ^ 53 then
            return UInt64.new(math.floor(value))
        end
        return UInt64.new(0)
    end

    local levels = { [10] = "debug", [20] = "info", [30] = "warning", [40] = "error" }
    local time = field("time", "duration", "Time since the host was opened")
    local rows = {}
    for _, row in ipairs({
        { "layer", "Layer", "text" },
        { "event", "Event", "text" },
        { "vm", "VM", "text" },
        { "partition", "Partition", "u64" },
        { "level", "Level", "text" },
        { "direction", "Direction", "text" },
        { "channel", "Channel", "u64" },
        { "size", "Size", "u64" },
        { "words", "Words", "text" },
    }) do
        rows[#rows + 1] = { row[1], field(row[1], row[3], row[2]), row[3] }
    end
    local more = field("field", "text", "Field")

    -- Where there is no such field, custom blocks are no frames.
    local known, enterprise = pcall(Field.new, "frame.cb_pen")
    local TICKS = UInt64(10000000)

    -- Shows the event of a frame, if it has one.
    function vmbus.dissect_event(protocol, tvb, pinfo, tree)
        local pen = known and enterprise()
        if not pen or pen.value ~= ENTERPRISE or tvb:len() < 8 or tvb(0, 4):uint() ~= MAGIC then
            return
        end
        local stop = math.min(8 + tvb(4, 4):le_uint(), tvb:len())
        local map = read(tvb, 8, stop, 0)
        if type(map) ~= "table" or not map.named then
            return
        end
        local event = by_name(map)
        if type(event.event) ~= "string" or type(event.layer) ~= "string" then
            return
        end
        local root = tree:add(protocol, tvb(0, stop))
        local ticks = number_of(event.time)
        local seconds, rest = (ticks / TICKS):tonumber(), (ticks % TICKS):tonumber()
        root:add(time, NSTime.new(seconds, rest * 100))
        event.level = levels[event.level or 10] or event.level
        for _, row in ipairs(rows) do
            local value = event[row[1]]
            if value ~= nil then
                root:add(row[2], row[3] == "text" and plain(value) or number_of(value))
            end
        end
        local fields = type(event.fields) == "table" and event.fields.named and event.fields or {}
        for _, entry in ipairs(fields) do
            root:add(more, plain({ entry, named = true }))
        end
        root:append_text(format(": %s %s", event.layer, event.event))
        local who = plain(event.vm or "")
        pinfo.cols.protocol = event.layer
        pinfo.cols.src = event.direction == ">child" and "root" or who
        pinfo.cols.dst = event.direction == ">root" and "root" or event.direction == ">child" and who or ""
        local where = event.channel and format("channel %s ", plain(event.channel)) or ""
        local told = plain(event.words or fields)
        pinfo.cols.info = format("%d.%07d %s%s%s", seconds, rest, where, event.event, told ~= "" and ": " .. told or "")
    end
end
