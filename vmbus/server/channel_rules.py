"""The rules for channels: offer, open, close, modify, rescind, release. Root side."""

from __future__ import annotations

from typing import assert_never

from hypervisor.monitor_page import TRIGGERS
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature, offer_flags_for
from vmbus.protocol.identifiers import INTERRUPTS_OFF, NO_MONITOR, ChannelStatus, event_connection_id
from vmbus.protocol.messages import Message
from vmbus.protocol.table import describe
from vmbus.protocol.versions import Ability, abilities
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.channels import ChannelState, DeviceActivity, OpenRequest, ReservedTarget, ServerChannel
from vmbus.server.connection import Phase
from vmbus.server.gpadl_rules import GpadlRules
from vmbus.server.gpadls import GpadlState, ServerGpadl
from vmbus.server.offers import ChannelIds, OfferKey


class ChannelRules(GpadlRules):
    """One channel at a time: who may do what in which of its ten states."""

    def __init__(self) -> None:
        super().__init__()
        self.offers_sent = False
        """REQUEST_OFFERS has come: later offers are hot."""
        self._ids = ChannelIds()
        self._by_handle: dict[int, ServerChannel] = {}
        self._by_key: dict[OfferKey, ServerChannel] = {}

    # ------------------------------------------------------------------------------------------- the guest's messages

    def _open_channel(self, message: OpenRequest) -> None:
        channel = self._named(message.channel_id, message)
        if channel is None:
            return
        match channel.state:
            case ChannelState.CLOSED:
                self._start_open(channel, message)
            case ChannelState.CLOSING if channel.reserved is not None:
                self._misplaced(channel, message)  # that close has an answer to wait for
            case ChannelState.CLOSING:
                channel.reopen = message
                self._set(channel, ChannelState.CLOSING_REOPEN)
            case ChannelState.REVOKED | ChannelState.REOFFERED:
                pass  # it crossed our RESCIND
            case ChannelState.OPENING | ChannelState.OPEN | ChannelState.CLOSING_REOPEN:
                self._misplaced(channel, message)
            case _:
                self._unreachable(channel)

    def _open_reserved(self, message: m.OpenReservedChannel) -> None:
        channel = self._named(message.channel_id, message)
        if channel is None or channel.withdrawn:
            return
        if channel.state is not ChannelState.CLOSED:
            self._misplaced(channel, message)
            return
        channel.reserved = ReservedTarget(message.target_vp, message.target_sint)
        request = m.OpenChannel(
            channel_id=message.channel_id,
            gpadl_id=message.gpadl_id,
            target_vp=INTERRUPTS_OFF,  # as on Hyper-V: who opens it, a crash dump say, polls
            downstream_page=message.downstream_page,
        )
        self._start_open(channel, request)

    def _close_reserved(self, message: m.CloseReservedChannel) -> None:
        """Legal without a connection too."""
        channel = self._named(message.channel_id, message)
        if channel is None or channel.withdrawn:
            return
        if channel.state is not ChannelState.OPEN or channel.reserved is None:
            self._misplaced(channel, message)
            return
        channel.reserved = ReservedTarget(message.target_vp, message.target_sint)
        self._stop_device(channel)
        self._set(channel, ChannelState.CLOSING)

    def _start_open(self, channel: ServerChannel, request: OpenRequest) -> None:
        """Check what the guest asks for, as far as that needs no memory, and have the device started."""
        record = self.gpadls.get(request.gpadl_id, channel.channel_id)
        refusal = _ring_refusal(record, request.downstream_page)
        if record is None or refusal:
            self._fault("refused_open", f"{describe(request)}: {refusal}")
            self._open_failed(channel, request)
            return
        assert self.version is not None, "only a connected guest opens channels"
        channel.request = request
        channel.activity = DeviceActivity.STARTING
        self._set(channel, ChannelState.OPENING)
        self._actions.append(
            act.OpenDevice(
                channel.channel_id,
                channel.handle,
                record.ranges[0],
                record.gpadl_id,
                request.downstream_page,
                request.target_vp,
                request.user_data,
                self.version,
                *self._signals(request),
                None if channel.reserved or request.target_vp == INTERRUPTS_OFF else channel.monitor_id,
            )
        )

    def _signals(self, request: OpenRequest) -> tuple[int, int]:
        """Connection ID and event flag of a channel: its own, or those of the guest's choice where it may choose."""
        if isinstance(request, m.OpenChannel2) and self.features & Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS:
            return request.connection_id, request.event_flag
        return event_connection_id(request.channel_id), request.channel_id

    def _open_failed(self, channel: ServerChannel, request: OpenRequest) -> None:
        self._send_open_result(channel, request, ChannelStatus.FAILURE)
        channel.reserved = None

    def _close_channel(self, message: m.CloseChannel) -> None:
        channel = self._named(message.channel_id, message)
        if channel is None:
            return
        match channel.state:
            case ChannelState.OPEN if channel.reserved is not None:
                self._misplaced(channel, message)  # CLOSE_RESERVED_CHANNEL is what closes it
            case ChannelState.OPEN:
                self._stop_device(channel)
                self._set(channel, ChannelState.CLOSING)
            case ChannelState.REVOKED | ChannelState.REOFFERED:
                pass  # it crossed our RESCIND, or the guest is tidy; the device was stopped already
            case ChannelState.CLOSED | ChannelState.OPENING | ChannelState.CLOSING | ChannelState.CLOSING_REOPEN:
                self._misplaced(channel, message)
            case _:
                self._unreachable(channel)

    def _rel_id_released(self, message: m.RelIdReleased) -> None:
        channel = self._named(message.channel_id, message)
        if channel is None:
            return
        match channel.state:
            case ChannelState.CLOSING if channel.reserved is not None:
                self._misplaced(channel, message)
            case ChannelState.CLOSED | ChannelState.CLOSING | ChannelState.REVOKED:
                self._client_gone(channel)
            case ChannelState.REOFFERED:
                channel.offer_due = True
                self._client_gone(channel)
            case ChannelState.OPENING | ChannelState.OPEN | ChannelState.CLOSING_REOPEN:
                self._misplaced(channel, message)
            case _:
                self._unreachable(channel)

    def _modify_channel(self, message: m.ModifyChannel) -> None:
        channel = self._by_id.get(message.channel_id)
        refusal = ""
        if channel is None or channel.state is not ChannelState.OPEN:
            refusal = "not open"
        elif channel.reserved is not None:
            refusal = "reserved"
        elif channel.target_vp == INTERRUPTS_OFF or message.target_vp == INTERRUPTS_OFF:
            refusal = "interrupts are off"
        if channel is None or refusal:
            self._fault("unexpected_message", f"{describe(message)}: {refusal}")
            self._send_modify_response(message.channel_id, ok=False)
        elif not channel.modifying:
            channel.modifying = True
            self._actions.append(act.RetargetChannel(channel.channel_id, message.target_vp))
        elif self._answers_modify:
            self._fault("unexpected_message", f"{describe(message)}: the last one is not answered")
        else:
            channel.next_target_vp = message.target_vp

    # ------------------------------------------------------------------------------------------ the service's answers

    def channel_opened(self, channel_id: int, ok: bool) -> list[Action]:
        """The answer to `OpenDevice`."""
        channel = self._by_id[channel_id]
        assert channel.activity is DeviceActivity.STARTING
        assert channel.request is not None
        channel.activity = DeviceActivity.RUNNING if ok else DeviceActivity.IDLE
        match channel.state:
            case ChannelState.OPENING:
                channel.target_vp = channel.request.target_vp
                if ok:
                    self._set(channel, ChannelState.OPEN)
                    self._send_open_result(channel, channel.request, ChannelStatus.SUCCESS)
                else:
                    self._set(channel, ChannelState.CLOSED)
                    self._open_failed(channel, channel.request)
                    self._leave_behind(channel)
            case ChannelState.OPENING_CLIENT_RELEASE:
                self._stop_device(channel)
                self._set(channel, ChannelState.CLOSING_CLIENT_RELEASE)
                self._try_free(channel)
            case ChannelState.REVOKED | ChannelState.REOFFERED:
                self._stop_device(channel)
            case _:
                self._unreachable(channel)
        return self._take()

    def channel_closed(self, channel_id: int) -> list[Action]:
        """The answer to `CloseDevice`."""
        channel = self._by_id[channel_id]
        assert channel.activity is DeviceActivity.STOPPING
        channel.activity = DeviceActivity.IDLE
        channel.modifying = False
        channel.next_target_vp = None
        match channel.state:
            case ChannelState.CLOSING:
                self._set(channel, ChannelState.CLOSED)
                target, channel.reserved = channel.reserved, None
                if target is not None:
                    self._send_reserved(m.CloseReservedResponse(channel_id=channel_id), target)
                    self._leave_behind(channel)
            case ChannelState.CLOSING_REOPEN:
                assert channel.reopen is not None
                request, channel.reopen = channel.reopen, None
                self._set(channel, ChannelState.CLOSED)
                self._start_open(channel, request)
            case ChannelState.CLOSING_CLIENT_RELEASE | ChannelState.REVOKED | ChannelState.REOFFERED:
                self._try_free(channel)
            case _:
                self._unreachable(channel)
        return self._take()

    def channel_modified(self, channel_id: int, target_vp: int, ok: bool) -> list[Action]:
        """The answer to `RetargetChannel`."""
        channel = self._by_id[channel_id]
        if channel.state is ChannelState.OPEN and channel.modifying:
            channel.modifying = False
            if ok:
                channel.target_vp = target_vp
            self._send_modify_response(channel_id, ok=ok)
            if channel.next_target_vp is not None:
                next_vp, channel.next_target_vp = channel.next_target_vp, None
                channel.modifying = True
                self._actions.append(act.RetargetChannel(channel_id, next_vp))
        return self._take()

    # ------------------------------------------------------------------------------------------- rescind and release

    def _rescind(self, channel: ServerChannel) -> None:
        channel.rescinded = True
        channel.offer_due = False
        if channel.outlives_connection and self.phase is not Phase.CONNECTED:
            self._client_gone(channel)  # nobody is there to be told
            return
        match channel.state:
            case ChannelState.CLIENT_RELEASED:
                self._forget(channel)
            case ChannelState.OPENING_CLIENT_RELEASE | ChannelState.CLOSING_CLIENT_RELEASE:
                pass  # goes when that has ended
            case ChannelState.REOFFERED:
                self._set(channel, ChannelState.REVOKED)
            case (
                ChannelState.CLOSED
                | ChannelState.OPENING
                | ChannelState.OPEN
                | ChannelState.CLOSING
                | ChannelState.CLOSING_REOPEN
            ):
                self._revoke(channel)
            case ChannelState.REVOKED:
                self._unreachable(channel)
            case _:
                assert_never(channel.state)

    def _revoke(self, channel: ServerChannel) -> None:
        self._set(channel, ChannelState.REVOKED)
        channel.reopen = None
        channel.reserved = None
        channel.modifying = False
        channel.next_target_vp = None
        self._stop_device(channel)
        channel.rescind_due = True
        for record in self.gpadls.of_channel(channel.channel_id):
            if record.state is GpadlState.OFFERED:
                record.state = GpadlState.OFFERED_TEARING_DOWN
                record.silent = True
                self._send(
                    m.GpadlCreated(channel_id=record.channel_id, gpadl_id=record.gpadl_id, status=ChannelStatus.FAILURE)
                )
        self._send_rescind_when_due(channel)

    def _send_rescind_when_due(self, channel: ServerChannel) -> None:
        """RESCIND follows the GPADL_TORNDOWN of teardowns under way, so that a guest waits for neither in vain."""
        for record in self.gpadls.of_channel(channel.channel_id):
            if record.state is GpadlState.TEARING_DOWN and not record.silent:
                return
        channel.rescind_due = False
        self._send(m.RescindChannelOffer(channel_id=channel.channel_id))

    def _client_gone(self, channel: ServerChannel) -> None:
        """The guest holds this channel no longer: stop the device, take back the pages, then free the ID."""
        if channel.withdrawn:
            channel.rescind_due = False
        channel.reopen = None
        channel.reserved = None
        self._stop_device(channel)
        match channel.activity:
            case DeviceActivity.STARTING:
                self._set(channel, ChannelState.OPENING_CLIENT_RELEASE)
            case DeviceActivity.IDLE | DeviceActivity.STOPPING:
                self._set(channel, ChannelState.CLOSING_CLIENT_RELEASE)
            case DeviceActivity.RUNNING:
                self._unreachable(channel)
            case _:
                assert_never(channel.activity)
        self._silence(channel)
        self._try_free(channel)

    def _leave_behind(self, channel: ServerChannel) -> None:
        """A reserved channel is closed: without a connection no guest holds it any longer."""
        if self.phase is not Phase.CONNECTED:
            self._client_gone(channel)

    def _gpadl_gone(self, channel: ServerChannel) -> None:
        if channel.rescind_due:
            self._send_rescind_when_due(channel)
        self._try_free(channel)

    def _try_free(self, channel: ServerChannel) -> None:
        """Give the ID back once nothing of the channel is left, offer it anew if that is due, or forget it."""
        if (
            channel.channel_id == 0
            or channel.known_to_guest
            or channel.activity is not DeviceActivity.IDLE
            or self.gpadls.any_of_channel(channel.channel_id)
        ):
            return
        self._set(channel, ChannelState.CLIENT_RELEASED)
        channel.request = None
        channel.monitor_id = None
        self._actions.append(act.DropChannel(channel.channel_id))
        if channel.offer_due and self._offering:
            self._send_offer(channel)
            return
        del self._by_id[channel.channel_id]
        self._ids.give_back(channel.channel_id)
        channel.channel_id = 0
        if channel.rescinded:
            self._forget(channel)
        if self._offering:
            self._offer_one_waiting()

    def _offer_one_waiting(self) -> None:
        for channel in self._by_handle.values():
            if channel.offer_due and channel.state is ChannelState.CLIENT_RELEASED:
                self._send_offer(channel)
                return

    def _forget(self, channel: ServerChannel) -> None:
        del self._by_handle[channel.handle]
        del self._by_key[channel.offer.key]

    # -------------------------------------------------------------------------------------------------------- helpers

    def _send_offer(self, channel: ServerChannel) -> None:
        if channel.channel_id == 0:
            channel_id = self._ids.take(channel.offer.key)
            if channel_id is None:
                channel.offer_due = True  # the guest holds on to rescinded ones
                return
            channel.channel_id = channel_id
            self._by_id[channel_id] = channel
        channel.offer_due = False
        self._set(channel, ChannelState.CLOSED)
        self._actions.append(act.CreateChannel(channel.channel_id, channel.handle))
        self._say_offer(channel)

    def _say_offer(self, channel: ServerChannel) -> None:
        offer = channel.offer
        if channel.monitor_id is None and offer.monitor_latency is not None and self.pages.monitored:
            channel.monitor_id = self._free_monitor()
        self._send(
            m.OfferChannel(
                interface=offer.interface,
                instance=offer.instance,
                flags=offer_flags_for(offer.flags, self.features),
                mmio_megabytes=offer.mmio_megabytes,
                user_defined=offer.user_defined,
                subchannel_index=offer.subchannel_index,
                channel_id=channel.channel_id,
                monitor_id=NO_MONITOR if channel.monitor_id is None else channel.monitor_id,
                monitor_allocated=int(channel.monitor_id is not None),
                connection_id=event_connection_id(channel.channel_id),
            )
        )

    def _free_monitor(self) -> int | None:
        """The lowest that no channel has; None if all are taken, and the channel does without."""
        taken = {channel.monitor_id for channel in self._by_id.values()}
        return next((number for number in range(TRIGGERS) if number not in taken), None)

    def _stop_device(self, channel: ServerChannel) -> None:
        if channel.activity is DeviceActivity.RUNNING:
            channel.activity = DeviceActivity.STOPPING
            self._actions.append(act.CloseDevice(channel.channel_id))
        elif channel.activity is DeviceActivity.STARTING:
            self._actions.append(act.StopOpening(channel.channel_id))

    def _send_open_result(self, channel: ServerChannel, request: OpenRequest, status: ChannelStatus) -> None:
        result = m.OpenChannelResult(channel_id=request.channel_id, open_id=request.open_id, status=status)
        if channel.reserved is None:
            self._send(result)
        else:
            self._send_reserved(result, channel.reserved)

    def _send_modify_response(self, channel_id: int, *, ok: bool) -> None:
        if self._answers_modify:
            status = ChannelStatus.SUCCESS if ok else ChannelStatus.FAILURE
            self._send(m.ModifyChannelResponse(channel_id=channel_id, status=status))

    @property
    def _answers_modify(self) -> bool:
        return Ability.MODIFY_RESPONSE in abilities(self.version)

    @property
    def _offering(self) -> bool:
        return self.phase is Phase.CONNECTED and self.offers_sent

    def _named(self, channel_id: int, message: Message) -> ServerChannel | None:
        channel = self._by_id.get(channel_id)
        if channel is None or not channel.known_to_guest:
            self._fault("unexpected_message", f"{describe(message)}: no such channel")
            return None
        return channel

    def _misplaced(self, channel: ServerChannel, message: Message) -> None:
        self._fault("unexpected_message", f"{describe(message)} while {channel.state.value}")

    @staticmethod
    def _unreachable(channel: ServerChannel) -> None:
        raise AssertionError(f"channel {channel.channel_id} is {channel.state.value}, {channel.activity.value}")


def _ring_refusal(record: ServerGpadl | None, downstream_page: int) -> str:
    """Why this GPADL cannot be a pair of rings; empty if it can. A ring has a control page and a data page at least."""
    if record is None or record.state is not GpadlState.ACCEPTED or not record.mapped:
        return "no such GPADL"
    if len(record.ranges) != 1 or not record.ranges[0].whole_pages:
        return "the GPADL is not one range of whole pages"
    if not 2 <= downstream_page <= len(record.ranges[0].gpns) - 2:
        return f"no two rings in {len(record.ranges[0].gpns)} pages"
    return ""
