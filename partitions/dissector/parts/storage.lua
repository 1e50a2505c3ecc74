-- Synthetic SCSI: packets of storvsp and storvsc, SRBs, commands and sense data. Layouts after Linux storvsc_drv.c.
--
-- Wireshark's SCSI dissector has no name that a script could call it by. It is reached through the iSCSI dissector, by
-- an iSCSI header made up around the CDB or the sense data; the tree says so. What is needed for the Info column and
-- for filters of our own is read here too.

return function(vmbus)
    local layout, show, field, generated = vmbus.layout, vmbus.show, vmbus.field, vmbus.generated
    local words, has, format = vmbus.words, vmbus.has, string.format
    local P = "vmbus.storage."
    local STORAGE, IDE = 1, 13
    local HEADER, CDB, CHECK_CONDITION = 12, 16, 2
    local EXECUTE_SRB, QUERY_VERSION, QUERY_PROPERTIES, FCHBA_DATA, CREATE_SUB_CHANNELS = 3, 9, 10, 12, 13

    local operations = {
        "COMPLETE_IO",
        "REMOVE_DEVICE",
        "EXECUTE_SRB",
        "RESET_LUN",
        "RESET_ADAPTER",
        "RESET_BUS",
        "BEGIN_INITIALIZATION",
        "END_INITIALIZATION",
        "QUERY_PROTOCOL_VERSION",
        "QUERY_PROPERTIES",
        "ENUMERATE_BUS",
        "FCHBA_DATA",
        "CREATE_SUB_CHANNELS",
    }
    local from_host = { [1] = true, [2] = true, [11] = true }
    local srb_statuses = {
        [0x00] = "PENDING",
        [0x01] = "SUCCESS",
        [0x02] = "ABORTED",
        [0x04] = "ERROR",
        [0x05] = "BUSY",
        [0x06] = "INVALID_REQUEST",
        [0x08] = "NO_DEVICE",
        [0x09] = "TIMEOUT",
        [0x0A] = "SELECTION_TIMEOUT",
        [0x0E] = "BUS_RESET",
        [0x12] = "DATA_OVERRUN",
        [0x20] = "INVALID_LUN",
        [0x21] = "INVALID_TARGET",
        [0x22] = "BAD_FUNCTION",
        [0x30] = "INTERNAL_ERROR",
    }
    local scsi_statuses = {
        [0x00] = "GOOD",
        [0x02] = "CHECK CONDITION",
        [0x04] = "CONDITION MET",
        [0x08] = "BUSY",
        [0x18] = "RESERVATION CONFLICT",
        [0x28] = "TASK SET FULL",
        [0x30] = "ACA ACTIVE",
        [0x40] = "TASK ABORTED",
    }
    local versions = {
        [0x0200] = "2.0, Windows Server 2008",
        [0x0402] = "4.2, Windows Server 2008 R2",
        [0x0501] = "5.1, Windows Server 2012",
        [0x0600] = "6.0, Windows Server 2012 R2",
        [0x0602] = "6.2, Windows Server 2016",
    }

    local header = layout(P, {
        { 0, "u32", "operation", "Operation", values = operations },
        { 4, "x32", "flags", "Flags", flags = { { 1, "completion", "Completion wanted" } } },
        { 8, "x32", "status", "Status", values = words.nt_statuses },
    })
    local srb_flags = { 40, "x32", "srb_flags", "SRB flags", open = true }
    srb_flags.flags = {
        { 0x00000002, "queue_action", "Queue action enable" },
        { 0x00000004, "no_disconnect", "Disable disconnect" },
        { 0x00000008, "no_synch_transfer", "Disable synchronous transfer" },
        { 0x00000020, "no_autosense", "Disable autosense" },
        { 0x00000040, "data_in", "Data in" },
        { 0x00000080, "data_out", "Data out" },
        { 0x00000100, "no_queue_freeze", "No queue freeze" },
    }
    local srb = layout(P, {
        { 0, "u16", "srb_length", "SRB length" },
        { 2, "x8", "srb_status", "SRB status" },
        { 3, "x8", "scsi_status", "SCSI status", values = scsi_statuses },
        { 4, "u8", "port", "Port" },
        { 5, "u8", "path", "Path" },
        { 6, "u8", "target", "Target" },
        { 7, "u8", "lun", "LUN" },
        { 8, "u8", "cdb_length", "CDB length" },
        { 9, "u8", "sense_length", "Sense length" },
        { 10, "u8", "data_in", "Data", values = { [0] = "out", [1] = "in", [2] = "none" } },
        { 11, "x8", "properties", "Properties" },
        { 12, "u32", "data_transfer_length", "Transfer length" },
    })
    local queue_actions = { [0x20] = "simple", [0x21] = "head of queue", [0x22] = "ordered" }
    local srb_extension = layout(P, {
        { 36, "x16", "reserve", "Reserved" },
        { 38, "x8", "queue_tag", "Queue tag" },
        { 39, "x8", "queue_action", "Queue action", values = queue_actions },
        srb_flags,
        { 44, "u32", "timeout", "Timeout (s)" },
        { 48, "u32", "queue_sort_key", "Sort key" },
    })
    local protocol_version = layout(P, {
        { 0, "x16", "version", "Protocol version", values = versions },
        { 2, "u16", "revision", "Revision" },
    })
    local properties = layout(P, {
        { 0, "x32", "properties_reserved", "Reserved", reserved = true },
        { 4, "u16", "max_channels", "Subchannels at most" },
        { 6, "x16", "properties_reserved2", "Reserved", reserved = true },
        { 8, "x32", "channel_flags", "Channel flags", flags = { { 1, "multichannel", "Multiple channels" } } },
        { 12, "u32", "max_transfer", "Bytes a transfer at most" },
        { 16, "x64", "properties_reserved3", "Reserved" },
    })
    local fibre_channel = layout(P, {
        { 0, "u8", "primary_active", "Primary active" },
        { 4, "bytes", "primary_port_wwn", "Primary port WWN", size = 8 },
        { 12, "bytes", "primary_node_wwn", "Primary node WWN", size = 8 },
        { 20, "bytes", "secondary_port_wwn", "Secondary port WWN", size = 8 },
        { 28, "bytes", "secondary_node_wwn", "Secondary node WWN", size = 8 },
    })
    local sub_channels = layout(P, { { 0, "u16", "sub_channels", "Subchannels wanted" } })

    local code = field(P .. "srb_status.code", "x8", "How the SRB ended", srb_statuses)
    local frozen = field(P .. "srb_status.queue_frozen", "bool", "The queue is frozen")
    local autosense = field(P .. "srb_status.autosense", "bool", "Sense data is valid")
    local cdb_bytes = field(P .. "cdb", "bytes", "CDB")
    local sense_bytes = field(P .. "sense", "bytes", "Sense data")

    -- Commands ------------------------------------------------------------------------------------------------------

    local opcodes = {
        [0x00] = "TEST UNIT READY",
        [0x03] = "REQUEST SENSE",
        [0x04] = "FORMAT UNIT",
        [0x08] = "READ(6)",
        [0x0A] = "WRITE(6)",
        [0x12] = "INQUIRY",
        [0x15] = "MODE SELECT(6)",
        [0x16] = "RESERVE(6)",
        [0x17] = "RELEASE(6)",
        [0x1A] = "MODE SENSE(6)",
        [0x1B] = "START STOP UNIT",
        [0x1C] = "RECEIVE DIAGNOSTIC RESULTS",
        [0x1D] = "SEND DIAGNOSTIC",
        [0x1E] = "PREVENT ALLOW MEDIUM REMOVAL",
        [0x23] = "READ FORMAT CAPACITIES",
        [0x25] = "READ CAPACITY(10)",
        [0x28] = "READ(10)",
        [0x2A] = "WRITE(10)",
        [0x2B] = "SEEK(10)",
        [0x2E] = "WRITE AND VERIFY(10)",
        [0x2F] = "VERIFY(10)",
        [0x34] = "PRE-FETCH(10)",
        [0x35] = "SYNCHRONIZE CACHE(10)",
        [0x3B] = "WRITE BUFFER",
        [0x3C] = "READ BUFFER",
        [0x41] = "WRITE SAME(10)",
        [0x42] = "UNMAP",
        [0x43] = "READ TOC/PMA/ATIP",
        [0x46] = "GET CONFIGURATION",
        [0x4A] = "GET EVENT STATUS NOTIFICATION",
        [0x4C] = "LOG SELECT",
        [0x4D] = "LOG SENSE",
        [0x51] = "READ DISC INFORMATION",
        [0x55] = "MODE SELECT(10)",
        [0x56] = "RESERVE(10)",
        [0x57] = "RELEASE(10)",
        [0x5A] = "MODE SENSE(10)",
        [0x5E] = "PERSISTENT RESERVE IN",
        [0x5F] = "PERSISTENT RESERVE OUT",
        [0x7F] = "variable length command",
        [0x85] = "ATA PASS-THROUGH(16)",
        [0x88] = "READ(16)",
        [0x89] = "COMPARE AND WRITE",
        [0x8A] = "WRITE(16)",
        [0x8E] = "WRITE AND VERIFY(16)",
        [0x8F] = "VERIFY(16)",
        [0x91] = "SYNCHRONIZE CACHE(16)",
        [0x93] = "WRITE SAME(16)",
        [0x9E] = "SERVICE ACTION IN(16)",
        [0xA0] = "REPORT LUNS",
        [0xA1] = "ATA PASS-THROUGH(12)",
        [0xA3] = "MAINTENANCE IN",
        [0xA4] = "MAINTENANCE OUT",
        [0xA8] = "READ(12)",
        [0xAA] = "WRITE(12)",
        [0xAD] = "READ DISC STRUCTURE",
        [0xAF] = "VERIFY(12)",
        [0xBB] = "SET CD SPEED",
        [0xBD] = "MECHANISM STATUS",
    }
    -- Where the first block and the number of blocks stand in a CDB: offset and bytes of each.
    local blocks_6, blocks_10, blocks_12, blocks_16 = { 2, 2, 4, 1 }, { 2, 4, 7, 2 }, { 2, 4, 6, 4 }, { 2, 8, 10, 4 }
    local with_blocks = { [0x08] = blocks_6, [0x0A] = blocks_6, [0x89] = { 2, 8, 13, 1 }, [0x9E] = { 2, 8 } }
    for _, each in ipairs({ 0x28, 0x2A, 0x2E, 0x2F, 0x34, 0x35, 0x41 }) do
        with_blocks[each] = blocks_10
    end
    for _, each in ipairs({ 0xA8, 0xAA, 0xAF }) do
        with_blocks[each] = blocks_12
    end
    for _, each in ipairs({ 0x88, 0x8A, 0x8E, 0x8F, 0x91, 0x93 }) do
        with_blocks[each] = blocks_16
    end
    local actions = {
        [0x9E] = { [0x10] = "READ CAPACITY(16)", [0x12] = "GET LBA STATUS" },
        [0xA3] = {
            [0x0A] = "REPORT TARGET PORT GROUPS",
            [0x0C] = "REPORT OPERATION CODES",
            [0x0D] = "REPORT TASK MANAGEMENT",
        },
        [0x5E] = { [0] = "READ KEYS", [1] = "READ RESERVATION", [2] = "REPORT CAPABILITIES", [3] = "READ FULL STATUS" },
        [0x5F] = {
            [0] = "REGISTER",
            [1] = "RESERVE",
            [2] = "RELEASE",
            [3] = "CLEAR",
            [4] = "PREEMPT",
            [5] = "PREEMPT AND ABORT",
            [6] = "REGISTER AND IGNORE",
        },
    }
    local opcode = field(P .. "opcode", "x8", "Operation code", opcodes)
    local lba = field(P .. "lba", "u64", "Logical block address")
    local blocks = field(P .. "blocks", "u32", "Blocks")

    -- A command's fields in the tree; its words.
    local function show_command(tree, range)
        local number = range(0, 1):uint()
        local text = opcodes[number] or format("command %#x", number)
        generated(tree, opcode, number, range(0, 1))
        local where = with_blocks[number]
        if where then
            local first
            if where[2] == 8 then
                first = range(where[1], 8):uint64()
            else
                first = range(where[1], where[2]):uint()
                if where == blocks_6 then
                    first = first + range(1, 1):uint() % 32 * 65536
                end
                first = UInt64(first)
            end
            generated(tree, lba, first, range(where[1], where[2]))
            if where[3] then
                local count = range(where[3], where[4]):uint()
                generated(tree, blocks, count, range(where[3], where[4]))
                return format("%s LBA %s, %d blocks", text, tostring(first), count)
            end
        end
        local known = actions[number]
        if known then
            local action = range(1, 1):uint() % 32
            -- An operation code that is only the door to others is not worth its words.
            local door = known[action] and (number == 0x9E or number == 0xA3)
            return door and known[action] or format("%s %s", text, known[action] or format("action %#x", action))
        end
        if number == 0x12 and has(range(1, 1):uint(), 1) then
            return format("%s page %#x", text, range(2, 1):uint())
        elseif number == 0x1A or number == 0x5A then
            return format("%s page %#x", text, range(2, 1):uint() % 64)
        end
        return text
    end

    local sense_keys = {
        [0] = "NO SENSE",
        [1] = "RECOVERED ERROR",
        [2] = "NOT READY",
        [3] = "MEDIUM ERROR",
        [4] = "HARDWARE ERROR",
        [5] = "ILLEGAL REQUEST",
        [6] = "UNIT ATTENTION",
        [7] = "DATA PROTECT",
        [8] = "BLANK CHECK",
        [9] = "VENDOR SPECIFIC",
        [10] = "COPY ABORTED",
        [11] = "ABORTED COMMAND",
        [13] = "VOLUME OVERFLOW",
        [14] = "MISCOMPARE",
        [15] = "COMPLETED",
    }
    local sense_key = field(P .. "sense.key", "u8", "Sense key", sense_keys)
    local sense_asc = field(P .. "sense.asc", "x8", "Additional sense code")
    local sense_ascq = field(P .. "sense.ascq", "x8", "Additional sense code qualifier")

    local function show_sense(tree, range)
        local form = range(0, 1):uint() % 128
        local at
        if form == 0x70 or form == 0x71 then
            at = { 2, 12, 13 }
        elseif form == 0x72 or form == 0x73 then
            at = { 1, 2, 3 }
        else
            return "sense of unknown form"
        end
        local key = range(at[1], 1):uint() % 16
        local asc, ascq = range(at[2], 1):uint(), range(at[3], 1):uint()
        generated(tree, sense_key, key, range(at[1], 1))
        generated(tree, sense_asc, asc, range(at[2], 1))
        generated(tree, sense_ascq, ascq, range(at[3], 1))
        return format("%s %02x/%02x", sense_keys[key] or format("sense key %d", key), asc, ascq)
    end

    -- Wireshark's SCSI dissector ------------------------------------------------------------------------------------

    local iscsi = Dissector.get("iscsi")

    local function hand_on(ctx, tree, header, range, what)
        local carrier = tree:add(range, "Wireshark's SCSI: " .. what .. ", in an iSCSI header made up for it")
        carrier:set_generated()
        local bytes = ByteArray.new((header:gsub(" ", "")))
        -- What Wireshark makes of a guest's bytes is its own to tell; it must not end this dissection.
        pcall(iscsi.call, iscsi, bytes:tvb(what), ctx.pinfo, carrier)
    end

    -- The task tag is the frame of the command, so that IDs which a guest uses again do not matter.
    local function hand_on_command(ctx, tree, v, range)
        local way = v.data_in == 1 and "c1" or v.data_in == 0 and "a1" or "81"
        local head = format("01%s0000 00000000 00%02x000000000000 %08x", way, v.lun, ctx.frame)
        local rest = format("%08x 00000001 00000001", v.data_transfer_length)
        hand_on(ctx, tree, head .. rest .. tostring(range:bytes()), range, "command")
    end

    local function hand_on_result(ctx, tree, v, frame, range, sense)
        local data = sense and format("%04x", sense:len()) .. tostring(sense:bytes()) or ""
        local head = format("218000%02x %08x 0000000000000000 %08x", v.scsi_status, #data / 2, frame)
        local rest = "ffffffff 00000001 00000001 00000001 00000000 00000000 00000000"
        hand_on(ctx, tree, head .. rest .. data, sense or range, "result")
    end

    -- Packets -------------------------------------------------------------------------------------------------------

    local function show_srb(ctx, tree, start, stop, packet)
        local box = tree:add(ctx.tvb(start, stop - start), "SCSI request block")
        local v, items = show(ctx, box, start, stop, srb)
        if v.truncated then
            return
        end
        local code_now = v.srb_status % 64
        local where = ctx.tvb(start + 2, 1)
        generated(items.srb_status, code, code_now, where)
        generated(items.srb_status, frozen, has(v.srb_status, 64), where)
        local sensed = has(v.srb_status, 128)
        generated(items.srb_status, autosense, sensed, where)
        if v.srb_length ~= 52 and v.srb_length ~= 36 then
            ctx.fault(items.srb_length, "corrupt", format("An SRB of %d bytes", v.srb_length))
        end
        -- Before version 5.1 an SRB ended at 36.
        local room = math.min(20, stop - start - 16)
        local subject = packet.subject
        if room < CDB then
            ctx.fault(box, "truncated", "No room for a CDB")
        elseif packet.completion then
            local result, sense = srb_statuses[code_now] or format("SRB status %#x", code_now), nil
            if sensed then
                local size = math.min(room, v.sense_length > 0 and v.sense_length or room)
                local range = ctx.tvb(start + 16, size)
                box:add(sense_bytes, range)
                if size >= 14 then
                    result = result .. " " .. show_sense(box, range)
                end
                sense = size >= 18 and v.scsi_status == CHECK_CONDITION and range or nil
            end
            if vmbus.prefs.scsi and iscsi and subject and (code_now == 1 or sense) then
                hand_on_result(ctx, box, v, packet.pair.question, ctx.tvb(start + 3, 1), sense)
            end
            if code_now ~= 1 or v.scsi_status ~= 0 then
                ctx.fault(items.srb_status, "failed", result)
            else
                result = "good"
            end
            if v.scsi_status ~= 0 and not sensed then
                result = result .. " " .. words.of(scsi_statuses, v.scsi_status)
            end
            local what = subject and subject.words or "COMPLETE_IO"
            ctx.info(format("%s: %s, %d bytes", what, result, v.data_transfer_length))
        else
            local range = ctx.tvb(start + 16, CDB)
            box:add(cdb_bytes, range)
            local text = format("%s LUN %d", show_command(box, range), v.lun)
            if subject then
                subject.words = text
            end
            ctx.info(format("%s, %d bytes", text, v.data_transfer_length))
            if v.cdb_length > CDB then
                ctx.fault(items.cdb_length, "corrupt", format("A CDB of %d bytes in room for %d", v.cdb_length, CDB))
            end
            if ctx.bytes and ctx.bytes < v.data_transfer_length then
                ctx.fault(items.data_transfer_length, "corrupt", format("%d bytes of pages for it", ctx.bytes))
            end
            if vmbus.prefs.scsi and iscsi and packet.pair then
                hand_on_command(ctx, tree, v, range)
            end
        end
        if stop - start >= 52 and v.srb_length ~= 36 then
            show(ctx, box, start, stop, srb_extension)
        end
    end

    -- What follows the header, by what was asked for.
    local function show_body(ctx, tree, start, stop, operation, packet)
        local completion = packet.completion
        if operation == EXECUTE_SRB then
            show_srb(ctx, tree, start, stop, packet)
        elseif operation == QUERY_VERSION and not completion then
            local v = show(ctx, tree, start, stop, protocol_version)
            if v.version then
                local asked = format("%d.%d", math.floor(v.version / 256), v.version % 256)
                ctx.info(asked)
                if packet.subject then
                    packet.subject.words = operations[operation] .. " " .. asked
                end
            end
        elseif operation == QUERY_PROPERTIES and completion then
            local v = show(ctx, tree, start, stop, properties)
            if v.max_transfer then
                ctx.info(format("%d subchannels, %d bytes a transfer", v.max_channels, v.max_transfer))
            end
        elseif operation == FCHBA_DATA and completion then
            show(ctx, tree, start, stop, fibre_channel)
        elseif operation == CREATE_SUB_CHANNELS and not completion then
            local v = show(ctx, tree, start, stop, sub_channels)
            if v.sub_channels then
                ctx.info(format("%d", v.sub_channels))
            end
        else
            vmbus.show_rest(ctx, tree, start, stop)
        end
    end

    local function storage(ctx, tree, start, stop, packet)
        local box = tree:add(ctx.tvb(start, stop - start), "Storage packet")
        local v, items = show(ctx, box, start, stop, header)
        if v.truncated then
            ctx.info(format("a storage packet of %d bytes", stop - start))
            return
        end
        local name = operations[v.operation]
        box:append_text(": " .. (name or format("operation %d", v.operation)))
        if not name then
            ctx.fault(items.operation, "unknown", format("No storage packet has operation %d", v.operation))
        elseif (ctx.direction == 1) ~= (from_host[v.operation] or false) then
            ctx.fault(items.operation, "direction", name .. " never travels this way")
        end
        if v.status ~= 0 then
            ctx.fault(items.status, "failed", "Status: " .. words.of(words.nt_statuses, v.status))
        end
        local subject = packet.subject
        local operation = v.operation
        if packet.completion then
            -- A completion does not say of what; its request does. Without one an SRB is told by its length.
            operation = subject and subject.operation
            if not subject and stop - start >= HEADER + 36 then
                local length = ctx.tvb(start + HEADER, 2):le_uint()
                operation = (length == 52 or length == 36) and EXECUTE_SRB or nil
            end
            if operation ~= EXECUTE_SRB then
                local status = v.status == 0 and "good" or words.of(words.nt_statuses, v.status)
                local what = subject and subject.words or operations[operation] or "COMPLETE_IO"
                ctx.info(format("%s: %s", what, status))
            end
        else
            if subject and ctx.first then
                subject.operation = v.operation
            end
            if operation ~= EXECUTE_SRB then
                ctx.info(name or format("operation %d", operation))
            end
        end
        show_body(ctx, box, start + HEADER, stop, operation, packet)
    end

    vmbus.payloads[STORAGE] = storage
    vmbus.payloads[IDE] = storage
end
