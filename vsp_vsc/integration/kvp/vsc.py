"""The KVP VSC: a guest's key-value pools, in memory. Child side.

Programs in the guest write to `Pool.GUEST` and read what the host wrote to `Pool.EXTERNAL`; its own facts are in
`Pool.AUTO`. Answers are Linux's: an item that is not there, and the end of an enumeration, are "no more items".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, assert_never

from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.integration.kvp.protocol import (
    KvpHeader,
    KvpIndex,
    KvpItem,
    KvpKey,
    Operation,
    Pool,
    Value,
    decode_item,
    decode_text,
    encode_item,
    encode_request,
)
from vsp_vsc.integration.protocol import Component, Status, Version
from vsp_vsc.integration.responder import Reply, Responder, responding

if TYPE_CHECKING:
    from vsp_vsc.integration.kvp.ip_info import IpInfo

MAX_ITEMS = 1024
"""Of one pool; a host that sets more is refused."""


class KvpDriver:
    """The pools of one guest."""

    def __init__(self) -> None:
        self.pools: dict[Pool, dict[str, Value]] = {pool: {} for pool in Pool}
        self.adapters: dict[str, IpInfo] = {}
        """Addresses by adapter, for a host that asks."""
        self.on_set_addresses: Callable[[IpInfo], bool] | None = None
        """Hears what the host wants an adapter to have; says whether it has it now. Nobody: refused."""

    def tell(self, facts: Mapping[str, Value]) -> None:
        """What the host may know of the guest by itself."""
        self.pools[Pool.AUTO].update(facts)

    def answer(self, untrusted: bytes, version: Version) -> Reply:
        """One question. Raises `WireError` for what is no question."""
        header = KvpHeader.decode(untrusted)
        try:
            pool, operation = Pool(header.pool), Operation(header.operation)
        except ValueError:
            return Reply(untrusted, Status.FAIL)
        items = self.pools[pool]
        body = KvpHeader.SIZE
        match operation:
            case Operation.GET_IP_INFO | Operation.SET_IP_INFO:
                return self._addresses(operation, untrusted, version)
            case Operation.GET:
                asked = KvpItem.decode(untrusted, body)
                key = decode_text(asked.key, asked.key_size)
                if key not in items:
                    return Reply(untrusted, Status.NO_MORE_ITEMS)
                return Reply(encode_request(operation, pool, encode_item(key, items[key])))
            case Operation.SET:
                key, value = decode_item(untrusted, body)
                if not key or (key not in items and len(items) >= MAX_ITEMS):
                    return Reply(untrusted, Status.FAIL)
                items[key] = value
                return Reply(untrusted)
            case Operation.DELETE:
                told = KvpKey.decode(untrusted, body)
                known = items.pop(decode_text(told.key, told.key_size), None) is not None
                return Reply(untrusted, Status.SUCCESS if known else Status.NO_MORE_ITEMS)
            case Operation.ENUMERATE:
                index = KvpIndex.decode(untrusted, body).index
                if index >= len(items):
                    return Reply(untrusted, Status.NO_MORE_ITEMS)
                key = list(items)[index]
                answer = KvpIndex(index).encode() + encode_item(key, items[key])
                return Reply(encode_request(operation, pool, answer))
            case _:
                assert_never(operation)

    def _addresses(self, operation: Operation, untrusted: bytes, version: Version) -> Reply:
        from vsp_vsc.integration.kvp.ip_info import decode_ip, encode_ip

        told = decode_ip(untrusted, version)
        if operation is Operation.GET_IP_INFO:
            info = self.adapters.get(told.adapter)
            if info is None:
                return Reply(untrusted, Status.FAIL)
            try:
                return Reply(encode_ip(operation, info, version))
            except ValueError:  # more than there is room for in this version, or written out at length
                return Reply(untrusted, Status.FAIL)
        if self.on_set_addresses is None or not self.on_set_addresses(told):
            return Reply(untrusted, Status.FAIL)
        self.adapters[told.adapter] = told
        return Reply(untrusted)


@asynccontextmanager
async def open_kvp(channel: Channel, platform: GuestPlatform) -> AsyncIterator[KvpDriver]:
    """Answer until the block ends."""
    driver = KvpDriver()
    async with responding(channel, Responder(Component.KVP, driver.answer)):
        yield driver
