"""What the host says on a primary channel: answers to control messages, and what nobody asked for. Pure. Root side.

All of it but the indirection table lies in pieces of the receive buffer that are kept for it, and waits for one. An
answer is made when there is a piece, so that requests are carried out in their order, and none twice.
"""

from __future__ import annotations

import struct
from collections import deque

from hypervisor.trace import TO_CHILD, TO_ROOT
from hypervisor.wire import BadValue
from vmbus.ring import Packet, PacketType
from vsp_vsc.network import control
from vsp_vsc.network.adapter import AdapterState, RndisState
from vsp_vsc.network.protocol import (
    MAX_CONTROL_BYTES,
    SEND_TABLE_ENTRIES,
    IndirectionTable,
    NvspType,
    NvspVersion,
)
from vsp_vsc.network.rndis import RndisStatus
from vsp_vsc.network.to_guest import FrameWriter
from vsp_vsc.network.told import Told


class HostSpeech:
    """Of one primary channel."""

    def __init__(self, adapter: AdapterState, writer: FrameWriter, outbox: list[Packet], told: Told) -> None:
        self._adapter = adapter
        self._writer = writer
        self._outbox = outbox
        self._told = told
        self._asked: deque[bytes] = deque()
        self._asked_bytes = 0
        self._link: bool | None = None
        self._table = 0

    @property
    def waits(self) -> bool:
        """Whether there is something to say."""
        return bool(self._asked or self._adapter.offloads_changed or self._link is not None or self._table)

    @property
    def kept(self) -> list[bytes]:
        """Control messages that have no answer yet."""
        return list(self._asked)

    def add(self, data: bytes) -> str:
        """Keep a control message until there is room for its answer; what was wrong with one that has none.

        Raises `WireError`.
        """
        if not control.check(data):
            if control.is_mistake(data):
                return f"RNDIS message {data[0]:#x}, which only a host sends"
            self._adapter.reset()
            self._adapter.rndis = RndisState.HALTED
            self._told.say("HALT", TO_ROOT)
            return ""
        if self._asked_bytes + len(data) > MAX_CONTROL_BYTES:
            raise BadValue(f"control messages of {self._asked_bytes} bytes wait already")
        self._asked.append(data)
        self._asked_bytes += len(data)
        return ""

    def tell_link(self, up: bool) -> None:
        """The cable was plugged in or pulled out."""
        if self._adapter.rndis is RndisState.OPERATIONAL:  # before, the guest has still to ask
            self._link = up

    def send_table(self, channels: int) -> None:
        """Tell the guest which of its channels to send by."""
        if self._adapter.version >= NvspVersion.V5:
            self._table = channels

    def speak(self, most_unsent: int) -> None:
        """Say what there are pieces for, while no more than so many packets wait in the outbox."""
        if not self._answer(most_unsent):
            return
        adapter, writer = self._adapter, self._writer
        operational = adapter.rndis is RndisState.OPERATIONAL
        if adapter.offloads_changed and operational:
            about = adapter.offloads.encode()
            if not writer.control(control.indicate(RndisStatus.TASK_OFFLOAD_CURRENT_CONFIG, about)):
                return
            adapter.offloads_changed = False
        if self._link is not None and operational:
            status = RndisStatus.MEDIA_CONNECT if self._link else RndisStatus.MEDIA_DISCONNECT
            if not writer.control(control.indicate(status)):
                return
            self._link = None
            self._told.say(status.name, TO_CHILD)
        if self._table:
            channels, self._table = self._table, 0
            table = [index % channels for index in range(SEND_TABLE_ENTRIES)]
            head = IndirectionTable(SEND_TABLE_ENTRIES, 4 + IndirectionTable.SIZE).encode()
            body = struct.pack("<I", NvspType.SEND_INDIRECTION_TABLE) + head
            body += struct.pack(f"<{SEND_TABLE_ENTRIES}I", *table)
            self._outbox.append(Packet(PacketType.INBAND, 0, 0, 0, body))
            self._told.say(f"SEND_INDIRECTION_TABLE {channels} channels", TO_CHILD)

    def _answer(self, most_unsent: int) -> bool:
        """Answer what there are pieces for; whether nothing is left."""
        adapter = self._adapter
        while self._asked and adapter.receive is not None and adapter.receive.free_control:
            if len(self._outbox) >= most_unsent:
                return False
            message = self._asked.popleft()
            self._asked_bytes -= len(message)
            reply, words = control.answer(adapter, message)
            adapter.counters.control += 1
            self._told.say(words, TO_ROOT)
            self._writer.control(reply)
        return not self._asked
