"""`partita explain`: the verb around the state machine."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from partitions.cli.main import main
from tests.partitions.cli.conftest import MakeTopology

COMMAND = [sys.executable, "-m", "partitions.cli.main"]
Capture = pytest.CaptureFixture[str]
DISK = '[[vm.disk]]\npath = "a.img"\nsize = "1MiB"'


def test_every_vm_is_explained(topology: MakeTopology, capsys: Capture) -> None:
    """Nothing but the explanations is printed; a guest that fell makes the status 1."""
    folder = topology(web="print('hello')", bad="1 / 0")
    assert main(["explain", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "web: how far it got in" in out
    assert "  note: it fell: ZeroDivisionError: division by zero" in out
    assert "every step was reached before it fell" in out
    assert "hello" not in out
    assert "UPTIME" not in out


def test_one_vm_alone(topology: MakeTopology, capsys: Capture) -> None:
    """--vm starts no other; --json is one document with stable names."""
    folder = topology(extra=DISK, web="await (await guest.disk(0)).read(0, 1)")
    text = (folder / "topology.toml").read_text()
    (folder / "topology.toml").write_text(f'{text}\n[[vm]]\nname = "bad"\nprogram = "web.py"\n')
    assert main(["explain", str(folder), "--vm", "web", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [vm["vm"] for vm in document["vms"]] == ["web"]
    (told,) = document["explanations"]
    assert (told["vm"], told["complete"], told["next"]) == ("web", True, [])
    assert told["steps"][1]["name"] == "guest OS ID"


def test_a_guest_that_never_ends(topology: MakeTopology, capsys: Capture) -> None:
    """At the timeout the guest is turned off and explained: a timeout is how most explanations of kernels end."""
    assert main(["explain", str(topology(web="await trio.sleep_forever()")), "--timeout", "0.2"]) == 0
    assert "nothing is missing" in capsys.readouterr().out


def test_a_wrong_name(topology: MakeTopology, capsys: Capture) -> None:
    """The nearest name is told."""
    assert main(["explain", str(topology(web="pass")), "--vm", "wbe"]) == 2
    assert capsys.readouterr().err == 'error: --vm: no VM is called "wbe"; did you mean "web"?\n'


def test_run_explains_beside_the_table(topology: MakeTopology, capsys: Capture) -> None:
    """`run --explain` adds the explanations to what it shows anyway."""
    assert main(["run", str(topology(web="print('hello')")), "--explain"]) == 0
    out = capsys.readouterr().out
    assert out.index("web | hello") < out.index("UPTIME") < out.index("web: how far it got in")


def test_on_a_terminal_steps_show_as_they_are_reached(topology: MakeTopology) -> None:
    """The explanation is redrawn in place, so that a kernel's long boot is not a blank screen."""
    folder = topology(web="await guest.sleep(0.4)")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen([*COMMAND, "explain", str(folder)], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:
            pass  # how Linux says that nobody is at the other end any more
    os.close(ours)
    assert process.returncode == 0
    assert shown.count(b"how far it got") >= 2
    assert b"\x1b[J" in shown
    assert shown.rsplit(b"\x1b[J", 1)[1].count(b"how far it got") == 1
