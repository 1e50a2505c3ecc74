"""Rests at first, then works all the time, and looks after each step what it got of a processor."""

STEP, STEPS = 0.2, 3
"""Seconds, and how many of them."""


async def main(guest):
    rests = guest.args["rests"]
    await guest.sleep(rests * STEP - guest.time())
    guest.start_soon(guest.cpu.run, STEPS * STEP)
    before = guest.cpu.times()
    for step in range(rests, STEPS):
        await guest.sleep((step + 1) * STEP - guest.time())
        now = guest.cpu.times()
        share = (now.run - before.run) / (now.wall - before.wall)
        print(f"{step * STEP:.1f} to {(step + 1) * STEP:.1f} s: I had {round(share * 100)} %")
        before = now
