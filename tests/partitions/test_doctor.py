"""The doctor tries things rather than believing them, and always says why something matters and how to get it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from partitions import doctor

NAMES = ["python", "memfd", "descriptors", "kvm", "tap", "tshark", "user-namespaces", "seccomp"]


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
