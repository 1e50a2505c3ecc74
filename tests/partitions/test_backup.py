"""Freezing, file copy, reasons for going down and the guest's clock, from the host's API to a guest program."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trio

from partitions.child.guest import Guest
from partitions.figures import figures_of
from partitions.host import ExitReason, InvalidTransition, NoAnswer, Pool, VmState
from partitions.root.integration import FreezeState
from tests.partitions.test_integration import open_guest, started, wait
from vsp_vsc.integration.heartbeat.protocol import ApplicationState
from vsp_vsc.integration.shutdown.protocol import ShutdownFlags


async def test_a_file_for_a_program(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """It arrives whole; a folder takes the file's own name; what the guest refuses is said with its reason."""
    source = tmp_path / "settings.toml"
    source.write_bytes(b"colour = 'green'\n" * 5000)
    got: list[bytes] = []

    async def main(guest: Guest) -> None:
        copies = await guest.driver("file-copy")
        for _ in range(2):
            got.append(copies.files[await copies.receive()])
        await wait(guest)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert await vm.copy_file(source, "/etc/app/", create_path=True) == source.stat().st_size
        await vm.copy_file(source, "/etc/app/other")
        with pytest.raises(NoAnswer, match="overwrite it"):
            await vm.copy_file(source, "/etc/app/settings.toml")
        for place, error in ((tmp_path, ValueError), (tmp_path / "nothing", FileNotFoundError)):
            with pytest.raises(error):
                await vm.copy_file(place, "/etc/x")
        with pytest.raises(ValueError, match="begins with a folder"):
            await vm.copy_file(source, "motd")
        assert got == [source.read_bytes()] * 2
        await vm.turn_off()
        with pytest.raises(NoAnswer, match="the VM is off"):
            await vm.copy_file(source, "/etc/x")


async def test_frozen_through_a_pause_but_no_reset(autojump_clock: trio.abc.Clock) -> None:
    """A pause in the block does no harm; a reset ends the freeze, and the block says so."""
    states: list[bool] = []

    async def main(guest: Guest) -> None:
        backup = await guest.driver("vss")

        async def freeze() -> None:
            states.append(True)

        async def thaw() -> None:
            states.append(False)

        backup.on_freeze, backup.on_thaw = freeze, thaw
        await wait(guest)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        async with vm.frozen():
            await vm.pause()
            await trio.sleep(1000)
            await vm.resume()
            assert vm.freeze_state is FreezeState.FROZEN
        assert states == [True, False]
        with pytest.raises(NoAnswer, match="gone"):  # noqa: PT012  # at the end of the block
            async with vm.frozen():
                await vm.reset()
                await trio.sleep(1)
        assert vm.freeze_state is FreezeState.THAWED
        async with vm.frozen():
            pass
        await vm.freeze(5)
        await trio.sleep(6)
        assert (vm.freeze_state, states[-2:]) == (FreezeState.THAWED, [True, False])
        await vm.turn_off()
        assert vm.freeze_state is FreezeState.THAWED


async def test_the_guest_reads_why_it_has_to_go(autojump_clock: trio.abc.Clock) -> None:
    """Flags and text reach its kernel's hook; the host reads what was answered."""
    heard: list[tuple[ShutdownFlags, str]] = []

    async def main(guest: Guest) -> None:
        driver = await guest.driver("shutdown")
        kernels = driver.on_request

        def asked(flags: ShutdownFlags, text: str) -> bool:
            heard.append((flags, text))
            return kernels(flags, text)

        driver.on_request = asked
        await wait(guest)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert vm.shutdown_outcome == ""
        assert not await vm.hibernate(reason="night")
        assert vm.shutdown_outcome == "shutdown: the guest refused (fail)"
        assert vm.state is VmState.RUNNING
        assert await vm.restart(reason="update", insist=True)
        await trio.sleep(0.1)
        assert (await vm.shut_down(reason="Feierabend, größte VM")).reason is ExitReason.POWERED_OFF
        assert heard == [
            (ShutdownFlags.HIBERNATE, "night"),
            (ShutdownFlags.RESTART | ShutdownFlags.FORCE, "update"),
            (ShutdownFlags.NONE, "Feierabend, größte VM"),
        ]
        with pytest.raises(InvalidTransition):
            await vm.hibernate()


async def test_a_guest_that_can_hibernate(autojump_clock: trio.abc.Clock) -> None:
    """Its own way of keeping its memory is its own business; the host sees it power off."""

    async def main(guest: Guest) -> None:
        driver = await guest.driver("shutdown")
        kernels, done = driver.on_request, trio.Event()

        def asked(flags: ShutdownFlags, text: str) -> bool:
            if flags & ShutdownFlags.HIBERNATE:
                done.set()
                return True
            return bool(kernels(flags, text))

        driver.on_request = asked
        await done.wait()

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert await vm.hibernate()
        assert vm.state is VmState.OFF


async def test_whoever_says_yes_and_stays(autojump_clock: trio.abc.Clock) -> None:
    """Has its power cut after the grace period, and the record says what it had answered."""

    async def main(guest: Guest) -> None:
        driver = await guest.driver("shutdown")
        driver.on_request = lambda flags, text: True
        await wait(guest)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert not await vm.hibernate(grace=3)
        ended = await vm.shut_down(grace=3)
        assert ended.reason is ExitReason.TURNED_OFF
        assert ended.detail == "it was still on 3 s after it had been asked to power off (accepted)"


async def test_a_mute_guest_is_turned_off_with_a_reason(autojump_clock: trio.abc.Clock) -> None:
    """Its driver takes the request and says nothing, its kernel knows no button: time out, and a clear state."""

    async def main(guest: Guest) -> None:
        await guest.unbind("shutdown")
        from vsp_vsc.integration.protocol import RING_BYTES, Component
        from vsp_vsc.integration.responder import Responder, responding

        async def never(untrusted: bytes, version: object) -> None:
            await trio.sleep_forever()

        channel = await guest.open_channel("shutdown", ring_bytes=RING_BYTES)
        with trio.CancelScope(shield=True):
            async with responding(channel, Responder(Component.SHUTDOWN, never)):  # type: ignore[arg-type]
                await trio.sleep_forever()

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert not await vm.restart()
        assert vm.shutdown_outcome == "shutdown: no answer within 5 s"
        assert vm.integration["shutdown"].value == "no answer"
        ended = await vm.shut_down()
        assert ended.reason in (ExitReason.TURNED_OFF, ExitReason.POWERED_OFF)


async def test_what_the_host_says_of_itself(autojump_clock: trio.abc.Clock) -> None:
    """Names and numbers of the host and of the VM are in the guest's pool for them, without being asked."""
    async with open_guest(wait) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        own = await vm.kvp.items(Pool.AUTO_EXTERNAL)
        assert (own["VirtualMachineName"], own["HostName"], own["HostingSystemOsMajor"]) == ("web", "host", 0)
        assert len(str(own["VirtualMachineId"])) == 36
        facts = await vm.kvp.items()
        assert facts["OSName"] == "Partita guest kernel"
        assert {"IntegrationServicesVersion", "NetworkAddressIPv4", "OSMajorVersion", "OSBuildNumber"} <= facts.keys()
        await vm.turn_off()


async def test_how_wrong_the_guest_s_clock_is(autojump_clock: trio.abc.Clock) -> None:
    """The host sees by how much the partition's time has gone astray, and the guest says the same of its own clock."""
    async with open_guest(wait) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        await trio.sleep(6)
        clock = vm.clock
        assert (clock.syncs, clock.samples, clock.drift) == (1, 1, 0)
        assert clock.round_trip is not None
        assert clock.round_trip < 10_000
        # The host's own date moves, as it does on a machine whose clock is set.
        sync = vm._integration().time_sync
        before = sync._wall_clock
        sync._wall_clock = lambda: before() + datetime.timedelta(milliseconds=250)
        await trio.sleep(5)
        assert vm.clock.drift == 2_500_000
        assert await vm.kvp.get("ClockDrift", Pool.AUTO) == "250000"
        await vm.pause()
        await vm.resume()
        await trio.sleep(1)
        assert (vm.clock.syncs, vm.clock.drift) == (2, 0)
        await vm.turn_off()


async def test_what_a_guest_says_of_its_programs(autojump_clock: trio.abc.Clock) -> None:
    """Is in `partita ps` behind its heartbeat, while it says anything."""

    async def main(guest: Guest) -> None:
        heart = await guest.driver("heartbeat")
        await guest.sleep(5)
        heart.application = ApplicationState.CRITICAL
        await guest.sleep(5)
        await guest.unbind("heartbeat")
        await wait(guest)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        await trio.sleep(4)
        assert figures_of(vm).heartbeat == "ok"
        await trio.sleep(5)
        assert figures_of(vm).heartbeat == "ok (applications critical)"
        await trio.sleep(5)
        assert figures_of(vm).heartbeat == "no contact"
        await vm.turn_off()
