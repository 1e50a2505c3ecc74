"""The host's end of one component's channel, with no Trio in it: questions out, answers in. Root side.

    negotiating --answer--> ready, or refused: no version in common

One question is out at a time. Its transaction ID is 0, as other hosts have it, until one is given up: what comes after
that has the next, so an answer to the former is known as stale and dropped. `protocol.py` says which answers raise.
"""

from __future__ import annotations

import enum

import msgspec

from hypervisor.wire import BadValue
from vsp_vsc.integration.protocol import (
    FRAMEWORK_VERSIONS,
    NO_VERSION,
    RESPONSE,
    VERSIONS,
    Component,
    Version,
    decode_choice,
    decode_message,
    encode_message,
    encode_negotiate,
)


class State(enum.Enum):
    """Where a session is."""

    NEGOTIATING = "negotiating"
    """The offer of versions is out. A guest may take its time: Linux answers for KVP when its daemon is up."""
    READY = "ready"
    REFUSED = "refused"
    """The guest speaks none of our versions."""


class Answer(msgspec.Struct, frozen=True):
    """What the guest said to a question."""

    status: int
    body: bytes


class SavedComponent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a session when its VM is saved, apart from the live one."""

    state: str
    framework: tuple[int, int]
    version: tuple[int, int]
    transaction: int
    frozen: bool = False


class Session:
    """One opening of a component's channel."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.state = State.NEGOTIATING
        self.framework = NO_VERSION
        self.version = NO_VERSION
        """Of the component's messages, once it is ready."""
        self.stale = 0
        """Answers that came too late."""
        self.frozen = False
        """Of the snapshot component: the guest's file systems stand still, or may."""
        self._transaction = 0
        self._asked: Component | None = None
        """What kind of answer is due."""

    @property
    def waiting(self) -> bool:
        """Whether a question is out."""
        return self._asked is not None

    def save(self) -> bytes | None:
        """The session as a record; None before it has begun. A question that is out is forgotten: its answer is stale.

        The offer of versions is not: a guest may answer that in its next life.
        """
        if self.state is State.NEGOTIATING and self._asked is None:
            return None
        forgotten = self.state is State.READY and self._asked is not None
        transaction = (self._transaction + forgotten) & 0xFF
        record = SavedComponent(self.state.value, self.framework, self.version, transaction, self.frozen)
        return msgspec.msgpack.encode(record)

    @classmethod
    def load(cls, component: Component, untrusted: bytes) -> Session:
        """A session that goes on where it was saved. Raises `BadValue`."""
        session = cls(component)
        try:
            record = msgspec.msgpack.decode(untrusted, type=SavedComponent)
            session.state = State(record.state)
        except ValueError as error:  # msgspec's errors are ValueErrors too
            raise BadValue(f"a saved component: {error}") from None
        ready = session.state is State.READY
        agreed = record.framework in FRAMEWORK_VERSIONS and record.version in VERSIONS[component]
        if ready != agreed or not 0 <= record.transaction <= 0xFF:
            raise BadValue(f"a saved component of version {record.version}")
        if ready:
            session.framework, session.version = Version(*record.framework), Version(*record.version)
        session._transaction, session.frozen = record.transaction, record.frozen
        if session.state is State.NEGOTIATING:
            session._asked = Component.NEGOTIATE
        return session

    def negotiate(self) -> bytes:
        """The first message: all versions that we speak."""
        body = encode_negotiate(FRAMEWORK_VERSIONS, VERSIONS[self.component])
        return self._ask(Component.NEGOTIATE, body)

    def ask(self, body: bytes) -> bytes:
        """A question, as a message. One at a time, and only when ready."""
        assert self.state is State.READY, "the caller waits until versions are agreed on"
        return self._ask(self.component, body)

    def give_up(self) -> None:
        """Nobody waits for the answer any more; nothing if it has come."""
        if self._asked is not None:
            self._asked = None
            self._transaction = (self._transaction + 1) & 0xFF

    def take(self, untrusted: bytes) -> Answer | None:
        """A message from the guest: the answer to our question, or None where it ends here. Raises `WireError`."""
        header, body = decode_message(untrusted)
        if header.flags != RESPONSE:
            raise BadValue(f"a message with flags {header.flags:#x} from the guest, which may only answer")
        if header.component != self._asked or header.transaction_id != self._transaction:
            self.stale += 1
            return None
        self._asked = None
        if header.component != Component.NEGOTIATE:
            return Answer(header.status, body)
        chosen = decode_choice(body, FRAMEWORK_VERSIONS, VERSIONS[self.component])
        if chosen is None:
            self.state = State.REFUSED
        else:
            self.state = State.READY
            self.framework, self.version = chosen
        return None

    def _ask(self, component: Component, body: bytes) -> bytes:
        assert self._asked is None, "one question at a time"
        self._asked = component
        return encode_message(
            component,
            body,
            framework=self.framework,
            version=self.version,
            transaction_id=self._transaction,
        )
