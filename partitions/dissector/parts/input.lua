-- Keyboard, mouse, video, dynamic memory and sockets. Layouts after Linux hyperv-keyboard.c, hid-hyperv.c, hyperv_fb.c,
-- hv_balloon.c and hyperv.h.

return function(vmbus)
    local layout, show, words, format = vmbus.layout, vmbus.show, vmbus.words, string.format
    local KEYBOARD, MOUSE, MEMORY, VIDEO, SOCKET = 9, 10, 11, 12, 14

    -- Messages told apart by a type; `names` by number, `forms` to {layout, words of the values}.
    local function message(ctx, box, start, stop, head, names, forms)
        local v, items = show(ctx, box, start, stop, head)
        if not v.type then
            ctx.info(format("a message of %d bytes", stop - start))
            return
        end
        local name, form = names[v.type], forms[v.type]
        if not name then
            ctx.fault(items.type, "unknown", format("No such message has type %d", v.type))
            ctx.info(format("unknown type %d", v.type))
        else
            box:append_text(": " .. name)
        end
        if not form then
            local last = head[#head]
            vmbus.show_rest(ctx, box, start + last.offset + last.size, stop)
            ctx.info(name or "")
            return
        end
        local body = show(ctx, box, start, stop, form[1], form[3])
        local told = form[2] and not body.truncated and form[2](body) or ""
        local last = form[1][#form[1]]
        local behind = start + last.offset + last.size
        if form.tail == true then
            vmbus.show_rest(ctx, box, behind, stop)
        elseif form.tail and not body.truncated then
            form.tail(ctx, box, behind, stop, body)
        end
        ctx.info(name .. (told ~= "" and " " .. told or ""))
    end
    local function version(v)
        return words.version(v.version)
    end
    local function accepted(v)
        return v.accepted % 2 == 1 and "accepted" or "refused"
    end
    -- As many structures as are counted, behind a message; fewer where the bytes end.
    local function list(name, rows, count)
        local size = rows[#rows].offset + rows[#rows].size
        return function(ctx, box, at, stop, v)
            for index = 0, count(v) - 1 do
                if at + size > stop then
                    ctx.fault(box, "truncated", format("Room for %d of them where %d are counted", index, count(v)))
                    return
                end
                show(ctx, box:add(ctx.tvb(at, size), name), at, stop, rows)
                at = at + size
            end
        end
    end

    -- Keyboard ------------------------------------------------------------------------------------------------------

    local key_names = { "PROTOCOL_REQUEST", "PROTOCOL_RESPONSE", "EVENT", "LED_INDICATORS" }
    local key_head = layout("vmbus.keyboard.", { { 0, "u32", "type", "Type", values = key_names } })
    local key_flags = { 8, "x32", "flags", "Flags" }
    key_flags.flags = {
        { 1, "unicode", "Unicode" },
        { 2, "break", "Break: the key goes up" },
        { 4, "e0", "E0" },
        { 8, "e1", "E1" },
    }
    local key_forms = {
        { layout("vmbus.keyboard.", { { 4, "x32", "version", "Version" } }), version },
        { layout("vmbus.keyboard.", { { 4, "u32", "accepted", "Accepted" } }), accepted },
        {
            layout("vmbus.keyboard.", {
                { 4, "x16", "make_code", "Make code" },
                { 6, "x16", "reserved", "Reserved", reserved = true },
                key_flags,
            }),
            function(v)
                return format("%#x %s", v.make_code, vmbus.has(v.flags, 2) and "up" or "down")
            end,
        },
        {
            layout("vmbus.keyboard.", {
                { 4, "x16", "leds", "LEDs" },
                { 6, "x16", "reserved", "Reserved", reserved = true },
            }),
        },
    }
    vmbus.payloads[KEYBOARD] = function(ctx, tree, start, stop)
        local box = tree:add(ctx.tvb(start, stop - start), "Keyboard message")
        message(ctx, box, start, stop, key_head, key_names, key_forms)
    end

    -- Mouse ---------------------------------------------------------------------------------------------------------

    local mouse_names = {
        [0] = "PROTOCOL_REQUEST",
        [1] = "PROTOCOL_RESPONSE",
        [2] = "INITIAL_DEVICE_INFO",
        [3] = "INITIAL_DEVICE_INFO_ACK",
        [4] = "INPUT_REPORT",
    }
    local mouse_head = layout("vmbus.mouse.", {
        { 0, "u32", "type", "Type", values = mouse_names },
        { 4, "u32", "size", "Size" },
    })
    local mouse_forms = {
        [0] = { layout("vmbus.mouse.", { { 8, "x32", "version", "Version" } }), version },
        [1] = {
            layout("vmbus.mouse.", { { 8, "x32", "version", "Version" }, { 12, "u8", "accepted", "Accepted" } }),
            accepted,
        },
        [2] = {
            layout("vmbus.mouse.", {
                { 8, "u32", "info_size", "Size of the information" },
                { 12, "x16", "vendor", "Vendor" },
                { 14, "x16", "product", "Product" },
                { 16, "x32", "version", "Version", size = 2 },
                { 18, "bytes", "reserved", "Reserved", size = 22 },
                { 40, "bytes", "hid_descriptor", "HID descriptor", size = 9 },
            }),
            function(v)
                return format("%04x:%04x", v.vendor, v.product)
            end,
            tail = true,
        },
        [4] = {
            layout("vmbus.mouse.", {
                { 8, "x8", "buttons", "Buttons" },
                { 9, "u16", "x", "X" },
                { 11, "u16", "y", "Y" },
                { 13, "u16", "wheel", "Wheel" },
            }),
            function(v)
                return v.y and format("at %d, %d buttons %#x", v.x, v.y, v.buttons) or ""
            end,
            8,
        },
    }
    vmbus.payloads[MOUSE] = function(ctx, tree, start, stop)
        local from, to = vmbus.show_pipe(ctx, tree, start, stop)
        if from then
            local box = tree:add(ctx.tvb(from, to - from), "Mouse message")
            message(ctx, box, from, to, mouse_head, mouse_names, mouse_forms)
        end
    end

    -- Video ---------------------------------------------------------------------------------------------------------

    local video_names = {
        [0] = "ERROR",
        [1] = "VERSION_REQUEST",
        [2] = "VERSION_RESPONSE",
        [3] = "VRAM_LOCATION",
        [4] = "VRAM_LOCATION_ACK",
        [5] = "SITUATION_UPDATE",
        [6] = "SITUATION_UPDATE_ACK",
        [7] = "POINTER_POSITION",
        [8] = "POINTER_SHAPE",
        [9] = "FEATURE_CHANGE",
        [10] = "DIRT",
        [11] = "BIOS_INFO_REQUEST",
        [12] = "BIOS_INFO_RESPONSE",
        [13] = "RESOLUTION_REQUEST",
        [14] = "RESOLUTION_RESPONSE",
        [15] = "CAPABILITY_REQUEST",
        [16] = "CAPABILITY_RESPONSE",
    }
    local function video(rows)
        return layout("vmbus.video.", rows)
    end
    local video_head = video({ { 0, "u32", "type", "Type", values = video_names }, { 4, "u32", "size", "Size" } })
    -- The minor version is the high half here.
    local function video_version(v)
        return format("%d.%d", v.version % 65536, math.floor(v.version / 65536))
    end
    local context = { 8, "x64", "context", "Context" }
    local rectangle = video({
        { 0, "i32", "left", "Left" },
        { 4, "i32", "top", "Top" },
        { 8, "i32", "right", "Right" },
        { 12, "i32", "bottom", "Bottom" },
    })
    local mode = video({ { 0, "u16", "mode.width", "Width" }, { 2, "u16", "mode.height", "Height" } })
    local video_forms = {
        [1] = { video({ { 8, "x32", "version", "Version" } }), video_version },
        [2] = {
            video({
                { 8, "x32", "version", "Version" },
                { 12, "u8", "accepted", "Accepted" },
                { 13, "u8", "outputs", "Outputs at most" },
            }),
            video_version,
        },
        [3] = {
            video({
                context,
                { 16, "u8", "specified", "Address given", values = words.yes_no },
                { 17, "x64", "gpa", "GPA" },
            }),
            function(v)
                return vmbus.hex64(v.gpa)
            end,
        },
        [4] = { video({ { 8, "x64", "context", "Context" } }) },
        [5] = {
            video({
                { 8, "x64", "context", "Context" },
                { 16, "u8", "output_count", "Outputs" },
                { 17, "u8", "active", "Active", values = words.yes_no },
                { 18, "u32", "offset", "Offset" },
                { 22, "u8", "depth", "Bits a pixel" },
                { 23, "u32", "width", "Width" },
                { 27, "u32", "height", "Height" },
                { 31, "u32", "pitch", "Pitch" },
            }),
            function(v)
                return format("%d x %d, %d bits", v.width, v.height, v.depth)
            end,
        },
        [6] = { video({ { 8, "x64", "context", "Context" } }) },
        [7] = {
            video({
                { 8, "u8", "visible", "Visible", values = words.yes_no },
                { 9, "u8", "output", "Output" },
                { 10, "i32", "x", "X" },
                { 14, "i32", "y", "Y" },
            }),
        },
        [8] = {
            video({
                { 8, "u8", "part", "Part", special = { [255] = "last" } },
                { 9, "u8", "argb", "ARGB", values = words.yes_no },
                { 10, "u32", "width", "Width" },
                { 14, "u32", "height", "Height" },
                { 18, "u32", "hot_x", "Hot spot X" },
                { 22, "u32", "hot_y", "Hot spot Y" },
            }),
            tail = true,
        },
        [9] = {
            video({
                { 8, "u8", "dirt_needed", "Dirt is wanted", values = words.yes_no },
                { 9, "u8", "position_needed", "Pointer positions are wanted", values = words.yes_no },
                { 10, "u8", "shape_needed", "Pointer shapes are wanted", values = words.yes_no },
                { 11, "u8", "situation_needed", "Situations are wanted", values = words.yes_no },
            }),
        },
        [10] = {
            video({ { 8, "u8", "output", "Output" }, { 9, "u8", "count", "How many follow" } }),
            function(v)
                return format("%d rectangles", v.count)
            end,
            tail = list("Rectangle", rectangle, function(v)
                return v.count
            end),
        },
        [13] = { video({ { 8, "u8", "max_resolutions", "Resolutions at most" } }) },
        [14] = {
            video({
                { 8, "bytes", "edid", "EDID", size = 128 },
                { 136, "u8", "count", "How many follow" },
                { 137, "u8", "default_resolution", "Default resolution" },
                { 138, "u8", "standard", "Standard", values = words.yes_no },
            }),
            function(v)
                return format("%d resolutions", v.count)
            end,
            tail = list("Mode", mode, function(v)
                return v.count
            end),
        },
    }
    vmbus.payloads[VIDEO] = function(ctx, tree, start, stop)
        local from, to = vmbus.show_pipe(ctx, tree, start, stop)
        if from then
            local box = tree:add(ctx.tvb(from, to - from), "Video message")
            message(ctx, box, from, to, video_head, video_names, video_forms)
        end
    end

    -- Dynamic memory ------------------------------------------------------------------------------------------------

    local memory_names = {
        [0] = "ERROR",
        [1] = "VERSION_REQUEST",
        [2] = "VERSION_RESPONSE",
        [3] = "CAPABILITIES_REPORT",
        [4] = "CAPABILITIES_RESPONSE",
        [5] = "STATUS_REPORT",
        [6] = "BALLOON_REQUEST",
        [7] = "BALLOON_RESPONSE",
        [8] = "UNBALLOON_REQUEST",
        [9] = "UNBALLOON_RESPONSE",
        [10] = "HOT_ADD_REQUEST",
        [11] = "HOT_ADD_RESPONSE",
        [12] = "INFO_MESSAGE",
    }
    local function memory(rows)
        return layout("vmbus.memory.", rows)
    end
    local memory_head = memory({
        { 0, "u16", "type", "Type", values = memory_names },
        { 2, "u16", "size", "Size" },
        { 4, "u32", "transaction_id", "Transaction ID" },
    })
    local page_range = memory({ { 0, "x64", "page_range", "First page (40 bits), pages (24 bits)" } })
    local function memory_accepted(v)
        return v.accepted % UInt64(2) == UInt64(1) and "accepted" or "refused"
    end
    local memory_forms = {
        [1] = {
            memory({ { 8, "x32", "version", "Version" }, { 12, "u32", "last_attempt", "Last attempt" } }),
            version,
        },
        [2] = { memory({ { 8, "u64", "accepted", "Accepted" } }), memory_accepted },
        [3] = {
            memory({
                { 8, "x64", "capabilities", "Capabilities" },
                { 16, "u64", "min_pages", "Pages at least" },
                { 24, "u64", "max_page", "Greatest page number" },
            }),
        },
        [4] = { memory({ { 8, "u64", "accepted", "Accepted" } }), memory_accepted },
        [5] = {
            memory({
                { 8, "u64", "available", "Available pages" },
                { 16, "u64", "committed", "Committed pages" },
                { 24, "u64", "page_file", "Page file" },
                { 32, "u64", "zero_free", "Zero and free" },
                { 40, "u32", "page_file_writes", "Page file writes" },
                { 44, "u32", "io_diff", "I/O difference" },
            }),
            function(v)
                return format("%s pages available, %s committed", tostring(v.available), tostring(v.committed))
            end,
        },
        [6] = {
            memory({ { 8, "u32", "pages", "Pages" }, { 12, "x32", "reserved", "Reserved", reserved = true } }),
            function(v)
                return format("%d pages", v.pages)
            end,
        },
        [7] = {
            memory({
                { 8, "x32", "reserved", "Reserved", reserved = true },
                { 12, "u32", "counts", "Ranges, twice, and 1 if more messages follow" },
            }),
            function(v)
                return format("%d ranges", math.floor(v.counts / 2))
            end,
            tail = list("Range", page_range, function(v)
                return math.floor(v.counts / 2)
            end),
        },
        [8] = {
            memory({ { 8, "u32", "more", "More messages follow" }, { 12, "u32", "range_count", "Ranges" } }),
            function(v)
                return format("%d ranges", v.range_count)
            end,
            tail = list("Range", page_range, function(v)
                return v.range_count
            end),
        },
        [10] = { memory({ { 8, "x64", "page_range", "First page (40 bits), pages (24 bits)" } }) },
        [11] = { memory({ { 8, "u32", "pages", "Pages" }, { 12, "u32", "result", "Result" } }) },
        [12] = {
            memory({
                { 8, "x32", "reserved", "Reserved", reserved = true },
                { 12, "u32", "info_size", "Size of the information" },
                { 16, "u32", "info_kind", "Kind", values = { [0] = "greatest page count" } },
                { 20, "u32", "info_data_size", "Data size" },
            }),
            nil,
            16,
        },
    }
    vmbus.payloads[MEMORY] = function(ctx, tree, start, stop)
        local box = tree:add(ctx.tvb(start, stop - start), "Dynamic memory message")
        message(ctx, box, start, stop, memory_head, memory_names, memory_forms)
    end

    -- Sockets -------------------------------------------------------------------------------------------------------

    vmbus.payloads[SOCKET] = function(ctx, tree, start, stop)
        local from, to = vmbus.show_pipe(ctx, tree, start, stop)
        if from then
            ctx.info(to == from and "end of the stream" or format("%d bytes", to - from))
            vmbus.show_rest(ctx, tree, from, to)
        end
    end
end
