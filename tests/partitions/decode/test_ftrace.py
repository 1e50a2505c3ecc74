"""A Linux guest's ftrace becomes the events that a host would have seen, in the same words.

The lines are built by the formats of Linux 6.12 drivers/hv/hv_trace.h, from the messages that its driver was recorded
sending and taking (data/linux_6_12.json).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.decode.ftrace import KNOWN, FtraceReader, is_ftrace
from vmbus.protocol import messages as m
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message, describe
from vmbus.protocol.versions import Version

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "linux_6_12.json").read_text())


def signed(value: int) -> int:
    """How %d prints an unsigned word."""
    return int(struct.unpack("<i", struct.pack("<I", value))[0])


def offer(o: m.OfferChannel) -> str:
    return (
        f"child_relid {o.channel_id:#x}, monitorid {o.monitor_id:#x}, is_dedicated {o.is_dedicated}, "
        f"connection_id {o.connection_id:#x}, if_type {o.interface}, if_instance {o.instance}, "
        f"chn_flags {o.flags:#x}, mmio_megabytes {o.mmio_megabytes}, sub_channel_index {o.subchannel_index}"
    )


def contact(c: Any) -> str:
    (where,) = struct.unpack_from("<Q", c.encode(), 16)
    pages = f"{where:x}:{c.parent_to_child_monitor_page:x}:{c.child_to_parent_monitor_page:x}"
    return f"sending vmbus_version_requested {c.version}, target_vcpu {c.target_vp:#x}, pages {pages}, ret 0"


PRINTED: dict[type[Message], tuple[str, Callable[[Any], str]]] = {
    m.OfferChannel: ("vmbus_onoffer", offer),
    m.RescindChannelOffer: ("vmbus_onoffer_rescind", lambda r: f"child_relid {r.channel_id:#x}"),
    m.OpenChannelResult: (
        "vmbus_onopen_result",
        lambda r: f"child_relid {r.channel_id:#x}, openid {signed(r.open_id)}, status {signed(r.status)}",
    ),
    m.GpadlCreated: (
        "vmbus_ongpadl_created",
        lambda g: f"child_relid {g.channel_id:#x}, gpadl {g.gpadl_id:#x}, creation_status {signed(g.status)}",
    ),
    m.GpadlTorndown: ("vmbus_ongpadl_torndown", lambda g: f"gpadl {g.gpadl_id:#x}"),
    m.ModifyChannelResponse: (
        "vmbus_onmodifychannel_response",
        lambda r: f"child_relid {r.channel_id:#x}, status {signed(r.status)}",
    ),
    m.InitiateContact: ("vmbus_negotiate_version", contact),
    m.InitiateContactLegacy: ("vmbus_negotiate_version", contact),
    m.RequestOffers: ("vmbus_request_offers", lambda r: "sending ret 0"),
    m.OpenChannel: (
        "vmbus_open",
        lambda o: (
            f"sending child_relid {o.channel_id:#x}, openid {signed(o.open_id)}, gpadlhandle {o.gpadl_id:#x}, "
            f"target_vp {o.target_vp:#x}, offset {o.downstream_page:#x}, ret 0"
        ),
    ),
    m.CloseChannel: ("vmbus_close_internal", lambda c: f"sending child_relid {c.channel_id:#x}, ret 0"),
    m.RelIdReleased: ("vmbus_release_relid", lambda c: f"sending child_relid {c.channel_id:#x}, ret 0"),
    m.GpadlHeader: (
        "vmbus_establish_gpadl_header",
        lambda g: (
            f"sending child_relid {g.channel_id:#x}, gpadl {g.gpadl_id:#x}, range_buflen {g.byte_length} "
            f"rangecount {g.range_count}, ret 0"
        ),
    ),
    m.GpadlBody: (
        "vmbus_establish_gpadl_body",
        lambda g: f"sending msgnumber {signed(g.message_number)}, gpadl {g.gpadl_id:#x}, ret 0",
    ),
    m.GpadlTeardown: (
        "vmbus_teardown_gpadl",
        lambda g: f"sending child_relid {g.channel_id:#x}, gpadl {g.gpadl_id:#x}, ret 0",
    ),
    m.TlConnectRequest: (
        "vmbus_send_tl_connect_request",
        lambda t: f"sending guest_endpoint_id {t.endpoint}, host_service_id {t.service}, ret 0",
    ),
    m.ModifyChannel: (
        "vmbus_send_modifychannel",
        lambda c: f"binding child_relid {c.channel_id:#x} to target_vp {c.target_vp:#x}, ret 0",
    ),
}
"""As the kernel's format strings print each."""

HEADS = {
    "trace": "     kworker/0:1-12      [000] .....     1.500000: {}: {}",
    "older trace": "     kworker/0:1-12    [000] d..1     1.500000: {}: {}",
    "trace-cmd": "     kworker/0:1-12    [000]     1.500000: {}:        {}",
    "perf": "kworker/0:1    12 [000]     1.500000: hyperv:{}: {}",
    "log": "[    1.500000] {}: {}",
}


def read(line: str) -> TraceEvent:
    reader = FtraceReader()
    event = reader.feed(line)
    assert event is not None, reader.damaged
    return event


@pytest.mark.parametrize("layout", PRINTED, ids=lambda layout: layout.__name__)
@given(head=st.sampled_from(sorted(HEADS)), number=st.integers(0, 0xFFFF_FFFF))
def test_every_message(layout: type[Message], head: str, number: int) -> None:
    """Each message's line, as each tool prints it, is that message's words, channel and direction."""
    values = {
        field.name: number * (2 * place + 1) & ((1 << 8 * field.size) - 1)
        for place, field in enumerate(layout.FIELDS)
        if field.size <= 8 and field.name != "message_type"
    }
    if "version" in values:
        values["version"] = Version.V5_3 if layout is m.InitiateContact else Version.V4_1
    message = layout(**values)
    event, printed = PRINTED[layout]
    made = read(HEADS[head].format(event, printed(message)))
    assert made.layer is Layer.CONTROL
    assert made.words == describe(message)
    assert made.event == layout.TYPE.name.lower()
    assert made.channel == getattr(message, "channel_id", None)
    assert made.direction == (TO_CHILD if event.startswith("vmbus_on") else TO_ROOT)
    assert made.time == 15_000_000
    assert made.vm == "guest"


def test_every_tracepoint_is_known() -> None:
    """The table above and the reader know the same events."""
    assert {event for event, _ in PRINTED.values()} < KNOWN


def test_a_boot() -> None:
    """Linux's recorded boot as its trace: the words are those that a host prints of the same bytes."""
    reader, wanted, told = FtraceReader(), [], []
    for number, entry in enumerate(one for one in RECORDED["messages"] if one["version"] == "5.3"):
        message = decode_message(
            bytes.fromhex(entry["hex"]), sender=Direction(entry["direction"]), version=Version.V5_3
        )
        if type(message) not in PRINTED:
            continue
        event, printed = PRINTED[type(message)]
        line = f"          <idle>-0       [000] ..s..     0.{number:06d}: {event}: {printed(message)}"
        made = reader.feed(line)
        assert made is not None
        told.append(made.words)
        wanted.append(describe(message))
    assert told == wanted
    assert len(told) > 30
    assert not reader.damaged


STORY = """\
# tracer: nop
#
# entries-in-buffer/entries-written: 16/19   #P:2
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |
       swapper/0-1       [000] .....     0.510000: vmbus_negotiate_version: sending vmbus_version_requested 393216, \
target_vcpu 0x0, pages 2:6004000:6005000, ret 0
          <idle>-0       [000] ..s..     0.510100: vmbus_onversion_response: version_supported 0
       swapper/0-1       [000] .....     0.512001: vmbus_negotiate_version: sending vmbus_version_requested 327683, \
target_vcpu 0x0, pages 2:6004000:6005000, ret 0
          <idle>-0       [000] d.h..     0.512140: vmbus_on_msg_dpc: msgtype=15
          <idle>-0       [000] ..s..     0.512141: vmbus_onversion_response: version_supported 1
       swapper/0-1       [000] .....     0.512190: vmbus_request_offers: sending ret 0
    kworker/0:1-12       [000] .....     0.512441: vmbus_onoffer: child_relid 0x8, monitorid 0xff, is_dedicated 1, \
connection_id 0x10008, if_type ba6163d9-04a1-4d29-b605-72e2ffb1dc7f, \
if_instance 11223344-5566-7788-9900-aabbccdd0004, chn_flags 0x0, mmio_megabytes 0, sub_channel_index 0
          <idle>-0       [000] ..s..     0.512500: vmbus_on_message: msgtype=4
  systemd-udevd-101      [001] .....     0.700120: vmbus_open: sending child_relid 0x8, openid 8, \
gpadlhandle 0xe1e10, target_vp 0x1, offset 0x20, ret 0
          <idle>-0       [000] ..s..     0.700210: vmbus_onopen_result: child_relid 0x8, openid 8, status 0
  systemd-udevd-101      [001] .....     0.700220: vmbus_setevent: relid 0x8
          <idle>-0       [001] d.h..     0.700310: vmbus_chan_sched: relid 0x8
            bash-300     [001] .....     0.800000: sched_switch: prev_comm=bash
            bash-300     [001] .....     0.900000: vmbus_send_modifychannel: binding child_relid 0x8 to target_vp 0x0, \
ret -11
            bash-300     [001] .....     0.900001: vmbus_open: sending child_relid zz
CPU:1 [LOST 5 EVENTS]
"""


def test_the_story() -> None:
    """What a trace comes to, and what is not in it."""
    reader = FtraceReader()
    events = [made for line in STORY.splitlines() if (made := reader.feed(line)) is not None]
    assert reader.story.lines() == [
        "a guest's bus from 0.510000 to 0.900000 s",
        "  version 5.3 negotiated; 6.0 refused before",
        "  the host offered 1 channel and said that these are all",
        "    ch 8    storage            open, moved to another processor: failed; signals 1 to the host, 1 from it",
        "  1 went wrong:",
        "    0.900000  MODIFY_CHANNEL channel=8 vp=0: not sent, error -11",
    ]
    assert list(reader.notes()) == [
        "8 events are not in the trace: the guest's buffer had no room (buffer_size_kb)",
        "1 events of other kinds were passed over: sched_switch (1)",
        'line 21 was passed over: vmbus_open: child_relid is "zz", which is no number',
    ]
    assert [event.fields["device"] for event in events if event.event == "event_flag"] == ["storage"]
    assert [event.level for event in events if event.event == "modify_channel"] == [Level.WARNING]


def test_network_events() -> None:
    """The network driver's own tracepoints."""
    head = "NetworkManager-500   [001] .....     2.000000: "
    assert read(head + "nvsp_send: dev=eth0 type=SEND_RECV_BUF").words == "SEND_RECEIVE_BUFFER"
    sent = read(head + "nvsp_send_pkt: dev=eth0 qid=0 type=CONTROL section=4294967295 size=0")
    assert sent.words == "SEND_RNDIS_PACKET CONTROL section=0xffffffff"
    got = read(head + "rndis_recv: dev=eth0 q=0 req=0x2 type=QUERY_C msg_len=28")
    assert (got.words, got.size, got.direction) == ("RNDIS QUERY_C request=0x2", 28, TO_CHILD)


@given(st.text(max_size=120), st.sampled_from(sorted(KNOWN)), st.text("ab ,=:0x1-", max_size=40))
def test_any_line(line: str, event: str, rest: str) -> None:
    """A line that nobody prints is passed over and noted."""
    reader = FtraceReader()
    reader.feed(line)
    reader.feed(f"x-1 [000] ..... 1.0: {event}: {rest}")
    is_ftrace(line)
    assert reader.story.lines()
    list(reader.notes())
