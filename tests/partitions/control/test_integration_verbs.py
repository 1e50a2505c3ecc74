"""`partita kvp`, `copy`, `freeze`, `thaw` and `stop` with a reason, against a real `partita run` in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from partitions.cli.main import main

GUEST = """
from vsp_vsc.integration.kvp.protocol import Pool

async def main(guest):
    shutdown = await guest.driver("shutdown")
    kernels = shutdown.on_request

    def asked(flags, text):
        print("asked:", int(flags), text)
        return kernels(flags, text)

    shutdown.on_request = asked
    (await guest.driver("kvp")).pools[Pool.GUEST]["state"] = "ready"
    print("up", flush=True)
    await guest.sleep(1000)
"""
TOPOLOGY = """
[[vm]]
name = "web"
program = "guest.py"
memory = "4MiB"
integration = ["heartbeat", "shutdown", "time-sync", "kvp", "vss", "file-copy"]

[[vm]]
name = "plain"
program = "guest.py"
memory = "4MiB"
integration = ["shutdown", "kvp"]
"""
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A host of two VMs, and no other that verbs could find."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr("partitions.control_folder._SHARED", str(tmp_path))
    (tmp_path / "guest.py").write_text(GUEST)
    (tmp_path / "topology.toml").write_text(TOPOLOGY)
    call = [sys.executable, "-m", "partitions.cli.main", "run", str(tmp_path), "--stay", "--timeout", "100"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        for _ in range(2):
            assert any(line.endswith("up\n") for line in process.stdout)
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(capsys: Capture, *words: str) -> Any:
    assert main([*words]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: Capture, *words: str, status: int) -> str:
    assert main([*words]) == status
    return capsys.readouterr().err


def test_what_a_guest_is_asked_from_a_terminal(run: subprocess.Popen[str], capsys: Capture, tmp_path: Path) -> None:
    """Items both ways, a file, a freeze, a restart, a refusal, an end with its reason; each mistake has its words."""
    items = {(item["pool"], item["key"]): item["value"] for item in answer(capsys, "kvp", "web")}
    assert items["guest", "state"] == "ready"
    assert items["auto", "OSName"] == "Partita guest kernel"
    assert items["auto-external", "VirtualMachineName"] == "web"
    assert answer(capsys, "kvp", "web", "role", "primary") == [
        {"vm": "web", "pool": "external", "key": "role", "value": "primary"}
    ]
    answer(capsys, "kvp", "web", "count", "0x10", "--number", "--pool", "guest")
    assert answer(capsys, "kvp", "web", "count") == [{"vm": "web", "pool": "guest", "key": "count", "value": 16}]
    assert main(["kvp", "web", "role", "-o", "table"]) == 0
    assert capsys.readouterr().out.split() == ["POOL", "KEY", "VALUE", "external", "role", "primary"]
    assert answer(capsys, "kvp", "web", "role", "--delete") == []
    assert 'web has no "role" in pool external' in refused(capsys, "kvp", "web", "role", "--delete", status=1)
    assert "name the KEY" in refused(capsys, "kvp", "web", "--delete", status=2)
    assert "must be a number" in refused(capsys, "kvp", "web", "count", "many", "--number", status=2)

    file = tmp_path / "motd"
    file.write_text("hello")
    assert answer(capsys, "copy", "web", str(file), "/") == [{"vm": "web", "path": "/", "bytes": 5}]
    assert "overwrite it" in refused(capsys, "copy", "web", str(file), "/", status=1)
    assert "No such file" in refused(capsys, "copy", "web", str(tmp_path / "none"), "/", status=1)
    assert 'integration = ["file-copy"]' in refused(capsys, "copy", "plain", str(file), "/", status=1)

    assert answer(capsys, "freeze", "web")[0]["file_systems"] == "frozen"
    assert "already frozen" in refused(capsys, "freeze", "web", status=1)
    assert answer(capsys, "thaw", "web")[0]["file_systems"] == "thawed"
    assert "not frozen" in refused(capsys, "thaw", "web", status=1)
    assert "must be more than 0" in refused(capsys, "freeze", "web", "--seconds", "0", status=2)

    answer(capsys, "pause", "web")
    assert "web is paused" in refused(capsys, "kvp", "web", status=1)
    answer(capsys, "resume", "web")
    assert "the guest refused (fail)" in refused(capsys, "stop", "web", "--hibernate", status=1)
    assert answer(capsys, "stop", "web", "--restart", "--insist", "--reason", "new kernel")[0]["state"] == "running"
    assert "leave it out" in refused(capsys, "stop", "web", "--restart", "--force", status=2)
    assert answer(capsys, "stop", "plain", "--reason", "end of day")[0]["exit"] == "powered off"
    answer(capsys, "down", "--force")
    said, _ = run.communicate(timeout=20)
    assert "asked: 4\n" in said
    assert "asked: 3 new kernel" in said
    assert "asked: 0 end of day" in said
