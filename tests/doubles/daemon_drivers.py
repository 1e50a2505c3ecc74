"""What the kernel of a Linux guest does between its channels and its daemons, for model guests. Child side.

After the behaviour of Linux 6.1 hv_kvp.c, hv_snapshot.c and hv_fcopy.c: texts are UTF-16 on the channel and UTF-8 for
the daemon, and the daemon's word is the status of the answer.
"""

from __future__ import annotations

import struct

import trio

from vsp_vsc.integration.file_copy import protocol as copying
from vsp_vsc.integration.file_copy.protocol import FileCopyHeader, FileCopyOperation, StartFileCopy
from vsp_vsc.integration.kvp.protocol import (
    KvpHeader,
    KvpIndex,
    KvpItem,
    KvpKey,
    Operation,
    decode_text,
    decode_value,
    encode_item,
    encode_request,
)
from vsp_vsc.integration.protocol import Version
from vsp_vsc.integration.responder import Reply
from vsp_vsc.integration.vss.protocol import NO_AUTO_RECOVERY, VssFlags, VssHeader, VssOperation

KVP_REGISTER1, VSS_REGISTER1, FCOPY_VERSION = 100, 129, 1
STRING = 1
DEVICE_MESSAGE_SIZE = 7432
"""Of each message at /dev/vmbus/hv_kvp: Linux's struct hv_kvp_msg, with room for addresses."""


class KvpByDaemon:
    """hv_kvp.c."""

    versions = (Version(3, 0), Version(4, 0))

    def __init__(self, device: trio.socket.SocketType) -> None:
        self._device = device

    async def register(self) -> None:
        """The daemon says that it is there, and hears our version."""
        hello = await self._device.recv(DEVICE_MESSAGE_SIZE)
        assert (len(hello), hello[0]) == (DEVICE_MESSAGE_SIZE, KVP_REGISTER1)
        await self._device.send((KvpHeader(KVP_REGISTER1, 0).encode() + b"3.1").ljust(DEVICE_MESSAGE_SIZE, b"\0"))

    async def answer(self, untrusted: bytes, version: Version) -> Reply:
        header = KvpHeader.decode(untrusted)
        body, item = self._question(header.operation, untrusted[KvpHeader.SIZE :])
        await self._device.send((header.encode() + body).ljust(DEVICE_MESSAGE_SIZE, b"\0"))
        answer = await self._device.recv(DEVICE_MESSAGE_SIZE)
        (error,) = struct.unpack_from("<I", answer)
        if error:
            return Reply(untrusted, error)
        if item is None:
            return Reply(untrusted)
        told = KvpItem.decode(answer, KvpHeader.SIZE + item)
        key, value = (raw.split(b"\0", 1)[0].decode() for raw in (told.key, told.value))
        index = answer[KvpHeader.SIZE : KvpHeader.SIZE + item]
        return Reply(encode_request(Operation(header.operation), header.pool, index + encode_item(key, value)))

    def _question(self, operation: int, untrusted: bytes) -> tuple[bytes, int | None]:
        """For the daemon; and where in its answer the item is, if there is one."""
        match operation:
            case Operation.GET | Operation.SET:
                item = KvpItem.decode(untrusted)
                key = decode_text(item.key, item.key_size).encode() + b"\0"
                if operation == Operation.GET:
                    return KvpItem(STRING, len(key), 0, key).encode(), 0
                value = str(decode_value(item.value_type, item.value, item.value_size)).encode() + b"\0"
                return KvpItem(STRING, len(key), len(value), key, value).encode(), None
            case Operation.DELETE:
                named = KvpKey.decode(untrusted)
                key = decode_text(named.key, named.key_size).encode() + b"\0"
                return KvpKey(len(key), key).encode(), None
            case Operation.ENUMERATE:
                return KvpIndex.decode(untrusted).encode(), KvpIndex.SIZE
            case _:
                # Setting addresses would change the machine that the daemon runs on.
                raise AssertionError(f"operation {operation} is not for a daemon that is not in a guest of its own")


class VssByDaemon:
    """hv_snapshot.c."""

    versions = (Version(5, 0),)

    def __init__(self, device: trio.socket.SocketType) -> None:
        self._device = device

    async def register(self) -> None:
        """As above; the version is a number here."""
        hello = await self._device.recv(64)
        assert (len(hello), hello[0]) == (12, VSS_REGISTER1)
        await self._device.send(struct.pack("<I", 1))

    async def answer(self, untrusted: bytes, version: Version) -> Reply:
        operation = VssHeader.decode(untrusted).operation
        if operation not in (VssOperation.FREEZE, VssOperation.THAW, VssOperation.HOT_BACKUP):
            return Reply(untrusted)
        await self._device.send(VssHeader(operation).encode() + bytes(4))
        (error,) = struct.unpack_from("<I", await self._device.recv(64))
        if operation == VssOperation.HOT_BACKUP:
            untrusted = VssHeader(operation).encode() + VssFlags(NO_AUTO_RECOVERY).encode()
        return Reply(untrusted, error)


class FileCopyByDaemon:
    """hv_fcopy.c."""

    versions = (Version(1, 1),)

    def __init__(self, device: trio.socket.SocketType) -> None:
        self._device = device

    async def register(self) -> None:
        """The daemon tells its version first."""
        assert await self._device.recv(64) == struct.pack("<I", FCOPY_VERSION)
        await self._device.send(struct.pack("<I", FCOPY_VERSION))

    async def answer(self, untrusted: bytes, version: Version) -> Reply:
        header = FileCopyHeader.decode(untrusted)
        if header.operation == FileCopyOperation.START_FILE_COPY:
            start = StartFileCopy.decode(untrusted, FileCopyHeader.SIZE)
            names = (copying.decode_name(name).encode()[:259] for name in (start.file_name, start.path_name))
            message = header.encode() + StartFileCopy(*names, start.copy_flags, start.file_size).encode()
        else:
            message = untrusted
        await self._device.send(message)
        (error,) = struct.unpack_from("<I", await self._device.recv(64))
        return Reply(untrusted, error)
