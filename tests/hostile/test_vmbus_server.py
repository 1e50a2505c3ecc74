"""A guest that says anything at any time, a slow service, a fickle host: what the bus server always keeps."""

from __future__ import annotations

import random

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.wire import Guid
from tests.doubles.campaign import examples
from tests.doubles.vmbus_guest import SCSI, ScriptedGuest, instance, scsi
from vmbus.gpadl import GpadlRange, encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.hvsocket import OFFER_FLAGS, is_socket, service_of, user_defined
from vmbus.protocol.identifiers import SINT
from vmbus.protocol.messages import Message
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import IMPLEMENTED, Version
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.channels import ChannelState, DeviceActivity
from vmbus.server.connection import Phase
from vmbus.server.gpadls import MAX_GPADL_WORDS, MAX_GPADLS, GpadlState
from vmbus.server.offers import Offer

CHANNELS = st.sampled_from([1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 0, 2047, 0xFFFFFFFF])
GPADLS = st.integers(1, 3)
SELDOM = st.sampled_from([False] * 11 + [True])
"""For what ends a connection: a guest that does it all the time never gets anywhere."""
PENDING = (
    *(act.OpenDevice, act.CloseDevice, act.RetargetChannel, act.MapGpadl, act.ReleaseGpadl),
    act.ConnectSocket,
)
ENDPOINTS = st.integers(1, 6).map(instance)
"""The first are those of devices."""
SERVICES = st.sampled_from([service_of(80), service_of(81), SCSI])


def socket_offer(service: Guid, endpoint: Guid, *, accept: bool) -> Offer:
    """What the service offers for a connection."""
    return Offer(service, endpoint, flags=OFFER_FLAGS, user_defined=user_defined(is_for_guest_accept=accept))


class HostileGuest(RuleBasedStateMachine):
    """Checks at every step what must hold whatever the guest does; at the end, that everything comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.guest = ScriptedGuest(prompt=False)
        self.state = self.guest.state
        self.pending: list[Action] = []
        """What the service has not done yet; it may do it in any order but a channel's own."""
        self.running: set[int] = set()
        self.opening: set[int] = set()
        self.closing: set[int] = set()
        self.ports: set[int] = set()
        self.mapped: set[tuple[int, int]] = set()
        self.offers: list[int] = []

    # ------------------------------------------------------------------------------------------------- the service

    def absorb(self, actions: list[Action]) -> None:
        """Note actions, and judge each by what was done before."""
        for action in actions:
            match action:
                case act.SendMessage(message):
                    self.judge(message)
                case act.SendReserved(m.VersionResponse(supported=0), _, sint):
                    assert sint != SINT  # a contact that was for somebody else
                case act.SendReserved(message, _, _):
                    assert isinstance(message, m.OpenChannelResult | m.CloseReservedResponse)
                    running = isinstance(message, m.OpenChannelResult) and message.status == 0
                    assert (message.channel_id in self.running) == running
                case act.CreateChannel(channel_id, _):
                    assert channel_id not in self.ports
                    self.ports.add(channel_id)
                case act.DropChannel(channel_id):
                    self.ports.remove(channel_id)
                    assert channel_id not in self.opening | self.running | self.closing
                    assert not [key for key in self.mapped if key[0] == channel_id], "pages are still in view"
                case act.OpenDevice():
                    assert action.channel_id not in self.opening | self.running | self.closing
                    assert (action.channel_id, action.gpadl_id) in self.mapped
                    assert 2 <= action.downstream_page <= len(action.ring.gpns) - 2
                    self.opening.add(action.channel_id)
                case act.CloseDevice(channel_id):
                    self.running.remove(channel_id)
                    self.closing.add(channel_id)
                case act.StopOpening(channel_id):
                    assert channel_id in self.opening
                case act.RetargetChannel(channel_id, _):
                    assert channel_id in self.running
                case act.ConnectSocket(number, _, _):
                    assert number in self.state.connects
                case act.ReleaseGpadl(channel_id, gpadl_id):
                    assert (channel_id, gpadl_id) in self.mapped
            if isinstance(action, PENDING):
                self.pending.append(action)

    def judge(self, message: Message) -> None:
        """A message to the guest is legal, and says only what is so."""
        data = message.encode()
        assert len(data) <= 240
        if not isinstance(message, m.VersionResponse | m.VersionResponse2 | m.UnloadComplete):
            assert self.state.version is not None
            decoded = decode_message(
                data, sender=Direction.TO_CHILD, version=self.state.version, features=self.state.features
            )
            assert decoded == message
        if isinstance(message, m.UnloadComplete):
            kept = self.reserved
            assert {channel_id for channel_id, _ in self.mapped} <= kept
            assert self.opening | self.running | self.closing <= kept
        if isinstance(message, m.OpenChannelResult) and message.status == 0:
            assert message.channel_id in self.running

    @property
    def reserved(self) -> set[int]:
        """Channels that stay when the guest goes."""
        return {channel_id for channel_id, channel in self.state.channels.items() if channel.outlives_connection}

    def settle_one(self, index: int, ok: bool) -> None:
        action = self.pending.pop(index)
        match action:
            case act.OpenDevice():
                self.opening.remove(action.channel_id)
                if ok:
                    self.running.add(action.channel_id)
            case act.CloseDevice(channel_id):
                self.closing.remove(channel_id)
            case act.MapGpadl(channel_id, gpadl_id, _) if ok:
                self.mapped.add((channel_id, gpadl_id))
            case act.ReleaseGpadl(channel_id, gpadl_id):
                self.mapped.remove((channel_id, gpadl_id))
        if isinstance(action, act.ConnectSocket):
            self.absorb(self.connect(action, ok))
        else:
            self.absorb(self.guest.answer(action, ok))

    def connect(self, request: act.ConnectSocket, ok: bool) -> list[Action]:
        """As the service does it: the offer first, then the answer; nothing for a guest that has left."""
        if request.number not in self.state.connects:
            return self.state.connect_answered(request.number, refused=True)
        refusal = self.state.socket_refusal(request.endpoint)
        live = {channel.offer.instance for channel in self.state.offers.values() if not channel.rescinded}
        assert bool(refusal) == (request.endpoint in live)
        if not ok or refusal:
            return self.state.connect_answered(request.number, refused=True)
        _, actions = self.state.offer(socket_offer(request.service, request.endpoint, accept=False))
        return actions + self.state.connect_answered(request.number, refused=False)

    @precondition(lambda self: self.pending)
    @rule(choice=st.randoms(use_true_random=False), ok=st.booleans())
    def service_does_something(self, choice: random.Random, ok: bool) -> None:
        # A service answers a retarget at once; the others may take their time.
        retargets = [i for i, action in enumerate(self.pending) if isinstance(action, act.RetargetChannel)]
        self.settle_one(retargets[0] if retargets else choice.randrange(len(self.pending)), ok)

    @rule()
    def service_does_everything(self) -> None:
        while self.pending:
            self.settle_one(0, True)

    # ---------------------------------------------------------------------------------------------------- the guest

    def say(self, message: Message | bytes) -> None:
        self.absorb(self.state.handle(message if isinstance(message, bytes) else message.encode()))

    @initialize(count=st.integers(1, 4), version=st.sampled_from(IMPLEMENTED))
    def boot(self, count: int, version: Version) -> None:
        for number in range(count):
            self.host_offers(number, 0)
        self.say(m.initiate_contact(version, features=0xFF & ~0x08))
        self.say(m.RequestOffers())

    @rule(version=st.sampled_from(IMPLEMENTED), features=st.sampled_from([0, 0x20, 0xFF, 0x28]), now=SELDOM)
    def contact(self, version: int, features: int, now: bool) -> None:
        if now or self.state.phase is not Phase.CONNECTED:
            self.say(m.initiate_contact(version, features=features))

    @rule(version=st.integers(0, 0xFFFFFFFF), page=st.sampled_from([0, 1]), sint=st.integers(0, 255), now=SELDOM)
    def odd_contact(self, version: int, page: int, sint: int, now: bool) -> None:
        if not now:
            return
        contact = m.InitiateContact(version=version, parent_to_child_monitor_page=page, target_sint=sint)
        self.absorb(self.state.handle(contact.encode(), multiclient=True))

    @rule(endpoint=ENDPOINTS, service=SERVICES, silo=st.booleans(), now=st.booleans(), ok=st.booleans())
    def connect_a_socket(self, endpoint: Guid, service: Guid, silo: bool, now: bool, ok: bool) -> None:
        before = len(self.pending)
        self.say((m.TlConnectRequest2 if silo else m.TlConnectRequest)(endpoint=endpoint, service=service))
        if now and len(self.pending) > before:
            self.settle_one(before, ok)

    @rule(message=st.sampled_from([m.RequestOffers(), m.RequestOffers(), m.Resume()]))
    def short_message(self, message: Message) -> None:
        self.say(message)

    @rule(message=st.sampled_from([m.Unload(), m.Pause()]), now=SELDOM)
    def pause_or_unload(self, message: Message, now: bool) -> None:
        if now:
            self.say(message)

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS, pages=st.sampled_from([1, 4, 8, 30]))
    def gpadl(self, channel_id: int, gpadl_id: int, pages: int) -> None:
        for data in encode_gpadl(channel_id, gpadl_id, [page_range(range(pages))]):
            self.say(data)

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS, pages=st.sampled_from([27, 60]))
    def gpadl_without_its_end(self, channel_id: int, gpadl_id: int, pages: int) -> None:
        for data in encode_gpadl(channel_id, gpadl_id, [page_range(range(pages))])[:-1]:
            self.say(data)

    @rule(gpadl_id=GPADLS, words=st.integers(0, 28))
    def body(self, gpadl_id: int, words: int) -> None:
        self.say(m.GpadlBody(gpadl_id=gpadl_id).encode() + bytes(8 * words))

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS)
    def odd_gpadl(self, channel_id: int, gpadl_id: int) -> None:
        for data in encode_gpadl(channel_id, gpadl_id, [GpadlRange(100, 4000, (1, 2)), page_range([3])]):
            self.say(data)

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS)
    def tear_gpadl_down(self, channel_id: int, gpadl_id: int) -> None:
        self.say(m.GpadlTeardown(channel_id=channel_id, gpadl_id=gpadl_id))

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS, downstream=st.sampled_from([0, 2, 4, 7]))
    def open(self, channel_id: int, gpadl_id: int, downstream: int) -> None:
        self.say(m.OpenChannel(channel_id=channel_id, gpadl_id=gpadl_id, downstream_page=downstream))

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS)
    def gpadl_and_open(self, channel_id: int, gpadl_id: int) -> None:
        """Without this a random guest hardly ever gets a channel open."""
        self.gpadl_mapped(channel_id, gpadl_id)
        self.open(channel_id, gpadl_id, 4)

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS)
    def gpadl_and_reserve(self, channel_id: int, gpadl_id: int) -> None:
        self.gpadl_mapped(channel_id, gpadl_id)
        self.reserve(channel_id, gpadl_id)

    def gpadl_mapped(self, channel_id: int, gpadl_id: int) -> None:
        self.gpadl(channel_id, gpadl_id, 8)
        for index, action in enumerate(self.pending):
            if isinstance(action, act.MapGpadl) and (action.channel_id, action.gpadl_id) == (channel_id, gpadl_id):
                self.settle_one(index, True)
                break

    @rule(channel_id=CHANNELS, gpadl_id=GPADLS)
    def reserve(self, channel_id: int, gpadl_id: int) -> None:
        self.say(m.OpenReservedChannel(channel_id=channel_id, gpadl_id=gpadl_id, downstream_page=4, target_sint=5))

    @precondition(lambda self: self.reserved)
    @rule(vp=st.integers(0, 2))
    def close_reserved(self, vp: int) -> None:
        self.say(m.CloseReservedChannel(channel_id=min(self.reserved), target_vp=vp))

    @rule(channel_id=CHANNELS)
    def close(self, channel_id: int) -> None:
        self.say(m.CloseChannel(channel_id=channel_id))

    @precondition(lambda self: self.running)
    @rule(gpadl_id=GPADLS, again=st.booleans())
    def close_and_open_again(self, gpadl_id: int, again: bool) -> None:
        """At once, before the device has stopped."""
        channel_id = min(self.running)
        self.close(channel_id)
        self.open(channel_id, gpadl_id, 4)
        if again:
            self.close(channel_id)

    @precondition(lambda self: self.running)
    @rule(vp=st.integers(0, 2))
    def modify_an_open_channel(self, vp: int) -> None:
        self.modify(min(self.running), vp)

    @rule(channel_id=CHANNELS, now=SELDOM)
    def release(self, channel_id: int, now: bool) -> None:
        channel = self.state.channels.get(channel_id)
        if now or channel is None or channel.withdrawn or channel.state is ChannelState.CLOSING:
            self.say(m.RelIdReleased(channel_id=channel_id))

    @rule(channel_id=CHANNELS, vp=st.sampled_from([0, 1, 0xFFFFFFFF]))
    def modify(self, channel_id: int, vp: int) -> None:
        self.say(m.ModifyChannel(channel_id=channel_id, target_vp=vp))

    @rule(number=st.integers(0, 31), rest=st.binary(max_size=232))
    def noise(self, number: int, rest: bytes) -> None:
        assume(number not in (14, 16, 27))
        self.say(number.to_bytes(8, "little") + rest)

    @rule(data=st.binary(max_size=240))
    def pure_noise(self, data: bytes) -> None:
        self.say(data)

    # ----------------------------------------------------------------------------------------------------- the host

    @rule(number=st.integers(0, 3), sub=st.integers(0, 1))
    def host_offers(self, number: int, sub: int) -> None:
        offer = scsi(number, subchannel_index=sub)
        live = [channel.offer.key for channel in self.state.offers.values() if not channel.rescinded]
        if offer.key not in live:
            self.absorb(self.state.offer(offer)[1])

    @precondition(lambda self: self.state.version is not None)
    @rule(endpoint=ENDPOINTS, service=SERVICES)
    def host_connects(self, endpoint: Guid, service: Guid) -> None:
        if not self.state.socket_refusal(endpoint):
            self.absorb(self.state.offer(socket_offer(service, endpoint, accept=True))[1])

    @rule(choice=st.randoms(use_true_random=False), now=SELDOM | st.booleans())
    def host_rescinds(self, choice: random.Random, now: bool) -> None:
        if not now:
            return
        live = [handle for handle, channel in self.state.offers.items() if not channel.rescinded]
        if live:
            self.absorb(self.state.rescind(choice.choice(live)))

    @rule(now=SELDOM)
    def host_resets(self, now: bool) -> None:
        if now:
            self.absorb(self.state.reset())

    # --------------------------------------------------------------------------------------------------- what holds

    @invariant()
    def the_host_stays_bounded(self) -> None:
        records = list(self.state.gpadls)
        assert len(records) <= MAX_GPADLS
        assert sum(record.words for record in records) == self.state.gpadls.words <= MAX_GPADL_WORDS
        assert len(self.state.channels) <= 2047

    @invariant()
    def channels_and_devices_agree(self) -> None:
        assert self.ports == set(self.state.channels)
        for channel_id, channel in self.state.channels.items():
            assert channel.channel_id == channel_id
            assert (channel_id in self.opening) == (channel.activity is DeviceActivity.STARTING)
            assert (channel_id in self.running) == (channel.activity is DeviceActivity.RUNNING)
            assert (channel_id in self.closing) == (channel.activity is DeviceActivity.STOPPING)
            if channel.activity is DeviceActivity.RUNNING:
                assert channel.state is ChannelState.OPEN
        for channel in self.state.offers.values():
            assert (channel.state is ChannelState.CLIENT_RELEASED) == (channel.channel_id == 0)

    @invariant()
    def gpadls_belong_to_channels(self) -> None:
        for record in self.state.gpadls:
            assert record.channel_id in self.state.channels
            in_view = (record.channel_id, record.gpadl_id) in self.mapped
            if record.state is GpadlState.ACCEPTED:
                assert in_view == record.mapped

    @invariant()
    def a_guest_that_is_gone_has_nothing(self) -> None:
        if self.state.phase is not Phase.CONNECTED:
            assert not self.state.connects
            # A socket is its guest's, and no other one ever hears of it.
            assert all(one.rescinded for one in self.state.offers.values() if is_socket(one.offer.flags))
        if self.state.phase is Phase.DISCONNECTED:
            assert self.state.version is None
            for channel in self.state.channels.values():
                # One whose reserved life ends only now is on its way, and nobody can name it.
                assert channel.outlives_connection or not channel.known_to_guest
            assert all(record.state is GpadlState.ACCEPTED or record.silent for record in self.state.gpadls)

    def teardown(self) -> None:
        """However it went, a reset ends with nothing held, and the next guest is served."""
        self.host_resets(True)
        self.service_does_everything()
        assert self.state.phase is Phase.DISCONNECTED
        assert not self.ports | self.opening | self.running | self.closing
        assert not self.mapped
        assert self.state.sockets == 0
        self.contact(Version.V5_3, 0, True)
        assert self.state.version == Version.V5_3


TestHostileGuest = HostileGuest.TestCase
TestHostileGuest.settings = settings(max_examples=examples(60), stateful_step_count=60, deadline=None)
