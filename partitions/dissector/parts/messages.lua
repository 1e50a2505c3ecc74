-- Channel messages: offers, GPADLs, open, close and the connection itself. Layouts after Linux include/linux/hyperv.h
-- and openvmm vmbus_core; the header is the type and four bytes of padding.

return function(vmbus)
    local layout, show, words, relations, gpadls = vmbus.layout, vmbus.show, vmbus.words, vmbus.relations, vmbus.gpadl
    local format = string.format
    local P = "vmbus.message."
    local TO_ROOT, TO_CHILD = 0, 1
    local V1, V1_1, V4_0, V4_1 = 0xD, 0x10001, 0x40000, 0x40001
    local V5_0, V5_2, V5_3, V6_0 = 0x50000, 0x50002, 0x50003, 0x60000

    -- Rows that several messages have -------------------------------------------------------------------------------

    local channel = { 8, "u32", "channel_id", "Channel" }
    local gpadl = { 12, "x32", "gpadl_id", "GPADL" }
    local open_id = { 12, "u32", "open_id", "Open ID" }
    local vp = { 12, "u32", "target_vp", "Target VP", special = words.target_vps }
    local sint = { 16, "u32", "target_sint", "Target SINT" }
    local status = { 16, "x32", "status", "Status", values = words.channel_statuses }
    local downstream = { 24, "u32", "downstream_page", "Host's ring begins at page" }
    local to_child = { 24, "x64", "parent_to_child_monitor_page", "Monitor page, parent to child (GPA)" }
    local to_root = { 32, "x64", "child_to_parent_monitor_page", "Monitor page, child to parent (GPA)" }
    local connection = { 192, "x32", "connection_id", "Connection ID" }
    local version = { 8, "x32", "version", "Version", values = words.versions }
    local state = { 9, "u8", "connection_state", "Connection state", values = words.connection_states }
    local endpoint = { 8, "guid", "endpoint", "Guest endpoint" }
    local service = { 24, "guid", "service", "Host service" }
    local features = { 20, "x32", "features", "Features" }
    features.flags = {
        { 0x01, "signal_parameters", "Guest-specified signal parameters" },
        { 0x02, "interrupt_redirection", "Channel interrupt redirection" },
        { 0x04, "modify_connection", "Modify connection" },
        { 0x08, "client_id", "Client ID" },
        { 0x10, "confidential_channels", "Confidential channels" },
        { 0x20, "pause_resume", "Pause and resume" },
        { 0x40, "server_monitor_pages", "Server-specified monitor pages" },
        { 0x80, "gpa_pinning", "GPA pinning" },
    }

    -- A row that another message has elsewhere.
    local function at(offset, row)
        local made = { offset }
        for key, value in pairs(row) do
            if key ~= 1 then
                made[key] = value
            end
        end
        return made
    end

    -- A layout of rows, the last arguments behind those of a shared beginning.
    local function rows(...)
        local all = {}
        for _, row in ipairs({ ... }) do
            if type(row[1]) == "table" then
                for _, shared in ipairs(row) do
                    all[#all + 1] = at(shared[1], shared)
                end
            else
                all[#all + 1] = at(row[1], row)
            end
        end
        return layout(P, all)
    end

    -- Layouts of one message each -----------------------------------------------------------------------------------

    local header = rows(
        { 0, "u32", "type", "Type", values = words.messages },
        { 4, "x32", "padding", "Padding", reserved = true }
    )
    local offer_flags = { 56, "x16", "flags", "Flags" }
    offer_flags.flags = {
        { 0x0001, "enumerate_device_interface", "Enumerate device interface" },
        { 0x0002, "confidential_ring", "Confidential ring buffer" },
        { 0x0004, "confidential_memory", "Confidential external memory" },
        { 0x0008, "pinned_memory", "External memory must be pinned" },
        { 0x0010, "pipe", "Named pipe mode" },
        { 0x2000, "socket", "Hyper-V socket" },
    }
    local offer = rows(
        { 8, "guid", "interface", "Interface" },
        { 24, "guid", "instance", "Instance" },
        { 40, "bytes", "reserved", "Reserved", size = 16, reserved = true },
        offer_flags,
        { 58, "u16", "mmio_megabytes", "MMIO (MB)" },
        { 60, "bytes", "user_defined", "User defined", size = 120 },
        { 180, "u16", "subchannel_index", "Subchannel index" },
        { 182, "u16", "mmio_megabytes_optional", "MMIO, optional (MB)" },
        at(184, channel),
        { 188, "u8", "monitor_id", "Monitor ID", special = { [255] = "none" } },
        { 189, "u8", "monitor_allocated", "Monitor allocated", values = words.yes_no },
        { 190, "u16", "is_dedicated", "Dedicated connection", values = words.yes_no },
        connection
    )
    local user_data = { 28, "bytes", "user_data", "User data", size = 120 }
    local open = rows(channel, open_id, at(16, gpadl), at(20, vp), downstream, user_data)
    local open2 = rows(
        open,
        at(148, connection),
        { 152, "u16", "event_flag", "Event flag" },
        { 154, "x16", "open_flags", "Open flags", flags = { { 1, "redirect", "Redirect the interrupt" } } }
    )
    local open_result = rows(channel, open_id, status)
    local open_reserved = rows(channel, vp, sint, at(20, gpadl), downstream)
    local close_reserved = rows(channel, vp, sint)
    local gpadl_header = rows(
        channel,
        gpadl,
        { 16, "u16", "byte_length", "Bytes of all words" },
        { 18, "u16", "range_count", "Ranges" }
    )
    local gpadl_body = rows({ 8, "u32", "message_number", "Message number" }, gpadl)
    local gpadl_created = rows(channel, gpadl, status)
    local contact = rows(
        version,
        vp,
        { 16, "u32", "target_sint", "Target SINT", size = 1 },
        { 17, "u8", "target_vtl", "Target VTL" },
        { 18, "bytes", "reserved", "Reserved", size = 2, reserved = true },
        features,
        to_child,
        to_root
    )
    local contact2 = rows(contact, { 40, "guid", "client_id", "Client" })
    local contact_legacy = rows(version, vp, { 16, "x64", "interrupt_page", "Interrupt page (GPA)" }, to_child, to_root)
    local response = rows(
        { 8, "u8", "supported", "Supported", values = words.yes_no },
        state,
        { 12, "x32", "detail", "Version or connection ID" }
    )
    local response2 = rows(response, at(16, features))
    local response3 = rows(response2, to_child, to_root)
    local socket = rows(endpoint, service)
    local socket2 = rows(endpoint, service, { 40, "guid", "silo", "Silo" })
    local socket_result = rows(endpoint, service, at(40, status))
    local only_channel, nothing = rows(channel), rows()

    -- Which form of a message it is: {layout, least bytes, condition}, the first that fits.
    local function asks_for_5(ctx, start, stop)
        return stop - start >= 12 and ctx.tvb(start + 8, 4):le_uint() >= V5_0
    end
    local function has_signal_parameters(ctx)
        if ctx.first then
            local granted = ctx.partition.features
            ctx.facts.open2 = ctx.version >= V6_0 and (not granted or granted % 4 ~= 0)
        end
        return ctx.facts.open2
    end
    local function has_silo(ctx)
        return ctx.version == 0 or ctx.version >= V5_2
    end
    local open_forms = { { open2, 156, has_signal_parameters }, { open } }
    local contact_forms = { { contact2, 56, asks_for_5 }, { contact, 0, asks_for_5 }, { contact_legacy } }
    local response_forms = { { response3, 40 }, { response2, 20 }, { response } }
    local socket_forms = { { socket2, 56, has_silo }, { socket } }

    -- What they mean to each other ----------------------------------------------------------------------------------

    -- How a channel is called in the Info column: its number, and its device where an offer named it. What it is
    -- called when a frame is first seen holds for that frame, since a number is given again.
    function vmbus.channel_name(ctx, id)
        if ctx.first then
            local known = ctx.partition.channels[id]
            ctx.facts.name = known and known.name
        end
        return ctx.facts.name and format("channel %d (%s)", id, ctx.facts.name) or format("channel %d", id)
    end
    local name_of = vmbus.channel_name

    function vmbus.status_words(number)
        return words.of(words.channel_statuses, number)
    end
    local status_words = vmbus.status_words

    local function group(guid)
        return (guid:sub(7, 8) .. guid:sub(5, 6) .. guid:sub(3, 4) .. guid:sub(1, 2)):lower()
    end

    local offer_in = vmbus.field("vmbus.message.offer_in", "frame", "Offer in frame")
    local function show_offer_link(ctx, tree, id)
        if ctx.first then
            local known = ctx.partition.channels[id]
            ctx.facts.offer = known and known.offer
        end
        if ctx.facts.offer then
            vmbus.generated(tree, offer_in, ctx.facts.offer)
        end
    end

    -- Questions and answers that differ in nothing but what they are known by, and what is told of them.
    local function asks(what, key, told)
        return function(ctx, tree, v)
            local pair = relations.ask(ctx, "message", ctx.partition, what .. key(v), v)
            relations.show_question(tree, "message", pair)
            ctx.info(told(ctx, v))
        end
    end
    local function answers(what, key, told)
        return function(ctx, tree, v)
            local pair = relations.answer(ctx, "message", ctx.partition, what .. key(v))
            relations.show_answer(tree, "message", pair)
            if not pair then
                ctx.missing(tree, ctx.partition.contact, "Nothing was asked that this answers")
            end
            ctx.info(told(ctx, v, pair))
        end
    end
    local function silent()
        return ""
    end
    local function by_channel(v)
        return v.channel_id
    end
    local function by_gpadl(v)
        return v.gpadl_id
    end
    local function by_open(v)
        return v.channel_id .. "/" .. v.open_id
    end
    local function by_socket(v)
        return v.endpoint .. v.service
    end
    local function told_channel(ctx, v)
        return name_of(ctx, v.channel_id)
    end
    local function told_status(ctx, v)
        return format("%s: %s", name_of(ctx, v.channel_id), status_words(v.status))
    end
    local function told_teardown(ctx, v)
        return format("%s gpadl %#x", name_of(ctx, v.channel_id), v.gpadl_id)
    end
    local function told_torndown(ctx, v, pair)
        return pair and told_teardown(ctx, pair.subject) or format("gpadl %#x", v.gpadl_id)
    end
    local function told_target(ctx, v)
        return format("%s to VP %d", name_of(ctx, v.channel_id), v.target_vp)
    end
    local function told_service(_, v)
        return "to service " .. (words.socket(v.service) or group(v.service))
    end
    local function told_refusal(_, v)
        return format("service %s: %s", words.socket(v.service) or group(v.service), status_words(v.status))
    end
    local function told_state(_, v)
        return words.of(words.connection_states, v.connection_state)
    end

    local function offered(ctx, _, v, items)
        local name = words.interfaces[v.interface] or words.socket(v.interface)
        items.interface:append_text(" (" .. (name or "not a known interface") .. ")")
        name = name or "own device " .. group(v.interface)
        if v.subchannel_index > 0 then
            name = name .. " subchannel " .. v.subchannel_index
        end
        if ctx.first then
            local known = relations.channel(ctx.partition, v.channel_id)
            known.name, known.offer, known.waiting = name, ctx.frame, {}
        end
        ctx.info(format("channel %d: %s, instance %s...", v.channel_id, name, group(v.instance)))
    end

    local function opens(ctx, tree, v)
        if ctx.first then
            local known = relations.channel(ctx.partition, v.channel_id)
            known.waiting, known.opened = {}, ctx.frame
        end
        show_offer_link(ctx, tree, v.channel_id)
        local split = gpadls.split(ctx, tree, v)
        local key = format("open%d/%d", v.channel_id, v.open_id or 0)
        relations.show_question(tree, "message", relations.ask(ctx, "message", ctx.partition, key))
        local target = words.target_vps[v.target_vp] or format("%d", v.target_vp)
        ctx.info(format("%s gpadl %#x, VP %s%s", name_of(ctx, v.channel_id), v.gpadl_id, target, split))
    end

    local function closes(ctx, tree, v)
        show_offer_link(ctx, tree, v.channel_id)
        ctx.info(name_of(ctx, v.channel_id))
    end

    local function released(ctx, tree, v)
        -- A guest may let a channel go without having been asked to.
        local pair = relations.answer(ctx, "message", ctx.partition, "rescind" .. v.channel_id)
        relations.show_answer(tree, "message", pair)
        ctx.info(name_of(ctx, v.channel_id))
    end

    local function contacts(ctx, tree, v)
        if ctx.first then
            relations.forget_connection(ctx.partition)
            ctx.partition.contact = ctx.frame
        end
        relations.show_question(tree, "message", relations.ask(ctx, "message", ctx.partition, "contact", v))
        local more = v.features and v.features ~= 0 and format(", features %#x", v.features) or ""
        ctx.info(format("version %s%s", words.version(v.version), more))
    end

    local function responds(ctx, tree, v, items)
        local pair = relations.answer(ctx, "message", ctx.partition, "contact")
        relations.show_answer(tree, "message", pair)
        if not pair then
            ctx.missing(tree, ctx.partition.contact, "No contact was initiated")
        end
        if ctx.first then
            ctx.partition.features = v.supported ~= 0 and (v.features or 0) or nil
        end
        local asked = pair and pair.subject.version
        local about = asked and "version " .. words.version(asked) or "version asked for"
        if v.supported == 0 then
            ctx.fault(items.supported, "failed", "The version asked for is not supported")
            ctx.info(about .. " is not supported")
            return
        end
        if v.connection_state ~= 0 then
            local why = words.of(words.connection_states, v.connection_state)
            ctx.fault(items.connection_state, "failed", "Connection state: " .. why)
            ctx.info(format("%s: %s", about, why))
            return
        end
        local where = ""
        if asked and asked >= V5_0 then
            items.detail:append_text(" (the connection to post to from now on)")
            where = format(", post to connection %#x", v.detail)
        end
        ctx.info(format("%s%s%s", about, where, v.features and format(", features %#x", v.features) or ""))
    end

    local function unloaded(ctx, tree)
        local pair = relations.answer(ctx, "message", ctx.partition, "unload")
        relations.show_answer(tree, "message", pair)
        if ctx.first then
            relations.forget_connection(ctx.partition)
        end
    end

    -- By type: the way, the least version, the forms, the meaning.
    local messages = {
        [1] = { TO_CHILD, V1, { { offer } }, offered },
        [2] = { TO_CHILD, V1, { { only_channel } }, asks("rescind", by_channel, told_channel) },
        [3] = { TO_ROOT, V1, { { nothing } }, asks("offers", silent, silent) },
        [4] = { TO_CHILD, V1, { { nothing } }, answers("offers", silent, silent) },
        [5] = { TO_ROOT, V1, open_forms, opens },
        [6] = { TO_CHILD, V1, { { open_result } }, answers("open", by_open, told_status) },
        [7] = { TO_ROOT, V1, { { only_channel } }, closes },
        [8] = { TO_ROOT, V1, { { gpadl_header } }, gpadls.header, tail = true },
        [9] = { TO_ROOT, V1, { { gpadl_body } }, gpadls.body, tail = true },
        [10] = { TO_CHILD, V1, { { gpadl_created } }, gpadls.created },
        [11] = { TO_ROOT, V1, { { rows(channel, gpadl) } }, asks("teardown", by_gpadl, told_teardown) },
        [12] = { TO_CHILD, V1, { { rows(at(8, gpadl)) } }, answers("teardown", by_gpadl, told_torndown) },
        [13] = { TO_ROOT, V1, { { only_channel } }, released },
        [14] = { TO_ROOT, 0, contact_forms, contacts },
        [15] = { TO_CHILD, 0, response_forms, responds },
        [16] = { TO_ROOT, V1, { { nothing } }, asks("unload", silent, silent) },
        [17] = { TO_CHILD, V1_1, { { nothing } }, unloaded },
        [18] = { TO_ROOT, V4_0, { { open_reserved } }, opens },
        [19] = { TO_ROOT, 0, { { close_reserved } }, asks("close", by_channel, told_channel) },
        [20] = { TO_CHILD, V4_0, { { only_channel } }, answers("close", by_channel, told_channel) },
        [21] = { TO_ROOT, V4_0, socket_forms, asks("socket", by_socket, told_service) },
        [22] = { TO_ROOT, V4_1, { { rows(channel, vp) } }, asks("modify", by_channel, told_target) },
        [23] = { TO_CHILD, V4_1, { { socket_result } }, answers("socket", by_socket, told_refusal) },
        [24] = { TO_CHILD, V5_3, { { rows(channel, at(12, status)) } }, answers("modify", by_channel, told_status) },
        [25] = { TO_ROOT, V6_0, { { rows(at(8, to_child), at(16, to_root)) } }, asks("connection", silent, silent) },
        [26] = { TO_CHILD, V6_0, { { rows(at(8, state)) } }, answers("connection", silent, told_state) },
        [27] = { TO_ROOT, V6_0, { { nothing } }, asks("pause", silent, silent) },
        [28] = { TO_CHILD, V6_0, { { nothing } }, answers("pause", silent, silent) },
        [29] = { TO_ROOT, V6_0, { { nothing } }, silent },
    }

    local function choose(ctx, forms, start, stop)
        for _, form in ipairs(forms) do
            if stop - start >= (form[2] or 0) and (not form[3] or form[3](ctx, start, stop)) then
                return form[1]
            end
        end
        return forms[#forms][1]
    end

    function vmbus.dissect_message(ctx, start, stop)
        local tree = ctx.tree:add(ctx.tvb(start, stop - start), "Channel message")
        local v, items = show(ctx, tree, start, stop, header)
        if not v.type then
            ctx.info(format("a message of %d bytes", stop - start))
            return
        end
        local name, message = words.messages[v.type], messages[v.type]
        if not message then
            ctx.fault(items.type, "unknown", format("No channel message has type %d", v.type))
            ctx.info(format("a message of unknown type %d", v.type))
            vmbus.show_rest(ctx, tree, start + 8, stop)
            return
        end
        local way, least, forms, meaning = message[1], message[2], message[3], message[4]
        tree:append_text(": " .. name)
        ctx.info(name)
        if way ~= ctx.direction then
            ctx.fault(items.type, "direction", name .. " never travels this way")
        end
        if ctx.version ~= 0 and ctx.version < least then
            ctx.fault(items.type, "version", format("%s came with version %s", name, words.version(least)))
        end
        local form = choose(ctx, forms, start, stop)
        local body, body_items = show(ctx, tree, start, stop, form)
        if v.truncated or body.truncated then
            return
        end
        if body.status and body.status ~= 0 then
            ctx.fault(body_items.status, "failed", "Status: " .. status_words(body.status))
        end
        meaning(ctx, tree, body, body_items, start, stop)
        local last = form[#form]
        if not message.tail then
            vmbus.show_rest(ctx, tree, start + (last and last.offset + last.size or 8), stop)
        end
    end
end
