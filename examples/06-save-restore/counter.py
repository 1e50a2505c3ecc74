"""Counts to ten and writes each number to its disk. It can be saved in between, and goes on where it was."""

import json


async def main(guest):
    await count(guest, {"next": 1, "lives": 1})


async def resume(guest):
    """Runs in place of `main` when the VM starts from a saved state: only what was kept is left."""
    state = json.loads(guest.kept)
    state["lives"] += 1
    print(f"I slept before {state['next']}; the partition's time is {guest.time():.1f} s and went on from there")
    await count(guest, state)


async def count(guest, state):
    disk = await guest.disk(0)
    while state["next"] <= 10:
        number = state["next"]
        await disk.write(number, f"number {number}, written in life {state['lives']}".encode().ljust(512, b"\0"))
        print("counted", number)
        state["next"] += 1
        guest.keep(json.dumps(state).encode())
        await guest.sleep(0.2)
    for number in (1, 10):
        print((await disk.read(number, 1)).rstrip(b"\0").decode())
