"""Traffic of well-behaved guests and hosts, at random: every message, packet and device there is a layout of.

It keeps to the protocol (a channel is offered before it is opened, an answer follows its question), so that whoever
reads a capture of it has nothing to complain of. What the numbers are does not matter.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from hypervisor.wire import Guid, Wire
from partitions.recording.link import DEVICES
from tests.doubles import captures as c
from tests.doubles.captures import TO_CHILD, TO_ROOT, Unit
from vmbus.gpadl import GpadlRange, encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.versions import IMPLEMENTED, Version
from vsp_vsc.integration import protocol as ic
from vsp_vsc.integration.file_copy.protocol import FileCopyHeader, StartFileCopy, WriteToFile
from vsp_vsc.integration.heartbeat import protocol as heartbeat
from vsp_vsc.integration.kvp import protocol as kvp
from vsp_vsc.integration.shutdown import protocol as shutdown
from vsp_vsc.integration.time_sync import protocol as time_sync
from vsp_vsc.integration.vss.protocol import VssFlags, VssHeader
from vsp_vsc.keyboard import protocol as keyboard
from vsp_vsc.memory import protocol as d
from vsp_vsc.mouse import protocol as mouse
from vsp_vsc.network import protocol as n
from vsp_vsc.storage import protocol as s
from vsp_vsc.storage.scsi.cdb import CDB_LENGTH, Opcode
from vsp_vsc.storage.scsi.sense import Reason, fixed_sense
from vsp_vsc.video import protocol as v

_INTERFACES = {device.code: device.interface for device in DEVICES if device.interface is not None}
_IC = {c.HEARTBEAT: 1, c.KVP: 2, c.SHUTDOWN: 3, c.TIME_SYNC: 4, c.VSS: 5, c.FILE_COPY: 7}


class Session:
    """One guest from its contact to its unload."""

    def __init__(self, chance: random.Random, partition: int, version: int) -> None:
        self.chance = chance
        self.partition = partition
        self.version = version
        self.connected = 0
        self.devices: dict[int, int] = {}
        self.devices_asked: dict[int, list[tuple[int, int]]] = {}
        """Storage requests that are open: transaction ID and operation."""

    # ---------------------------------------------------------------------------------------------------- messages

    def _say(self, direction: int, data: bytes, channel: int = 0) -> Unit:
        device = self.devices.get(channel, 0)
        return Unit(c.MESSAGE, direction, data, device, channel, self.partition, self.connected)

    def _fill(self, layout: type[Wire], **known: Any) -> bytes:
        """A structure of random numbers; named fields are as given, reserved ones zero."""
        values = dict(known)
        for field in layout.FIELDS:
            if field.name in values or field.name in ("message_type", "reserved", "padding"):
                continue
            if field.is_guid:
                values[field.name] = Guid(self.chance.randbytes(16))
            elif field.code.endswith("s"):
                values[field.name] = self.chance.randbytes(field.size)
            else:
                bits = 8 * field.size - (field.code in "bhiq")
                values[field.name] = self.chance.getrandbits(self.chance.choice((1, bits)))
        return layout(**values).encode()

    def begin(self) -> Iterator[Unit]:
        """Contact, offers, open channels."""
        granted = 0xFF if self.version >= Version.V6_0 else 0
        if self.version >= Version.V6_0:
            yield self._say(TO_ROOT, m.initiate_contact(0x70000, client_id=Guid(bytes(16))).encode())
            yield self._say(TO_CHILD, m.VersionResponse(supported=0).encode())
            known = {"version": self.version, "features": granted, "target_sint": 2, "target_vtl": 0}
            yield self._say(TO_ROOT, self._fill(m.InitiateContact2, **known))
            answer = m.VersionResponse3 if self.chance.random() < 0.5 else m.VersionResponse2
            yield self._say(TO_CHILD, self._fill(answer, supported=1, connection_state=0, features=granted))
        else:
            layout = m.InitiateContact if self.version >= Version.V5_0 else m.InitiateContactLegacy
            yield self._say(
                TO_ROOT,
                self._fill(layout, version=self.version, **({"features": 0} if layout is m.InitiateContact else {})),
            )
            yield self._say(TO_CHILD, self._fill(m.VersionResponse, supported=1, connection_state=0))
        self.connected = self.version
        yield self._say(TO_ROOT, m.RequestOffers().encode())
        for channel, device in enumerate(self.chance.sample(sorted(_INTERFACES), len(_INTERFACES)), 1):
            offer = self._fill(
                m.OfferChannel,
                interface=_INTERFACES[device],
                flags=0x11,
                channel_id=channel,
                subchannel_index=0,
            )
            yield self._say(TO_CHILD, offer, channel)
            self.devices[channel] = device
        yield self._say(TO_CHILD, m.AllOffersDelivered().encode())
        for channel in self.devices:
            yield from self.open(channel)

    def gpadl(self, channel: int, gpadl_id: int) -> Iterator[Unit]:
        """One that is made."""
        start = self.chance.getrandbits(36)
        if self.chance.random() < 0.7:
            ranges = [page_range(range(start, start + self.chance.randint(2, 90)))]
        else:
            # All in the header: whoever sees a body alone cannot know what in it is a range and what a page.
            counts = [self.chance.randint(1, 5) for _ in range(self.chance.randint(2, 4))]
            ranges = [GpadlRange(4096 * count - 100, 50, tuple(range(start, start + count))) for count in counts]
        for data in encode_gpadl(channel, gpadl_id, ranges):
            yield self._say(TO_ROOT, data, channel)
        yield self._say(TO_CHILD, m.GpadlCreated(channel_id=channel, gpadl_id=gpadl_id).encode(), channel)

    def open(self, channel: int) -> Iterator[Unit]:
        """GPADL, OPEN_CHANNEL, result."""
        gpadl_id = 0xE1E10 + channel
        yield from self.gpadl(channel, gpadl_id)
        known = {"channel_id": channel, "gpadl_id": gpadl_id, "open_id": channel, "downstream_page": 1}
        if self.version >= Version.V6_0:
            yield self._say(
                TO_ROOT, self._fill(m.OpenChannel2, open_flags=self.chance.getrandbits(1), **known), channel
            )
        else:
            yield self._say(TO_ROOT, self._fill(m.OpenChannel, **known), channel)
        yield self._say(TO_CHILD, m.OpenChannelResult(channel_id=channel, open_id=channel).encode(), channel)

    def change(self) -> Iterator[Unit]:
        """Messages that come in the middle of things, with their answers."""
        channel = self.chance.choice(sorted(self.devices))
        pairs: list[tuple[int, type[m.Message], type[m.Message] | None]] = [
            (Version.V4_0, m.CloseReservedChannel, m.CloseReservedResponse),
            (Version.V4_1, m.TlConnectRequest, m.TlConnectResult),
            (Version.V5_2, m.TlConnectRequest2, m.TlConnectResult),
            (Version.V5_3, m.ModifyChannel, m.ModifyChannelResponse),
            (Version.V6_0, m.ModifyConnection, m.ModifyConnectionResponse),
            (Version.V6_0, m.Pause, m.PauseResponse),
            (Version.V6_0, m.Resume, None),
        ]
        least, ask, answer = self.chance.choice(pairs)
        if self.version < least:
            yield from self.gpadl(channel, 0x1000 + self.chance.getrandbits(8))
            return
        known: dict[str, Any] = {"channel_id": channel}
        service, endpoint = Guid(self.chance.randbytes(16)), Guid(self.chance.randbytes(16))
        for layout, direction in ((ask, TO_ROOT), (answer, TO_CHILD)):
            if layout is not None:
                names = {field.name for field in layout.FIELDS}
                fixed = {**known, "endpoint": endpoint, "service": service, "status": 0, "connection_state": 0}
                yield self._say(direction, self._fill(layout, **{k: x for k, x in fixed.items() if k in names}))

    def end(self) -> Iterator[Unit]:
        """Channels go, by the host's wish or the guest's, and then the connection."""
        for channel in sorted(self.devices):
            gpadl_id = 0xE1E10 + channel
            if self.chance.random() < 0.3:
                yield self._say(TO_CHILD, m.RescindChannelOffer(channel_id=channel).encode(), channel)
            yield self._say(TO_ROOT, m.CloseChannel(channel_id=channel).encode(), channel)
            yield self._say(TO_ROOT, m.GpadlTeardown(channel_id=channel, gpadl_id=gpadl_id).encode(), channel)
            yield self._say(TO_CHILD, m.GpadlTorndown(gpadl_id=gpadl_id).encode(), channel)
            yield self._say(TO_ROOT, m.RelIdReleased(channel_id=channel).encode(), channel)
        if self.version >= Version.V4_0:
            known = {"channel_id": 9, "gpadl_id": 0x77, "downstream_page": 1}
            yield from self.gpadl(9, 0x77)
            yield self._say(TO_ROOT, self._fill(m.OpenReservedChannel, **known))
            yield self._say(TO_CHILD, m.OpenChannelResult(channel_id=9).encode())
        yield self._say(TO_ROOT, m.Unload().encode())
        if self.version > Version.V0_13:
            yield self._say(TO_CHILD, m.UnloadComplete().encode())

    # ----------------------------------------------------------------------------------------------------- packets

    def traffic(self) -> Iterator[Unit]:
        """A packet or two on some channel."""
        channels = sorted(self.devices)
        weights = [12 if self.devices[channel] == c.STORAGE else 1 for channel in channels]
        [channel] = self.chance.choices(channels, weights)
        device = self.devices[channel]
        makers: dict[int, Callable[[int, int], Iterator[Unit]]] = {
            c.STORAGE: self._storage,
            13: self._storage,
            c.NETWORK: self._network,
            c.KEYBOARD: self._keyboard,
            c.MOUSE: self._mouse,
            c.VIDEO: self._video,
            c.MEMORY: self._memory,
        }
        yield from makers.get(device, self._integration)(channel, device)

    def _packet(self, direction: int, kind: int, payload: bytes, channel: int, **more: Any) -> Unit:
        more = {"transaction": self.chance.getrandbits(64), **more}
        return c.packet(
            direction,
            kind,
            payload,
            device=self.devices[channel],
            channel=channel,
            partition=self.partition,
            version=self.version,
            **more,
        )

    def _storage(self, channel: int, device: int) -> Iterator[Unit]:
        asked = self.devices_asked.setdefault(channel, [])
        if asked and (len(asked) > 6 or self.chance.random() < 0.5):
            yield self._storage_answer(channel, *asked.pop(self.chance.randrange(len(asked))))
            return
        operation = s.Operation.EXECUTE_SRB
        if self.chance.random() < 0.2:
            operation = self.chance.choice([o for o in s.Operation if o not in (1, 2, 3, 11)])
        # IDs that are under way are not used again here, since answers come in any order.
        transaction = self.chance.choice([number for number in range(1, 20) if number not in {t for t, _ in asked}])
        asked.append((transaction, operation))
        header = s.PacketHeader(operation, flags=1).encode()
        extended = b""
        if operation == s.Operation.EXECUTE_SRB:
            opcode = int(self.chance.choice(list(Opcode)))
            length = CDB_LENGTH[opcode]
            cdb = bytes([opcode]) + self.chance.randbytes(length - 1)
            size = self.chance.choice((0, 512, 4096, 65536, 262144))
            layout = s.SrbWin7 if self.version < Version.V2_4 else s.Srb
            known = {"length": layout.SIZE, "srb_status": 0, "scsi_status": 0, "cdb_length": length, "sense_length": 18}
            known |= {"data_transfer_length": size, "data_in": self.chance.randrange(3), "cdb_or_sense": cdb}
            body = self._fill(layout, **known)
            if size:
                first, offset = self.chance.getrandbits(36), self.chance.choice((0, 0, 512))
                count = (offset + size + 4095) // 4096
                extended = c.pages(*range(first, first + count), size=size, offset=offset)
        elif operation == s.Operation.QUERY_PROTOCOL_VERSION:
            body = s.ProtocolVersion(self.chance.choice(s.VERSIONS)).encode()
        elif operation == s.Operation.CREATE_SUB_CHANNELS:
            body = s.SubChannelCount(self.chance.randrange(17)).encode()
        else:
            body = b""
        kind = c.GPA_DIRECT if extended else c.INBAND
        payload = (header + body).ljust(s.PACKET_SIZE if self.version >= Version.V2_4 else 48, b"\0")
        yield self._packet(TO_ROOT, kind, payload, channel, transaction=transaction, flags=1, extended=extended)

    def _storage_answer(self, channel: int, transaction: int, operation: int) -> Unit:
        header = s.PacketHeader(s.Operation.COMPLETE_IO).encode()
        if operation == s.Operation.EXECUTE_SRB:
            layout = s.SrbWin7 if self.version < Version.V2_4 else s.Srb
            known: dict[str, Any] = {"length": layout.SIZE, "srb_status": 1, "scsi_status": 0, "cdb_length": 16}
            known["sense_length"] = 18
            if self.chance.random() < 0.3:
                known |= {"srb_status": 0x84, "scsi_status": 2}
                known["cdb_or_sense"] = fixed_sense(self.chance.choice(list(Reason)), information=5)
            body = self._fill(layout, **known)
        elif operation == s.Operation.QUERY_PROPERTIES:
            body = self._fill(s.ChannelProperties, flags=1, reserved2=0, max_transfer_bytes=s.MAX_TRANSFER)
        else:
            body = b""
        payload = (header + body).ljust(s.PACKET_SIZE if self.version >= Version.V2_4 else 48, b"\0")
        return self._packet(TO_CHILD, c.COMPLETION, payload, channel, transaction=transaction)

    def _network(self, channel: int, device: int) -> Iterator[Unit]:
        kinds: list[tuple[int, int, type[Wire] | None, dict[str, Any]]] = [
            (TO_ROOT, n.NvspType.INIT, n.NvspInit, {}),
            (TO_CHILD, n.NvspType.INIT_COMPLETE, n.NvspInitComplete, {"status": 1}),
            (TO_ROOT, n.NvspType.SEND_NDIS_VERSION, n.NdisVersion, {}),
            (TO_ROOT, n.NvspType.SEND_RECEIVE_BUFFER, n.SendBuffer, {}),
            (
                TO_CHILD,
                n.NvspType.SEND_RECEIVE_BUFFER_COMPLETE,
                n.ReceiveBufferComplete,
                {"status": 1, "section_count": 1},
            ),
            (TO_ROOT, n.NvspType.REVOKE_RECEIVE_BUFFER, n.RevokeBuffer, {}),
            (TO_ROOT, n.NvspType.SEND_SEND_BUFFER, n.SendBuffer, {}),
            (TO_CHILD, n.NvspType.SEND_SEND_BUFFER_COMPLETE, n.SendBufferComplete, {"status": 1}),
            (TO_ROOT, n.NvspType.SEND_RNDIS_PACKET, n.SendRndisPacket, {}),
            (TO_CHILD, n.NvspType.SEND_RNDIS_PACKET_COMPLETE, n.RndisPacketComplete, {"status": 1}),
            (TO_ROOT, n.NvspType.SEND_NDIS_CONFIG, n.NdisConfig, {}),
            (TO_CHILD, n.NvspType.SEND_VF_ASSOCIATION, n.VfAssociation, {}),
            (TO_ROOT, n.NvspType.SWITCH_DATA_PATH, n.SwitchDataPath, {}),
            (TO_ROOT, n.NvspType.SUBCHANNEL, n.SubchannelRequest, {}),
            (TO_CHILD, n.NvspType.SEND_INDIRECTION_TABLE, n.IndirectionTable, {"count": 4, "table_offset": 12}),
        ]
        if self.chance.random() < 0.3:
            yield from self._network_data(channel)
            return
        way, kind, layout, known = self.chance.choice(kinds)
        assert layout is not None
        payload = struct.pack("<I", kind) + self._fill(layout, **known)
        if layout in (n.ReceiveBufferComplete, n.IndirectionTable):
            payload += self.chance.randbytes(16)
        yield self._packet(way, c.INBAND, payload.ljust(40, b"\0"), channel)

    def _network_data(self, channel: int) -> Iterator[Unit]:
        transaction = self.chance.getrandbits(64)
        payload = struct.pack("<IIII", n.NvspType.SEND_RNDIS_PACKET, 0, 0xFFFFFFFF, 0).ljust(40, b"\0")
        done = struct.pack("<II", n.NvspType.SEND_RNDIS_PACKET_COMPLETE, 1)
        more = {"transaction": transaction, "flags": 1}
        if self.chance.random() < 0.5:
            spans = [(1514, 1728 * index) for index in range(self.chance.randint(1, 5))]
            extended = struct.pack("<HBBI", 0xCAFE, 1, 0, len(spans)) + b"".join(struct.pack("<II", *x) for x in spans)
            yield self._packet(TO_CHILD, c.TRANSFER_PAGES, payload, channel, extended=extended, **more)
            yield self._packet(TO_ROOT, c.COMPLETION, done, channel, transaction=transaction)
        else:
            extended = struct.pack("<II", 0, 2) + c.pages(5, size=100, offset=20)[8:] + c.pages(9, 11, size=6000)[8:]
            yield self._packet(TO_ROOT, c.GPA_DIRECT, payload, channel, extended=extended, **more)
            yield self._packet(TO_CHILD, c.COMPLETION, done, channel, transaction=transaction)

    def _keyboard(self, channel: int, device: int) -> Iterator[Unit]:
        way, kind, layout, known = self.chance.choice(
            [
                (TO_ROOT, 1, keyboard.KeyboardRequest, {}),
                (TO_CHILD, 2, keyboard.KeyboardResponse, {}),
                (TO_CHILD, 3, keyboard.Keystroke, {"flags": self.chance.getrandbits(4)}),
                (TO_ROOT, 4, keyboard.LedIndicators, {}),
            ]
        )
        yield self._packet(way, c.INBAND, struct.pack("<I", kind) + self._fill(layout, **known), channel)

    def _piped(self, direction: int, data: bytes, channel: int) -> Unit:
        return self._packet(direction, c.INBAND, struct.pack("<II", 1, len(data)) + data, channel)

    def _mouse(self, channel: int, device: int) -> Iterator[Unit]:
        way, kind, layout = self.chance.choice(
            [
                (TO_ROOT, 0, mouse.MouseRequest),
                (TO_CHILD, 1, mouse.MouseResponse),
                (TO_CHILD, 2, mouse.MouseInfo),
                (TO_CHILD, 4, mouse.MouseReport),
            ]
        )
        body = self._fill(layout)
        yield self._piped(way, struct.pack("<II", kind, len(body)) + body, channel)

    def _video(self, channel: int, device: int) -> Iterator[Unit]:
        root, child = TO_ROOT, TO_CHILD
        kinds: list[tuple[int, int, type[Wire], dict[str, Any]]] = [
            (root, 1, v.VideoVersionRequest, {}),
            (child, 2, v.VideoVersionResponse, {}),
            (root, 3, v.VramLocation, {}),
            (child, 4, v.VideoAck, {}),
            (root, 5, v.SituationUpdate, {}),
            (child, 6, v.VideoAck, {}),
            (root, 7, v.PointerPosition, {}),
            (root, 8, v.PointerShape, {}),
            (child, 9, v.FeatureChange, {}),
            (root, 10, v.Dirt, {"count": 2}),
            (root, 13, v.ResolutionRequest, {}),
            (child, 14, v.ResolutionResponse, {"count": 8}),
        ]
        way, kind, layout, known = self.chance.choice(kinds)
        body = self._fill(layout, **known)
        if known:
            body += self.chance.randbytes(32)
        yield self._piped(way, struct.pack("<II", kind, 8 + len(body)) + body, channel)

    def _memory(self, channel: int, device: int) -> Iterator[Unit]:
        root, child = TO_ROOT, TO_CHILD
        kinds: list[tuple[int, int, type[Wire], dict[str, Any], int]] = [
            (root, 1, d.MemoryVersionRequest, {}, 0),
            (child, 2, d.MemoryAccepted, {}, 0),
            (root, 3, d.MemoryCapabilities, {}, 0),
            (child, 4, d.MemoryAccepted, {}, 0),
            (root, 5, d.MemoryStatus, {}, 0),
            (child, 6, d.BalloonRequest, {}, 0),
            (root, 7, d.BalloonResponse, {"counts": 7}, 24),
            (child, 8, d.UnballoonRequest, {"range_count": 2}, 16),
            (child, 10, d.PageRange, {}, 0),
            (root, 11, d.HotAddResponse, {}, 0),
        ]
        way, kind, layout, known, more = self.chance.choice(kinds)
        body = self._fill(layout, **known) + self.chance.randbytes(more)
        head = struct.pack("<HHI", kind, 8 + len(body), self.chance.getrandbits(32))
        yield self._packet(way, c.INBAND, head + body, channel)

    # -------------------------------------------------------------------------------------- integration components

    def _integration(self, channel: int, device: int) -> Iterator[Unit]:
        transaction = self.chance.getrandbits(8)
        framework, version = ic.Version(3, 0), ic.Version(4 if device == c.TIME_SYNC else 3, 0)
        status = 0
        if self.chance.random() < 0.1:
            component, offered = 0, [ic.Version(1, 0), version]
            question = ic.encode_negotiate(ic.FRAMEWORK_VERSIONS, offered)
            answer = ic.encode_negotiate([framework], [version])
        else:
            component = _IC[device]
            question, answer, status = self._question(device)
        for direction, body, flags, result in (
            (TO_CHILD, question, ic.REQUEST, 0),
            (TO_ROOT, answer, ic.RESPONSE, status),
        ):
            more = {"framework": framework, "version": version, "transaction_id": transaction}
            data = ic.encode_message(component, body, flags=flags, status=result, **more)
            yield self._piped(direction, data, channel)

    def _question(self, device: int) -> tuple[bytes, bytes, int]:
        """Body of a question and its answer, and the answer's status."""
        chance = self.chance
        match device:
            case c.HEARTBEAT:
                beat = self._fill(heartbeat.Beat)
                return beat, beat, 0
            case c.SHUTDOWN:
                text = shutdown.encode_text("going down: 中文".ljust(chance.randrange(40)))
                body = shutdown.ShutdownRequest(
                    timeout_seconds=chance.getrandbits(16), flags=chance.getrandbits(3), text=text
                )
                return body.encode(), body.encode(), 0
            case c.TIME_SYNC:
                moment = 0x01D0000000000000 + chance.getrandbits(52)
                body = self._fill(time_sync.TimeReference, parent_time=moment, flags=chance.randrange(3))
                return body, body, 0
            case c.KVP:
                return self._kvp()
            case c.VSS:
                operation = chance.choice((2, 3, 5, 6))
                body = VssHeader(operation).encode() + (self._fill(VssFlags) if operation < 4 else b"")
                return body, body, 0
            case _:
                start = FileCopyHeader(0).encode() + self._fill(
                    StartFileCopy, file_name="a.txt".encode("utf-16-le"), path_name="/tmp".encode("utf-16-le")
                )
                data = chance.randbytes(40)
                write = FileCopyHeader(1).encode() + self._fill(WriteToFile, size=len(data)) + data
                body = chance.choice((start, write, FileCopyHeader(2).encode()))
                return body, body, 0

    def _kvp(self) -> tuple[bytes, bytes, int]:
        chance = self.chance
        pool, key = chance.randrange(5), "Key" + "é" * chance.randrange(9)
        value = chance.choice(("some text", chance.getrandbits(31), chance.getrandbits(31) << 32 | 1 << 63))
        item = kvp.encode_item(key, value)
        match chance.randrange(4):
            case 0:
                asked = kvp.encode_request(kvp.Operation.GET, pool, kvp.encode_item(key))
                return asked, kvp.encode_request(kvp.Operation.GET, pool, item), 0
            case 1:
                asked = kvp.encode_request(kvp.Operation.SET, pool, item)
                return asked, asked, 0
            case 2:
                asked = kvp.encode_request(kvp.Operation.DELETE, pool, kvp.encode_key(key))
                return asked, asked, 0
            case _:
                index = struct.pack("<I", chance.randrange(30))
                asked = kvp.encode_request(kvp.Operation.ENUMERATE, pool, index)
                if chance.random() < 0.3:
                    return asked, asked, int(ic.Status.NO_MORE_ITEMS)
                return asked, kvp.encode_request(kvp.Operation.ENUMERATE, pool, index + item), 0


def bus_traffic(count: int, seed: int = 0) -> Iterator[Unit]:
    """`count` units or a few more: guests of all versions, one after the other, until there are enough."""
    chance = random.Random(seed)
    made = 0
    partition = 2
    while made < count:
        for version in IMPLEMENTED:
            session = Session(chance, partition, version)
            partition += 1
            for unit in _life(session, chance, max(0, count // len(IMPLEMENTED) - 180)):
                made += 1
                yield unit
            if made >= count:
                return


def _life(session: Session, chance: random.Random, packets: int) -> Iterator[Unit]:
    yield from session.begin()
    sent = 0
    while sent < packets:
        for unit in session.change() if chance.random() < 0.03 else session.traffic():
            sent += 1
            yield unit
    yield from session.end()
