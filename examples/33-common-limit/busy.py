"""Rests at first, then works all the time, and looks what it got of a processor in the middle of each step."""

STEP, STEPS = 0.5, 3
"""Seconds, and how many of them."""
EDGE = 0.05
"""Seconds at both ends of a step that do not count: clocks of guests do not begin together, and a real one is late."""


async def main(guest):
    rests = guest.args["rests"]
    await guest.sleep(rests * STEP - guest.time())
    guest.start_soon(guest.cpu.run, STEPS * STEP)
    for step in range(rests, STEPS):
        await guest.sleep(step * STEP + EDGE - guest.time())
        before = guest.cpu.times()
        await guest.sleep((step + 1) * STEP - EDGE - guest.time())
        now = guest.cpu.times()
        share = (now.run - before.run) / (now.wall - before.wall)
        print(f"{step * STEP:.1f} to {(step + 1) * STEP:.1f} s: I had {round(share * 100)} %")
