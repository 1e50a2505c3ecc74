"""Works all the time, and says after each second what it got."""


async def main(guest):
    guest.start_soon(guest.cpu.run, 10)
    before = guest.cpu.times()
    for second in range(2):
        await guest.sleep(second + 1 - guest.time())
        now = guest.cpu.times()
        share = (now.run - before.run) / (now.wall - before.wall)
        print(f"second {second + 1}: I had {round(share * 100)} %")
        before = now
