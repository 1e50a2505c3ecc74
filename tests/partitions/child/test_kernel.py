"""The guest kernel's boot, its program and its ways to end."""

from __future__ import annotations

import re

import pytest
import trio
from trio.testing import MockClock

from hypervisor.machine import VpStopped
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_MASK
from hypervisor.privileges import Privilege
from hypervisor.status import HvStatus
from hypervisor.wire import Guid
from partitions import ports
from partitions.child.devices import DeviceBusy, NoSuchDevice
from partitions.child.guest import Guest, GuestMain
from partitions.child.kernel import boot
from tests.doubles.machine import RIGHTS, FakeMachine
from tests.doubles.scripted_bus import UNKNOWN, ScriptedBus
from vmbus.protocol import Version
from vmbus.protocol import messages as m


async def nothing(guest: Guest) -> None:
    pass


async def run(main: GuestMain = nothing, machine: FakeMachine | None = None, *, limit: float = 60) -> FakeMachine:
    """Boot to the end, or for so many seconds."""
    machine = machine or FakeMachine()
    if not machine.calls and machine.on_post.__name__ == "<lambda>":
        ScriptedBus(machine)
    with trio.move_on_after(limit):
        await boot([machine], main, name="web", args={"answer": 42})
    return machine


async def test_registers_are_set_up_in_linux_order_and_taken_down_in_it(autojump_clock: MockClock) -> None:
    """Guest OS ID before the hypercall page, pages before SINT2, SINT2 before SCONTROL; down as in Linux."""
    machine = await run()
    order = [Msr(msr).name for msr, _ in machine.writes if msr not in (Msr.EOI, Msr.EOM)]
    up = ["GUEST_OS_ID", "HYPERCALL", "SIMP", "SIEFP", "SINT2", "SCONTROL"]
    down = ["SINT2", "SIMP", "SIEFP", "SCONTROL", "GUEST_OS_ID", "HYPERCALL"]
    assert order == up + down
    assert machine.msrs[Msr.SINT2] & 1 << 16, "masked again"


async def test_reserved_bits_of_page_registers_are_kept(autojump_clock: MockClock) -> None:
    """Bits 11..1 of an overlay register are not ours: read, change, write."""
    machine = FakeMachine()
    machine.msrs[Msr.SIMP] = 0xABC
    await run(machine=machine)
    simp = next(value for msr, value in machine.writes if msr == Msr.SIMP)
    assert simp & PAGE_MASK == 0xABD
    assert simp >> 12 >= 0x100


async def test_auto_eoi_follows_the_recommendation(autojump_clock: MockClock) -> None:
    """Where the hypervisor does not deprecate AutoEOI, SINT2 has it, and no EOI is written for it."""
    machine = await run(machine=FakeMachine(hints=0))
    sint = next(value for msr, value in machine.writes if msr == Msr.SINT2)
    assert sint & 0x200FF == 0x200F3
    assert Msr.EOI not in [msr for msr, _ in machine.writes]


async def test_a_program_ends_with_its_exit_code(autojump_clock: MockClock) -> None:
    """None is 0 and an integer is itself; the code is told before the power goes."""
    for result, code in ((None, 0), (0, 0), (7, 7), (-1, 0xFFFF_FFFF)):

        async def main(guest: Guest, result: int | None = result) -> int | None:
            return result

        machine = await run(main)
        assert machine.port_writes == [(ports.EXIT_CODE, 4, code), (ports.POWER, 2, ports.POWER_OFF)]


async def test_the_bus_is_unloaded_before_the_power_goes(autojump_clock: MockClock) -> None:
    """UNLOAD is the last message, and the SynIC is there for its answer."""
    machine = FakeMachine()
    bus = ScriptedBus(machine)
    await run(machine=machine)
    assert [type(message) for message in bus.heard[-2:]] == [m.RequestOffers, m.Unload]
    assert machine.is_off


async def test_older_hosts_are_spoken_to_in_their_version(autojump_clock: MockClock) -> None:
    """Versions are tried newest first until one is taken."""
    versions: list[str] = []

    async def main(guest: Guest) -> None:
        versions.append(guest.bus.version)

    machine = FakeMachine()
    ScriptedBus(machine, version=Version.V4_0)
    await run(main, machine)
    assert versions == ["4.0"]


async def test_a_crash_leaves_traceback_registers_and_silence(autojump_clock: MockClock) -> None:
    """The console has the program's frames; P3 and P4 find the same text; then the processor halts."""

    async def main(guest: Guest) -> None:
        raise ZeroDivisionError("a share for nobody")

    machine = await run(main)
    assert "ZeroDivisionError: a share for nobody" in machine.text
    assert machine.exit_code == 1
    assert not machine.is_off, "that is the host's decision"
    p0, _, line, gpa, length = (machine.msrs[Msr.CRASH_P0 + number] for number in range(5))
    text = bytes(machine.memory[gpa : gpa + length]).decode()
    assert text.startswith("ZeroDivisionError: a share for nobody\nTraceback")
    assert p0 == 1
    assert f"line {line}, in main" in text
    assert machine.msrs[Msr.CRASH_CTL] == 0b11 << 62


async def test_without_crash_registers_a_crash_powers_off(autojump_clock: MockClock) -> None:
    """A hypervisor that offers no crash registers still learns that it went wrong: exit code 1."""

    async def main(guest: Guest) -> None:
        raise RuntimeError

    machine = await run(main, FakeMachine(features=0))
    assert (machine.exit_code, machine.is_off) == (1, True)
    assert not any(Msr.CRASH_P0 <= msr <= Msr.CRASH_CTL for msr, _ in machine.writes)


async def test_a_background_task_that_crashes_is_the_guests_crash(autojump_clock: MockClock) -> None:
    """The groups that nurseries wrap around an exception are not shown to people."""

    async def background() -> None:
        raise KeyError("lost")

    async def main(guest: Guest) -> None:
        guest.start_soon(background)
        await guest.sleep(10)

    machine = await run(main)
    assert "KeyError: 'lost'" in machine.text
    assert "ExceptionGroup" not in machine.text


async def test_background_tasks_end_with_main(autojump_clock: MockClock) -> None:
    """`main` is the guest: when it returns, what it started is cancelled and does not keep the machine on."""

    async def main(guest: Guest) -> None:
        guest.start_soon(guest.sleep, 1000)

    machine = await run(main)
    assert machine.is_off
    assert trio.current_time() < 10


async def test_a_stopped_processor_reports_nothing(autojump_clock: MockClock) -> None:
    """VpStopped means that the hypervisor took the processor away: no code of the guest runs after it."""

    async def main(guest: Guest) -> None:
        raise VpStopped("gone")

    machine = FakeMachine()
    ScriptedBus(machine)
    with pytest.raises(VpStopped):
        await boot([machine], main)
    assert machine.port_writes == []
    assert machine.text == ""


async def test_the_power_button_cancels_the_program(autojump_clock: MockClock) -> None:
    """The program's clean-up runs, with devices still there, and the exit code is 0."""
    cleaned: list[float] = []

    async def main(guest: Guest) -> None:
        try:
            await guest.sleep(1000)
        finally:
            with trio.CancelScope(shield=True):
                await guest.sleep(2)
            cleaned.append(guest.time())

    machine = FakeMachine()
    ScriptedBus(machine)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, main, machine)
        await trio.sleep(1)
        machine.press_button()
    assert cleaned == [pytest.approx(3)]
    assert (machine.exit_code, machine.is_off, machine.button) == (0, True, False)


async def test_a_program_that_does_not_end_is_cut_off(autojump_clock: MockClock) -> None:
    """The grace period is bounded: after it the power goes, with exit code 1 and a word on the console."""

    async def main(guest: Guest) -> None:
        with trio.CancelScope(shield=True):
            await guest.sleep(20)

    machine = FakeMachine()
    ScriptedBus(machine)
    off_at: list[float] = []
    machine.on_port_out = lambda port, value: off_at.append(trio.current_time()) if port == ports.POWER else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, main, machine)
        await trio.sleep(1)
        machine.press_button()
    assert off_at[1] == pytest.approx(6)
    assert "did not end within 5 s of the power button" in machine.text
    assert machine.exit_code == 1


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (lambda: FakeMachine(vendor=b"KVMKVMKVM\0\0\0"), "not of Hyper-V's kind"),
        (lambda: FakeMachine(privileges=RIGHTS & ~int(Privilege.POST_MESSAGES)), "withholds POST_MESSAGES"),
        (lambda: FakeMachine(size=1 << 20), "1024 KiB of memory are too little"),
    ],
)
async def test_what_is_no_hyperv_guest_says_so_and_powers_off(machine, words, autojump_clock: MockClock) -> None:
    """A machine that cannot be a guest of ours is no crash: it says why and leaves with code 1."""
    machine = await run(machine=machine())
    assert words in machine.text
    assert (machine.exit_code, machine.is_off) == (1, True)


async def test_a_host_that_refuses_every_version_is_a_kernel_crash(autojump_clock: MockClock) -> None:
    """Without a bus there is no guest; P0 tells a kernel's fault from a program's."""
    machine = FakeMachine()
    ScriptedBus(machine, version=0x0009_0000)
    await run(machine=machine)
    assert "the host speaks none of the versions" in machine.text
    assert machine.msrs[Msr.CRASH_P0] == 2


async def test_posts_are_repeated_while_buffers_are_short(autojump_clock: MockClock) -> None:
    """INSUFFICIENT_BUFFERS is not an error but a delay, on the partition's clock."""
    machine = FakeMachine()
    ScriptedBus(machine, statuses=[HvStatus.INSUFFICIENT_BUFFERS] * 3)
    await run(machine=machine)
    assert machine.is_off


async def test_reference_time_is_read_from_the_page_where_offered(autojump_clock: MockClock) -> None:
    """Sequence 0 means: not this page; any other means arithmetic and no trap."""
    machine = FakeMachine(privileges=RIGHTS | int(Privilege.ACCESS_PARTITION_REFERENCE_TSC))
    ScriptedBus(machine)
    times: list[float] = []

    async def main(guest: Guest) -> None:
        await guest.sleep(1)
        times.append(guest.time())
        gpa = machine.msrs[Msr.REFERENCE_TSC] & ~PAGE_MASK
        # The fake's TSC runs at 1 GHz: scale 2^64/100, and an offset of 5 s to tell the page from the register.
        page = (
            (1).to_bytes(8, "little")
            + ((1 << 64) // 100 + 1).to_bytes(8, "little")
            + (50_000_000).to_bytes(8, "little")
        )
        machine.memory[gpa : gpa + 24] = page
        times.append(guest.time())

    await run(main, machine)
    assert times == [pytest.approx(1), pytest.approx(6)]
    assert machine.msrs[Msr.REFERENCE_TSC] == 0, "the page is taken back at the end"


async def test_each_processor_has_a_synic(autojump_clock: MockClock) -> None:
    """Messages and flags can go to any processor, so each gets pages and an interrupt task of its own."""
    machines = [FakeMachine(vp_index=index) for index in range(3)]
    for other in machines[1:]:
        other.memory = machines[0].memory
    ScriptedBus(machines[0])
    await boot(machines, nothing)
    for machine in machines:
        assert [msr for msr, _ in machine.writes if msr in (Msr.SIMP, Msr.SCONTROL)][:2] == [Msr.SIMP, Msr.SCONTROL]
    assert len({value for machine in machines for msr, value in machine.writes if msr == Msr.SIMP and value}) == 3


async def test_a_guest_knows_its_name_arguments_time_and_work(autojump_clock: MockClock) -> None:
    """What the topology gave, and the partition's own clock."""

    async def main(guest: Guest) -> None:
        assert (guest.name, guest.args) == ("web", {"answer": 42})
        await guest.sleep(1.5)
        await guest.work(0.5)
        assert guest.time() == pytest.approx(2)
        guest.print("a", "b", sep="-", end=".\n")
        guest.log("here")

    machine = await run(main)
    assert machine.exit_code == 0, machine.text
    assert machine.worked == 5_000_000
    assert re.fullmatch(r"a-b\.\n\[ +2\.000\d+\] here\n", machine.text)


async def test_a_missing_disk_is_named_with_what_there_is(autojump_clock: MockClock) -> None:
    """An error that says what exists saves the next question."""

    async def main(guest: Guest) -> None:
        with pytest.raises(NoSuchDevice, match=f"no disks; the host offers device {UNKNOWN} on channel 1"):
            await guest.disk(0)
        with pytest.raises(NoSuchDevice, match=r"neither a GUID nor one of .*heartbeat, .*kvp, .*storage"):
            await guest.open_channel("floppy")
        with pytest.raises(NoSuchDevice, match="no device storage"):
            await guest.open_channel("storage")

    machine = FakeMachine()
    ScriptedBus(machine, offers=[UNKNOWN])
    await run(main, machine)
    assert machine.exit_code == 0, machine.text


async def test_a_program_opens_closes_and_opens_a_channel(autojump_clock: MockClock) -> None:
    """A channel without a driver is the program's; while it holds it nobody else gets it; `unbind` gives it back."""

    async def main(guest: Guest) -> None:
        assert [offer.interface for offer in guest.bus.offers] == [UNKNOWN]
        channel = await guest.open_channel(UNKNOWN, ring_bytes=8192)
        with pytest.raises(DeviceBusy, match=r"raw\): unbind it first"):
            await guest.open_channel(str(UNKNOWN))
        await guest.unbind(guest.bus.offers[0])
        assert channel.closed
        channel = await guest.open_channel(guest.bus.offers[0])
        await channel.aclose()
        await guest.open_channel(UNKNOWN)

    machine = FakeMachine()
    ScriptedBus(machine, offers=[UNKNOWN])
    await run(main, machine)
    assert machine.exit_code == 0, machine.text


async def test_devices_come_and_go(autojump_clock: MockClock) -> None:
    """A hot-added device appears in `guest.bus`, a rescinded one disappears."""
    other = Guid(b"\x07" * 16)
    seen: list[list[Guid]] = []

    async def main(guest: Guest) -> None:
        for _ in range(3):
            seen.append([offer.interface for offer in guest.bus.offers])
            await guest.sleep(1)

    machine = FakeMachine()
    bus = ScriptedBus(machine, offers=[UNKNOWN])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, main, machine)
        await trio.sleep(0.5)
        bus.offer(2, other)
        await trio.sleep(1)
        bus.say(m.RescindChannelOffer(channel_id=1))
    assert seen == [[UNKNOWN], [UNKNOWN, other], [other]]


async def test_an_unknown_hypercall_gets_its_status(autojump_clock: MockClock) -> None:
    """`guest.hypercall` is the bare interface: a status, not an exception."""

    async def main(guest: Guest) -> None:
        assert guest.hypercall(0x0FFF).status.name == "INVALID_HYPERCALL_CODE"
        with pytest.raises(ValueError, match="one page"):
            guest.hypercall(0x0FFF, bytes(4097))

    machine = await run(main)
    assert machine.exit_code == 0, machine.text
