"""Rows, field trees and the file around them: what a page is given."""

from __future__ import annotations

import base64
import json
import re
import zlib
from importlib import resources
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import Layer, Level, TraceEvent
from hypervisor.wire import Guid
from partitions.decode.field import Field
from partitions.watch.page import SCRIPTS, file_page, live_page
from partitions.watch.rows import COLUMNS, MAX_DATA, MAX_WORDS, plain, row_of
from partitions.watch.trees import MAX_FIELDS, Shapes
from partitions.watch.units import decoded

values: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.lists(st.integers(), max_size=3)
)
events = st.builds(
    TraceEvent,
    time=st.integers(0, 1 << 53),
    layer=st.sampled_from(Layer),
    event=st.text(),
    partition=st.integers(0, 1 << 64),
    level=st.sampled_from(Level),
    direction=st.text(),
    channel=st.none() | st.integers(0, 1 << 32),
    size=st.none() | st.integers(0, 1 << 40),
    words=st.text(st.characters()),
    fields=st.dictionaries(st.text(), values, max_size=4),
    vm=st.text(st.characters()),
    data=st.binary(max_size=300),
)


@given(events)
def test_any_event_is_a_row(event: TraceEvent) -> None:
    """Whatever a guest has put into it, a row is JSON, and its columns are in their places."""
    row = json.loads(msgspec.json.encode(row_of(7, event, event.vm)))
    found = dict(zip(COLUMNS, row, strict=False))
    assert (found["seq"], found["time"], found["layer"]) == (7, event.time, event.layer.value)
    assert base64.b64decode(found.get("data") or "") == event.data
    assert found.get("words", "").isprintable()
    assert found["vm"].isprintable()


def test_what_javascript_cannot_hold_is_text() -> None:
    """Integers past 2^53 keep their digits, bytes are hexadecimal, a GUID is written as one."""
    assert plain(1 << 53) == "0x20000000000000"
    assert plain((1 << 53) - 1) == (1 << 53) - 1
    assert plain(True) is True
    assert plain(b"\x01\xff") == "01ff"
    assert plain(Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")) == "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
    assert plain(float("inf")) == "inf"


def test_rows_are_bounded() -> None:
    """A guest's long text or packet does not make a long row; how much is missing is told."""
    event = TraceEvent(0, Layer.PACKET, "packet_received", 2, words="x" * 10_000, data=bytes(MAX_DATA + 5))
    found = dict(zip(COLUMNS, row_of(0, event, "web"), strict=False))
    assert len(found["words"]) == MAX_WORDS + 1
    assert found["more"] == 5
    assert len(base64.b64decode(found["data"])) == MAX_DATA


def test_trees_share_their_shape() -> None:
    """Two reads of a disk are one shape; each has its own values, parents first."""
    shapes = Shapes()
    first = Field("packet", 0, 8, None, "two", [Field("type", 0, 4, 9, "GPA_DIRECT"), Field("rest", 4, 4, b"\0\1\2\3")])
    second = Field("packet", 0, 8, None, "", [Field("type", 0, 4, 7), Field("rest", 4, 4, None, fault="cut off")])
    assert shapes.add(first) == [0, [[None, "two"], [9, "GPA_DIRECT"], ["00 01 02 03"]]]
    assert shapes.add(second) == [0, [[], [7], [None, "cut off"]]]
    assert shapes.shapes == [["packet", 0, 8, [["type", 0, 4, []], ["rest", 4, 4, []]]]]


@given(st.binary(max_size=200), st.sampled_from([Layer.CONTROL, Layer.PACKET]), st.sampled_from(["", "storage", "kvp"]))
def test_any_bytes_are_a_tree(data: bytes, layer: Layer, device: str) -> None:
    """Hostile bytes have fields too: as many values as the shape has places, all of it JSON."""
    field = decoded(layer, data, device, ">root", None)
    assert field is not None
    shapes = Shapes()
    _, inside = json.loads(msgspec.json.encode(shapes.add(field)))

    def places(shape: list[Any]) -> int:
        return 1 + sum(map(places, shape[3]))

    assert places(shapes.shapes[0]) == len(inside) == sum(1 for _ in field.walk())


def test_a_tree_ends() -> None:
    """However many fields there are, a page gets a bounded number and is told that there were more."""
    shapes = Shapes()
    _, inside = shapes.add(
        Field("all", 0, 9999, children=[Field(f"page[{n}]", n, 1, n) for n in range(MAX_FIELDS * 2)])
    )
    assert len(inside) == MAX_FIELDS + 1
    assert inside[-1] == [None, "the page leaves the rest away"]


def test_layers_without_bytes_have_no_fields() -> None:
    """Only messages and packets are units of bytes."""
    assert decoded(Layer.STATE, b"1234", "", "", None) is None


def test_the_page_is_one_file() -> None:
    """Nothing is fetched: no address in it but the names of XML; the policy names its script and its style by hash."""
    page = file_page("a <b> & c", b"{}").decode()
    assert "<title>a &lt;b&gt; &amp; c" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    addresses = re.findall(r"https?://[^\s\"']+", page)
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "connect-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]
    packed = re.search(r'data-live="">([^<]*)</script>', page)
    assert packed
    assert zlib.decompress(base64.b64decode(packed[1])) == b"{}"
    assert "connect-src 'self'" in live_page("x", "events").decode()


def test_text_never_becomes_markup() -> None:
    """The scripts have no way to make markup of text, none to run text, and leave no place for a browser to guess."""
    assets = resources.files("partitions.watch").joinpath("assets")
    for name in SCRIPTS:
        script = assets.joinpath(f"{name}.js").read_text()
        assert not re.findall(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function|srcdoc", script
        )
        assert "</script" not in script
    assert {path.name for path in assets.iterdir()} == {"page.html", "page.css", *(f"{name}.js" for name in SCRIPTS)}
