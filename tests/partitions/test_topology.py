"""A topology is read whole or refused whole, in words that say where, why and what was probably meant."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions import compose
from partitions.topology import (
    Backend,
    DiskTable,
    Size,
    TopologyError,
    add_disk,
    load_topology,
    parse_topology,
    schema,
    size_words,
)
from partitions.topology_schema import DiskType, ScreenTable, VmTable, luns_of
from partitions.topology_source import line_of

PROGRAM = "async def main(guest):\n    pass\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "web.py").write_text(PROGRAM)
    (tmp_path / "echo.py").write_text("class Echo:\n    pass\n")
    (tmp_path / "data.img").write_bytes(bytes(4096))
    return tmp_path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, folder)
    return [str(problem) for problem in caught.value.problems]


KEYS = VmTable.__struct_fields__
VM = '[[vm]]\nname = "web"\nprogram = "web.py"\n'


def test_smallest(folder: Path) -> None:
    """A VM needs a name and a program; everything else has a default."""
    topology = parse_topology(VM, folder)
    (vm,) = topology.vm
    assert (vm.name, vm.backend, vm.memory, vm.processors, vm.disk) == ("web", Backend.TASK, 64 << 20, 1, [])
    assert (topology.host.logical_processors, topology.host.memory, topology.host.seed) == (4, 8 << 30, None)
    assert topology.folder == folder


def test_a_screen(folder: Path) -> None:
    """An empty table is a screen of the usual size without a server; a kernel's pixels are not in its own memory."""
    assert parse_topology(VM, folder).vm[0].screen is None
    assert parse_topology(VM + "[vm.screen]\n", folder).vm[0].screen == ScreenTable(width=1024, height=768, vnc=None)
    wide = "[vm.screen]\nwidth = 1920\nheight = 1080\nvnc = 0\n"
    assert parse_topology(VM + wide, folder).vm[0].screen == ScreenTable(width=1920, height=1080, vnc=0)
    kernel = '[[vm]]\nname = "web"\nbackend = "kvm"\nkernel = "data.img"\nmemory = "4MiB"\n'
    assert parse_topology(kernel + wide, folder).vm[0].screen is not None


def test_all_keys(folder: Path) -> None:
    """Every key of the design that works in this version arrives where it belongs."""
    topology = parse_topology(
        """
        host = { logical_processors = 2, memory = "1GiB", seed = 5 }
        [[vm]]
        name = "web"
        backend = "task"
        program = "web.py"
        args = { rounds = 3, words = ["a"] }
        memory = 16777216
        processors = 2
        restart = "never"
        [[vm.disk]]
        path = "data.img"
        read_only = true
        [[vm.disk]]
        path = "new.img"
        size = "1.5MiB"
        [[vm.device]]
        vsp = "echo.py:Echo"
        """,
        folder,
    )
    (vm,) = topology.vm
    assert (topology.host.seed, vm.args, vm.memory, vm.processors) == (5, {"rounds": 3, "words": ["a"]}, 16 << 20, 2)
    assert vm.disk == [DiskTable(path="data.img", read_only=True), DiskTable(path="new.img", size=Size(3 << 19))]
    assert vm.device[0].vsp == "echo.py:Echo"
    assert not (folder / "new.img").exists(), "reading a topology makes nothing"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VM + "procesors = 2\n", 'line 4: vm[0] "web".procesors: unknown key; did you mean "processors"?'),
        (
            VM + "zzz = 2\n",
            f'line 4: vm[0] "web".zzz: unknown key; known are {", ".join(KEYS)}',
        ),
        (VM + "[vm.screen]\nwidth = 639\n", 'line 5: vm[0] "web".screen.width: must be at least 640, is 639'),
        (VM + "[vm.screen]\nheight = 1201\n", 'line 5: vm[0] "web".screen.height: must be at most 1200, is 1201'),
        (
            VM + "[vm.screen]\nwidth = 1920\nheight = 1200\n",
            'line 6: vm[0] "web".screen.height: 1920x1200 pixels take 9216000 bytes, and a screen has 8 MiB: '
            "make it smaller",
        ),
        (
            VM + 'memory = "4MiB"\n[vm.screen]\n',
            'line 4: vm[0] "web".memory: must be at least 5 MiB for a guest with a screen of this size, is 4 MiB',
        ),
        (
            VM + "[vm.screen]\nvnc = 5900\n" + VM.replace('"web"', '"db"') + "[vm.screen]\nvnc = 5900\n",
            'line 10: vm[1] "db".screen.vnc: 5900 is the port of vm[0] "web" too; 0 takes any',
        ),
        (VM + 'input = ["mouze"]\n', 'line 4: vm[0] "web".input: must not have "mouze" in it; did you mean "mouse"?'),
        (
            VM + 'integration = ["kvp", 7]\n',
            'line 4: vm[0] "web".integration: must not have 7 in it; known are heartbeat, shutdown, time-sync, kvp, '
            "vss, file-copy",
        ),
        (VM + "[vm.screen]\nvnc = 65536\n", 'line 5: vm[0] "web".screen.vnc: must be at most 65535, is 65536'),
        (VM + "screen = 3\n", 'line 4: vm[0] "web".screen: must be a table, is 3'),
        ("vms = 1\n" + VM, 'line 1: vms: unknown key; did you mean "vm"?'),
        ("", "vm: no virtual machine: add a [[vm]] table"),
        ("vm = []", "line 1: vm: no virtual machine: add a [[vm]] table"),
        ("vm = 3", "line 1: vm: must be a list of tables, written [[vm]], is 3"),
        ("vm = [7]", "line 1: vm[0]: must be a table, is 7"),
        ("host = 1\n" + VM, "line 1: host: must be a table, is 1"),
        ('[[vm]]\nprogram = "web.py"\n', "line 1: vm[0].name: is missing"),
        (
            '[[vm]]\nname = "web"\n',
            'line 1: vm[0] "web".program: is missing: name the Python file with the guest\'s `async def main(guest)`',
        ),
        (VM + "processors = 0\n", 'line 4: vm[0] "web".processors: must be at least 1, is 0'),
        (VM + "processors = 65\n", 'line 4: vm[0] "web".processors: must be at most 64, is 65'),
        (VM + "processors = true\n", 'line 4: vm[0] "web".processors: must be a whole number, is true'),
        (VM + 'processors = "2"\n', 'line 4: vm[0] "web".processors: must be a whole number, is "2"'),
        (VM + "args = 1\n", 'line 4: vm[0] "web".args: must be a table, is 1'),
        (VM + "memory = 4097\n", 'line 4: vm[0] "web".memory: must be a multiple of 4096 bytes, is 4097'),
        (VM + "memory = 4096\n", 'line 4: vm[0] "web".memory: must be at least 1064 KiB for 1 processor, is 4 KiB'),
        (
            VM + 'memory = "1564KiB"\nprocessors = 64\n',
            'line 4: vm[0] "web".memory: must be at least 1568 KiB for 64 processors, is 1564 KiB',
        ),
        (VM + 'memory = "64MB"\n', 'line 4: vm[0] "web".memory: has the unit "MB"; write "64MiB" (powers of 1024)'),
        (
            VM + 'memory = "6furlongs"\n',
            'line 4: vm[0] "web".memory: has the unknown unit "furlongs"; known are B, KiB, MiB, GiB, TiB',
        ),
        (VM + 'memory = "lots"\n', 'line 4: vm[0] "web".memory: must be a size such as "64MiB", is "lots"'),
        (VM + "memory = -1\n", 'line 4: vm[0] "web".memory: must not be negative, is -1'),
        (
            VM + "memory = true\n",
            'line 4: vm[0] "web".memory: must be a size such as "64MiB" or a whole number of bytes',
        ),
        (VM + 'memory = "16GiB"\n', "host.memory: the host has 8 GiB, its VMs together want 16 GiB"),
        (VM + 'backend = "tsk"\n', 'line 4: vm[0] "web".backend: must not be "tsk"; did you mean "task"?'),
        (
            VM + 'backend = "qqqqqq"\n',
            'line 4: vm[0] "web".backend: must not be "qqqqqq"; known are task, process, kvm',
        ),
        (
            VM + 'backend = "kvm"\n',
            'line 1: vm[0] "web".kernel: is missing: name the vmlinuz file of a kernel package\n'
            'line 3: vm[0] "web".program: is for backend = "task"; a VM of KVM has a kernel',
        ),
        (
            VM + 'backend = "process"\n',
            'line 4: vm[0] "web".backend: "process" is not in this version; use "task" or "kvm"',
        ),
        (
            VM + 'restart = "sometimes"\n',
            'line 4: vm[0] "web".restart: must not be "sometimes"; known are never, on-failure, always',
        ),
        (
            VM + "cpu = { limits = 50 }\n",
            'line 4: vm[0] "web".cpu.limits: unknown key; did you mean "limit"?',
        ),
        (
            VM + '[[vm.disk]]\npath = "data.img"\niops = { reserve = 6, limit = 5 }\n',
            'line 6: vm[0] "web".disk[0].iops.reserve: must not be above its limit of 5 IOPS, is 6 IOPS: '
            "lower it, or raise the limit",
        ),
        (VM + VM, 'line 5: vm[1] "web".name: "web" is the name of vm[0] too'),
        (
            '[[vm]]\nname = "a b"\nprogram = "web.py"\n',
            'line 2: vm[0] "a b".name: must be 1 to 63 letters, digits, ".", "_" or "-", the first a letter or digit; '
            'is "a b"',
        ),
        (
            '[[vm]]\nname = "root"\nprogram = "web.py"\n',
            'line 2: vm[0] "root".name: "root" is the name of the root partition; choose another',
        ),
        (
            VM + '[[vm.disk]]\npath = "dta.img"\n',
            'line 5: vm[0] "web".disk[0].path: there is no file "FOLDER/dta.img"; did you mean "data.img"? '
            "(with a size, it is made)",
        ),
        (
            VM + '[[vm.disk]]\npath = "new.img"\nsize = "1MiB"\nread_only = true\n',
            'line 5: vm[0] "web".disk[0].path: there is no file "FOLDER/new.img", '
            "and a new read-only disk would stay empty",
        ),
        (
            VM + '[[vm.disk]]\npath = "no/new.img"\nsize = "1MiB"\n',
            'line 5: vm[0] "web".disk[0].path: the folder "FOLDER/no" is missing',
        ),
        (VM + '[[vm.disk]]\npath = "."\n', 'line 5: vm[0] "web".disk[0].path: "FOLDER" is not a file'),
        (VM + '[[vm.disk]]\npath = ""\n', 'line 5: vm[0] "web".disk[0].path: is empty'),
        (
            VM + '[[vm.disk]]\npath = "web.py"\n',
            'line 5: vm[0] "web".disk[0].path: "FOLDER/web.py" has 32 bytes, not a multiple of 512; '
            "pad a copy: truncate -s 512 COPY",
        ),
        (
            VM + '[[vm.disk]]\npath = "data.img"\nsize = "1MiB"\n',
            'line 6: vm[0] "web".disk[0].size: the file has 4 KiB, not 1 MiB; remove the size or the file',
        ),
        (
            VM + '[[vm.disk]]\npath = "new.img"\nsize = 1000\n',
            'line 6: vm[0] "web".disk[0].size: must be a multiple of 512 bytes and not 0, is 1000',
        ),
        (
            VM + '[[vm.disk]]\npath = "data.img"\nblock_size = 1024\n',
            'line 6: vm[0] "web".disk[0].block_size: must be 512 or 4096, is 1024',
        ),
        (
            VM + '[[vm.disk]]\npath = "new.img"\nblock_size = 4096\nsize = 512\n',
            'line 7: vm[0] "web".disk[0].size: must be a multiple of 4096 bytes and not 0, is 512',
        ),
        (
            VM + '[[vm.disk]]\npath = "web.py"\ntype = "dvd"\n',
            'line 5: vm[0] "web".disk[0].path: "FOLDER/web.py" has 32 bytes, not a multiple of 2048; '
            "pad a copy: truncate -s 2048 COPY",
        ),
        (
            VM + '[[vm.disk]]\npath = ""\ntype = "dvd"\nblock_size = 4096\n',
            'line 7: vm[0] "web".disk[0].block_size: is for disks; a DVD has blocks of 2048 bytes',
        ),
        (
            VM + '[[vm.disk]]\npath = ""\ntype = "dvd"\nsize = 2048\n',
            'line 7: vm[0] "web".disk[0].size: is for disks; a drive of type = "dvd" has a disc, or none',
        ),
        (
            VM + '[[vm.disk]]\npath = "dta.img"\ntype = "dvd"\n',
            'line 5: vm[0] "web".disk[0].path: there is no file "FOLDER/dta.img"; did you mean "data.img"?',
        ),
        (
            VM + '[[vm.disk]]\npath = "data.img"\ntype = "dvds"\n',
            'line 6: vm[0] "web".disk[0].type: must not be "dvds"; did you mean "dvd"?',
        ),
        (
            VM + '[[vm.device]]\nvsp = "echo.py:Echo"\narrives = -0.5\n',
            'line 6: vm[0] "web".device[0].arrives: must be at least 0, is -0.5',
        ),
        (
            VM + '[[vm.disk]]\npath = "data.img"\nlun = 64\n',
            'line 6: vm[0] "web".disk[0].lun: must be at most 63, is 64',
        ),
        (
            VM + '[[vm.disk]]\npath = ""\ntype = "dvd"\nlun = 3\n[[vm.disk]]\npath = ""\ntype = "dvd"\nlun = 3\n',
            'line 11: vm[0] "web".disk[1].lun: 3 is the LUN of disk[0] too',
        ),
        (
            VM + '[[vm.disk]]\npath = "data.img"\n[[vm.disk]]\npath = "./data.img"\nread_only = true\n',
            'line 7: vm[0] "web".disk[1].path: vm[0] "web".disk[0] has this image too; '
            "that works only if both are read_only",
        ),
        (
            VM + '[[vm.device]]\nvsp = "echo.py"\n',
            'line 5: vm[0] "web".device[0].vsp: must be a file and a class such as "echo.py:Echo", is "echo.py"',
        ),
        (
            VM + '[[vm.device]]\nvsp = "echo.py:Eco"\n',
            'line 5: vm[0] "web".device[0].vsp: "echo.py" has no class Eco; did you mean Echo?',
        ),
        (
            VM + '[[vm.device]]\nvsp = "ech.py:Echo"\n',
            'line 5: vm[0] "web".device[0].vsp: there is no file "FOLDER/ech.py"; did you mean "echo.py"?',
        ),
        ("[[vm\n", "not TOML: Expected ']]' at the end of an array declaration (at line 1, column 5)"),
        ("a = " + "[" * 5000, "not a topology: nested too deeply"),
    ],
)
def test_refusals(folder: Path, text: str, expected: str) -> None:
    """Each mistake has its own message, with place, reason and remedy."""
    assert "\n".join(problems(folder, text)) == expected.replace("FOLDER", str(folder))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (None, 'there is no file "FOLDER/guest.py"; built in: BUILT-IN'),
        (
            "def main(guest):\n    pass\n",
            "FOLDER/guest.py, line 1: `main` is not async; a guest program has `async def main(guest)`",
        ),
        (
            "\nasync def main():\n    pass\n",
            "FOLDER/guest.py, line 2: `main` takes one argument: `async def main(guest)`",
        ),
        ("x = 1\n", "FOLDER/guest.py has no `async def main(guest)`"),
        ("x = \n", "FOLDER/guest.py, line 1: invalid syntax"),
        ("raise SystemExit('never run')\n", "FOLDER/guest.py has no `async def main(guest)`"),
    ],
)
def test_programs_are_parsed_and_never_run(folder: Path, source: str | None, expected: str) -> None:
    """An unusable guest program is refused at the start, without running a line of it."""
    (folder / "web.py").unlink()
    if source is not None:
        (folder / "guest.py").write_text(source)
    text = '[[vm]]\nname = "web"\nprogram = "guest.py"\n'
    expected = expected.replace("FOLDER", str(folder)).replace("BUILT-IN", ", ".join(compose.built_in_programs()))
    assert problems(folder, text) == [f'line 3: vm[0] "web".program: {expected}']


def test_built_in_program(folder: Path) -> None:
    """A program that comes with Partita is named without a file; a file of that name would win."""
    text = '[[vm]]\nname = "web"\nprogram = "idle"\n'
    assert parse_topology(text, folder).vm[0].program == "idle"
    assert problems(folder, text.replace("idle", "idel")) == [
        f'line 3: vm[0] "web".program: there is no file "{folder}/idel"; did you mean "idle"?'
    ]


def test_all_problems_at_once(folder: Path) -> None:
    """One mistake does not hide the next, in the same table or in another; they come in the file's order."""
    text = """\
[host]
memory = "1MiB"
[[vm]]
name = "web"
program = "web.py"
memory = 4097
procesors = 2
[[vm]]
name = "web"
program = "no.py"
[[vm.disk]]
pth = "data.img"
"""
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, folder, source="t.toml")
    assert str(caught.value) == (
        "t.toml: 7 problems\n"
        "  line 2: host.memory: the host has 1 MiB, its VMs together want 67112961 bytes\n"
        '  line 6: vm[0] "web".memory: must be a multiple of 4096 bytes, is 4097\n'
        '  line 7: vm[0] "web".procesors: unknown key; did you mean "processors"?\n'
        '  line 9: vm[1] "web".name: "web" is the name of vm[0] too\n'
        f'  line 10: vm[1] "web".program: there is no file "{folder}/no.py"; did you mean "echo.py"?\n'
        '  line 11: vm[1] "web".disk[0].path: is missing\n'
        '  line 12: vm[1] "web".disk[0].pth: unknown key; did you mean "path"?'
    )


def test_two_readers_share_an_image(folder: Path) -> None:
    """Read-only disks of several VMs may stand on one image."""
    disk = '[[vm.disk]]\npath = "data.img"\nread_only = true\n'
    assert len(parse_topology(VM + disk + VM.replace('"web"', '"db"') + disk, folder).vm) == 2


def test_boundary_vm_needs_no_program(folder: Path) -> None:
    """Where the boundary driver is the guest, a VM does without a program."""
    assert parse_topology('[[vm]]\nname = "web"\n', folder, programs=False).vm[0].program == ""


def test_add_disk(folder: Path) -> None:
    """A disk can be added to a VM that was read from a file, under the same rules as in the file."""
    topology = parse_topology(VM, folder)
    image = folder / "data.img"
    changed = add_disk(topology, "web", str(image))
    assert changed.vm[0].disk == [DiskTable(path=str(image), read_only=True)]
    assert topology.vm[0].disk == []
    assert add_disk(topology, "web", str(image), read_only=False).vm[0].disk[0].read_only is False
    for vm, path, expected in [
        ("wbe", "x", '--disk wbe=x: no VM is called "wbe"; did you mean "web"?'),
        (
            "web",
            str(image),
            f'--disk web={image}: vm[0] "web".disk[1].path: vm[0] "web".disk[0] has this image too; '
            "that works only if both are read_only",
        ),
    ]:
        with pytest.raises(TopologyError) as caught:
            add_disk(changed, vm, path, read_only=False)
        assert str(caught.value) == expected


def test_load_folder_and_file(folder: Path) -> None:
    """A folder stands for the topology.toml in it."""
    (folder / "topology.toml").write_text(VM)
    assert load_topology(folder) == load_topology(str(folder / "topology.toml"))
    assert load_topology(folder).folder == folder


def test_load_refuses_what_is_not_there(folder: Path) -> None:
    """A wrong target says what was looked for."""
    with pytest.raises(TopologyError, match=r"this folder has no topology\.toml"):
        load_topology(folder)
    with pytest.raises(TopologyError, match="no such folder, file or example"):
        load_topology("no-such-thing-at-all")
    (folder / "topology.toml").write_bytes(b"\xff")
    with pytest.raises(TopologyError, match="cannot be read"):
        load_topology(folder)


def test_example_by_name_number_or_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`partita run disk` works, though others have the word among theirs; an ambiguous word names nothing."""
    monkeypatch.setattr("partitions.examples._HERE", folder / "partitions")
    for name in ("03-disk", "04-disk-pair", "05-pair-tape"):
        place = folder / "examples" / name
        place.mkdir(parents=True)
        (place / "topology.toml").write_text(VM)
        (place / "web.py").write_text(PROGRAM)
    for target, name in (
        ("03-disk", "03"),
        ("03", "03"),
        ("disk", "03"),
        ("disk-pair", "04"),
        ("04", "04"),
        ("tape", "05"),
    ):
        assert load_topology(target).folder.name.startswith(name)
    with pytest.raises(TopologyError) as caught:
        load_topology("03-dsk")
    assert str(caught.value) == '03-dsk: no such folder, file or example; did you mean "03-disk"?'
    with pytest.raises(TopologyError):
        load_topology("pair")


def test_schema_describes_every_key() -> None:
    """Editors get each key with its type and words, and no unknown key passes."""
    made = schema()
    json.dumps(made)
    vm = made["$defs"]["VmTable"]
    assert vm["additionalProperties"] is False
    assert vm["properties"]["memory"]["anyOf"][0] == {"type": "integer", "minimum": 0}
    assert vm["properties"]["processors"]["maximum"] == 64
    assert "async def main" in vm["properties"]["program"]["description"]


@given(st.integers(0, 1 << 50))
def test_size_words_are_read_back(size: int) -> None:
    """What we print for a size can be written into a topology."""
    assert Size.parse(size_words(size).replace("bytes", "B")) == size


def test_line_of_nested_tables() -> None:
    """Elements of nested arrays of tables are counted from their own parent."""
    text = "[[vm]]\n[[vm.disk]]\npath = 1\n[[vm.disk]]\npath = 2\n[[vm]]\n[[vm.disk]]\npath = 3\n"
    assert line_of(text, ("vm", 0, "disk", 1, "path")) == 5
    assert line_of(text, ("vm", 1, "disk", 0, "path")) == 8
    assert line_of(text, ("vm", 1, "name")) == 6
    assert line_of(text, ("host", "memory")) is None


def test_luns_are_the_lowest_that_are_left(folder: Path) -> None:
    """A disk that names its own has it; the others fill the gaps, in their order."""
    disks = [DiskTable(path="", lun=lun) for lun in (None, 1, None, 0, None)]
    assert luns_of(disks) == [2, 1, 3, 0, 4]
    topology = parse_topology(VM + '[[vm.disk]]\npath = ""\ntype = "dvd"\n', folder)
    assert topology.vm[0].disk == [DiskTable(path="", type=DiskType.DVD)]


DOCUMENT = Path(__file__).parents[2] / "docs" / "topology.md"


SECTIONS = {
    "HostTable": "The host: `[host]`",
    "VmTable": "A virtual machine: `[[vm]]`",
    "CpuTable": "Its processors: `cpu`",
    "DynamicMemoryTable": "Memory that changes: `[vm.dynamic_memory]`",
    "ScreenTable": "Screen: `[vm.screen]`",
    "SocketsTable": "Sockets: `[vm.sockets]`",
    "DeviceTable": "A device of your own: `[[vm.device]]`",
    "DiskTable": "A disk: `[[vm.disk]]`",
    "IopsTable": "How much of it: `iops`",
    "NicTable": "A network adapter: `[[vm.nic]]`",
    "BandwidthTable": "How much of the network: `bandwidth`",
    "LinkTable": "How far away: `link`",
    "AclTable": "Access list: `[[vm.nic.acl]]`",
    "SwitchTable": "A switch: `[[switch]]`",
    "PoolTable": "A pool: `[[pool]]`",
    "PoolCpuTable": "Of processors: `cpu`",
    "PoolMemoryTable": "Of memory: `memory`",
    "PoolNetworkTable": "Of networks: `network`",
    "QuestionTable": "A question: `[question]`",
}
INNER = {
    "disk",
    "nic",
    "acl",
    "device",
    "screen",
    "sockets",
    "cpu",
    "dynamic_memory",
    "network",
    "iops",
    "bandwidth",
    "link",
}
"""Keys that are tables, with sections of their own."""


@pytest.mark.parametrize("kind", SECTIONS)
def test_documented_keys(kind: str) -> None:
    """docs/topology.md has a section for each table, and in it every key that works in this version and no other."""
    document = DOCUMENT.read_text()
    _, _, section = document.partition(f"# {SECTIONS[kind]}\n")
    rows = re.findall(r"^\| (`.*?) \|", re.split(r"^#", section, flags=re.MULTILINE)[0], re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    known = schema()["$defs"][kind]["properties"].keys()
    tables = INNER - ({"bandwidth"} if kind in ("HostTable", "SwitchTable") else set())
    if kind == "PoolTable":
        tables = tables | {"memory"}
    if kind == "SwitchTable":
        tables = tables - {"link"}
    assert told == known - tables


def test_documented_topology(folder: Path) -> None:
    """The file that docs/topology.md shows is read; what it links to on its own page is there."""
    document = DOCUMENT.read_text()
    (folder / "data.img").unlink()
    parse_topology(document.split("```toml\n")[1].split("```")[0], folder)
    headings = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", document)) <= anchors
