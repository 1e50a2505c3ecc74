"""Rests at first, then works all the time, and looks each 0.2 s what it got of a processor."""

STEP, END = 0.2, 0.6


async def main(guest):
    rests = guest.args["rests"]
    await guest.sleep(rests - guest.time())
    guest.start_soon(guest.cpu.run, 10)
    before = guest.cpu.times()
    for step in range(round(rests / STEP), round(END / STEP)):
        await guest.sleep((step + 1) * STEP - guest.time())
        now = guest.cpu.times()
        share = (now.run - before.run) / (now.wall - before.wall)
        print(f"{step * STEP:.1f} to {(step + 1) * STEP:.1f} s: I had {round(share * 100)} %")
        before = now
