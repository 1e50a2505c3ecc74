"""Pings and sockets for programs, on a cable and on the guest's clock."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from partitions.child.net import frames
from partitions.child.net.ip import KEPT_DATAGRAMS, HostUnreachable, NoRoute, PingTimeout, PortTaken
from tests.doubles.ethernet import cable


async def test_hosts_ping_each_other(autojump_clock: MockClock) -> None:
    """With ARP before the first; no time passes on a cable."""
    async with cable(2, 3) as ((two, _), (three, end)):
        assert await two.ping("10.0.0.3") == 0
        assert await three.ping("10.0.0.2", size=4000) == 0
        assert two.neighbours == {"10.0.0.3": "00-15-5d-00-00-03"}
        assert three.address == "10.0.0.3/24"
        end.link(False)
        with pytest.raises(PingTimeout, match=r"10\.0\.0\.3 has not answered within 1 s"):
            await two.ping("10.0.0.3")


async def test_a_ping_says_how_long_it_took(autojump_clock: MockClock) -> None:
    """On the guest's clock: here the one who answers is asked by ARP a second late."""
    async with cable(2, 3) as ((two, _), (_, end)):
        await wait_all_tasks_blocked()
        end.link_up = False

        async def later() -> None:
            await trio.sleep(0.75)
            end.link_up = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            assert await two.ping("10.0.0.3", timeout=5) == pytest.approx(1.0)


async def test_pings_that_cannot_arrive(autojump_clock: MockClock) -> None:
    """No answer to ARP is known after three seconds; no way is known at once."""
    async with cable(2, 3) as ((two, _), _):
        began = trio.current_time()
        with pytest.raises(HostUnreachable, match=r"10\.0\.0\.9: no answer to ARP"):
            await two.ping("10.0.0.9", timeout=10)
        assert trio.current_time() - began == pytest.approx(3)
        with pytest.raises(NoRoute, match=r"no way to 10\.1\.0\.9"):
            await two.ping("10.1.0.9")
        with pytest.raises(ValueError, match="'three' is no IPv4 address"):
            await two.ping("three")


async def test_an_answer_of_somebody_else(autojump_clock: MockClock) -> None:
    """Is no answer."""
    async with cable(2, 3, 4) as ((two, end), (_, third), _):
        await two.ping("10.0.0.3")
        await two.ping("10.0.0.4")
        third.link(False)

        async def forge() -> None:
            await trio.sleep(0.5)
            ours = frames.parse_icmp(frames.parse_ipv4(end.log[-1][14:]).payload)
            answer = frames.encode_icmp(0, 0, ours.rest, ours.data)
            packet = frames.encode_ipv4(bytes([10, 0, 0, 4]), bytes([10, 0, 0, 2]), 1, answer, ident=1)
            end.queues[0].put([frames.ethernet_header(end.mac, bytes(6), 0x0800) + packet])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(forge)
            with pytest.raises(PingTimeout):
                await two.ping("10.0.0.3")
        assert two.stack.counters.echo_replies == 3


async def test_many_pings_at_once(autojump_clock: MockClock) -> None:
    """Each gets its own answer."""
    async with cable(2, 3, 4) as hosts, trio.open_nursery() as nursery:
        for _ in range(8):
            for number, (ip, _) in zip((2, 3, 4), hosts, strict=True):
                for other in {2, 3, 4} - {number}:
                    nursery.start_soon(ip.ping, f"10.0.0.{other}")


async def test_a_service(autojump_clock: MockClock) -> None:
    """Datagrams there and back; a socket without a number has a free port of its own."""
    async with cable(2, 3) as ((two, _), (three, _)):

        async def echo() -> None:
            with two.udp(7) as socket:
                while True:
                    data, peer = await socket.receive_from()
                    await socket.send_to(data[::-1], peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            await wait_all_tasks_blocked()
            with three.udp() as one, three.udp() as another:
                assert one.port != another.port >= 49152
                for socket in (one, another):
                    await socket.send_to(b"abc", ("10.0.0.2", 7))
                    assert await socket.receive_from() == (b"cba", ("10.0.0.2", 7))
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.ClosedResourceError):
            await one.send_to(b"", ("10.0.0.2", 7))


async def test_a_port_that_nobody_has(autojump_clock: MockClock) -> None:
    """Who sent there hears of it when it reads, once, as from sockets elsewhere."""
    async with cable(2, 3) as ((two, _), _):
        with two.udp() as socket:
            await socket.send_to(b"", ("10.0.0.3", 9))
            with pytest.raises(HostUnreachable, match=r"10\.0\.0\.3 port 9: 10\.0\.0\.3 says: port unreachable"):
                await socket.receive_from()
            with pytest.raises(TimeoutError, match=f"no datagram came to port {socket.port} within 1.5 s"):
                await socket.receive_from(timeout=1.5)


async def test_a_socket_without_datagrams_is_one(autojump_clock: MockClock) -> None:
    """`if socket:` asks whether there is a socket, and not whether something waits in it."""
    async with cable(2) as ((two, _),):
        with two.udp(7) as socket:
            assert socket
            assert len(socket) == 0


async def test_ports_are_taken_once(autojump_clock: MockClock) -> None:
    """And free again when their socket is closed; numbers that are none are refused."""
    async with cable(2) as ((two, _),):
        socket = two.udp(7)
        with pytest.raises(PortTaken, match="UDP port 7 is in use"):
            two.udp(7)
        socket.close()
        socket.close()
        with two.udp(7) as again, pytest.raises(ValueError, match="0 is no UDP port"):
            await again.send_to(b"", ("10.0.0.3", 0))
        with pytest.raises(ValueError, match="65536 is no port"):
            two.udp(65536)


async def test_a_socket_that_nobody_reads(autojump_clock: MockClock) -> None:
    """Keeps so many datagrams and counts the rest."""
    async with cable(2, 3) as ((two, _), (three, _)):
        with two.udp(7) as lazy, three.udp() as busy:
            for _ in range(KEPT_DATAGRAMS + 3):
                await busy.send_to(b"x", ("10.0.0.2", 7))
            await wait_all_tasks_blocked()
            assert (len(lazy), lazy.dropped) == (KEPT_DATAGRAMS, 3)


async def test_somebody_else_has_our_address(autojump_clock: MockClock) -> None:
    """Is noted, with who it is."""
    async with cable(2) as ((two, end),):
        await wait_all_tasks_blocked()
        other = bytes.fromhex("020000000001")
        end.queues[0].put([frame.replace(end.mac, other) for frame in end.log])
        await wait_all_tasks_blocked()
        assert list(two.conflicts) == ["02-00-00-00-00-01"]


async def test_a_new_link_is_a_new_place(autojump_clock: MockClock) -> None:
    """The address is announced again, and neighbours are forgotten."""
    async with cable(2, 3) as ((two, end), _):
        await two.ping("10.0.0.3")
        end.link(False)
        await wait_all_tasks_blocked()
        assert two.neighbours
        await trio.sleep(5)
        before = len(end.log)
        end.link(True)
        await wait_all_tasks_blocked()
        assert two.neighbours == {}
        assert len(end.log) == before + 1


@pytest.mark.parametrize("pulled", [True, False])
async def test_the_end(pulled: bool, autojump_clock: MockClock) -> None:
    """The device goes, or the program gives the address up: whoever waits hears of it, and the guest lives."""
    async with cable(2, 3) as ((two, end), (_, other)):
        other.link(False)
        ended = []

        async def waits(wait: object, *arguments: object) -> None:
            with pytest.raises(HostUnreachable) as caught:
                await wait(*arguments)  # type: ignore[operator]
            ended.append(str(caught.value).split(": ")[-1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, two.ping, "10.0.0.3")
            nursery.start_soon(waits, two.udp(7).receive_from)
            await wait_all_tasks_blocked()
            if pulled:
                end.pull()
            else:
                two.close()
        assert ended == ["the network device is gone" if pulled else "the address was given up"] * 2
        with pytest.raises(HostUnreachable):
            two.udp()
