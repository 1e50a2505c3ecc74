"""What this machine has and lacks for Partita: each finding says why it matters and how to get it. Root side.

Nothing is believed that can be tried: KVM has to run a guest, a TAP interface has to come up.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

PROBE_SECONDS = 5.0
"""The guest of one instruction takes a millisecond; the rest is the interpreter's start on a busy machine."""
WANTED_DESCRIPTORS = 4096
"""A memfd and a few files for each of a thousand VMs."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "missing"]
    detail: str
    """What was found."""
    why: str
    """What needs it, and what goes on without it."""
    remedy: str = ""
    """How to get it; empty where nothing is missing."""


def examine() -> list[Finding]:
    """Look at everything, most needed first. Takes less than a second unless a probe hangs."""
    return [check() for check in CHECKS]


def _finding(name: str, wrong: str | None, detail: str, why: str, remedy: str) -> Finding:
    if wrong is None:
        return Finding(name, "ok", detail, why)
    return Finding(name, "missing", wrong, why, remedy)


def python() -> Finding:
    """The interpreter."""
    version = f"{platform.python_implementation()} {platform.python_version()}"
    return _finding(
        "python",
        None if sys.version_info >= (3, 11) else version,
        version,
        "Partita needs Python 3.11 or later.",
        "Install Python 3.11 or later and make a new virtual environment with it.",
    )


def memfd() -> Finding:
    """Memory with a descriptor."""
    wrong = None
    if not hasattr(os, "memfd_create"):
        wrong = f"{platform.system()} has no memfd_create"
    else:
        try:
            os.close(os.memfd_create("partita-doctor"))
        except OSError as error:
            wrong = f"memfd_create: {error.strerror}"
    return _finding(
        "memfd",
        wrong,
        "memfd_create works",
        "Guest memory has a descriptor, so that scattered pages can be mapped side by side and other processes can "
        "share it. Without it, task guests still run on plain memory.",
        "Use Linux 3.17 or later.",
    )


def descriptors() -> Finding:
    """How many files may be open."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    words = f"{soft} open files, up to {'any number' if unlimited else hard}"
    return _finding(
        "descriptors",
        None if unlimited or hard >= WANTED_DESCRIPTORS else words,
        words,
        f"Each VM holds a few descriptors; a thousand want {WANTED_DESCRIPTORS}. The host raises the soft limit.",
        "Raise the hard limit: `ulimit -Hn 65536` as root, or `nofile` in /etc/security/limits.conf.",
    )


def kvm() -> Finding:
    """A processor that runs guests."""
    wrong = _no_linux() or ("the kvm backend knows x86-64 only" if platform.machine() != "x86_64" else None)
    wrong = wrong or _probe("kvm")
    remedy = (
        "Turn on virtualization in the firmware and load kvm_intel or kvm_amd; inside a virtual machine, have its host "
        "turn on nested virtualization. Join the group that owns /dev/kvm. `make linux-test` does without: it "
        "brings an emulated machine that has a working KVM."
    )
    return _finding(
        "kvm",
        wrong,
        "KVM ran a guest at a processor's speed",
        'The backend "kvm" boots a stock Linux kernel. Task guests do without.',
        remedy,
    )


def linux_test() -> Finding:
    """The tools of `make linux-test`."""
    tools = {"qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "cpio": "cpio", "modprobe": "kmod"}
    lacking = [tool for tool in tools if _which(tool) is None]
    wrong = _no_linux() or (f"{', '.join(lacking)} not found" if lacking else None)
    return _finding(
        "linux-test",
        wrong,
        ", ".join(tools),
        "`make linux-test` boots Debian's kernels on the drivers that they bring. `make test` leaves those tests out.",
        f"apt-get install {' '.join(tools[tool] for tool in lacking)}" if lacking else "Use Linux.",
    )


def _which(tool: str) -> str | None:
    """Where a tool is; those for administrators are not in everybody's PATH."""
    return shutil.which(tool, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))


def tap() -> Finding:
    """A network interface of our own."""
    return _finding(
        "tap",
        _no_linux() or _probe("tap"),
        "a TAP interface came up",
        "A virtual switch can reach the machine's own network. Private switches do without.",
        "Load the module tun and give the process CAP_NET_ADMIN, or make the interface beforehand: "
        "`ip tuntap add mode tap user $USER name tap0` as root.",
    )


def tshark() -> Finding:
    """Wireshark's command line."""
    path = shutil.which("tshark")
    return _finding(
        "tshark",
        None if path else "not found in PATH",
        path or "",
        "Reads recordings of the bus with Partita's dissector. Traces as JSON lines do without.",
        "Install the package tshark (Debian, Ubuntu) or wireshark-cli (Fedora).",
    )


def user_namespaces() -> Finding:
    """A sandbox's walls."""
    return _finding(
        "user-namespaces",
        _no_linux() or _probe("user_namespace"),
        "a new user namespace was entered",
        'The sandbox around guests of the backend "process". Task guests do without.',
        "Allow them: `sysctl -w kernel.unprivileged_userns_clone=1`, and on Ubuntu "
        "`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`; in a container, loosen its profile.",
    )


def seccomp() -> Finding:
    """A sandbox's doors."""
    return _finding(
        "seccomp",
        _no_linux() or _probe("seccomp"),
        "the kernel takes system call filters",
        'The sandbox around guests of the backend "process". Task guests do without.',
        "Use a kernel with CONFIG_SECCOMP_FILTER; every distribution's has it.",
    )


CHECKS: tuple[Callable[[], Finding], ...] = (
    python,
    memfd,
    descriptors,
    kvm,
    linux_test,
    tap,
    tshark,
    user_namespaces,
    seccomp,
)


def _no_linux() -> str | None:
    return None if sys.platform == "linux" else f"{platform.system()} does not have it"


def _probe(name: str) -> str | None:
    """Why a probe failed, or None. It runs in a process of its own, which may hang or be killed."""
    script = Path(__file__).with_name("probes.py")
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(script), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {PROBE_SECONDS:.0f} seconds"
    if done.returncode == 0:
        return None
    return done.stdout.decode(errors="replace").strip() or f"the probe ended with status {done.returncode}"
