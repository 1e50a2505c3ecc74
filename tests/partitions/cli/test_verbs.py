"""The other verbs, and the frame they stand in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from partitions.cli import doctor as doctor_verb
from partitions.cli.common import Refusal, print_json
from partitions.cli.main import _parse, main
from partitions.cli.summary import VmRow, console_line, short_size, table
from partitions.doctor import Finding
from tests.partitions.cli.conftest import MakeTopology

Capture = pytest.CaptureFixture[str]


def test_help_is_fast() -> None:
    """`partita --help` imports neither Trio nor msgspec nor structlog: it starts as fast as the interpreter."""
    code = (
        "import sys\nfrom partitions.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'trio', 'msgspec', 'structlog', 'attrs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")
    for verb in ("run", "validate", "examples", "doctor", "boundary", "schema"):
        assert f"    {verb} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "the following arguments are required: TARGET; see partita run --help"),
        (["run", "x", "--clok", "real"], "partita run has no option --clok; did you mean --clock?"),
        (["run", "x", "--clok=real"], "partita run has no option --clok; did you mean --clock?"),
        (["run", "x", "--timeout", "1x"], '--timeout: must be a number, is "1x"; see partita run --help'),
        (["validate", "x", "y"], '"y" is a word too many; see partita validate --help'),
        (["ps", "--zzz"], "partita ps has no option --zzz; see partita ps --help"),
        (["--verson"], "the following arguments are required: VERB; see partita --help"),
    ],
)
def test_usage_errors(arguments: list[str], words: str, capsys: Capture) -> None:
    """A command line that cannot be read ends with the status 2, says in a line why, and knows the nearest option."""
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {words}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["add-nic", "web", "lan", "--vlan", "7", "--trunk", "1-3"],
        ["add-nic", "web", "--vlan", "7", "lan", "--trunk", "1-3"],
        ["add-nic", "--vlan", "7", "web", "--trunk", "1-3", "lan"],
    ],
)
def test_options_may_stand_between_words(arguments: list[str]) -> None:
    """A word that may be missing is found behind an option, too, and every option counts once."""
    options = _parse(arguments)
    assert (options.vm, options.switch, options.vlan, options.trunk) == ("web", "lan", 7, "1-3")
    with pytest.raises(Refusal, match='"wan" is a word too many; see partita add-nic --help'):
        _parse([*arguments, "wan"])


def test_version(capsys: Capture) -> None:
    """The version is the distribution's."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("partita 0.")


def test_validate(topology: MakeTopology, capsys: Capture) -> None:
    """A good topology is one line; a bad one is its problems and the status 2."""
    folder = topology(web="pass", db="pass")
    assert main(["validate", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: fine, 2 VMs (web, db), 8 MiB together\n"
    (folder / "web.py").unlink()
    assert main(["validate", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f'error: {folder}/topology.toml: line 3: vm[0] "web".program: there is no file "{folder}/web.py"; '
        'did you mean "db.py"?\n'
    )


def test_validate_runs_nothing(topology: MakeTopology, capsys: Capture) -> None:
    """Guest programs are parsed and never run."""
    folder = topology(web="pass")
    (folder / "web.py").write_text("raise SystemExit('ran')\n\nasync def main(guest):\n    pass\n")
    assert main(["validate", str(folder)]) == 0


def test_schema(capsys: Capture) -> None:
    """The schema is one JSON document."""
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Partita topology"


def test_examples(capsys: Capture) -> None:
    """Every example has a line with its title."""
    assert main(["examples"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("01-message ")
    for line in lines:
        assert len(line.split()) > 1, f"{line}: its README begins with a heading"


def test_copy_an_example(tmp_path: Path, capsys: Capture) -> None:
    """A copy is a folder that runs; nothing is overwritten."""
    assert main(["examples", "--copy", "01", str(tmp_path / "mine")]) == 0
    assert main(["validate", str(tmp_path / "mine")]) == 0
    assert main(["examples", "--copy", "01", str(tmp_path / "mine")]) == 2
    assert main(["examples", "--copy", "zz", str(tmp_path / "other")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == f'error: "{tmp_path}/mine" exists already; name a new folder'
    assert errors[1].startswith('error: no example "zz"; there are 01-message, ')


def test_doctor(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A lack is told with its reason and remedy, and is no failure."""
    findings = [
        Finding("python", "ok", "CPython 3.11.7", "needed"),
        Finding("kvm", "missing", "/dev/kvm: Permission denied", "for Linux guests", "join the group kvm"),
    ]
    monkeypatch.setattr("partitions.doctor.examine", lambda: findings)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "ok       python           CPython 3.11.7\n"
        "missing  kvm              /dev/kvm: Permission denied\n"
        "         why: for Linux guests\n"
        "         get it: join the group kvm\n"
        "\nMissing: kvm.\n"
    )
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [finding["state"] for finding in document["findings"]] == ["ok", "missing"]
    assert doctor_verb.describe(findings[0]) == "ok       python           CPython 3.11.7"


def test_boundary_needs_one_vm(topology: MakeTopology, capsys: Capture) -> None:
    """Where there are several VMs, one is chosen by name."""
    folder = topology(web="pass", db="pass")
    assert main(["boundary", str(folder)]) == 2
    assert main(["boundary", str(folder), "--vm", "x"]) == 2
    assert capsys.readouterr().err == (
        "error: the topology has several VMs; choose one with --vm: web, db\n"
        'error: --vm: no VM is called "x"; there are web, db\n'
    )


def test_boundary_of_one_of_two(topology: MakeTopology) -> None:
    """The chosen VM alone is started; its program is not run."""
    call = [sys.executable, "-m", "partitions.cli.main", "boundary", str(topology(web="1/0", db="1/0")), "--vm", "db"]
    done = subprocess.run(call, input=b'{"op":"quit"}\n', capture_output=True, check=True)
    ready, answer = (json.loads(line) for line in done.stdout.splitlines())
    assert (ready["vm"], answer) == ("db", {"id": None, "ok": True})


def test_pipe_whose_reader_is_gone(topology: MakeTopology) -> None:
    """`partita schema | head -1` is no error."""
    script = f"{sys.executable} -m partitions.cli.main schema | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n0\n")
    assert done.stderr == ""


def row(**changes: object) -> VmRow:
    values: dict[str, object] = dict.fromkeys(VmRow.__struct_fields__, 0) | {
        "vm": "web",
        "state": "off",
        "exit": "powered off",
        "ok": True,
        "detail": "",
        "console": [],
    }
    return VmRow(**values | changes)  # type: ignore[arg-type]


def test_table() -> None:
    """Words to the left, numbers to the right, each column as wide as its widest cell."""
    assert table([row(uptime=1.5, bytes=2048), row(vm="database", state="running", exit=None, exit_code=None)]) == [
        "VM        STATE    EXIT              UPTIME  MESSAGES  PACKETS    BYTES",
        "web       off      powered off (0)  1.500 s         0        0  2.0 KiB",
        "database  running                   0.000 s         0        0      0 B",
    ]


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KiB"), (1 << 20, "1.0 MiB"), (1 << 40, "1.0 TiB")]
)
def test_short_size(size: int, words: str) -> None:
    """Three digits and a unit."""
    assert short_size(size) == words


def test_guests_cannot_drive_the_terminal() -> None:
    """A console line's control characters are spelled out."""
    assert console_line("web", "\033[2Jhi\a\r", 5) == "  web | \\x1b[2Jhi\\x07"


def test_guests_cannot_drive_the_terminal_by_json(capsys: Capture) -> None:
    """JSON spells out what is below a space only; what else a terminal obeys is spelled out as well."""
    said = {"value": "\x1b[2J\x7f\x9b31m\u202e\u2028\U000e0001 \u00e9 \u6f22"}
    print_json([said])
    shown = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "\u00e9 \u6f22" in shown
    assert json.loads(shown) == [said]


IMAGES = """
[[vm.disk]]
path = "new.img"
size = "1MiB"
[[vm.disk]]
path = "old.img"
"""


def test_a_folder_that_cannot_be_written(
    topology: MakeTopology, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are made beside the topology: where that cannot be, it is refused before anything starts."""
    folder = topology(extra=IMAGES, web="pass")
    (folder / "old.img").write_bytes(bytes(512))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main(["run", str(folder)]) == 2
    errors = capsys.readouterr().err
    assert f'cannot be made: the folder "{folder}" is read-only; copy the topology to a folder of your own\n' in errors
    assert f'"{folder}/old.img" cannot be written; set read_only = true, or copy the topology' in errors


def test_an_installed_example_that_cannot_be_written(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example in a place for programs says how to get one of your own."""
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert main(["validate", "03-disk"]) == 2
    assert "copy it: partita examples --copy 03-disk DIR" in capsys.readouterr().err


def test_a_kernel_that_is_not_there_yet(topology: MakeTopology, capsys: Capture) -> None:
    """A script beside the topology that fetches the kernel is the remedy."""
    folder = topology(web="pass")
    (folder / "topology.toml").write_text('[[vm]]\nname = "linux"\nbackend = "kvm"\nkernel = "vmlinuz"\n')
    assert main(["validate", str(folder)]) == 2
    assert capsys.readouterr().err.endswith(f'kernel: there is no file "{folder}/vmlinuz"\n')
    (folder / "get-kernel").touch()
    assert main(["validate", str(folder)]) == 2
    assert f"; get it with: {os.path.relpath(folder)}/get-kernel\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["runn", "01"], 'there is no verb "runn"; did you mean "run"?'),
        (["03-disk"], 'there is no verb "03-disk"; did you mean "partita run 03-disk"?'),
        (["zzz"], 'there is no verb "zzz"; there are run, explain, '),
        (["run", "diks"], 'diks: no such folder, file or example; did you mean "03-disk"?'),
        (["examples", "--copy", "kresh", "x"], 'no example "kresh"; did you mean "05-crash"?'),
        (["run", __file__], f"{__file__}: is a Python program; write a topology that names it:"),
    ],
)
def test_slips_of_the_fingers(typed: list[str], words: str, capsys: Capture) -> None:
    """One line that says what was probably meant."""
    assert main(typed) == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")


def test_nothing_at_all(capsys: Capture) -> None:
    """Somebody who types the bare command wants to know what there is."""
    assert main([]) == 2
    assert "Start with `partita examples`" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["3", "03", "disk", "03-disk", "03-disk/"])
def test_examples_by_what_people_type(name: str, capsys: Capture) -> None:
    """By number, word or name."""
    assert main(["validate", name]) == 0
