"""Works all the time, and says in the end how much of the processor that was."""


async def main(guest):
    guest.start_soon(guest.cpu.run, 10)
    before = guest.cpu.times()
    await guest.sleep(1)
    now = guest.cpu.times()
    print(f"I had {round(20 * (now.run - before.run) / (now.wall - before.wall)) * 5} % of the processor")
