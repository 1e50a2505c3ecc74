"""The client's protocol: host messages and driver wishes in, messages to post and events out. Child side.

No Trio, no clock, no memory. Every method returns what is to be done, in order: `Post`s, and events that somebody may
wait for. What the host sends that makes no sense is counted and dropped, as Linux does; the guest goes on waiting.

An exchange that its driver gave up is brought to its end here: a GPADL that is created after all is torn down, a
channel that opens after all is closed. The host may use the pages until it has said that it does not.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from typing import assert_never

import attrs

from hypervisor.monitor_page import TRIGGERS
from hypervisor.wire import Guid, WireError
from vmbus.gpadl import GpadlRange, encode_gpadl
from vmbus.protocol import IMPLEMENTED, Direction, Feature, decode_message, version_text
from vmbus.protocol import messages as m
from vmbus.protocol.features import SIGNAL_PARAMETERS
from vmbus.protocol.hvsocket import is_socket
from vmbus.protocol.identifiers import (
    FIRST_GPADL_ID,
    MESSAGE_CONNECTION,
    MESSAGE_CONNECTION_MULTICLIENT,
    SHARED_EVENT_CONNECTION,
    ChannelStatus,
    ConnectionState,
)
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.versions import Ability, abilities


class VmbusError(ConnectionError):
    """The bus does not do what was asked: the host refused, or the device is gone."""


class Phase(enum.Enum):
    """Where the connection stands."""

    DISCONNECTED = enum.auto()
    CONTACTING = enum.auto()
    """INITIATE_CONTACT is under way, for the highest version not refused yet."""
    CONNECTED = enum.auto()
    UNLOADING = enum.auto()


class ChannelPhase(enum.Enum):
    """Where an offered channel stands."""

    CLOSED = enum.auto()
    OPENING = enum.auto()
    ABANDONED = enum.auto()
    """Opening, but whoever wanted it has gone: to be closed when it is open."""
    OPEN = enum.auto()


class GpadlPhase(enum.Enum):
    """Where a GPADL stands."""

    CREATING = enum.auto()
    ABANDONED = enum.auto()
    """Creating, but unwanted: to be torn down when it is created."""
    CREATED = enum.auto()
    TEARING_DOWN = enum.auto()


@attrs.frozen
class OfferedDevice:
    """A device that the host offers, by the channel that leads to it."""

    channel_id: int
    interface: Guid
    """What kind of device; drivers bind to it."""
    instance: Guid
    """Which one; the same after a reboot."""
    flags: int
    user_defined: bytes
    subchannel_index: int
    """0 for a primary channel; a subchannel has its primary's interface and instance."""
    mmio_megabytes: int
    connection_id: int
    """What to signal to wake the host."""
    dedicated: bool = True
    """That connection is this channel's own, so no bit in the interrupt page has to say which channel it is about."""
    monitor_id: int | None = None
    """The trigger to set in the monitor page in place of a signal."""


@attrs.frozen
class Contact:
    """One attempt to connect."""

    version: int
    asked_bytes: int
    """The size of INITIATE_CONTACT."""
    supported: bool
    answer_bytes: int
    """The size of VERSION_RESPONSE as far as it is understood; 0 where the hypervisor knew no such connection."""


@attrs.define
class _Channel:
    offer: OfferedDevice
    phase: ChannelPhase = ChannelPhase.CLOSED
    ring_gpadl: int = 0
    modifying: bool = False
    """MODIFY_CHANNEL has not been answered."""


@attrs.define
class _Gpadl:
    channel_id: int
    phase: GpadlPhase = GpadlPhase.CREATING


@attrs.frozen
class Post:
    """Post this message; what follows it must not overtake it."""

    connection_id: int
    payload: bytes
    is_contact: bool = False
    """INVALID_CONNECTION_ID for this one means that the host does not know the version's way to connect."""


@attrs.frozen
class Connected:
    """A version is agreed on, and the offers are asked for."""

    version: int
    features: int


@attrs.frozen
class ConnectionFailed:
    """No connection came about."""

    reason: str


@attrs.frozen
class Offered:
    """A device is there."""

    offer: OfferedDevice


@attrs.frozen
class SocketOffered:
    """A Hyper-V socket, which is no device: somebody waits for it, or it is to be released."""

    offer: OfferedDevice


@attrs.frozen
class SocketRefused:
    """Nobody in the host takes what was asked for with this endpoint; from 4.1 on."""

    endpoint: Guid


@attrs.frozen
class OffersDelivered:
    """What was there at the connection has been offered."""


@attrs.frozen
class Rescinded:
    """The device is gone; its channel is closed and its ID given back already."""

    offer: OfferedDevice
    gpadls: tuple[int, ...]
    """Those of the channel; the host does not look at their pages any more."""


@attrs.frozen
class ModifyAnswered:
    """The host has moved a channel's interrupts, or has not; from 5.3 on."""

    channel_id: int
    status: int


@attrs.frozen
class GpadlAnswered:
    """The host took a GPADL, or not."""

    gpadl_id: int
    status: int


@attrs.frozen
class GpadlGone:
    """The host does not look at these pages any more, or never did."""

    gpadl_id: int


@attrs.frozen
class OpenAnswered:
    """The host opened a channel, or not."""

    channel_id: int
    status: int


@attrs.frozen
class Unloaded:
    """The connection has ended; the host holds nothing of ours."""


Output = (
    Post
    | Connected
    | ConnectionFailed
    | Offered
    | SocketOffered
    | SocketRefused
    | OffersDelivered
    | Rescinded
    | GpadlAnswered
    | GpadlGone
    | OpenAnswered
    | ModifyAnswered
    | Unloaded
)


class ClientState:
    """One guest's connection to the bus."""

    def __init__(
        self,
        versions: Sequence[int] = IMPLEMENTED,
        *,
        features: int = Feature.NONE,
        client_id: Guid | None = None,
        target_vp: int = 0,
    ) -> None:
        """`versions` are tried in this order. `features` are asked for at 6.0; `target_vp` takes the messages."""
        self.phase = Phase.DISCONNECTED
        self.version: int | None = None
        """Agreed on; while contacting, none."""
        self.features = 0
        """Granted."""
        self.ignored: Counter[str] = Counter()
        """Messages of the host's that made no sense, by reason."""
        self._versions = tuple(versions)
        self._wanted_features = int(features) | (Feature.CLIENT_ID if client_id is not None else 0)
        self._client_id = client_id
        self._target_vp = target_vp
        self._untried: list[int] = []
        self._asked = 0
        self.contacts: list[Contact] = []
        """Every attempt of the last `connect`, in order."""
        self._asked_bytes = 0
        self.pages = ConnectionPages()
        """What the guest gives to its connections; set before `connect`."""
        self._connection_id = MESSAGE_CONNECTION
        self._channels: dict[int, _Channel] = {}
        self._gpadls: dict[int, _Gpadl] = {}
        self._next_gpadl_id = FIRST_GPADL_ID

    @property
    def abilities(self) -> Ability:
        """What the version agreed on can do; nothing without one."""
        return abilities(self.version)

    @property
    def offers(self) -> list[OfferedDevice]:
        """What is on offer now, in the order in which it came; sockets are not."""
        return [channel.offer for channel in self._channels.values() if not is_socket(channel.offer.flags)]

    def channel_phase(self, channel_id: int) -> ChannelPhase | None:
        """None where that channel is not on offer."""
        channel = self._channels.get(channel_id)
        return None if channel is None else channel.phase

    # ----------------------------------------------------------------------------------------------------- connection

    def connect(self) -> list[Output]:
        """Begin with the highest version."""
        assert self.phase is Phase.DISCONNECTED
        self._untried = list(reversed(self._versions))
        self._channels.clear()
        self._gpadls.clear()
        self.contacts.clear()
        return self._contact()

    def contact_impossible(self) -> list[Output]:
        """The hypervisor knows no such connection as this version is asked for on: try the next version."""
        if self.phase is not Phase.CONTACTING:
            return []
        self.contacts.append(Contact(self._asked, self._asked_bytes, False, 0))
        return self._contact()

    def unload(self) -> list[Output]:
        """Leave the bus: nothing is closed one by one, and nothing but the host's answer counts any more."""
        assert self.phase is Phase.CONNECTED
        self.phase = Phase.UNLOADING
        leaving = self._post(m.Unload())
        if Ability.UNLOAD_COMPLETE in self.abilities:
            return [leaving]
        return [leaving, *self._unload_complete()]

    def _contact(self) -> list[Output]:
        if not self._untried:
            self.phase = Phase.DISCONNECTED
            tried = ", ".join(map(version_text, self._versions))
            return [ConnectionFailed(f"the host speaks none of the versions {tried}")]
        self.phase = Phase.CONTACTING
        self._asked = version = self._untried.pop()
        modern = Ability.FEATURES in abilities(version)
        contact = m.initiate_contact(
            version,
            target_vp=self._target_vp,
            features=self._wanted_features if modern else 0,
            client_id=self._client_id if modern else None,
            pages=self.pages,
        )
        names_target = Ability.CONTACT_TARGET in abilities(version)
        to = MESSAGE_CONNECTION_MULTICLIENT if names_target else MESSAGE_CONNECTION
        self._asked_bytes = contact.SIZE
        return [Post(to, contact.encode(), is_contact=True)]

    def _version_response(self, response: m.VersionResponse | m.VersionResponse2 | m.VersionResponse3) -> list[Output]:
        if self.phase is not Phase.CONTACTING:
            return self._ignore("a version response that nothing asked for")
        self.contacts.append(Contact(self._asked, self._asked_bytes, bool(response.supported), response.SIZE))
        if not response.supported:
            return self._contact()
        if response.connection_state != ConnectionState.SUCCESSFUL:
            self.phase = Phase.DISCONNECTED
            return [ConnectionFailed(f"the host could not connect: state {response.connection_state}")]
        self.phase = Phase.CONNECTED
        self.version = version = self._asked
        can = self.abilities
        self._connection_id = response.detail if Ability.CONTACT_TARGET in can else MESSAGE_CONNECTION
        self.features = 0
        if Ability.FEATURES in can and not isinstance(response, m.VersionResponse):
            self.features = response.features & self._wanted_features
        return [Connected(version, self.features), self._post(m.RequestOffers())]

    def _unload_complete(self) -> list[Output]:
        if self.phase is not Phase.UNLOADING:
            return self._ignore("an unload answer that nothing asked for")
        self.phase = Phase.DISCONNECTED
        self.version = None
        self.features = 0
        gone: list[Output] = [GpadlGone(gpadl_id) for gpadl_id in self._gpadls]
        self._gpadls.clear()
        self._channels.clear()
        return [*gone, Unloaded()]

    # --------------------------------------------------------------------------------------------------------- wishes

    def create_gpadl(self, channel_id: int, ranges: Sequence[GpadlRange]) -> tuple[int, list[Output]]:
        """Show pages to the host; the ID, and what to do. `VmbusError` for a channel that is not on offer."""
        self._channel(channel_id)
        gpadl_id = self._next_gpadl_id
        posts: list[Output] = [
            Post(self._connection_id, payload) for payload in encode_gpadl(channel_id, gpadl_id, ranges)
        ]
        self._next_gpadl_id += 1
        self._gpadls[gpadl_id] = _Gpadl(channel_id)
        return gpadl_id, posts

    def teardown_gpadl(self, gpadl_id: int) -> list[Output]:
        """Take pages back, also in the middle of their creation. `GpadlGone` follows, now or when the host says so."""
        gpadl = self._gpadls.get(gpadl_id)
        if gpadl is None:
            return [GpadlGone(gpadl_id)]
        match gpadl.phase:
            case GpadlPhase.CREATING:
                gpadl.phase = GpadlPhase.ABANDONED
                return []
            case GpadlPhase.CREATED:
                gpadl.phase = GpadlPhase.TEARING_DOWN
                return [self._post(m.GpadlTeardown(channel_id=gpadl.channel_id, gpadl_id=gpadl_id))]
            case GpadlPhase.ABANDONED | GpadlPhase.TEARING_DOWN:
                return []
            case _:
                assert_never(gpadl.phase)

    def open(
        self, channel_id: int, gpadl_id: int, *, downstream_page: int, user_data: bytes, target_vp: int
    ) -> list[Output]:
        """Open a channel whose rings are in a GPADL. `VmbusError`; `RuntimeError` where it is open already."""
        channel = self._channel(channel_id)
        if channel.phase is not ChannelPhase.CLOSED:
            raise RuntimeError(f"channel {channel_id} is {channel.phase.name.lower()} already")
        channel.phase = ChannelPhase.OPENING
        channel.ring_gpadl = gpadl_id
        user_data = user_data.ljust(120, b"\0")
        if self.features & SIGNAL_PARAMETERS:
            longer = m.OpenChannel2(
                channel_id=channel_id,
                open_id=channel_id,
                gpadl_id=gpadl_id,
                target_vp=target_vp,
                downstream_page=downstream_page,
                user_data=user_data,
                connection_id=channel.offer.connection_id,
                event_flag=channel_id,
            )
            return [self._post(longer)]
        usual = m.OpenChannel(
            channel_id=channel_id,
            open_id=channel_id,
            gpadl_id=gpadl_id,
            target_vp=target_vp,
            downstream_page=downstream_page,
            user_data=user_data,
        )
        return [self._post(usual)]

    def modify(self, channel_id: int, target_vp: int) -> list[Output]:
        """Have another processor take an open channel's interrupts. `VmbusError` where the version cannot."""
        if Ability.MODIFY_CHANNEL not in self.abilities:
            raise VmbusError("this version has no MODIFY_CHANNEL")
        channel = self._channel(channel_id)
        if channel.phase is not ChannelPhase.OPEN:
            raise VmbusError(f"channel {channel_id} is not open")
        channel.modifying = Ability.MODIFY_RESPONSE in self.abilities
        return [self._post(m.ModifyChannel(channel_id=channel_id, target_vp=target_vp))]

    def close(self, channel_id: int) -> list[Output]:
        """Close a channel and tear down the GPADL of its rings, also in the middle of opening."""
        channel = self._channels.get(channel_id)
        if channel is None:
            return []
        match channel.phase:
            case ChannelPhase.OPEN:
                channel.phase = ChannelPhase.CLOSED
                closing = self._post(m.CloseChannel(channel_id=channel_id))
                return [closing, *self.teardown_gpadl(channel.ring_gpadl)]
            case ChannelPhase.OPENING:
                channel.phase = ChannelPhase.ABANDONED
                return []
            case ChannelPhase.CLOSED | ChannelPhase.ABANDONED:
                return []
            case _:
                assert_never(channel.phase)

    def release(self, offer: OfferedDevice) -> list[Output]:
        """Give a closed channel's ID back, if the host has not withdrawn it: nothing is to be had on it any more."""
        channel = self._channels.get(offer.channel_id)
        if channel is None or channel.offer is not offer or channel.phase is not ChannelPhase.CLOSED:
            return []
        del self._channels[offer.channel_id]
        return [self._post(m.RelIdReleased(channel_id=offer.channel_id))]

    def request_socket(self, endpoint: Guid, service: Guid) -> list[Output]:
        """Ask for a stream to a service of the host's. An offer with that endpoint follows, or `SocketRefused`."""
        if self.phase is not Phase.CONNECTED:
            raise VmbusError("the bus is not connected")
        return [self._post(m.TlConnectRequest(endpoint=endpoint, service=service))]

    # ------------------------------------------------------------------------------------------------------- messages

    def receive(self, payload: bytes) -> list[Output]:
        """One message of the host's."""
        if self.phase is Phase.DISCONNECTED:
            return self._ignore("a message without a connection")
        try:
            message = decode_message(payload, sender=Direction.TO_CHILD, version=self.version, features=self.features)
        except WireError as error:
            return self._ignore(f"a bad message: {type(error).__name__}")
        if self.phase is Phase.UNLOADING and not isinstance(message, m.UnloadComplete):
            return self._ignore("a message while unloading")
        match message:
            case m.VersionResponse() | m.VersionResponse2() | m.VersionResponse3():
                return self._version_response(message)
            case m.OfferChannel():
                return self._offer(message)
            case m.AllOffersDelivered():
                return [OffersDelivered()]
            case m.RescindChannelOffer():
                return self._rescind(message)
            case m.GpadlCreated():
                return self._gpadl_created(message)
            case m.GpadlTorndown():
                return self._gpadl_torndown(message)
            case m.OpenChannelResult():
                return self._open_result(message)
            case m.ModifyChannelResponse():
                return self._modify_response(message)
            case m.UnloadComplete():
                return self._unload_complete()
            case m.TlConnectResult():
                return [SocketRefused(message.endpoint)]
            case _:
                return self._ignore(f"{message.TYPE.name}, which this guest never asks for")

    def _offer(self, offer: m.OfferChannel) -> list[Output]:
        if offer.channel_id in self._channels or not 0 < offer.channel_id < 2048:
            return self._ignore("an offer of a channel that cannot be new")
        # The oldest version has the two fields, and no meaning for them.
        dedicated = Ability.DEDICATED_SIGNALS in self.abilities and bool(offer.is_dedicated)
        monitored = self.pages.monitored and bool(offer.monitor_allocated) and offer.monitor_id < TRIGGERS
        offered = OfferedDevice(
            channel_id=offer.channel_id,
            interface=offer.interface,
            instance=offer.instance,
            flags=offer.flags,
            user_defined=offer.user_defined,
            subchannel_index=offer.subchannel_index,
            mmio_megabytes=offer.mmio_megabytes,
            connection_id=offer.connection_id if dedicated else SHARED_EVENT_CONNECTION,
            dedicated=dedicated,
            monitor_id=offer.monitor_id if monitored else None,
        )
        self._channels[offer.channel_id] = _Channel(offered)
        return [SocketOffered(offered) if is_socket(offer.flags) else Offered(offered)]

    def _rescind(self, rescind: m.RescindChannelOffer) -> list[Output]:
        """Close if open, then give the ID back. GPADLs are not torn down: with the device they are gone (so Linux)."""
        channel_id = rescind.channel_id
        channel = self._channels.pop(channel_id, None)
        if channel is None:
            return self._ignore("a rescind of a channel that was not offered")
        outputs: list[Output] = []
        if channel.phase is ChannelPhase.OPEN:
            outputs.append(self._post(m.CloseChannel(channel_id=channel_id)))
        outputs.append(self._post(m.RelIdReleased(channel_id=channel_id)))
        gone = tuple(gpadl_id for gpadl_id, gpadl in self._gpadls.items() if gpadl.channel_id == channel_id)
        for gpadl_id in gone:
            del self._gpadls[gpadl_id]
        return [Rescinded(channel.offer, gone), *outputs]

    def _gpadl_created(self, created: m.GpadlCreated) -> list[Output]:
        gpadl = self._gpadls.get(created.gpadl_id)
        waiting = (GpadlPhase.CREATING, GpadlPhase.ABANDONED)
        if gpadl is None or gpadl.channel_id != created.channel_id or gpadl.phase not in waiting:
            return self._ignore("a GPADL answer that nothing asked for")
        abandoned = gpadl.phase is GpadlPhase.ABANDONED
        if created.status != ChannelStatus.SUCCESS:
            del self._gpadls[created.gpadl_id]
            return [GpadlAnswered(created.gpadl_id, created.status), GpadlGone(created.gpadl_id)]
        gpadl.phase = GpadlPhase.CREATED
        if abandoned:
            return self.teardown_gpadl(created.gpadl_id)
        return [GpadlAnswered(created.gpadl_id, created.status)]

    def _gpadl_torndown(self, torndown: m.GpadlTorndown) -> list[Output]:
        gpadl = self._gpadls.get(torndown.gpadl_id)
        if gpadl is None or gpadl.phase is not GpadlPhase.TEARING_DOWN:
            return self._ignore("a teardown answer that nothing asked for")
        del self._gpadls[torndown.gpadl_id]
        return [GpadlGone(torndown.gpadl_id)]

    def _open_result(self, result: m.OpenChannelResult) -> list[Output]:
        channel = self._channels.get(result.channel_id)
        waiting = (ChannelPhase.OPENING, ChannelPhase.ABANDONED)
        if channel is None or channel.phase not in waiting or result.open_id != result.channel_id:
            return self._ignore("an open answer that nothing asked for")
        abandoned = channel.phase is ChannelPhase.ABANDONED
        if result.status != ChannelStatus.SUCCESS:
            channel.phase = ChannelPhase.CLOSED
            return [OpenAnswered(result.channel_id, result.status), *self.teardown_gpadl(channel.ring_gpadl)]
        channel.phase = ChannelPhase.OPEN
        if abandoned:
            return self.close(result.channel_id)
        return [OpenAnswered(result.channel_id, result.status)]

    def _modify_response(self, response: m.ModifyChannelResponse) -> list[Output]:
        channel = self._channels.get(response.channel_id)
        if channel is None or not channel.modifying:
            return self._ignore("a modify answer that nothing asked for")
        channel.modifying = False
        return [ModifyAnswered(response.channel_id, response.status)]

    # --------------------------------------------------------------------------------------------------------- inside

    def _channel(self, channel_id: int) -> _Channel:
        channel = self._channels.get(channel_id)
        if channel is None or self.phase is not Phase.CONNECTED:
            raise VmbusError(f"channel {channel_id} is not on offer")
        return channel

    def _post(self, message: m.Message) -> Post:
        return Post(self._connection_id, message.encode())

    def _ignore(self, reason: str) -> list[Output]:
        self.ignored[reason] += 1
        return []
