"""How switches reach the host: TAP devices, Unix sockets, and what people are told where that cannot be."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypervisor.trace import Trace, TraceEvent
from partitions.host import SwitchError, open_host
from partitions.root import tap
from partitions.root.switches import Switches, open_uplinks
from partitions.root.uplinks import LONGEST_FRAME, MAX_UNSENT, StreamLink
from partitions.topology import parse_topology
from partitions.topology_schema import NicTable, SwitchTable
from tests.doubles.looking import seen
from tests.doubles.real_network import device_exists, needs, tool
from tests.doubles.switch import BROADCAST, Plug, ethernet, stranger
from vsp_vsc.network.switch.kinds import SwitchKind
from vsp_vsc.network.switch.ports import Port


def switch(kind: SwitchKind = SwitchKind.EXTERNAL, **keys: Any) -> SwitchTable:
    """Of the name `lan`."""
    return SwitchTable(name="lan", kind=kind, **keys)


class Bench:
    """Opened switches with a plug at a VM's port."""

    def __init__(self, switches: Switches, told: list[TraceEvent], **nic: Any) -> None:
        self.switches = switches
        self.told = told
        self.port = switches.connect("web", 0, NicTable(switch="lan", **nic))
        self.plug = Plug(self.port)

    @property
    def uplink_drops(self) -> dict[str, int]:
        """What was not taken, at the host's port."""
        port = next(port for name, port in self.switches.ports.items() if name.startswith("lan:"))
        return {str(reason): count for reason, count in port.drops.items()}


@asynccontextmanager
async def opened(folder: Path, *tables: SwitchTable, **nic: Any) -> AsyncIterator[Bench]:
    """Switches joined to the host."""
    trace, told = Trace(lambda: 0), list[TraceEvent]()
    trace.add_sink(told.append)
    switches = Switches("host", lambda: 0, trace)
    async with open_uplinks(switches, tables, folder):
        yield Bench(switches, told, **nic)


def packed(*frames: bytes) -> bytes:
    """As QEMU sends them."""
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


async def until(condition: Callable[[], bool]) -> None:
    """Until others have done that, within five seconds."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  # of things that set no event
            await trio.sleep(0.005)


# --- sockets


async def test_a_peer_has_frames_behind_their_length(tmp_path: Path) -> None:
    """In whichever pieces they come; VLANs have their tags; the link is up while somebody is there."""
    async with opened(tmp_path, switch(listen="lan.sock"), vlan=42) as bench:
        port = bench.switches.ports["lan:uplink"]
        assert not port.link_up
        peer = await trio.open_unix_socket(tmp_path / "lan.sock")
        await until(lambda: port.link_up)
        tagged = ethernet(bench.port.mac, stranger(1), b"in", vlan=42)
        sent = packed(ethernet(bench.port.mac, stranger(1), b"no tag"), tagged, tagged)
        for byte in sent:
            await peer.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        await until(lambda: len(bench.plug.got) == 2)
        assert bench.plug.got == [ethernet(bench.port.mac, stranger(1), b"in")] * 2
        bench.port.transmit([ethernet(stranger(1), bench.port.mac, b"out")])
        wanted = packed(ethernet(stranger(1), bench.port.mac, b"out", vlan=42))
        assert await peer.receive_some(1000) == wanted
        await peer.aclose()
        await until(lambda: not port.link_up)
        async with await trio.open_unix_socket(tmp_path / "lan.sock"):
            await until(lambda: port.link_up)
    assert not (tmp_path / "lan.sock").exists()


async def test_a_peer_that_speaks_otherwise_is_sent_away(tmp_path: Path) -> None:
    """And said; the next is served."""
    async with opened(tmp_path, switch(listen="lan.sock")) as bench:
        for length in (LONGEST_FRAME + 1, 0xFFFF_FFFF):
            async with await trio.open_unix_socket(tmp_path / "lan.sock") as peer:
                await peer.send_all(length.to_bytes(4, "big"))
                assert await peer.receive_some(10) == b""
        assert [event.event for event in bench.told] == ["uplink_garbled"] * 2
        assert "does not speak as QEMU" in bench.told[0].words
        async with await trio.open_unix_socket(tmp_path / "lan.sock") as peer:
            await peer.send_all(packed(b"", bytes(13), ethernet(BROADCAST, stranger(1), bytes(60000))))
            await peer.send_all(packed(ethernet(BROADCAST, stranger(1))))
            await until(lambda: bool(bench.plug.got))
        assert bench.uplink_drops == {"too_short": 2, "too_long": 1}


async def test_a_peer_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """A bounded number of bytes waits for it, the rest is counted at the port; what it then reads is whole frames."""
    async with opened(tmp_path, switch(listen="lan.sock")) as bench:
        peer = await trio.open_unix_socket(tmp_path / "lan.sock")
        await until(lambda: bench.switches.ports["lan:uplink"].link_up)
        frame = ethernet(BROADCAST, bench.port.mac, bytes(1400))
        for _ in range(40):
            bench.port.transmit([frame] * 64)
        lost = bench.uplink_drops["adapter_full"]
        assert await_bytes(bench) <= MAX_UNSENT + 64 * (len(frame) + 4)
        left, got = (40 * 64 - lost) * (len(frame) + 4), bytearray()
        with trio.fail_after(10):
            while len(got) < left:
                got += await peer.receive_some(1 << 20)
        await peer.aclose()
        assert bytes(got) == packed(frame) * (40 * 64 - lost)


def await_bytes(bench: Bench) -> int:
    """What waits for the peer."""
    shown = bench.switches.inspect().child("lan").child("uplink")  # type: ignore[union-attr]
    return int(shown().child("unsent_bytes"))  # type: ignore[operator]


async def test_a_peer_for_whom_there_is_no_descriptor_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    """A process that has no descriptor left looks for one once a second, and does not turn in circles."""
    path = tmp_path / "lan.sock"
    async with trio.open_nursery() as nursery:
        link = StreamLink(Port("lan:uplink", bytes(6)), path, Trace(lambda: 0))
        link.listen()
        listener, tries = link._listener, list[float]()
        assert listener is not None

        class Poor:
            def fileno(self) -> int:
                return listener.fileno()

            def accept(self) -> tuple[socket.socket, object]:
                tries.append(trio.current_time())
                if len(tries) < 4:
                    raise OSError(errno.EMFILE, "no more")
                return listener.accept()

            def close(self) -> None:
                listener.close()

        monkeypatch.setattr(link, "_listener", Poor())
        nursery.start_soon(link.run)
        async with await trio.open_unix_socket(str(path)):
            await trio.sleep(3.5)
            assert link.inspect().children["peer"]
        assert [round(later - before, 1) for before, later in pairwise(tries)] == [1.0, 1.0, 1.0]
        nursery.cancel_scope.cancel()
    link.close()


async def test_a_socket_that_was_left_over_is_taken_and_one_in_use_is_not(tmp_path: Path) -> None:
    """A host that was killed leaves its socket; one that runs has it."""
    with closing(socket.socket(socket.AF_UNIX)) as left_over:
        left_over.bind(str(tmp_path / "lan.sock"))
    async with opened(tmp_path, switch(listen="lan.sock")):
        with pytest.raises(SwitchError, match="another host's; choose another path"):
            async with opened(tmp_path, switch(listen="lan.sock")):
                pass
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SwitchError, match="cannot be made"):
        async with opened(tmp_path, switch(listen="file")):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(SwitchError, match="longer than the 107 bytes"):
        async with opened(tmp_path, switch(listen="x" * 200)):
            pass


async def test_connect_finds_a_peer_and_finds_it_again(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Nobody there at the start is an error; one that goes is tried again each second."""
    with pytest.raises(SwitchError, match="nobody listens there"):
        async with opened(tmp_path, switch(connect="peer.sock")):
            pass
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "peer.sock"))
        listener.listen()
        async with opened(tmp_path, switch(connect="peer.sock")) as bench:
            for _ in range(2):
                bench.plug.links.clear()
                first, _ = listener.accept()
                await wait_all_tasks_blocked()
                assert bench.switches.ports["lan:uplink"].link_up
                first.close()
                autojump_clock.autojump_threshold = float("inf")  # type: ignore[attr-defined]
                await until_down(bench)
                autojump_clock.autojump_threshold = 0  # type: ignore[attr-defined]
                await trio.sleep(1.5)
    assert (tmp_path / "peer.sock").exists()


async def until_down(bench: Bench) -> None:
    """Without time that passes."""
    for _ in range(10000):
        if not bench.switches.ports["lan:uplink"].link_up:
            return
        await trio.lowlevel.checkpoint()
    raise AssertionError("the link is still up")


# --- TAP devices


@needs()
async def test_a_device_is_made_configured_and_gone_at_the_end(tmp_path: Path) -> None:
    """Also where another switch cannot be had: nothing of the first is left."""
    table = switch(SwitchKind.INTERNAL, tap=f"pt{os.getpid() % 100000}", address="10.214.9.1/24", mtu=1400)
    async with opened(tmp_path, table) as bench:
        shown = (await trio.run_process([tool("ip"), "addr", "show", table.tap], capture_stdout=True)).stdout.decode()
        assert "inet 10.214.9.1/24" in shown
        assert "mtu 1400" in shown
        assert bench.switches.ports["lan:host"].mac.hex(":") in shown
        with pytest.raises(SwitchError, match=f'"{table.tap}" is in use'):
            async with opened(tmp_path, table):
                pass
    assert not device_exists(table.tap)
    broken = SwitchTable(name="wan", kind=SwitchKind.EXTERNAL, bridge="nobridge")
    with pytest.raises(SwitchError, match='there is no bridge "nobridge"; make it: sudo ip link add nobridge type'):
        async with opened(tmp_path, table, broken):
            pass
    assert not device_exists(table.tap)


@needs()
async def test_a_device_that_was_there_stays(tmp_path: Path) -> None:
    """Its address is its own, and the host's port has it."""
    name = f"pk{os.getpid() % 100000}"
    subprocess.run([tool("ip"), "tuntap", "add", "dev", name, "mode", "tap"], check=True)  # noqa: ASYNC221
    try:
        async with opened(tmp_path, switch(SwitchKind.INTERNAL, tap=name)) as bench:
            assert await is_up(name)
            shown = (await trio.run_process([tool("ip"), "link", "show", name], capture_stdout=True)).stdout.decode()
            assert bench.switches.ports["lan:host"].mac.hex(":") in shown
        assert device_exists(name)
    finally:
        subprocess.run([tool("ip"), "link", "del", name], check=True)  # noqa: ASYNC221


async def is_up(name: str) -> bool:
    """Whether a device has its UP flag."""
    return b",UP" in (await trio.run_process([tool("ip"), "link", "show", name], capture_stdout=True)).stdout


@needs()
async def test_a_device_that_is_taken_away_is_said(tmp_path: Path) -> None:
    """The switch goes on without it."""
    table = switch(tap=f"pg{os.getpid() % 100000}")
    async with opened(tmp_path, table) as bench:
        await trio.run_process([tool("ip"), "link", "del", table.tap])
        await until(lambda: bool(bench.told))
        assert bench.told[0].event == "uplink_lost"
        assert not bench.switches.ports["lan:uplink"].link_up
        assert seen(bench.switches.inspect(), "lan/uplink/lost") is True
        bench.port.transmit([ethernet(BROADCAST, bench.port.mac)])


@pytest.mark.parametrize(
    ("where", "number", "name", "words"),
    [
        ("open", errno.ENOENT, "", r"there is no /dev/net/tun: load it with `modprobe tun`, or give .* listen = "),
        ("open", errno.EACCES, "", r"/dev/net/tun cannot be opened: Permission denied; run as root, or give"),
        ("open", errno.EMFILE, "", r"/dev/net/tun cannot be opened: Too many open files, or give"),
        (
            tap._TUNSETIFF,
            errno.EPERM,
            "",
            r"is for root; let root make it once: sudo ip tuntap add dev NAME .* and tap = ",
        ),
        (tap._TUNSETIFF, errno.EPERM, "x9", r"let root make it once: sudo ip tuntap add dev x9 mode tap user"),
        (
            tap._TUNSETIFF,
            errno.EPERM,
            "lo",
            r'the TAP device "lo" is not yours; make it so: sudo ip link del lo && sudo',
        ),
        (tap._TUNSETIFF, errno.EINVAL, "lo", r'"lo" is a network device, and no TAP device; choose another tap'),
        (tap._TUNSETIFF, errno.EBUSY, "lo", r'"lo" is in use, perhaps by another host'),
        (tap._SET_FLAGS, errno.EPERM, "", r'"lan0" is open, but to take it up is for root; let root do it once, or'),
        (tap._SET_MTU, errno.EINVAL, "", r'"lan0": cannot set its MTU to 1500: Invalid argument'),
    ],
)
def test_what_cannot_be_had_is_said_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, where: object, number: int, name: str, words: str
) -> None:
    """And no descriptor is left open."""
    null = os.open("/dev/null", os.O_RDWR)

    def open_clone(path: str, flags: int) -> int:
        if where == "open":
            raise OSError(number, os.strerror(number))
        return os.dup(null)

    def ioctl(descriptor: object, request: int, value: bytes) -> bytes:
        if request == where:
            raise OSError(number, os.strerror(number))
        return b"lan0".ljust(16, b"\0") + bytes(24)

    monkeypatch.setattr(tap.os, "open", open_clone)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SwitchError, match=words):
        tap.open_tap("lan", name=name, mac=bytes(6), mtu=1500)
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    os.close(null)


async def test_the_virtual_clock_has_private_switches_only(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """What is outside does not wait for time that jumps: refused by name."""
    (tmp_path / "guest.py").write_text("async def main(guest): ...\n")
    text = '[[vm]]\nname = "web"\nprogram = "guest.py"\n[[switch]]\nname = "lan"\nkind = "internal"\n'
    with pytest.raises(ValueError, match='switch "lan": of kind "internal" it cannot be on the virtual clock'):
        async with open_host(parse_topology(text, tmp_path)):
            pass
