"""A request every 20 ms and a bit, each 3 ms of work; says how long the answers took."""

REQUESTS = 48
EVERY = 0.0207
"""Seconds; slices of 10 ms are met at another point each time."""
WORK = 0.003


async def main(guest):
    began = guest.time()
    took = []
    for number in range(1, REQUESTS + 1):
        await guest.sleep(began + number * EVERY - guest.time())
        asked = guest.time()
        await guest.cpu.run(WORK)
        took.append(guest.time() - asked)
    print(f"the fastest answer took {round(min(took) * 1000)} ms")
    print(f"the slowest answer took {round(max(took) * 1000)} ms")
