"""What `partita top` shows: columns, the tree, contention, narrow terminals, alarms."""

from __future__ import annotations

import re

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from partitions.resources.render import Look, above, below, rendered, rows, summary
from partitions.resources.sample import Cpu, Disk, Lp, Network, Node
from partitions.resources.view import View
from tests.partitions.resources.samples import DISKS, FARM, HEADING, MS, WINDOW, vm


def test_the_tree() -> None:
    """Each below its pool, by esxtop's names; what is off says so and has no figures."""
    assert rows(FARM, Look()) == [
        "NODE                   VPS  WEIGHT  LIMIT  ENTITLED   %RUN    %RDY  %MLMTD  %WAIT",
        "host                     4       -      -         -  100.0  200.0     0.0     0.0",
        "  prod/                  2     200      -         -   60.0    0.0     0.0     0.0",
        "    web                  1     400      -      20.0   20.0   80.0!    0.0     0.0",
        "    off (turning off)    -       -      -",
        "  test/                  1     100      -         -   40.0    0.0     0.0     0.0",
        "    try                  1     100      -      40.0   40.0   60.0!    0.0     0.0",
        "  capped                 1     100   40.0         -   40.0   60.0    60.0*    0.0",
    ]


def test_whether_there_is_contention() -> None:
    """Shares mean nothing without it: the line says so, for the host and for pools."""
    assert above(FARM, HEADING, Look()) == [
        "farm: 12.300 s (virtual), window 100 ms, 3 of 4 VMs on",
        "CPU 100.0 % of 1 logical processor; contended: yes; shares decide",
    ]
    worth = msgspec.structs.replace(FARM.nodes[0].cpu, worth=0.125)
    told = msgspec.structs.replace(FARM, nodes=[msgspec.structs.replace(FARM.nodes[0], cpu=worth)])
    assert above(told, HEADING, Look())[1].endswith("shares decide, and a weight of 100 is worth 12.5 %")
    calm = msgspec.structs.replace(FARM, contended=False)
    assert above(calm, HEADING, Look())[1].endswith("contended: no; shares have no effect now")
    pool = msgspec.structs.replace(FARM.nodes[1], cpu=Cpu(contended=True))
    within = msgspec.structs.replace(calm, nodes=[FARM.nodes[0], pool])
    words = "contended: within prod only; shares have no effect elsewhere now"
    assert above(within, HEADING, Look())[1].endswith(words)


def test_a_paradox() -> None:
    """Who weighs more and gets less is told, under what is marked."""
    assert below(FARM, Look()) == [
        "! %RDY above 10 for each processor: web, try: others have the processors",
        "* %MLMTD above 0: capped: a limit that somebody has set holds them back, their own or their pool's "
        "(docs/top-and-plot.md#lines)",
        "note: web (weight 400) is entitled to less than try (weight 100): weights count between siblings, and these "
        "are in different pools",
    ]


def test_siblings_are_no_paradox() -> None:
    """Within one pool a higher weight is entitled to more, and nothing has to be said."""
    siblings = [vm("a", 10, ready=50, weight=400, entitled=10.0), vm("b", 40, ready=60, entitled=40.0)]
    sample = msgspec.structs.replace(FARM, nodes=[FARM.nodes[0], *siblings])
    assert not any(line.startswith("note:") for line in below(sample, Look()))


def test_disks_and_network() -> None:
    """Rates by the second, latency with what of it was waiting, and what has no capacity to contend for."""
    assert rows(DISKS, Look(view=View.DISK)) == [
        "NODE  WEIGHT  LIMIT  IOPS  REQ/S  MB/S  LAT/MS  HELD/MS",
        "host       -      -   500      0   0.0    0.00     0.00",
        "  db     100    500   500    200   4.1    2.00     0.50",
    ]
    assert above(DISKS, HEADING, Look(view=View.DISK))[1] == (
        "storage 500 IOPS; contended: no; shares have no effect now"
    )
    assert rows(DISKS, Look(view=View.NETWORK)) == [
        "NODE  LIMIT  MBTX/S  MBRX/S   TX  DROPPED",
        "host",
        "  db   8.00    8.00    0.00  100       3*",
    ]
    assert above(DISKS, HEADING, Look(view=View.NETWORK))[1] == "no VM has a network adapter"


def test_memory() -> None:
    """In MiB; the balloon is MCTLSZ."""
    assert rows(FARM, Look(view=View.MEMORY))[3].split() == ["web", "64", "32", "16*", "50"]


def test_long_names() -> None:
    """Hyper-V's names where it has one; what is not known is left out."""
    lines = rows(FARM, Look(long=True))
    place = lines.index("  capped")
    assert [line.split() for line in lines[place + 1 : place + 3]] == [
        *(["Hyper-V", "Hypervisor", "Virtual", "Processor\\%", "Guest", "Run", "Time", "40.0"],),
        *(["Hyper-V", "Hypervisor", "Virtual", "Processor\\CPU", "Wait", "Time", "Per", "Dispatch", "0", "ns"],),
    ]
    assert any(line.split() == ["limit", "40.0"] for line in lines[place:])
    assert not any("entitled" in line for line in lines[place:])
    narrow = rows(FARM, Look(long=True, width=40))
    assert [line.split()[-1] for line in narrow] == [line.split()[-1] for line in lines], "values stay, names are cut"
    pressure = [line for line in rows(FARM, Look(long=True, view=View.MEMORY)) if "Current Pressure" in line]
    assert pressure[0].split() == ["Hyper-V", "Dynamic", "Memory", "VM\\Current", "Pressure", "50"]


@given(st.integers(1, 120), st.sampled_from(View), st.booleans(), st.booleans())
def test_nothing_is_wider_than_the_terminal(width: int, view: View, long: bool, color: bool) -> None:
    """Columns that are worth least go first, then names are cut; colour takes no room."""
    for sample in (FARM, DISKS):
        look = Look(view=view, width=width, long=long, color=color)
        plain = [re.sub(r"\x1b\[\d*m", "", line) for line in rows(sample, look)]
        assert max(map(len, plain)) <= max(width, 1)
        assert plain == rows(sample, msgspec.structs.replace(look, color=False))


def test_what_stays_in_a_narrow_terminal() -> None:
    """%RUN is the last to go."""
    assert rows(FARM, Look(width=40))[0].split() == ["NODE", "ENTITLED", "%RUN", "%RDY"]
    assert rows(FARM, Look(width=18))[0].split() == ["NODE", "%RUN"]
    assert rows(FARM, Look(width=18))[4] == "    off…ff)"


def test_words_are_wrapped() -> None:
    """What contention means is said in a narrow terminal, too."""
    assert above(FARM, HEADING, Look(width=40))[2:4] == [
        "CPU 100.0 % of 1 logical processor;",
        "  contended: yes; shares decide",
    ]


def test_alarms_are_seen() -> None:
    """Waiting of more than 10 % stands out, a limit that bites more quietly; what is off steps back."""
    lines = rows(FARM, Look(color=True))
    assert "\x1b[33m 80.0!\x1b[0m" in lines[3]
    assert "\x1b" not in lines[1]
    assert lines[4].startswith("\x1b[2m")
    assert "\x1b[36m 60.0*\x1b[0m" in lines[7]


def test_a_host_without_vms() -> None:
    """One row."""
    empty = msgspec.structs.replace(FARM, nodes=[Node(path="host", kind="host", cpu=Cpu(elapsed=WINDOW))])
    assert rendered(empty, HEADING, Look())[-2:] == [
        "NODE  %RUN  %RDY  %MLMTD  %WAIT",
        "host   0.0   0.0     0.0    0.0",
    ]


def test_several_logical_processors() -> None:
    """Percent of what: of one logical processor and of the host; the long form has the logical ones' counters, once."""
    several = msgspec.structs.replace(FARM, lps=[Lp(run=60 * MS, idle=40 * MS), Lp(run=40 * MS, idle=60 * MS)])
    lines = [line.split() for line in rows(several, Look())]
    place = lines[0].index("%HOST")
    assert lines[0][place - 1] == "%RUN"
    assert (lines[1][place - 1 : place + 1], lines[3][place - 1 : place + 1]) == (["100.0", "50.0"], ["20.0", "10.0"])
    long = rows(several, Look(long=True))
    assert [line.split("Logical Processor\\")[1].split() for line in long if "Logical Processor\\" in line] == [
        ["%", "Total", "Run", "Time", "50.0"],
        ["%", "Idle", "Run", "Time", "50.0"],
    ]


def test_a_whole_run() -> None:
    """Of each resource that was used: whether anybody was short of it, by what, and how much of it there was."""
    node = DISKS.nodes[0]
    disk = Disk(requests=100, normalized=120, elapsed=WINDOW, busy=500 * MS, waited=400 * MS, limit=1200)
    host = msgspec.structs.replace(node, disk=disk, network=Network(elapsed=WINDOW, dropped=3))
    assert summary(msgspec.structs.replace(DISKS, nodes=[host, *DISKS.nodes[1:]])) == [
        "resources: a request to a disk was held back for 4.00 ms of the 5.00 ms that it took, by a limit or for "
        "others; 1200 of its 1200 IOPS were used",
        "           3 frames were dropped by limits, full queues or links",
        "NODE  IOPS  LAT/MS  HELD/MS  MBTX/S  DROPPED",
        "host  1200    5.00     4.00    0.00       3",
        "  db   500    2.00     0.50    8.00       3*",
        "* DROPPED above 0: db: frames that a limit, a full queue or the link's loss took (docs/top-and-plot.md#lines)",
    ]
    short = msgspec.structs.replace(node, disk=msgspec.structs.replace(disk, contended=True))
    first, *_ = summary(msgspec.structs.replace(DISKS, nodes=[short]))
    assert first.endswith("1200 of its 1200 IOPS were used; the storage was contended, so shares decided")
    calm = msgspec.structs.replace(node, disk=Disk(requests=1, elapsed=WINDOW), network=None)
    assert summary(msgspec.structs.replace(DISKS, nodes=[calm]))[0] == ("resources: no request to a disk was held back")
