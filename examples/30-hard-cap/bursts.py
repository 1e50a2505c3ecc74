"""A hundred pieces of work, 1 ms each, and how long each took by the clock."""

PIECES, PIECE = 100, 0.001


async def main(guest):
    took = []
    for _ in range(PIECES):
        began = guest.time()
        await guest.cpu.run(PIECE)
        took.append(guest.time() - began)
    slow = [seconds for seconds in took if seconds > 4 * PIECE]
    times = guest.cpu.times()
    print(f"most pieces took {round(sorted(took)[PIECES // 2] * 1000)} ms")
    print(f"{round(len(slow), -1)} of {PIECES} took longer, {round(sum(slow) / len(slow) * 1000 / 3) * 3} ms or so")
    print(f"all together: {round(times.wall * 20) * 50} ms for {round(times.run * 1000)} ms of work")
    print(f"stolen from me: {round(times.stolen * 20) * 50} ms, and I do not know by whom")
