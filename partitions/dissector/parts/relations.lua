-- What belongs together: questions and their answers, and what is known of partitions and channels so far.
--
-- Wireshark visits each packet once in order and then again as it likes. Whatever depends on order is found out at the
-- first visit and kept by frame number; later visits only look it up. A transaction ID may be used again as soon as it
-- was answered, or even before: questions with the same key queue, and the oldest is answered first.

return function(vmbus)
    local partitions, frames = {}, {}

    local relations = {}

    function relations.reset()
        partitions, frames = {}, {}
    end

    function relations.partition(number)
        local known = partitions[number]
        if not known then
            known = { channels = {}, gpadls = {}, waiting = {} }
            partitions[number] = known
        end
        return known
    end

    function relations.channel(partition, id)
        local known = partition.channels[id]
        if not known then
            known = { id = id, waiting = {} }
            partition.channels[id] = known
        end
        return known
    end

    -- A new contact, or the end of one: no question of the old one is answered any more.
    function relations.forget_connection(partition)
        partition.gpadls, partition.waiting, partition.features = {}, {}, nil
        for _, channel in pairs(partition.channels) do
            channel.waiting = {}
        end
    end

    -- What was found out about a frame at its first visit.
    function relations.facts(frame)
        local known = frames[frame]
        if not known then
            known = {}
            frames[frame] = known
        end
        return known
    end

    -- A question is asked in this frame. At later visits returns what it returned at the first.
    function relations.ask(ctx, kind, owner, key, subject)
        local slot = kind .. " asks"
        if ctx.first then
            key = kind .. key
            local pair = { question = ctx.frame, subject = subject or {} }
            local queue = owner.waiting[key]
            if not queue then
                queue = { first = 1, last = 0 }
                owner.waiting[key] = queue
            end
            queue.last = queue.last + 1
            queue[queue.last] = pair
            ctx.facts[slot] = pair
        end
        return ctx.facts[slot]
    end

    -- This frame answers the oldest question of that key; nil where there is none.
    function relations.answer(ctx, kind, owner, key)
        local slot = kind .. " answers"
        if ctx.first then
            key = kind .. key
            local queue = owner.waiting[key]
            if queue then
                local pair = queue[queue.first]
                queue[queue.first] = nil
                queue.first = queue.first + 1
                if queue.first > queue.last then
                    owner.waiting[key] = nil
                end
                pair.answer = ctx.frame
                ctx.facts[slot] = pair
            end
        end
        return ctx.facts[slot]
    end

    local types = {
        packet = {
            question = { "vmbus.packet.request_in", "Request in frame" },
            answer = { "vmbus.packet.completion_in", "Completion in frame" },
            time = { "vmbus.packet.response_time", "Response time" },
        },
        message = {
            question = { "vmbus.message.request_in", "Request in frame" },
            answer = { "vmbus.message.answer_in", "Answer in frame" },
            time = { "vmbus.message.response_time", "Response time" },
        },
        ic = {
            question = { "vmbus.ic.request_in", "Request in frame" },
            answer = { "vmbus.ic.answer_in", "Answer in frame" },
            time = { "vmbus.ic.response_time", "Response time" },
        },
    }
    for _, kind in pairs(types) do
        kind.question = vmbus.field(kind.question[1], "frame", kind.question[2], frametype.REQUEST)
        kind.answer = vmbus.field(kind.answer[1], "frame", kind.answer[2], frametype.RESPONSE)
        kind.time = vmbus.field(kind.time[1], "duration", kind.time[2])
    end

    -- Between two frames. Without both exact times it is right to some 300 ns.
    local function duration(from, to)
        if from.exact_time and to.exact_time then
            return to.exact_time - from.exact_time
        end
        local ticks = math.max(0, math.floor((to.time - from.time) * 1e7 + 0.5))
        return NSTime.new(math.floor(ticks / 1e7), ticks % 1e7 * 100)
    end

    -- Links of both frames of a pair, and how long the answer took.
    function relations.show_question(tree, kind, pair)
        if pair and pair.answer then
            vmbus.generated(tree, types[kind].answer, pair.answer)
        end
    end

    function relations.show_answer(tree, kind, pair)
        if pair then
            vmbus.generated(tree, types[kind].question, pair.question)
            vmbus.generated(tree, types[kind].time, duration(frames[pair.question], frames[pair.answer]))
        end
    end

    vmbus.relations = relations
end
