"""Where this machine has no usable KVM: an outer Linux under emulation that has one, and a command run inside it.

    python -m tests.linux_guest.nested COMMAND...

QEMU's TCG emulates AMD SVM well enough for kvm-amd. The outer kernel mounts this machine's root read-only over 9p, lays
a tmpfs over it and runs the command there, so it sees this checkout and its virtual environment. The command's exit
status is ours, its output comes by the serial port, and what it writes is gone with the machine.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tests.linux_guest import parts

OUTER_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "kvm-amd")
OUTER_MEMORY = "6144"
MARK = "outer machine: status "

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for module in /modules/*; do $b insmod $module; done
$b mkdir /host /cover /all
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host
$b mount -t tmpfs cover /cover
$b mkdir /cover/upper /cover/scratch
$b mount -t overlay -o lowerdir=/host,upperdir=/cover/upper,workdir=/cover/scratch overlay /all
$b mount -t proc proc /all/proc; $b mount -t sysfs sys /all/sys; $b mount -t devtmpfs dev /all/dev
$b mkdir -p /all/dev/shm /all/dev/pts
$b mount -t tmpfs shm /all/dev/shm; $b mount -t devtmpfs pts /all/dev/pts 2>/dev/null
$b ip link set lo up
$b chroot /all /bin/sh /command
echo "MARK$?"
$b poweroff -f
""".replace("MARK", MARK)


def run(command: list[str], *, timeout: float) -> int:
    """Run a command in the outer machine, its output on ours; its exit status, or 125 where it never got to one."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise parts.MissingPart("qemu-system-x86_64 is not here (Debian: qemu-system-x86)")
    kernel = parts.kernel("linux-image-amd64")
    with tempfile.TemporaryDirectory() as scratch:
        words = " ".join(shlex.quote(word) for word in command)
        script = Path(scratch) / "command"
        script.write_text(f"export HOME=/tmp PATH={os.environ['PATH']}\ncd {shlex.quote(os.getcwd())}\n{words}\n")
        init = INIT.replace("$b chroot", "$b cp /command /all/command\n$b chroot")
        image = parts.initramfs(Path(scratch) / "outer.img", init, kernel.modules(OUTER_MODULES), [script])
        machine = [
            *(qemu, "-accel", "tcg,thread=multi", "-cpu", "max,+svm", "-smp", "2", "-m", OUTER_MEMORY),
            *("-nographic", "-no-reboot", "-kernel", str(kernel.image), "-initrd", str(image)),
            *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
        ]
        status = 125
        with subprocess.Popen(machine, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            killer = threading.Timer(timeout, process.kill)
            killer.start()
            try:
                for line in process.stdout:
                    if MARK in line:
                        status = int(line.split(MARK)[1])
                    else:
                        print(line, end="", flush=True)
            finally:
                killer.cancel()
    return status


if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:], timeout=float(os.environ.get("PARTITA_OUTER_TIMEOUT", "600"))))
    except parts.MissingPart as problem:
        sys.exit(f"error: {problem}")
