"""The guest's end of one component's channel: every question gets an answer, one after the other. Child side.

A host's message that cannot be read ends the driver (`WireError`); a question of a type that is not this component's is
answered with "not supported". Nothing is said unasked.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import trio

from hypervisor.wire import BadValue
from vmbus.channel import Channel
from vmbus.pipe import frame, unframe
from vsp_vsc.integration.protocol import (
    FRAMEWORK_VERSIONS,
    NO_VERSION,
    REQUEST,
    RESPONSE,
    VERSIONS,
    Component,
    Header,
    Status,
    Version,
    decode_message,
    decode_offer,
    encode_message,
    encode_negotiate,
)


class Reply(NamedTuple):
    """What to answer."""

    body: bytes = b""
    status: int = Status.SUCCESS


Answer = Callable[[bytes, Version], Reply | Awaitable[Reply]]
"""Answers one question's body, by the agreed version; now, or once it knows. Raises `WireError`."""


class Responder:
    """Negotiates by itself, and hands on what comes after that. Bytes in, bytes out."""

    def __init__(self, component: Component, answer: Answer, versions: Sequence[Version] | None = None) -> None:
        self.component = component
        self.framework = NO_VERSION
        self.version = NO_VERSION
        """As agreed; 0.0 until then."""
        self._answer = answer
        self._versions = VERSIONS[component] if versions is None else versions

    def take(self, untrusted: bytes) -> bytes:
        """The answer to a host's message, of a component that always knows it. Raises `WireError`."""
        header, reply = self._read(untrusted)
        assert isinstance(reply, Reply), "its answers are not waited for"
        return _message(header, reply)

    async def answer(self, untrusted: bytes) -> bytes:
        """The answer to a host's message, when it is known. Raises `WireError`."""
        header, reply = self._read(untrusted)
        return _message(header, reply if isinstance(reply, Reply) else await reply)

    def _read(self, untrusted: bytes) -> tuple[Header, Reply | Awaitable[Reply]]:
        header, body = decode_message(untrusted)
        if header.flags != REQUEST:
            raise BadValue(f"a message with flags {header.flags:#x} from the host, which may only ask")
        if header.component == Component.NEGOTIATE:
            return header, self._negotiate(body)
        if header.component != self.component:
            return header, Reply(body, Status.NOT_SUPPORTED)
        if self.version == NO_VERSION:
            raise BadValue("a question before versions were agreed on")
        return header, self._answer(body, self.version)

    def _negotiate(self, body: bytes) -> Reply:
        """The highest of each that both speak; none of either where one is lacking."""
        framework, messages = decode_offer(body)
        common = max(set(framework) & set(FRAMEWORK_VERSIONS), default=NO_VERSION)
        version = max(set(messages) & set(self._versions), default=NO_VERSION)
        if NO_VERSION in (common, version):
            self.framework = self.version = NO_VERSION
            return Reply(encode_negotiate((), ()))
        self.framework, self.version = common, version
        return Reply(encode_negotiate((common,), (version,)))


def _message(header: Header, reply: Reply) -> bytes:
    return encode_message(
        header.component,
        reply.body,
        framework=Version(header.framework_major, header.framework_minor),
        version=Version(header.message_major, header.message_minor),
        transaction_id=header.transaction_id,
        flags=RESPONSE,
        status=reply.status,
    )


@asynccontextmanager
async def responding(channel: Channel, responder: Responder) -> AsyncIterator[None]:
    """Answer the host beside the block. What ends the answering ends the block: `WireError`, `trio.EndOfChannel`."""

    async def answer() -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # closed at our own end: the driver is being stopped
            while True:
                packets = await channel.receive_batch()
                await channel.send_batch([frame(await responder.answer(unframe(packet))) for packet in packets])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, name=f"{responder.component.name.lower()} driver")
        yield
        nursery.cancel_scope.cancel()
