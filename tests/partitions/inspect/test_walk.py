"""Any tree is shown and any path answered: the walk, its three forms, and the words for a path that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.inspect import Branch, Claim, Fault, Gone, Hex, Histogram, Log2Counts, Many, Node, Setting, by_hex, data
from partitions.inspect import InspectError, look, update, write_out
from partitions.inspect.answers import TURN_RUNS
from partitions.inspect.path import MOST_PARTS, find
from partitions.inspect.render import FOLDED, Values, json_pieces, plain, tree_lines, words
from partitions.inspect.walk import LONGEST_RUN, Mark, runs, walk


def ignored(text: str) -> None:
    """A setting that takes everything."""


def raising(error: Exception) -> Callable[[], Branch]:
    def make() -> Branch:
        raise error

    return make


NAMES = st.text(min_size=1, max_size=6) | st.sampled_from(
    ["vmbus", "lib/my.py:Echo", "a/b", "0x10", "\x1b[31m", "\ud800"]
)
TEXTS = st.text(st.characters(), max_size=20) | st.sampled_from(["\x1b[2J", "\ud800", "", "\n"])
INTEGERS = st.integers(-(1 << 130), 1 << 130) | st.integers(20_000, 20_001).map(lambda bits: 1 << bits)
LEAVES = st.one_of(
    INTEGERS,
    INTEGERS.map(Hex),
    TEXTS,
    st.booleans(),
    st.none(),
    st.floats(),
    st.builds(Claim, INTEGERS | TEXTS, TEXTS),
    st.builds(Histogram, TEXTS, st.lists(st.integers(0, 1 << 64), max_size=40).map(tuple)),
    st.builds(Setting, INTEGERS | TEXTS | st.booleans() | st.none(), st.just(ignored), TEXTS),
    st.builds(Fault, TEXTS),
)


def made_late(branch: Branch) -> Callable[[], Branch]:
    return lambda: branch


def branches(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = st.dictionaries(NAMES, children, max_size=4)
    branch = some.map(Branch)
    late = branch.map(made_late)
    members = st.dictionaries(st.integers(0, 99), branch, max_size=4)
    many = members.map(lambda live: Many(live, int, show=lambda each: each))
    hexes = members.map(lambda live: Many(live, lambda name: int(name, 16), name=hex, show=lambda each: each))
    broken = st.sampled_from([raising(Gone("x")), raising(ValueError("\x1b")), raising(KeyError("k"))])
    return branch | late | many | hexes | broken


TREES = st.recursive(LEAVES, branches, max_leaves=25)


def top(tree: Node) -> Branch:
    return Branch({"tree": tree})


def values_of(tree: Branch, depth: int | None = None) -> Any:
    values = Values()
    for run in runs(tree, depth):
        values.take(run)
    return values.result


def as_json(value: Any) -> Any:
    """What JSON has of a value of ours."""
    match value:
        case dict():
            return {clean(name): as_json(member) for name, member in value.items()}
        case Claim():
            return {"guest": as_json(value.value)} | ({"fault": clean(value.fault)} if value.fault else {})
        case Histogram():
            return {"unit": clean(value.unit), "counts": list(value.counts)}
        case Fault():
            return {"error": clean(value.words)}
        case str():
            return clean(value)
        case float():
            return value if value - value == 0 else repr(value)
        case bool() | None:
            return value
        case _:
            return int(value) if abs(value) < 1 << 200 else hex(value)


def clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@given(TREES, st.integers(0, 5) | st.none())
def test_any_tree_is_shown(tree: Node, depth: int | None) -> None:
    """Every form of any tree: a line a step without anything that drives a terminal, JSON that says the same."""
    root = top(tree)
    lines = "".join(tree_lines(runs(root, depth))).splitlines(keepends=True)
    assert all(line.endswith("\n") and line[:-1].isprintable() for line in lines)
    assert len(lines) == sum(1 for step in walk(root, depth) if step[2] is not Mark.CLOSE)
    text = "".join(json_pieces(runs(root, depth)))
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text) == as_json(values_of(root, depth))


@given(TREES)
def test_each_place_has_a_path(tree: Node) -> None:
    """What the walk shows is found by its path, unless another name with a slash in it hides it."""

    def check(path: str, shown: Any) -> None:
        there = find(root, path)
        if isinstance(shown, dict):
            for name, member in shown.items():
                if all(name.split("/")):
                    check(f"{path}/{name}", member)
        else:
            assert not isinstance(there, Branch)
            value = plain(there)  # a setting's
            assert value is shown or value == shown

    root = top(tree)
    shown = values_of(root)
    if shown and not any("/" in name for level, name, what in walk(root)):
        check("tree", shown["tree"])


@given(TREES, st.lists(NAMES, max_size=4))
def test_any_path_has_an_answer(tree: Node, names: list[str]) -> None:
    """A path leads to something, or to an `InspectError` with words."""
    said = "found"
    try:
        find(top(tree), "/".join(["tree", *names]))
    except InspectError as error:
        said = str(error)
    assert said


@given(TREES, st.integers(0, 4))
def test_depth_is_kept(tree: Node, depth: int) -> None:
    """Nothing is shown below the depth, and what lies there is not even made."""
    asked: list[int] = []

    def deep(level: int) -> Branch:
        asked.append(level)
        return Branch({"below": lambda: deep(level + 1), "tree": tree})

    steps = list(walk(deep(0), depth))
    assert max((level for level, _, _ in steps), default=0) < max(depth, 1)
    assert max(asked) == max(depth - 1, 0)


def test_what_goes_during_a_walk_is_left_out() -> None:
    """A collection may change between any two steps: members that went are not shown, those that came may be."""
    live = {number: Branch({"number": number}) for number in range(6)}
    root = Branch({"members": Many(live, int, show=lambda each: each), "last": 1})
    names = []
    for _, name, _ in walk(root):
        names.append(name)
        if name == "1":
            del live[1], live[2], live[5]
            live[9] = Branch({})
    assert names == ["members", "0", "number", "", "1", "number", "", "3", "number", "", "4", "number", "", "", "last"]
    assert find(root, "members/9") is live[9]


def test_a_collection_that_fails_is_a_fault() -> None:
    """A mistake of ours is shown in its place, and the walk goes on."""

    class Broken(Branch):
        def walk(self) -> Any:
            yield "first", 1
            raise RuntimeError("dictionary changed size during iteration")

    shown = values_of(Branch({"broken": Broken({}), "late": raising(OSError("no")), "good": 2}))
    assert shown == {
        "broken": {"first": 1, "?": Fault("RuntimeError: dictionary changed size during iteration")},
        "late": Fault("OSError: no"),
        "good": 2,
    }


TREE = Branch(
    {
        "vm": Branch(
            {"web": Branch({"vmbus": Branch({"state": "connected"}), "lib/my.py:Echo": Branch({"calls": 3})})}
        ),
        "ports": by_hex({16: Branch({"sint": 2}), 17: Branch({"sint": 3})}),
        "empty": Branch({}),
        "many": Branch({f"member-{number}": number for number in range(300)}),
    }
)


@pytest.mark.parametrize(
    ("path", "words_of_it"),
    [
        ("vms", 'there is no "vms" in the root; did you mean "vm"?'),
        ("vm/wbe/vmbus", 'there is no "wbe" in vm; did you mean "web"?'),
        ("vm/web/vmbus/statte", 'there is no "statte" in vm/web/vmbus; did you mean "state"?'),
        ("vm/web/vmbus/state/x/y", 'vm/web/vmbus/state is a value: there is no "x/y" below it'),
        ("empty/x", 'there is no "x" in empty; it is empty'),
        ("ports/16", 'there is no "16" in ports; there are 0x10, 0x11'),
        ("vm/zzzzzz", 'there is no "zzzzzz" in vm; there are web'),
        ("many/membre-7", 'there is no "membre-7" in many; did you mean "member-7"?'),
        (
            "many/zzz",
            f'there is no "zzz" in many; there are {", ".join(f"member-{n}" for n in range(12))} and 288 more',
        ),
    ],
)
def test_a_wrong_path_is_met_with_the_nearest_name(path: str, words_of_it: str) -> None:
    """Where the path goes wrong, and what there is."""
    with pytest.raises(InspectError) as caught:
        find(TREE, path)
    assert str(caught.value) == words_of_it


def test_names_with_slashes() -> None:
    """A device of one's own is called by its file, which may lie in a folder."""
    assert values_of(find(TREE, "vm/web/lib/my.py:Echo")) == {"calls": 3}  # type: ignore[arg-type]
    assert find(TREE, "/vm//web/lib/my.py:Echo/calls/") == 3
    assert find(TREE, "") is TREE


def test_lines_for_people() -> None:
    """Each kind of value in words; what a guest could have written is labelled, and cannot drive the terminal."""
    counts = Log2Counts()
    for value in (0, 1, 5, 5, 1 << 50, -3):
        counts.add(value)
    branch = Branch(
        {
            "flag": True,
            "none": None,
            "mask": Hex(0x1F),
            "text": "",
            "in": Claim(Hex(0x5000), "past the end"),
            "said": Claim("\x1b[2J"),
            "depth": Setting(4, ignored, "1 to 9"),
            "waits": counts.histogram("us"),
            "wrong": Fault("KeyError: 1"),
            "below": Branch({"x": 1.5}),
        }
    )
    assert "".join(tree_lines(runs(branch))).splitlines() == [
        "flag: true",
        "none: none",
        "mask: 0x1f",
        'text: ""',
        "in: 0x5000 (guest: past the end)",
        "said: \\x1b[2J (guest)",
        "depth: 4  (1 to 9)",
        "waits: 6 in all; 0 us: 2, below 2 us: 1, below 8 us: 2, below 549755813888 us: 1",
        "wrong: ! KeyError: 1",
        "below/",
        "  x: 1.5",
    ]
    assert words(Histogram("us", ())) == "0 in all"
    assert values_of(branch, 1)["below"] == FOLDED


def test_a_long_branch_comes_in_runs() -> None:
    """However many values a branch has, others need not wait for all of them."""
    long = Branch({str(number): number for number in range(10 * LONGEST_RUN + 1)})
    assert [len(values) for _, values, _, _ in runs(long)] == [LONGEST_RUN] * 10 + [1]
    assert values_of(long) == {str(number): number for number in range(10 * LONGEST_RUN + 1)}
    assert json.loads("".join(json_pieces(runs(long)))) == values_of(long)


def test_plain_data() -> None:
    """Settings of all kinds become branches and values, nothing else."""
    shown = values_of(Branch({"data": data({"a": [1, "x", None], "b": {"c": 2.5}, 3: object})}))
    assert shown["data"]["a"] == {"0": 1, "1": "x", "2": None}
    assert shown["data"]["b"] == {"c": 2.5}
    assert isinstance(shown["data"]["3"], str)


def test_only_settings_are_set() -> None:
    """A value that is none, and one that the setting does not take, are refused in words; the rest stays."""
    depth = 4

    def set_depth(text: str) -> None:
        nonlocal depth
        if not text.isdecimal():
            raise ValueError(f"a depth is a number, not {text!r}")
        depth = int(text)

    def tree() -> Branch:
        return Branch({"disk": lambda: Branch({"depth": Setting(depth, set_depth, "any number"), "size": 1})})

    assert update(tree(), "disk/depth", "7") == "7"
    assert depth == 7
    for path, text, why in (
        ("disk/depth", "many", "disk/depth: a depth is a number, not 'many'"),
        ("disk/size", "2", '"disk/size" is a value that cannot be set'),
        ("disk", "2", '"disk" is a branch'),
        ("disk/depht", "2", 'there is no "depht" in disk; did you mean "depth"?'),
    ):
        with pytest.raises(InspectError) as caught:
            update(tree(), path, text)
        assert str(caught.value) == why
    assert depth == 7


def broad(members: int) -> Branch:
    return Branch({str(number): Branch({"number": number}) for number in range(members)})


async def test_others_run_meanwhile(autojump_clock: trio.abc.Clock) -> None:
    """On the virtual clock by count, however long it takes: what a run does never depends on that."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    pieces: list[str] = []

    async def send(text: str) -> None:
        pieces.append(text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        shown = await look(broad(2000), "")
        during_look = turns
        await write_out(broad(2000), "", depth=None, form="json", send=send)
        nursery.cancel_scope.cancel()
    assert len(shown) == 2000
    # Each member opens and closes; the last piece has what the last turn left.
    assert during_look >= 2 * 2000 // TURN_RUNS - 1
    assert len(pieces) == 2 * 2000 // TURN_RUNS + 1
    assert json.loads("".join(pieces)) == shown


async def test_the_real_clock_is_looked_at() -> None:
    """A walk whose steps take long lets go after each of them."""
    pieces: list[str] = []

    async def send(text: str) -> None:
        pieces.append(text)

    clock = trio.lowlevel.current_clock().current_time

    def slow() -> Branch:
        begin = clock()
        while clock() - begin < 0.001:
            pass
        return Branch({"x": 1})

    await write_out(Branch(dict.fromkeys("abcd", slow)), "", depth=None, form="tree", send=send)
    assert len(pieces) >= 4
    with pytest.raises(InspectError):
        await write_out(TREE, "nothing", depth=None, form="tree", send=send)


def test_a_path_of_ten_thousand_parts_is_refused_at_once() -> None:
    """It was tried as one name of two parts, of three, and so on: four seconds in which the host stood still."""
    tried: list[int] = []

    class Asked(Branch):
        __slots__ = ()

        def child(self, name: str) -> Node:
            tried.append(len(name))
            raise Gone(name)

    with pytest.raises(InspectError, match='there is no "a" in the root'):
        find(Asked({}), "a/" * 10_000)
    assert len(tried) == MOST_PARTS
