"""The host's end of a component, message by message, with no channel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import BadValue, ShortMessage, TooMany, WireError
from vsp_vsc.integration.protocol import (
    FRAMEWORK_VERSIONS,
    MAX_MESSAGE,
    REQUEST,
    RESPONSE,
    VERSIONS,
    Component,
    Header,
    Status,
    Version,
    decode_choice,
    decode_message,
    decode_offer,
    encode_message,
    encode_negotiate,
)
from vsp_vsc.integration.responder import Reply, Responder
from vsp_vsc.integration.session import Answer, Session, State

V3 = Version(3, 0)


def choice(framework: Version = V3, version: Version = V3, **more: int) -> bytes:
    return encode_message(Component.NEGOTIATE, encode_negotiate((framework,), (version,)), **{"flags": RESPONSE} | more)


def ready_session() -> Session:
    session = Session(Component.HEARTBEAT)
    session.negotiate()
    session.take(choice())
    assert session.state is State.READY
    return session


def answer_to(message: bytes, body: bytes = b"", **more: int) -> bytes:
    header = Header.decode(message)
    fields = {"transaction_id": header.transaction_id, "flags": RESPONSE} | more
    return encode_message(header.component, body, **fields)


def test_the_first_message_offers_everything() -> None:
    """All framework versions, then all of the component's, the lowest first, with transaction ID 0."""
    header, body = decode_message(Session(Component.SHUTDOWN).negotiate())
    assert (header.component, header.flags, header.transaction_id) == (Component.NEGOTIATE, REQUEST, 0)
    assert decode_offer(body) == (FRAMEWORK_VERSIONS, VERSIONS[Component.SHUTDOWN])


def test_questions_carry_the_agreed_versions_and_a_number_that_tells_late_answers() -> None:
    """0, as other hosts say, and after each question that was given up the next."""
    session = ready_session()
    first = session.ask(b"one")
    header = Header.decode(first)
    assert (header.framework_major, header.message_major, header.transaction_id, header.size) == (3, 3, 0, 3)
    assert session.take(answer_to(first)) is not None
    session.give_up()  # nothing is out
    assert Header.decode(session.ask(b"two")).transaction_id == 0
    session.give_up()
    assert Header.decode(session.ask(b"three")).transaction_id == 1


def test_an_answer_comes_back_with_its_status() -> None:
    session = ready_session()
    assert session.take(answer_to(session.ask(b""), b"body", status=Status.FAIL)) == Answer(Status.FAIL, b"body")
    assert not session.waiting


def test_what_comes_too_late_is_dropped() -> None:
    """An answer to a question that was given up, to another component's, and one that nobody asked for."""
    session = ready_session()
    late = answer_to(session.ask(b""))
    session.give_up()
    assert session.take(late) is None
    question = session.ask(b"")
    assert session.take(late) is None
    other = encode_message(Component.KVP, b"", transaction_id=1, flags=RESPONSE)
    assert session.take(other) is None
    assert session.stale == 3
    assert session.waiting
    assert session.take(answer_to(question)) is not None
    assert session.take(answer_to(question)) is None, "once is enough"


def test_a_negotiation_that_comes_twice_changes_nothing() -> None:
    session = ready_session()
    assert session.take(choice(version=Version(1, 0))) is None
    assert session.version == V3


@pytest.mark.parametrize("flags", [0, 1, 2, 3, 4, 7])
def test_a_guest_may_only_answer(flags: int) -> None:
    session = ready_session()
    with pytest.raises(BadValue, match="may only answer"):
        session.take(answer_to(session.ask(b""), flags=flags))


def test_a_guest_that_finds_nothing_says_so() -> None:
    """Linux counts 0 and 0 and leaves hints behind them."""
    session = Session(Component.KVP)
    session.negotiate()
    body = bytes.fromhex("00000000000000000200000003000000")
    assert session.take(encode_message(Component.NEGOTIATE, body, flags=RESPONSE)) is None
    assert session.state is State.REFUSED


@pytest.mark.parametrize("counts", [(1, 0), (0, 1), (2, 1), (1, 4), (65535, 65535)])
def test_any_other_count_than_one_each_is_no_agreement(counts: tuple[int, int]) -> None:
    body = counts[0].to_bytes(2, "little") + counts[1].to_bytes(2, "little") + bytes(12)
    assert decode_choice(body, FRAMEWORK_VERSIONS, VERSIONS[Component.KVP]) is None


@pytest.mark.parametrize("chosen", [(Version(2, 0), V3), (V3, Version(4, 0)), (Version(0, 0), Version(0, 0))])
def test_a_choice_that_was_not_on_offer(chosen: tuple[Version, Version]) -> None:
    session = Session(Component.HEARTBEAT)
    session.negotiate()
    with pytest.raises(BadValue, match="not on offer"):
        session.take(choice(*chosen))


def test_a_choice_without_its_versions() -> None:
    with pytest.raises(ShortMessage):
        decode_choice(encode_negotiate((V3,), (V3,))[:-1], FRAMEWORK_VERSIONS, VERSIONS[Component.HEARTBEAT])


def test_sizes_are_checked() -> None:
    """A body that is said to be longer than it is, a message past the limit, half a header; padding does not count."""
    message = choice()
    with pytest.raises(ShortMessage):
        decode_message(message[:-1])
    with pytest.raises(ShortMessage):
        decode_message(message[:19])
    with pytest.raises(TooMany):
        decode_message(bytes(MAX_MESSAGE + 1))
    assert decode_message(message + bytes(5)).body == decode_message(message).body


@given(st.binary(max_size=64), st.booleans())
def test_no_message_breaks_a_session(untrusted: bytes, asked: bool) -> None:
    """Whatever comes is an answer, dropped, or a `WireError`."""
    session = ready_session()
    if asked:
        session.ask(b"")
    try:
        session.take(untrusted)
    except WireError:
        pass


@given(st.binary(max_size=64))
def test_no_message_breaks_a_guest(untrusted: bytes) -> None:
    """The same the other way round."""
    responder = Responder(Component.HEARTBEAT, lambda body, version: Reply(body))
    responder.take(Session(Component.HEARTBEAT).negotiate())
    try:
        responder.take(untrusted)
    except WireError:
        pass


def test_a_guest_answers_what_is_not_its_own_with_not_supported() -> None:
    responder = Responder(Component.HEARTBEAT, lambda body, version: Reply(body))
    header, _ = decode_message(responder.take(encode_message(Component.VSS, b"")))
    assert (header.status, header.flags) == (Status.NOT_SUPPORTED, RESPONSE)


def test_a_guest_takes_the_highest_of_each() -> None:
    """Whatever the order of the offer, and versions that it does not know among them."""
    responder = Responder(Component.HEARTBEAT, lambda body, version: Reply(body))
    offer = encode_negotiate((V3, Version(9, 9), Version(1, 0)), (Version(1, 0), V3, Version(7, 0)))
    _, body = decode_message(responder.take(encode_message(Component.NEGOTIATE, offer)))
    assert decode_choice(body, FRAMEWORK_VERSIONS, VERSIONS[Component.HEARTBEAT]) == (V3, V3)
    assert responder.version == V3


def test_a_question_before_the_versions_is_the_hosts_mistake() -> None:
    responder = Responder(Component.HEARTBEAT, lambda body, version: Reply(body))
    with pytest.raises(BadValue, match="before versions"):
        responder.take(encode_message(Component.HEARTBEAT, b""))
