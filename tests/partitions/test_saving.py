"""A VM that is saved in the middle of a conversation, and its guest that goes on in another host."""

from __future__ import annotations

import gc
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.backend.base import Backend
from hypervisor.hypervisor import Hypervisor
from hypervisor.msr import Msr
from partitions.boundary.backend import BoundaryBackend
from partitions.host import CannotSave, Host, ReturnCode, StartFailed, VmState, open_host
from partitions.root import saving
from partitions.root.exits import ExitReason
from partitions.root.saving import SavedVm
from partitions.root.saving_file import MAGIC, VERSION, FileHeader, SectionHeader, decode_file, encode_file, read_file
from partitions.topology import Topology, parse_topology
from partitions.topology_schema import VmTable
from tests.doubles.boundary_guest import DATA, RINGS, BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.storage_guest import command, handshake
from vmbus.pipe import frame, unframe
from vmbus.ring import Packet
from vmbus.server.saved import CannotRestore
from vsp_vsc.integration.protocol import (
    RESPONSE,
    Component,
    decode_message,
    decode_offer,
    encode_message,
    encode_negotiate,
)
from vsp_vsc.storage.saved import SavedSession
from vsp_vsc.storage.scsi.cdb import read_cdb

TOPOLOGY = """
[[vm]]
name = "web"
memory = "2MiB"
processors = 2
integration = ["heartbeat", "kvp"]

[[vm.disk]]
path = "disk.img"
size = "1MiB"
"""
HEARTBEAT, KVP, STORAGE = 1, 2, 3
"""Channels, by the order of interfaces."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "disk.img").write_bytes(b"".join((b"sector %d" % n).ljust(512, b"\0") for n in range(2048)))
    return tmp_path


def topology(folder: Path, text: str = TOPOLOGY) -> Topology:
    return parse_topology(text, folder, programs=False)


async def send(rings: Rings, packet: Packet, transaction: int) -> None:
    await rings.send(
        packet.payload, transaction, kind=packet.type, flags=packet.flags, extended=packet.body[: packet.data_offset]
    )


def read_sector(lba: int, gpn: int) -> Packet:
    return command(read_cdb(lba, 1), [gpn], 512)


async def storage_channel(guest: BoundaryGuest, *, outgoing_pages: int = 4) -> tuple[int, Rings]:
    """Boot, connect, open the controller, agree on a version. Both rings together have eight pages."""
    await guest.boot()
    offers = await guest.connect()
    channel = next(
        struct.unpack_from("<I", offer, 184)[0]
        for offer in offers
        if offer[8:24].hex() == "d96361baa104294db60572e2ffb1dc7f"
    )
    first = RINGS >> 12
    await guest.gpadl(channel, 0xE1E10, range(first, first + 8))
    assert await guest.open(channel, 0xE1E10, outgoing_pages) == [struct.pack("<IIIII", 6, 0, channel, channel, 0)]
    rings = Rings(guest, RINGS, outgoing_pages << 12, (8 - outgoing_pages) << 12, 0x2000 | channel)
    for number, packet in enumerate(handshake(), 1):
        await send(rings, packet, number)
    assert len(await rings.received()) == 4
    return channel, rings


def transaction(packet: tuple[bytes, bytes]) -> int:
    return int(struct.unpack_from("<Q", packet[0], 8)[0])


def test_a_conversation_goes_on_in_another_host(folder: Path) -> None:
    """Channel open, an answer in the ring unread, a message in its slot and others behind it, interrupts due.

    The scripted guest notices nothing: it reads what was there, asks again, and closes in the end.
    """
    file = folder / "web.saved"

    async def before() -> tuple[int, Rings]:
        async with boundary_guest(topology(folder)) as guest:
            channel, rings = await storage_channel(guest)
            await send(rings, read_sector(5, DATA >> 12), 77)
            # Three GPADLs; the first answer fills the slot, the others wait behind it.
            for gpadl in (1, 2, 3):
                words = [4096, 0x50 + gpadl]
                header = struct.pack("<IIIIHH", 8, 0, channel, gpadl, 16, 1) + struct.pack("<2Q", *words)
                assert await guest.post(header) == "SUCCESS"
            vm = guest.host["web"]
            assert await vm.save(file) == file
            assert vm.state is VmState.SAVED
            assert vm.exit is not None
            assert vm.exit.reason is ExitReason.SAVED
            assert vm.exit.ok
            return channel, rings

    async def after(channel: int, rings: Rings) -> None:
        async with boundary_guest(topology(folder), restore=file) as guest:
            rings = rings.go_on_as(guest)
            (answer,) = await rings.received()
            assert transaction(answer) == 77
            assert (await guest.read(DATA, 9))[:8] == b"sector 5"
            created = [struct.pack("<IIIII", 10, 0, channel, gpadl, 0) for gpadl in (1, 2, 3)]
            assert await guest.messages() == created
            await send(rings, read_sector(9, (DATA >> 12) + 1), 78)
            (answer,) = await rings.received()
            assert transaction(answer) == 78
            assert await guest.read(DATA + 4096, 8) == b"sector 9"
            assert await guest.flags() >= {channel}
            # The host's record of it all is whole: what was made can be taken apart.
            assert await guest.say(struct.pack("<IIII", 11, 0, channel, 2)) == [struct.pack("<III", 12, 0, 2)]
            assert await guest.post(struct.pack("<III", 7, 0, channel)) == "SUCCESS"
            assert await guest.say(struct.pack("<IIII", 11, 0, channel, 0xE1E10)) == [
                struct.pack("<III", 12, 0, 0xE1E10)
            ]
            assert await guest.say(struct.pack("<II", 16, 0)) == [struct.pack("<II", 17, 0)]

    channel, rings = run(before)
    run(after, channel, rings)


def test_saving_again_gives_the_same_file(folder: Path) -> None:
    """Nothing of a state is lost on the way: what is restored and saved at once is what was restored."""

    async def first() -> None:
        async with boundary_guest(topology(folder)) as guest:
            _, rings = await storage_channel(guest)
            await send(rings, read_sector(5, DATA >> 12), 77)
            await guest.host["web"].save("one.saved")

    async def second() -> tuple[SavedVm, SavedVm]:
        async with boundary_guest(topology(folder), restore=folder / "one.saved") as guest:
            again = await guest.host["web"].checkpoint()
            assert guest.host["web"].state is VmState.RUNNING
            return read_file(folder / "one.saved"), again

    run(first)
    one, two = run(second)
    assert two.facts == one.facts
    assert two.bus == one.bus
    assert two.chipset == one.chipset
    assert two.memory == one.memory


def test_an_incoming_ring_that_is_full(folder: Path) -> None:
    """Answers that the ring had no room for are kept, in order, and each comes once."""
    count = 70

    async def before() -> Rings:
        async with boundary_guest(topology(folder)) as guest:
            _, rings = await storage_channel(guest, outgoing_pages=6)
            for number in range(count):
                await send(rings, read_sector(number, DATA >> 12), 1000 + number)
            await guest.host["web"].save("full.saved")
            return rings

    async def after(rings: Rings) -> None:
        async with boundary_guest(topology(folder), restore=folder / "full.saved") as guest:
            rings = rings.go_on_as(guest)
            (end, start) = struct.unpack("<II", await guest.read(rings.in_page, 8))
            assert (start - end) % rings.in_size < 100, "the ring is full"
            got: list[int] = []
            while more := await rings.received():
                got += map(transaction, more)
                await guest.signal(rings.connection)
            assert got == list(range(1000, 1000 + count))

    run(after, run(before))


def test_time_stands_still_in_the_file(folder: Path) -> None:
    """Reference time goes on from where it stood."""

    async def before() -> int:
        async with boundary_guest(topology(folder)) as guest:
            await guest.boot()
            await guest.do("advance", ticks=50_000_000)
            await guest.host["web"].save("t.saved")
            return 50_000_000

    async def after(then: int) -> None:
        async with boundary_guest(topology(folder), restore=folder / "t.saved") as guest:
            now = (await guest.do("rdmsr", msr=int(Msr.TIME_REF_COUNT)))["value"]
            assert then <= now <= then + 10
            await guest.do("advance", ticks=1000)
            assert now + 900 <= (await guest.do("rdmsr", msr=int(Msr.TIME_REF_COUNT)))["value"] <= now + 1100

    run(after, run(before))


def test_a_component_goes_on(folder: Path) -> None:
    """The heartbeat does not agree on versions again: the next thing that its guest hears is a beat."""

    async def before() -> Rings:
        async with boundary_guest(topology(folder)) as guest:
            await guest.boot()
            await guest.connect()
            rings = await guest.open_channel(HEARTBEAT)
            (offer,) = await rings.received()
            await rings.send(frame(choice(unframed(offer))).body, flags=0)
            assert len(await rings.received()) == 1
            assert guest.host["web"].integration["heartbeat"].value == "ready"
            await guest.host["web"].save("beat.saved")
            return rings

    async def after(rings: Rings) -> None:
        async with boundary_guest(topology(folder), restore=folder / "beat.saved") as guest:
            rings = rings.go_on_as(guest)
            assert guest.host["web"].integration["heartbeat"].value in ("ready", "no answer")
            await guest.do("settle")
            (beat,) = await rings.received()
            header, _ = decode_message(unframed(beat))
            assert header.component == Component.HEARTBEAT

    run(after, run(before))


def unframed(packet: tuple[bytes, bytes]) -> bytes:
    return unframe(Packet(6, 0, 0, 0, packet[1]))


def choice(offer: bytes) -> bytes:
    """What a driver says to the offer of versions: the last of each."""
    header, body = decode_message(offer)
    framework, messages = decode_offer(body)
    chosen = encode_negotiate(framework[-1:], messages[-1:])
    return encode_message(header.component, chosen, transaction_id=header.transaction_id, flags=RESPONSE)


# --- files that are not what they should be


def saved_file(folder: Path) -> bytes:
    """A VM with an open channel, as bytes."""

    async def before() -> None:
        async with boundary_guest(topology(folder)) as guest:
            await storage_channel(guest)
            await guest.host["web"].save("good.saved")

    run(before)
    return (folder / "good.saved").read_bytes()


def borders(data: bytes) -> list[int]:
    """Where sections begin."""
    found, at = [FileHeader.SIZE], FileHeader.SIZE
    while at < len(data):
        header = SectionHeader.decode(data, at)
        at += SectionHeader.SIZE + header.stored
        found.append(at)
    return found


def test_a_file_that_ends_early(folder: Path) -> None:
    """Cut at every border, and a byte to either side of it, it is damaged; and so is one with a byte more."""
    good = saved_file(folder)
    decode_file(io.BytesIO(good))
    for border in [0, *borders(good)]:
        for end in (border - 1, border, border + 1, border + SectionHeader.SIZE):
            if 0 <= end < len(good):
                with pytest.raises(CannotRestore, match=r"damaged|not a saved VM"):
                    decode_file(io.BytesIO(good[:end]))
    with pytest.raises(CannotRestore, match="follows the end"):
        decode_file(io.BytesIO(good + b"x"))


def test_any_changed_bit_is_seen(folder: Path) -> None:
    """One bit anywhere: damaged, not a saved VM, or of another version, and nothing but that."""
    good = saved_file(folder)
    step = max(1, 8 * len(good) // 4000)
    interesting = {8 * at + bit for at in range(FileHeader.SIZE + SectionHeader.SIZE) for bit in range(8)}
    for at in sorted(interesting | set(range(0, 8 * len(good), step))):
        changed = bytearray(good)
        changed[at >> 3] ^= 1 << (at & 7)
        with pytest.raises(CannotRestore):
            decode_file(io.BytesIO(bytes(changed)))


@given(st.binary(max_size=300))
def test_any_bytes_have_an_answer(data: bytes) -> None:
    """Behind a right header, too: `CannotRestore` and nothing else."""
    start = FileHeader(MAGIC, VERSION, 0).encode()[:12]
    for whole in (data, start + zlib.crc32(start).to_bytes(4, "little") + data):
        with pytest.raises(CannotRestore):
            decode_file(io.BytesIO(whole))


def test_sections_cannot_change_places(folder: Path) -> None:
    """Each is whole, and the end has counted them."""
    good = saved_file(folder)
    places = borders(good)
    first, second, third = places[1], places[2], places[3]
    with pytest.raises(CannotRestore, match="damaged"):
        decode_file(io.BytesIO(good[:first] + good[second:third] + good[first:second] + good[third:]))


def test_another_version(folder: Path) -> None:
    """It says which one it is and which one is read here."""
    good = saved_file(folder)
    start = MAGIC + struct.pack("<I", VERSION + 1)
    with pytest.raises(CannotRestore, match="of version 2; this host reads version 1"):
        decode_file(io.BytesIO(start + zlib.crc32(start).to_bytes(4, "little") + good[16:]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('"2MiB"', '"4MiB"'), "its memory in bytes: 2097152 in the file, 4194304 here"),
        (lambda text: text.replace("processors = 2", "processors = 1"), "its processors: 2 in the file, 1 here"),
        (lambda text: text.replace('"heartbeat", ', ""), "a device 57164f39.* is in the file only"),
        (lambda text: text.replace('"kvp"', '"kvp", "shutdown"'), "a device 0e0b6031.* is here only"),
        (lambda text: text.replace("processors", "synthetic_timers = false\nprocessors"), "it had rights .*0x8"),
        (lambda text: text.replace('name = "web"', 'name = "other"'), "its name: web in the file, other here"),
        (lambda text: text.replace("disk.img", "more.img").replace("1MiB", "2MiB"), r"its disks .*1048576.*2097152"),
    ],
)
def test_a_file_of_another_vm(folder: Path, change: Callable[[str], str], words: str) -> None:
    """What differs is named, and the host is as if nobody had asked."""
    saved_file(folder)
    refused(folder, folder / "good.saved", words, change(TOPOLOGY))


def refused(folder: Path, file: Path, words: str, text: str = TOPOLOGY) -> None:
    """A restore that fails leaves no partition, descriptor, port, deposit or lock; the VM can be started."""

    async def attempt() -> None:
        table = topology(folder, text)
        name = table.vm[0].name

        def backends(hypervisor: Hypervisor, vm: VmTable) -> Backend:
            return BoundaryBackend(hypervisor, lambda vp, vector: None)

        async with open_host(table, clock="virtual", backends=backends) as host:
            vm = host[name]
            await vm.start()  # deposits that a host once had stay for the next VM
            await vm.turn_off()
            before = held(host)
            with pytest.raises(StartFailed, match=f"cannot restore: .*{words}"):
                await vm.restore(file)
            assert vm.state is VmState.OFF
            assert held(host) == before
            await vm.start()
            await vm.turn_off()
            assert held(host) == before

    run(attempt)


def held(host: Host) -> tuple[int, ...]:
    gc.collect()
    hypervisor = host.hypervisor
    return (
        len(hypervisor.partitions),
        len(os.listdir("/proc/self/fd")),
        len(hypervisor.root.ports),
        len(hypervisor.root.connections),
        host.vid.vm_memory_used,
        host.winhv.flags.taken,
    )


def forged(folder: Path, **changes: Any) -> Path:
    """A saved VM with its checksums right and something in it that was never so."""
    with open(folder / "good.saved", "rb") as file:
        saved = decode_file(file)
    path = folder / "forged.saved"
    path.write_bytes(b"".join(encode_file(attrs.evolve(saved, **{key: make(saved) for key, make in changes.items()}))))
    return path


def bus(**changes: Any) -> Callable[[SavedVm], object]:
    return lambda saved: msgspec.structs.replace(saved.bus, **changes)


def channel(**changes: Any) -> Callable[[SavedVm], object]:
    def make(saved: SavedVm) -> object:
        channels = [
            msgspec.structs.replace(one, **changes) if one.open_message is not None else one
            for one in saved.bus.channels
        ]
        return msgspec.structs.replace(saved.bus, channels=channels)

    return make


def storage_record(**changes: Any) -> bytes:
    """A storage session that only a file can have."""
    record = SavedSession("ready", 0x602, 0, 0, True, [])
    return msgspec.msgpack.encode(msgspec.structs.replace(record, **changes))


@pytest.mark.parametrize(
    ("part", "make", "words"),
    [
        ("bus", bus(contact=b""), "its bus"),
        ("bus", bus(contact=bytes(40)), "its bus"),
        ("bus", bus(channels=[]), "its bus: channel [123]: none was saved, closed came of it"),
        ("bus", bus(gpadls=[]), "its bus: channel 3 cannot be opened again"),
        ("bus", bus(offers_sent=False), "its bus: channel 1: this VM has no such device"),
        ("bus", bus(outbox=[b"nonsense"]), "its bus: a queued message"),
        ("bus", bus(outbox=[bytes(8)] * 5000), "its bus: more messages wait"),
        ("bus", channel(channel_id=0), "its bus"),
        ("bus", channel(channel_id=1), "its bus: two channels are one"),
        ("bus", channel(channel_id=4000), "its bus"),
        ("bus", channel(interface=b"x"), "its bus"),
        ("bus", channel(interface=bytes(16)), "its bus: channel 3: this VM has no such device"),
        ("bus", channel(device=b"\xff"), "its bus: .*saved storage session"),
        ("bus", channel(device=storage_record(max_sub_channels=16)), "its bus: .*with 16 subchannels"),
        ("bus", channel(open_message=b""), "its bus"),
        ("bus", channel(target_vp=9), "its bus: channel 3 cannot be opened again"),
        ("bus", channel(withdrawn=True), "its bus"),
        ("partition", lambda saved: saved.partition[:-1], "the hypervisor does not take its state: INCOMPLETE"),
        ("partition", lambda saved: bytes(1000), "the hypervisor does not take its state: CORRUPT_DATA"),
        ("partition", lambda saved: b"", "the hypervisor does not take its state: INCOMPLETE"),
        (
            "chipset",
            lambda saved: msgspec.structs.replace(saved.chipset, cmos_index=4000),
            "its boot devices",
        ),
        (
            "chipset",
            lambda saved: msgspec.structs.replace(
                saved.chipset, com1=msgspec.structs.replace(saved.chipset.com1, divisor=-1)
            ),
            "its serial port",
        ),
    ],
)
def test_forged_state_is_refused(folder: Path, part: str, make: Callable[[SavedVm], object], words: str) -> None:
    """A file is the guest's bytes in somebody's hands: what a guest cannot bring about, a file cannot either."""
    saved_file(folder)
    refused(folder, forged(folder, **{part: make}), words)


def test_a_file_that_is_not_there(folder: Path) -> None:
    refused(folder, folder / "none.saved", "No such file")
    (folder / "text.saved").write_text("hello")
    refused(folder, folder / "text.saved", "not a saved VM")


# --- the VM around it


def test_a_save_that_fails(folder: Path) -> None:
    """The file cannot be written: the VM goes on, running or paused as it was, and nothing is left of the attempt."""

    async def attempt() -> None:
        async with boundary_guest(topology(folder)) as guest:
            _, rings = await storage_channel(guest)
            vm = guest.host["web"]
            with pytest.raises(CannotSave, match="No such file"):
                await vm.save(folder / "nowhere" / "web.saved")
            assert vm.state is VmState.RUNNING
            await send(rings, read_sector(3, DATA >> 12), 9)
            assert len(await rings.received()) == 1
            await vm.pause()
            with pytest.raises(CannotSave):
                await vm.save(folder / "nowhere" / "web.saved")
            assert vm.state is VmState.PAUSED

    run(attempt)
    assert [path.name for path in folder.iterdir()] == ["disk.img"]


def test_states_and_numbers(folder: Path) -> None:
    """Saved is 6, the next start goes on, and turning off gives the state up; requests answer by Hyper-V's codes."""

    async def attempt() -> None:
        async with boundary_guest(topology(folder)) as guest:
            await guest.boot()
            vm = guest.host["web"]
            with vm.events() as events:
                assert await vm.request_state_change(6) is ReturnCode.COMPLETED
                assert (vm.state, vm.state.enabled_state) == (VmState.SAVED, 6)
                assert await vm.request_state_change(6) is ReturnCode.INVALID_STATE
                assert await vm.request_state_change(9) is ReturnCode.INVALID_STATE
                assert await vm.request_state_change(2) is ReturnCode.COMPLETED
                assert vm.state is VmState.RUNNING
                assert (await guest.do("rdmsr", msr=int(Msr.SINT2)))["value"] == 0xF3
                await vm.save()
                await vm.turn_off()
                assert vm.state is VmState.OFF
                await vm.start()
                assert (await guest.do("rdmsr", msr=int(Msr.SINT2)))["value"] == 1 << 16
                seen = [(await anext(events)).after.value for _ in range(9)]
            assert seen == ["saving", "saved", "starting", "running", "saving", "saved", "off", "starting", "running"]
            assert (folder / "web.saved").exists()

    run(attempt)


def test_back_to_a_checkpoint(folder: Path) -> None:
    """What the guest did since is gone from its memory and its processors; the VM went on in between."""

    async def attempt() -> None:
        async with boundary_guest(topology(folder)) as guest:
            _, rings = await storage_channel(guest)
            await guest.write(0x80000, b"before")
            vm = guest.host["web"]
            checkpoint = await vm.checkpoint()
            then = rings.go_on_as(guest)
            await guest.write(0x80000, b"after!")
            await send(rings, read_sector(3, DATA >> 12), 9)
            await rings.received()
            for _ in range(2):
                await vm.revert(checkpoint)
                assert await guest.read(0x80000, 6) == b"before"
                again = then.go_on_as(guest)
                await send(again, read_sector(4, DATA >> 12), 10)
                assert [transaction(packet) for packet in await again.received()] == [10]
                await guest.write(0x80000, b"other!")

    run(attempt)


def test_what_is_no_checkpoint_costs_nothing(folder: Path) -> None:
    """A mistake of the caller's is told before anything is done: the VM runs on."""

    async def attempt() -> None:
        async with boundary_guest(topology(folder)) as guest:
            vm = guest.host["web"]
            foreign = await vm.checkpoint()
            foreign = attrs.evolve(foreign, facts=msgspec.structs.replace(foreign.facts, vm="other"))
            with pytest.raises(ValueError, match="of VM 'other', not of 'web'"):
                await vm.revert(foreign)
            with pytest.raises(TypeError, match="restore takes a file"):
                await vm.revert("web.saved")  # type: ignore[arg-type]
            assert vm.state is VmState.RUNNING

    run(attempt)


def test_a_device_without_a_way_to_be_saved(folder: Path) -> None:
    """The refusal names it; while nobody has its channel open it is no obstacle."""
    (folder / "echo.py").write_text(ECHO)
    text = TOPOLOGY + '\n[[vm.device]]\nvsp = "echo.py:Echo"\n'

    async def attempt() -> None:
        async with boundary_guest(topology(folder, text)) as guest:
            await guest.boot()
            offers = await guest.connect()
            vm = guest.host["web"]
            await vm.checkpoint()
            number = next(struct.unpack_from("<I", offer, 184)[0] for offer in offers if offer[8:12] == bytes(4))
            await guest.open_channel(number)
            with pytest.raises(CannotSave, match="echo cannot be saved while its channel is open"):
                await vm.checkpoint()
            assert vm.state is VmState.RUNNING

    run(attempt)


ECHO = """
import trio
from hypervisor.wire import Guid
from vmbus.server.offers import Offer


class Echo:
    offer = Offer(Guid(bytes(15) + b"1"), Guid(bytes(15) + b"2"), name="echo")

    async def serve(self, channel, opened):
        await trio.sleep_forever()
"""


def test_other_backends_refuse(folder: Path) -> None:
    """A program without a way to go on is not saved: the reason says so, and it runs on."""
    (folder / "plain.py").write_text("async def main(guest):\n    await guest.sleep(1000)\n")
    text = '[[vm]]\nname = "web"\nmemory = "2MiB"\nprogram = "plain.py"\n'

    async def attempt() -> None:
        async with open_host(parse_topology(text, folder), clock="virtual") as host:
            await host["web"].start()
            with pytest.raises(CannotSave, match="resume"):
                await host["web"].save()
            assert host["web"].state is VmState.RUNNING

    run(attempt)


def test_turned_off_while_it_is_saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning off interrupts everything: the save fails and says so, and the VM is off with nothing of it left."""

    async def attempt() -> None:
        async with boundary_guest(topology(folder)) as guest:
            await guest.boot()
            vm = guest.host["web"]

            async def quiesce(server: object) -> None:
                assert vm.state is VmState.SAVING
                await vm.turn_off()

            monkeypatch.setattr(saving, "quiesce", quiesce)
            with pytest.raises(CannotSave, match="it has ended meanwhile"):
                await vm.save()
            assert vm.state is VmState.OFF
            assert vm.exit is not None
            assert vm.exit.reason is ExitReason.TURNED_OFF

    run(attempt)
    assert [path.name for path in folder.iterdir()] == ["disk.img"]
