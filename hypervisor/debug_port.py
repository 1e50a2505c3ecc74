"""A partition's line to a debugger: two queues of bounded size between a guest's hypercalls and the host. Hypervisor.

It exists while the property DebugChannelId names a channel. What the guest posts goes out as bytes; what the debugger
sends comes in as packets, which are not cut.
"""

from __future__ import annotations

from collections import deque

import attrs

OUTGOING_BYTES = 1 << 16
INCOMING_BYTES = 1 << 16


@attrs.define(eq=False)
class DebugPort:
    """One partition's."""

    outgoing: bytearray = attrs.field(factory=bytearray)
    incoming: deque[bytes] = attrs.field(factory=deque)
    incoming_bytes: int = 0

    def post(self, data: bytes) -> int:
        """The guest's bytes, as many as there is room for; returns how many were taken."""
        taken = data[: OUTGOING_BYTES - len(self.outgoing)]
        self.outgoing += taken
        return len(taken)

    def take(self) -> bytes:
        """The debugger's side: everything that the guest has posted."""
        data = bytes(self.outgoing)
        self.outgoing.clear()
        return data

    def send(self, packet: bytes) -> bool:
        """The debugger's side: a packet for the guest; False where there is no room, and it is lost."""
        if not packet or len(packet) + self.incoming_bytes > INCOMING_BYTES:
            return False
        self.incoming.append(packet)
        self.incoming_bytes += len(packet)
        return True

    def retrieve(self) -> bytes:
        """The next packet; the caller has looked that there is one."""
        packet = self.incoming.popleft()
        self.incoming_bytes -= len(packet)
        return packet

    def purge(self, *, incoming: bool, outgoing: bool) -> None:
        """Drop what waits."""
        if incoming:
            self.incoming.clear()
            self.incoming_bytes = 0
        if outgoing:
            self.outgoing.clear()
