-- Layouts: fields declared once by offset, kind and name, shown in the tree and read from the same declaration.
--
-- A layout is a list of rows {offset, kind, name, label, ...}. Further keys of a row:
--   size      bytes, of the kinds `bytes` and `text`
--   values    numbers to words
--   reserved  true where the sender has to leave zero
-- Offsets are from the start of the structure; everything is little-endian unless the kind ends in `be`.

return function(vmbus)
    local fields, by_name = {}, {}

    local kinds = {
        u8 = { 1, ProtoField.uint8, base.DEC },
        u16 = { 2, ProtoField.uint16, base.DEC },
        u32 = { 4, ProtoField.uint32, base.DEC },
        u64 = { 8, ProtoField.uint64, base.DEC },
        i32 = { 4, ProtoField.int32, base.DEC },
        x8 = { 1, ProtoField.uint8, base.HEX },
        x16 = { 2, ProtoField.uint16, base.HEX },
        x32 = { 4, ProtoField.uint32, base.HEX },
        x64 = { 8, ProtoField.uint64, base.HEX },
        guid = { 16 },
        bytes = {},
        text = {},
    }

    -- Declares a field, or finds it again: one name is one field, however many structures have it.
    local function field(name, kind, label, values)
        local known = by_name[name]
        if known then
            return known
        end
        local made
        if kind == "guid" then
            made = ProtoField.guid(name, label)
        elseif kind == "bytes" then
            made = ProtoField.bytes(name, label)
        elseif kind == "text" then
            made = ProtoField.string(name, label)
        elseif kind == "frame" then
            made = ProtoField.framenum(name, label, base.NONE, values)
        elseif kind == "duration" then
            made = ProtoField.relative_time(name, label)
        elseif kind == "date" then
            made = ProtoField.absolute_time(name, label, base.UTC)
        elseif kind == "bool" then
            made = ProtoField.bool(name, label)
        else
            made = kinds[kind][2](name, label, kinds[kind][3], values)
        end
        by_name[name] = made
        fields[#fields + 1] = made
        return made
    end

    -- Fields of trace events belong to a protocol of their own.
    local event_fields = {}
    local function event_field(name, kind, label)
        local made = field("partita." .. name, kind, label)
        event_fields[#event_fields + 1] = table.remove(fields)
        return made
    end

    local function bit_field(name, label, bits, mask)
        local made = by_name[name]
        if not made then
            made = ProtoField.bool(name, label, bits, nil, mask)
            by_name[name] = made
            fields[#fields + 1] = made
        end
        return made
    end

    -- Prepares the rows of a structure whose field names all begin with `prefix`.
    local function layout(prefix, rows)
        for _, row in ipairs(rows) do
            local kind = row[2]
            row.offset, row.kind, row.key = row[1], kind, row[3]
            row.size = row.size or kinds[kind][1]
            row.field = field(prefix .. row[3], kind, row[4], row.values)
            if row.flags then
                for _, flag in ipairs(row.flags) do
                    flag.field = bit_field(prefix .. row[3] .. "." .. flag[2], flag[3], row.size * 8, flag[1])
                end
            end
        end
        return rows
    end

    -- The one bit `flag` of `value`, without the bit libraries that differ from one Lua to the next.
    local function has(value, flag)
        return value % (2 * flag) >= flag
    end

    local function read(range, kind)
        if kind == "u64" or kind == "x64" then
            return range:le_uint64()
        elseif kind == "i32" then
            return range:le_int()
        elseif kind == "guid" or kind == "bytes" then
            return tostring(range:bytes()):upper()
        elseif kind == "text" then
            return range:le_ustring()
        end
        return range:le_uint()
    end

    local function is_zero(value, kind)
        if kind == "bytes" then
            return not value:find("[^0]")
        elseif kind == "u64" or kind == "x64" then
            return value == UInt64(0)
        end
        return value == 0
    end

    -- Shows the rows of a structure at `start` that lie before `stop`, and returns their values and items by name.
    -- Fewer bytes than the structure has are told, once. `least` is where the structure may end early.
    local function show(ctx, tree, start, stop, rows, least)
        local values, items = {}, {}
        local tvb = ctx.tvb
        for _, row in ipairs(rows) do
            local at = start + row.offset
            local size = row.size
            if at + size > stop then
                if not (least and row.offset >= least) then
                    local there = math.max(stop - start, 0)
                    ctx.fault(tree, "truncated", string.format("%s does not fit: %d bytes are there", row[4], there))
                    values.truncated = true
                end
                break
            end
            local range = tvb(at, size)
            local value = read(range, row.kind)
            local item
            if row.kind == "text" then
                item = tree:add(row.field, range, value)
            else
                item = tree:add_le(row.field, range)
            end
            values[row.key], items[row.key] = value, item
            if row.special and row.special[value] then
                item:append_text(" (" .. row.special[value] .. ")")
            end
            if row.flags and type(value) == "number" then
                local rest = value
                for _, flag in ipairs(row.flags) do
                    item:add_le(flag.field, range)
                    if has(value, flag[1]) then
                        rest = rest - flag[1]
                    end
                end
                if rest ~= 0 and not row.open then
                    local told = string.format("%s: reserved bits %#x are set", row[4], rest)
                    ctx.fault(item, row.severe or "reserved", told)
                end
            elseif row.reserved and not is_zero(value, row.kind) then
                ctx.fault(item, "reserved", row[4] .. " is not zero")
            end
        end
        return values, items
    end

    -- What follows a structure and has no name.
    local rest_field = field("vmbus.data", "bytes", "Data")
    local function show_rest(ctx, tree, start, stop)
        if stop > start then
            tree:add(rest_field, ctx.tvb(start, stop - start))
        end
    end

    -- `0x4` of a 64-bit number.
    local function hex64(value)
        local digits = value:tohex():lower():gsub("^0+", "")
        return "0x" .. (digits == "" and "0" or digits)
    end

    -- Adds a field that no byte of the packet holds.
    local function generated(tree, known, value, range)
        local item
        if range then
            item = tree:add(known, range, value)
        else
            item = tree:add(known, value)
        end
        item:set_generated()
        return item
    end

    vmbus.fields, vmbus.field, vmbus.layout, vmbus.show = fields, field, layout, show
    vmbus.event_fields, vmbus.event_field = event_fields, event_field
    vmbus.show_rest, vmbus.has, vmbus.hex64, vmbus.generated = show_rest, has, hex64, generated
end
