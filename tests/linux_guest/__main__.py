"""`make linux-test`: the tests with real kernels, on this machine's KVM if that works, in an outer machine if not.

python -m tests.linux_guest [PYTEST OPTIONS]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.linux_guest import discs, distribution, hyperv_daemons, nested, parts, progress, sg3_utils, socat, suite
from tests.linux_guest.conftest import ASKED

HERE = Path(__file__).parent
PROBE_SECONDS = 20
"""A kernel that has not come to its init by then runs on a KVM that is no use."""
SUITE_SECONDS = float(os.environ.get("PARTITA_LINUX_SECONDS", "2400"))
"""A machine with nothing else to do needs a fifth of it, emulation included."""
PROBE = "--probe"
FETCHED = (discs, hyperv_daemons, sg3_utils, socat)
"""What tests unpack from Debian's packages is brought here first: an outer machine has no network."""
PASSED_ON = ("PARTITA_HAMMER_SECONDS", "PARTITA_KILLS", "PARTITA_BURN_SECONDS")


def hardware_kvm() -> str:
    """Why this machine's own KVM cannot be used; empty if it can. The only proof is a kernel that boots."""
    flags = Path("/proc/cpuinfo").read_text().split()
    if "svm" not in flags and "vmx" not in flags:
        return "the processor has neither svm nor vmx"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "there is no /dev/kvm that may be opened"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.linux_guest", PROBE],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            nested.kill(process)
            return f"a kernel did not boot on it in {PROBE_SECONDS} s"
    if process.returncode == 0:
        return ""
    return output.decode("utf-8", "replace").strip().splitlines()[-1]


def probe() -> None:
    """Boot a kernel and turn it off again."""
    from tests.linux_guest import guest

    with tempfile.TemporaryDirectory() as folder:
        guest.boot(guest.Plan(steps={}, modules=()), Path(folder))


def main(options: list[str]) -> int:
    """Run the tests; their exit status."""
    if options == [PROBE]:
        probe()
        return 0
    for tool in ("mke2fs", "e2fsck", "modprobe"):
        if shutil.which(tool) is None:
            raise parts.MissingPart(f"{tool} is not here (Debian: e2fsprogs, kmod)")
    for kernel in (parts.INNER, parts.NEWER):
        print(f"guest kernel: {parts.kernel(kernel).release}")
    print(f"guest distribution: {distribution.release()}")
    for tool in FETCHED:
        tool.fetch()
    command = [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=300", "-q"),
        *(options or [str(HERE)]),
    ]
    why_not = hardware_kvm()
    started = time.monotonic()
    if not why_not:
        print("on this machine's own KVM", flush=True)
        status = subprocess.run(command, env={**os.environ, ASKED: "1"}, timeout=SUITE_SECONDS, check=False).returncode
    else:
        print(f"this machine's own KVM is no use: {why_not}; in an outer machine under emulation", flush=True)
        settings = [f"{name}={os.environ[name]}" for name in PASSED_ON if name in os.environ]

        def once(further: list[str], processors: int, seconds: float) -> int:
            words = ["env", f"{ASKED}=1", *settings, *command, *further]
            return nested.run(words, timeout=seconds, processors=processors, pulse=progress.FILE)

        status = suite.run(once, seconds=SUITE_SECONDS)
    print(f"{time.monotonic() - started:.0f} s in all")
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except parts.MissingPart as problem:
        sys.exit(f"error: {problem}")
