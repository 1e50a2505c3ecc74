"""Integration components against guests that lie: cases 93 to 97 of the list, and the same for snapshots and files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.wire import WireError
from tests.doubles.integration import NOW, Served, serving
from vsp_vsc.integration.component import Contact, IntegrationVsp, NoAnswer
from vsp_vsc.integration.file_copy.vsp import CopyState, FileCopyVsp
from vsp_vsc.integration.heartbeat.vsp import HeartbeatState, HeartbeatVsp
from vsp_vsc.integration.kvp.ip_info import decode_ip
from vsp_vsc.integration.kvp.protocol import KvpItem, Operation, Pool, encode_request
from vsp_vsc.integration.kvp.vsp import KvpVsp
from vsp_vsc.integration.protocol import (
    RESPONSE,
    VERSIONS,
    Component,
    Message,
    Version,
    encode_message,
    encode_negotiate,
)
from vsp_vsc.integration.shutdown.vsp import ShutdownVsp
from vsp_vsc.integration.time_sync.protocol import TimeMessage
from vsp_vsc.integration.time_sync.vsp import TimeSyncVsp
from vsp_vsc.integration.vss.vsp import FreezeState, VssVsp

MAKERS: dict[Component, Callable[..., IntegrationVsp]] = {
    Component.HEARTBEAT: HeartbeatVsp,
    Component.SHUTDOWN: ShutdownVsp,
    Component.TIME_SYNC: partial(TimeSyncVsp, lambda: NOW),
    Component.KVP: KvpVsp,
    Component.VSS: VssVsp,
    Component.FILE_COPY: FileCopyVsp,
}
every_component = pytest.mark.parametrize("component", MAKERS, ids=lambda component: component.words)


async def agree(served: Served, component: Component) -> None:
    message = await served.hear()
    body = encode_negotiate((Version(3, 0),), (VERSIONS[component][-1],))
    await served.say(encode_message(Component.NEGOTIATE, body, transaction_id=message.header.transaction_id, flags=5))
    await trio.testing.wait_all_tasks_blocked()
    assert served.vsp.contact is Contact.READY


async def answer(served: Served, message: Message, body: bytes, status: int = 0) -> None:
    header = message.header
    await served.say(
        encode_message(header.component, body, transaction_id=header.transaction_id, flags=RESPONSE, status=status)
    )
    await trio.testing.wait_all_tasks_blocked()


@every_component
@pytest.mark.parametrize(
    ("body", "contact"),
    [
        (struct.pack("<HHI", 0, 0, 0), Contact.REFUSED),
        (struct.pack("<HHI", 65535, 65535, 0), Contact.REFUSED),
        (struct.pack("<HHI", 1, 1, 0), Contact.STOPPED),
        (struct.pack("<HHIHHHH", 1, 1, 0, 3, 0, 99, 9), Contact.STOPPED),
        (b"\1\0", Contact.STOPPED),
    ],
    ids=["none", "65535 of each", "counts without versions", "not on offer", "cut short"],
)
async def test_93_answers_to_the_offer(
    autojump_clock: trio.testing.MockClock, component: Component, body: bytes, contact: Contact
) -> None:
    """No version in common is a state; what cannot be an answer ends this component until its channel is closed."""
    async with serving(MAKERS[component]) as served:
        await answer(served, await served.hear(), body)
        assert served.vsp.contact is contact
        assert not served.vsp.ready


@every_component
async def test_93_versions_are_agreed_on_once(autojump_clock: trio.testing.MockClock, component: Component) -> None:
    """A second choice is dropped and counted; the first holds."""
    async with serving(MAKERS[component]) as served:
        await agree(served, component)
        version = served.vsp.version
        other = encode_negotiate((Version(1, 0),), (VERSIONS[component][0],))
        await served.say(encode_message(Component.NEGOTIATE, other, flags=RESPONSE))
        await trio.testing.wait_all_tasks_blocked()
        assert (served.vsp.version, served.vsp.contact, served.vsp.stale) == (version, Contact.READY, 1)


def _item(key: bytes, key_size: int, value: bytes, value_size: int, kind: int = 1) -> bytes:
    return encode_request(
        Operation.ENUMERATE, Pool.AUTO, bytes(4) + KvpItem(kind, key_size, value_size, key, value).encode()
    )


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (_item(b"k\0" * 256, 512, b"v\0" * 1024, 2048), {"k" * 256: "v" * 1024}),
        (_item(b"k\0\0\0x\0", 6, b"v\0\0\0w\0", 6), {"k": "v"}),
        (_item(b"\x00\xd8", 2, b"\x00\xd8", 2), {"\ufffd": "\ufffd"}),
        (_item(b"k\0", 514, b"", 0), None),
        (_item(b"k\0", 2, b"v\0", 2050), None),
        (_item(b"k\0", 3, b"v\0", 2), None),
        (_item(b"k\0", 2, b"v\0", 2, kind=99), None),
        (_item(b"k\0", 2, b"v", 3, kind=4), None),
        (bytes(40), None),
    ],
    ids=[
        *("without a NUL", "a NUL inside", "no UTF-16", "a key too long", "a value too long", "half a unit"),
        *("a type that is none", "half a number", "cut short"),
    ],
)
async def test_94_items_that_a_guest_may_have(
    autojump_clock: trio.testing.MockClock, body: bytes, found: dict[str, str] | None
) -> None:
    """Odd texts are text; sizes past their fields end the component."""
    async with serving(KvpVsp) as served, trio.open_nursery() as nursery:
        await agree(served, Component.KVP)
        got: list[object] = []

        async def ask() -> None:
            try:
                got.append(dict(await served.vsp.items()))
            except NoAnswer:
                got.append(None)

        nursery.start_soon(ask)
        await answer(served, await served.hear(), body)
        if found is not None:
            await answer(served, await served.hear(), b"", 0x80070103)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [found]
        assert (served.vsp.contact is Contact.STOPPED) == (found is None)


@given(st.binary(max_size=7500), st.sampled_from(VERSIONS[Component.KVP]))
def test_94_addresses_of_any_bytes(data: bytes, version: Version) -> None:
    """Either addresses or a `WireError`."""
    try:
        decode_ip(data, version)
    except WireError:
        pass


@pytest.mark.parametrize("number", [0, 2, 3, 1 << 63, (1 << 64) - 1])
async def test_95_a_number_that_jumps(autojump_clock: trio.testing.MockClock, number: int) -> None:
    """Does not count as a beat, and harms nothing: the next one that is right does."""
    async with serving(HeartbeatVsp) as served:
        await agree(served, Component.HEARTBEAT)
        await answer(served, await served.hear(), struct.pack("<QI28x", number, 0))
        assert served.vsp.heartbeat.state is HeartbeatState.LOST
        await answer(served, await served.hear(), struct.pack("<QI28x", 1, 77))
        assert served.vsp.heartbeat.state is HeartbeatState.OK
        assert served.vsp.heartbeat.application.name == "UNKNOWN"


async def test_96_a_shutdown_that_is_never_answered(autojump_clock: trio.testing.MockClock) -> None:
    """Ends after five seconds with words for people, and the next request is not taken for its continuation."""
    async with serving(ShutdownVsp) as served:
        await agree(served, Component.SHUTDOWN)
        for _ in range(2):
            with pytest.raises(NoAnswer, match="no answer within 5 s"):
                await served.vsp.request()
        first, second = await served.hear(), await served.hear()
        assert first.header.transaction_id != second.header.transaction_id
        await answer(served, first, b"")
        assert (served.vsp.stale, served.vsp.contact) == (1, Contact.MUTE)
        assert served.vsp.outcome == "shutdown: no answer within 5 s"


@pytest.mark.parametrize("told", [0, 1, (1 << 64) - 1])
async def test_97_a_guest_s_clock_of_any_year(autojump_clock: trio.testing.MockClock, told: int) -> None:
    """Is a number that the host shows."""
    async with serving(partial(TimeSyncVsp, lambda: NOW)) as served:
        message = await served.hear()
        body = encode_negotiate((Version(3, 0),), (Version(3, 0),))
        await answer(served, message, body)
        await answer(served, await served.hear(), TimeMessage(0, told).encode())
        await answer(served, await served.hear(), b"short")
        assert (served.vsp.contact, served.vsp.time.told) == (Contact.READY, None)
        assert served.vsp.inspect()


class Asked:
    """One question of each component that people ask."""

    @staticmethod
    async def vss(vsp: Any) -> None:
        number = await vsp.freeze(10)
        await vsp.thaw(number)

    @staticmethod
    async def file_copy(vsp: Any) -> None:
        async def read(offset: int, count: int) -> bytes:
            await trio.lowlevel.checkpoint()
            return bytes(count)

        await vsp.copy(read, 20_000, "/", "name")


@pytest.mark.parametrize(
    ("component", "ask"), [(Component.VSS, Asked.vss), (Component.FILE_COPY, Asked.file_copy)], ids=["vss", "file copy"]
)
@settings(max_examples=40, deadline=None)
@given(
    answers=st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0, 0x80004005, 0x80070070, 0xFFFFFFFF]), st.binary(max_size=40), st.booleans()
        ),
        max_size=12,
    )
)
def test_any_answers(component: Component, ask: Callable[[Any], Any], answers: list[tuple[int, bytes, bool]]) -> None:
    """Any status, any body, silence: whoever asks hears how it ended, and the component comes to rest."""
    trio.run(_any_answers, component, ask, answers, clock=trio.testing.MockClock(autojump_threshold=0))


async def _any_answers(component: Component, ask: Callable[[Any], Any], answers: list[tuple[int, bytes, bool]]) -> None:
    async with serving(MAKERS[component]) as served:
        await agree(served, component)
        over = trio.Event()

        async def question() -> None:
            try:
                await ask(served.vsp)
            except NoAnswer:
                pass
            over.set()

        async def guest() -> None:
            for status, body, speaks in answers:
                message = await served.hear()
                if speaks:
                    await answer(served, message, body, status)
            while True:
                await answer(served, await served.hear(), b"")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(question)
            nursery.start_soon(guest)
            await over.wait()
            await trio.sleep(200)
            nursery.cancel_scope.cancel()
        assert served.vsp.contact in (Contact.READY, Contact.MUTE)
        assert served.vsp.state in (FreezeState.THAWED, CopyState.IDLE)
