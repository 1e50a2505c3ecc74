"""Was given little memory and uses more than that: its host adds some."""


async def main(guest):
    memory = guest.memory
    await guest.sleep(2)
    print("I use 400 MiB")
    waited = await memory.use(400 << 20)
    print(f"I waited {waited:.1f} s for {memory.swapped >> 20} MiB to be swapped out")
    await guest.sleep(2)
    waited = await memory.touch()
    print(
        f"[{guest.time():3.0f} s] I see {memory.size >> 20} MiB, of which {memory.added >> 20} were added;"
        f" {memory.swapped >> 20} MiB are swapped out"
    )
    await guest.sleep(1)
    print(f"I need {100 * memory.demand / (memory.size - memory.ballooned):.0f} % of what I have")
    await guest.sleep(3)
