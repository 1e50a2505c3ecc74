"""What the parts of the server's state machine share: the connection's facts, and actions to hand out. Root side."""

from __future__ import annotations

from vmbus.protocol.messages import Message
from vmbus.protocol.pages import ConnectionPages
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.channels import ChannelState, ReservedTarget, ServerChannel
from vmbus.server.connection import Phase
from vmbus.server.gpadls import GpadlRecords


class StateBase:
    """Facts and helpers. `GpadlRules`, `ChannelRules` and `ServerState` build on it, in this order."""

    def __init__(self) -> None:
        self.phase = Phase.DISCONNECTED
        self.version: int | None = None
        """None while there is no connection."""
        self.features = 0
        self.pages = ConnectionPages()
        """What the guest has given to the connection."""
        self.paused = False
        self.gpadls = GpadlRecords()
        self._by_id: dict[int, ServerChannel] = {}
        self.held: list[Message] = []
        """What was to be sent since PAUSE_RESPONSE."""
        self._actions: list[Action] = []

    def _set(self, channel: ServerChannel, state: ChannelState) -> None:
        if state is not channel.state:
            self._actions.append(act.StateChanged(channel.channel_id, channel.state.value, state.value))
            channel.state = state

    def _enter(self, phase: Phase) -> None:
        self._actions.append(act.StateChanged(None, self.phase.value, phase.value))
        self.phase = phase

    def _send(self, message: Message) -> None:
        if self.paused:
            self.held.append(message)
        else:
            self._actions.append(act.SendMessage(message))

    def _send_reserved(self, message: Message, target: ReservedTarget) -> None:
        self._actions.append(act.SendReserved(message, target.vp, target.sint))

    def _fault(self, event: str, words: str) -> None:
        self._actions.append(act.ProtocolFault(event, words))

    def _take(self) -> list[Action]:
        taken, self._actions = self._actions, []
        return taken
