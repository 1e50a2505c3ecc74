"""Bad controls are refused before anything starts: the table, the key, why, and what helps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.topology import TopologyError, parse_topology
from partitions.topology_controls import CpuClass, memory_range
from partitions.topology_schema import Topology
from partitions.topology_units import Rate, parse_processors, processors_words, rate_words
from partitions.topology_warnings import control_warnings

VM = '[[vm]]\nname = "web"\nprogram = "web.py"\n'
HOST = "[host]\nlogical_processors = 4\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web.py").write_text("async def main(guest):\n    pass\n")
    return tmp_path


def pool(name: str, rest: str = "") -> str:
    return f'[[pool]]\nname = "{name}"\n{rest}\n'


def vm(name: str, rest: str = "") -> str:
    return VM.replace('"web"', f'"{name}"', 1) + rest + "\n"


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, folder)
    return [str(problem) for problem in caught.value.problems]


def test_defaults_are_no_control(folder: Path) -> None:
    """Nothing reserved, no limit, everybody's weight."""
    topology = parse_topology(
        HOST + VM + "cpu = {}\n[vm.dynamic_memory]\n" + pool("p", "cpu = {}\nmemory = {}\n"), folder
    )
    (table,), (made,) = topology.vm, topology.pool
    assert table.cpu is not None
    assert (table.cpu.reserve, table.cpu.limit, table.cpu.weight, table.cpu.period_ms) == (0, 100, 100, 10)
    assert (table.cpu.class_, table.cpu.pool, table.pool) == (CpuClass.NORMAL, "", "")
    assert memory_range(table) == (64 << 20, 64 << 20)
    assert table.dynamic_memory is not None
    assert (table.dynamic_memory.buffer, table.dynamic_memory.weight) == (20, 5000)
    assert (made.parent, made.expandable, made.processors, made.disk, made.network) == ("", True, "", None, None)
    assert (topology.host.quantum_ms, topology.host.disk_iops, topology.host.bandwidth) == (10, 0, 0)


def test_all_keys(folder: Path) -> None:
    """Every figure arrives where it belongs, with its unit."""
    topology: Topology = parse_topology(
        HOST.replace("4", "8")
        + "quantum_ms = 5\ndisk_iops = 1000\nbandwidth = '1Gbit'\n"
        + pool("a", 'processors = "0-1, 3"\ncpu = { reserve = 150, limit = 250, weight = 400, period_ms = 100 }')
        + pool(
            "b",
            'expandable = false\nmemory = { reserve = "1GiB", limit = "2GiB", weight = 7 }\n'
            'disk = { reserve = 100, limit = 200, weight = 7 }\nnetwork = { reserve = "8Mbit", limit = 9_000_000 }',
        )
        + pool("c", 'parent = "b"')
        + vm("web", 'pool = "c"\ncpu = { reserve = 12.5, limit = 50, weight = 300, pool = "a" }')
        + '[vm.dynamic_memory]\nminimum = "32MiB"\nmaximum = "128MiB"\nbuffer = 10\nweight = 1\n',
        folder,
    )
    a, b, c = topology.pool
    assert a.cpu is not None
    assert (a.processors, a.cpu.reserve, a.cpu.limit, a.cpu.period_ms) == ("0-1, 3", 150, 250, 100)
    assert b.memory is not None
    assert b.network is not None
    assert (b.memory.reserve, b.memory.limit, b.network.reserve, b.network.limit) == (1 << 30, 2 << 30, 8e6, 9e6)
    assert (c.parent, b.expandable) == ("b", False)
    assert (topology.host.quantum_ms, topology.host.disk_iops, topology.host.bandwidth) == (5, 1000, 10**9)
    assert memory_range(topology.vm[0]) == (32 << 20, 128 << 20)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            VM + "cpu = { reserve = 75, limit = 50 }\n",
            'line 4: vm[0] "web".cpu.reserve: must not be above its limit of 50 %, is 75 %: lower it, or raise',
        ),
        (VM + "cpu = { reserve = -1 }\n", 'line 4: vm[0] "web".cpu.reserve: must be at least 0, is -1'),
        (VM + "cpu = { limit = 0 }\n", 'line 4: vm[0] "web".cpu.limit: must be more than 0, is 0'),
        (VM + "cpu = { limit = nan }\n", 'line 4: vm[0] "web".cpu.limit: must be more than 0, is nan'),
        (VM + "cpu = { reserve = 1e300 }\n", 'line 4: vm[0] "web".cpu.reserve: must be at most 100, is 1e+300'),
        (VM + "cpu = { weight = 0 }\n", 'line 4: vm[0] "web".cpu.weight: must be at least 1, is 0'),
        (VM + "cpu = { weight = 10001 }\n", 'line 4: vm[0] "web".cpu.weight: must be at most 10000, is 10001'),
        (VM + "cpu = { period_ms = 0 }\n", 'line 4: vm[0] "web".cpu.period_ms: must be at least 1, is 0'),
        (
            VM + 'cpu = { class = "bulk" }\n',
            'line 4: vm[0] "web".cpu.class: must not be "bulk"; known are normal, batch',
        ),
        (
            VM + 'cpu = { class = "batch", reserve = 5 }\n',
            'line 4: vm[0] "web".cpu.reserve: nothing is guaranteed to a VM of class = "batch", which gets what others '
            "leave: remove it, or the class",
        ),
        ("host = { quantum_ms = 101 }\n" + VM, "line 1: host.quantum_ms: must be at most 100, is 101"),
        ("host = { switch_us = 1001 }\n" + VM, "line 1: host.switch_us: must be at most 1000, is 1001"),
        (
            "host = { switch_us = 5 }\n" + VM.replace('program = "web.py"', 'backend = "kvm"\nkernel = "web.py"'),
            "line 1: host.switch_us: is for model guests; with KVM a switch takes the time that it takes: remove it",
        ),
        (
            "host = { bandwidth = '1GB' }\n" + VM,
            'line 1: host.bandwidth: has the unknown unit "GB"; known are bit, Kbit, Mbit, Gbit, Tbit (powers of 1000)',
        ),
        (
            VM + 'pool = "prod"\n',
            'line 4: vm[0] "web".pool: no [[pool]] is called "prod"; there is none: add it, or leave it out',
        ),
        (
            VM + 'cpu = { pool = "prd" }\n' + pool("prod"),
            'line 4: vm[0] "web".cpu.pool: no [[pool]] is called "prd"; did you mean "prod"?',
        ),
        (
            VM + pool("a", 'parent = "b"') + pool("b", 'parent = "a"'),
            'line 6: pool[0] "a".parent: pools must not contain themselves: a in b in a; give one of them another\n'
            'line 9: pool[1] "b".parent: pools must not contain themselves: b in a in b; give one of them another',
        ),
        (
            VM + pool("a", 'parent = "a"'),
            'line 6: pool[0] "a".parent: pools must not contain themselves: a in a; give one of them another parent',
        ),
        (
            VM + pool("p0") + "".join(pool(f"p{at}", f'parent = "p{at - 1}"') for at in range(1, 2000)),
            'pool[32] "p32".parent: is pool in pool for more than 32 levels: give it one nearer to the host',
        ),
        (
            VM + pool("a", 'parent = "aa"'),
            'line 6: pool[0] "a".parent: no [[pool]] is called "aa"; did you mean "a"?',
        ),
        (VM + pool("host"), 'line 5: pool[0] "host".name: "host" is what is around all pools; choose another'),
        (VM + pool("a") + pool("a"), 'line 8: pool[1] "a".name: "a" is the name of pool[0] too'),
        (
            VM + pool("a", "disk = { reserve = 9, limit = 5 }"),
            'line 6: pool[0] "a".disk.reserve: must not be above its limit of 5 IOPS, is 9 IOPS: lower it, or raise',
        ),
        (
            HOST + VM + pool("a", "cpu = { reserve = 401 }"),
            'line 8: pool[0] "a".cpu.reserve: cannot be granted: host 400 % of 400 % free -> needs 401 %; lower it, or',
        ),
        (
            HOST + "".join(vm(f"v{number}", "processors = 4\ncpu = { reserve = 20 }") for number in range(6)),
            "line 2: host.logical_processors: the host has 400 %, its VMs and pools together reserve 480 %: lower a "
            "cpu.reserve, or raise this",
        ),
        (
            HOST
            + vm("a", 'pool = "p"\nmemory = "4GiB"')
            + pool("p", 'memory = { reserve = "7GiB" }')
            + vm("b", 'memory = "2GiB"'),
            "host.memory: the host has 8 GiB, its VMs and pools together reserve 9 GiB",
        ),
        (
            "host = { disk_iops = 100 }\n"
            + VM
            + pool("p", "disk = { reserve = 60 }")
            + pool("q", "disk = { reserve = 60 }"),
            'line 10: pool[1] "q".disk.reserve: cannot be granted: host 40 IOPS of 100 IOPS free -> needs 60 IOPS',
        ),
        (
            HOST
            + vm("a", 'pool = "p"\ncpu = { reserve = 80 }')
            + pool("p", "expandable = false\ncpu = { reserve = 50 }"),
            'vm[0] "a".cpu.reserve: cannot be granted even to this VM alone: pool/p 50 % of 50 % free -> needs 80 %; '
            "lower it, or raise what that pool has",
        ),
        (
            HOST + vm("a", 'pool = "p"\nmemory = "64MiB"') + pool("p", 'memory = { limit = "32MiB" }'),
            'vm[0] "a".memory: cannot be granted even to this VM alone: pool/p 32 MiB of its limit of 32 MiB free',
        ),
        (
            vm("a", 'pool = "p"')
            + '[[vm.disk]]\npath = "a.img"\nsize = "1MiB"\niops = { reserve = 30 }\n'
            + '[[vm.disk]]\npath = "b.img"\nsize = "1MiB"\niops = { reserve = 30 }\n'
            + pool("p", "disk = { limit = 50 }"),
            'vm[0] "a".disk[1].iops.reserve: cannot be granted even to this VM alone: pool/p 50 IOPS of its limit of '
            "50 IOPS free -> needs 60 IOPS",
        ),
        (
            VM + '[vm.dynamic_memory]\nminimum = "128MiB"\nmaximum = "32MiB"\n',
            'line 5: vm[0] "web".dynamic_memory.minimum: must not be above `memory`, which is what it starts with:\n'
            'line 6: vm[0] "web".dynamic_memory.maximum: must not be below `memory`, which is what it starts with:',
        ),
        (
            VM + '[vm.dynamic_memory]\nminimum = "3MiB"\n',
            'line 5: vm[0] "web".dynamic_memory.minimum: must be a multiple of 2 MiB and not 0, is 3 MiB',
        ),
        (
            VM + '[vm.dynamic_memory]\nmaximum = "4098TiB"\n',
            'line 5: vm[0] "web".dynamic_memory.maximum: must not be above 4096 TiB, as page numbers of dynamic '
            "memory have 40 bits; is 4098 TiB",
        ),
        (
            HOST + VM + pool("a", 'processors = "0-1"') + pool("b", 'processors = "1-2"'),
            'line 11: pool[1] "b".processors: pool[0] "a" has 1 too; a processor is in one set',
        ),
        (
            HOST + VM + pool("a", 'processors = "2-4"'),
            'line 8: pool[0] "a".processors: the host has the logical processors 0 to 3, and no 4',
        ),
        (
            VM + pool("a") + pool("b", 'parent = "a"\nprocessors = "0"'),
            'pool[1] "b".processors: is for pools without parent; those inside use their parent\'s: remove it',
        ),
        (VM + pool("a", 'processors = "3-1"'), 'processors: "3-1" goes backwards; write "1-3"'),
        (VM + pool("a", 'processors = "all"'), 'processors: must list logical processors such as "0-3" or "0, 2-5"'),
        (
            HOST + VM + pool("a", 'processors = "0-3"'),
            'vm[0] "web".pool: all logical processors are those of pools (a), and none is left for this VM: put it',
        ),
        (
            HOST + VM + pool("a", 'processors = "0"\ncpu = { reserve = 150 }'),
            'pool[0] "a".cpu.reserve: must not be above what its `processors` are, 100 %, is 150 %',
        ),
        (
            HOST
            + vm("a", "cpu = { reserve = 100 }\nprocessors = 2")
            + pool("p", 'processors = "0-2"\ncpu = { limit = 50 }'),
            "line 2: host.logical_processors: the host has 400 %, its VMs and pools together reserve 500 %",
        ),
        (
            HOST
            + vm("web", 'pool = "a"\ncpu = { reserve = 80 }')
            + pool("a", 'processors = "0-1"\ncpu = { limit = 50 }'),
            "cpu.reserve: cannot be granted even to this VM alone: pool/a 50 % of its limit of 50 % free -> needs 80 %",
        ),
    ],
)
def test_refusals(folder: Path, text: str, expected: str) -> None:
    """One case a rule."""
    found = "\n".join(problems(folder, text))
    for line in expected.splitlines():
        assert line in found
    assert found.count("\n") == expected.count("\n")


def test_what_pools_reserve_is_enough_for_those_in_them(folder: Path) -> None:
    """A VM in a pool takes of the pool's reservation first, so the host's is not asked twice."""
    inside = "".join(vm(f"v{number}", 'pool = "p"\ncpu = { reserve = 100 }') for number in range(4))
    parse_topology(HOST + inside + pool("p", "cpu = { reserve = 400 }"), folder)


def test_sums_are_told_with_the_rest(folder: Path) -> None:
    """A slip somewhere hides nothing of what is reserved: people mend all of it at once."""
    text = (
        "host = { logical_processors = 1, memory = '128MiB', disk_iops = 100 }\n"
        + pool("a", "cpu = { reserve = 60, limit = 50 }\nmemory = { reserve = '256MiB' }")
        + vm("x", "cpu = { reserve = 90 }\nrestart = 7")
        + vm("y", "procesors = 2\ndisk = [{ path = 'd', size = '1MiB', iops = { reserve = 101 } }]")
    )
    assert [line.partition(": ")[2][:60] for line in problems(folder, text)] == [
        "host.logical_processors: the host has 100 %, its VMs and poo",
        "host.disk_iops: the host has 100 IOPS, its VMs and pools tog",
        'pool[0] "a".cpu.reserve: must not be above its limit of 50 %',
        'pool[0] "a".memory.reserve: cannot be granted: host 128 MiB ',
        'vm[0] "x".restart: must not be 7; known are never, on-failur',
        'vm[1] "y".procesors: unknown key; did you mean "processors"?',
    ]


def test_no_sums_of_guesses(folder: Path) -> None:
    """What cannot be read is nothing to add up, but the other resources are."""
    text = (
        "host = { logical_processors = 1, memory = '100MiB' }\n"
        + vm("x", "cpu = { reserve = 'much' }")
        + vm("y", "cpu = { reserve = 101 }")
        + vm("z", "cpu = { reserve = 90 }")
    )
    assert [line.partition(": ")[2].partition(": ")[0] for line in problems(folder, text)] == [
        "host.memory",
        'vm[0] "x".cpu.reserve',
        'vm[1] "y".cpu.reserve',
    ]
    disks = [f"disk = [{{ path = '{name}', size = '1MiB', iops = {{ reserve = {name} }} }}]" for name in ("-1", "9")]
    (unreadable,) = problems(folder, "host = { disk_iops = 1 }\n" + vm("x", disks[0]) + vm("y", disks[1]))
    assert unreadable.endswith("iops.reserve: must be at least 0, is -1")


def test_warnings_have_lines(folder: Path) -> None:
    """Where the file is at hand."""
    text = pool("a", "disk = { weight = 200 }") + VM
    (warning,) = control_warnings(parse_topology(text, folder), lambda: text)
    assert warning.startswith('line 3: pool[0] "a".disk.weight: means nothing')


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu = { shares = 10 }", 'cpu.shares: unknown key; did you mean "weight"?'),
        ("cpu = { cap = 10 }", 'cpu.cap: unknown key; did you mean "limit"?'),
        ('disk = [{ path = "d", limit = 9 }]', 'disk[0].limit: unknown key; did you mean "iops = { limit = ... }"?'),
        ("nic = [{ shares = 9 }]", 'nic[0].shares: unknown key; did you mean "bandwidth = { weight = ... }"?'),
    ],
)
def test_names_of_other_hosts(folder: Path, text: str, expected: str) -> None:
    """Who has heard of shares, caps and reservations is told what they are called here, and where they stand."""
    assert expected in "\n".join(problems(folder, VM + text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HOST + VM + "cpu = { reserve = 20 }\n", []),
        (
            HOST + VM + "processors = 5\ncpu = { reserve = 90 }\n",
            ['vm[0] "web".cpu.reserve: counts as 0: its 5 virtual processors cannot all run at once on 4 logical ones'],
        ),
        (
            pool("a", "disk = { limit = 5 }") + pool("b", 'parent = "a"\ndisk = { limit = 9 }') + VM,
            ['pool[1] "b".disk.limit: has no effect: pool/a around it may have 5 IOPS'],
        ),
        (
            pool("a", "cpu = { limit = 50 }") + VM + 'pool = "a"\ncpu = { limit = 60 }\n',
            ['vm[0] "web".cpu.limit: has no effect: its pool/a may have 50 %'],
        ),
        (
            pool("a", "disk = { weight = 200 }") + VM,
            ['pool[0] "a".disk.weight: means nothing as long as [host] disk_iops does not say what the storage can do'],
        ),
        ("host = { disk_iops = 9 }\n" + pool("a", "disk = { weight = 200 }") + VM, []),
        (
            pool("a", 'memory = { limit = "40MiB" }')
            + pool("b", 'parent = "a"\nmemory = { limit = "64MiB" }')
            + VM
            + 'pool = "b"\nmemory = "64MiB"\ndynamic_memory = { minimum = "32MiB" }\n',
            [
                'pool[1] "b".memory.limit: has no effect: pool/a around it may have 40 MiB',
                'vm[0] "web".memory: it starts with more than the 40 MiB of pool/a, until its guest gives the rest '
                "back",
            ],
        ),
        (
            pool("a", 'memory = { limit = "64MiB" }')
            + VM
            + 'pool = "a"\nmemory = "64MiB"\ndynamic_memory = { minimum = "32MiB" }\n',
            [],
        ),
        (
            HOST + VM + pool("a", "cpu = { limit = 900 }"),
            ['pool[0] "a".cpu.limit: has no effect: the host has 400 %'],
        ),
        (pool("a", "disk = { limit = 9 }") + pool("b", 'parent = "a"\ndisk = { weight = 200 }') + VM, []),
        (
            pool("a", "network = { weight = 200 }") + VM + 'nic = [{ switch = "s", bandwidth = { reserve = 9 } }]\n'
            '[[switch]]\nname = "s"\n',
            [
                f"{place}: means nothing as long as neither its [[switch]] nor [host] has a bandwidth"
                for place in ('vm[0] "web".nic[0].bandwidth.reserve', 'pool[0] "a".network.weight')
            ],
        ),
        (
            pool("a", "network = { weight = 200 }") + VM + 'nic = [{ switch = "s", bandwidth = { reserve = 9 } }]\n'
            '[[switch]]\nname = "s"\nbandwidth = 99\n',
            [],
        ),
    ],
)
def test_what_is_worth_a_warning(folder: Path, text: str, expected: list[str]) -> None:
    """A good topology whose controls do not do what they look like; VPs > LPs is Hyper-V's own reset."""
    assert control_warnings(parse_topology(text, folder)) == expected


def test_heavy_and_yet_less(folder: Path) -> None:
    """E22, as a warning: who sorts seven heavy VMs into one pool and a light one into another is told."""
    heavy = "".join(vm(f"h{number}", 'pool = "high"\ncpu = { weight = 400 }') for number in range(7))
    text = "host = { logical_processors = 1 }\n" + heavy + vm("light", 'pool = "low"')
    pools = pool("high", "cpu = { weight = 400 }") + pool("low", "cpu = { weight = 100 }")
    first, *_, last = control_warnings(parse_topology(text + pools, folder))
    assert first == (
        'vm[0] "h0".cpu.weight: is 400, and where all want everything it gets 11.4 % for each processor; light has 100 '
        "and gets 20 %: weights count within a pool only"
    )
    assert last == "and 4 more like the last one"
    assert control_warnings(parse_topology(text + pools.replace("400", "700"), folder)) == []
    limited = text.replace("weight = 400", "weight = 400, limit = 5")
    assert control_warnings(parse_topology(limited + pools, folder)) == [], "its limit is why"


@given(st.frozensets(st.integers(0, 40), min_size=1))
def test_processor_sets_are_read_back(processors: frozenset[int]) -> None:
    """What we print for a set can be written into a topology."""
    assert parse_processors(processors_words(processors)) == processors


@given(st.integers(0, 10**14))
def test_rates_are_read_back(rate: int) -> None:
    """Nothing is rounded in what we print for a rate."""
    assert Rate.parse(rate_words(rate)) == rate
