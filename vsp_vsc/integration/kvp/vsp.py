"""The KVP VSP: reads and writes the guest's key-value pools. Root side.

Linux answers for its user-space daemon: until that has come up, not even the versions are agreed on, and each question
takes a turn of the daemon's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from hypervisor.inspect import Branch
from hypervisor.trace import Trace
from hypervisor.wire import BadValue, WireError
from vsp_vsc.integration.component import IntegrationVsp, NoAnswer, PartitionTime
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

if TYPE_CHECKING:
    from vsp_vsc.integration.kvp.ip_info import IpInfo

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

    def __init__(
        self,
        time: PartitionTime,
        trace: Trace,
        partition_id: int,
        name: str = "",
        *,
        host_items: Mapping[str, Value] | None = None,
    ) -> None:
        """`host_items` the guest is told as soon as it listens, in the pool that is the host's own."""
        super().__init__(time, trace, partition_id, name)
        self._host_items = dict(host_items or {})
        self.told = 0
        """How many of them it has taken."""

    def inspect(self) -> Branch:
        """The contact, and what the guest was told."""
        return Branch({**super().inspect().children, "host_items": len(self._host_items), "told": self.told})

    async def ip_info(self, adapter: str) -> IpInfo | None:
        """The addresses of an adapter; None if the guest has none of that name. `ValueError` for one that cannot be."""
        from vsp_vsc.integration.kvp.ip_info import IpInfo, decode_ip

        answer = await self._do_ip(Operation.GET_IP_INFO, IpInfo(adapter))
        if answer.status in (*_ABSENT, Status.FAIL):  # the last is Linux's word for it
            return None
        if answer.status:
            raise KvpRefused(f"addresses of {adapter!r}", answer.status)
        try:
            return decode_ip(answer.body, self.agreed)
        except WireError as fault:
            self.stop(BadValue(str(fault)))
            raise NoAnswer(f"kvp: {fault}") from None

    async def set_ip_info(self, info: IpInfo) -> None:
        """Have the guest give an adapter these addresses. `ValueError` for more than there is room for."""
        answer = await self._do_ip(Operation.SET_IP_INFO, info)
        if answer.status:
            raise KvpRefused(f"set addresses of {info.adapter!r}", answer.status)

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

    async def _duty(self) -> None:
        self.told = 0
        for key, value in self._host_items.items():
            try:
                await self.set(key, value, Pool.AUTO_EXTERNAL)
                self.told += 1
            except NoAnswer:
                if not self.ready:
                    return

    async def _do_ip(self, operation: Operation, info: IpInfo) -> Answer:
        from vsp_vsc.integration.kvp.ip_info import encode_ip

        request = encode_ip(operation, info, self.agreed)
        return await self.ask(request, ANSWER_SECONDS, describe(request))

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
