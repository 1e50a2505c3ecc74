"""What a boundary session's speaker does as somebody in the host: verbs, frames, sockets (docs/boundary.md)."""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from hypervisor.wire import Guid
from partitions.boundary.driver import alone as alone_of
from partitions.topology import parse_topology
from partitions.topology_schema import NicTable, ScreenTable, SwitchTable, Topology, VmTable
from tests.doubles.boundary_guest import BoundaryGuest, boundary_guest, run
from tests.doubles.root import topology, vm_table
from tests.doubles.switch import BROADCAST, ethernet, mac
from tests.partitions.test_device_sequences import ENDPOINT, SERVICE, Pipe, Sockets, at_rest
from tests.partitions.test_network_sequences import Adapter, frame_message


def told(guest: BoundaryGuest, event: str) -> list[dict[str, Any]]:
    """The events of a kind since the last look, without their kind."""
    found = [line for line in guest.events if line["event"] == event]
    guest.events.clear()
    return [{name: value for name, value in line.items() if name != "event"} for line in found]


def session(whole: Topology, sequence: Callable[[BoundaryGuest], Awaitable[None]]) -> None:
    async def main() -> None:
        async with boundary_guest(whole) as guest:
            await guest.boot()
            await sequence(guest)

    run(main)


def alone(folder: Path, **settings: Any) -> Topology:
    table: VmTable = vm_table("vm", **settings)
    return topology(table, folder=folder)


def test_keys(tmp_path: Path) -> None:
    """`ask` is any request of the control socket's about the VM; what comes of it is told with the command's id."""

    async def sequence(guest: BoundaryGuest) -> None:
        await guest.connect()
        rings = await guest.open_channel()
        await rings.send(struct.pack("<II", 1, 0x10000), 0, flags=0)
        heard = at_rest(guest, rings)
        assert len(await heard()) == 1
        assert (await guest.do("ask", id=7, request={"op": "type", "text": "a"}))["ok"]
        assert [asked["id"] for asked in told(guest, "asked")] == [7]
        assert [struct.unpack_from("<IH", body) for _, _, body in await heard()] == [(3, 0x1E), (3, 0x1E)]
        await guest.do("ask", id="x", request={"op": "kvp"})
        ((refusal),) = told(guest, "asked")
        assert (refusal["id"], refusal["error"]) == ("x", "refused")

    session(alone(tmp_path, input=["keyboard"]), sequence)


@pytest.mark.parametrize(
    "request_",
    [{}, {"op": "nonsense"}, {"op": "down"}, {"op": "hello"}, {"op": "console"}, {"op": "type", "text": 1}],
)
def test_requests_that_cannot_be(tmp_path: Path, request_: dict[str, object]) -> None:
    """One that no control socket takes, one about the whole host, one whose answer is a stream."""

    async def sequence(guest: BoundaryGuest) -> None:
        answer = await guest.do("ask", request=request_)
        assert (answer["ok"], answer["error"], answer["field"]) == (False, "bad_line", "request")

    session(alone(tmp_path), sequence)


def test_frames(tmp_path: Path) -> None:
    """A station of the driver's is at every switch: what it gets is an event, and `frame` sends."""
    own, other = mac(1), mac(9)
    whole = topology(vm_table("vm", memory=2 << 20, nic=[NicTable(switch="lan", mac=own.hex("-"))]), folder=tmp_path)
    whole.switch.append(SwitchTable(name="lan"))

    async def sequence(guest: BoundaryGuest) -> None:
        (offer,) = await guest.connect()
        adapter = Adapter(guest, await guest.open_channel(), None, offer)  # type: ignore[arg-type]
        await adapter.initialize()
        await adapter.start()
        frame = ethernet(BROADCAST, own, bytes(60))
        assert await adapter.say(frame_message(frame), control=False) == []
        assert told(guest, "frame") == [{"switch": "lan", "data": frame.hex()}]
        answer = ethernet(own, other, b"an answer" * 6)
        assert (await guest.do("frame", switch="lan", data=answer.hex()))["ok"]
        (packet,) = await adapter.heard()
        assert (await adapter.take(packet)).endswith(answer)
        assert (await guest.do("frame", switch="wan", data=answer.hex()))["field"] == "switch"

    session(whole, sequence)


def test_a_cable(tmp_path: Path) -> None:
    """`ask` with `connect-nic`: the guest hears that it was pulled out."""
    whole = topology(vm_table("vm", memory=2 << 20, nic=[NicTable(switch="lan")]), folder=tmp_path)
    whole.switch.append(SwitchTable(name="lan"))

    async def sequence(guest: BoundaryGuest) -> None:
        (offer,) = await guest.connect()
        adapter = Adapter(guest, await guest.open_channel(), None, offer)  # type: ignore[arg-type]
        await adapter.initialize()
        await adapter.start()
        await guest.do("ask", request={"op": "connect-nic", "number": 0, "switch": ""})
        assert "error" not in told(guest, "asked")[0]
        (packet,) = await adapter.heard()
        assert await adapter.take(packet) == struct.pack("<IIIII", 7, 20, 0x4001000C, 0, 0)

    session(whole, sequence)


def test_a_socket_that_the_guest_connects(tmp_path: Path) -> None:
    """`listen`, then what the guest says is an event; `send`, `end` and `hang_up` are the host's part."""

    async def sequence(guest: BoundaryGuest) -> None:
        sockets = Sockets(guest)
        await guest.connect()
        assert (await guest.do("listen", port=80))["ok"]
        assert (await guest.do("listen", port=80))["field"] == "port"
        assert await guest.say(sockets.request()) == [sockets.offer(1)]
        pipe = Pipe(guest, await guest.open_channel())
        assert told(guest, "socket") == [{"socket": 1, "port": 80, "state": "open"}]
        assert await pipe.say(b"hello") == []
        assert told(guest, "socket") == [{"socket": 1, "port": 80, "state": "data", "data": b"hello".hex()}]
        await guest.do("send", socket=1, data=b"good day".hex())
        assert await pipe.heard() == [b"good day"]
        await guest.do("end", socket=1)
        assert await pipe.heard() == [b""]
        assert (await guest.do("send", socket=2, data=""))["field"] == "socket"
        await guest.do("hang_up", socket=1)
        await guest.signal(pipe.rings.connection)
        assert told(guest, "socket") == [{"socket": 1, "port": 80, "state": "closed"}]
        assert await guest.messages() == [struct.pack("<III", 2, 0, 1)]
        assert (await guest.do("hang_up", socket=1))["field"] == "socket"

    session(alone(tmp_path), sequence)


@pytest.mark.parametrize("opens", [True, False])
def test_a_socket_that_the_host_connects(tmp_path: Path, opens: bool) -> None:
    """`connect` offers a channel; a guest that does not open it within two seconds refuses."""

    async def sequence(guest: BoundaryGuest) -> None:
        await guest.connect()
        assert (await guest.do("connect", port=80))["ok"]
        (offer,) = await guest.messages()
        assert (offer[8:24], offer[64]) == (bytes(SERVICE), 1)
        assert offer[24:40] != bytes(ENDPOINT)
        if opens:
            pipe = Pipe(guest, await guest.open_channel())
            assert await pipe.say(b"") == []
            assert [line["state"] for line in told(guest, "socket")] == ["open", "end"]
        else:
            await guest.do("advance", ticks=20_000_000)
            ((line),) = told(guest, "socket")
            assert (line["socket"], line["state"]) == (0, "refused")

    session(alone(tmp_path), sequence)


def test_a_topology_with_doors_to_the_outside(tmp_path: Path) -> None:
    """Siblings, Unix sockets, VNC and a TAP device are left out; devices, switches and ports of the VM's are there."""
    (tmp_path / "topology.toml").write_text(
        '[[switch]]\nname = "lan"\nkind = "internal"\n[[vm]]\nname = "other"\n[[vm]]\nname = "probe"\n'
        '[[vm.nic]]\nswitch = "lan"\n[vm.sockets]\npath = "probe.vsock"\n[vm.screen]\nvnc = 0\n'
    )
    whole = parse_topology((tmp_path / "topology.toml").read_text(), tmp_path, programs=False)
    left = alone_of(whole, "probe")
    (vm,) = left.vm
    assert (vm.name, vm.sockets, len(vm.nic)) == ("probe", None, 1)
    assert vm.screen is not None
    assert vm.screen.vnc is None
    assert left.switch == [SwitchTable(name="lan")]

    async def sequence(guest: BoundaryGuest) -> None:
        assert len(await guest.connect()) == 4
        assert not (tmp_path / "probe.vsock").exists()

    session(left, sequence)


def test_every_device_has_its_place(tmp_path: Path) -> None:
    """A topology of the driver's names adapters, a screen, components and inputs as any other."""
    whole = topology(
        vm_table("vm", memory=64 << 20, nic=[NicTable(switch="lan")], screen=ScreenTable(), integration=["kvp", "vss"]),
        folder=tmp_path,
    )
    whole.switch.append(SwitchTable(name="lan"))

    async def sequence(guest: BoundaryGuest) -> None:
        interfaces = {str(Guid(offer[8:24])) for offer in await guest.connect()}
        assert len(interfaces) == 6

    session(whole, sequence)
