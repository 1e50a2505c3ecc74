"""The virtual switch, frame by frame."""

from __future__ import annotations

import pytest

from tests.doubles.switch import BROADCAST, IPV4, IPV6, SECOND, Lan, Plug, ethernet, ip6, mac, stranger, udp4
from vsp_vsc.network.switch.acl import AccessList, Rule, parse_end
from vsp_vsc.network.switch.kinds import Action, Direction, Mirroring
from vsp_vsc.network.switch.ports import Drop, Port
from vsp_vsc.network.switch.settings import ALL_VLANS, PortSettings
from vsp_vsc.network.switch.stations import MAX_STATIONS
from vsp_vsc.network.switch.switch import MAX_TURNS, MAX_WAITING


def test_a_frame_for_a_ports_own_address_goes_there_and_nowhere_else() -> None:
    """Nobody has to be heard first: the switch knows the addresses of its ports."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2), lan.plug(3)
    frames = [ethernet(mac(2), mac(1), bytes([number])) for number in range(5)]
    a.port.transmit(frames)
    a.port.transmit(frames)  # the known way
    assert b.got == frames * 2
    assert not c.got
    assert not a.got
    assert b.batches == [5, 5], "one call of the adapter a batch"


def test_a_batch_is_grouped_by_receiver_and_keeps_its_order() -> None:
    """Each adapter is called once, with its frames in the order of sending."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2), lan.plug(3)
    batch = [ethernet(mac(2 + number % 2), mac(1), bytes([number])) for number in range(10)]
    for _ in range(2):
        a.port.transmit([*batch, ethernet(BROADCAST, mac(1))])
        assert b.take() == [*batch[0::2], ethernet(BROADCAST, mac(1))]
        assert c.take() == [*batch[1::2], ethernet(BROADCAST, mac(1))]
    assert b.batches == c.batches == [6, 6]


def test_broadcast_and_multicast_reach_all_but_the_sender() -> None:
    """Whoever wants a group is the adapter's business."""
    lan = Lan()
    plugs = [lan.plug(number) for number in range(4)]
    for group in (BROADCAST, bytes.fromhex("01005e0000fb"), bytes.fromhex("333300000001")):
        plugs[0].port.transmit([ethernet(group, mac(0))])
        assert [len(plug.take()) for plug in plugs] == [0, 1, 1, 1]


def test_what_is_for_a_neighbour_on_the_wire_ends_here() -> None:
    """A guest's pause frames must not stop the host's network card."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    a.port.transmit([ethernet(bytes.fromhex("0180c2000001"), mac(1)), ethernet(bytes.fromhex("0180c2000010"), mac(1))])
    assert len(b.got) == 1
    assert lan.drops(a) == {"reserved": 1}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (mac(2), "spoofed"),
        (stranger(1), "spoofed"),
        (BROADCAST, "bad_source"),
        (bytes.fromhex("01155d000001"), "bad_source"),
        (bytes(6), "bad_source"),
    ],
)
def test_without_spoofing_a_port_sends_from_its_own_address_only(source: bytes, reason: str) -> None:
    """Hyper-V's MacAddressSpoofing Off."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    a.port.transmit([ethernet(mac(2), source), ethernet(BROADCAST, source)])
    assert not b.got
    assert lan.drops(a) == {reason: 2}


def test_with_spoofing_any_address_but_another_ports() -> None:
    """A VM that nests others may bridge them, and cannot become its neighbour."""
    lan = Lan()
    a, b, c = lan.plug(1, spoofing=True), lan.plug(2), lan.plug(3)
    a.port.transmit([ethernet(mac(2), stranger(1)), ethernet(mac(2), mac(3))])
    assert len(b.got) == 1
    assert lan.drops(a) == {"others_address": 1}
    b.port.transmit([ethernet(stranger(1), mac(2)), ethernet(mac(3), mac(2))])
    assert len(a.got) == 1
    assert len(c.got) == 1


def test_who_is_unknown_is_looked_for_only_where_more_than_one_may_be() -> None:
    """A port that may send from one address only cannot be the one that was meant."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2), lan.plug(3, spoofing=True)
    a.port.transmit([ethernet(stranger(9), mac(1))])
    assert len(c.got) == 1
    assert not b.got
    c.port.transmit([ethernet(stranger(9), mac(3))])
    assert lan.drops(c) == {"unknown": 1}


def test_a_station_is_learned_moves_and_is_forgotten() -> None:
    """After 300 seconds of silence nobody is where it was; the sweep comes every ten."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2, spoofing=True), lan.plug(3, spoofing=True)
    b.port.transmit([ethernet(mac(1), stranger(1))])
    to_it = [ethernet(stranger(1), mac(1))]
    for _ in range(3):
        a.port.transmit(to_it)
    assert (len(b.take()), len(c.take())) == (3, 0)
    c.port.transmit([ethernet(mac(1), stranger(1))])  # it has moved
    a.port.transmit(to_it)
    assert (len(b.take()), len(c.take())) == (0, 1)
    assert lan.switch.stations.moves == 1
    lan.now += 299 * SECOND
    a.port.transmit(to_it)
    assert (len(b.take()), len(c.take())) == (0, 1)
    lan.now += 20 * SECOND
    a.port.transmit(to_it)
    assert (len(b.take()), len(c.take())) == (1, 1)
    assert len(lan.switch.stations) == 0


def test_a_station_that_talks_is_not_forgotten() -> None:
    """Even where its frames take the known way, on which nobody looks at the table."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2, spoofing=True), lan.plug(3, spoofing=True)
    for _ in range(100):
        lan.now += 5 * SECOND
        b.port.transmit([ethernet(mac(1), stranger(1))])
        ((_, _, heard),) = lan.switch.stations
        assert lan.now - heard <= 10 * SECOND
    a.port.transmit([ethernet(stranger(1), mac(1))])
    assert (len(b.take()), len(c.take())) == (1, 0)
    assert lan.switch.stations.moves == 0


def test_a_station_at_the_senders_port_and_one_behind_a_pulled_cable() -> None:
    """The first has heard the frame already; the second may be anywhere now."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2, spoofing=True), lan.plug(3, spoofing=True)
    b.port.transmit([ethernet(mac(1), stranger(1)), ethernet(stranger(1), stranger(2))])
    assert lan.drops(b) == {"itself": 1}
    assert not b.got
    b.port.set_enabled(False)
    a.port.transmit([ethernet(stranger(1), mac(1))])
    assert len(c.got) == 1


def test_the_table_is_bounded_and_each_port_has_its_own_share() -> None:
    """Who makes addresses up pushes out its own."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2, spoofing=True), lan.plug(3, spoofing=True)
    c.port.transmit([ethernet(mac(1), stranger(0))])
    b.port.transmit([ethernet(mac(1), stranger(number)) for number in range(1, 2 * MAX_STATIONS)])
    assert len(lan.switch.stations) == MAX_STATIONS + 1
    a.port.transmit([ethernet(stranger(0), mac(1))])
    assert (len(b.take()), len(c.take())) == (0, 1)


# --- lengths


def test_too_short_and_too_long() -> None:
    """14 bytes to MTU + 22."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    head = ethernet(mac(2), mac(1), b"")
    frames = [b"", head[:13], head, head + bytes(1522 - 14), head + bytes(1523 - 14)]
    for _ in range(2):
        a.port.transmit(frames)
        assert b.take() == frames[2:4]
    assert lan.drops(a) == {"too_short": 4, "too_long": 2}


def test_a_jumbo_frame_does_not_fit_a_small_receiver() -> None:
    """Also on the known way."""
    lan = Lan()
    a, b = lan.plug(1, mtu=9000), lan.plug(2)
    frames = [ethernet(mac(2), mac(1), bytes(size)) for size in (100, 5000)]
    for _ in range(3):
        a.port.transmit(frames)
    assert len(b.got) == 3
    assert lan.drops(b) == {"too_long": 3}
    assert not lan.drops(a)


# --- VLANs


def test_access_ports_of_different_vlans_do_not_meet() -> None:
    """Neither by address nor by broadcast."""
    lan = Lan()
    a, b, c = lan.plug(1, vlan=10), lan.plug(2, vlan=20), lan.plug(3, vlan=10)
    a.port.transmit([ethernet(mac(2), mac(1)), ethernet(mac(3), mac(1)), ethernet(BROADCAST, mac(1))])
    assert not b.got
    assert len(c.got) == 2
    assert lan.drops(a) == {"vlan": 1}


def test_an_access_port_cannot_leave_its_vlan_by_a_tag() -> None:
    """Case 78: one tag, two tags, a provider's tag, a tag that is cut off."""
    lan = Lan()
    a, b, trunk = lan.plug(1, vlan=10), lan.plug(2, vlan=20), lan.plug(3, trunk=ALL_VLANS)
    single = ethernet(BROADCAST, mac(1), vlan=20)
    frames = [
        single,
        ethernet(BROADCAST, mac(1), vlan=10),
        single[:12] + b"\x81\x00\x00\x0a" + single[12:],
        BROADCAST + mac(1) + b"\x88\xa8\x00\x14" + b"\x08\x00hello",
        single[:12] + b"\x81\x00\x00\x00" + single[12:],
        BROADCAST + mac(1) + b"\x81\x00\x00",
    ]
    a.port.transmit(frames)
    assert not b.got
    assert not trunk.got
    assert lan.drops(a) == {"tag": 2, "tag_stack": 3, "too_short": 1}


def test_a_priority_tag_is_no_vlan() -> None:
    """VID 0 says nothing but a priority."""
    lan = Lan()
    a, b = lan.plug(1, vlan=10), lan.plug(2, vlan=10)
    frame = ethernet(mac(2), mac(1))
    for _ in range(2):
        a.port.transmit([frame[:12] + b"\x81\x00\xa0\x00" + frame[12:]])
        assert b.take() == [frame]


def test_a_trunk_carries_its_vlans_with_tags_and_its_native_one_without() -> None:
    """And no others, in either direction."""
    lan = Lan()
    a, b, c = lan.plug(1, vlan=10), lan.plug(2, vlan=20), lan.plug(3, vlan=30)
    trunk = lan.plug(4, vlan=10, trunk=frozenset({20}))
    for plug in (a, b, c):
        plug.port.transmit([ethernet(BROADCAST, plug.port.mac)] * 2)
    assert trunk.take() == [ethernet(BROADCAST, mac(1))] * 2 + [ethernet(BROADCAST, mac(2), vlan=20)] * 2
    trunk.port.transmit([ethernet(BROADCAST, mac(4), vlan=vlan) for vlan in (0, 20, 30, 10)])
    assert a.take() == b.take() == [ethernet(BROADCAST, mac(4))]
    assert not c.take()
    assert lan.drops(trunk) == {"vlan": 2}


def test_frames_of_different_vlans_that_begin_alike_are_told_apart() -> None:
    """The known way is found by fourteen bytes, in which a tag is, but not its VLAN."""
    lan = Lan()
    a = lan.plug(1, trunk=frozenset({10, 20}))
    b = lan.plug(2, trunk=frozenset({10}))
    for _ in range(2):
        a.port.transmit([ethernet(mac(2), mac(1), vlan=10), ethernet(mac(2), mac(1), vlan=20)])
        assert b.take() == [ethernet(mac(2), mac(1), vlan=10)]


# --- guards, access lists, isolation


DISCOVER, OFFER = udp4(68, 67), udp4(67, 68)


def test_the_dhcp_guard_drops_what_only_a_server_says() -> None:
    """For either IP version, behind IP options and extension headers, and where the ports are hidden."""
    lan = Lan()
    a, b = lan.plug(1, dhcp_guard=True), lan.plug(2)
    reply = (547).to_bytes(2, "big") + (546).to_bytes(2, "big") + bytes(4)
    hop = bytes([17, 0]) + bytes(6)
    bad = [
        (IPV4, OFFER),
        (IPV4, udp4(67, 68, options=3)),
        (IPV4, udp4(4711, 68)),
        (IPV4, OFFER[:22]),
        (IPV6, ip6(17, reply)),
        (IPV6, ip6(0, hop + reply)),
        (IPV6, ip6(44, bytes([17]) + bytes(7) + reply)),
        (IPV6, ip6(0, bytes([0, 0]) * 4 * 40)),
    ]
    good = [(IPV4, DISCOVER), (IPV4, udp4(53, 53)), (IPV6, ip6(17, reply[2:4] + reply[:2])), (IPV6, ip6(58, b"\x86"))]
    a.port.transmit([ethernet(BROADCAST, mac(1), packet, kind=kind) for kind, packet in bad + good])
    assert [frame[14:] for frame in b.got] == [packet for _, packet in good]
    assert lan.drops(a) == {"dhcp_guard": len(bad)}
    b.port.transmit([ethernet(mac(1), mac(2), OFFER, kind=IPV4)])
    assert len(a.got) == 1, "a server may be anywhere else"


def test_the_router_guard_drops_advertisements_and_redirects() -> None:
    """Also behind a fragment header, which RFC 6980 forbids."""
    lan = Lan()
    a, b = lan.plug(1, router_guard=True), lan.plug(2)
    bad = [ip6(58, b"\x86"), ip6(58, b"\x89"), ip6(44, bytes([58]) + bytes(7) + b"\x86"), ip6(58, b"")]
    good = [ip6(58, b"\x85"), ip6(58, b"\x87"), ip6(6, b"\x86")]
    a.port.transmit([ethernet(BROADCAST, mac(1), packet, kind=IPV6) for packet in bad + good])
    assert [frame[14:] for frame in b.got] == good
    assert lan.drops(a) == {"router_guard": len(bad)}


def acl(*rules: tuple[str, str, str]) -> AccessList:
    """Rules of action, direction and far end."""
    return AccessList([Rule(Action(action), Direction(direction), parse_end(far)) for action, direction, far in rules])


def ip_to(address: str, plug: Plug, to: Plug) -> bytes:
    return ethernet(to.port.mac, plug.port.mac, udp4(1, 2, source="10.0.0.1", to=address), kind=IPV4)


def test_of_an_access_list_the_longest_prefix_decides() -> None:
    """Whatever the order in which the rules are written, and denial wins between equals."""
    lan = Lan()
    rules = acl(
        ("deny", "out", "10.1.0.0/16"),
        ("allow", "out", "10.0.0.0/8"),
        ("allow", "both", "10.1.2.0/24"),
        ("deny", "out", "10.1.2.3"),
        ("allow", "out", "10.1.2.3"),
        ("deny", "out", "0.0.0.0/0"),
    )
    a, b = lan.plug(1, acl=rules), lan.plug(2)
    wanted = {"10.2.0.1": 1, "10.1.0.1": 0, "10.1.2.1": 1, "10.1.2.3": 0, "192.168.0.1": 0}
    for address, passes in wanted.items():
        a.port.transmit([ip_to(address, a, b)] * 2)
        assert len(b.take()) == 2 * passes, address
    a.port.transmit([ethernet(mac(2), mac(1)), ethernet(mac(2), mac(1), bytes(10), kind=IPV4)])
    assert len(b.take()) == 1, "what is not IP is not meant; IP without addresses does not pass"
    assert lan.drops(a) == {"acl_out": 7}


def test_an_access_list_looks_at_the_far_end_in_each_direction() -> None:
    """In: where it comes from. Out: where it goes."""
    lan = Lan()
    a, b = lan.plug(1, acl=acl(("deny", "in", "10.0.0.1"))), lan.plug(2)
    b.port.transmit([ip_to("10.0.0.9", b, a)])
    a.port.transmit([ip_to("10.0.0.9", a, b)])
    assert not a.got
    assert len(b.got) == 1
    assert lan.drops(a) == {"acl_in": 1}
    assert not lan.drops(b)


def test_access_lists_of_ethernet_addresses_and_of_any() -> None:
    """`any` decides where nothing that says more does, for all frames."""
    lan = Lan()
    a = lan.plug(1, acl=acl(("deny", "both", "any"), ("allow", "both", "00-15-5d-00-00-02")))
    b, c = lan.plug(2), lan.plug(3)
    a.port.transmit([ethernet(mac(2), mac(1)), ethernet(mac(3), mac(1)), ethernet(BROADCAST, mac(1))])
    for plug in (b, c):
        plug.port.transmit([ethernet(mac(1), plug.port.mac)])
    assert len(b.got) == 1
    assert not c.got
    assert [frame[6:12] for frame in a.got] == [mac(2)]


def test_a_meter_counts_and_decides_nothing() -> None:
    """The longest prefix counts, once a frame."""
    lan = Lan()
    rules = acl(("meter", "out", "10.0.0.0/8"), ("meter", "out", "10.0.0.9"), ("deny", "out", "10.0.0.8"))
    a, b = lan.plug(1, acl=rules), lan.plug(2)
    frames = [ip_to(f"10.0.0.{last}", a, b) for last in (7, 8, 9, 9)]
    a.port.transmit(frames)
    counted = {str(rule): rule.frames for rule in rules.rules}
    assert len(b.got) == 3
    assert counted == {"meter out 10.0.0.9/32": 2, "meter out 10.0.0.0/8": 2, "deny out 10.0.0.8/32": 1}
    assert sum(rule.bytes for rule in rules.rules if rule.action is Action.METER) == sum(map(len, frames))


def test_isolated_ports_reach_the_others_only() -> None:
    """As a hoster's customers reach the router, and not each other."""
    lan = Lan()
    a, b, router = lan.plug(1, isolated=True), lan.plug(2, isolated=True), lan.plug(3)
    a.port.transmit([ethernet(BROADCAST, mac(1)), ethernet(mac(2), mac(1)), ethernet(mac(3), mac(1))])
    assert not b.got
    assert len(router.got) == 2
    assert lan.drops(a) == {"isolated": 1}
    router.port.transmit([ethernet(mac(1), mac(3)), ethernet(mac(2), mac(3))])
    assert len(a.got) == len(b.got) == 1


# --- mirrors, links, adapters


def test_a_mirror_shows_what_its_sources_send_and_get_once() -> None:
    """To the destination, which gets nothing of others and nothing twice."""
    lan = Lan()
    a, b, c = lan.plug(1, mirroring=Mirroring.SOURCE), lan.plug(2), lan.plug(3)
    spy = lan.plug(4, mirroring=Mirroring.DESTINATION)
    for _ in range(2):
        a.port.transmit([ethernet(mac(2), mac(1)), ethernet(BROADCAST, mac(1)), ethernet(mac(4), mac(1))])
        b.port.transmit([ethernet(mac(1), mac(2)), ethernet(mac(3), mac(2))])
        assert [(frame[:6], frame[6:12]) for frame in spy.take()] == [
            (mac(2), mac(1)),
            (BROADCAST, mac(1)),
            (mac(4), mac(1)),
            (mac(1), mac(2)),
        ]
    spy.port.transmit([ethernet(mac(1), mac(4))])
    assert len(a.got) == 3
    assert not spy.got
    assert len(c.got) == 4


def test_a_cable_that_is_out_carries_nothing() -> None:
    """The adapter hears of it, once for each change; what it sends is counted."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    both = ([ethernet(mac(2), mac(1))], [ethernet(mac(1), mac(2))])
    a.port.transmit(both[0])
    b.port.set_enabled(False)
    b.port.set_enabled(False)
    a.port.transmit(both[0])
    b.port.transmit(both[1])
    assert len(b.take()) == 1
    assert not a.take()
    assert lan.drops(b) == {"link_down": 2}
    lan.switch.disconnect(b.port)
    b.port.set_enabled(True)
    assert b.links == [False], "there is no switch yet"
    a.port.transmit(both[0])
    assert lan.drops(a) == {"unknown": 1}
    lan.switch.connect(b.port)
    assert b.links == [False, True]
    b.port.transmit(both[1])
    a.port.transmit(both[0])
    assert len(a.take()) == len(b.take()) == 1


def test_names_and_addresses_are_taken_once() -> None:
    """Both say whose they are."""
    lan = Lan()
    a = lan.plug(1)
    with pytest.raises(ValueError, match="00-15-5D-00-00-01 is the address of port vm1/0"):
        lan.switch.connect(Port("other/0", mac(1)))
    with pytest.raises(ValueError, match="has a port vm1/0 already"):
        lan.switch.connect(Port("vm1/0", mac(2)))
    with pytest.raises(RuntimeError, match="has an adapter"):
        a.port.attach(a)


def test_an_own_address_that_a_station_had_before_is_the_ports() -> None:
    """A VM that starts gets its frames, whoever pretended to be it."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2, spoofing=True)
    b.port.transmit([ethernet(mac(1), mac(3))])
    c = lan.plug(3)
    assert len(lan.switch.stations) == 0
    a.port.transmit([ethernet(mac(3), mac(1))])
    assert len(c.got) == 1
    assert not b.got
    b.port.transmit([ethernet(mac(1), mac(3))])
    assert lan.drops(b) == {"others_address": 1}


def test_what_an_adapter_does_not_take_is_counted() -> None:
    """And what is for a port without one."""
    lan = Lan()
    a, b, c = lan.plug(1), lan.plug(2), lan.plug(3)
    b.room = 3
    c.port.detach()
    a.port.transmit([ethernet(mac(2), mac(1))] * 5 + [ethernet(mac(3), mac(1))])
    assert lan.drops(b) == {"adapter_full": 2}
    assert lan.drops(c) == {"no_adapter": 1}
    assert (b.port.received_frames, b.port.received_bytes) == (3, 3 * 19)
    assert (a.port.sent_frames, a.port.sent_bytes) == (6, 6 * 19)


def test_adapters_may_answer_at_once_and_not_for_ever() -> None:
    """Two that answer each other at once are stopped after some turns, and their next frame goes."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    a.answer = lambda frame: ethernet(mac(2), mac(1))
    b.answer = lambda frame: ethernet(mac(1), mac(2))
    a.port.transmit([ethernet(mac(2), mac(1))])
    assert len(a.got) + len(b.got) == MAX_TURNS + 1
    assert sum(plug.port.drops[Drop.LOOP] for plug in (a, b) if plug.port.drops) == 1
    a.answer = b.answer = None
    a.port.transmit([ethernet(mac(2), mac(1))])
    assert len(b.take()) == MAX_TURNS // 2 + 2


def test_what_waits_while_the_switch_delivers_is_bounded() -> None:
    """An adapter that answers with floods loses them."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)

    def flood(frame: bytes) -> None:
        for _ in range(10):
            b.port.transmit([ethernet(mac(1), mac(2))] * (MAX_WAITING // 4))

    b.answer = flood
    a.port.transmit([ethernet(mac(2), mac(1))])
    assert len(a.got) == MAX_WAITING
    assert lan.drops(b) == {"loop": 6 * (MAX_WAITING // 4)}


def test_a_storm_is_bounded_by_the_second() -> None:
    """Of frames to many; those to one are the receiver's business."""
    lan = Lan()
    a, b = lan.plug(1, storm_limit=100), lan.plug(2)
    for _ in range(3):
        a.port.transmit([ethernet(BROADCAST, mac(1))] * 150 + [ethernet(mac(2), mac(1))])
        assert len(b.take()) == 101
        lan.now += SECOND
    assert lan.drops(a) == {"storm": 150}


def test_settings_change_what_was_let_through_before() -> None:
    """Nothing goes a way that is known from before."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    frame = [ethernet(mac(2), mac(1))]
    for settings in (PortSettings(vlan=5), PortSettings(acl=acl(("deny", "both", "any"))), PortSettings(isolated=True)):
        a.port.change(PortSettings())
        a.port.transmit(frame)
        b.port.change(PortSettings(isolated=settings.isolated))
        a.port.change(settings)
        a.port.transmit(frame)
        assert len(b.take()) == 1, settings
        b.port.change(PortSettings())
    with pytest.raises(ValueError, match="MTU"):
        a.port.change(PortSettings(mtu=9000))
