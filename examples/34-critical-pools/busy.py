"""Works for a while, and looks what it got of a processor in the middle of each step."""

import trio

STEP = 0.5
"""Seconds."""
EDGE = 0.05
"""Seconds at both ends of a step that do not count: clocks of guests do not begin together, and a real one is late."""


async def main(guest):
    first, last = guest.args["from"], guest.args["to"]
    await guest.sleep(first * STEP - guest.time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.cpu.run, last * STEP)
        for step in range(first, last):
            await guest.sleep(step * STEP + EDGE - guest.time())
            before = guest.cpu.times()
            await guest.sleep((step + 1) * STEP - EDGE - guest.time())
            now = guest.cpu.times()
            share = (now.run - before.run) / (now.wall - before.wall)
            print(f"{step * STEP:.1f} to {(step + 1) * STEP:.1f} s: I had {round(share * 100)} %")
        await guest.sleep(last * STEP - guest.time())
        nursery.cancel_scope.cancel()
