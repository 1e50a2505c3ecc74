"""The rules for GPADLs: what the guest may do with them when, and what it is told. Root side."""

from __future__ import annotations

from typing import assert_never

from hypervisor.wire import WireError
from vmbus.gpadl import GpadlRange
from vmbus.protocol import messages as m
from vmbus.protocol.identifiers import ChannelStatus
from vmbus.protocol.table import describe
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.base import StateBase
from vmbus.server.channels import ServerChannel
from vmbus.server.gpadls import GpadlState, OverLimit, ServerGpadl


class GpadlRules(StateBase):
    """Create and tear down. Above it stands `ChannelRules`, which hears of each GPADL that is gone."""

    # ------------------------------------------------------------------------------------------- the guest's messages

    def _gpadl_header(self, message: m.GpadlHeader, tail: bytes) -> None:
        channel = self._by_id.get(message.channel_id)
        if channel is None or not channel.known_to_guest:
            self._refuse_gpadl(message.channel_id, message.gpadl_id, f"{describe(message)}: no such channel")
            return
        if channel.reserved is not None:
            # Its GPADLs outlive the connection, and the next guest may count from the same number.
            self._refuse_gpadl(message.channel_id, message.gpadl_id, f"{describe(message)}: the channel is reserved")
            return
        try:
            record = self.gpadls.begin(message, tail)
        except OverLimit as error:
            self._refuse_gpadl(message.channel_id, message.gpadl_id, str(error), event="gpadl_limit")
            return
        except WireError as error:
            self._refuse_gpadl(message.channel_id, message.gpadl_id, str(error))
            return
        if record.state is GpadlState.OFFERED:
            self._gpadl_complete(record)

    def _gpadl_body(self, message: m.GpadlBody, tail: bytes) -> None:
        record, error = self.gpadls.go_on(message.gpadl_id, tail)
        if record is None:
            self._fault("unexpected_message", f"{describe(message)}: no such GPADL is unfinished")
        elif error is not None:
            self._refuse_gpadl(record.channel_id, record.gpadl_id, str(error))
        elif record.state is GpadlState.OFFERED:
            self._gpadl_complete(record)

    def _gpadl_complete(self, record: ServerGpadl) -> None:
        if self._by_id[record.channel_id].withdrawn:
            # Its device is gone, so nobody will look at the pages; but the guest waits for an answer.
            record.mapped = False
            record.state = GpadlState.ACCEPTED
            self._send(m.GpadlCreated(channel_id=record.channel_id, gpadl_id=record.gpadl_id))
        else:
            self._actions.append(act.MapGpadl(record.channel_id, record.gpadl_id, record.ranges))

    def _gpadl_teardown(self, message: m.GpadlTeardown) -> None:
        record = self.gpadls.get(message.gpadl_id, message.channel_id)
        if record is None or record.state is not GpadlState.ACCEPTED:
            state = "no such GPADL" if record is None else record.state.value
            self._fault("unexpected_message", f"{describe(message)}: {state}")
        elif self._by_id[record.channel_id].reserved is not None:
            self._fault("unexpected_message", f"{describe(message)}: the channel is reserved")
        else:
            self._tear_down(record)

    # ------------------------------------------------------------------------------------------ the service's answers

    def gpadl_mapped(self, channel_id: int, gpadl_id: int, ok: bool) -> list[Action]:
        """The answer to `MapGpadl`: are the pages the guest's own?"""
        record = self.gpadls.get(gpadl_id, channel_id)
        assert record is not None
        if record.state is GpadlState.OFFERED_TEARING_DOWN:
            if ok:
                self._tear_down(record)
            else:
                self._torn_down(record)
            return self._take()
        assert record.state is GpadlState.OFFERED
        if ok:
            record.state = GpadlState.ACCEPTED
            self._send(m.GpadlCreated(channel_id=channel_id, gpadl_id=gpadl_id))
        else:
            self.gpadls.remove(record)
            self._refuse_gpadl(channel_id, gpadl_id, f"GPADL {gpadl_id:#x}: not all of its pages are the guest's")
        return self._take()

    def gpadl_released(self, channel_id: int, gpadl_id: int) -> list[Action]:
        """The answer to `ReleaseGpadl`: no view is left."""
        record = self.gpadls.get(gpadl_id, channel_id)
        assert record is not None
        assert record.state is GpadlState.TEARING_DOWN
        self._torn_down(record)
        return self._take()

    def gpadl_ranges(self, channel_id: int, gpadl_id: int) -> tuple[GpadlRange, ...] | None:
        """The pages of an accepted GPADL, for a device that its guest gave the ID; None if there is none."""
        record = self.gpadls.get(gpadl_id, channel_id)
        if record is None or record.state is not GpadlState.ACCEPTED or not record.mapped:
            return None
        return record.ranges

    # -------------------------------------------------------------------------------------------------------- helpers

    def _tear_down(self, record: ServerGpadl) -> None:
        record.state = GpadlState.TEARING_DOWN
        if record.mapped:
            self._actions.append(act.ReleaseGpadl(record.channel_id, record.gpadl_id))
        else:
            self._torn_down(record)

    def _torn_down(self, record: ServerGpadl) -> None:
        self.gpadls.remove(record)
        if not record.silent:
            self._send(m.GpadlTorndown(gpadl_id=record.gpadl_id))
        channel = self._by_id.get(record.channel_id)
        if channel is not None:
            self._gpadl_gone(channel)

    def _gpadl_gone(self, channel: ServerChannel) -> None:
        """One of this channel's GPADLs is no more."""
        raise NotImplementedError

    def _silence(self, channel: ServerChannel, *, but_accepted: bool = False) -> None:
        """Take back all GPADLs of a channel, or all that are not in use; nobody is to hear of it."""
        for record in self.gpadls.of_channel(channel.channel_id):
            if but_accepted and record.state is GpadlState.ACCEPTED:
                continue
            record.silent = True
            match record.state:
                case GpadlState.IN_PROGRESS:
                    self._torn_down(record)
                case GpadlState.OFFERED:
                    record.state = GpadlState.OFFERED_TEARING_DOWN
                case GpadlState.ACCEPTED:
                    self._tear_down(record)
                case GpadlState.OFFERED_TEARING_DOWN | GpadlState.TEARING_DOWN:
                    pass
                case _:
                    assert_never(record.state)

    def _refuse_gpadl(self, channel_id: int, gpadl_id: int, words: str, *, event: str = "refused_gpadl") -> None:
        self._fault(event, words)
        self._send(m.GpadlCreated(channel_id=channel_id, gpadl_id=gpadl_id, status=ChannelStatus.FAILURE))
