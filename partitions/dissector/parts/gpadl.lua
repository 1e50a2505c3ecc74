-- GPADLs: pages of the guest, named by 64-bit words in one header message and as many bodies as needed. Bodies name no
-- channel and Linux numbers them all 0, so the order of arrival is all that joins them.

return function(vmbus)
    local relations, field, format = vmbus.relations, vmbus.field, string.format

    local header_in = field("vmbus.gpadl.header_in", "frame", "GPADL header in frame")
    local body_in = field("vmbus.gpadl.body_in", "frame", "GPADL body in frame")
    local pages = field("vmbus.gpadl.pages", "u32", "Pages")
    local byte_count = field("vmbus.gpadl.range.byte_count", "u32", "Byte count")
    local byte_offset = field("vmbus.gpadl.range.byte_offset", "u32", "Byte offset")
    local pfn = field("vmbus.gpadl.pfn", "x64", "Guest page number")

    -- The words in one message. `record.left` page numbers of the current range are still to come; what a message
    -- begins with is kept with its frame, for later visits.
    local function show_words(ctx, tree, record, start, stop)
        local facts = ctx.facts
        if ctx.first then
            local here = math.floor((stop - start) / 8)
            facts.words = math.min(here, record and record.missing or here)
            facts.left, facts.extra = record and record.left or 0, here - facts.words
        end
        local left = facts.left
        for index = 0, facts.words - 1 do
            local at = start + index * 8
            if left > 0 then
                tree:add_le(pfn, ctx.tvb(at, 8))
                left = left - 1
            elseif not record then
                vmbus.show_rest(ctx, tree, at, at + 8)
            else
                local count, offset = ctx.tvb(at, 4):le_uint(), ctx.tvb(at + 4, 4):le_uint()
                left = math.ceil((count + offset) / 4096)
                local range = tree:add(ctx.tvb(at, 8), format("Range: %d bytes from %d, %d pages", count, offset, left))
                range:add_le(byte_count, ctx.tvb(at, 4))
                local where = range:add_le(byte_offset, ctx.tvb(at + 4, 4))
                if offset > 4095 then
                    ctx.fault(where, "gpadl", format("A range that begins at %d, past its first page", offset))
                end
                if count == 0 then
                    ctx.fault(range, "gpadl", "A range of no bytes")
                end
                if ctx.first then
                    record.ranges, record.pages = record.ranges + 1, record.pages + left
                    record.bytes = record.bytes + count
                end
            end
        end
        if ctx.first and record then
            record.left, record.missing = left, record.missing - facts.words
        end
        if facts.extra > 0 then
            ctx.fault(tree, "extra", format("%d words more than the GPADL has", facts.extra))
        end
    end

    -- Whether a GPADL that has all its words is one.
    local function check_whole(ctx, tree, record)
        if ctx.first and record.missing == 0 then
            if record.left > 0 then
                ctx.facts.lacks = format("%d page numbers fewer than the ranges need", record.left)
            elseif record.ranges ~= record.range_count then
                ctx.facts.lacks = format("%d ranges where the header counts %d", record.ranges, record.range_count)
            end
        end
        if ctx.facts.lacks then
            ctx.fault(tree, "gpadl", ctx.facts.lacks)
        end
    end

    local gpadl = {}

    function gpadl.header(ctx, tree, v, items, start, stop)
        local facts = ctx.facts
        if ctx.first then
            facts.gpadl = { frame = ctx.frame, missing = math.floor(v.byte_length / 8), range_count = v.range_count }
            facts.gpadl.left, facts.gpadl.ranges, facts.gpadl.pages, facts.gpadl.bytes = 0, 0, 0, 0
            facts.gpadl.bodies = {}
            ctx.partition.gpadls[v.gpadl_id] = facts.gpadl
        end
        local record = facts.gpadl
        if v.range_count == 0 then
            ctx.fault(items.range_count, "gpadl", "A GPADL of no ranges")
        end
        if v.byte_length % 8 ~= 0 then
            ctx.fault(items.byte_length, "gpadl", "A length that is no whole number of words")
        end
        show_words(ctx, tree, record, start + 20, stop)
        check_whole(ctx, tree, record)
        for _, body in ipairs(record.bodies) do
            vmbus.generated(tree, body_in, body)
        end
        local key = "gpadl" .. v.gpadl_id
        relations.show_question(tree, "message", relations.ask(ctx, "message", ctx.partition, key, record))
        local name = vmbus.channel_name(ctx, v.channel_id)
        ctx.info(format("%s gpadl %#x, %d words", name, v.gpadl_id, math.floor(v.byte_length / 8)))
    end

    function gpadl.body(ctx, tree, v, _, start, stop)
        local facts = ctx.facts
        if ctx.first then
            facts.gpadl = ctx.partition.gpadls[v.gpadl_id]
            if facts.gpadl then
                table.insert(facts.gpadl.bodies, ctx.frame)
            end
        end
        show_words(ctx, tree, facts.gpadl, start + 16, stop)
        if facts.gpadl then
            vmbus.generated(tree, header_in, facts.gpadl.frame)
            check_whole(ctx, tree, facts.gpadl)
        else
            ctx.missing(tree, ctx.partition.contact, "No GPADL header of this ID came before")
        end
        ctx.info(format("gpadl %#x, %d words more", v.gpadl_id, facts.words))
    end

    function gpadl.created(ctx, tree, v)
        local pair = relations.answer(ctx, "message", ctx.partition, "gpadl" .. v.gpadl_id)
        relations.show_answer(tree, "message", pair)
        if not pair then
            ctx.missing(tree, ctx.partition.contact, "No GPADL of this ID was being made")
        elseif v.status == 0 then
            local record = pair.subject
            vmbus.generated(tree, pages, record.pages)
            if ctx.first and record.missing > 0 then
                ctx.facts.early = record.missing
            end
            if ctx.facts.early then
                ctx.fault(tree, "gpadl", format("Created while %d words were missing", ctx.facts.early))
            end
        end
        local name = vmbus.channel_name(ctx, v.channel_id)
        ctx.info(format("%s gpadl %#x: %s", name, v.gpadl_id, vmbus.status_words(v.status)))
    end

    -- How an OPEN_CHANNEL parts a GPADL into two rings; words for the Info column.
    local ring_to_root = field("vmbus.message.ring_to_root", "u32", "Guest's ring, pages with the control page")
    local ring_to_child = field("vmbus.message.ring_to_child", "u32", "Host's ring, pages with the control page")
    function gpadl.split(ctx, tree, v)
        if ctx.first then
            ctx.facts.rings = ctx.partition.gpadls[v.gpadl_id]
        end
        local rings = ctx.facts.rings
        if not rings then
            return ""
        end
        vmbus.generated(tree, header_in, rings.frame)
        local border = v.downstream_page
        if border == 0 or border >= rings.pages then
            ctx.fault(tree, "gpadl", format("The rings part at page %d of %d", border, rings.pages))
            return ""
        end
        vmbus.generated(tree, ring_to_root, border)
        vmbus.generated(tree, ring_to_child, rings.pages - border)
        return format(", rings of %d and %d pages", border, rings.pages - border)
    end

    vmbus.gpadl = gpadl
end
