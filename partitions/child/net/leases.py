"""An address from a DHCP server, and keeping it. Child side."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import trio

from hypervisor.clock import TICKS_PER_SECOND
from partitions.child.net.dhcp import (
    CLIENT_PORT,
    FOR_EVER,
    SERVER_PORT,
    Discovery,
    Lease,
    Message,
    parse_reply,
    renewal,
)
from partitions.child.net.frames import BadPacket, address_text
from partitions.child.net.within import within

if TYPE_CHECKING:
    from partitions.child.net.ip import Driver, Frames, Ip
    from vmbus.client.platform import GuestPlatform

TRIES = (1, 2, 4, 8)
"""Seconds that each message waits for its answer."""
RENEW_AGAIN = 60
"""Seconds between two requests for more time, at least."""


class NoLease(OSError):
    """No DHCP server has given an address."""


async def obtain(driver: Driver, platform: GuestPlatform) -> Lease:
    """An address, in `TRIES` at most for each question. `NoLease`; `OSError` where the device is gone."""
    number = zlib.crc32(driver.mac + platform.reference_time().to_bytes(8, "little"))
    discovery = Discovery(driver.mac, number)
    frames = driver.frames()
    try:
        for seconds in TRIES:
            await driver.send_batch([discovery.frame])
            found = await _answer(driver, platform, frames, discovery, seconds)
            if found is not None:
                return found
    except trio.EndOfChannel:
        raise NoLease("the network device is gone") from None
    finally:
        frames.close()
    raise NoLease(f"no DHCP server has given an address within {sum(TRIES)} s")


async def _answer(
    driver: Driver, platform: GuestPlatform, frames: Frames, discovery: Discovery, seconds: float
) -> Lease | None:
    found: list[Lease] = []

    async def listen() -> None:
        while True:
            for frame in await frames.receive_batch():
                heard = discovery.receive(frame)
                if isinstance(heard, Lease):
                    found.append(heard)
                    return
                if heard:
                    await driver.send_batch([discovery.frame])

    try:
        await within(platform, seconds, listen)
    except* trio.EndOfChannel:
        raise trio.EndOfChannel from None
    return found[0] if found else None


async def keep(ip: Ip, lease: Lease, platform: GuestPlatform) -> None:
    """Task: ask for more time when half of it is over, and give the address up when all of it is."""
    ends = platform.reference_time() + lease.seconds * TICKS_PER_SECOND
    number = 0
    with ip.udp(CLIENT_PORT) as socket:
        while lease.seconds != FOR_EVER:
            left = (ends - platform.reference_time()) / TICKS_PER_SECOND
            if left <= 0:
                ip.close("the lease of the address has ended")
                return
            await platform.sleep(min(left, max(left / 2, RENEW_AGAIN)))
            number += 1
            try:
                await socket.send_to(renewal(ip.stack.mac, number, lease), (address_text(lease.server), SERVER_PORT))
                data, _ = await socket.receive_from(timeout=TRIES[-1])
                reply = parse_reply(data)
            except (OSError, BadPacket):
                continue
            if reply.number == number and reply.kind == Message.ACK:
                ends = platform.reference_time() + reply.lease.seconds * TICKS_PER_SECOND
            elif reply.number == number and reply.kind == Message.NAK:
                ip.close("the DHCP server has taken the address back")
                return
        await trio.sleep_forever()
