"""`partita type` and `partita keys` against a real `partita run` in another process, and what words they take."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import TraceEvent
from partitions.cli.common import Refusal
from partitions.cli.completing import candidates
from partitions.cli.main import main
from partitions.cli.type import unescaped
from tests.partitions.control.test_socket import asked_host, denied
from vsp_vsc.keyboard.scan_codes import KEYS, UnknownKey, chord_codes

GUEST = """
async def main(guest):
    keyboard = await guest.keyboard()
    print("up")
    while (line := await keyboard.read_line()) != "bye":
        print("line", ascii(line[:40]), len(line))
    async for event in keyboard:
        print(hex(event.code), event.pressed)
"""
TOPOLOGY = """
[[vm]]
name = "desk"
program = "guest.py"
input = ["keyboard"]
[[vm]]
name = "bare"
program = "idle"
"""


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[str]]:
    """What a run of the topology says; the verbs find it."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr("partitions.control_folder._SHARED", str(tmp_path))
    (tmp_path / "guest.py").write_text(GUEST)
    (tmp_path / "topology.toml").write_text(TOPOLOGY)
    call = [sys.executable, "-m", "partitions.cli.main", "run", str(tmp_path), "--timeout", "60"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        until(process.stdout, "up")
        yield process.stdout
        process.kill()


def until(stream: IO[str], ending: str) -> str:
    for line in stream:
        if line.rstrip().endswith(ending):
            return line
    raise AssertionError(f"ended without {ending!r}")


def refused(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> str:
    assert main([*words]) == status
    return capsys.readouterr().err


def test_typing_from_another_terminal(
    console: IO[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text with escapes, from standard input as it is, chords; what cannot be is refused with a remedy."""
    assert main(["type", "desk", r"two\tlines\nwith a \\ and ü\n"]) == 0
    until(console, r"line 'two\tlines' 9")
    until(console, r"line 'with a \\ and \xfc' 14")
    monkeypatch.setattr(sys, "stdin", io.StringIO("raw \\n\n" + "x" * 5000 + "\n"))
    assert main(["type", "desk", "-"]) == 0
    until(console, r"line 'raw \\n' 6")
    until(console, f"line '{'x' * 40}' 5000")
    assert main(["type", "desk", r"bye\n"]) == 0
    assert main(["keys", "desk", "ctrl-alt-del", "f2"]) == 0
    # Enter comes up first: the line was there when it went down.
    for line in ("0x1d True", "0x38 True", "0xe053 True", "0xe053 False", "0x38 False", "0x1d False", "0x3c True"):
        until(console, line)
    capsys.readouterr()
    assert 'no key is called "f99"; did you mean "f9"?' in refused(capsys, "keys", "desk", "f99", status=2)
    assert 'input = ["keyboard"]' in refused(capsys, "type", "bare", "x", status=1)
    assert 'did you mean "desk"?' in refused(capsys, "keys", "desc", "enter", status=2)
    assert main(["pause", "desk"]) == 0
    assert "paused: only a guest that runs reads its keys" in refused(capsys, "type", "desk", "x", status=1)


@given(st.text(st.sampled_from("ab\\\n\t\x1b ü")))
def test_escapes_say_any_text(text: str) -> None:
    """What is written with them is what is typed."""
    names = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\x1b": "\\e"}
    assert unescaped("".join(names.get(one, one) for one in text)) == text


@pytest.mark.parametrize("text", [r"\x41", "\\", r"a\\\q", "ends in \\"])
def test_unknown_escapes_are_refused(text: str) -> None:
    """A backslash that means nothing is no backslash."""
    with pytest.raises(Refusal, match="for a backslash"):
        unescaped(text)


def test_chords() -> None:
    """Names with dashes in them, the dash itself, and names that there are not."""
    assert chord_codes("ctrl-page-up") == [KEYS["ctrl"], KEYS["page-up"]]
    assert chord_codes("Ctrl-Alt-Delete") == chord_codes("ctrl-alt-del")
    assert chord_codes("ctrl--") == [KEYS["ctrl"], KEYS["minus"]]
    assert chord_codes("-") == [KEYS["minus"]]
    assert chord_codes("shift-a") == [KEYS["shift"], 0x1E]
    for name in KEYS:
        assert chord_codes(f"alt-{name}-x") == [KEYS["alt"], KEYS[name], 0x2D], name
    for wrong in ("", "ctrl-", "hyper-x", "ctrl-%", "a--b"):
        with pytest.raises(UnknownKey):
            chord_codes(wrong)


def test_keys_are_completed() -> None:
    """The one whose turn it is, behind those of the chord that are there."""
    assert "ctrl-alt-del" in [name for name, _ in candidates(["keys", "web", "ctrl-a"])]
    offered = [name for name, _ in candidates(["keys", "web", "shift-f1"])]
    assert offered == ["shift-f1", "shift-f10", "shift-f11", "shift-f12"]


async def test_what_is_typed_is_not_told(tmp_path: Path) -> None:
    """The event says who typed how much; it may have been a password."""
    events: list[TraceEvent] = []
    async with asked_host(tmp_path) as (host, _, remote):
        host.trace.add_sink(events.append)
        assert (await denied(remote, "type", vm="web", text="secret"))[0] == "wrong_state"
    told = [event.words for event in events if event.event == "control_request"]
    assert len(told) == 1
    assert told[0].startswith("type characters=6, asked by")
    assert not any("secret" in str(event) for event in events)
