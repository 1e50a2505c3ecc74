"""Works all the time, and looks each 0.2 s what it got."""

STEP = 0.2


async def main(guest):
    guest.start_soon(guest.cpu.run, 10)
    before = guest.cpu.times()
    for step in range(1, 4):
        await guest.sleep(step * STEP - guest.time())
        now = guest.cpu.times()
        share = (now.run - before.run) / (now.wall - before.wall)
        print(f"{(step - 1) * STEP:.1f} to {step * STEP:.1f} s: I had {round(share * 10) * 10} %")
        before = now
