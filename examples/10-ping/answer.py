"""Has an address, and no more: its IP stack answers pings by itself."""

import trio


async def main(guest):
    await guest.ip("10.0.0.2/24")
    await trio.sleep_forever()
