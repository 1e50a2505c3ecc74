-- Integration components: pipe framing, their header, negotiation, heartbeat, shutdown, time sync, KVP, VSS, file copy.
-- Layouts after Linux hyperv.h and its uapi companion.

return function(vmbus)
    local layout, show, words, relations = vmbus.layout, vmbus.show, vmbus.words, vmbus.relations
    local generated, format = vmbus.generated, string.format
    local P = "vmbus.ic."
    local NEGOTIATE, HEARTBEAT, KVP, SHUTDOWN, TIME_SYNC, VSS, FILE_COPY = 0, 1, 2, 3, 4, 5, 7
    local REQUEST, RESPONSE = 2, 4

    -- Pipes ---------------------------------------------------------------------------------------------------------

    local DATA, PARTIAL = 1, 2
    local pipe = layout("vmbus.pipe.", {
        {
            0,
            "u32",
            "type",
            "Pipe packet",
            values = { [1] = "data", [2] = "partly read", [3] = "set up GPA-direct", [4] = "tear down GPA-direct" },
        },
        { 4, "u32", "length", "Pipe data length" },
    })

    -- Where the data of a pipe packet is; nothing where it has none that can be shown.
    function vmbus.show_pipe(ctx, tree, start, stop)
        local box = tree:add(ctx.tvb(start, math.min(8, stop - start)), "Pipe header")
        local v, items = show(ctx, box, start, stop, pipe)
        if not v.length then
            ctx.info(format("a pipe packet of %d bytes", stop - start))
            return
        end
        local length, skipped = v.length, 0
        if v.type == PARTIAL then
            length, skipped = v.length % 65536, math.floor(v.length / 65536)
        elseif v.type ~= DATA then
            ctx.fault(items.type, "unknown", format("A pipe packet of type %d, where only data may be", v.type))
            ctx.info(format("pipe packet of type %d", v.type))
            vmbus.show_rest(ctx, tree, start + 8, stop)
            return
        end
        if start + 8 + length > stop then
            ctx.fault(items.length, "truncated", format("%d bytes of %d are there", stop - start - 8, length))
            length = stop - start - 8
        end
        return start + 8 + math.min(skipped, length), start + 8 + length
    end

    -- The header ----------------------------------------------------------------------------------------------------

    local components = {
        [NEGOTIATE] = "negotiate",
        [HEARTBEAT] = "heartbeat",
        [KVP] = "KVP",
        [SHUTDOWN] = "shutdown",
        [TIME_SYNC] = "time sync",
        [VSS] = "VSS",
        [6] = "remote desktop",
        [FILE_COPY] = "file copy",
        [8] = "VM session",
    }
    local statuses = {
        [0x00000000] = "success",
        [0x80004005] = "failure",
        [0x80041002] = "not found",
        [0x80070032] = "not supported",
        [0x80070103] = "no more items",
    }
    local flags = { 17, "x8", "flags", "Flags" }
    flags.flags = {
        { 1, "transaction", "Transaction" },
        { 2, "request", "Request" },
        { 4, "response", "Response" },
    }
    local header = layout(P, {
        { 0, "u16", "framework_major", "Framework major" },
        { 2, "u16", "framework_minor", "Framework minor" },
        { 4, "u16", "type", "Component", values = components },
        { 6, "u16", "version_major", "Version major" },
        { 8, "u16", "version_minor", "Version minor" },
        { 10, "u16", "size", "Size of the body" },
        { 12, "x32", "status", "Status", values = statuses },
        { 16, "u8", "transaction_id", "Transaction ID" },
        flags,
        { 18, "x16", "reserved", "Reserved", reserved = true },
    })

    -- Bodies --------------------------------------------------------------------------------------------------------

    local bodies = {}

    local counts = layout(P, {
        { 0, "u16", "framework_count", "Framework versions" },
        { 2, "u16", "message_count", "Message versions" },
        { 4, "x32", "negotiate_reserved", "Reserved", reserved = true },
    })
    local version_rows = {
        layout(P, { { 0, "u16", "framework.major", "Major" }, { 2, "u16", "framework.minor", "Minor" } }),
        layout(P, { { 0, "u16", "message.major", "Major" }, { 2, "u16", "message.minor", "Minor" } }),
    }

    bodies[NEGOTIATE] = function(ctx, tree, start, stop, head)
        local v, items = show(ctx, tree, start, stop, counts)
        if not v.message_count then
            return "negotiate"
        end
        local at, told = start + 8, { "", "" }
        for kind, number in ipairs({ v.framework_count, v.message_count }) do
            local each = {}
            for _ = 1, number do
                if at + 4 > stop then
                    local item = kind == 1 and items.framework_count or items.message_count
                    ctx.fault(item, "truncated", format("Room for %d versions of %d", #each, number))
                    break
                end
                local what = kind == 1 and "Framework version" or "Message version"
                local box = tree:add(ctx.tvb(at, 4), what)
                local pair = show(ctx, box, at, stop, version_rows[kind])
                local major, minor = ctx.tvb(at, 2):le_uint(), ctx.tvb(at + 2, 2):le_uint()
                each[#each + 1] = format("%d.%d", major, minor)
                box:append_text(" " .. each[#each])
                at = at + (pair.truncated and 0 or 4)
            end
            told[kind] = table.concat(each, ", ")
        end
        if vmbus.has(head.flags, RESPONSE) and v.framework_count == 0 then
            ctx.fault(items.framework_count, "failed", "The guest has no version in common")
            return "negotiate: no version in common"
        end
        return format("negotiate framework %s, messages %s", told[1], told[2])
    end

    local beat = layout("vmbus.heartbeat.", {
        { 0, "u64", "sequence", "Sequence" },
        {
            8,
            "u32",
            "application_state",
            "Application state",
            values = { [0] = "unknown", [1] = "healthy", [2] = "critical", [3] = "stopped" },
        },
    })
    bodies[HEARTBEAT] = function(ctx, tree, start, stop)
        local v = show(ctx, tree, start, stop, beat, 8)
        return v.sequence and "beat " .. tostring(v.sequence) or "beat"
    end

    local shutdown_flags = { 8, "x32", "flags", "Flags" }
    shutdown_flags.flags = { { 1, "force", "Force" }, { 2, "restart", "Restart" }, { 4, "hibernate", "Hibernate" } }
    local shutdown = layout("vmbus.shutdown.", {
        { 0, "x32", "reason", "Reason", values = { [0x80000000] = "planned" } },
        { 4, "u32", "timeout", "Timeout (s)" },
        shutdown_flags,
        { 12, "text", "text", "Text", size = 2048 },
    })
    bodies[SHUTDOWN] = function(ctx, tree, start, stop)
        local v = show(ctx, tree, start, stop, shutdown, 12)
        local what = "power off"
        if v.flags and vmbus.has(v.flags, 2) then
            what = "restart"
        elseif v.flags and vmbus.has(v.flags, 4) then
            what = "hibernate"
        end
        return v.flags and vmbus.has(v.flags, 1) and what .. ", forced" or what
    end

    local sync_flags = { [0] = "probe", [1] = "sync", [2] = "sample" }
    local date = vmbus.field("vmbus.timesync.date", "date", "Date")
    local reference = layout("vmbus.timesync.", {
        { 0, "u64", "parent_time", "Host's time (100 ns since 1601)" },
        { 8, "u64", "reference_time", "Partition's reference time (100 ns)" },
        { 16, "u8", "flags", "Flags", values = sync_flags },
        { 17, "u8", "leap_flags", "Leap flags" },
        { 18, "u8", "stratum", "Stratum" },
        { 19, "bytes", "reserved", "Reserved", size = 5 },
    })
    local plain = layout("vmbus.timesync.", {
        { 0, "u64", "parent_time", "Host's time (100 ns since 1601)" },
        { 8, "u64", "child_time", "Guest's time" },
        { 16, "u64", "round_trip", "Round trip" },
        { 24, "u8", "flags", "Flags", values = sync_flags },
    })
    local TICKS, SINCE_1601, YEAR_10000 = UInt64(10000000), 11644473600, 253402300800
    bodies[TIME_SYNC] = function(ctx, tree, start, stop, head)
        -- Linux has two reserved bytes fewer than Windows.
        local newer = head.version_major >= 4
        local v, items = show(ctx, tree, start, stop, newer and reference or plain, newer and 19)
        if v.parent_time then
            local seconds = (v.parent_time / TICKS):tonumber() - SINCE_1601
            if seconds >= 0 and seconds < YEAR_10000 then
                local nanoseconds = (v.parent_time % TICKS):tonumber() * 100
                generated(items.parent_time, date, NSTime.new(seconds, nanoseconds), ctx.tvb(start, 8))
            end
        end
        return v.flags and (sync_flags[v.flags] or format("flags %d", v.flags)) or "time"
    end

    -- Key-value pairs -------------------------------------------------------------------------------------------------

    local kvp_operations = { "SET", "DELETE", "ENUMERATE", "GET_IP_INFO", "SET_IP_INFO", [0] = "GET" }
    local pools = { [0] = "external", [1] = "guest", [2] = "auto", [3] = "auto external", [4] = "auto internal" }
    local kvp = layout("vmbus.kvp.", {
        { 0, "u8", "operation", "Operation", values = kvp_operations },
        { 1, "u8", "pool", "Pool", values = pools },
        { 2, "x16", "reserved", "Reserved", reserved = true },
    })
    local kvp_of_texts = layout("vmbus.kvp.", {
        { 0, "u8", "operation", "Operation", values = kvp_operations },
        { 1, "u8", "pool", "Pool", values = pools },
    })
    local value_types = { "string", "expandable string", [4] = "32-bit number", [11] = "64-bit number" }
    local item_rows = layout("vmbus.kvp.", {
        { 0, "u32", "value_type", "Value type", values = value_types },
        { 4, "u32", "key_size", "Bytes of the key" },
        { 8, "u32", "value_size", "Bytes of the value" },
    })
    local index_rows = layout("vmbus.kvp.", { { 0, "u32", "index", "Index" } })
    local key_size = layout("vmbus.kvp.", { { 0, "u32", "key_size", "Bytes of the key" } })
    local addresses = layout("vmbus.kvp.", {
        { 0, "text", "adapter", "Adapter", size = 256 },
        { 256, "u8", "address_family", "Address family", values = { "IPv4", "IPv6", "IPv4 and IPv6" } },
        { 257, "u8", "dhcp", "DHCP", values = words.yes_no },
        { 258, "text", "addresses", "Addresses", size = 2048 },
        { 2306, "text", "subnets", "Subnets", size = 2048 },
        { 4354, "text", "gateways", "Gateways", size = 1024 },
        { 5378, "text", "name_servers", "Name servers", size = 2048 },
    })
    local key_field = vmbus.field("vmbus.kvp.key", "text", "Key")
    local text_field = vmbus.field("vmbus.kvp.value", "text", "Value")
    local KEY_BYTES, VALUE_BYTES = 512, 2048

    -- A text of so many bytes, its NUL included. Longer ones than there is room for are told.
    local function show_text(ctx, tree, known, item, size, room, at, stop)
        if size > room or at + size > stop then
            local there = math.max(0, math.min(room, stop - at))
            ctx.fault(item, "truncated", format("A text of %d bytes in room for %d", size, there))
            return ""
        end
        if size < 2 then
            return ""
        end
        local text = ctx.tvb(at, size - size % 2):le_ustring()
        tree:add(known, ctx.tvb(at, size), text)
        return text
    end

    local function show_item(ctx, tree, start, stop, valued)
        local v, items = show(ctx, tree, start, stop, item_rows)
        if not v.value_size then
            return ""
        end
        local at = start + 12
        local key = show_text(ctx, tree, key_field, items.key_size, v.key_size, KEY_BYTES, at, stop)
        at = at + KEY_BYTES
        if not valued or v.value_size == 0 or at + 8 > stop then
            return key
        end
        local value
        if v.value_type == 4 then
            value = tostring(ctx.tvb(at, 4):le_uint())
        elseif v.value_type == 11 then
            value = tostring(ctx.tvb(at, 8):le_uint64())
        else
            return key .. "=" .. show_text(ctx, tree, text_field, items.value_size, v.value_size, VALUE_BYTES, at, stop)
        end
        tree:add(text_field, ctx.tvb(at, v.value_type == 4 and 4 or 8), value)
        return key .. "=" .. value
    end

    bodies[KVP] = function(ctx, tree, start, stop, head)
        local operation = start < stop and ctx.tvb(start, 1):uint() or 0
        -- Texts need no alignment but their own, and begin in what other operations keep free; numbers are not shown.
        local texts = (operation == 4 or operation == 5) and head.version_major < 5
        local v, items = show(ctx, tree, start, stop, texts and kvp_of_texts or kvp)
        local name = kvp_operations[v.operation or -1]
        if not v.pool or not (texts or v.reserved) then
            return "KVP"
        elseif not name then
            ctx.fault(items.operation, "unknown", format("No KVP message has operation %d", v.operation))
            return format("operation %d", v.operation)
        end
        local at = start + 4
        local answered = vmbus.has(head.flags, RESPONSE)
        local told = ""
        if v.operation == 0 or v.operation == 1 then
            told = show_item(ctx, tree, at, stop, answered or v.operation == 1)
        elseif v.operation == 2 then
            local size, shown = show(ctx, tree, at, stop, key_size)
            if size.key_size then
                told = show_text(ctx, tree, key_field, shown.key_size, size.key_size, KEY_BYTES, at + 4, stop)
            end
        elseif v.operation == 3 then
            local index = show(ctx, tree, at, stop, index_rows).index
            told = index and format("item %d", index) or ""
            if index then
                told = told .. " " .. show_item(ctx, tree, at + 4, stop, true)
            end
        else
            if texts then
                told = show(ctx, tree, start + 2, stop, addresses).adapter or ""
            else
                vmbus.show_rest(ctx, tree, at, stop)
            end
        end
        return (format("%s pool %s %s", name, pools[v.pool] or format("%d", v.pool), told):gsub(" +$", ""))
    end

    local vss_operations = {
        [0] = "CREATE",
        [1] = "DELETE",
        [2] = "HOT_BACKUP",
        [3] = "GET_DM_INFO",
        [4] = "BACKUP_COMPLETE",
        [5] = "FREEZE",
        [6] = "THAW",
        [7] = "AUTO_RECOVER",
    }
    local vss = layout("vmbus.vss.", {
        { 0, "u8", "operation", "Operation", values = vss_operations },
        { 1, "bytes", "reserved", "Reserved", size = 7 },
        { 8, "x32", "flags", "Flags" },
    })
    bodies[VSS] = function(ctx, tree, start, stop)
        local v = show(ctx, tree, start, stop, vss, 8)
        return v.operation and words.of(vss_operations, v.operation) or "VSS"
    end

    local copy_operations = { [0] = "START", [1] = "WRITE", [2] = "COMPLETE", [3] = "CANCEL" }
    local copy = layout("vmbus.filecopy.", {
        { 0, "u32", "operation", "Operation", values = copy_operations },
        { 4, "guid", "service0", "Service" },
        { 20, "guid", "service1", "Service" },
    })
    local copy_start = layout("vmbus.filecopy.", {
        { 36, "text", "file", "File", size = 520 },
        { 556, "text", "path", "Path", size = 520 },
        { 1076, "x32", "flags", "Flags" },
        { 1080, "u64", "file_size", "File size" },
    })
    local copy_write = layout("vmbus.filecopy.", {
        { 36, "x32", "padding", "Padding" },
        { 40, "u64", "offset", "Offset" },
        { 48, "u32", "size", "Size" },
    })
    bodies[FILE_COPY] = function(ctx, tree, start, stop)
        local v = show(ctx, tree, start, stop, copy)
        if v.operation == 0 and not v.truncated then
            local begun = show(ctx, tree, start, stop, copy_start)
            return "START " .. (begun.file or "")
        elseif v.operation == 1 and not v.truncated then
            local written = show(ctx, tree, start, stop, copy_write)
            vmbus.show_rest(ctx, tree, start + 52, stop)
            return format("WRITE %d bytes at %s", written.size or 0, tostring(written.offset or 0))
        end
        return v.operation and words.of(copy_operations, v.operation) or "file copy"
    end

    -- A message -----------------------------------------------------------------------------------------------------

    local function integration(ctx, tree, start, stop)
        local from, to = vmbus.show_pipe(ctx, tree, start, stop)
        if not from then
            return
        end
        local box = tree:add(ctx.tvb(from, to - from), "Integration message")
        local v, items = show(ctx, box, from, to, header)
        if v.truncated then
            ctx.info(format("an integration message of %d bytes", to - from))
            return
        end
        local name = components[v.type]
        box:append_text(": " .. (name or "unknown"))
        local body = from + 20
        local ending = body + v.size
        if ending > to then
            ctx.fault(items.size, "truncated", format("%d bytes of %d are there", to - body, v.size))
            ending = to
        end
        local answered = vmbus.has(v.flags, RESPONSE)
        local told
        if not name then
            ctx.fault(items.type, "unknown", format("No integration message has type %d", v.type))
            told = format("unknown type %d", v.type)
            vmbus.show_rest(ctx, box, body, ending)
        elseif bodies[v.type] then
            told = bodies[v.type](ctx, box, body, ending, v)
        else
            told = name
            vmbus.show_rest(ctx, box, body, ending)
        end
        if v.status ~= 0 then
            ctx.fault(items.status, "failed", "Status: " .. words.of(statuses, v.status))
            told = told .. ": " .. words.of(statuses, v.status)
        end
        ctx.info(told .. (answered and ", answer" or ""))

        -- The host asks and the guest answers, with the transaction ID of the question.
        local channel = relations.channel(ctx.partition, ctx.channel_id)
        local key = v.type .. "/" .. v.transaction_id
        if answered and ctx.direction == 0 then
            local pair = relations.answer(ctx, "ic", channel, key)
            relations.show_answer(box, "ic", pair)
            if not pair then
                ctx.missing(box, channel.opened, "No question of this transaction ID is open")
            end
        elseif vmbus.has(v.flags, REQUEST) and ctx.direction == 1 then
            relations.show_question(box, "ic", relations.ask(ctx, "ic", channel, key))
        else
            ctx.fault(items.flags, "direction", "Neither a host's request nor a guest's answer")
        end
    end

    for device = 3, 8 do
        vmbus.payloads[device] = integration
    end
end
