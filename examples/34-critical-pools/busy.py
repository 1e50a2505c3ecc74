"""Works for a while, and looks after each step what it got of a processor."""

import trio

STEP = 0.2
"""Seconds."""


async def main(guest):
    first, last = guest.args["from"], guest.args["to"]
    await guest.sleep(first * STEP - guest.time())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.cpu.run, last * STEP)
        before = guest.cpu.times()
        for step in range(first, last):
            await guest.sleep((step + 1) * STEP - guest.time())
            now = guest.cpu.times()
            share = (now.run - before.run) / (now.wall - before.wall)
            print(f"{step * STEP:.1f} to {(step + 1) * STEP:.1f} s: I had {round(share * 100)} %")
            before = now
        nursery.cancel_scope.cancel()
