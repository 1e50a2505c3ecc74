"""The same 200 ms of work three times: by one thread, by two, and by one and then two."""

from functools import partial

import trio

WORK = 0.2


async def main(guest):
    vps = len(guest.machines)

    async def two_threads(seconds):
        async with trio.open_nursery() as nursery:
            for thread in range(2):
                nursery.start_soon(partial(guest.work, seconds / 2, vp=thread % vps))

    async def timed(name, *parts):
        began = guest.time()
        for thread, seconds in parts:
            await thread(seconds)
        print(f"{name}: {round((guest.time() - began) * 10) * 100} ms")

    await guest.work(0.001)  # the host's scheduler is loaded by the first work of all
    await timed("one thread", (guest.work, WORK))
    await timed("two threads", (two_threads, WORK))
    await timed("one, then two", (guest.work, WORK / 2), (two_threads, WORK / 2))
