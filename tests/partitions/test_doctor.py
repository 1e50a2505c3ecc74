"""The doctor tries things rather than believing them, and always says why something matters and how to get it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from partitions import doctor, probes

NAMES = ["python", "memfd", "descriptors", "kvm", "linux-test", "tap", "tshark", "user-namespaces", "seccomp"]


@pytest.fixture
def probe_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts another script in the probes' place."""
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "doctor.py"))
    return tmp_path / "probes.py"


def test_every_finding_is_whole() -> None:
    """Whatever this machine has, each finding says what was found and why it matters, and a lack says the remedy."""
    findings = doctor.examine()
    assert [finding.name for finding in findings] == NAMES
    for finding in findings:
        assert finding.detail, finding
        assert finding.why, finding
        assert bool(finding.remedy) == (finding.state == "missing"), finding


def test_python_that_runs_this_is_fine() -> None:
    """The tests run only where Python is new enough."""
    assert doctor.python().state == "ok"


def test_probe_works(probe_script: Path) -> None:
    """A probe that ends well has nothing to say."""
    probe_script.write_text("")
    assert doctor._probe("x") is None


def test_probe_says_why(probe_script: Path) -> None:
    """A probe's words are the finding."""
    probe_script.write_text("print('/dev/kvm: Permission denied'); raise SystemExit(1)")
    assert doctor._probe("kvm") == "/dev/kvm: Permission denied"


def test_probe_dies(probe_script: Path) -> None:
    """A probe that the kernel kills is a finding, not a crash of the doctor."""
    probe_script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert doctor._probe("kvm") == "the probe ended with status -9"


def test_probe_hangs(probe_script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KVM that never comes back is a KVM that does not run guests."""
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.1)
    probe_script.write_text("import signal; signal.pause()")
    assert doctor._probe("kvm") == "no answer within 0 seconds"


def test_missing_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without memfd_create is told what goes on without it."""
    monkeypatch.delattr("os.memfd_create", raising=False)
    finding = doctor.memfd()
    assert finding.state == "missing"
    assert "task guests still run" in finding.why


@pytest.mark.skipif(sys.platform != "linux", reason="KVM is Linux's")
def test_kvm_must_run_a_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """KVM is ok only if the guest ran: another processor's machine is refused before trying."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert doctor.kvm().detail == "the kvm backend knows x86-64 only"


def test_tools_that_are_missing_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make linux-test` lacks here, and the packages that have it."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("shutil.which", lambda tool, path: None if tool in ("cpio", "modprobe") else f"/bin/{tool}")
    finding = doctor.linux_test()
    assert (finding.state, finding.detail) == ("missing", "cpio, modprobe not found")
    assert finding.remedy == "apt-get install cpio kmod"


FLAGS = {
    "with": "flags\t\t: fpu vmx sse\n",
    "without": "processor: 0\nflags\t\t: fpu hypervisor sse\n",
    "none": "x: 1\n",
}


@pytest.mark.parametrize(("flags", "words"), [("with", ""), ("without", "neither vmx nor svm"), ("none", "")])
def test_flags_of_the_processor(flags: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only flags that can be read and lack both say that KVM has nothing to stand on."""
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(FLAGS[flags]))
    said = probes.no_virtualization()
    assert words in said
    assert bool(words) == bool(said)


class FakeKvm:
    """The ioctls of one run, which ends with an exit reason after a while."""

    def __init__(self, reason: int, seconds: float) -> None:
        self.reason, self.seconds, self.now = reason, seconds, 0.0
        self.run = bytearray(4096)

    def ioctl(self, fd: int, request: int, argument: object = 0) -> int:
        if request == probes.KVM_RUN:
            self.now += self.seconds
            self.run[8:12] = self.reason.to_bytes(4, "little")
        return {probes.KVM_GET_API_VERSION: 12, probes.KVM_GET_VCPU_MMAP_SIZE: 4096}.get(request, 9)


@pytest.mark.parametrize(
    ("reason", "seconds", "bare", "words"),
    [
        (5, 0.0002, "", None),
        (5, 0.004, "", None),
        (5, 1.0, "; no flags", "emulation only: 2000 ns for each round of a loop that takes 1 to 20; no flags"),
        (
            8,
            0.0,
            "; no flags",
            "emulation only: a guest of four instructions left with exit reason 8, not 5 (HLT); no flags",
        ),
        (17, 0.0, "", "it does not work: a guest of four instructions left with exit reason 17, not 5 (HLT)"),
    ],
    ids=["hardware", "nested in emulation", "slow", "falls", "broken"],
)
def test_kvm_that_only_emulates_is_told_from_one_that_works(
    reason: int, seconds: float, bare: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device file and a lone HLT prove nothing: a loop has to end, and in a processor's time."""
    fake = FakeKvm(reason, seconds)
    monkeypatch.setattr(probes.os, "open", lambda *_: 3)
    monkeypatch.setattr(probes.fcntl, "ioctl", fake.ioctl)
    memory = probes.mmap.mmap(-1, 4096)
    monkeypatch.setattr(probes.mmap, "mmap", lambda fd, size: memory if fd == -1 else fake.run)
    monkeypatch.setattr(probes.time, "perf_counter", lambda: fake.now)
    monkeypatch.setattr(probes, "no_virtualization", lambda: bare)
    assert probes.kvm() == words
    assert memory[:6] == b"\x66\xb9" + probes.ROUNDS.to_bytes(4, "little")
