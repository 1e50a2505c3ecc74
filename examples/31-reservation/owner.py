"""Has a reservation, and work for it in the middle of the run only."""

import trio

STEP = 0.5
"""Seconds."""


async def main(guest):
    await guest.sleep(STEP - guest.time())
    with trio.move_on_after(STEP):
        print("I rested; now I work")
        await guest.cpu.run(10)
    times = guest.cpu.times()
    print(f"0.5 to 1.0 s: I had {round(times.run / times.wall * 10) * 10} %")
    await guest.sleep(3 * STEP - guest.time())
