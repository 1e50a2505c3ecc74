"""Pictures: which there are, from which figures, and that a file of samples or a trace becomes them."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from hypervisor.trace import Layer, TraceEvent
from partitions.cli.main import main
from partitions.resources import pictures, series
from partitions.resources.sample import Cpu, Disk, Heading, Lp, Memory, Network, Node, Sample
from partitions.resources.slices import Slice, pauses_of, slices_of

MS = 1_000_000
HEADING = Heading(
    partita_samples=1, topology="farm", clock="virtual", window=100 * MS, logical_processors=2, memory=1 << 30
)


def window(number: int, run: int, vms: int = 2, busy: int = 1) -> Sample:
    """A tenth of a second in which the first ones ran for `run` ms and waited for the rest, and the others slept."""
    nodes = [
        Node(
            path="host",
            kind="host",
            cpu=Cpu(elapsed=100 * MS),
            memory=Memory(assigned=900 << 20, free=124 << 20, state="soft"),
        )
    ]
    for vm in range(vms):
        cpu = Cpu(vps=1, elapsed=100 * MS, halted=100 * MS, entitled=0.0)
        if vm < busy:
            ready = (100 - run) * MS
            cpu = Cpu(vps=1, elapsed=100 * MS, run=run * MS, ready=ready, entitled=50.0, limit=80.0, reserve=20.0)
        memory = Memory(assigned=450 << 20, ballooned=10 << 20, target=400 << 20, minimum=64 << 20, maximum=512 << 20)
        disk = Disk(requests=10, normalized=20, elapsed=100 * MS, limit=300, reserve=50, latency=[(1024, 9), (2048, 1)])
        network = Network(sent_bits=100_000, received_bits=50_000, dropped=1, limit=2_000_000, elapsed=100 * MS)
        nodes.append(Node(path=f"vm/v{vm}", kind="vm", depth=1, cpu=cpu, memory=memory, disk=disk, network=network))
    lps = [Lp(run=run * MS, idle=(100 - run) * MS), Lp(idle=100 * MS)]
    return Sample(time=(number + 1) / 10, window=100 * MS, lps=lps, nodes=nodes)


@pytest.fixture(scope="module")
def run() -> list[Sample]:
    return [window(number, 10 * number) for number in range(10)]


def test_curves(run: list[Sample]) -> None:
    """A value a window, rates by the second, MiB, and NaN for what is not known."""
    made = series.read(HEADING, run)
    assert made.edges == pytest.approx([number / 10 for number in range(11)])
    first = made.nodes["vm/v0"]
    assert first.values["run"] == pytest.approx([10 * number for number in range(10)])
    assert first.values["iops"] == [200.0] * 10
    assert first.values["sent"] == [1.0] * 10
    assert first.values["ballooned"] == [10.0] * 10
    assert first.latency == [(1024, 90), (2048, 10)]
    assert all(map(math.isnan, first.values["iops_entitled"]))
    assert made.lps[0] == pytest.approx(first.values["run"])
    assert not made.nodes["vm/v1"].has("run")


def test_many_windows_become_few_points(run: list[Sample]) -> None:
    """Counters are added up: nothing is lost but detail."""
    made = series.read(HEADING, run, most=4)
    assert made.edges == pytest.approx([0, 0.3, 0.6, 0.9, 1.0])
    assert made.nodes["vm/v0"].values["run"] == pytest.approx([10, 40, 70, 90])
    assert made.nodes["vm/v0"].values["entitled"] == pytest.approx([50] * 4)


def test_vms_come_and_go(run: list[Sample]) -> None:
    """Every curve is as long as the run, with nothing where its VM was not."""
    later = msgspec.structs.replace(
        run[1], nodes=[*run[1].nodes[:2], msgspec.structs.replace(run[1].nodes[2], path="vm/new")]
    )
    made = series.read(HEADING, [run[0], later])
    assert {len(values) for node in made.nodes.values() for values in node.values.values()} == {2}
    assert math.isnan(made.nodes["vm/new"].values["iops"][0])
    assert math.isnan(made.nodes["vm/v1"].values["iops"][1])


def test_pools_in_curves() -> None:
    """A VM's pool is the nearest around it; the host is none."""
    nodes = [
        Node(path="host", kind="host"),
        Node(path="vm/a", kind="vm", depth=1),
        Node(path="pool/p", kind="pool", depth=1),
        Node(path="pool/q", kind="pool", depth=2),
        Node(path="vm/b", kind="vm", depth=3, cpu=Cpu(longest_wait=7 * MS)),
        Node(path="vm/c", kind="vm", depth=2),
    ]
    made = series.read(HEADING, [Sample(time=0.1, window=100 * MS, nodes=nodes)])
    assert {path: node.pool for path, node in made.nodes.items()} == {
        "host": "",
        "vm/a": "",
        "pool/p": "",
        "pool/q": "p",
        "vm/b": "q",
        "vm/c": "p",
    }
    assert made.nodes["vm/b"].longest_wait == 7 * MS


def test_pools_come_first() -> None:
    """Where there is no room for all, what VMs live in is kept."""
    (sample,) = [window(0, 50, vms=40, busy=40)]
    idle = Node(path="pool/idle", kind="pool", depth=1, cpu=Cpu(elapsed=100 * MS, entitled=0.0))
    nodes = series.read(HEADING, [msgspec.structs.replace(sample, nodes=[*sample.nodes, idle])]).nodes.values()
    shown, rest = pictures._most([node for node in nodes if node.kind != "host"], lambda node: node.values["run"][0])
    assert shown[-1].path == "pool/idle"
    assert rest == " (the 12 of 41 with the most to show)"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_every_picture_can_be_drawn(name: str, run: list[Sample], tmp_path: Path) -> None:
    """With all figures there is each of them; with none there is none."""
    if name == "all":  # which is for more than panels have room for
        run = [window(number, 10, vms=20, busy=15) for number in range(3)]
    figure = pictures.PICTURES[name](series.read(HEADING, run))
    assert isinstance(figure, Figure)
    pictures.write(figure, str(tmp_path / "p.svg"), "svg")
    text = (tmp_path / "p.svg").read_text()
    assert text.startswith("<?xml")
    bare = msgspec.structs.replace(HEADING, memory=1 << 40)
    nothing = [Sample(time=0.1, window=100 * MS, nodes=[Node(path="host", kind="host"), Node(path="vm/a", kind="vm")])]
    assert pictures.PICTURES[name](series.read(bare, nothing)) is None


def test_a_picture_is_the_same_each_time(run: list[Sample], tmp_path: Path) -> None:
    """No date, no random names: what a virtual run gives is repeatable to its pictures."""
    made = []
    for number in range(2):
        figure = pictures.entitlement(series.read(HEADING, run))
        assert figure is not None
        pictures.write(figure, str(tmp_path / f"{number}.svg"), "svg")
        made.append((tmp_path / f"{number}.svg").read_bytes())
    assert made[0] == made[1]


def test_what_is_as_high_is_as_much(run: list[Sample]) -> None:
    """VMs have one scale, unless the small ones would be flat lines; latency is in plain numbers."""
    small = [window(0, 50)]
    small[0].nodes[2] = msgspec.structs.replace(
        small[0].nodes[2], cpu=Cpu(vps=1, elapsed=100 * MS, run=MS, entitled=9.0)
    )
    figure = pictures.entitlement(series.read(HEADING, small))
    assert figure is not None
    assert [panel.get_ylim()[1] for panel in figure.axes] == [pytest.approx(1.08 * 80)] * 2
    small[0].nodes[2] = msgspec.structs.replace(small[0].nodes[2], disk=Disk(normalized=1, elapsed=100 * MS))
    figure = pictures.iops(series.read(HEADING, small))
    assert figure is not None
    assert [round(panel.get_ylim()[1]) for panel in figure.axes] == [324, 11]
    figure = pictures.latency(series.read(HEADING, run))
    assert figure is not None
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1.02", "2.05"]


def test_the_busiest_of_many() -> None:
    """A picture has room for twelve, and says of how many."""
    figure = pictures.entitlement(series.read(HEADING, [window(0, 50, vms=40)]))
    assert figure is not None
    vms = series.read(HEADING, [window(0, 50, vms=40)]).of("vm")
    assert len(pictures._most(vms, lambda node: node.values["run"][0])[0]) == 12
    assert pictures._most(vms, lambda node: node.values["run"][0])[0][0].name == "v0"
    assert len({pictures.colors(vms)[node.path] for node in vms[:8]}) == 8


def event(ms: float, name: str, vm: str, **fields: int) -> tuple[TraceEvent, str]:
    return TraceEvent(int(ms * 10_000), Layer.SCHEDULER, name, 2, fields={"vp": 0, "lp": 0, **fields}), vm


def test_slices() -> None:
    """From dispatch to loss; one who goes on is dispatched again; a trace may begin in the middle; spans are cut."""
    events = [
        event(5, "capped", "a", ran_ns=5 * MS),
        event(5, "dispatch", "b"),
        event(15, "dispatch", "b"),
        event(20, "block", "b", ran_ns=5 * MS),
        event(21, "dispatch", "a"),
    ]
    assert slices_of(events) == [
        Slice(0, "a", 0, 0.0, 0.005, "capped"),
        Slice(0, "b", 0, 0.005, 0.015, "slice_end"),
        Slice(0, "b", 0, 0.015, 0.02, "block"),
    ]
    assert slices_of(events, begin=0.01, end=0.012) == [Slice(0, "b", 0, 0.01, 0.012, "slice_end")]


def test_who_goes_on() -> None:
    """`continue` ends nothing: a slice lasts until it is lost, and begins there where the trace does."""
    events = [
        event(1, "continue", "a"),
        event(2, "continue", "a"),
        event(2.5, "capped", "a", ran_ns=2_500_000),
        event(10, "dispatch", "a"),
        event(11, "continue", "a"),
        event(12, "block", "a", ran_ns=2_000_000),
    ]
    assert slices_of(events) == [Slice(0, "a", 0, 0.001, 0.0025, "capped"), Slice(0, "a", 0, 0.01, 0.012, "block")]


def test_pauses() -> None:
    """From the loss of a processor with work left to the next one; sleep is none, and going on at once is none."""
    slices = [
        Slice(0, "a", 0, 0.000, 0.0025, "capped"),
        Slice(0, "a", 0, 0.010, 0.0125, "slice_end"),
        Slice(0, "b", 0, 0.0125, 0.020, "block"),
        Slice(1, "a", 0, 0.020, 0.021, "slice_end"),
        Slice(1, "a", 1, 0.015, 0.016, "block"),
        Slice(0, "a", 0, 0.021, 0.022, "block"),
        Slice(0, "a", 0, 0.050, 0.051, "block"),
        Slice(0, "b", 0, 0.030, 0.040, "block"),
    ]
    found = pauses_of(slices)
    assert [(one.vm, round(one.length * 1000, 6), one.limited) for one in found] == [
        ("a", 7.5, True),
        ("a", 7.5, False),
    ]
    figure = pictures.pauses(slices)
    assert figure is not None
    (panel,) = figure.axes
    assert panel.get_title(loc="left") == "a: 2 pauses, longest 7.5 ms"
    assert sum(bar.get_height() for bar in panel.patches) == 2
    assert pictures.pauses(slices[-2:]) is None


@given(st.floats(1e-9, 1e5), st.floats(1, 1e6))
def test_every_pause_has_a_bar(least: float, wider: float) -> None:
    """Whatever the shortest and the longest are."""
    lengths = [least, least * wider**0.5, least * wider]
    assert sum(pictures._counts(lengths, pictures._decades(min(lengths), max(lengths)))) == 3


BUSY = "async def main(guest):\n    await guest.work(0.05)\n"


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's samples and its trace become pictures beside them, or in a folder that is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "busy.py").write_text(BUSY)
    vms = "".join(f'[[vm]]\nname = "{name}"\nprogram = "busy.py"\nmemory = "4MiB"\n' for name in "ab")
    (tmp_path / "topology.toml").write_text(f"[host]\nlogical_processors = 1\n{vms}")
    options = ["--samples", "run.jsonl", "--window", "10", "--trace", "t.jsonl", "--trace-filter", "layer=scheduler"]
    assert main(["run", str(tmp_path), "--clock", "virtual", *options]) == 0
    capsys.readouterr()
    assert main(["plot", "run.jsonl", "t.jsonl", "--only", "cpu", "--only", "schedule"]) == 0
    assert capsys.readouterr().out.splitlines() == ["run-cpu.png", "t-schedule.png"]
    assert (tmp_path / "run-cpu.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "run.jsonl", "--out", "new/folder", "--format", "svg", "--only", "lps", "--to", "0.05"]) == 0
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["run-lps.svg"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing"], 1, "nothing: No such file"),
        (["text"], 1, "text is neither a file of samples (partita run --samples) nor a trace"),
        (["empty"], 1, "there is no data for a picture in empty"),
        (["empty", "--from", "2", "--to", "1"], 2, "the first before the second"),
        (["empty", "--only", "sound"], 2, "invalid choice"),
        (["bad"], 1, "bad, line 2: no sample"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, words: str
) -> None:
    """With what is wrong."""
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_bytes(msgspec.json.encode(HEADING) + b"\n")
    (tmp_path / "bad").write_bytes(msgspec.json.encode(HEADING) + b"\n{}\n")
    files = [
        str(tmp_path / word) if not word.startswith("-") and number == 0 else word
        for number, word in enumerate(arguments)
    ]
    assert main(["plot", *files]) == status
    assert words in capsys.readouterr().err.replace(f"{tmp_path}/", "")
