"""A guest that speaks channel messages to a bare `ServerState`, and the service that would stand between them."""

from __future__ import annotations

from collections.abc import Sequence

from hypervisor.wire import Guid
from vmbus.gpadl import GpadlRange, encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.messages import Message
from vmbus.protocol.versions import Version
from vmbus.server import actions as act
from vmbus.server.actions import Action
from vmbus.server.offers import Offer
from vmbus.server.state import ServerState

SCSI = Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
NETWORK = Guid("f8615163-df3e-46c5-913f-f2d2f965ed0e")


def instance(number: int) -> Guid:
    """Distinct instance IDs that sort by their number."""
    return Guid(f"00000000-0000-0000-0000-{number:012x}")


def scsi(number: int = 1, **more: object) -> Offer:
    """A storage controller's offer."""
    return Offer(SCSI, instance(number), name=f"scsi{number}", **more)  # type: ignore[arg-type]


class ScriptedGuest:
    """Says things to the host and returns its answers. With `prompt`, devices and pages answer at once and say yes."""

    def __init__(self, *, max_version: int | None = None, prompt: bool = True) -> None:
        self.state = ServerState(max_version=max_version)
        self.prompt = prompt
        self.actions: list[Action] = []
        """All that were not answered by us."""
        self.listening: set[Guid] = set()
        """Services that the host has listeners for; the offer is a test's to make."""
        self.heard: list[Message] = []
        """All messages from the host."""

    def perform(self, actions: Sequence[Action]) -> list[Message]:
        """Carry out actions the way the service does; returns the messages among them."""
        todo, said = list(actions), []
        while todo:
            action = todo.pop(0)
            if isinstance(action, act.SendMessage):
                said.append(action.message)
                continue
            self.actions.append(action)
            if self.prompt:
                todo += self.answer(action)
        self.heard += said
        return said

    def answer(self, action: Action, ok: bool = True) -> list[Action]:
        """What follows when the service has done it."""
        match action:
            case act.OpenDevice():
                return self.state.channel_opened(action.channel_id, ok)
            case act.ConnectSocket(number, _, service):
                return self.state.connect_answered(number, refused=service not in self.listening)
            case act.CloseDevice(channel_id):
                return self.state.channel_closed(channel_id)
            case act.RetargetChannel(channel_id, vp):
                return self.state.channel_modified(channel_id, vp, ok)
            case act.MapGpadl(channel_id, gpadl_id, _):
                return self.state.gpadl_mapped(channel_id, gpadl_id, ok)
            case act.ReleaseGpadl(channel_id, gpadl_id):
                return self.state.gpadl_released(channel_id, gpadl_id)
            case _:
                return []

    def settle(self, action: Action, ok: bool = True) -> list[Message]:
        """Answer one action that was left open."""
        return self.perform(self.answer(action, ok))

    def asked(self, kind: type[Action]) -> list[Action]:
        """The actions of one kind so far."""
        return [action for action in self.actions if type(action) is kind]

    def last(self, kind: type[Action]) -> Action:
        """The last of a kind."""
        return self.asked(kind)[-1]

    @property
    def faults(self) -> list[str]:
        """The events of all faults so far."""
        return [action.event for action in self.actions if isinstance(action, act.ProtocolFault)]

    # What a guest does, by name.

    def say(self, message: Message | bytes, *, multiclient: bool = False) -> list[Message]:
        """Post one message; returns the host's answers."""
        data = message if isinstance(message, bytes) else message.encode()
        return self.perform(self.state.handle(data, multiclient=multiclient))

    def offer(self, offer: Offer) -> tuple[int, list[Message]]:
        """The host offers a device."""
        handle, actions = self.state.offer(offer)
        return handle, self.perform(actions)

    def rescind(self, handle: int) -> list[Message]:
        """The host withdraws it."""
        return self.perform(self.state.rescind(handle))

    def contact(self, version: int = Version.V5_3, *, features: int = 0, target_vp: int = 0) -> list[Message]:
        """Make a connection."""
        return self.say(m.initiate_contact(version, features=features, target_vp=target_vp))

    def request_offers(self) -> list[Message]:
        """Ask for all devices."""
        return self.say(m.RequestOffers())

    def connect(self, *offers: Offer, version: int = Version.V5_3, features: int = 0) -> list[int]:
        """The host offers these, the guest connects and asks; returns the handles."""
        handles = [self.offer(offer)[0] for offer in offers]
        self.contact(version, features=features)
        self.request_offers()
        return handles

    def gpadl(self, channel_id: int = 1, gpadl_id: int = 0xE1E10, pages: int = 8, first: int = 0x100) -> list[Message]:
        """Name some pages."""
        return self.gpadl_ranges([page_range(range(first, first + pages))], channel_id, gpadl_id)

    def gpadl_ranges(self, ranges: list[GpadlRange], channel_id: int = 1, gpadl_id: int = 0xE1E10) -> list[Message]:
        """Name these."""
        return [said for data in encode_gpadl(channel_id, gpadl_id, ranges) for said in self.say(data)]

    def open(self, channel_id: int = 1, gpadl_id: int = 0xE1E10, downstream: int = 4, vp: int = 0) -> list[Message]:
        """Open with rings of four pages each, unless told."""
        return self.say(
            m.OpenChannel(
                channel_id=channel_id,
                open_id=channel_id,
                gpadl_id=gpadl_id,
                target_vp=vp,
                downstream_page=downstream,
            )
        )

    def gpadl_and_open(self, channel_id: int = 1, gpadl_id: int = 0xE1E10) -> list[Message]:
        """What Linux's vmbus_open does."""
        return self.gpadl(channel_id, gpadl_id) + self.open(channel_id, gpadl_id)

    def close(self, channel_id: int = 1) -> list[Message]:
        """Use the channel no longer."""
        return self.say(m.CloseChannel(channel_id=channel_id))

    def teardown(self, channel_id: int = 1, gpadl_id: int = 0xE1E10) -> list[Message]:
        """Want the pages back."""
        return self.say(m.GpadlTeardown(channel_id=channel_id, gpadl_id=gpadl_id))

    def release(self, channel_id: int = 1) -> list[Message]:
        """Hold the channel ID no longer."""
        return self.say(m.RelIdReleased(channel_id=channel_id))

    def modify(self, channel_id: int = 1, vp: int = 1) -> list[Message]:
        """Move the interrupts."""
        return self.say(m.ModifyChannel(channel_id=channel_id, target_vp=vp))
