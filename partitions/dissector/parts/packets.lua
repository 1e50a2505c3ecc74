-- Ring packets: the descriptor, what names pages, and the payload, which is the device's. A request that wants a
-- completion and the completion of the same transaction ID are joined here, on each channel and each way.

return function(vmbus)
    local layout, show, field, relations = vmbus.layout, vmbus.show, vmbus.field, vmbus.relations
    local format = string.format
    local INBAND, TRANSFER_PAGES, GPA_DIRECT, COMPLETION = 6, 7, 9, 11
    local types = {
        [INBAND] = "INBAND",
        [TRANSFER_PAGES] = "TRANSFER_PAGES",
        [GPA_DIRECT] = "GPA_DIRECT",
        [COMPLETION] = "COMPLETION",
    }
    local P = "vmbus.packet."

    local flags = { 6, "x16", "flags", "Flags", severe = "corrupt" }
    flags.flags = { { 1, "completion_requested", "Completion requested" } }
    local descriptor = layout(P, {
        { 0, "u16", "type", "Type", values = types },
        { 2, "u16", "offset8", "Payload begins at (8 bytes)" },
        { 4, "u16", "length8", "Length (8 bytes)" },
        flags,
        { 8, "x64", "transaction_id", "Transaction ID" },
    })
    local direct = layout(P, {
        { 16, "x32", "reserved", "Reserved", reserved = true },
        { 20, "u32", "range_count", "Ranges" },
    })
    local transfer = layout(P, {
        { 16, "x16", "pageset_id", "Page set" },
        { 18, "u8", "sender_owns_set", "The sender owns the set" },
        { 19, "x32", "reserved", "Reserved", size = 1, reserved = true },
        { 20, "u32", "range_count", "Ranges" },
    })
    local range_rows = layout(P, {
        { 0, "u32", "range.byte_count", "Byte count" },
        { 4, "u32", "range.byte_offset", "Byte offset" },
    })
    local pfn = field("vmbus.packet.pfn", "x64", "Guest page number")

    -- The pages of a GPA-direct packet. Returns the number of bytes that they hold.
    local function show_gpa_ranges(ctx, tree, start, stop)
        local v, items = show(ctx, tree, start, stop, direct)
        if not v.range_count then
            return 0
        end
        if v.range_count == 0 then
            ctx.fault(items.range_count, "corrupt", "A GPA-direct packet without ranges")
        end
        local at, total = start + 24, 0
        for number = 1, v.range_count do
            if at + 8 > stop then
                ctx.fault(items.range_count, "corrupt", format("Room for %d ranges of %d", number - 1, v.range_count))
                return total
            end
            local count, offset = ctx.tvb(at, 4):le_uint(), ctx.tvb(at + 4, 4):le_uint()
            local pages = math.ceil((count + offset) / 4096)
            local there = math.min(pages, math.floor((stop - at - 8) / 8))
            local range = tree:add(ctx.tvb(at, 8 + 8 * there), format("Range: %d bytes from %d", count, offset))
            show(ctx, range, at, at + 8, range_rows)
            for index = 0, there - 1 do
                range:add_le(pfn, ctx.tvb(at + 8 + 8 * index, 8))
            end
            if offset > 4095 then
                ctx.fault(range, "corrupt", format("The range begins at %d, past its first page", offset))
            end
            if there < pages then
                ctx.fault(range, "corrupt", format("%d pages where the range needs %d", there, pages))
            end
            at, total = at + 8 + 8 * there, total + count
        end
        return total
    end

    local function show_transfer_ranges(ctx, tree, start, stop)
        local v, items = show(ctx, tree, start, stop, transfer)
        local total = 0
        for index = 0, (v.range_count or 0) - 1 do
            local at = start + 24 + 8 * index
            if at + 8 > stop then
                ctx.fault(items.range_count, "corrupt", format("Room for %d ranges of %d", index, v.range_count))
                break
            end
            local range = tree:add(ctx.tvb(at, 8), "Range")
            total = total + show(ctx, range, at, at + 8, range_rows)["range.byte_count"]
        end
        return total
    end

    -- Shows the two ends of a transaction to each other; returns the pair.
    local function pair_up(ctx, tree, v)
        local channel = relations.channel(ctx.partition, ctx.channel_id)
        local id = tostring(v.transaction_id)
        if v.type == COMPLETION then
            local pair = relations.answer(ctx, "packet", channel, 1 - ctx.direction .. "/" .. id)
            relations.show_answer(tree, "packet", pair)
            if not pair then
                ctx.missing(tree, channel.opened, "No request with this transaction ID is open")
            end
            return pair
        elseif vmbus.has(v.flags, 1) then
            local pair = relations.ask(ctx, "packet", channel, ctx.direction .. "/" .. id)
            relations.show_question(tree, "packet", pair)
            return pair
        end
    end

    -- What the devices' parts register: device code to a function that shows a payload.
    vmbus.payloads = {}

    function vmbus.dissect_packet(ctx, start, stop)
        local tree = ctx.tree:add(ctx.tvb(start, stop - start), "Ring packet")
        local v, items = show(ctx, tree, start, stop, descriptor)
        local device = vmbus.words.devices[ctx.device] or format("device %d", ctx.device)
        ctx.info(format("channel %d %s:", ctx.channel_id, device))
        if v.truncated then
            ctx.info(format("a packet of %d bytes", stop - start))
            return
        end
        local name = types[v.type]
        local extended = v.type == TRANSFER_PAGES or v.type == GPA_DIRECT
        local payload, ending = start + v.offset8 * 8, start + v.length8 * 8
        if not name then
            ctx.fault(items.type, "corrupt", format("No ring packet has type %d", v.type))
        end
        if v.offset8 < (extended and 3 or 2) or v.offset8 > v.length8 then
            ctx.fault(items.offset8, "corrupt", format("A payload that begins at %d of %d", v.offset8, v.length8))
            payload = math.max(math.min(payload, stop), start + 16)
        end
        if ending > stop then
            ctx.fault(items.length8, "truncated", format("%d bytes of %d are there", stop - start, v.length8 * 8))
        elseif ending < stop then
            local told = format("%d bytes are there, %d is the length", stop - start, v.length8 * 8)
            ctx.fault(items.length8, "extra", told)
            stop = math.max(ending, start + 16)
        end
        payload = math.min(payload, stop)
        tree:append_text(": " .. (name or "unknown type"))

        local id = vmbus.hex64(v.transaction_id)
        if v.type == GPA_DIRECT then
            ctx.bytes = show_gpa_ranges(ctx, tree, start, payload)
        elseif v.type == TRANSFER_PAGES then
            ctx.bytes = show_transfer_ranges(ctx, tree, start, payload)
        elseif payload > start + 16 then
            vmbus.show_rest(ctx, tree, start + 16, payload)
        end
        local pair = name and pair_up(ctx, tree, v)
        local show_payload = vmbus.payloads[ctx.device]
        local packet = { completion = v.type == COMPLETION, pair = pair, subject = pair and pair.subject }
        if not name or payload >= stop then
            ctx.info(format("%s, %d bytes", name or "unknown type", stop - payload))
            vmbus.show_rest(ctx, ctx.tree, payload, stop)
        elseif show_payload then
            show_payload(ctx, ctx.tree, payload, stop, packet)
        else
            ctx.info(format("%s, %d bytes", name, stop - payload))
            vmbus.show_rest(ctx, ctx.tree, payload, stop)
        end
        if pair or v.type == COMPLETION then
            ctx.info("id " .. id)
        end
    end
end
