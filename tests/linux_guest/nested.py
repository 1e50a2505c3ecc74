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
from pathlib import Path

from tests.linux_guest import parts

OUTER_MODULES = ("virtio_pci", "virtio_blk", "ext4", "9p", "9pnet_virtio", "overlay", "kvm-amd")
OUTER_MEMORY = "6144"
OUTER_CLOCK = "tsc=reliable"
"""Emulated processors share one counter, but a busy host makes them look out of step, and Linux then takes the HPET:
each reading leaves the emulation's fast path, and now and then the outer machine's time stood still for good."""
NO_STATUS = 125
"""The command never came to its end: the outer machine did not boot, or its time was up."""
OUT = parts.BUILD / "out"
"""What outlives the outer machine."""
SCRATCH = "/scratch"
"""An ext4 of the outer machine on a virtio disk, where one was asked for: a page cache as on a real machine."""
UP = "outer machine: up"
MARK = "outer machine: status "

INIT = """#!/bin/busybox sh
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
$b chroot /all /bin/sh /command </dev/null
echo "MARK$?"
$b poweroff -f
""".replace("MARK", MARK).replace("UP", UP)


def run(command: list[str], *, timeout: float, scratch_mib: int = 0) -> int:
    """Run a command in the outer machine, its output on ours; its exit status, or `NO_STATUS`."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise parts.MissingPart("qemu-system-x86_64 is not here (Debian: qemu-system-x86)")
    kernel = parts.kernel(parts.OUTER)
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        words = " ".join(shlex.quote(word) for word in command)
        script = f"export HOME=/tmp TERM=dumb PATH={os.environ['PATH']}\ncd {shlex.quote(os.getcwd())}\n{words}\n"
        init = INIT.replace("/allOUT", f"/all{OUT}").replace("SCRATCH", SCRATCH)
        image = parts.initramfs(
            Path(folder) / "outer.img", init, kernel.modules(OUTER_MODULES), {"command": script.encode()}
        )
        machine = [
            *(qemu, "-accel", "tcg,thread=multi", "-cpu", "max,+svm", "-smp", "2", "-m", OUTER_MEMORY),
            *("-nographic", "-nic", "none", "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(image)),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-virtfs", f"local,path={OUT},mount_tag=out,security_model=none"),
            *("-append", f"console=ttyS0 quiet panic=-1 mitigations=off {OUTER_CLOCK}"),
        ]
        if scratch_mib:
            disk = Path(folder) / "scratch.raw"
            subprocess.run(["mke2fs", "-q", "-t", "ext4", disk, f"{scratch_mib}M"], capture_output=True, check=True)
            machine += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
        return _watch(machine, timeout)


def _watch(machine: list[str], timeout: float) -> int:
    """Pass on what the machine prints, up to the line with the command's status."""
    status = NO_STATUS
    firmware: list[str] | None = []
    """What was printed before the outer machine was up; of interest only if it never is."""
    with subprocess.Popen(
        machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None
        late = threading.Timer(timeout, kill, (process, f"the outer machine took more than {timeout:g} s"))
        late.start()
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
            late.cancel()
            kill(process)
            signal.signal(signal.SIGTERM, before)
    if firmware is not None:
        print("error: the outer machine did not come up", *firmware[-20:], sep="\n", file=sys.stderr)
    return status


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
