"""The host's ends of a switch: a TAP device, or a Unix socket with a peer that speaks as QEMU does. Root side.

Each sits at a port of the switch, reads in batches, and gives what it cannot write at once back to the port, which
counts it. The socket carries each frame behind its length, four bytes, big-endian, as QEMU's `-netdev stream` and passt
do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from hypervisor.inspect import Branch
from hypervisor.trace import Layer, Level, Trace
from partitions.root.nic_state import SwitchError
from partitions.root.tap import TapDevice, buffer_size
from vsp_vsc.network.switch.ports import Port

BATCH: Final = 64
"""Frames that are read before others get their turn."""
MAX_UNSENT: Final = 256 * 1024
"""Bytes that wait for a peer which is slow."""
LONGEST_FRAME: Final = 65535 + 22
"""What a peer may announce; more is not this protocol."""
RETRY_SECONDS: Final = 1.0
_RECEIVE: Final = 64 * 1024
_LENGTH: Final = struct.Struct(">I")
_MAX_PATH: Final = 107


class TapLink:
    """A TAP device at a port."""

    def __init__(self, device: TapDevice, port: Port, trace: Trace) -> None:
        self._device = device
        self._port = port
        self._trace = trace
        self._write = os.write
        self._open = True
        self._lost = False
        port.attach(self)

    def deliver(self, frames: Sequence[bytes]) -> int:
        """To the host's network."""
        if not self._open:
            return 0
        descriptor, write = self._device.descriptor, self._write
        for number, frame in enumerate(frames):
            try:
                write(descriptor, frame)
            except OSError:  # its queue is full, or somebody has taken it down
                return number
        return len(frames)

    def link_changed(self, up: bool) -> None:
        """The kernel does not ask."""

    async def run(self) -> None:
        """From the host's network into the switch, until the device is taken away."""
        descriptor, size = self._device.descriptor, buffer_size(self._port.mtu)
        read, port = os.read, self._port
        try:
            while True:
                await trio.lowlevel.wait_readable(descriptor)
                frames: list[bytes] = []
                try:
                    for _ in range(BATCH):
                        frames.append(read(descriptor, size))
                except BlockingIOError:
                    pass
                if frames:
                    port.transmit(frames)
        except OSError as error:
            self._lost = True
            port.set_enabled(False)
            _tell(self._trace, "uplink_lost", f"{port.name}: the device {self._device.name} is gone: {error.strerror}")

    def close(self) -> None:
        """A device that was made for this goes."""
        self._open = False
        self._port.detach()
        self._device.close()

    def inspect(self) -> Branch:
        """Which device, and whether somebody has taken it away."""
        return Branch({"tap": self._device.name, "made": self._device.made, "lost": self._lost})


class StreamLink:
    """A Unix socket at a port: one peer at a time, without which the link is down."""

    def __init__(self, port: Port, path: Path, trace: Trace) -> None:
        self._port = port
        self._path = path
        self._trace = trace
        self._peer: socket.socket | None = None
        self._unsent = bytearray()
        self._some_unsent = trio.Event()
        self._listener: socket.socket | None = None
        port.attach(self)
        port.set_enabled(False)

    def deliver(self, frames: Sequence[bytes]) -> int:
        """To the peer; what its socket does not take waits, as far as there is room."""
        if self._peer is None:
            return 0
        unsent = self._unsent
        was = len(unsent)
        if was > MAX_UNSENT:
            return 0
        for frame in frames:
            unsent += _LENGTH.pack(len(frame))
            unsent += frame
        if was == 0:
            self._send()
        if unsent:
            self._some_unsent.set()
        return len(frames)

    def _send(self) -> None:
        assert self._peer is not None
        with contextlib.suppress(OSError):  # full, or gone: whoever receives notices that
            while self._unsent:
                del self._unsent[: self._peer.send(self._unsent)]

    def link_changed(self, up: bool) -> None:
        """Somebody has pulled the cable, or it was us."""

    # --- whom to speak to

    def listen(self) -> None:
        """Make the socket. Raises `SwitchError`."""
        self._check_length("listen")
        path = str(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not _left_over(path):
                    raise
                os.unlink(path)
                listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(1)
        except OSError as error:
            listener.close()
            words = (
                "it is there, or another host's; choose another path"
                if error.errno == errno.EADDRINUSE
                else error.strerror
            )
            raise SwitchError(f"{self._place('listen')} cannot be made: {words}") from None
        self._listener = listener

    async def connect(self) -> None:
        """Find the peer. Raises `SwitchError` if nobody is there."""
        self._check_length("connect")
        try:
            self._take(await self._connected())
        except OSError as error:
            words = f"nobody listens there ({error.strerror}); start the peer first"
            raise SwitchError(f"{self._place('connect')}: {words}") from None

    async def _connected(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            peer.connect(str(self._path))  # of a Unix socket it is done, or refused, at once
        except OSError:
            peer.close()
            raise
        await trio.lowlevel.checkpoint()
        return peer

    def _place(self, key: str) -> str:
        return f'switch "{self._port.name.partition(":")[0]}": {key} = "{self._path}"'

    def _check_length(self, key: str) -> None:
        if len(os.fsencode(self._path)) > _MAX_PATH:
            raise SwitchError(f"{self._place(key)} is longer than the {_MAX_PATH} bytes that a Unix socket may have")

    async def run(self) -> None:
        """Serve one peer after the other."""
        while True:
            if self._peer is None:
                await self._find()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._flush)
                await self._receive()
                nursery.cancel_scope.cancel()
            self._drop_peer()

    async def _find(self) -> None:
        while self._peer is None:
            try:
                if self._listener is not None:
                    await trio.lowlevel.wait_readable(self._listener)
                    try:
                        peer = self._listener.accept()[0]
                    except OSError:
                        await trio.sleep(RETRY_SECONDS)  # of descriptors there is none, and the peer still waits
                        continue
                    self._take(peer)
                else:
                    await trio.sleep(RETRY_SECONDS)
                    self._take(await self._connected())
            except OSError:
                pass

    def _take(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        self._peer = peer
        self._unsent.clear()
        self._port.set_enabled(True)

    def _drop_peer(self) -> None:
        peer, self._peer = self._peer, None
        self._port.set_enabled(False)
        if peer is not None:
            peer.close()

    async def _receive(self) -> None:
        """From the peer into the switch, until it goes or says what nobody says."""
        peer, port = self._peer, self._port
        assert peer is not None
        held = bytearray()
        while True:
            await trio.lowlevel.wait_readable(peer)
            try:
                data = peer.recv(_RECEIVE)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            held += data
            frames: list[bytes] = []
            position, end = 0, len(held)
            while position + 4 <= end:
                (untrusted_length,) = _LENGTH.unpack_from(held, position)
                if untrusted_length > LONGEST_FRAME:
                    words = f"a frame of {untrusted_length} bytes; the peer does not speak as QEMU's -netdev stream"
                    _tell(self._trace, "uplink_garbled", f"{port.name}: {words}")
                    return
                if position + 4 + untrusted_length > end:
                    break
                frames.append(bytes(held[position + 4 : position + 4 + untrusted_length]))
                position += 4 + untrusted_length
            del held[:position]
            if frames:
                port.transmit(frames)

    async def _flush(self) -> None:
        while True:
            await self._some_unsent.wait()
            while self._unsent and self._peer is not None:
                await trio.lowlevel.wait_writable(self._peer)
                self._send()
                await trio.lowlevel.checkpoint()
            self._some_unsent = trio.Event()

    def close(self) -> None:
        """The socket goes, and its file."""
        self._drop_peer()
        self._port.detach()
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def inspect(self) -> Branch:
        """Where, and whether somebody is there."""
        way = "connect" if self._listener is None else "listen"
        return Branch({way: str(self._path), "peer": self._peer is not None, "unsent_bytes": len(self._unsent)})


def _left_over(path: str) -> bool:
    """A socket that nobody listens to; no other file, which connecting to looks the same."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _tell(trace: Trace, event: str, words: str) -> None:
    if trace.on:
        trace.emit(Layer.STATE, event, 0, level=Level.WARNING, words=words)
