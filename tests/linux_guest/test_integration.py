"""Linux's hv_utils and Debian's hv_kvp_daemon as the other end of the integration components."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from partitions.host import Contact, ExitReason, Heartbeat, Host, Pool, Vm
from partitions.root.chipset.cmos import CmosClock
from partitions.root.integration import GuestTime, Value
from tests.linux_guest import guest, hyperv_daemons
from vsp_vsc.integration.heartbeat.vsp import HeartbeatState

MODULES = ("hv_vmbus", "hv_utils")
WRONG = datetime.datetime(2001, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
"""What this guest's CMOS clock says it is."""
ASKED = "init was asked to"
SBIN = {
    "poweroff": f"#!/bin/busybox sh\necho {ASKED} power off >/dev/console\n/bin/busybox poweroff -f\n".encode(),
    "reboot": f"#!/bin/busybox sh\necho {ASKED} restart >/dev/console\n/bin/busybox reboot -f\n".encode(),
}
"""What the kernel runs when the shutdown component asks."""
DRIVERS = "mkdir -p /sbin; mv /poweroff /reboot /sbin/; all; dmesg | grep -i hv_utils"

DEVICES = """
cd /sys/bus/vmbus/devices; for d in *; do echo $d $(cat $d/class_id) $(basename $(readlink $d/driver)); done
"""


class Seen:
    """What the host knew while the guest ran."""

    def __init__(self) -> None:
        self.beats: list[Heartbeat] = []
        self.contacts: dict[str, Contact] = {}
        self.host_time = 0.0
        self.items: dict[Pool, dict[str, Value]] = {}
        self.got: list[Value | None] = []
        self.guest_time = GuestTime()

    async def clock(self, host: Host, vm: Vm) -> None:
        self.host_time = time.time()

    async def heart(self, host: Host, vm: Vm) -> None:
        with trio.move_on_after(20):
            while len(self.beats) < 3:
                if not self.beats or vm.heartbeat.beats > self.beats[-1].beats:
                    self.beats.append(vm.heartbeat)
                await trio.sleep(0.1)
        self.contacts = dict(vm.integration)

    async def daemon(self, host: Host, vm: Vm) -> None:
        with trio.fail_after(40):
            while vm.kvp.contact is not Contact.READY:  # noqa: ASYNC110  # what a person would do, too
                await trio.sleep(0.1)
            self.items[Pool.AUTO] = dict(await vm.kvp.items())
            await vm.kvp.set("greeting", "grüß dich")
            await vm.kvp.set("number", 7)
            await vm.kvp.set("gone", "soon")
            self.got.append(await vm.kvp.delete("gone"))
            self.got.append(await vm.kvp.delete("never there"))
            self.items[Pool.EXTERNAL] = dict(await vm.kvp.items(Pool.EXTERNAL))
            self.items[Pool.AUTO_EXTERNAL] = dict(await vm.kvp.items(Pool.AUTO_EXTERNAL))
            self.guest_time = vm.clock
            self.got.append(await vm.kvp.get("greeting", Pool.EXTERNAL))
            self.got.append(await vm.kvp.get("nothing", Pool.EXTERNAL))


DAEMON = "/usr/sbin/hv_kvp_daemon -n & await 30 grep -q greeting /var/lib/hyperv/.kvp_pool_0; sleep 3"
"""The daemon, until the host has set the first item of its test, and a little longer."""

POOL = """
for half in 0 1 5 6; do
  dd if=/var/lib/hyperv/.kvp_pool_0 bs=512 skip=$half count=1 2>/dev/null | tr '\\0' '\\n' | head -n 1
done
"""
"""Two records of 512 bytes of key and 2,048 of value; what stands behind their ends is what the daemon left there."""


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def utils(tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> guest.Evidence:
    """One boot with a wrong CMOS date: before and after hv_utils, then the daemon."""
    steps = {
        "before": "date -u +%Y-%m-%d",
        "drivers": DRIVERS,
        "clock": "await 10 sh -c '[ $(date -u +%Y) != 2001 ]'; date -u +%s",
        "devices": DEVICES,
        "heart": "sleep 7",
        "daemon": hyperv_daemons.INSTALL + DAEMON,
        "pool": POOL,
        "complaints": "dmesg | grep -E 'hv_|vmbus' | grep -iE 'error|fail|warn|timed out|invalid|short' || true",
    }
    during = {"clock": seen.clock, "heart": seen.heart, "daemon": seen.daemon}
    extra = {**SBIN, **hyperv_daemons.fetch()}
    plan = guest.Plan(steps=steps, modules=MODULES, extra=extra, timeout=90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("partitions.root.worker.CmosClock", lambda _now: CmosClock(lambda: WRONG))
        return guest.boot(plan, tmp_path_factory.mktemp("utils"), during)


def test_the_clock_is_set(utils: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """A guest whose CMOS clock is wrong has the host's time once its time synchronization runs."""
    assert utils["before"] == WRONG.strftime("%Y-%m-%d")
    now = float(utils["clock"])
    assert abs(now - seen.host_time) < 5
    evidence(
        "hv_utils", f"time: the guest began on {utils['before']}, and was set to {now:.0f}; host {seen.host_time:.1f}"
    )


def test_the_drivers_are_bound(utils: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """sysfs has all six components with hv_utils; each agreed on versions, but KVP, whose daemon did not run yet."""
    assert [line.split()[2] for line in utils["devices"].splitlines()] == ["hv_utils"] * 6
    contacts = dict(seen.contacts)
    # Those two have daemons, too; what the kernel says before they run differs from one version to the next.
    assert {contacts.pop("vss"), contacts.pop("file copy")} <= {Contact.READY, Contact.NEGOTIATING}
    assert contacts == {
        "heartbeat": Contact.READY,
        "shutdown": Contact.READY,
        "time sync": Contact.READY,
        "kvp": Contact.NEGOTIATING,
    }
    evidence("hv_utils", f"{utils['drivers']}\n{utils['devices']}")


def test_the_heart_beats(seen: Seen, utils: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """The number goes up by two with each beat: one for the host, one for the guest."""
    assert all(beat.state is HeartbeatState.OK and beat.missed == 0 for beat in seen.beats)
    assert [beat.sequence for beat in seen.beats] == [2 * beat.beats - 1 for beat in seen.beats]
    evidence("hv_utils", "heartbeat: " + ", ".join(f"beat {b.beats}, number {b.sequence}" for b in seen.beats))


def test_the_daemon_answers(utils: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """What the genuine daemon says of its system; items set, deleted and read back; what it keeps in its file."""
    assert Pool.AUTO in seen.items, (utils["daemon"], seen.contacts)
    items = seen.items[Pool.AUTO]
    assert items["FullyQualifiedDomainName"] == hyperv_daemons.HOST_NAME
    assert items["ProcessorArchitecture"] == "x86_64"
    assert seen.items[Pool.EXTERNAL] == {"greeting": "grüß dich", "number": "7"}
    assert seen.got == [True, False, "grüß dich", None]
    assert seen.items[Pool.AUTO_EXTERNAL]["VirtualMachineName"] == "linux"
    assert seen.guest_time.syncs == 1
    assert seen.guest_time.drift is not None
    assert utils["pool"].splitlines() == ["greeting", "grüß dich", "number", "7"]
    evidence("hv_kvp_daemon", "\n".join(f"{key} = {value}" for key, value in items.items()))


def test_nobody_complains(utils: guest.Evidence) -> None:
    """No warning in the guest's log, no fault of the guest's in ours."""
    assert utils["complaints"] == ""
    assert utils.statistics.faults == 0


async def asked(folder: Path) -> list[str]:
    plan = guest.Plan(steps={"drivers": DRIVERS}, modules=MODULES, extra=SBIN, ending="sleep 1000", timeout=90)
    boots = 0
    with trio.fail_after(plan.timeout):
        async with guest.booted(plan, folder) as (_, vm), trio.open_nursery() as nursery:

            async def listen() -> None:
                nonlocal boots
                async for line in vm.console.follow(capacity=10_000):
                    if line.text == guest.OVER:
                        boots += 1
                        nursery.start_soon(vm.restart if boots == 1 else partial(vm.shut_down, grace=30))

            nursery.start_soon(listen)
            record = await vm.wait()
            nursery.cancel_scope.cancel()
        assert (record.reason, record.resets) == (ExitReason.POWERED_OFF, 1)
        return [line.rstrip("\r") for line in vm.console.lines() if line.startswith(ASKED)]


def test_restart_and_power_off_on_request(tmp_path: Path, evidence: Callable[[str, str], None]) -> None:
    """The kernel runs init's programs for both, and the VM goes the way that they lead."""
    lines = trio.run(asked, tmp_path)
    assert lines == [f"{ASKED} restart", f"{ASKED} power off"]
    evidence("hv_utils", "shutdown:\n" + "\n".join(lines))
