"""Linux's hv_vmbus as the other end of the bus: negotiation, unloading, coming back, what it finds there."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

import pytest

from partitions.host import ExitReason
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest, parts
from vmbus.protocol.versions import Version

VERSIONS = {
    "2.4": 0x20004,
    "3.0": 0x30000,
    "4.0": 0x40000,
    "4.1": 0x40001,
    "5.0": 0x50000,
    "5.1": 0x50001,
    "5.2": 0x50002,
    "5.3": 0x50003,
}
SCSI = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
"""The interface of the synthetic SCSI controller."""
SIZE = 1 << 20

ONE_VERSION = """
load hv_vmbus max_version={number} && load hv_storvsc && await 60 test -b /dev/sda || exit 1
dd if=/dev/sda bs=64k iflag=direct 2>/dev/null | sha256sum
rmmod hv_storvsc && rmmod hv_vmbus
dmesg | grep -i 'vmbus version' | tail -n 1
"""


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> guest.Evidence:
    """One boot: every version in turn, each with a disk on it, then the newest with a look round."""
    folder = tmp_path_factory.mktemp("bus")
    image = folder / "disk.raw"
    image.write_bytes(content)
    steps = {"prepare": "for module in scsi_common scsi_mod scsi_transport_fc sd_mod; do load $module; done"}
    steps |= {f"version {name}": ONE_VERSION.format(number=number) for name, number in VERSIONS.items()}
    steps |= {
        "newest": "load hv_vmbus && load hv_storvsc && await 60 test -b /dev/sda; dmesg | grep 'Vmbus ver' | tail -n1",
        "devices": "cd /sys/bus/vmbus/devices; for d in *; do echo $d $(cat $d/class_id) $(readlink $d/driver); done",
        "channels": "for c in /sys/bus/vmbus/devices/*/channels/*; do echo ${c##*/} $(cat $c/cpu $c/interrupts); done",
        "identity": "dmesg | grep -iE 'hypervisor detected|Hyper-V:|clocksource: Switched' ",
        "complaints": "dmesg | grep -E 'hv_|vmbus' | grep -iE 'error|fail|warn|timed out|invalid|short' || true",
    }
    plan = guest.Plan(steps=steps, disks=[DiskTable(path=str(image), read_only=True)], traced=True)
    return guest.boot(plan, folder)


@pytest.mark.parametrize("name", VERSIONS)
def test_every_version_is_negotiated_and_carries_a_disk(bus: guest.Evidence, content: bytes, name: str) -> None:
    """A driver that caps its version gets that one, over a bus that it left in another version just before."""
    digest, line = bus[f"version {name}"].splitlines()
    assert line.endswith(f"Vmbus version:{name}")
    assert digest.split()[0] == hashlib.sha256(content).hexdigest()


def test_all_versions_that_linux_has_are_tried() -> None:
    """Nothing between the oldest and the newest that the bus knows is left out."""
    assert {int(version) for version in Version if Version.V2_4 <= version <= Version.V5_3} == set(VERSIONS.values())


def test_without_a_cap_the_newest_is_taken(bus: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """5.3, the version whose modified channels are answered."""
    assert bus["newest"].endswith("Vmbus version:5.3")
    evidence("hv_vmbus", f"{parts.kernel(parts.INNER).release}\n{bus['newest']}")
    unloaded = "\n".join(bus[f"version {name}"].splitlines()[-1] for name in VERSIONS)
    evidence("hv_vmbus", f"capped by max_version, the disk read on each, rmmod and insmod between:\n{unloaded}")


def test_the_guest_sees_the_devices_that_were_offered(
    bus: guest.Evidence, evidence: Callable[[str, str], None]
) -> None:
    """sysfs has the storage controller with Microsoft's interface GUID, bound to its driver, and its channel ran."""
    (storage,) = (line for line in bus["devices"].splitlines() if SCSI in line)
    assert storage.endswith("hv_storvsc")
    assert re.search(r"^\d+ 0 [1-9]\d*$", bus["channels"], re.MULTILINE)
    evidence("hv_vmbus", f"/sys/bus/vmbus/devices: instance, class_id, driver\n{bus['devices']}")
    evidence("hv_vmbus", f"channels: relid, cpu, interrupts\n{bus['channels']}")


def test_the_guest_knows_where_it_is(bus: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """CPUID says Microsoft Hv, and the clock is the hypervisor's."""
    assert "Hypervisor detected: Microsoft Hyper-V" in bus["identity"]
    evidence("enlightenments", bus["identity"])


def test_neither_side_complains(bus: guest.Evidence) -> None:
    """Nine connections, eight unloads: no warning in the guest's log, no fault of the guest's in ours.

    Ports that a kernel probes for devices of old machines are no fault."""
    assert bus["complaints"] == ""
    assert [words for words in bus.warnings if not words.startswith("unknown_port")] == []
    assert bus.statistics.faults == 0


def test_a_guest_that_powers_off_is_off(bus: guest.Evidence) -> None:
    """ACPI's soft off reaches the power port."""
    assert bus.exit.reason is ExitReason.POWERED_OFF
    assert bus.exit.ok
