"""`make linux-bench`: a real kernel here and in QEMU on the same KVM, side by side. Both sides.

    python -m benchmarks.linux

Without hardware KVM everything runs inside an outer machine under emulation, and the figures are called nested. There
each exit costs hundreds of microseconds and Python runs at a tenth of its speed; ratios hold, absolute figures do not.

- boot: from the start of the process (`partita run`, `qemu-system-x86_64`) to the first line of init, the same kernel,
  initramfs, command line and memory; medians of interleaved rounds
- exits: all exits of one processor to this process until the first line of init, and how long each took to be answered
- reads: one disk on one file system, O_DIRECT, one request at a time, by the guest's own clock
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import trio

from hypervisor.backend.kvm import ioctls
from partitions.topology_schema import DiskTable, VmTable
from tests.linux_guest import guest, nested, parts
from tests.linux_guest.__main__ import hardware_kvm

FILE = Path(__file__).with_name("linux.json")
INSIDE = "--inside"
RESULT = nested.OUT / "linux.json"
ROUNDS = int(os.environ.get("PARTITA_BENCH_ROUNDS", "5"))
DISK_ROUNDS = 2
REPEATS = 3
LATEST = 90.0
"""Seconds after which a boot is given up."""
TIME_BOX = 540.0
IMAGE_MIB = 32
READS = 800
SEQUENTIAL_BLOCK = 256 << 10
QEMU = ("qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-nographic", "-nic", "none", "-no-reboot")
MICROVM = ("-M", "microvm,acpi=off,rtc=on", "-nodefaults", "-serial", "stdio")

TIMED = f"""
now() {{ cut -d ' ' -f 1 /proc/uptime; }}
dd if=DISK of=/dev/null bs=1M 2>/dev/null
for i in $(seq {REPEATS}); do
  start=$(now); dd if=DISK of=/dev/null bs=4k count={READS} iflag=direct 2>/dev/null; echo random $start $(now)
  start=$(now); dd if=DISK of=/dev/null bs={SEQUENTIAL_BLOCK} iflag=direct 2>/dev/null; echo sequential $start $(now)
done
"""


def first_line_seconds(command: Sequence[str]) -> float:
    """From the start of a process to init's first line on its standard output. Raises `TimeoutError`."""
    started = time.perf_counter()
    with (
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        seen = b""
        try:
            while guest.UP.encode() not in seen:
                left = started + LATEST - time.perf_counter()
                piece = os.read(process.stdout.fileno(), 65536) if left > 0 and selector.select(left) else b""
                if not piece:
                    raise TimeoutError(f"{command[0]} came to no init: {seen[-2000:].decode('utf-8', 'replace')}")
                seen += piece
            return time.perf_counter() - started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def boots(folder: Path) -> dict[str, float]:
    """Median seconds to init: here, QEMU's default machine, QEMU's microvm."""
    vm = guest.topology(guest.Plan(steps={}, modules=()), folder).vm[0]
    file = folder / "topology.toml"
    file.write_text(
        f'[[vm]]\nname = "linux"\nbackend = "kvm"\nkernel = "{vm.kernel}"\ninitrd = "{vm.initrd}"\n'
        f'cmdline = "{vm.cmdline}"\nmemory = {int(vm.memory)}\n'
    )
    cases = {
        "ours": [str(Path(sys.executable).with_name("partita")), "run", str(file)],
        "qemu": [*QEMU, *_kernel_words(vm)],
        "microvm": [*QEMU, *MICROVM, *_kernel_words(vm)],
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, command in cases.items():
            times[name].append(first_line_seconds(command))
    for name, values in times.items():
        print(f"boot {name:8}", *(f"{value:7.2f}" for value in values), "s", flush=True)
    return {name: statistics.median(values) for name, values in times.items()}


def _kernel_words(vm: VmTable) -> list[str]:
    memory = str(vm.memory >> 20)
    return ["-m", memory, "-smp", "1", "-kernel", vm.kernel, "-initrd", vm.initrd, "-append", vm.cmdline]


@attrs.define
class Exits:
    """The exits of one vCPU, timed from KVM_RUN's return to the next call."""

    latencies: list[float] = attrs.Factory(list)
    _returned: float = 0.0

    def run(self, fd: int) -> int:
        """In place of `ioctls.run`."""
        if self._returned:
            self.latencies.append(time.perf_counter() - self._returned)
        result = _RUN(fd)
        self._returned = time.perf_counter()
        return result


_RUN = ioctls.run


def exits(folder: Path) -> Exits:
    """Those of one quiet boot, up to init's first line."""
    counted = Exits()

    async def until_init() -> None:
        async with guest.booted(guest.Plan(steps={}, modules=()), folder) as (_, vm):
            with trio.fail_after(LATEST), vm.console.follow() as lines:
                async for line in lines:
                    if line.text.startswith(guest.UP):
                        break
            taken[:] = counted.latencies

    taken: list[float] = []
    ioctls.run = counted.run
    try:
        trio.run(until_init)
    finally:
        ioctls.run = _RUN
    return Exits(taken)


def reads(folder: Path) -> dict[str, dict[str, float]]:
    """Median seconds of the two kinds of reading: hv_storvsc here, virtio-blk in QEMU."""
    image = folder / "disk.raw"
    image.write_bytes(os.urandom(IMAGE_MIB << 20))
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(DISK_ROUNDS):
        ours = guest.Plan(
            steps={"load": "all; await 10 test -b /dev/sda", "reads": TIMED.replace("DISK", "/dev/sda")},
            disks=[DiskTable(path=str(image))],
            timeout=LATEST,
        )
        _take(times.setdefault("ours", {}), guest.boot(ours, folder)["reads"])
        theirs = guest.Plan(
            steps={"load": "all; await 10 test -b /dev/vda", "reads": TIMED.replace("DISK", "/dev/vda")},
            modules=("virtio_pci", "virtio_blk"),
        )
        vm = guest.topology(theirs, folder).vm[0]
        drive = ["-drive", f"file={image},format=raw,if=virtio"]
        done = subprocess.run(
            [*QEMU, *_kernel_words(vm), *drive],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LATEST,
            check=True,
        )
        _take(times.setdefault("virtio-blk", {}), done.stdout.decode("utf-8", "replace"))
    return {name: {kind: statistics.median(all_of) for kind, all_of in kinds.items()} for name, kinds in times.items()}


def _take(times: dict[str, list[float]], printed: str) -> None:
    found = re.findall(r"(random|sequential) ([\d.]+) ([\d.]+)", printed)
    if len(found) != 2 * REPEATS:
        raise RuntimeError(f"the guest did not read to the end: {printed[-2000:]}")
    for kind, start, end in found:
        times.setdefault(kind, []).append(float(end) - float(start))


def measure(folder: Path) -> Iterator[dict[str, float]]:
    """Figures by key, group by group, so that a run whose time is up has given what it had."""
    taken = exits(folder).latencies
    cuts = statistics.quantiles(taken, n=100)
    print(
        f"exits to init: {len(taken)}; answered in us: p50 {cuts[49] * 1e6:.0f}, p99 {cuts[98] * 1e6:.0f}", flush=True
    )
    yield {
        "linux.exit_latency_p50_us": cuts[49] * 1e6,
        "linux.exit_latency_p99_us": cuts[98] * 1e6,
        "linux.exits_per_boot": len(taken),
    }
    disk = reads(folder)
    ours, theirs = disk["ours"], disk["virtio-blk"]
    for name, kinds in disk.items():
        random, sequential = READS / kinds["random"], IMAGE_MIB / kinds["sequential"]
        print(f"{name:10} {random:8.0f} reads/s of 4 KiB, {sequential:8.0f} MiB/s", flush=True)
    yield {
        "linux.read4k_vs_virtio_blk": theirs["random"] / ours["random"],
        "linux.seqread_vs_virtio_blk": theirs["sequential"] / ours["sequential"],
        "linux.read4k_per_second": READS / ours["random"],
        "linux.seqread_mib_per_second": IMAGE_MIB / ours["sequential"],
    }
    boot = boots(folder)
    yield {
        "linux.boot_vs_qemu": boot["ours"] / boot["qemu"],
        "linux.boot_vs_microvm": boot["ours"] / boot["microvm"],
        "linux.boot_seconds": boot["ours"],
    }


def inside(is_nested: bool) -> None:
    """Measure on this machine and leave the result."""
    kind = "nested: KVM inside QEMU's emulation" if is_nested else "hardware KVM"
    machine = f"{kind}; Python {platform.python_version()}, {os.cpu_count()} processors"
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=nested.SCRATCH if is_nested else None) as folder:
        for group in measure(Path(folder)):
            figures |= {key: round(value, 3) for key, value in group.items()}
            RESULT.write_text(
                json.dumps({"machine": machine, "nested": is_nested, "figures": figures}, indent=2) + "\n"
            )


def main(options: Sequence[str]) -> int:
    """Measure where KVM works, print, write the file."""
    if options and options[0] == INSIDE:
        inside(is_nested=True)
        return 0
    print(f"guest kernel: {parts.kernel(parts.INNER).release}")
    RESULT.unlink(missing_ok=True)
    why_not = hardware_kvm()
    if why_not:
        print(f"nested, since {why_not}", flush=True)
        command = ["env", f"PARTITA_BENCH_ROUNDS={ROUNDS}", sys.executable, "-m", "benchmarks.linux", INSIDE]
        status = nested.run(command, timeout=TIME_BOX, scratch_mib=8 * IMAGE_MIB)
    else:
        inside(is_nested=False)
        status = 0
    if not RESULT.exists():
        return status or 1
    FILE.write_text(RESULT.read_text())
    for key, value in json.loads(RESULT.read_text())["figures"].items():
        print(f"{key:32} {value:10.3f}")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except parts.MissingPart as problem:
        sys.exit(f"error: {problem}")
