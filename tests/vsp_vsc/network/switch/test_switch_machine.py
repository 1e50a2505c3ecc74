"""The switch under any sequence of frames, changes and time."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.doubles.switch import BROADCAST, SECOND, Lan, Plug, ethernet, mac, stranger
from vsp_vsc.network.switch.frames import TAG, TAGS
from vsp_vsc.network.switch.kinds import Mirroring
from vsp_vsc.network.switch.ports import Drop
from vsp_vsc.network.switch.settings import PortSettings
from vsp_vsc.network.switch.stations import MAX_STATIONS

PORTS = 5
VLANS = (0, 10, 20)
addresses = st.one_of(
    st.integers(0, PORTS).map(mac),
    st.integers(0, 3).map(stranger),
    st.sampled_from([BROADCAST, bytes(6), bytes.fromhex("0180c2000000"), bytes.fromhex("333300000001")]),
)
vlans = st.sampled_from(VLANS)
tags = st.sampled_from(["", "", "", "8100000a", "81000014", "8100001e", "81000000", "8100000a81000014", "88a80014"])
port_settings = st.builds(
    PortSettings,
    vlan=vlans,
    trunk=st.none() | st.frozensets(st.sampled_from(VLANS[1:])),
    spoofing=st.booleans(),
    isolated=st.booleans(),
    mirroring=st.sampled_from([*Mirroring, Mirroring.NONE, Mirroring.NONE]),
    storm_limit=st.just(0),
)


class SwitchMachine(RuleBasedStateMachine):
    """Ports of all kinds, among which a frame is followed by a number in its payload."""

    def __init__(self) -> None:
        super().__init__()
        self.lan = Lan()
        self.plugs: list[Plug] = []
        self.number = 0
        self.sent = 0

    @initialize(made=st.lists(port_settings, min_size=PORTS, max_size=PORTS))
    def plug_in(self, made: list[PortSettings]) -> None:
        """All ports."""
        self.plugs = [self.lan.plug(number) for number in range(PORTS)]
        for plug, one in zip(self.plugs, made, strict=True):
            plug.port.change(one)

    @rule(
        port=st.integers(0, PORTS - 1), batch=st.lists(st.tuples(addresses, addresses, tags, st.booleans()), max_size=8)
    )
    def send(self, port: int, batch: list[tuple[bytes, bytes, str, bool]]) -> None:
        """A batch, most of whose senders are honest."""
        sender = self.plugs[port]
        frames = []
        for to, source, tag, honest in batch:
            self.number += 1
            head = to + (sender.port.mac if honest else source) + bytes.fromhex(tag)
            frames.append(head + b"\x88\xb5" + self.number.to_bytes(4, "big"))
        before = dict(sender.port.drops)
        sender.port.transmit(frames)
        self.sent += len(frames)
        dropped = sum(sender.port.drops.values()) - sum(before.values())
        numbers = {frame[-4:] for frame in frames}
        arrived = {frame[-4:] for plug in self.plugs for frame in plug.got}
        assert arrived <= numbers
        if not any(plug.port.settings.mirroring is Mirroring.DESTINATION for plug in self.plugs):
            assert len(arrived) <= len(frames) - dropped
        for plug in self.plugs:
            for frame in plug.take():
                self.check(sender, plug, frame, frames)

    def check(self, sender: Plug, receiver: Plug, frame: bytes, frames: list[bytes]) -> None:
        """What one adapter has got."""
        assert receiver is not sender, "none back to its sender"
        source, destination = frame[6:12], frame[:6]
        assert not source[0] & 1
        assert source != bytes(6)
        owner = next((plug for plug in self.plugs if plug.port.mac == source), sender)
        assert owner is sender, "nothing forged"
        assert sender.port.settings.spoofing or source == sender.port.mac
        assert destination != bytes.fromhex("0180c2000000")
        settings, theirs = receiver.port.settings, sender.port.settings
        if settings.mirroring is Mirroring.DESTINATION:
            return  # it may see what others are meant to
        ours = next((plug for plug in self.plugs if plug.port.mac == destination), receiver)
        assert ours is receiver, "for another port"
        assert not (settings.isolated and theirs.isolated)
        (original,) = (one for one in frames if one[-4:] == frame[-4:])
        inside = int.from_bytes(original[14:16], "big") & 0xFFF if original[12:14] == TAG else 0
        vlan = inside or theirs.vlan
        if inside:
            assert theirs.trunk is not None
            assert inside in theirs.trunk
        if frame[12:14] == TAG:
            assert settings.trunk is not None
            assert vlan in settings.trunk
            assert vlan != settings.vlan
            assert int.from_bytes(frame[14:16], "big") & 0xFFF == vlan
        else:
            assert vlan == settings.vlan, "not in its VLAN"
        assert frame[12:14] == TAG or frame[12:14] not in TAGS
        assert frame[16:18] not in TAGS

    @rule(port=st.integers(0, PORTS - 1), made=port_settings)
    def change(self, port: int, made: PortSettings) -> None:
        """Other settings."""
        self.plugs[port].port.change(made)

    @rule(port=st.integers(0, PORTS - 1), enabled=st.booleans())
    def plug_cable(self, port: int, enabled: bool) -> None:
        """In or out."""
        self.plugs[port].port.set_enabled(enabled)

    @rule(port=st.integers(0, PORTS - 1))
    def replug(self, port: int) -> None:
        """Out of the switch and in again."""
        one = self.plugs[port].port
        self.lan.switch.disconnect(one)
        one.transmit([ethernet(BROADCAST, one.mac)])
        self.sent += 1
        self.lan.switch.connect(one)

    @rule(seconds=st.sampled_from([1, 11, 150, 301]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.lan.now += seconds * SECOND

    @invariant()
    def bounded(self) -> None:
        """Nobody is learned who must not be, and the table has its limit."""
        own = {plug.port.mac for plug in self.plugs}
        for place, port, when in self.lan.switch.stations:
            assert port.settings.spoofing
            assert port.enabled
            assert place.address not in own
            assert when <= self.lan.now
        assert len(self.lan.switch.stations) <= PORTS * MAX_STATIONS
        for plug in self.plugs:
            assert not plug.port.drops.get(Drop.LOOP)


SwitchMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSwitchMachine = SwitchMachine.TestCase
