"""Whole sequences of components, sockets and the console through the boundary driver: what a guest says and gets.

Many are those that openvmm's devices are tested with (hyperv_ic, uidevices, vmbus_server), told from the guest's end,
byte for byte. The rules one by one are in tests/vsp_vsc and tests/vmbus; test_network_sequences.py is the network's.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio

from hypervisor.wire import Guid
from partitions.host import Vm
from partitions.topology_schema import ScreenTable
from tests.doubles.boundary_guest import BoundaryGuest, Rings, at_rest, boundary_guest, run
from tests.doubles.root import topology, vm_table
from vmbus.server.socket_stream import HostSocket
from vsp_vsc.integration.kvp.protocol import Pool

INBAND = 6

# -------------------------------------------------------------------------------------------------------- components

NEGOTIATE, HEARTBEAT, KVP, SHUTDOWN, TIME_SYNC = range(5)
REQUEST, RESPONSE = 3, 5
NO_MORE_ITEMS = 0x80070103
INTERFACES = {
    "heartbeat": "57164f39-9115-4e78-ab55-382f3bd5422d",
    "kvp": "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6",
    "shutdown": "0e0b6031-5213-4934-818b-38d90ced39db",
    "time-sync": "9527e630-d0ae-497b-adce-e80ab0175caf",
}
INSTANCES = {
    "heartbeat": "fd149e91-82e0-4a7d-afa6-2a4166cbd7c0",
    "kvp": "242ff919-07db-4180-9c2e-b86cb68c8c55",
    "shutdown": "b6650ff7-33bc-4840-8048-e0676786f393",
    "time-sync": "2dd1ce17-079e-403c-b352-a1921ee207ee",
}


def message(
    kind: int, body: bytes = b"", *, versions: tuple[int, ...] = (0, 0, 0, 0), flags: int = REQUEST, status: int = 0
) -> bytes:
    """A component's: header and body. Transaction 0."""
    major, minor, *own = versions
    return struct.pack("<HHHHHHIBBH", major, minor, kind, *own, len(body), status, 0, flags, 0) + body


@attrs.define
class Pipe:
    """A guest that speaks in pipe packets."""

    guest: BoundaryGuest
    rings: Rings
    versions: tuple[int, ...] = (0, 0, 0, 0)

    async def heard(self) -> list[bytes]:
        """Messages of the host's since, out of their packets."""
        messages = []
        for kind, _, body in await at_rest(self.guest, self.rings)():
            one, length = struct.unpack_from("<II", body)
            assert (kind, one, len(body)) == (INBAND, 1, 8 + -(-length // 8) * 8)
            messages.append(body[8 : 8 + length])
        return messages

    async def say(self, data: bytes) -> list[bytes]:
        await self.rings.send(struct.pack("<II", 1, len(data)) + data, 0, flags=0)
        return await self.heard()

    async def negotiate(self, *own: tuple[int, int], choice: tuple[int, int]) -> list[bytes]:
        """The host offers frameworks 1.0 and 3.0 and these; the guest takes 3.0 and `choice`. What comes then."""
        offer = struct.pack("<HHI", 2, len(own), 0) + struct.pack("<HHHH", 1, 0, 3, 0)
        offer += b"".join(struct.pack("<HH", *version) for version in own)
        assert await self.heard() == [message(NEGOTIATE, offer)]
        self.versions = (3, 0, *choice)
        return await self.say(self.chosen(3, 0, *choice))

    @staticmethod
    def chosen(*versions: int) -> bytes:
        return message(NEGOTIATE, struct.pack("<HHI4H", 1, 1, 0, *versions), flags=RESPONSE)

    def question(self, kind: int, body: bytes) -> bytes:
        return message(kind, body, versions=self.versions)

    async def answer(self, kind: int, body: bytes = b"", status: int = 0) -> list[bytes]:
        return await self.say(message(kind, body, versions=self.versions, flags=RESPONSE, status=status))


def on_a_component(name: str, sequence: Callable[[Pipe], Awaitable[None]], folder: Path) -> None:
    """Run it with the component's channel open and nothing read yet."""

    async def session() -> None:
        table = vm_table("vm", integration=[name])
        async with boundary_guest(topology(table, folder=folder)) as guest:
            await guest.boot()
            (offer,) = await guest.connect()
            assert offer[8:40] == bytes(Guid(INTERFACES[name])) + bytes(Guid(INSTANCES[name]))
            assert offer[56:64] == struct.pack("<HHI", 0x11, 0, 4)  # enumerated, a named pipe; of messages
            assert offer[64:180] == bytes(116)
            await sequence(Pipe(guest, await guest.open_channel()))

    run(session)


async def later(asked: Callable[[], Awaitable[object]], pipe: Pipe, act: Callable[[], Awaitable[None]]) -> list[object]:
    """Somebody in the host asks; `act` is the guest's part. What the asker got, or why not."""
    got: list[object] = []

    async def ask() -> None:
        try:
            got.append(await asked())
        except Exception as error:
            got.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await act()
        await pipe.guest.do("settle")
    return got


@pytest.mark.parametrize(
    ("flags", "asks"),
    [
        (0, lambda vm: vm.shut_down(60)),
        (1, lambda vm: vm.shut_down(60, insist=True)),
        (2, lambda vm: vm.restart(60)),
        (4, lambda vm: vm.hibernate(60)),
    ],
)
def test_shutdown(tmp_path: Path, flags: int, asks: Callable[[Vm], Awaitable[object]]) -> None:
    """Versions 1.0 to 3.2; reason "planned", no time limit, flags, 2,048 bytes of text; the status is the answer."""

    async def sequence(pipe: Pipe) -> None:
        assert await pipe.negotiate((1, 0), (3, 0), (3, 1), (3, 2), choice=(3, 2)) == []
        vm = pipe.guest.host["vm"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks, vm)
            body = struct.pack("<III", 0x80000000, 0, flags).ljust(12 + 2048, b"\0")
            assert await pipe.heard() == [pipe.question(SHUTDOWN, body)]
            assert await pipe.answer(SHUTDOWN, body, 0x80004005) == []
            assert "fail" in vm.shutdown_outcome
            nursery.cancel_scope.cancel()  # for a guest that refuses the host still waits, and then turns it off

    on_a_component("shutdown", sequence, tmp_path)


def test_heartbeats(tmp_path: Path) -> None:
    """Forty bytes; the guest counts one up, and the next beat one more, two seconds later."""

    async def sequence(pipe: Pipe) -> None:
        first = await pipe.negotiate((1, 0), (3, 0), choice=(3, 0))
        assert first == [pipe.question(HEARTBEAT, bytes(40))]
        for number in (1, 3, 5):
            assert await pipe.answer(HEARTBEAT, struct.pack("<QI28x", number, 1)) == []
            await pipe.guest.do("advance", ticks=20_000_000)
            assert await pipe.heard() == [pipe.question(HEARTBEAT, struct.pack("<Q32x", number + 1))]

    on_a_component("heartbeat", sequence, tmp_path)


def test_time(tmp_path: Path) -> None:
    """One sync when versions are agreed on, samples every five seconds, 24 bytes with the partition's own time."""

    async def sequence(pipe: Pipe) -> None:
        (sync,) = await pipe.negotiate((1, 0), (3, 0), (4, 0), choice=(4, 0))
        head, date, reference, rest = sync[:20], *struct.unpack("<QQ8s", sync[20:])
        assert head == pipe.question(TIME_SYNC, bytes(24))[:20]
        assert (rest, reference) == (bytes([1, 0, 0, 0, 0, 0, 0, 0]), 0)
        for count in (1, 2, 3):
            assert await pipe.answer(TIME_SYNC, sync[20:]) == []
            await pipe.guest.do("advance", ticks=50_000_000)
            (sample,) = await pipe.heard()
            assert sample[20:] == struct.pack("<QQ8s", date + count * 50_000_000, count * 50_000_000, b"\2")

    on_a_component("time-sync", sequence, tmp_path)


def item(key: str, value: str = "") -> bytes:
    """A KVP item as it goes over the bus: strings with their NUL."""
    raw_key, raw = (key + "\0").encode("utf-16-le"), (value + "\0").encode("utf-16-le") if value else b""
    head = struct.pack("<III", 1 if value else 0, len(raw_key), len(raw))
    return head + raw_key.ljust(512, b"\0") + raw.ljust(2048, b"\0")


def kvp(operation: int, pool: int, body: bytes) -> bytes:
    """2,580 bytes, whatever it is."""
    return (struct.pack("<BBH", operation, pool, 0) + body).ljust(2580, b"\0")


def test_key_value_pairs(tmp_path: Path) -> None:
    """Versions 3.0 to 5.0; set, delete and enumerate, each as long as the longest, and each with transaction 0."""

    async def sequence(pipe: Pipe) -> None:
        said = await pipe.negotiate((3, 0), (4, 0), (5, 0), choice=(5, 0))
        while said:  # what the host tells by itself
            (told,) = said
            assert (len(told), told[20:22]) == (20 + 2580, bytes([1, 3]))
            said = await pipe.answer(KVP, told[20:])
        service = pipe.guest.host["vm"].kvp

        async def one(question: bytes, answer: bytes, status: int = 0) -> None:
            assert await pipe.heard() == [pipe.question(KVP, question)]
            assert await pipe.answer(KVP, answer, status) == []

        setting = kvp(1, 0, item("name", "value"))
        assert await later(lambda: service.set("name", "value"), pipe, lambda: one(setting, setting)) == [None]
        key = "name\0".encode("utf-16-le")
        deletion = kvp(2, 0, struct.pack("<I", len(key)) + key)
        assert await later(lambda: service.delete("name"), pipe, lambda: one(deletion, deletion)) == [True]
        absent = lambda: one(deletion, deletion, NO_MORE_ITEMS)  # noqa: E731
        assert await later(lambda: service.delete("name"), pipe, absent) == [False]

        async def both() -> None:
            answer = kvp(3, 1, struct.pack("<I", 0) + item("name", "value"))
            assert await pipe.heard() == [pipe.question(KVP, kvp(3, 1, bytes(4)))]
            (second,) = await pipe.answer(KVP, answer)
            assert second == pipe.question(KVP, kvp(3, 1, struct.pack("<I", 1)))
            assert await pipe.answer(KVP, second[20:], NO_MORE_ITEMS) == []

        assert await later(lambda: service.items(Pool.GUEST), pipe, both) == [{"name": "value"}]

    on_a_component("kvp", sequence, tmp_path)


def test_stale_answers_before_the_versions(tmp_path: Path) -> None:
    """negotiate_drops_stale_responses: answers of another life are dropped, and the negotiation goes on."""

    async def sequence(pipe: Pipe) -> None:
        assert len(await pipe.heard()) == 1
        assert await pipe.answer(KVP) == []
        assert await pipe.answer(TIME_SYNC) == []
        pipe.versions = (3, 0, 3, 0)
        assert await pipe.say(pipe.chosen(3, 0, 3, 0)) == [pipe.question(HEARTBEAT, bytes(40))]

    on_a_component("heartbeat", sequence, tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        message(NEGOTIATE, struct.pack("<HHI4H", 1, 1, 0, 3, 0, 3, 0), flags=2),
        message(NEGOTIATE, struct.pack("<HHI4H", 1, 1, 0, 3, 0, 3, 0), flags=1),
        message(NEGOTIATE, struct.pack("<HHI", 0, 0, 0), flags=RESPONSE),
        message(NEGOTIATE, struct.pack("<HHI4H", 2, 1, 0, 3, 0, 3, 0), flags=RESPONSE),
        message(NEGOTIATE, struct.pack("<HHI", 1, 1, 0), flags=RESPONSE),
        message(NEGOTIATE, bytes(16), flags=RESPONSE)[:30],
        b"short",
    ],
)
def test_a_negotiation_that_comes_to_nothing(tmp_path: Path, answer: bytes) -> None:
    """negotiate_rejects_non_transaction_response, and other counts than one of each: nothing is asked any more."""

    async def sequence(pipe: Pipe) -> None:
        assert len(await pipe.heard()) == 1
        assert await pipe.say(answer) == []
        await pipe.guest.do("advance", ticks=100_000_000)
        assert await pipe.heard() == []

    on_a_component("heartbeat", sequence, tmp_path)


# ----------------------------------------------------------------------------------------------------------- sockets

SERVICE, ENDPOINT = Guid("00000050-facb-11e6-bd58-64006a7986d3"), Guid("0000abcd-facb-11e6-bd58-64006a7986d3")
REFUSED = 0xC0000236


@attrs.define
class Sockets:
    """A guest that asks for sockets, and what its host has heard through them."""

    guest: BoundaryGuest
    heard: list[bytes] = attrs.field(factory=list)

    def request(self, endpoint: Guid = ENDPOINT, service: Guid = SERVICE, *, silo: bool = True) -> bytes:
        return struct.pack("<II", 21, 0) + bytes(endpoint) + bytes(service) + (bytes(16) if silo else b"")

    @staticmethod
    def refusal(endpoint: Guid = ENDPOINT, service: Guid = SERVICE) -> bytes:
        return struct.pack("<II", 23, 0) + bytes(endpoint) + bytes(service) + struct.pack("<I", REFUSED)

    @staticmethod
    def offer(channel: int, endpoint: bytes = bytes(ENDPOINT), *, accept: int = 0) -> bytes:
        """As a whole: interface and instance, a named pipe of the socket provider's, and what the guest is to do."""
        head = struct.pack("<II", 1, 0) + bytes(SERVICE) + endpoint + bytes(16) + struct.pack("<HH", 0x2011, 0)
        user = (struct.pack("<IBBI", 0, accept, 0, 1) + bytes(16)).ljust(120, b"\0")
        return head + user + struct.pack("<HHIBBHI", 0, 0, channel, 0xFF, 0, 1, 0x2000 | channel)

    async def serve(self, stream: HostSocket) -> None:
        """The host's end: keeps what it hears, and says it backwards."""
        while data := await stream.receive_some():
            self.heard.append(data)
            await stream.send_all(data[::-1])


def with_sockets(
    sequence: Callable[[Sockets], Awaitable[None]], folder: Path, *, version: int = 0x50003, listens: bool = True
) -> None:
    """Run it on a bus without devices, with a listener at port 80."""

    async def session() -> None:
        async with boundary_guest(topology(vm_table("vm"), folder=folder)) as guest:
            sockets = Sockets(guest)
            if listens:
                guest.host["vm"].listen(80, sockets.serve)
            await guest.boot()
            assert await guest.connect(version) == []
            await sequence(sockets)

    run(session)


@pytest.mark.parametrize("silo", [False, True])
def test_a_socket_of_the_guests(tmp_path: Path, silo: bool) -> None:
    """The request, the offer, a stream both ways, the end of it from the guest's side, and the offer withdrawn."""

    async def sequence(sockets: Sockets) -> None:
        guest = sockets.guest
        assert await guest.say(sockets.request(silo=silo)) == [sockets.offer(1)]
        pipe = Pipe(guest, await guest.open_channel())
        assert await pipe.say(b"hello") == [b"olleh"]
        assert await pipe.say(b"") == [b""]  # the end of one direction, and the listener's own
        assert sockets.heard == [b"hello"]
        assert await guest.messages() == []
        assert await guest.signal(pipe.rings.connection) == "SUCCESS"  # the host waits until the guest has taken all
        assert await guest.messages() == [struct.pack("<III", 2, 0, 1)]

    with_sockets(sequence, tmp_path)


@pytest.mark.parametrize(("version", "answered"), [(0x40000, False), (0x40001, True), (0x50000, True)])
def test_refusals(tmp_path: Path, version: int, answered: bool) -> None:
    """test_hvsock: nobody listens; an endpoint that is taken; from 4.1 on with an answer."""

    async def sequence(sockets: Sockets) -> None:
        other = Guid("00000051-facb-11e6-bd58-64006a7986d3")
        refused = [sockets.refusal(service=other)] if answered else []
        assert await sockets.guest.say(sockets.request(service=other, silo=False)) == refused
        assert len(await sockets.guest.say(sockets.request(silo=False))) == 1
        again = [sockets.refusal()] if answered else []
        assert await sockets.guest.say(sockets.request(silo=False)) == again

    with_sockets(sequence, tmp_path, version=version)


def test_a_guest_that_does_not_open_its_socket(tmp_path: Path) -> None:
    """Has five seconds; then the offer is withdrawn."""

    async def sequence(sockets: Sockets) -> None:
        guest = sockets.guest
        assert await guest.say(sockets.request()) == [sockets.offer(1)]
        await guest.do("advance", ticks=49_999_999)
        assert await guest.messages() == []
        await guest.do("advance", ticks=1)
        assert await guest.messages() == [struct.pack("<III", 2, 0, 1)]

    with_sockets(sequence, tmp_path)


@pytest.mark.parametrize("opens", [True, False])
def test_a_socket_of_the_hosts(tmp_path: Path, opens: bool) -> None:
    """The offer says that the guest accepts; it has two seconds for that."""

    async def sequence(sockets: Sockets) -> None:
        guest = sockets.guest
        got: list[object] = []

        async def connect() -> None:
            try:
                async with await guest.host["vm"].connect(80) as stream:
                    await stream.send_all(b"from the host")
                    got.append(await stream.receive_some())
            except ConnectionError as error:
                got.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connect)
            await guest.do("settle")
            (offer,) = await guest.messages()
            assert offer == sockets.offer(1, offer[24:40], accept=1)
            if opens:
                pipe = Pipe(guest, await guest.open_channel())
                assert await pipe.heard() == [b"from the host"]
                assert await pipe.say(b"from the guest") == [b""]
            else:
                await guest.do("advance", ticks=19_999_999)
                assert await guest.messages() == []
                await guest.do("advance", ticks=1)
            assert await guest.messages() == ([] if opens else [struct.pack("<III", 2, 0, 1)])
            assert (got == [b"from the guest"]) is opens

    with_sockets(sequence, tmp_path, listens=False)


# ----------------------------------------------------------------------------------------------------------- console


def test_a_keyboard(tmp_path: Path) -> None:
    """test_channel_working, test_channel_negotiation_failed: another version is refused; keys go down and up."""

    async def session() -> None:
        table = vm_table("vm", input=["keyboard"])
        async with boundary_guest(topology(table, folder=tmp_path)) as guest:
            await guest.boot()
            assert len(await guest.connect()) == 1
            rings = await guest.open_channel()
            heard = at_rest(guest, rings)
            for version, accepted in ((0x20000, 0), (0x10001, 0), (0x10000, 1)):
                await rings.send(struct.pack("<II", 1, version), 0, flags=0)
                assert await heard() == [(INBAND, 0, struct.pack("<II", 2, accepted))]
            keyboard = guest.host["vm"].keyboard
            assert keyboard is not None
            keyboard.tap(0x1E, 0xE05B)
            strokes = [(0x1E, 0), (0x5B, 4), (0x5B, 6), (0x1E, 2)]
            events = [struct.pack("<IHHI", 3, code, 0, flags).ljust(16, b"\0") for code, flags in strokes]
            assert [body for _, _, body in await heard()] == events

    run(session)


def test_a_mouse(tmp_path: Path) -> None:
    """Another version is refused with the guest's own number; then the device tells what it is, and reports follow."""

    async def session() -> None:
        table = vm_table("vm", input=["mouse"])
        async with boundary_guest(topology(table, folder=tmp_path)) as guest:
            await guest.boot()
            assert len(await guest.connect()) == 1
            pipe = Pipe(guest, await guest.open_channel())
            assert await pipe.say(struct.pack("<III", 0, 4, 0x10000)) == [struct.pack("<IIIB", 1, 5, 0x10000, 0)]
            answer, info = await pipe.say(struct.pack("<III", 0, 4, 0x20000))
            assert answer == struct.pack("<IIIB", 1, 5, 0x20000, 1)
            assert info[:18] == struct.pack("<IIIHHH", 2, 32 + 9 + 67, 32, 0x045E, 0x0621, 1)
            assert (len(info), info[40:42], info[46:49]) == (8 + 169, b"\x09\x21", struct.pack("<BH", 0x22, 67))
            assert await pipe.say(struct.pack("<IIB", 3, 1, 1)) == []
            mouse = guest.host["vm"].mouse
            assert mouse is not None
            mouse.move(100, 32767, 1, -1)
            assert await pipe.heard() == [struct.pack("<IIBHHh", 4, 7, 1, 100, 32767, -1)]

    run(session)


VIDEO = Guid("da0a7802-e377-4aac-8e77-0558eb1073f8")


def test_a_screen(tmp_path: Path) -> None:
    """test_channel_updates_framebuffer_and_forwards_dirt, test_channel_reports_bios_resolutions_and_capability."""

    async def session() -> None:
        table = vm_table("vm", memory=64 << 20, screen=ScreenTable())
        async with boundary_guest(topology(table, folder=tmp_path)) as guest:
            await guest.boot()
            offers = await guest.connect()
            (channel,) = (at for at, offer in enumerate(offers, 1) if offer[8:24] == bytes(VIDEO))
            pipe = Pipe(guest, await guest.open_channel(channel))

            def said(kind: int, layout: str = "", *values: object) -> bytes:
                body = struct.pack("<" + layout, *values)
                return struct.pack("<II", kind, 8 + len(body)) + body

            for version, accepted in ((2, 0), (4, 0), (0x50003, 2)):
                answer = said(2, "IBB", version, accepted, 1)
                assert await pipe.say(said(1, "I", version)) == [answer]
            assert await pipe.say(said(11)) == [said(12, "I12x", 1)]
            (modes,) = await pipe.say(said(13, "B", 64))
            count, default, standard = modes[136:139]
            assert len(modes) == 8 + 131 + 4 * count
            assert (default, standard, struct.unpack_from("<HH", modes, 139)) == (0, 0, (1024, 768))
            assert (await pipe.say(said(13, "B", 63)))[0][136] == 0
            assert await pipe.say(said(15)) == [said(16, "I60x", 0)]
            assert await pipe.say(said(3, "QBQ", 0x1234, 1, 16 << 20)) == [said(4, "Q", 0x1234)]
            situation = said(5, "QBBIBIII", 0x5678, 1, 1, 0, 32, 800, 600, 800 * 4)
            assert said(6, "Q", 0x5678) in await pipe.say(situation)
            screen = guest.host["vm"].screen
            assert screen is not None
            assert (screen.width, screen.height) == (800, 600)
            with screen.watch() as damage:
                damage.take()
                await pipe.say(said(10, "BB8i", 0, 2, 1, 2, 30, 40, 100, 120, 140, 180))
                _, rectangles = damage.take()
                assert {(one.x, one.y, one.width, one.height) for one in rectangles} == {
                    (1, 2, 29, 38),
                    (100, 120, 40, 60),
                }

    run(session)
