"""What a Linux guest's ftrace says of its bus, as trace events in the words of the live trace. Root side.

The tracepoints `hyperv:*` and `netvsc:*` (Linux 6.12 drivers/hv/hv_trace.h, drivers/net/hyperv/netvsc_trace.h) hold
numbers of channel messages, not their bytes; as far as they go the words are the same as those of a host that sees the
bytes. Lines come from the tracing folder's `trace`, from `trace-cmd report`, from `perf script` or, with tp_printk,
from the kernel's log.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from hypervisor.wire import Guid
from partitions.decode.bus_story import BusStory
from vmbus.protocol import messages as m
from vmbus.protocol.messages import Message, MessageType
from vmbus.protocol.table import describe, event_name
from vmbus.protocol.versions import Version, version_text
from vsp_vsc.network.protocol import NvspType

_LINE = re.compile(
    r"^.*?\[(?P<cpu>\d{1,6})\]\s+(?:[^\s:]+\s+)?(?P<time>\d{1,12}\.\d{1,12}):\s+(?:\w+:)?(?P<event>\w+):\s*(?P<rest>.*)$"
)
_LOG_LINE = re.compile(
    r"^(?:<\d+>)?\[\s*(?P<time>\d{1,12}\.\d{1,12})\](?:\[[^\]]*\])?\s+(?P<event>\w+):\s*(?P<rest>.*)$"
)
_LOST = re.compile(r"\[LOST (\d{1,18}) EVENTS\]")
_BUFFER = re.compile(r"^#\s*entries-in-buffer/entries-written:\s*(\d{1,18})/(\d{1,18})")
_CODE = re.compile(r"-?(?:[1-9][0-9]{0,9}|0|0x[0-9a-f]{1,16})")
_FILLER = re.compile(r"^(?:sending|binding)\s+|(?<=\s)to\s+")
# From a word's beginning and to its end at once: a long line without pairs must not be tried from each of its letters.
_PAIR = re.compile(r"\b(\w++)[ =]([^\s,]+)")

Pairs = dict[str, str]
_DAMAGE_SHOWN = 5


class NotSaid(ValueError):
    """A line of a known event lacks what such lines say."""


def _number(pairs: Pairs, key: str, bits: int = 32) -> int:
    text = pairs.get(key)
    if text is None:
        raise NotSaid(f"no {key}")
    try:
        return int(text, 0) & ((1 << bits) - 1)
    except ValueError:
        raise NotSaid(f'{key} is "{text}", which is no number') from None


def _guid(pairs: Pairs, key: str) -> Guid:
    try:
        return Guid(pairs[key])
    except (KeyError, ValueError):
        raise NotSaid(f'{key} is "{pairs.get(key, "")}", which is no GUID') from None


def _offer(p: Pairs) -> Message:
    return m.OfferChannel(
        interface=_guid(p, "if_type"),
        instance=_guid(p, "if_instance"),
        flags=_number(p, "chn_flags", 16),
        mmio_megabytes=_number(p, "mmio_megabytes", 16),
        subchannel_index=_number(p, "sub_channel_index", 16),
        channel_id=_number(p, "child_relid"),
        monitor_id=_number(p, "monitorid", 8),
        is_dedicated=_number(p, "is_dedicated", 16),
        connection_id=_number(p, "connection_id"),
    )


def _contact(p: Pairs) -> Message:
    version, vp = _number(p, "vmbus_version_requested"), _number(p, "target_vcpu")
    try:
        where, to_child, to_root = (int(page, 16) for page in p["pages"].split(":"))
    except (KeyError, ValueError):
        raise NotSaid("no pages") from None
    if version < Version.V5_0:
        return m.InitiateContactLegacy(
            version=version,
            target_vp=vp,
            interrupt_page=where,
            parent_to_child_monitor_page=to_child,
            child_to_parent_monitor_page=to_root,
        )
    return m.InitiateContact(
        version=version,
        target_vp=vp,
        target_sint=where & 0xFF,
        target_vtl=where >> 8 & 0xFF,
        features=where >> 32 & 0xFFFF_FFFF,
        parent_to_child_monitor_page=to_child,
        child_to_parent_monitor_page=to_root,
    )


def _open(p: Pairs) -> Message:
    return m.OpenChannel(
        channel_id=_number(p, "child_relid"),
        open_id=_number(p, "openid"),
        gpadl_id=_number(p, "gpadlhandle"),
        target_vp=_number(p, "target_vp"),
        downstream_page=_number(p, "offset"),
    )


def _gpadl_header(p: Pairs) -> Message:
    return m.GpadlHeader(
        channel_id=_number(p, "child_relid"),
        gpadl_id=_number(p, "gpadl"),
        byte_length=_number(p, "range_buflen", 16),
        range_count=_number(p, "rangecount", 16),
    )


_MESSAGES: dict[str, tuple[str, Callable[[Pairs], Message]]] = {
    "vmbus_onoffer": (TO_CHILD, _offer),
    "vmbus_onoffer_rescind": (TO_CHILD, lambda p: m.RescindChannelOffer(channel_id=_number(p, "child_relid"))),
    "vmbus_onopen_result": (
        TO_CHILD,
        lambda p: m.OpenChannelResult(
            channel_id=_number(p, "child_relid"), open_id=_number(p, "openid"), status=_number(p, "status")
        ),
    ),
    "vmbus_ongpadl_created": (
        TO_CHILD,
        lambda p: m.GpadlCreated(
            channel_id=_number(p, "child_relid"), gpadl_id=_number(p, "gpadl"), status=_number(p, "creation_status")
        ),
    ),
    "vmbus_ongpadl_torndown": (TO_CHILD, lambda p: m.GpadlTorndown(gpadl_id=_number(p, "gpadl"))),
    "vmbus_onmodifychannel_response": (
        TO_CHILD,
        lambda p: m.ModifyChannelResponse(channel_id=_number(p, "child_relid"), status=_number(p, "status")),
    ),
    "vmbus_negotiate_version": (TO_ROOT, _contact),
    "vmbus_request_offers": (TO_ROOT, lambda p: m.RequestOffers()),
    "vmbus_open": (TO_ROOT, _open),
    "vmbus_close_internal": (TO_ROOT, lambda p: m.CloseChannel(channel_id=_number(p, "child_relid"))),
    "vmbus_release_relid": (TO_ROOT, lambda p: m.RelIdReleased(channel_id=_number(p, "child_relid"))),
    "vmbus_establish_gpadl_header": (TO_ROOT, _gpadl_header),
    "vmbus_establish_gpadl_body": (
        TO_ROOT,
        lambda p: m.GpadlBody(message_number=_number(p, "msgnumber"), gpadl_id=_number(p, "gpadl")),
    ),
    "vmbus_teardown_gpadl": (
        TO_ROOT,
        lambda p: m.GpadlTeardown(channel_id=_number(p, "child_relid"), gpadl_id=_number(p, "gpadl")),
    ),
    "vmbus_send_tl_connect_request": (
        TO_ROOT,
        lambda p: m.TlConnectRequest(endpoint=_guid(p, "guest_endpoint_id"), service=_guid(p, "host_service_id")),
    ),
    "vmbus_send_modifychannel": (
        TO_ROOT,
        lambda p: m.ModifyChannel(channel_id=_number(p, "child_relid"), target_vp=_number(p, "target_vp")),
    ),
}
"""Tracepoints that hold a channel message's numbers, and the way it goes."""

_OF_THEIR_OWN = frozenset(
    {
        MessageType.OFFER_CHANNEL,
        MessageType.RESCIND_CHANNEL_OFFER,
        MessageType.OPEN_CHANNEL_RESULT,
        MessageType.GPADL_CREATED,
        MessageType.GPADL_TORNDOWN,
        MessageType.VERSION_RESPONSE,
        MessageType.MODIFY_CHANNEL_RESPONSE,
    }
)
"""Messages to the guest that have a tracepoint with their numbers, besides `vmbus_on_message`."""

_SIGNALS: dict[str, tuple[Layer, str, str, str]] = {
    "vmbus_setevent": (Layer.SYNIC, "signal_event", TO_ROOT, "the guest signals the channel"),
    "vmbus_chan_sched": (Layer.SYNIC, "event_flag", TO_CHILD, "the host's flag is found, the channel is scheduled"),
    "vmbus_on_event": (Layer.INTERRUPT, "channel_callback", TO_CHILD, "the driver looks into the ring"),
}
_NVSP_NAMES = {
    "SEND_NDIS_VER": NvspType.SEND_NDIS_VERSION.name,
    "SEND_RECV_BUF": NvspType.SEND_RECEIVE_BUFFER.name,
    "SEND_RECV_BUF_COMPLETE": NvspType.SEND_RECEIVE_BUFFER_COMPLETE.name,
    "REVOKE_RECV_BUF": NvspType.REVOKE_RECEIVE_BUFFER.name,
    "SEND_SEND_BUF": NvspType.SEND_SEND_BUFFER.name,
    "SEND_SEND_BUF_COMPLETE": NvspType.SEND_SEND_BUFFER_COMPLETE.name,
    "REVOKE_SEND_BUF": NvspType.REVOKE_SEND_BUFFER.name,
    "SEND_RNDIS_PKT": NvspType.SEND_RNDIS_PACKET.name,
    "SEND_RNDIS_PKT_COMPLETE": NvspType.SEND_RNDIS_PACKET_COMPLETE.name,
}
_NETWORK = {
    "nvsp_send": TO_ROOT,
    "nvsp_recv": TO_CHILD,
    "nvsp_send_pkt": TO_ROOT,
    "rndis_send": TO_ROOT,
    "rndis_recv": TO_CHILD,
}
_ARRIVALS = ("vmbus_on_msg_dpc", "vmbus_on_message")
KNOWN = frozenset({*_MESSAGES, *_SIGNALS, *_NETWORK, *_ARRIVALS, "vmbus_onversion_response", "balloon_status"})
"""Tracepoints that become events."""


NO_EVENTS = "an ftrace without events of the bus"
REMEDY = "turn them on in the guest: echo 1 > /sys/kernel/tracing/events/hyperv/enable"


def is_ftrace(line: str) -> bool:
    """Whether a line is one of a trace, of whatever event, or of the kernel's log about an event of the bus."""
    if _LINE.match(line):
        return True
    found = _LOG_LINE.match(line)
    return found is not None and found["event"] in KNOWN


class FtraceReader:
    """Takes a trace's lines, one by one; keeps what they come to in `story`."""

    def __init__(self, vm: str = "guest") -> None:
        self._vm = vm
        self._line = 0
        self._asked: int | None = None
        self.story = BusStory()
        self.others: Counter[str] = Counter()
        """Events of other kinds, which were passed over."""
        self.damaged: list[tuple[int, str]] = []
        """The first lines that cannot be read: number from 1, and why."""
        self.damage_count = 0
        self.lost = 0
        """Events that the guest's own buffer had no room for, as far as it says so."""

    def notes(self) -> Iterator[str]:
        """What a person has to know of what is not in the events."""
        if self.lost:
            yield f"{self.lost} events are not in the trace: the guest's buffer had no room (buffer_size_kb)"
        if self.others:
            names = ", ".join(f"{name} ({count})" for name, count in self.others.most_common(4))
            yield f"{self.others.total()} events of other kinds were passed over: {names}"
        for number, why in self.damaged:
            yield f"line {number} was passed over: {why}"
        if self.damage_count > len(self.damaged):
            yield f"and {self.damage_count - len(self.damaged)} more lines"

    def _damage(self, why: str) -> None:
        self.damage_count += 1
        if len(self.damaged) < _DAMAGE_SHOWN:
            self.damaged.append((self._line, why))

    def feed(self, line: str) -> TraceEvent | None:
        """One line; None where it is not about the bus, or cannot be read."""
        self._line += 1
        if line.startswith("#"):
            buffer = _BUFFER.match(line)
            self.lost += max(0, int(buffer[2]) - int(buffer[1])) if buffer else 0
            return None
        found = _LINE.match(line) or _LOG_LINE.match(line)
        if found is None:
            lost = _LOST.search(line)
            self.lost += int(lost[1]) if lost else 0
            if line.strip() and lost is None:
                self._damage("no line of a trace")
            return None
        event = found["event"]
        if event not in KNOWN:
            self.others[event] += 1
            return None
        pairs = dict(_PAIR.findall(_FILLER.sub("", found["rest"])))
        fields: dict[str, Any] = {}
        if "cpu" in found.groupdict():
            fields["cpu"] = int(found["cpu"])
        time = round(float(found["time"]) * TICKS_PER_SECOND)
        try:
            made = self._event(time, event, pairs, fields)
        except NotSaid as why:
            self._damage(f"{event}: {why}")
            return None
        self.story.take(made)
        return made

    def _event(self, time: int, event: str, pairs: Pairs, fields: dict[str, Any]) -> TraceEvent:
        if event in _MESSAGES:
            direction, build = _MESSAGES[event]
            return self._message(time, direction, build(pairs), pairs, fields)
        if event == "vmbus_onversion_response":
            return self._version(time, bool(_number(pairs, "version_supported")), fields)
        if event in _ARRIVALS:
            return self._arrival(time, event, _number(pairs, "msgtype"), fields)
        if event in _SIGNALS:
            layer, name, direction, words = _SIGNALS[event]
            channel = _number(pairs, "relid")
            device = self.story.device_of(channel)
            fields["device"] = device
            return self._made(time, layer, name, direction, words, fields, channel=channel)
        if event == "balloon_status":
            words = ", ".join(f"{key} {value}" for key, value in pairs.items())
            return self._made(time, Layer.DEVICE, "balloon_status", TO_ROOT, words, fields)
        return self._network(time, event, pairs, fields)

    def _message(self, time: int, direction: str, message: Message, pairs: Pairs, fields: dict[str, Any]) -> TraceEvent:
        words, level = describe(message), Level.DEBUG
        if "ret" in pairs:
            code = int(pairs["ret"], 0) if _CODE.fullmatch(pairs["ret"]) else 0
            if code:
                fields["ret"] = code
                words, level = f"{words}: not sent, error {code}", Level.WARNING
        if isinstance(message, m.InitiateContactLegacy | m.InitiateContact):
            self._asked = message.version
        if getattr(message, "status", 0):
            level = Level.WARNING
        channel = getattr(message, "channel_id", None)
        if isinstance(message, m.OfferChannel):
            fields["device"] = self.story.offered(message)
        return self._made(
            time, Layer.CONTROL, event_name(message), direction, words, fields, level=level, channel=channel
        )

    def _version(self, time: int, supported: bool, fields: dict[str, Any]) -> TraceEvent:
        fields["supported"] = int(supported)
        if self._asked is not None:
            fields["version"] = version_text(self._asked)
        words = f"VERSION_RESPONSE supported={int(supported)}"
        level = Level.DEBUG if supported else Level.WARNING
        return self._made(time, Layer.CONTROL, "version_response", TO_CHILD, words, fields, level=level)

    def _arrival(self, time: int, event: str, kind: int, fields: dict[str, Any]) -> TraceEvent:
        known = kind in tuple(MessageType)
        words = MessageType(kind).name if known else f"message type {kind}"
        fields["type"] = kind
        if event == "vmbus_on_message" and known and kind not in _OF_THEIR_OWN:
            return self._made(time, Layer.CONTROL, words.lower(), TO_CHILD, words, fields)
        name = "message_arrived" if event == "vmbus_on_msg_dpc" else "message_handled"
        return self._made(time, Layer.SYNIC, name, TO_CHILD, words, fields)

    def _network(self, time: int, event: str, pairs: Pairs, fields: dict[str, Any]) -> TraceEvent:
        kind = pairs.get("type", "")
        fields |= {"device": "network", "interface": pairs.get("dev", "")}
        size = None
        if event.startswith("rndis"):
            words, name = f"RNDIS {kind} request={pairs.get('req', '?')}", "rndis_message"
            size = _number(pairs, "msg_len")
        elif event == "nvsp_send_pkt":
            words, name = (
                f"{NvspType.SEND_RNDIS_PACKET.name} {kind} section={_number(pairs, 'section'):#x}",
                "nvsp_message",
            )
        else:
            words, name = _NVSP_NAMES.get(kind, kind), "nvsp_message"
        return self._made(time, Layer.DEVICE, name, _NETWORK[event], words, fields, size=size)

    def _made(
        self,
        time: int,
        layer: Layer,
        event: str,
        direction: str,
        words: str,
        fields: dict[str, Any],
        *,
        level: Level = Level.DEBUG,
        channel: int | None = None,
        size: int | None = None,
    ) -> TraceEvent:
        return TraceEvent(time, layer, event, 0, level, direction, channel, size, words, fields, self._vm)
