"""Every decoder of a peer's bytes, found by itself: any bytes give a value, or the error that its docstring names.

`found` reads the packages' source: a function is a decoder if it takes `untrusted` bytes, if its name says so, or if
it walks with a `Cursor`. Each has a row or a reason in `decoder_rows_*`; a new one without either fails here.
Layouts need no row: all `@wire` classes are tried.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import functools
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hypervisor
import vmbus
import vsp_vsc
from hypervisor.wire import Wire, WireError
from tests.doubles.campaign import examples
from tests.doubles.storage import PlainPlatform
from tests.hostile import (
    decoder_rows_bus,
    decoder_rows_integration,
    decoder_rows_memory,
    decoder_rows_network,
    decoder_rows_screen,
    decoder_rows_storage,
)
from vsp_vsc.integration import protocol as integration
from vsp_vsc.integration.protocol import Component
from vsp_vsc.integration.time_sync.protocol import SyncFlags, TimeMessage, TimeReference, file_time
from vsp_vsc.integration.time_sync.vsc import TimeSyncDriver

ROOT = Path(hypervisor.__file__).parent.parent
PACKAGES = (hypervisor, vmbus, vsp_vsc)
SAYS_SO = ("decode", "parse", "unframe", "unpack")


# --- which there are


@functools.cache
def found() -> frozenset[str]:
    """Decoders by module and name."""
    names: set[str] = set()
    folders = [ROOT / package.__name__ for package in PACKAGES] + [
        ROOT / "partitions" / "root",
        ROOT / "partitions/boundary",
    ]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names |= {f"{module}.{name}" for name in decoders_in(ast.parse(path.read_text()))}
    return frozenset(names)


def decoders_in(node: ast.AST, outer: str = "") -> Iterator[str]:
    """Decoders in a piece of source."""
    for child in ast.iter_child_nodes(node):
        name = outer
        if isinstance(child, ast.ClassDef):
            name = f"{outer}{child.name}."
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and is_decoder(child):
            yield outer + child.name
        yield from decoders_in(child, name)


def is_decoder(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    takes = any(
        argument.arg.startswith("untrusted") and argument.annotation and "bytes" in ast.unparse(argument.annotation)
        for argument in arguments
    )
    walks = any(isinstance(node, ast.Name) and node.id == "Cursor" for node in ast.walk(function))
    return takes or walks or function.name.lstrip("_").startswith(SAYS_SO)


def layouts() -> list[type[Wire]]:
    """All `@wire` classes."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    todo, classes = [Wire], []
    while todo:
        kinds = todo.pop().__subclasses__()
        todo += kinds
        classes += [kind for kind in kinds if kind.SIZE and kind.__module__.split(".")[0] != "tests"]
    return sorted(set(classes), key=lambda kind: (kind.__module__, kind.__qualname__))


# --- how each is tried

FAMILIES = (
    decoder_rows_bus.ROWS,
    decoder_rows_storage.ROWS,
    decoder_rows_integration.ROWS,
    decoder_rows_memory.ROWS,
    decoder_rows_network.ROWS,
    decoder_rows_screen.ROWS,
)
DECODERS = {name: row for family in FAMILIES for name, row in family.decoders.items()}
ELSEWHERE = {name: why for family in FAMILIES for name, why in family.elsewhere.items()}
REACHED = {start: test for family in FAMILIES for start, test in family.reached.items()}


# --- what is tried


@st.composite
def near(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Any bytes; or good ones cut off, gone on with, and with some of them changed."""
    if not seeds or draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        if data:
            at = draw(st.integers(0, min(len(data) - 1, 63)) | st.integers(0, len(data) - 1))
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    end = draw(st.just(len(data)) | st.integers(0, len(data)))
    return bytes(data[:end]) + draw(st.just(b"") | st.binary(max_size=64))


_NUMBERS = 8
"""With which each seed is tried as it is."""


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_every_decoder(name: str) -> None:
    """A value, or the error that it names."""
    decoder = DECODERS[name]
    good = 0
    for seed in decoder.seeds:
        for number in range(_NUMBERS):
            with contextlib.suppress(decoder.errors):
                decoder.take(seed, number)
                good += 1
        for cut in (seed[:-1], seed[: len(seed) // 2], b""):
            with contextlib.suppress(decoder.errors):
                decoder.take(cut, 0)
    assert good, "no seed is a good one any more"

    @settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(near(decoder.seeds), st.integers(0, (1 << 32) - 1))
    def attempt(data: bytes, number: int) -> None:
        with contextlib.suppress(decoder.errors):
            decoder.take(data, number)

    attempt()


@settings(max_examples=examples(10), deadline=None)
@given(st.binary(max_size=600), st.integers(0, 300))
def test_every_layout(data: bytes, offset: int) -> None:
    """A value that encodes to the bytes that it was read from but for padding, or `ShortMessage` and nothing else."""
    for layout in layouts():
        enough = offset + layout.SIZE <= len(data)
        try:
            value = layout.decode(data, offset)
        except WireError:
            assert not enough, layout
        else:
            assert enough, layout
            assert layout.decode(value.encode()) == value


@settings(max_examples=examples(25), deadline=None)
@given(near((TimeMessage(1, 2, 3, 1).encode(), bytes(64))), st.sampled_from(integration.VERSIONS[Component.TIME_SYNC]))
def test_the_date_that_a_host_sends(data: bytes, version: integration.Version) -> None:
    """A date or a `WireError`, however far away the date would be."""
    driver = TimeSyncDriver(PlainPlatform(1 << 14))  # type: ignore[arg-type]
    try:
        driver.answer(data, version)
    except WireError:
        return
    driver.now()


@pytest.mark.parametrize("reference", [0, 0x7F00_0000_0000_0000, (1 << 64) - 1])
def test_a_reference_time_that_does_not_go_with_its_date(reference: int) -> None:
    """Regression: a sound date at an absurd reference time made the guest's clock raise whenever it was asked."""
    driver = TimeSyncDriver(PlainPlatform(1 << 14))  # type: ignore[arg-type]
    last = file_time(datetime.datetime.max.replace(tzinfo=datetime.UTC))
    told = TimeReference(parent_time=last, reference_time=reference, flags=SyncFlags.SYNC)
    driver.answer(told.encode(), integration.VERSIONS[Component.TIME_SYNC][-1])
    date = driver.now()
    assert date is None or date.year > 0


# --- that none is forgotten


def test_no_decoder_is_forgotten() -> None:
    """Each that there is has a row or a reason, and neither outlives its decoder."""
    there = found()
    rows = {name for name in DECODERS if name.count(".") > 1}
    assert sorted(there - rows - ELSEWHERE.keys()) == [], "give it a row or a reason in decoder_rows_*"
    assert sorted(rows | ELSEWHERE.keys()) == sorted(there)
    assert not rows & ELSEWHERE.keys()
    assert sum(len(family.decoders) + len(family.elsewhere) for family in FAMILIES) == len(DECODERS) + len(ELSEWHERE)


def test_whoever_names_untrusted_values_is_looked_at() -> None:
    """A module that speaks of `untrusted` values has a decoder, or a test that reaches it is named here."""
    decoders = {part for name in found() for part in (name.rsplit(".", 1)[0], name.rsplit(".", 2)[0])}
    used: set[str] = set()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package.__name__).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        source = path.read_text()
        if module in decoders or "untrusted" not in source:
            continue
        if any(isinstance(node, ast.Name) and node.id.startswith("untrusted") for node in ast.walk(ast.parse(source))):
            reached = [start for start in REACHED if module.startswith(start)]
            assert reached, f"{module}: nobody tries to break it"
            used.update(reached)
    assert used == REACHED.keys()
    for test in REACHED.values():
        assert (ROOT / "tests" / test).exists(), test


def test_the_rule_finds_decoders() -> None:
    """And does not take others for some."""
    source = """
class Session:
    def take(self, untrusted: bytes) -> int: ...
    def send(self, data: bytes) -> int: ...
async def handle(untrusted_line: bytes | None): ...
def _parse_it(data): ...
def walk(data):
    return Cursor(data).u16()
def check(untrusted_flags: int): ...
"""
    assert set(decoders_in(ast.parse(source))) == {"Session.take", "handle", "_parse_it", "walk"}
    assert len(layouts()) > 100
