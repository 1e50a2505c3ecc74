-- VMBus for Wireshark: channel messages and ring packets of the recordings that Partita makes (`partita run --pcap`).
--
--     tshark -X lua_script:$(partita dissector) -r FILE
--
-- For Wireshark itself copy the folder of this file, parts included, into the personal Lua plugins (Help > About >
-- Folders). Works with Wireshark 4.0 and later. Display filters begin with `vmbus.`; docs/wireshark.md has a table.
--
-- A packet of link type 147 (USER0) begins with 16 bytes, little-endian: version 1; kind, 1 a channel message, 2 a ring
-- packet; direction, 0 to the root, 1 to the child; device; then as 32-bit words partition, channel and VMBus version.

local vmbus = {}
local protocol = Proto("vmbus", "Hyper-V VMBus")
local events = Proto("partita", "Partita trace event")
local folder = debug.getinfo(1, "S").source:match("^@?(.*[/\\])") or ""
local parts = "layout words relations gpadl messages packets storage network integration input events"
for part in parts:gmatch("%S+") do
    dofile(folder .. "parts/" .. part .. ".lua")(vmbus)
end

local LINK_BYTES = 16
local words, relations, format = vmbus.words, vmbus.relations, string.format

local link = vmbus.layout("vmbus.", {
    { 0, "u8", "link_version", "Link header version" },
    { 1, "u8", "kind", "Kind", values = { [1] = "channel message", [2] = "ring packet" } },
    { 2, "u8", "direction", "Direction", values = { [0] = "to the root", [1] = "to the child" } },
    { 3, "u8", "device", "Device", values = words.devices },
    { 4, "u32", "partition", "Partition" },
    { 8, "u32", "channel", "Channel" },
    { 12, "x32", "version", "VMBus version", values = words.versions },
})

-- What can be wrong. The second is what a capture of a well-behaved guest never has.
local faults = {
    truncated = { "Shorter than it has to be", expert.group.MALFORMED, expert.severity.ERROR },
    unknown = { "Unknown type", expert.group.PROTOCOL, expert.severity.WARN },
    direction = { "Travels the wrong way", expert.group.PROTOCOL, expert.severity.WARN },
    version = { "Not in the version that was negotiated", expert.group.PROTOCOL, expert.severity.WARN },
    corrupt = { "A ring packet that cannot be", expert.group.MALFORMED, expert.severity.ERROR },
    gpadl = { "A GPADL that cannot be", expert.group.PROTOCOL, expert.severity.WARN },
    unpaired = { "Answers nothing", expert.group.SEQUENCE, expert.severity.WARN },
    uncaptured = { "Answers what is not in this capture", expert.group.SEQUENCE, expert.severity.NOTE },
    reserved = { "Reserved bits are set", expert.group.PROTOCOL, expert.severity.NOTE },
    extra = { "Longer than it has to be", expert.group.PROTOCOL, expert.severity.NOTE },
    failed = { "A status that is no success", expert.group.RESPONSE_CODE, expert.severity.NOTE },
}
local experts = {}
for name, fault in pairs(faults) do
    fault.expert = ProtoExpert.new("vmbus.fault." .. name, fault[1], fault[2], fault[3])
    experts[#experts + 1] = fault.expert
end

protocol.fields = vmbus.fields
protocol.experts = experts
protocol.prefs.scsi = Pref.bool(
    "Show commands by Wireshark's SCSI dissector",
    true,
    "CDBs and sense data are handed on in an iSCSI header that is made up for them"
)
vmbus.prefs = protocol.prefs

-- Whoever had this link type before: it may hold anything.
local encapsulations = DissectorTable.get("wtap_encap")
local USER0 = (wtap_encaps or wtap).USER0
local previous = encapsulations:get_dissector(USER0)

-- Wireshark has these only where it makes a tree, which it may not at the first visit: nothing may depend on them.
local interface_name = Field.new("frame.interface_name")
local frame_time = Field.new("frame.time_epoch")

local function make_context(tvb, pinfo, root)
    local ctx = {
        tvb = tvb,
        pinfo = pinfo,
        tree = root,
        frame = pinfo.number,
        first = not pinfo.visited,
        facts = relations.facts(pinfo.number),
    }
    -- What pinfo tells is a float, which of the time since 1970 keeps some 240 ns; the field is exact.
    local exact = frame_time()
    ctx.facts.time = pinfo.rel_ts
    ctx.facts.exact_time = exact and exact.value or ctx.facts.exact_time
    local told = {}

    -- Adds words to the Info column.
    function ctx.info(text)
        if text ~= "" then
            told[#told + 1] = text
        end
    end
    function ctx.told()
        return table.concat(told, " ")
    end

    function ctx.fault(item, name, text)
        item:add_proto_expert_info(faults[name].expert, text)
    end

    -- What this answers did not come before. Where the capture has the beginning, that is a fault.
    function ctx.missing(item, beginning, text)
        if ctx.first then
            ctx.facts.missing = beginning and "unpaired" or "uncaptured"
        end
        ctx.fault(item, ctx.facts.missing, text)
    end
    return ctx
end

function protocol.init()
    relations.reset()
end

function protocol.dissector(tvb, pinfo, tree)
    if tvb:len() < LINK_BYTES or tvb(0, 1):uint() ~= 1 then
        return previous and previous:call(tvb, pinfo, tree) or 0
    end
    local root = tree:add(protocol, tvb())
    local ctx = make_context(tvb, pinfo, root)
    local head = root:add(tvb(0, LINK_BYTES), "Link header")
    local v, items = vmbus.show(ctx, head, 0, LINK_BYTES, link)
    ctx.direction, ctx.version, ctx.device, ctx.channel_id = v.direction, v.version, v.device, v.channel
    ctx.partition = relations.partition(v.partition)
    local name = interface_name()
    ctx.partition.vm = name and name.display or ctx.partition.vm
    local guest = ctx.partition.vm or format("partition %d", v.partition)
    root:append_text(format(", %s %s", v.direction == 0 and "from" or "to", guest))
    pinfo.cols.protocol = "VMBus"
    pinfo.cols.src = v.direction == 0 and guest or "root"
    pinfo.cols.dst = v.direction == 0 and "root" or guest
    if tvb:len() < tvb:reported_len() then
        ctx.fault(root, "truncated", "The capture does not hold the whole of it")
    end
    if v.direction > 1 then
        ctx.fault(items.direction, "unknown", "There is no such direction")
    end
    if v.kind == 1 then
        vmbus.dissect_message(ctx, LINK_BYTES, tvb:len())
    elseif v.kind == 2 then
        vmbus.dissect_packet(ctx, LINK_BYTES, tvb:len())
    else
        ctx.fault(items.kind, "unknown", "There is no such kind")
        ctx.info("unknown")
        vmbus.show_rest(ctx, root, LINK_BYTES, tvb:len())
    end
    -- Dissectors that parts of it were handed on to have their own words for these columns.
    pinfo.cols.info:clear_fence()
    pinfo.cols.protocol = "VMBus"
    pinfo.cols.info = ctx.told()
    return tvb:len()
end

encapsulations:add(USER0, protocol)

-- Trace events, which are frames without a link type: nothing but a postdissector is asked about them.
events.fields = vmbus.event_fields
function events.dissector(tvb, pinfo, tree)
    vmbus.dissect_event(events, tvb, pinfo, tree)
end
register_postdissector(events)
