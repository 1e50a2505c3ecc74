"""Decoders of a network adapter's bytes, and of Hyper-V sockets."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable

import attrs

from hypervisor.memory import GuestMemory
from hypervisor.wire import Guid
from partitions.root import sockets
from tests.doubles.network_vsp import FakePort
from tests.hostile.decoder_rows import NONE, Decoder, Rows, stateless
from tests.hostile.test_network import rss
from tests.hostile.test_network_bytes import session
from vmbus.client.sockets import ClientSockets
from vmbus.client.state import OfferedDevice
from vmbus.protocol import hvsocket
from vmbus.ring import Packet
from vmbus.server.opened import ChannelGpadls, HoldCounts
from vsp_vsc.network import control, ndis, oids, rndis, saved
from vsp_vsc.network import protocol as nvsp
from vsp_vsc.network.adapter import AdapterState, Counters
from vsp_vsc.network.negotiation import Negotiation
from vsp_vsc.network.rndis import Oid, RndisType


def adapter() -> AdapterState:
    """Of a guest that has come to terms, and may have four channels."""
    state = AdapterState(FakePort(), "nic", 4, Counters())
    state.version, state.ndis = nvsp.VERSIONS[0], (6, 30)
    return state


def nvsp_message(kind: int, body: bytes) -> bytes:
    return (struct.pack("<I", kind) + body).ljust(40, b"\0")


OPENING = (
    (1, nvsp.NvspInit(0x60001, 0x60001).encode()),
    (125, nvsp.NdisConfig(1514, 0, 8).encode()),
    (100, nvsp.NdisVersion(6, 30).encode()),
    (101, nvsp.SendBuffer(0, 7).encode()),
    (104, nvsp.SendBuffer(64, 0).encode()),
    (103, nvsp.RevokeBuffer(7).encode()),
    (106, nvsp.RevokeBuffer(0).encode()),
)
"""What a driver says, in the order in which it says it; its buffers are refused: it has lent no memory."""


def negotiate(data: bytes, number: int) -> object:
    """After any beginning."""
    state = AdapterState(FakePort(), "nic", 4, Counters())
    negotiation = Negotiation(state, GuestMemory(), ChannelGpadls(5, lambda *_: None, HoldCounts(lambda *_: None)))
    for kind, body in OPENING[: number % 6]:
        negotiation.control(kind, nvsp_message(kind, body))
    kinds = [int(kind) for kind in nvsp.NvspType]
    return negotiation.control(
        int.from_bytes(data[:4], "little") if number & 1 << 20 else kinds[number >> 8 & 15], data
    )


def control_message(data: bytes, number: int) -> object:
    """What is let pass is answered, by a message that is as long as it says."""
    if not control.check(data):
        return None
    answer, words = control.answer(adapter(), data)
    assert struct.unpack_from("<I", answer, 4)[0] == len(answer)
    return words


def words_of(state: AdapterState) -> dict[str, object]:
    return attrs.asdict(state, filter=lambda field, _: field.name != "port")


def setting(oid: int) -> Callable[[bytes, int], object]:
    """Of one object; where it is refused nothing has changed."""

    def take(data: bytes, number: int) -> None:
        state = adapter()
        before = words_of(state)
        try:
            oids.set_oid(state, oid, data)
        except oids.Refused:
            assert words_of(state) == before
            raise

    return take


def any_setting(data: bytes, number: int) -> object:
    settable = list(oids._SETTERS)
    return setting(number if number & 1 << 20 else settable[number % len(settable)])(data, number)


def restore(data: bytes, number: int) -> object:
    """A record that is taken can be gone on with."""
    restored = saved.decode_session(data)
    if restored.saved.adapter is not None:
        state = adapter()
        restored.apply(state)
        if state.spreading is not None:
            state.spreading.channel_of(bytes(64))
        with contextlib.suppress(oids.Refused):
            oids.supported(state)
    return restored


def a_record() -> bytes:
    """Of a session that is ready, with a table and an address of its own."""
    one, _, state = session()
    oids.set_oid(state, Oid.GEN_RECEIVE_SCALE_PARAMETERS, rss())
    oids.set_oid(state, Oid.ETHERNET_MULTICAST_LIST, bytes.fromhex("01005e000001"))
    return one.save([3], [Packet(6, 0, 5, 0, bytes(16))], link_told=True)


def rndis_message(kind: RndisType, body: bytes) -> bytes:
    return control.encode(kind, body)


def parameter(name: str, value: str | int) -> bytes:
    """A setting by name."""
    raw_name = name.encode("utf-16-le")
    raw, kind = (
        (value.to_bytes(4, "little"), ndis.ParameterType.INTEGER)
        if isinstance(value, int)
        else (value.encode("utf-16-le"), ndis.ParameterType.STRING)
    )
    start = ndis.ConfigParameter.SIZE
    head = ndis.ConfigParameter(start, len(raw_name), kind, start + len(raw_name), len(raw))
    return head.encode() + raw_name + raw


PARAMETERS = (
    parameter("NetworkAddress", "00-15-5D-00-00-07"),
    parameter("*TCPChecksumOffloadIPv4", "3"),
    parameter("*LsoV2IPv6", "0"),
    parameter("*LsoV2IPv6", "off"),
    parameter("*LsoV2IPv6", ""),
    parameter(rndis.SEVERAL_PACKETS_PARAMETER, 1),
)
RNDIS_MESSAGES = (
    rndis_message(RndisType.INITIALIZE, rndis.RndisInitialize(1, 1, 0, 0x4000).encode()),
    rndis_message(RndisType.HALT, rndis.RndisRequest(2).encode()),
    rndis_message(RndisType.RESET, rndis.RndisReset().encode()),
    rndis_message(RndisType.KEEPALIVE, rndis.RndisRequest(3).encode()),
    *(rndis_message(RndisType.QUERY, rndis.RndisQuery(4, oid).encode()) for oid in Oid),
    rndis_message(RndisType.SET, rndis.RndisQuery(5, Oid.GEN_CURRENT_PACKET_FILTER, 4, 20).encode() + b"\x0d\0\0\0"),
    *(
        rndis_message(RndisType.SET, rndis.RndisQuery(6, Oid.GEN_RNDIS_CONFIG_PARAMETER, len(one), 20).encode() + one)
        for one in PARAMETERS
    ),
)
MULTICAST = bytes.fromhex("01005e000001 333300000001")


@attrs.define
class NoBus:
    """What a guest's sockets ask of the bus when nobody wants them."""

    released: list[OfferedDevice] = attrs.field(factory=list)

    def release(self, offer: OfferedDevice) -> None:
        self.released.append(offer)


def offer_socket(data: bytes, number: int) -> object:
    """One that nobody has asked for or listens for: given back, whatever its parameters say."""
    client = NoBus()
    sockets_of_guest = ClientSockets(client, None, None, {})  # type: ignore[arg-type]
    offer = OfferedDevice(
        channel_id=number,
        interface=hvsocket.service_of(80),
        instance=Guid(bytes(16)),
        flags=hvsocket.OFFER_FLAGS,
        user_defined=data[:120].ljust(120, b"\0"),
        subchannel_index=0,
        mmio_megabytes=0,
        connection_id=number,
    )
    sockets_of_guest.offered(offer)
    assert client.released == [offer]
    return offer


SERVICES = (b"80", b"4294967295", str(hvsocket.service_of(80)).encode(), b"11111111-2222-3333-4444-555555555555")

DECODERS = {
    "partitions.root.sockets.parse_request": Decoder(
        stateless(sockets.parse_request),
        tuple(b"CONNECT " + service + end for service in SERVICES for end in (b"", b"\r")),
        sockets.BadRequest,
    ),
    "vmbus.protocol.hvsocket.parse_service": Decoder(
        lambda data, number: hvsocket.parse_service(data.decode("latin-1")), SERVICES, ValueError
    ),
    "ClientSockets.offered": Decoder(
        offer_socket, tuple(hvsocket.user_defined(is_for_guest_accept=one) for one in (False, True)), NONE
    ),
    "vsp_vsc.network.control.check": Decoder(control_message, RNDIS_MESSAGES),
    "vsp_vsc.network.negotiation.Negotiation.control": Decoder(
        negotiate, tuple(nvsp_message(kind, body) for kind, body in OPENING)
    ),
    "vsp_vsc.network.oids.set_oid": Decoder(any_setting, (bytes(4), MULTICAST, rss(), *PARAMETERS), oids.Refused),
    "vsp_vsc.network.oids._encapsulation": Decoder(
        setting(Oid.OFFLOAD_ENCAPSULATION), (ndis.OffloadEncapsulation().encode(),), oids.Refused
    ),
    "vsp_vsc.network.oids._filter": Decoder(setting(Oid.GEN_CURRENT_PACKET_FILTER), (b"\x0d\0\0\0",), oids.Refused),
    "vsp_vsc.network.oids._multicast": Decoder(setting(Oid.ETHERNET_MULTICAST_LIST), (MULTICAST,), oids.Refused),
    "vsp_vsc.network.oids._offload_parameters": Decoder(
        setting(Oid.TCP_OFFLOAD_PARAMETERS),
        (ndis.OffloadParameters().encode(), ndis.OffloadParameters(ipv4_header=4, lso_v2_ipv4=2).encode()),
        oids.Refused,
    ),
    "vsp_vsc.network.oids._parameter": Decoder(setting(Oid.GEN_RNDIS_CONFIG_PARAMETER), PARAMETERS, oids.Refused),
    "vsp_vsc.network.oids._rss": Decoder(setting(Oid.GEN_RECEIVE_SCALE_PARAMETERS), (rss(),), oids.Refused),
    "vsp_vsc.network.saved.decode_session": Decoder(restore, (a_record(),)),
}

ELSEWHERE = {
    "vsp_vsc.network.guest_control.RndisControl.heard": "any bytes: test_guest_frames, test_guest_channel",
    "vsp_vsc.network.guest_frames._with_tag": "any bytes: test_guest_frames, test_guest_channel",
    "vsp_vsc.network.guest_parameters.decode_offload": "any bytes: test_guest_frames, test_guest_channel",
    "vsp_vsc.network.vsc.Network._heard": "any bytes: test_guest_frames, test_guest_channel",
    "vsp_vsc.network.negotiation._body": "of `Negotiation.control`",
    "vsp_vsc.network.oids._ignored": "looks at none of it",
    "vsp_vsc.network.oids._object": "of `_encapsulation` and `_offload_parameters`",
    "vsp_vsc.network.oids._text": "of `_parameter`",
    "vsp_vsc.network.switch.acl.parse_end": "a person's words; any of them: tests/vsp_vsc/network/switch/test_words",
    "vsp_vsc.network.switch.addresses.parse_mac": "as above",
    "vsp_vsc.network.switch.settings.parse_vlans": "as above",
    "vsp_vsc.network.vsp.NetworkVsp.load": "`decode_session`, and a count of channels: test_saved",
}

REACHED = {
    "vmbus.client.sockets": "hostile/decoder_rows_network.py",
    "vsp_vsc.network.buffers": "hostile/test_network.py",
    "vsp_vsc.network.session": "hostile/test_network_bytes.py",
}

ROWS = Rows(DECODERS, ELSEWHERE, REACHED)
