"""The message table, its decoder, and the words for people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import BadValue, Guid, ShortMessage, WireError
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature
from vmbus.protocol.messages import Message, MessageType
from vmbus.protocol.table import MESSAGES, Direction, Row, decode_message, describe, event_name, message_table
from vmbus.protocol.versions import IMPLEMENTED, VERSIONS, Version

ALL = 0xFF


def field_values(row: Row) -> st.SearchStrategy[Message]:
    """Any value of a row's layout."""
    fields = {}
    for field in row.layout.FIELDS[1:]:
        if field.is_guid:
            fields[field.name] = st.binary(min_size=16, max_size=16).map(Guid)
        elif field.code.endswith("s"):
            fields[field.name] = st.binary(min_size=field.size, max_size=field.size)
        else:
            fields[field.name] = st.integers(0, 256**field.size - 1)
    return st.builds(row.layout, **fields)


@given(st.sampled_from(MESSAGES).flatmap(field_values))
def test_every_value_survives_the_wire(message: Message) -> None:
    """decode(encode(x)) == x, for every layout."""
    assert type(message).decode(message.encode()) == message
    assert len(message.encode()) == message.SIZE


@given(st.sampled_from(MESSAGES).flatmap(field_values))
def test_every_value_can_be_described(message: Message) -> None:
    """Words for people never fail, whatever a peer wrote, and begin with the name."""
    assert describe(message).startswith(message.TYPE.name)


@given(
    st.binary(max_size=240)
    | st.tuples(st.integers(0, 31), st.binary(max_size=236)).map(lambda t: bytes([t[0], 0, 0, 0]) + t[1]),
    st.sampled_from(Direction),
    st.none() | st.sampled_from(IMPLEMENTED),
    st.integers(0, 0xFF),
)
def test_any_bytes_decode_or_raise_a_wire_error(
    data: bytes, sender: Direction, version: int | None, features: int
) -> None:
    """Nothing else comes out of the decoder."""
    try:
        message = decode_message(data, sender=sender, version=version, features=features)
    except WireError:
        return
    assert message.encode()[:4] == data[:4]
    describe(message)


@pytest.mark.parametrize("row", MESSAGES, ids=lambda row: row.layout.__name__)
def test_each_row_obeys_its_gate(row: Row) -> None:
    """Legal from its least version on, with its feature, in its direction, at its size; else refused."""
    version = row.layout.FIELDS[1:2]
    sample = row.layout().encode()
    if version and version[0].name == "version":
        sample = row.layout(version=Version.V2_4 if row.layout is m.InitiateContactLegacy else Version.V6_0).encode()
    other = Direction.TO_CHILD if row.direction is Direction.TO_ROOT else Direction.TO_ROOT
    assert type(decode_message(sample, sender=row.direction, version=Version.V6_0, features=row.feature)) is row.layout
    with pytest.raises(BadValue, match="never travels"):
        decode_message(sample, sender=other, version=Version.V6_0, features=ALL)
    with pytest.raises(ShortMessage):
        decode_message(sample[:7], sender=row.direction, version=Version.V6_0, features=ALL)
    for known in VERSIONS:
        if known.version < row.least:
            assert not row.legal(known.version, ALL)
            assert layout_of(sample, row.direction, known.version) is not row.layout
    if row.feature:
        assert layout_of(sample, row.direction, Version.V6_0, ALL & ~row.feature) is not row.layout


def layout_of(data: bytes, sender: Direction, version: int, features: int = ALL) -> type[Message] | None:
    """What the bytes are taken for; None if they are refused."""
    try:
        return type(decode_message(data, sender=sender, version=version, features=features))
    except WireError:
        return None


@pytest.mark.parametrize("number", range(1, 30))
def test_every_number_from_1_to_29_is_declared_with_one_direction(number: int) -> None:
    rows = [row for row in MESSAGES if row.number == number]
    assert rows
    assert len({row.direction for row in rows}) == 1
    sizes = [row.layout.SIZE for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert all(row.layout().encode()[:8] == number.to_bytes(8, "little") for row in rows)


@pytest.mark.parametrize("number", [0, 30, 0x80000001, 0xFFFFFFFF])
def test_unknown_types_are_refused(number: int) -> None:
    with pytest.raises(BadValue, match="no channel message"):
        decode_message(number.to_bytes(4, "little") + bytes(236), sender=Direction.TO_ROOT, version=Version.V5_3)


def test_without_a_connection_only_three_messages_parse() -> None:
    """14, 15 and 19."""
    parsed = set()
    for row in MESSAGES:
        try:
            parsed.add(decode_message(row.layout().encode(), sender=row.direction, version=None, features=ALL).TYPE)
        except WireError:
            pass
    assert parsed == {
        MessageType.INITIATE_CONTACT,
        MessageType.VERSION_RESPONSE,
        MessageType.CLOSE_RESERVED_CHANNEL,
    }


def test_longer_messages_are_accepted() -> None:
    """UEFI always posts 240 bytes."""
    message = m.CloseChannel(channel_id=3)
    padded = message.encode().ljust(240, b"\xee")
    assert decode_message(padded, sender=Direction.TO_ROOT, version=Version.V2_4) == message


def test_the_form_of_a_contact_follows_version_and_size() -> None:
    """Below 5.0 the interrupt page; from 5.0 on the target; a client ID if there are 56 bytes."""

    def form(version: int, size: int) -> type[Message]:
        data = m.InitiateContactLegacy(version=version).encode().ljust(size, b"\0")
        return type(decode_message(data, sender=Direction.TO_ROOT, version=None))

    assert form(Version.V4_1, 40) is form(Version.V4_1, 240) is m.InitiateContactLegacy
    assert form(Version.V5_0, 40) is form(Version.V5_0, 55) is m.InitiateContact
    assert form(Version.V6_0, 56) is form(0xFFFFFFFF, 240) is m.InitiateContact2
    for size in (8, 12, 39):
        with pytest.raises(ShortMessage):
            decode_message(m.InitiateContact().encode()[:size], sender=Direction.TO_ROOT, version=None)


@pytest.mark.parametrize(
    ("size", "layout"),
    [(16, m.VersionResponse), (19, m.VersionResponse), (20, m.VersionResponse2), (40, m.VersionResponse3)],
)
def test_the_form_of_the_answer_follows_its_size(size: int, layout: type[Message]) -> None:
    data = m.VersionResponse(supported=1).encode().ljust(size, b"\0")
    assert type(decode_message(data, sender=Direction.TO_CHILD, version=None)) is layout


def test_open_channel_grows_with_the_signal_features() -> None:
    """The longer form is due where either feature was negotiated; a short one is then malformed."""
    short, long = m.OpenChannel().encode(), m.OpenChannel2(event_flag=9).encode()
    for feature in (Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS, Feature.CHANNEL_INTERRUPT_REDIRECTION):
        decoded = decode_message(long, sender=Direction.TO_ROOT, version=Version.V6_0, features=feature)
        assert decoded == m.OpenChannel2(event_flag=9)
        with pytest.raises(ShortMessage):
            decode_message(short, sender=Direction.TO_ROOT, version=Version.V6_0, features=feature)
    assert decode_message(long, sender=Direction.TO_ROOT, version=Version.V6_0) == m.OpenChannel()


def test_words_for_people() -> None:
    assert describe(m.OpenChannel(channel_id=1, gpadl_id=0xE1E10, downstream_page=32)) == (
        "OPEN_CHANNEL channel=1 gpadl=0xe1e10 vp=0 downstream=32"
    )
    assert describe(m.initiate_contact(Version.V5_3)) == "INITIATE_CONTACT version=5.3 vp=0 sint=2 features=0x0"
    assert describe(m.RequestOffers()) == "REQUEST_OFFERS"
    assert event_name(m.RequestOffers()) == "request_offers"


def test_the_documentation_table_has_a_line_for_each_row() -> None:
    lines = message_table().splitlines()
    assert len(lines) == len(MESSAGES) + 2
    assert "| 22 | MODIFY_CHANNEL (ModifyChannel) | guest to host | 4.1 | - | 16 | - |" in lines


def test_versions_are_tried_from_the_highest_down() -> None:
    """6.0 down to 0.13."""
    assert [hex(version) for version in IMPLEMENTED] == [
        "0x60000",
        "0x50003",
        "0x50002",
        "0x50001",
        "0x50000",
        "0x40001",
        "0x40000",
        "0x30000",
        "0x20004",
        "0x10001",
        "0xd",
    ]
