"""`partita run`: what it prints, how it ends, and with which exit status."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from partitions.cli.main import main
from tests.doubles import trace_events_checker
from tests.partitions.cli.conftest import MakeTopology

COMMAND = [sys.executable, "-m", "partitions.cli.main"]
Capture = pytest.CaptureFixture[str]


def run_json(capsys: Capture, *arguments: object) -> tuple[int, dict[str, Any], str]:
    status = main(["run", *map(str, arguments), "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out), captured.err


def test_console_and_table(topology: MakeTopology, capsys: Capture) -> None:
    """Guests' lines have their VM in front; at the end there is a table and the status 0."""
    folder = topology(web="print('hello\\nworld')", database="print('here')")
    assert main(["run", str(folder), "--clock", "virtual"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert {"     web | hello", "     web | world", "database | here"} <= set(lines)
    assert re.fullmatch(r"VM +STATE +EXIT +UPTIME +MESSAGES +PACKETS +BYTES", lines[-3])
    assert re.fullmatch(r"web +off +powered off \(0\) +0\.000 s +\d+ +0 +0 B", lines[-2])
    assert captured.err == ""


def test_json(topology: MakeTopology, capsys: Capture) -> None:
    """One document, with stable names; the console only as its last lines."""
    status, document, errors = run_json(capsys, topology(web="print('hello')\nreturn 3"), "--seed", 4)
    assert (status, document["ending"], document["clock"], document["seed"]) == (1, "ended", "real", 4)
    (vm,) = document["vms"]
    assert vm["messages"] > 0
    assert {key: vm[key] for key in ("vm", "state", "exit", "exit_code", "ok", "resets")} == {
        "vm": "web",
        "state": "off",
        "exit": "powered off",
        "exit_code": 3,
        "ok": False,
        "resets": 0,
    }
    assert (vm["console"][0], vm["by"]) == ("hello", "")
    assert errors == "error: VM web: powered off, exit code 3\n"


def test_console_beside_json(topology: MakeTopology, capsys: Capture) -> None:
    """With --json the console is off; asked for, it goes to standard error, so the document stays one."""
    status, _, errors = run_json(capsys, topology(web="print('hello')"), "--lines")
    assert (status, errors) == (0, "web | hello\n")


def test_a_vm_that_is_restarted_until_its_policy_gives_up(topology: MakeTopology, capsys: Capture) -> None:
    """The run goes on while it waits; at the end the summary has the count, and the error says why no more."""
    folder = topology(web="1 / 0")
    with (folder / "topology.toml").open("a") as file:
        file.write('restart = "on-failure"\n')
    status, document, errors = run_json(capsys, folder, "--clock", "virtual")
    (vm,) = document["vms"]
    assert (status, vm["state"], vm["ok"], vm["restarts"]) == (1, "off", False, 10)
    assert document["seconds"] == pytest.approx(1 + 2 + 4 + 8 + 16 + 32 + 4 * 60, abs=1)
    words = "crashed: ZeroDivisionError: division by zero; stays off after 10 restarts in a row"
    assert f"error: VM web: {words}\n" in errors


def test_crash(topology: MakeTopology, capsys: Capture) -> None:
    """A guest that crashes makes the status 1, says why, and its sibling does not notice."""
    folder = topology(bad="1 / 0", good="await guest.sleep(60)")
    status, document, errors = run_json(capsys, folder, "--clock", "virtual")
    assert status == 1
    assert [vm["exit"] for vm in document["vms"]] == ["crashed", "powered off"]
    assert "error: VM bad: crashed: ZeroDivisionError: division by zero\n" in errors
    assert document["seconds"] >= 60


def test_vm_that_cannot_start(topology: MakeTopology, capsys: Capture) -> None:
    """Two VMs that write one image by different names: the second does not start, the first goes on."""
    folder = topology(web="await guest.sleep(1)", db="await guest.sleep(1)")
    (folder / "topology.toml").write_text(
        "".join(
            f'[[vm]]\nname = "{name}"\nprogram = "{name}.py"\n[[vm.disk]]\npath = "{image}"\n'
            for name, image in (("web", "a.img"), ("db", "b.img"))
        )
    )
    (folder / "a.img").write_bytes(bytes(512))
    os.link(folder / "a.img", folder / "b.img")
    status, document, errors = run_json(capsys, folder, "--clock", "virtual")
    assert status == 1
    assert [vm["exit"] for vm in document["vms"]] == ["powered off", "not started"]
    assert "error: VM db: not started" in errors


def test_timeout(topology: MakeTopology, capsys: Capture) -> None:
    """After the timeout everything is turned off, and the status is 124 as coreutils' timeout has it."""
    for clock in ("real", "virtual"):
        folder = topology(web="while True:\n    await guest.sleep(1)")
        status, document, errors = run_json(capsys, folder, "--timeout", "0.05", "--clock", clock)
        assert (status, document["ending"]) == (124, "timed out")
        assert (document["vms"][0]["exit"], document["vms"][0]["by"]) == ("turned off", "--timeout")
        assert "timed out: VMs that were still on have been turned off" in errors


def test_virtual_run_ends_when_nothing_is_left(topology: MakeTopology, capsys: Capture) -> None:
    """On the virtual clock a guest that waits for nothing would wait for ever: the run says so and ends."""
    folder = topology(web="await trio.sleep_forever()", db="await guest.sleep(5)")
    status, document, _ = run_json(capsys, folder, "--clock", "virtual", "--timeout", "1000")
    assert (status, document["ending"]) == (0, "nothing left to happen")
    assert [vm["exit"] for vm in document["vms"]] == ["turned off", "powered off"]


def test_trace_file(topology: MakeTopology, capsys: Capture, tmp_path: Path) -> None:
    """--trace writes every event as JSON lines; a filter narrows it; standard error stays quiet."""
    folder, trace = topology(web="print('hello')", db="pass"), tmp_path / "t.jsonl"
    assert main(["run", str(folder), "--clock", "virtual", "--trace", str(trace)]) == 0
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    assert {"control", "hypercall", "state", "interrupt", "msr", "port"} <= {event["layer"] for event in events}
    assert {"web", "db"} <= {event["vm"] for event in events}
    assert main(["run", str(folder), "--trace", str(trace), "--trace-filter", "vm=web,layer=control"]) == 0
    events = [json.loads(line) for line in trace.read_text().splitlines()]
    assert {(event["vm"], event["layer"]) for event in events} == {("web", "control")}
    assert capsys.readouterr().err == ""


def test_timeline_file(topology: MakeTopology, capsys: Capture, tmp_path: Path) -> None:
    """--timeline writes Chrome trace events of the whole run, of what the filter likes; two virtual runs are alike."""
    folder, files = topology(web="print('hello')", db="pass"), [tmp_path / "1.json", tmp_path / "2.json"]
    for file in files:
        assert main(["run", str(folder), "--clock", "virtual", "--timeline", str(file)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    records = trace_events_checker.read(files[0].read_bytes())
    trace_events_checker.check(records)
    processes = {record["args"]["name"] for record in records if record.get("name") == "process_name"}
    assert processes == {"hypervisor", "root", "web", "db"}
    assert main(["run", str(folder), "--timeline", str(files[0]), "--trace-filter", "vm=web"]) == 0
    assert '"db"' not in files[0].read_text()
    assert capsys.readouterr().err == ""


def test_virtual_runs_are_repeatable(topology: MakeTopology, tmp_path: Path) -> None:
    """Same seed, same bytes, in other processes with other hash seeds; another seed, another order."""
    folder = topology(**dict.fromkeys(("a", "b", "c", "d"), "await guest.sleep(1)\nprint('x')"))
    traces = []
    for number, seed in enumerate((1, 1, 2)):
        trace = tmp_path / f"{number}.jsonl"
        call = [*COMMAND, "run", str(folder), "--clock", "virtual", "--seed", str(seed), "--trace", str(trace)]
        subprocess.run(call, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": str(number)})
        traces.append(trace.read_bytes())
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-v"], r"^ +\d\.\d{6}  web +state +vm_state +off -> starting  cause=start$"),
        (["-vv"], r"^ +\d\.\d{6}  web +control +>root +initiate_contact "),
        (["--trace-filter", "event=initiate_contact"], r"^ +\d\.\d{6}  web +control +>root +initiate_contact "),
        (["--log-format", "json"], r'^\{"time":.*"event":"vm_state"'),
    ],
)
def test_logs_on_standard_error(topology: MakeTopology, capsys: Capture, options: list[str], expected: str) -> None:
    """-v shows states, -vv the bus; a filter or a format alone means that somebody wants to see."""
    assert main(["run", str(topology(web="pass")), *options, "--clock", "virtual"]) == 0
    errors = capsys.readouterr().err
    assert re.search(expected, errors, re.MULTILINE), errors
    if options == ["-v"]:
        assert "initiate_contact" not in errors


def test_disk_option(topology: MakeTopology, capsys: Capture, tmp_path: Path) -> None:
    """--disk adds a disk after those of the topology: read-only, or writable with :rw."""
    folder = topology(web="disk = await guest.disk(0)\nprint(disk.read_only, disk.blocks)")
    image = tmp_path / "some.img"
    image.write_bytes(bytes(2048))
    for option, expected in ((f"web={image}", "True 4"), (f"web={image}:rw", "False 4")):
        status, document, _ = run_json(capsys, folder, "--clock", "virtual", "--disk", option)
        assert (status, document["vms"][0]["console"]) == (0, [expected])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--console", "wbe"], 'error: --console: no VM is called "wbe"; did you mean "web"?\n'),
        (["--console", "web", "--json"], "error: --console web does not go with --json or --clock virtual\n"),
        (["--disk", "web"], "error: --disk web: must be VM=PATH or VM=PATH:rw, as in --disk web=data.img\n"),
        (["--disk", "wbe=x"], 'error: --disk wbe=x: no VM is called "wbe"; did you mean "web"?\n'),
        (["--seed", "-1"], "error: --seed must not be negative\n"),
        (["--timeout", "nan"], "error: --timeout must be a number of seconds, 0 or more\n"),
        (["--trace-filter", "layr=x"], 'error: --trace-filter: unknown filter key "layr"; did you mean "layer"?\n'),
        (["--trace-filter", "vm=wbe"], 'error: --trace-filter: unknown VM "wbe"; did you mean "web"?\n'),
        (["--trace", "/no/such/folder/x"], "error: --trace /no/such/folder/x: No such file or directory\n"),
        (["--timeline", "/no/such/folder/x"], "error: --timeline /no/such/folder/x: No such file or directory\n"),
    ],
)
def test_refusals(topology: MakeTopology, capsys: Capture, options: list[str], expected: str) -> None:
    """What cannot be done is one line on standard error with the remedy, the status 2, and nothing has started."""
    assert main(["run", str(topology(web="print('ran')")), *options]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", expected)


def test_bad_topology(topology: MakeTopology, capsys: Capture) -> None:
    """All problems of the file are told, and nothing has started."""
    folder = topology(web="pass")
    (folder / "topology.toml").write_text('[[vm]]\nname = "web"\nprogram = "web.py"\nmemry = 1\nprocessors = 0\n')
    assert main(["run", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}/topology.toml: 2 problems\n"
        '  line 4: vm[0] "web".memry: unknown key; did you mean "memory"?\n'
        '  line 5: vm[0] "web".processors: must be at least 1, is 0\n'
    )


SHUTS_DOWN = "print('up')\ntry:\n    await guest.sleep(1000)\nfinally:\n    print('going')"
STUBBORN = (
    "print('up')\nwith trio.CancelScope(shield=True):\n    while await guest.sleep(0.01) is None:\n        print()"
)
DEAF = (
    "print('up')\nwhile True:\n    try:\n        await trio.sleep_forever()\n    except trio.Cancelled:\n        pass"
)
SAID = (
    "shutting down; once more to turn off\n",
    "turning off; once more to leave at once\n",
    "error: leaving without the guests that do not let go\n",
)


@pytest.mark.parametrize(
    ("program", "interrupts", "expected"),
    [(SHUTS_DOWN, 1, "powered off"), (STUBBORN, 2, "turned off"), (DEAF, 3, "")],
    ids=["orderly", "stubborn", "deaf"],
)
def test_interrupts(topology: MakeTopology, program: str, interrupts: int, expected: str) -> None:
    """Ctrl-C presses the power buttons; a second cuts the power; a third leaves a guest that cannot be cancelled."""
    folder = topology(web=program)
    with subprocess.Popen(
        [*COMMAND, "run", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline() == "web | up\n"
            for said in SAID[:interrupts]:
                process.send_signal(signal.SIGINT)
                assert process.stderr.readline() == said
            out, _ = process.communicate(timeout=20)
        finally:
            process.kill()
        assert process.returncode == 130
        assert expected in out
        assert ("going" in out) == (interrupts == 1)


def test_live_summary_on_a_terminal(topology: MakeTopology) -> None:
    """On a terminal a block of VMs is redrawn in place, console lines go above it, and the table is what stays."""
    folder = topology(web="await guest.sleep(0.4)\nprint('late')")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen([*COMMAND, "run", str(folder)], stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:
            pass  # how Linux says that nobody is at the other end any more
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"web +running", shown)
    assert b"\x1b[2F\x1b[J" in shown, "two lines are erased before they are drawn again"
    remains = shown.rsplit(b"\x1b[J", 1)[1].splitlines()
    assert [line.split()[0] for line in remains if b"late" not in line] == [b"VM", b"web"]
    assert b"powered off (0)" in remains[-1]
    assert b"\nweb | late\r\n" in shown.replace(b"\x1b[J", b"\n")


def test_silent_run_attaches_nothing(topology: MakeTopology, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without -v or --trace no sink is attached, so trace points cost one attribute test."""
    from hypervisor.trace import Trace

    attached: list[object] = []
    monkeypatch.setattr(Trace, "add_sink", lambda self, sink: attached.append(sink))
    assert main(["run", str(topology(web="pass")), "--clock", "virtual"]) == 0
    assert attached == []
    assert main(["run", str(topology(web="pass")), "--clock", "virtual", "-v"]) == 0
    assert len(attached) == 1


CHATTY = "for number in range(300):\n    print(number)\n    await guest.sleep(0.001)"


def test_a_reader_that_leaves_ends_the_run(topology: MakeTopology) -> None:
    """`partita run ... -vv 2>&1 | head`: when nobody reads any more the run ends, quietly and with its usual status."""
    folder = topology(web=CHATTY, db=CHATTY)
    for redirect, options in (("2>&1", "-vv"), ("2>&1 >/dev/null", "-vv"), ("", "")):
        call = f"{' '.join(COMMAND)} run {folder} {options} {redirect} | head -3; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.splitlines()[-1] == "0", done
        assert len(done.stdout.splitlines()) == 4
        assert "Traceback" not in done.stderr + done.stdout
        assert "BrokenPipe" not in done.stderr + done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("option", ["--trace", "--timeline"])
def test_a_full_disk_under_the_trace(topology: MakeTopology, capsys: Capture, option: str) -> None:
    """The guests go on to their end without the trace; the command says what happened, and that it did not go well."""
    folder = topology(web=CHATTY)
    assert main(["run", str(folder), "--clock", "virtual", option, "/dev/full"]) == 1
    captured = capsys.readouterr()
    assert "web | 299\n" in captured.out
    assert re.search(r"web +off +powered off \(0\)", captured.out)
    assert captured.err == f"error: {option} /dev/full: No space left on device; the run went on without it\n"


def test_a_real_run_leaves_test_tools_alone(topology: MakeTopology) -> None:
    """trio.testing brings pytest along where that is installed: 9 MiB that nobody has a use for in a run."""
    code = (
        "import sys; from partitions.cli.main import main; status = main(sys.argv[1:]); "
        "print(status, [name for name in ('trio.testing', 'pytest', 'hypothesis') if name in sys.modules])"
    )
    call = [sys.executable, "-c", code, "run", str(topology(web="pass"))]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_guest_starts_before_what_it_does_not_need(topology: MakeTopology) -> None:
    """What only some runs show or have is imported by those: each millisecond counts until the first instruction."""
    unneeded = ["structlog", "asyncio", "partitions.explain", "partitions.explain_steps"]
    unneeded += [f"vsp_vsc.{name}.vsp" for name in ("storage", "network", "video", "keyboard", "mouse")]
    unneeded += [f"vsp_vsc.integration.{name}.vsp" for name in ("kvp", "shutdown", "file_copy")]
    unneeded += [f"partitions.root.{name}" for name in ("switches", "tap", "uplinks", "vnc", "screen", "sockets")]
    unneeded += ["partitions.child.net", "vmbus.client.sockets"]
    body = f"import sys\nprint([name for name in {unneeded} if name in sys.modules])"
    code = "import sys; from partitions.cli.main import main; main(sys.argv[1:])"
    call = [sys.executable, "-c", code, "run", str(topology(web=body))]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == "web | []"


def test_no_garbage_is_looked_for_until_a_guest_runs(topology: MakeTopology, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb's start makes modules, which stay; a guest may run for days. In a process of others nothing changes."""
    folder = topology(web="import gc\nprint(gc.isenabled(), gc.get_freeze_count() > 10_000)")
    call = ["run", str(folder), "--clock", "virtual"]
    command = [sys.executable, "-m", "partitions.cli.main", *call]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "web | True True\n" in done.stdout
    # Not by their number: of the objects that are frozen here some go meanwhile.
    touched: list[str] = []
    for name in ("enable", "disable", "freeze", "unfreeze", "set_threshold"):
        monkeypatch.setattr(gc, name, lambda *_, name=name: touched.append(name))
    assert main(call) == 0
    assert touched == []
