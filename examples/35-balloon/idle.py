"""Was given much memory and uses little of it: its balloon holds the rest."""


async def main(guest):
    memory = guest.memory
    await memory.use(30 << 20)
    for _ in range(5):
        print(
            f"[{guest.time():3.0f} s] I see {memory.size >> 20} MiB and use {memory.used >> 20};"
            f" {memory.ballooned >> 20} MiB are in my balloon, {memory.free >> 20} MiB are free"
        )
        await guest.sleep(4)
    print("I want 200 MiB more, now")
    waited = await memory.use(200 << 20)
    print(f"I waited {waited:.1f} s for {memory.swapped >> 20} MiB to be swapped out")
    await guest.sleep(4)
    waited = await memory.touch()
    print(
        f"[{guest.time():3.0f} s] {memory.ballooned >> 20} MiB are in my balloon;"
        f" {waited:.1f} s, and {memory.swapped >> 20} MiB are swapped out"
    )
