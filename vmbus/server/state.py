"""The host's end of the channel protocol as a pure state machine: guest messages in, actions out. Root side.

No Trio, no clock, no memory access. Every public method returns the actions that follow, in the order in which they are
to be carried out. A guest's mistake is a `ProtocolFault` among them, never an exception; a ValueError or KeyError is a
mistake of the host's own code.

The rules stand in three layers: `gpadl_rules`, on top of it `channel_rules`, and here the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import assert_never

import msgspec

from hypervisor.wire import Guid, WireError
from vmbus.protocol import messages as m
from vmbus.protocol.hvsocket import MAX_SOCKETS, is_socket
from vmbus.protocol.identifiers import MAX_CHANNELS, SINT, ChannelStatus, ConnectionState
from vmbus.protocol.messages import Message
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.table import Direction, decode_message, describe
from vmbus.protocol.versions import IMPLEMENTED, Ability, abilities, version_text
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.channel_rules import ChannelRules
from vmbus.server.channels import ChannelState, DeviceActivity, ReservedTarget, ServerChannel
from vmbus.server.connection import AfterDisconnect, Contact, Judged, Phase, addressee, judge, pages_problem
from vmbus.server.offers import Offer, OfferKey, check_offer

_LATE_RELEASE = int(m.MessageType.REL_ID_RELEASED).to_bytes(4, "little")
"""Linux's driver, when it is removed, unloads first and gives its channel IDs back after that: no fault, no effect."""
_CONTACTS = (m.InitiateContactLegacy, m.InitiateContact, m.InitiateContact2)


class ServerState(ChannelRules):
    """One guest's connection, its channels and its GPADLs, as the host has them."""

    def __init__(
        self, *, max_version: int | None = None, usable: Callable[[ConnectionPages], bool] = lambda pages: True
    ) -> None:
        """`usable` says whether the guest has the pages that it gives to its connection."""
        super().__init__()
        self._usable = usable
        self.max_version = IMPLEMENTED[0] if max_version is None else max_version
        self._after = AfterDisconnect.RESET
        self._contact: tuple[Contact, bool] | None = None
        self._next_handle = 1
        self._connects: dict[int, act.ConnectSocket] = {}
        self._next_connect = 1
        self.agreed: tuple[Contact, bool] | None = None
        """The guest's contact, and whether it came by connection ID 4, while there is a connection."""
        self.judged: list[Judged] = []
        """Contacts and what came of them, for whoever keeps them, who takes them out."""

    @property
    def channels(self) -> Mapping[int, ServerChannel]:
        """Channels that have an ID, by ID; for looking at only."""
        return MappingProxyType(self._by_id)

    @property
    def offers(self) -> Mapping[int, ServerChannel]:
        """All channels by offer handle, those too that the guest does not know; for looking at only."""
        return MappingProxyType(self._by_handle)

    # ------------------------------------------------------------------------------------------- the guest's messages

    def handle(self, untrusted: bytes, *, multiclient: bool = False) -> list[Action]:
        """Take one message of the guest's. `multiclient` if it came by connection ID 4."""
        if self.phase is Phase.DISCONNECTED and untrusted[: len(_LATE_RELEASE)] == _LATE_RELEASE:
            return []
        try:
            message = decode_message(untrusted, sender=Direction.TO_ROOT, version=self.version, features=self.features)
            self._dispatch(message, untrusted, multiclient)
        except WireError as error:
            self._fault("malformed_message", str(error))
        return self._take()

    def _dispatch(self, message: Message, untrusted: bytes, multiclient: bool) -> None:
        if isinstance(message, _CONTACTS):
            self._take_contact(message, multiclient)
            return
        if isinstance(message, m.Unload):
            self._disconnect(AfterDisconnect.UNLOAD)
            return
        if isinstance(message, m.CloseReservedChannel) and not self.paused:
            self._close_reserved(message)
            return
        if self.phase is not Phase.CONNECTED:
            self._fault("unexpected_message", f"{describe(message)} while {self.phase.value}")
            return
        if self.paused and not isinstance(message, m.Resume):
            self._fault("unexpected_message", f"{describe(message)} while paused")
            return
        match message:
            case m.RequestOffers():
                self._request_offers()
            case m.GpadlHeader():
                self._gpadl_header(message, untrusted[m.GpadlHeader.SIZE :])
            case m.GpadlBody():
                self._gpadl_body(message, untrusted[m.GpadlBody.SIZE :])
            case m.GpadlTeardown():
                self._gpadl_teardown(message)
            case m.OpenChannel() | m.OpenChannel2():
                self._open_channel(message)
            case m.CloseChannel():
                self._close_channel(message)
            case m.RelIdReleased():
                self._rel_id_released(message)
            case m.ModifyChannel():
                self._modify_channel(message)
            case m.OpenReservedChannel():
                self._open_reserved(message)
            case m.Pause():
                self._send(m.PauseResponse())
                self.paused = True
            case m.Resume():
                self._resume()
            case m.TlConnectRequest() | m.TlConnectRequest2():
                self._tl_connect(message)
            case m.ModifyConnection():
                self._modify_connection(message)
            case _:
                raise AssertionError(f"{describe(message)} has no handler")

    def _take_contact(self, contact: Contact, multiclient: bool) -> None:
        other = addressee(contact, multiclient=multiclient)
        if other is None:
            self._initiate_contact(contact, multiclient)
            return
        self._fault("refused_contact", f"{describe(contact)}: {other.words}")
        self.judged.append(Judged(contact.version, False, f"meant for {other.words}, which nobody serves"))
        if other.answer_at is not None:
            self._send_reserved(m.VersionResponse(supported=0), ReservedTarget(*other.answer_at))

    def _initiate_contact(self, contact: Contact, multiclient: bool) -> None:
        if self.phase is not Phase.DISCONNECTED:
            # A new kernel took over without a word: whatever the old one had is closed and released first.
            self._disconnect(AfterDisconnect.RECONNECT, (contact, multiclient))
            return
        verdict = judge(contact, max_version=self.max_version, usable=self._usable)
        if verdict.version is None:
            self._fault("refused_contact", f"{describe(contact)}: {verdict.refusal}")
            self.judged.append(Judged(contact.version, False, verdict.refusal))
        else:
            self.judged.append(Judged(contact.version, True, "both speak it; guests ask from their highest down"))
            self.version, self.features = verdict.version, verdict.features
            self._enter(Phase.CONNECTED)
            self.agreed = contact, multiclient
            self._set_pages(verdict.pages)
        self._actions.append(act.SetMessageTarget(verdict.target_vp, SINT, or_first=verdict.version is None))
        self._send(verdict.response)

    def _modify_connection(self, message: m.ModifyConnection) -> None:
        """Other monitor pages, or none: only while no open channel uses those that there are."""
        pages = msgspec.structs.replace(
            self.pages,
            to_child=message.parent_to_child_monitor_page,
            to_root=message.child_to_parent_monitor_page,
        )
        problem = pages_problem(pages, self._usable)
        for channel in self._by_id.values():
            if channel.monitor_id is not None and channel.activity is not DeviceActivity.IDLE:
                problem = f"channel {channel.channel_id} uses the monitor pages"
        if problem:
            self._fault("unexpected_message", f"{describe(message)}: {problem}")
        else:
            self._set_pages(pages)
            self._agree_on_pages(pages)
        state = ConnectionState.FAILED_UNKNOWN_FAILURE if problem else ConnectionState.SUCCESSFUL
        self._send(m.ModifyConnectionResponse(connection_state=state))

    def _agree_on_pages(self, pages: ConnectionPages) -> None:
        """The contact as it would be made now; a restored guest's is."""
        assert self.agreed is not None, "only a connected guest modifies its connection"
        contact, multiclient = self.agreed
        moved = msgspec.structs.replace(
            contact,  # type: ignore[type-var]  # a layout is a struct, which its declaration does not show
            parent_to_child_monitor_page=pages.to_child,
            child_to_parent_monitor_page=pages.to_root,
        )
        self.agreed = moved, multiclient

    def _set_pages(self, pages: ConnectionPages) -> None:
        if pages != self.pages:
            self.pages = pages
            self._actions.append(act.UsePages(pages))

    def _request_offers(self) -> None:
        if self.offers_sent:
            self._fault("unexpected_message", "REQUEST_OFFERS a second time")
            return
        self.offers_sent = True
        for channel in sorted(self._by_handle.values(), key=lambda channel: channel.offer.sort_key):
            if channel.state is ChannelState.CLIENT_RELEASED:
                self._send_offer(channel)
            elif channel.state is ChannelState.CLOSED:
                self._say_offer(channel)  # reserved until just now: closed between the contact and this message
        self._send(m.AllOffersDelivered())

    def _resume(self) -> None:
        if not self.paused:
            self._fault("unexpected_message", "RESUME without PAUSE")
            return
        self.paused = False
        held, self.held = self.held, []
        for message in held:
            self._send(message)

    def _tl_connect(self, message: m.TlConnectRequest | m.TlConnectRequest2) -> None:
        number, self._next_connect = self._next_connect, self._next_connect + 1
        self._connects[number] = act.ConnectSocket(number, message.endpoint, message.service)
        self._actions.append(self._connects[number])

    # -------------------------------------------------------------------------------------------- Hyper-V sockets

    @property
    def connects(self) -> Mapping[int, act.ConnectSocket]:
        """The guest's requests for sockets that are not answered, by number; for looking at only."""
        return MappingProxyType(self._connects)

    @property
    def sockets(self) -> int:
        """Channels of sockets, those too that the guest has yet to let go of."""
        return sum(is_socket(channel.offer.flags) for channel in self._by_key.values())

    def socket_refusal(self, endpoint: Guid) -> str:
        """Why there can be no socket with this endpoint now, for people; empty if there can."""
        if self.version is not None and Ability.SOCKETS not in abilities(self.version):
            return f"its bus has version {version_text(self.version)}; sockets come with 4.0"
        for channel in self._by_key.values():
            if channel.offer.instance == endpoint and not channel.rescinded:
                return f"its endpoint {endpoint} is that of {channel.offer}"
        if self.sockets >= MAX_SOCKETS:
            return f"{MAX_SOCKETS} sockets are the limit of a guest"
        if len(self._by_id) >= MAX_CHANNELS:
            return f"its guest has all {MAX_CHANNELS} channels in use"
        return ""

    def connect_answered(self, number: int, *, refused: bool) -> list[Action]:
        """The answer to `ConnectSocket`, after its offer where there is one; nothing if its guest has left."""
        request = self._connects.pop(number, None)
        if request is not None and refused and Ability.SOCKET_RESULTS in abilities(self.version):
            self._send(
                m.TlConnectResult(
                    endpoint=request.endpoint, service=request.service, status=ChannelStatus.CONNECTION_REFUSED
                )
            )
        return self._take()

    # ------------------------------------------------------------------------------------------------ the host's side

    def offer(self, offer: Offer) -> tuple[int, list[Action]]:
        """Offer a device, now or when the guest asks; its handle. ValueError for one that is offered already."""
        live = [channel for channel in self._by_key.values() if not channel.rescinded]
        check_offer(offer, {channel.offer.key for channel in live})
        if len(live) >= MAX_CHANNELS:
            raise ValueError(f"{offer}: {MAX_CHANNELS} channels are the limit of a guest")
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        channel = self._by_key.get(offer.key)
        if channel is None:
            channel = self._by_key[offer.key] = ServerChannel(offer, handle)
            self._by_handle[handle] = channel
            if self._offering:
                self._send_offer(channel)
            return handle, self._take()
        # The device is back while the guest, or its own past life, still holds the channel's ID.
        del self._by_handle[channel.handle]
        channel.offer, channel.handle, channel.rescinded = offer, handle, False
        self._by_handle[handle] = channel
        if channel.state is ChannelState.REVOKED:
            self._set(channel, ChannelState.REOFFERED)
        else:
            channel.offer_due = True
        return handle, self._take()

    def plan_ids(self, wanted: Mapping[OfferKey, int]) -> None:
        """Before there is a guest: which channel IDs these offers are to get. ValueError where that cannot be."""
        self._ids.plan(wanted)

    def rescind(self, handle: int) -> list[Action]:
        """Withdraw a device; its subchannels first. KeyError for a handle that is not, or no longer, an offer's."""
        channel = self._by_handle[handle]
        if channel.rescinded:
            raise KeyError(handle)
        if channel.offer.subchannel_index == 0:
            for sub in list(self._by_handle.values()):
                if sub is not channel and not sub.rescinded and sub.offer.key[:2] == channel.offer.key[:2]:
                    self._rescind(sub)
        self._rescind(channel)
        return self._take()

    def reset(self) -> list[Action]:
        """The machine was reset: the guest is gone without a word. Offers stay; wait for `phase` DISCONNECTED."""
        self._actions.append(act.DropMessageTarget())
        self._disconnect(AfterDisconnect.RESET)
        return self._take()

    # ----------------------------------------------------------------------------------------------------- disconnect

    def _disconnect(self, after: AfterDisconnect, contact: tuple[Contact, bool] | None = None) -> None:
        """Release and close everything; then go on with `after`. A later reason replaces an earlier one."""
        self._after, self._contact = after, contact
        self._connects.clear()
        reset = after is AfterDisconnect.RESET
        if self.phase is Phase.CONNECTED or (self.phase is Phase.DISCONNECTED and reset and self._by_id):
            self._enter(Phase.DISCONNECTING)
            self.paused = False
            self.held.clear()
        if self.phase is Phase.DISCONNECTING:
            for channel in list(self._by_id.values()):
                if channel.outlives_connection and not reset:
                    self._silence(channel, but_accepted=True)
                elif channel.known_to_guest:
                    self._client_gone(channel)
        for channel in list(self._by_key.values()):
            if is_socket(channel.offer.flags) and not channel.rescinded:
                self._rescind(channel)  # a connection of the guest that goes is nothing to the next one

    def _settle(self) -> None:
        """When the last channel is free, but for reserved ones, the disconnect is done."""
        if self.phase is not Phase.DISCONNECTING:
            return
        if not all(channel.outlives_connection for channel in self._by_id.values()):
            return
        self._enter(Phase.DISCONNECTED)
        self._set_pages(ConnectionPages())
        answers_unload = Ability.UNLOAD_COMPLETE in abilities(self.version)
        self.version, self.features, self.offers_sent = None, 0, False
        self.agreed = None
        match self._after:
            case AfterDisconnect.RESET:
                pass
            case AfterDisconnect.UNLOAD:
                if answers_unload:
                    self._send(m.UnloadComplete())
            case AfterDisconnect.RECONNECT:
                assert self._contact is not None
                (contact, multiclient), self._contact = self._contact, None
                self._initiate_contact(contact, multiclient)
            case _:
                assert_never(self._after)

    def _take(self) -> list[Action]:
        # Whatever has just ended may have been the last thing that a disconnect was waiting for.
        self._settle()
        return super()._take()
