"""The driver's RNDIS conversation: one request at a time, its answer, and what the host tells unasked. Child side."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from hypervisor.wire import ShortMessage
from vsp_vsc.network.rndis import (
    Oid,
    RndisComplete,
    RndisHeader,
    RndisIndicateStatus,
    RndisInitialize,
    RndisInitializeComplete,
    RndisQuery,
    RndisQueryComplete,
    RndisRequest,
    RndisType,
)

HEADER = 8
MAX_TRANSFER = 0x4000
"""What the host may send in one message; Linux's."""
_ANSWERS = {
    RndisType.INITIALIZE_COMPLETE,
    RndisType.QUERY_COMPLETE,
    RndisType.SET_COMPLETE,
    RndisType.KEEPALIVE_COMPLETE,
}


class NetworkError(OSError):
    """The network adapter does not do what it was asked. The message says what and why."""


class NetworkGone(NetworkError):
    """The host has taken the adapter away, or its channel is corrupt."""


@attrs.define(eq=False)
class _Waiting:
    """A request that is under way."""

    over: trio.Event = attrs.field(factory=trio.Event)
    answer: bytes | None = None
    """None when it is over without one."""


class RndisControl:
    """Requests by number, and their answers."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], on_status: Callable[[int], None]) -> None:
        """`send` gives a message to the host, `on_status` hears what it indicates (a `RndisStatus`)."""
        self._send = send
        self._on_status = on_status
        self._turn = trio.Lock()
        self._number = 0
        self._waiting: _Waiting | None = None
        self._ended = ""
        self.unexpected = 0
        """Control messages that answered nothing, or that we know nothing of."""

    async def initialize(self) -> RndisInitializeComplete:
        """RNDIS INITIALIZE."""
        answer = await self._ask(
            RndisType.INITIALIZE, lambda number: RndisInitialize(number, 1, 0, MAX_TRANSFER).encode()
        )
        complete = RndisInitializeComplete.decode(answer, HEADER)
        if complete.status:
            raise NetworkError(f"the network adapter answers RNDIS INITIALIZE with status {complete.status:#010x}")
        return complete

    async def query(self, oid: Oid, untyped_input: bytes = b"") -> bytes:
        """What the adapter says to an OID. `NetworkError` where it refuses."""
        answer = await self._ask(RndisType.QUERY, lambda number: _oid(number, oid, untyped_input))
        complete = RndisQueryComplete.decode(answer, HEADER)
        if complete.status:
            raise NetworkError(f"the network adapter answers {oid.name} with status {complete.status:#010x}")
        start = HEADER + complete.info_offset
        if start + complete.info_length > len(answer):
            raise ShortMessage(f"answer to {oid.name}", start + complete.info_length, len(answer))
        return answer[start : start + complete.info_length]

    async def set(self, oid: Oid, value: bytes) -> None:
        """Set what an OID names. `NetworkError` where the adapter refuses."""
        answer = await self._ask(RndisType.SET, lambda number: _oid(number, oid, value))
        status = RndisComplete.decode(answer, HEADER).status
        if status:
            raise NetworkError(f"the network adapter answers SET {oid.name} with status {status:#010x}")

    async def keep_alive(self) -> None:
        """Ask whether the adapter is there. `NetworkError` where it says no."""
        answer = await self._ask(RndisType.KEEPALIVE, lambda number: RndisRequest(number).encode())
        status = RndisComplete.decode(answer, HEADER).status
        if status:
            raise NetworkError(f"the network adapter answers KEEPALIVE with status {status:#010x}")

    async def halt(self) -> None:
        """The end of the conversation, which has no answer."""
        async with self._turn:
            await self._send(_message(RndisType.HALT, RndisRequest(self._next()).encode()))

    def heard(self, untrusted: bytes) -> None:
        """A control message has come. Raises `WireError`."""
        header = RndisHeader.decode(untrusted)
        if header.message_length > len(untrusted):
            raise ShortMessage("RNDIS message", header.message_length, len(untrusted))
        if header.message_type == RndisType.INDICATE_STATUS:
            self._on_status(RndisIndicateStatus.decode(untrusted, HEADER).status)
        elif header.message_type in _ANSWERS and self._waiting is not None:
            if RndisRequest.decode(untrusted, HEADER).request_id == self._number:
                self._waiting.answer = untrusted
                self._waiting.over.set()
            else:
                self.unexpected += 1
        else:
            self.unexpected += 1

    def end(self, reason: str) -> None:
        """No answer will come any more."""
        self._ended = self._ended or reason
        if self._waiting is not None:
            self._waiting.over.set()

    async def _ask(self, kind: RndisType, body: Callable[[int], bytes]) -> bytes:
        async with self._turn:
            if self._ended:
                raise NetworkGone(self._ended)
            waiting = self._waiting = _Waiting()
            try:
                await self._send(_message(kind, body(self._next())))
                await waiting.over.wait()
            finally:
                self._waiting = None
            if waiting.answer is None:
                raise NetworkGone(self._ended)
            return waiting.answer

    def _next(self) -> int:
        self._number = (self._number + 1) & 0xFFFF_FFFF
        return self._number


def _oid(number: int, oid: int, value: bytes) -> bytes:
    # Linux gives the offset of what would follow even where nothing does.
    return RndisQuery(number, oid, len(value), RndisQuery.SIZE, 0).encode() + value


def _message(kind: RndisType, body: bytes) -> bytes:
    return RndisHeader(kind, HEADER + len(body)).encode() + body
