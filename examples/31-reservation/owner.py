"""Has a reservation, and work for it in the middle of the run only."""

import trio


async def main(guest):
    await guest.sleep(0.2 - guest.time())
    with trio.move_on_after(0.2):
        print("I rested; now I work")
        await guest.cpu.run(10)
    times = guest.cpu.times()
    print(f"0.2 to 0.4 s: I had {round(times.run / times.wall * 10) * 10} %")
    await guest.sleep(0.6 - guest.time())
