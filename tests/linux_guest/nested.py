"""Where this machine has no usable KVM: an outer Linux under emulation that has one, and a command run inside it.

    python -m tests.linux_guest.nested COMMAND...

QEMU's TCG emulates AMD SVM well enough for kvm-amd. The outer kernel mounts this machine's root read-only over 9p, lays
a tmpfs over it and runs the command there, so it sees this checkout and its virtual environment. The command's exit
status is ours, its output comes by the serial port, and what it writes is gone with the machine, but for the folder
`.build/linux/out`, which is shared for writing.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.linux_guest import parts

OUTER_MODULES = ("virtio_pci", "virtio_blk", "ext4", "9p", "9pnet_virtio", "overlay", "kvm-amd", "tun")
OUTER_MEMORY = "6144"
OUTER_CLOCK = "tsc=reliable"
"""Emulated processors share one counter, but a busy host makes them look out of step, and Linux then takes the HPET:
each reading leaves the emulation's fast path, and now and then the outer machine's time stood still for good."""
NO_STATUS = 125
"""The command never came to its end: the outer machine did not boot, died, or its time was up."""
STOOD_STILL = 124
"""The machine lived and the command did not get on: no fault of the emulation."""
BEAT = "beat"
"""A file in `OUT` that the outer machine's init writes anew as long as the machine lives."""
BEAT_SECONDS = 5
STANDS_STILL_SECONDS = 100
"""An outer machine without a beat for so long is not slow but dead: emulation has deadlocked."""
NO_PROGRESS_SECONDS = 600
"""Twice what the longest test of all takes."""
OUT = parts.BUILD / "out"
"""What outlives the outer machine."""
SCRATCH = "/scratch"
"""An ext4 of the outer machine on a virtio disk, where one was asked for: a page cache as on a real machine."""
UP = "outer machine: up"
MARK = "outer machine: status "

INIT = (
    """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
$b mkdir /host /cover /all
share=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o $share,ro,cache=loose host /host
$b mount -t tmpfs cover /cover
$b mkdir /cover/upper /cover/scratch
$b mount -t overlay -o lowerdir=/host,upperdir=/cover/upper,workdir=/cover/scratch overlay /all
$b mount -t proc proc /all/proc; $b mount -t sysfs sys /all/sys; $b mount -t devtmpfs dev /all/dev
$b mkdir -p /all/dev/shm /all/dev/pts /allOUT
$b mount -t tmpfs shm /all/dev/shm; $b mount -t devpts terminals /all/dev/pts
$b mount -t 9p -o $share out /allOUT
if [ -b /dev/vda ]; then $b mkdir -p /allSCRATCH; $b mount -t ext4 /dev/vda /allSCRATCH; fi
$b ip link set lo up
$b cp /command /all/command
echo "UP"
while $b sleep BEAT_SECONDS; do $b cat /proc/uptime >/allOUT/BEAT; done &
$b chroot /all /bin/sh /command </dev/null
echo "MARK$?"
$b poweroff -f
""".replace("MARK", MARK)
    .replace("UP", UP)
    .replace("BEAT_SECONDS", str(BEAT_SECONDS))
    .replace("BEAT", BEAT)
)


def run(
    command: list[str], *, timeout: float, scratch_mib: int = 0, processors: int = 2, pulse: Path | None = None
) -> int:
    """Run a command in the outer machine, its output on ours; its exit status, `NO_STATUS` or `STOOD_STILL`.

    With one processor QEMU emulates in one thread: slower, and free of its races between processors. `pulse` is a file
    that the command writes to as it gets on; one that does not is killed with the machine.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise parts.MissingPart("qemu-system-x86_64 is not here (Debian: qemu-system-x86)")
    kernel = parts.kernel(parts.OUTER)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        words = " ".join(shlex.quote(word) for word in command)
        script = f"export HOME=/tmp TERM=dumb PATH={os.environ['PATH']}\ncd {shlex.quote(os.getcwd())}\n{words}\n"
        init = INIT.replace("/allOUT", f"/all{OUT.resolve()}").replace("SCRATCH", SCRATCH)
        image = parts.initramfs(
            Path(folder) / "outer.img", init, kernel.modules(OUTER_MODULES), {"command": script.encode()}
        )
        machine = [
            *(qemu, "-accel", "tcg,thread=multi", "-cpu", "max,+svm", "-smp", str(processors), "-m", OUTER_MEMORY),
            *("-nographic", "-nic", "none", "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(image)),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={OUT},mount_tag=out,security_model=none"),
            *("-append", f"console=ttyS0 quiet panic=-1 mitigations=off {OUTER_CLOCK}"),
        ]
        if scratch_mib:
            disk = Path(folder) / "scratch.raw"
            subprocess.run(["mke2fs", "-q", "-t", "ext4", disk, f"{scratch_mib}M"], capture_output=True, check=True)
            machine += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
        (OUT / BEAT).unlink(missing_ok=True)
        return _watch(machine, timeout, pulse)


def _watch(machine: list[str], timeout: float, pulse: Path | None) -> int:
    """Pass on what the machine prints, up to the line with the command's status, as long as it is alive."""
    status = NO_STATUS
    firmware: list[str] | None = []
    """What was printed before the outer machine was up; of interest only if it never is."""
    with subprocess.Popen(
        machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        guard = _Guard(process, timeout, pulse)
        guard.start()
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").replace("\r", "")
                if MARK in line:
                    status = int(line.split(MARK)[1])
                    break
                if firmware is not None:
                    firmware.append(line)
                    if UP in line:
                        firmware = None
                else:
                    print(line, end="", flush=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        finally:
            guard.stop()
            kill(process)
            signal.signal(signal.SIGTERM, before)
    if firmware is not None:
        print("error: the outer machine did not come up", *firmware[-20:], sep="\n", file=sys.stderr)
    if status == NO_STATUS:
        load = " ".join(f"{figure:.1f}" for figure in os.getloadavg())
        words = f"error: the outer machine ended without the command's status: QEMU's own is {process.returncode}"
        print(f"{words}; this machine's load is {load}, {_available_mib()} MiB of its memory are free", file=sys.stderr)
    return STOOD_STILL if guard.stood_still else status


class _Guard(threading.Thread):
    """Kills a machine that takes too long, has stopped to beat, or whose command stands still."""

    def __init__(self, process: subprocess.Popen[bytes], timeout: float, pulse: Path | None) -> None:
        super().__init__(daemon=True)
        self._process = process
        self._timeout = timeout
        self._pulse = pulse
        self._over = threading.Event()
        self.stood_still = False
        """The command did."""

    def stop(self) -> None:
        """The machine has ended."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """The thread's own."""
        started = time.monotonic()
        beat, progress = _Change(OUT / BEAT, started), _Change(self._pulse, started)
        while not self._over.wait(BEAT_SECONDS):
            now = time.monotonic()
            if now - started > self._timeout:
                why = f"took more than {self._timeout:g} s"
            elif beat.age(now) > STANDS_STILL_SECONDS:
                why = f"stands still since its uptime of {beat.text.strip() or 'nothing'}"
            elif self._pulse is not None and progress.age(now) > NO_PROGRESS_SECONDS:
                self.stood_still = True
                why = f"lives, and its command stands still at: {progress.text[-200:].strip()}"
            else:
                continue
            kill(self._process, f"the outer machine {why}")
            break


class _Change:
    """When a file has changed last."""

    def __init__(self, place: Path | None, now: float) -> None:
        self._place = place
        self._since = now
        self.text = ""

    def age(self, now: float) -> float:
        """Seconds since it has changed."""
        try:
            text = "" if self._place is None else self._place.read_text()
        except OSError:
            text = ""
        if text != self.text:
            self.text, self._since = text, now
        return now - self._since


def _available_mib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0


def kill(process: subprocess.Popen[bytes], words: str = "") -> None:
    """End a process and all that it started in its session."""
    if words:
        print(f"error: {words}", file=sys.stderr, flush=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:], timeout=float(os.environ.get("PARTITA_OUTER_TIMEOUT", "600"))))
    except parts.MissingPart as problem:
        sys.exit(f"error: {problem}")
