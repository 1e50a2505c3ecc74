"""The KVP VSP: reads and writes the guest's key-value pools. Root side.

Linux answers for its user-space daemon: until that has come up, not even the versions are agreed on, and each question
takes a turn of the daemon's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hypervisor.wire import BadValue, WireError
from vsp_vsc.integration.component import IntegrationVsp, NoAnswer
from vsp_vsc.integration.kvp.protocol import (
    KvpHeader,
    KvpIndex,
    KvpItem,
    Operation,
    Pool,
    Value,
    decode_item,
    describe,
    encode_item,
    encode_key,
    encode_request,
)
from vsp_vsc.integration.protocol import Component, Status, status_words
from vsp_vsc.integration.session import Answer

ANSWER_SECONDS: Final = 10.0
MAX_ITEMS: Final = 1024
"""Items of one pool that are asked for; a guest may claim to have as many as it likes."""
_ABSENT: Final = (Status.NOT_FOUND, Status.NO_MORE_ITEMS)
"""What guests say of a key that they do not have; Linux's daemon says the second."""


class KvpRefused(NoAnswer):
    """The guest could not do it; `status` is what it gave as its reason."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"kvp: {what}: {status_words(status)}")
        self.status = status


class KvpVsp(IntegrationVsp):
    """One VM's key-value pairs. Every call raises `NoAnswer` where the guest does not answer, or says no."""

    component = Component.KVP

    async def get(self, key: str, pool: Pool = Pool.GUEST) -> Value | None:
        """An item's value; None if the guest has no such item. `ValueError` for a key that cannot be."""
        answer = await self._do(Operation.GET, pool, encode_item(key))
        if answer.status in _ABSENT:
            return None
        return self._item(answer, f"get {key!r}", KvpHeader.SIZE)[1]

    async def set(self, key: str, value: Value, pool: Pool = Pool.EXTERNAL) -> None:
        """Store an item in the guest. `ValueError` for what cannot be stored."""
        answer = await self._do(Operation.SET, pool, encode_item(key, value))
        if answer.status:
            raise KvpRefused(f"set {key!r}", answer.status)

    async def delete(self, key: str, pool: Pool = Pool.EXTERNAL) -> bool:
        """Remove an item; False if the guest has no such item. `ValueError` for a key that cannot be."""
        answer = await self._do(Operation.DELETE, pool, encode_key(key))
        if answer.status in _ABSENT:
            return False
        if answer.status:
            raise KvpRefused(f"delete {key!r}", answer.status)
        return True

    async def items(self, pool: Pool = Pool.AUTO) -> Mapping[str, Value]:
        """All items of a pool, in the guest's order; of what it claims to have, the first 1,024."""
        found: dict[str, Value] = {}
        for index in range(MAX_ITEMS):
            answer = await self._do(Operation.ENUMERATE, pool, KvpIndex(index).encode() + KvpItem().encode())
            if answer.status == Status.NO_MORE_ITEMS:
                break
            key, value = self._item(answer, f"item {index}", KvpHeader.SIZE + KvpIndex.SIZE)
            found[key] = value
        return found

    async def _do(self, operation: Operation, pool: Pool, body: bytes) -> Answer:
        request = encode_request(operation, pool, body)
        return await self.ask(request, ANSWER_SECONDS, describe(request))

    def _item(self, answer: Answer, what: str, offset: int) -> tuple[str, Value]:
        if answer.status:
            raise KvpRefused(what, answer.status)
        try:
            return decode_item(answer.body, offset)
        except WireError as fault:
            self.stop(BadValue(f"{what}: {fault}"))
            raise NoAnswer(f"kvp: {what}: {fault}") from None
