"""What traces say of key-value messages. Both sides."""

from __future__ import annotations

import pytest

from vsp_vsc.integration.kvp.protocol import (
    KEY_BYTES,
    MESSAGE_SIZE,
    KvpIndex,
    Operation,
    Pool,
    describe,
    encode_item,
    encode_key,
    encode_request,
)


@pytest.mark.parametrize(
    ("operation", "body", "words"),
    [
        (Operation.GET, encode_item("state"), 'get "state" in pool guest'),
        (Operation.SET, encode_item("state", "up"), 'set "state" in pool guest'),
        (Operation.DELETE, encode_key("state"), 'delete "state" in pool guest'),
        (Operation.ENUMERATE, KvpIndex(3).encode(), "enumerate item 3 in pool guest"),
        (Operation.GET, bytes(4) + (KEY_BYTES + 2).to_bytes(4, "little"), "get in pool guest"),
    ],
)
def test_questions_in_words(operation: Operation, body: bytes, words: str) -> None:
    """The key or the number is said, where the message has one that can be read; a value is not."""
    assert describe(encode_request(operation, Pool.GUEST, body)) == words


@pytest.mark.parametrize("operation", range(8))
def test_any_bytes_have_words(operation: int) -> None:
    """Short ones, and such as no driver sends."""
    for size in (0, 3, 4, 8, 16, 600, MESSAGE_SIZE):
        for fill in (0, 1, 0x41, 0xFF):
            assert describe(bytes([operation]).ljust(size, bytes([fill]))[:size])
