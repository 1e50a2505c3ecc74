"""How guest and adapter come to an agreement, message by message. Pure. Root side.

    version --INIT taken--> buffers --all there, or an RNDIS packet--> ready

`protocol.py` says which mistakes are soft and which raise here.
"""

from __future__ import annotations

import enum
import struct
from typing import TypeVar

from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import Access
from hypervisor.wire import BadValue, Wire, WireError
from vmbus.server.opened import ChannelGpadls
from vsp_vsc.network.adapter import AdapterState
from vsp_vsc.network.buffers import LentBuffer, ReceiveBuffer
from vsp_vsc.network.protocol import (
    DEFAULT_MTU,
    LARGEST_MTU,
    MAX_MDL_CHAIN,
    NO_VERSION,
    SECTION_SIZE,
    VERSIONS,
    NdisConfig,
    NdisVersion,
    NvspInit,
    NvspInitComplete,
    NvspStatus,
    NvspType,
    NvspVersion,
    ReceiveBufferComplete,
    ReceiveSection,
    RevokeBuffer,
    SendBuffer,
    SendBufferComplete,
    message_size,
    piece_size,
    version_words,
)

_W = TypeVar("_W", bound=Wire)
_HEADER = 4
_SPOKEN = frozenset(int(version) for version in VERSIONS)
_SINCE = {
    NvspType.SEND_NDIS_CONFIG: NvspVersion.V2,
    NvspType.SWITCH_DATA_PATH: NvspVersion.V4,
    NvspType.OID_QUERY_EX: NvspVersion.V5,
    NvspType.SUBCHANNEL: NvspVersion.V5,
}
"""Messages of a guest's that not every version has."""


class State(enum.Enum):
    """Where a primary channel is."""

    VERSION = "version"
    BUFFERS = "buffers"
    READY = "ready"


class Negotiation:
    """The primary channel's."""

    def __init__(self, adapter: AdapterState, memory: GuestMemory, gpadls: ChannelGpadls) -> None:
        self.state = State.VERSION
        self._adapter = adapter
        self._memory = memory
        self._gpadls = gpadls
        self.revoked = False
        """A buffer was given back, and may be lent again."""

    def control(self, kind: int, untrusted: bytes) -> tuple[bytes, str]:
        """The body of the completion of an initialization message or a revocation, and in words what came of it.

        `untrusted` is the whole message. Raises `WireError` where the channel must stop.
        """
        if kind == NvspType.INIT and self.state is State.VERSION:
            return self._init(_body(NvspInit, untrusted))
        if self.state is State.VERSION:
            raise BadValue(f"NVSP message {kind} before a version is agreed on")
        if self._adapter.version < _SINCE.get(kind, 0):  # type: ignore[call-overload]
            raise BadValue(f"NVSP message {kind} in version {self._adapter.version:#x}")
        match kind:
            case NvspType.SEND_NDIS_CONFIG if not self._adapter.config_mtu:
                return self._config(_body(NdisConfig, untrusted))
            case NvspType.SEND_NDIS_VERSION if self._adapter.ndis is None:
                version = _body(NdisVersion, untrusted)
                self._adapter.ndis = version.major, version.minor
                self._look_whether_ready()
                return b"", f"{version.major}.{version.minor}"
            case NvspType.SEND_RECEIVE_BUFFER if self._adapter.receive is None:
                return self._receive_buffer(_body(SendBuffer, untrusted))
            case NvspType.SEND_SEND_BUFFER if self._adapter.send is None and self._may_lend:
                return self._send_buffer(_body(SendBuffer, untrusted))
            case NvspType.REVOKE_RECEIVE_BUFFER | NvspType.REVOKE_SEND_BUFFER:
                return b"", self._revoke(kind, _body(RevokeBuffer, untrusted).buffer_id)
            case _:
                raise BadValue(f"NVSP message {kind} where the negotiation has come to {self.state.value!r}")

    def begin(self) -> None:
        """An RNDIS packet has come: the guest does without what it has not sent yet. Raises `BadValue`."""
        adapter = self._adapter
        if self.state is not State.BUFFERS or not self._complete or adapter.receive is None:
            raise BadValue("an RNDIS packet before the end of the initialization")
        self.state = State.READY

    def restore(self, state: State, *, revoked: bool, receive: tuple[int, int] | None, send: int | None) -> None:
        """Go on where a saved session was, with the buffers lent again. Raises `WireError`, `GpaFault`."""
        adapter = self._adapter
        self.state, self.revoked = state, revoked
        if receive is not None:
            lent = LentBuffer(self._memory, self._gpadls, receive[0], Access.WRITE)
            adapter.receive = ReceiveBuffer(lent, receive[1], piece_size(adapter.config_mtu or DEFAULT_MTU))
        if send is not None:
            adapter.send = LentBuffer(self._memory, self._gpadls, send, Access.READ)

    @property
    def _may_lend(self) -> bool:
        return self.state is State.BUFFERS or self.revoked

    @property
    def _complete(self) -> bool:
        adapter = self._adapter
        return adapter.ndis is not None and bool(adapter.config_mtu or adapter.version < NvspVersion.V2)

    def _look_whether_ready(self) -> None:
        if self._complete and self._adapter.receive is not None and self._adapter.send is not None:
            self.state = State.READY

    def _init(self, asked: NvspInit) -> tuple[bytes, str]:
        version = asked.least_version
        taken = version in _SPOKEN
        status = NvspStatus.SUCCESS if taken else NvspStatus.NONE
        told = int(NvspVersion.V1) if version == NvspVersion.V1 else NO_VERSION
        if taken:
            self._adapter.version = version
            self.state = State.BUFFERS
        body = NvspInitComplete(told, MAX_MDL_CHAIN, status).encode()
        # The size of the first version, whatever was agreed on: the guest learns it from this answer only.
        words = version_words(version) + ("" if taken else ": unknown")
        return _message(NvspType.INIT_COMPLETE, body, message_size(0)), words

    def _config(self, config: NdisConfig) -> tuple[bytes, str]:
        good = DEFAULT_MTU <= config.mtu <= LARGEST_MTU
        self._adapter.config_mtu = config.mtu if good else DEFAULT_MTU
        self._adapter.capabilities = config.capabilities
        self._look_whether_ready()
        return b"", f"MTU {config.mtu}" + ("" if good else f", {DEFAULT_MTU} is taken")

    def _receive_buffer(self, lent: SendBuffer) -> tuple[bytes, str]:
        adapter = self._adapter
        if adapter.version >= NvspVersion.V2 and not adapter.config_mtu:
            raise BadValue("a receive buffer before the MTU is known")
        size = piece_size(adapter.config_mtu or DEFAULT_MTU)
        buffer = None
        try:
            buffer = LentBuffer(self._memory, self._gpadls, lent.gpadl_id, Access.WRITE)
            receive = ReceiveBuffer(buffer, lent.buffer_id, size)
        except (WireError, GpaFault) as fault:
            if buffer is not None:
                buffer.release()
            body = ReceiveBufferComplete(NvspStatus.FAIL, 0).encode()
            return self.message(NvspType.SEND_RECEIVE_BUFFER_COMPLETE, body), f"refused: {fault}"
        adapter.receive = receive
        self._look_whether_ready()
        section = ReceiveSection(0, size, receive.count, size * receive.count)
        body = ReceiveBufferComplete(NvspStatus.SUCCESS, 1).encode() + section.encode()
        words = f"{receive.count} pieces of {size} bytes"
        return self.message(NvspType.SEND_RECEIVE_BUFFER_COMPLETE, body), words

    def _send_buffer(self, lent: SendBuffer) -> tuple[bytes, str]:
        try:
            self._adapter.send = LentBuffer(self._memory, self._gpadls, lent.gpadl_id, Access.READ)
        except (WireError, GpaFault) as fault:
            body = SendBufferComplete(NvspStatus.FAIL, 0).encode()
            return self.message(NvspType.SEND_SEND_BUFFER_COMPLETE, body), f"refused: {fault}"
        self._look_whether_ready()
        body = SendBufferComplete(NvspStatus.SUCCESS, SECTION_SIZE).encode()
        return self.message(NvspType.SEND_SEND_BUFFER_COMPLETE, body), f"{self._adapter.send.size} bytes"

    def _revoke(self, kind: int, untrusted_id: int) -> str:
        adapter = self._adapter
        if kind == NvspType.REVOKE_SEND_BUFFER:
            if adapter.send is None:
                return "refused: there is none"
            adapter.send.release()
            adapter.send = None
        else:
            if adapter.receive is None or adapter.receive.buffer_id != untrusted_id:
                return f"refused: there is none with ID {untrusted_id:#x}"
            adapter.receive.buffer.release()
            adapter.receive = None
        self.revoked = True
        return "given back"

    def message(self, kind: NvspType, body: bytes) -> bytes:
        """An NVSP message of the size that was agreed on."""
        return _message(kind, body, message_size(self._adapter.version))


def _message(kind: NvspType, body: bytes, size: int) -> bytes:
    return (struct.pack("<I", kind) + body).ljust(size, b"\0")


def _body(layout: type[_W], untrusted: bytes) -> _W:
    return layout.decode(untrusted, _HEADER)
