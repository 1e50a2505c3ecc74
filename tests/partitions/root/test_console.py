from __future__ import annotations

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from partitions.root.console import KEPT_BYTES, MAX_LINE, Console, ConsoleLine
from partitions.root.feed import Feed


def console() -> Console:
    now = iter(range(10, 10_000_000))
    return Console(lambda: next(now))


def test_lines_and_text() -> None:
    """Lines come without their ends, CR LF counts as one, and what is begun is the last line."""
    port = console()
    port.write(b"one\r\ntwo\nthr")
    assert port.lines() == ["one", "two", "thr"]
    assert port.text == "one\ntwo\nthr"
    assert [line.text for line in port.timed_lines()] == ["one", "two"]
    assert [line.time for line in port.timed_lines()] == [10, 11]
    port.flush_line()
    assert [line.text for line in port.timed_lines()] == ["one", "two", "thr"]


def test_what_a_guest_prints_never_raises() -> None:
    """Bytes that are no UTF-8 are shown as such."""
    port = console()
    port.write(b"\xff\xfe ok \x80\n")
    assert port.text == "\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} ok \N{REPLACEMENT CHARACTER}\n"
    assert port.data == b"\xff\xfe ok \x80\n"


def test_a_line_without_end_still_reaches_its_readers() -> None:
    """A guest that never ends a line is cut into pieces of 4 KiB."""
    port = console()
    port.write(b"x" * (2 * MAX_LINE + 1))
    assert [len(line) for line in port.lines()] == [MAX_LINE, MAX_LINE, 1]


def test_memory_is_bounded_against_empty_lines() -> None:
    """A line is charged more than its bytes, so a guest of newlines cannot make the host keep a million objects."""
    port = console()
    port.write(b"\n" * 200_000)
    assert len(port.lines()) <= KEPT_BYTES // 64
    assert len(port.data) == KEPT_BYTES
    assert port.total_bytes == 200_000


WHEEL = bytes(index % 251 for index in range(51_000))


@given(st.lists(st.integers(1, 50_000), max_size=8))
def test_the_last_64_kib_are_kept(chunks: list[int]) -> None:
    """Exactly the end of what was printed, however it came."""
    port = Console(lambda: 0)
    printed = b""
    for number, size in enumerate(chunks):
        data = WHEEL[number : number + size]
        printed += data
        for start in range(0, size, 5000):  # bytes one by one would take minutes here
            port.write(data[start : start + 5000])
    assert port.data == printed[-KEPT_BYTES:]


async def test_following(autojump_clock: trio.abc.Clock) -> None:
    """A follower gets lines from its start on, and ends when the console closes."""
    port = console()
    port.write(b"before\n")
    lines = port.follow()
    port.write(b"a\nb\nc")
    port.close()
    assert [line.text async for line in lines] == ["a", "b", "c"]
    assert [line async for line in port.follow()] == []


async def test_a_slow_follower_loses_the_oldest() -> None:
    """The guest is never made to wait, and the loss is counted."""
    port = console()
    lines = port.follow(capacity=2)
    port.write(b"1\n2\n3\n4\n")
    port.close()
    assert [line.text async for line in lines] == ["3", "4"]
    assert lines.dropped == 2


async def test_a_waiting_follower_wakes() -> None:
    """Waiting costs nothing and a line ends it at once."""
    port = console()
    seen: list[ConsoleLine] = []

    async def follow() -> None:
        with port.follow() as lines:
            async for line in lines:
                seen.append(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        port.write(b"x\n")
        await trio.testing.wait_all_tasks_blocked()
        assert [line.text for line in seen] == ["x"]
        port.close()


async def test_unsubscribed_is_forgotten() -> None:
    """A closed subscription costs the feed nothing, and closing twice is fine."""
    feed: Feed[int] = Feed()
    with feed.subscribe() as numbers:
        feed.put(1)
    feed.put(2)
    numbers.close()
    assert [number async for number in numbers] == [1]


def test_what_is_typed_goes_to_the_receiver_of_the_running_vm_only() -> None:
    """A console outlives its VM: while that is off, nothing typed is taken, and the sender is told so."""
    console, typed = Console(lambda: 0), []

    def receive(data: bytes) -> int:
        typed.append(data)
        return 2

    assert console.send(b"lost") == 0
    console.connect(receive)
    assert console.send(b"ls\n") == 2
    console.connect(None)
    assert console.send(b"lost") == 0
    assert typed == [b"ls\n"]


async def test_bytes_as_they_come() -> None:
    """A listener gets every byte in order, unended lines too, and an empty answer after the last one."""
    port = console()
    port.write(b"before")
    with port.listen() as reader:
        port.write(b"logi")
        assert await reader.receive() == b"logi"
        async with trio.open_nursery() as nursery:
            got: list[bytes] = []

            async def read() -> None:
                got.append(await reader.receive())

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            port.write(b"n: ")
        assert got == [b"n: "]
        port.write(b"\r\n")
        port.close()
        assert await reader.receive() == b"\r\n"
        assert await reader.receive() == b""
    assert reader.dropped == 0


async def test_a_slow_listener_loses_the_oldest_bytes_and_knows_how_many() -> None:
    """What is kept bounds what a listener can be behind; the rest is counted."""
    port = console()
    with port.listen() as reader:
        port.write(b"x" * 300_000 + b"end")
        data = await reader.receive()
    assert data.endswith(b"xend")
    assert KEPT_BYTES <= len(data) < 300_000
    assert len(data) + reader.dropped == 300_003
