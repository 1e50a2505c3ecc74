-- Synthetic network: NVSP messages. Layouts after Linux hyperv_net.h.
--
-- RNDIS messages and Ethernet frames never travel in the ring: an NVSP message says in which section of the send
-- buffer, which pages or which slots of the receive buffer they are. So there is nothing here to hand on.

return function(vmbus)
    local layout, show, words, format = vmbus.layout, vmbus.show, vmbus.words, string.format
    local P = "vmbus.network."
    local NETWORK = 2

    local names = {
        [1] = "INIT",
        [2] = "INIT_COMPLETE",
        [100] = "SEND_NDIS_VERSION",
        [101] = "SEND_RECEIVE_BUFFER",
        [102] = "SEND_RECEIVE_BUFFER_COMPLETE",
        [103] = "REVOKE_RECEIVE_BUFFER",
        [104] = "SEND_SEND_BUFFER",
        [105] = "SEND_SEND_BUFFER_COMPLETE",
        [106] = "REVOKE_SEND_BUFFER",
        [107] = "SEND_RNDIS_PACKET",
        [108] = "SEND_RNDIS_PACKET_COMPLETE",
        [109] = "SEND_CHIMNEY_DELEGATED_BUFFER",
        [110] = "SEND_CHIMNEY_DELEGATED_BUFFER_COMPLETE",
        [111] = "REVOKE_CHIMNEY_DELEGATED_BUFFER",
        [112] = "RESUME_CHIMNEY_RX_INDICATION",
        [113] = "TERMINATE_CHIMNEY",
        [114] = "TERMINATE_CHIMNEY_COMPLETE",
        [115] = "INDICATE_CHIMNEY_EVENT",
        [116] = "SEND_CHIMNEY_PACKET",
        [117] = "SEND_CHIMNEY_PACKET_COMPLETE",
        [118] = "POST_CHIMNEY_RECEIVE_REQUEST",
        [119] = "POST_CHIMNEY_RECEIVE_REQUEST_COMPLETE",
        [120] = "ALLOCATE_RECEIVE_BUFFER",
        [121] = "ALLOCATE_RECEIVE_BUFFER_COMPLETE",
        [122] = "FREE_RECEIVE_BUFFER",
        [123] = "SEND_VMQ_RNDIS_PACKET",
        [124] = "SEND_VMQ_RNDIS_PACKET_COMPLETE",
        [125] = "SEND_NDIS_CONFIG",
        [126] = "ALLOCATE_CHIMNEY_HANDLE",
        [127] = "ALLOCATE_CHIMNEY_HANDLE_COMPLETE",
        [128] = "SEND_VF_ASSOCIATION",
        [129] = "SWITCH_DATA_PATH",
        [130] = "UPLINK_CONNECT_STATE",
        [131] = "OID_QUERY_EX",
        [132] = "OID_QUERY_EX_COMPLETE",
        [133] = "SUBCHANNEL",
        [134] = "SEND_INDIRECTION_TABLE",
        [135] = "PD_API",
        [136] = "PD_POST_BATCH",
    }
    local versions = {
        [0x00002] = "1",
        [0x30002] = "2",
        [0x40000] = "4",
        [0x50000] = "5",
        [0x60000] = "6.0",
        [0x60001] = "6.1",
        [0xFFFFFFFF] = "none",
    }
    local statuses = {
        [0] = "none",
        [1] = "success",
        [2] = "failure",
        [3] = "protocol too new",
        [4] = "protocol too old",
        [5] = "invalid RNDIS packet",
        [6] = "busy",
        [7] = "protocol unsupported",
    }
    local function status(offset)
        return { offset, "u32", "status", "Status", values = statuses }
    end
    local gpadl = { 4, "x32", "gpadl_id", "GPADL" }
    local function buffer_id(offset)
        return { offset, "x16", "buffer_id", "Buffer ID" }
    end

    local type_row = layout(P, { { 0, "u32", "type", "Type", values = names } })
    local config = { 12, "x64", "capabilities", "Capabilities" }
    local capability_words = {
        { 0x01, "VMQ" },
        { 0x02, "chimney" },
        { 0x04, "SR-IOV" },
        { 0x08, "802.1Q" },
        { 0x10, "correlation ID" },
        { 0x20, "teaming" },
        { 0x40, "virtual subnet" },
        { 0x80, "RSC" },
    }
    local rows = {
        [1] = layout(P, {
            { 4, "x32", "version", "Least version", values = versions },
            { 8, "x32", "max_version", "Greatest version", values = versions },
        }),
        [2] = layout(P, {
            { 4, "x32", "version", "Least version", values = versions },
            { 8, "u32", "max_mdl_chain", "MDL chain at most" },
            status(12),
        }),
        [100] = layout(P, { { 4, "u32", "ndis_major", "NDIS major" }, { 8, "u32", "ndis_minor", "NDIS minor" } }),
        [101] = layout(P, { gpadl, buffer_id(8) }),
        [102] = layout(P, {
            status(4),
            { 8, "u32", "sections", "Sections" },
        }),
        [103] = layout(P, { buffer_id(4) }),
        [104] = layout(P, { { 4, "x32", "gpadl_id", "GPADL" }, buffer_id(8) }),
        [105] = layout(P, { status(4), { 8, "u32", "section_size", "Section size" } }),
        [106] = layout(P, { buffer_id(4) }),
        [107] = layout(P, {
            { 4, "u32", "channel_type", "RNDIS channel", values = { [0] = "data", [1] = "control" } },
            { 8, "u32", "section_index", "Send buffer section", special = { [0xFFFFFFFF] = "none" } },
            { 12, "u32", "section_size", "Section size" },
        }),
        [108] = layout(P, { status(4) }),
        [120] = layout(P, { { 4, "u32", "allocation_id", "Allocation ID" }, { 8, "u32", "length", "Length" } }),
        [121] = layout(P, {
            status(4),
            { 8, "u32", "allocation_id", "Allocation ID" },
            { 12, "x32", "gpadl_id", "GPADL" },
            { 16, "x64", "receive_buffer_id", "Receive buffer ID" },
        }),
        [122] = layout(P, { { 4, "x64", "receive_buffer_id", "Receive buffer ID" } }),
        [125] = layout(P, {
            { 4, "u32", "mtu", "MTU with the Ethernet header" },
            { 8, "x32", "config_reserved", "Reserved", reserved = true },
            config,
        }),
        [128] = layout(P, {
            { 4, "u32", "vf_allocated", "VF allocated", values = words.yes_no },
            { 8, "u32", "vf_serial", "VF serial number" },
        }),
        [129] = layout(P, { { 4, "u32", "data_path", "Data path", values = { [0] = "synthetic", [1] = "VF" } } }),
        [133] = layout(P, {
            { 4, "u32", "operation", "Operation", values = { [0] = "none", [1] = "allocate" } },
            { 8, "u32", "count", "How many" },
        }),
        [134] = layout(P, { { 4, "u32", "count", "How many" }, { 8, "u32", "table_offset", "Offset" } }),
    }
    local section = layout(P, {
        { 0, "u32", "section.offset", "Offset" },
        { 4, "u32", "section.piece_size", "Bytes of a piece" },
        { 8, "u32", "section.piece_count", "Pieces" },
        { 12, "u32", "section.end", "End" },
    })
    local entry = vmbus.field(P .. "table_entry", "u32", "Channel")

    -- What some messages have behind their fixed part; words for the Info column.
    local function sections(ctx, box, start, stop, v, shown)
        local told
        for index = 0, v.sections - 1 do
            local at = start + 12 + 16 * index
            if at + 16 > stop then
                ctx.fault(shown.sections, "truncated", format("Room for %d sections", index))
                break
            end
            local each = show(ctx, box:add(ctx.tvb(at, 16), "Section"), at, stop, section)
            told = told or format("%d pieces of %d bytes", each["section.piece_count"], each["section.piece_size"])
        end
        return told
    end
    local function indirection(ctx, box, start, stop, v, shown)
        for index = 0, v.count - 1 do
            local at = start + v.table_offset + 4 * index
            if at + 4 > stop then
                ctx.fault(shown.count, "truncated", format("Room for %d entries", index))
                break
            end
            box:add_le(entry, ctx.tvb(at, 4))
        end
        return format("%d entries", v.count)
    end
    local subchannel_complete = layout(P, { status(4), { 8, "u32", "count", "How many" } })

    local telling = {
        [1] = function(v)
            return "version " .. words.of(versions, v.max_version)
        end,
        [101] = function(v)
            return format("gpadl %#x", v.gpadl_id)
        end,
        [104] = function(v)
            return format("gpadl %#x", v.gpadl_id)
        end,
        [105] = function(v)
            return format("sections of %d bytes", v.section_size)
        end,
        [107] = function(v, ctx)
            local way = v.channel_type == 1 and "control" or "data"
            if v.section_index ~= 0xFFFFFFFF then
                return format("%s, %d bytes in section %d", way, v.section_size, v.section_index)
            end
            return format("%s, %d bytes in pages", way, ctx.bytes or 0)
        end,
        [125] = function(v)
            return format("MTU %d", v.mtu)
        end,
        [129] = function(v)
            return v.data_path == 1 and "to the VF" or "to the synthetic path"
        end,
        [133] = function(v)
            return format("%d", v.count)
        end,
    }

    vmbus.payloads[NETWORK] = function(ctx, tree, start, stop, packet)
        local box = tree:add(ctx.tvb(start, stop - start), "NVSP message")
        local kind, items = show(ctx, box, start, stop, type_row)
        if not kind.type then
            ctx.info("an NVSP message without a type")
            return
        end
        local name = names[kind.type]
        if not name then
            -- Hosts complete what has no answer with no more than zeros.
            if kind.type == 0 and packet.completion then
                ctx.info("empty completion")
                return
            end
            ctx.fault(items.type, "unknown", format("No NVSP message has type %d", kind.type))
            ctx.info(format("NVSP message of unknown type %d", kind.type))
            vmbus.show_rest(ctx, box, start + 4, stop)
            return
        end
        box:append_text(": " .. name)
        ctx.info(name)
        local form = rows[kind.type]
        if kind.type == 133 and packet.completion then
            form = subchannel_complete
        end
        if not form then
            vmbus.show_rest(ctx, box, start + 4, stop)
            return
        end
        local v, shown = show(ctx, box, start, stop, form)
        if v.truncated then
            return
        end
        if v.capabilities then
            local low, able = tonumber(v.capabilities:lower()), {}
            for _, each in ipairs(capability_words) do
                if vmbus.has(low, each[1]) then
                    able[#able + 1] = each[2]
                end
            end
            shown.capabilities:append_text(" (" .. table.concat(able, ", ") .. ")")
        end
        if v.status and v.status ~= 1 then
            ctx.fault(shown.status, "failed", "Status: " .. words.of(statuses, v.status))
            ctx.info(words.of(statuses, v.status))
        elseif kind.type == 102 then
            ctx.info(sections(ctx, box, start, stop, v, shown) or "")
        elseif kind.type == 134 then
            ctx.info(indirection(ctx, box, start, stop, v, shown))
        elseif telling[kind.type] then
            ctx.info(telling[kind.type](v, ctx))
        end
    end
end
