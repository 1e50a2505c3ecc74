"""A recording's page as a person uses it, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypervisor.trace import Layer, Level, TraceEvent
from tests.doubles.browser import Browser, Page
from tests.partitions.watch.conftest import ROOT, MakePage, Run, record

STILL = {"prefers-reduced-motion": "reduce"}
LOADED = "document.body.dataset.mode === 'file'"


@pytest.fixture
def page(browser: Browser, page_of: MakePage, disk_run: Run) -> Iterator[Page]:
    """The run of two VMs, nothing moving by itself; a page that complains fails its test."""
    with browser.page(page_of(*disk_run), media=STILL) as opened:
        opened.wait(LOADED)
        yield opened
        assert opened.complaints() == []


def place(page: Page) -> int:
    return int(page.run("document.body.dataset.place"))


def event(page: Page) -> TraceEvent:
    """What the page shows, by what it says of it."""
    found: TraceEvent = page.run("(({layer, event, words, vm}) => ({layer, event, words, vm}))(current())")
    return found


def go(page: Page, wanted: str, nth: int = 0) -> None:
    """To the event for which an expression on `row` is true."""
    page.run(f"goToSeq(recording.rows.filter((row) => {wanted})[{nth}].seq)")


def vm_state(page: Page, name: str) -> str:
    return str(page.run(f"document.querySelector('.vm[data-vm={json.dumps(name)}]').dataset.state"))


def test_nothing_is_fetched_and_nothing_complains(browser: Browser, page_of: MakePage, disk_run: Run) -> None:
    """The file is all there is to it, in light and in dark."""
    address = page_of(*disk_run)
    for scheme in ("light", "dark"):
        with browser.page(address, media={"prefers-color-scheme": scheme}) as page:
            page.wait(LOADED)
            page.press("r")
            page.wait("document.querySelector('.token')")
            assert [found for found in page.addresses() if not found.startswith("data:")] == [address]
            assert page.complaints() == []


def test_step_and_step_back(page: Page) -> None:
    """One event at a time, by button and by key; what is shown is the event of that place in the list."""
    assert place(page) == 0
    for step in ("#step", "#step", "#back", "#step"):
        page.click(step)
    assert place(page) == 2
    page.press("ArrowRight")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    assert place(page) == 3
    assert page.run("visible[3] === current()")
    assert page.run("document.querySelector('[aria-selected=true]').id") == f"event-{page.run('current().seq')}"
    page.press("End")
    assert page.run("current() === visible.at(-1)")
    page.click("#step")
    assert page.run("current() === visible.at(-1)")
    page.press("Home")
    assert place(page) == 0


def test_play_and_pause(page: Page) -> None:
    """Playing goes on by itself until it is told to stop, and stops by itself at the end."""
    page.run("choose(byId('speed'), '4')")
    page.click("#play")
    assert page.run("byId('play').getAttribute('aria-label')") == "Pause"
    page.wait("Number(document.body.dataset.place) > 12")
    page.press("Escape")
    page.run("document.activeElement.blur()")
    page.press(" ")
    assert page.run("document.body.dataset.playing") == "false"
    before = place(page)
    page.run("new Promise((done) => setTimeout(done, 120))")
    assert place(page) == before
    page.run("choose(byId('speed'), '5'); player.go(visible.length - 20)")
    page.click("#play")
    page.wait("document.body.dataset.playing === 'false'")
    assert page.run("current() === visible.at(-1)")


def test_time_as_it_was(page: Page) -> None:
    """A speed in parts of the run's own time: a quarter of a second without events takes that long."""
    go(page, "row.event === 'packet_sent' && row.vm === 'reader' && row.request && row.request.words.includes('lba=0')")
    page.run("choose(byId('speed'), '6')")
    since = page.run("current().time")
    page.run("window.began = performance.now(); player.play()")
    page.wait(f"current().time > {since} + 1e6")
    gone = page.run("performance.now() - window.began")
    assert 150 < gone < 15_000


def test_jumps(page: Page) -> None:
    """To the next request, channel message and change of state, and with shift to the one before."""
    for key, wanted in {
        "m": "row.layer === 'control'",
        "s": "row.layer === 'state'",
        "r": "Boolean(row.request && row.hop === 0)",
    }.items():
        page.press("Home")
        page.press(key)
        first = place(page)
        assert first > 0
        assert page.run(f"((row) => {wanted})(current())")
        assert not page.run(f"visible.slice(1, {first}).some((row) => {wanted})")
        page.press(key)
        assert place(page) > first
        page.press(key.upper(), shift=True)
        assert place(page) == first


def test_a_request_hop_by_hop(page: Page) -> None:
    """Ring, hypercall, event flag, interrupt, VSP, disk, completion, signal, interrupt: each hop can be gone to."""
    go(page, "row.request && row.hop === 0 && row.request.words.startsWith('SCSI READ(10)')")
    assert "SCSI READ(10) lba=0 blocks=1" in page.text("#request p")
    assert "into the ring on channel" in page.text("#caption")
    layers = page.run("current().request.hops.map(([seq]) => recording.bySeq.get(seq).layer)")
    asked = ["synic", "interrupt", "hypercall", "packet", "device"]
    answered = ["device", "packet", "synic", "interrupt", "hypercall"]
    assert layers == asked + answered
    shown = page.run("[...document.querySelectorAll('.hop')].map((hop) => hop.textContent)")
    assert len(shown) == len(layers)
    for number, layer in enumerate(layers):
        page.run(f"document.querySelectorAll('.hop')[{number}].click()")
        assert page.run("current().layer") == layer
        assert page.run("document.querySelector('.hop[aria-current=step]').dataset.hop") == str(number)
        assert page.run("document.querySelectorAll('.token').length") == 1
        assert page.text(".token .tag")
    # A packet is in the ring from the signal on, in work from when it is taken, and in the other ring when it is sent.
    seen = []
    for number in range(len(layers)):
        page.run(f"document.querySelectorAll('.hop')[{number}].click()")
        seen.append(
            page.run(
                "Object.fromEntries(Object.entries([...recording.load(current().seq).values()][0] || {})"
                ".map(([where, requests]) => [where, requests.length]))"
            )
        )
    assert [counts.get("asked", 0) for counts in seen] == [1, 1, 1] + 7 * [0]
    assert [counts.get("working", 0) for counts in seen] == [0, 0, 0, 1, 1, 1] + 4 * [0]
    assert [counts.get("answered", 0) for counts in seen] == 6 * [0] + [1, 1, 1, 0]
    # One that waits leads to its packet.
    page.run("document.querySelectorAll('.hop')[1].click()")
    page.click(".packet-waiting")
    assert page.run("[current().event, current().hop]") == ["packet_received", 3]


def test_a_request_of_the_root(page: Page) -> None:
    """What an integration component asks lies in the child's ring until it is answered, and never in the root's."""
    page.run("window.asked = recording.requests.find((request) => request.by_host && request.outcome === 'answered')")
    lists = page.run(
        "asked.hops.map(([seq]) => { const load = recording.load(seq).get(`${asked.vm}/${asked.channel}`);"
        " return load ? [load.asked.length, load.working.length, load.answered.length] : null; })"
    )
    assert lists[-1] is None
    assert lists[0] == [0, 0, 1]
    assert all(counts in ([0, 0, 1], None) for counts in lists)
    page.run("goToSeq(asked.hops[0][0])")
    assert page.text(".hop") == "root sends packet"


def test_where_the_dot_goes(page: Page) -> None:
    """From the VSC to the VSP and back, and round by the hypervisor: the picture is the lecture's."""
    go(page, "row.request && row.hop === 0 && row.request.words.startsWith('SCSI READ(10)')")
    where = (
        "(([, x, y]) => [Number(x), Number(y)])(/translate\\(([-\\d.]+) ([-\\d.]+)\\)/"
        ".exec(document.querySelector('.token').getAttribute('transform')))"
    )
    inside = (
        "(name) => { const box = document.querySelector(name).getBoundingClientRect();"
        " const dot = document.querySelector('.token .dot').getBoundingClientRect();"
        " const [x, y] = [dot.x + dot.width / 2, dot.y + dot.height / 2];"
        " return x > box.left - 3 && x < box.right + 3 && y > box.top - 3 && y < box.bottom + 3; }"
    )
    way = [".hypervisor", ".root", ".child", ".root", ".root", ".root", ".child", ".hypervisor", ".child", ".root"]
    for number, room in enumerate(way):
        page.run(f"document.querySelectorAll('.hop')[{number}].click()")
        if room == ".child":
            room = '.vm[data-vm="reader"] .child'
        assert page.run(f"({inside})({json.dumps(room)})"), (number, room, page.run(where))


def test_bytes_and_words(page: Page) -> None:
    """A packet's bytes, and the fields that they are made of; a field shows which bytes are its own."""
    go(page, "row.event === 'packet_received' && row.request && row.request.words.startsWith('SCSI READ(10)')")
    page.click(f"#event-{page.run('current().seq')}")
    dump = page.text(".dump .codes")
    assert dump.startswith("09 00")  # a GPA direct packet
    fields = page.run(
        "Object.fromEntries([...document.querySelectorAll('#detail .field')].map((field) =>"
        " [field.querySelector('.name').textContent, field.querySelector('.value').textContent]))"
    )
    assert fields["type"] == "GPA_DIRECT"
    assert "READ(10)" in fields["cdb"]
    for field, marked in (("type", dump.split()[:2]), ("transaction_id", dump.split()[8:16])):
        page.run(
            f"[...document.querySelectorAll('button.field')].find((it) => it.textContent.startsWith('{field}')).focus()"
        )
        assert page.run("[...document.querySelectorAll('.codes .lit')].map((byte) => byte.textContent)") == marked
    # The dot is a way to the same.
    page.run("detail.show(null)")
    page.click(".token .dot")
    assert page.text(".dump .codes") == dump


def test_frames_of_a_network(browser: Browser, page_of: MakePage) -> None:
    """What a VSP has for its guest unasked is no result, and a dot says what its first frame is about."""
    events, names = record(ROOT / "examples" / "10-ping")
    with browser.page(page_of(events, names), media=STILL) as page:
        page.wait(LOADED)
        for way, caption in ((">root", "reads the request"), (">child", "has for its guest")):
            go(page, f"row.event === 'network_frames' && row.direction === '{way}' && row.words.includes('99? tell')")
            assert page.text("#caption").endswith(f"{caption}: 1 frame: ARP who has 10.0.0.99? tell 10.0.0.3")
            assert page.text(".token").strip().startswith("ARP who has 10.0.0.99? tell")
            assert "result: " not in page.text("#request")


def test_a_socket_has_no_devices_at_its_ends(browser: Browser, page_of: MakePage) -> None:
    """A channel of a Hyper-V socket is drawn as a stream, and not between a VSP and a VSC."""
    fields = {"device": "hv-socket", "type": 6, "flags": 0, "transaction_id": 0}
    events = [
        TraceEvent(0, Layer.STATE, "vm_state", 2, words="starting -> running", vm="web"),
        TraceEvent(1, Layer.PACKET, "packet_sent", 2, direction=">child", channel=1, vm="web", fields=fields),
    ]
    with browser.page(page_of(events), media=STILL) as page:
        page.wait(LOADED)
        page.press("End")
        labels = page.run("[...document.querySelectorAll('#picture text')].map((it) => it.textContent)")
        assert labels.count("socket") == 2
        assert not any(label.endswith((" VSP", " VSC")) for label in labels)


def test_states_of_vms(page: Page) -> None:
    """Off, running and crashed are drawn, and drawn again when time goes back."""
    go(page, "row.event === 'vm_state' && row.vm === 'reader'")
    assert vm_state(page, "reader") == "starting"
    assert vm_state(page, "faller") == "off"
    page.run("player.go(visible.length - 1)")
    assert vm_state(page, "reader") == "off"
    assert vm_state(page, "faller") == "crashed"
    go(page, "row.event === 'packet_received' && row.vm === 'reader'", 2)
    assert vm_state(page, "reader") == "running"
    assert vm_state(page, "faller") == "running"
    channels = page.run(
        "Object.fromEntries([...document.querySelectorAll('.channel')].map((c) => [c.ariaLabel, c.dataset.state]))"
    )
    assert {"open"} == {state for name, state in channels.items() if "storage" in name}
    assert any("heartbeat" in name for name in channels)


def test_filters(page: Page) -> None:
    """By VM and channel, from the lists above and from the picture; and by layer and text."""
    everything = page.run("visible.length")
    go(page, "row.event === 'packet_received' && row.vm === 'reader'", 2)
    page.click(".channel .behind")
    assert page.run("[byId('filter-vm').value, filter.vm]") == ["reader", "reader"]
    page.run("choose(byId('filter-channel'), ''); choose(byId('filter-vm'), '')")
    page.click('.vm[data-vm="reader"] .room text')
    assert page.run("byId('filter-vm').value") == "reader"
    assert page.run("visible.every((row) => row.about === 'reader' || row.vm === 'reader')")
    assert page.run("document.querySelectorAll('.vm').length") == 1
    page.click(".channel .ring ~ rect.end")
    assert page.run("byId('filter-channel').value") == str(page.run("filter.channel"))
    assert page.run("visible.length > 20 && visible.every((row) => row.via === filter.channel)")
    page.run("choose(byId('filter-channel'), ''); choose(byId('filter-vm'), '')")
    assert page.run("visible.length") == everything
    page.click("#layers summary")
    page.click("#layer-msr")
    assert 0 < page.run("visible.length") < everything
    assert not page.run("visible.some((row) => row.layer === 'msr')")
    page.run("byId('filter-text').focus()")
    for letter in "read(10)":
        page.press(letter)
    assert page.run("visible.length > 3 && visible.every((row) => row.words.toLowerCase().includes('read(10)'))")
    page.press("z")
    assert page.text("#caption") == "Nothing passes the filter."


def test_motion_only_where_it_is_wanted(browser: Browser, page_of: MakePage, disk_run: Run) -> None:
    """A dot travels, unless the person asked for less motion: then it is where it goes at once."""
    address = page_of(*disk_run)
    go_there = "player.go(visible.findIndex((row) => row.request && row.hop === 0))"
    where = "document.querySelector('.token').getAttribute('transform')"
    for media, moves in (({}, True), (STILL, False)):
        with browser.page(address, media=media) as page:
            page.wait(LOADED)
            first = page.run(f"{go_there}; {where}")
            page.run("new Promise((done) => setTimeout(done, 700))")
            assert (page.run(where) != first) is moves


def test_everything_has_a_name(page: Page) -> None:
    """Whatever takes the keyboard says what it is to those who do not see it."""
    go(page, "row.event === 'packet_received' && row.vm === 'reader'", 2)
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    focusable = [
        node
        for node in nodes
        if not node["ignored"]
        and any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", ()))
        and node["role"]["value"] != "RootWebArea"
    ]
    assert len(focusable) > 25
    nameless = [node["role"]["value"] for node in focusable if not node.get("name", {}).get("value", "").strip()]
    assert nameless == []
    named = {node["name"]["value"] for node in focusable}
    assert {"Play", "Step", "Step back", "Place in the recording", "Events"} <= named
    assert any(name.startswith("VM reader, running") for name in named)
    assert ", event " in page.run("byId('position').getAttribute('aria-valuetext')")


HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror=window.pwned=1>",
    "{{script}}{{recording}}",
    '"><svg onload=window.pwned=1>',
    "javascript:window.pwned=1",
    "a\u202eb\x00\x1b[31m\u2028\ud800",
    "__proto__",
)


def test_hostile_text_stays_text(browser: Browser, page_of: MakePage) -> None:
    """A guest called `<script>` is a guest with a strange name, wherever its text turns up."""
    events = [
        TraceEvent(0, Layer.STATE, "vm_state", 2, Level.INFO, words="off -> running", vm=name) for name in HOSTILE
    ]
    for number, words in enumerate(HOSTILE):
        events += [
            TraceEvent(1, Layer.CONTROL, words, 2, direction=words, channel=number, words=words, vm=words),
            TraceEvent(2, Layer.STATE, "guest_crash", 2, Level.ERROR, words=words, vm=words, fields={words: words}),
            TraceEvent(
                3,
                *(Layer.PACKET, "packet_received", 2),
                direction=">root",
                channel=number,
                words=words,
                vm=words,
                fields={"device": words, "flags": 1, "type": 6, "transaction_id": number},
                data=words.encode("utf-8", "surrogatepass") * 9,
            ),
        ]
    with browser.page(page_of(events, {2: HOSTILE[0]}, title=HOSTILE[0] + HOSTILE[2]), media=STILL) as page:
        page.wait(LOADED)
        for seq in range(len(events)):
            page.run(f"goToSeq({seq})")
        page.run("for (const name of recording.roster.keys()) { choose(byId('filter-vm'), name); player.go(1); }")
        assert page.run("window.pwned") is None
        assert page.run("document.querySelectorAll('script').length") == 1
        assert page.run("document.querySelectorAll('img, iframe, [onload], [onerror]').length") == 0
        assert page.run("({}).polluted") is None
        assert page.complaints() == []
        names = page.run("[...recording.roster.keys()]")
        assert HOSTILE[0] in names
        assert HOSTILE[0] in page.text("#title")
        assert HOSTILE[2] in page.text("#title")
        assert r"a\x202eb\x00\x1b[31m\x2028\xd800" in names


def test_many_events_stay_smooth(browser: Browser, page_of: MakePage, disk_run: Run, tmp_path: Path) -> None:
    """20,000 events are a file of a few megabytes, and no step takes as long as an eye could see."""
    events, names = disk_run
    many = (events * (20_000 // len(events) + 1))[:20_000]
    address = page_of(many, names)
    assert (tmp_path / "page.html").stat().st_size < 4 << 20
    with browser.page(address, media=STILL) as page:
        page.wait(LOADED)
        assert page.run("recording.rows.length") == 20_000
        took = page.run(
            "(() => { const took = []; for (let n = 0; n < 60; n += 1) { const at = performance.now();"
            " player.go((player.place + (n % 2 ? 1 : 7919)) % visible.length); took.push(performance.now() - at); }"
            " return took.sort((a, b) => a - b); })()"
        )
        assert took[len(took) // 2] < 250
        assert page.complaints() == []
