"""Reads from its disk, many at a time, for so many steps of half a second, and says how fast it was in each."""

DEPTH = 8
STEP, SETTLING = 0.5, 0.2


async def main(guest):
    disk = await guest.disk(0)
    blocks = guest.args.get("kib", 4) * 1024 // disk.block_size
    steps, reads = guest.args["steps"], 0

    async def reader():
        nonlocal reads
        while guest.time() < steps * STEP:
            await disk.read(0, blocks)
            reads += 1

    for _ in range(DEPTH):
        guest.start_soon(reader)
    for step in range(1, steps + 1):
        await guest.sleep(SETTLING)
        before = reads
        await guest.sleep(STEP - SETTLING - 0.01)
        print(f"step {step}: {round((reads - before) / (STEP - SETTLING - 0.01), -1):.0f} IOPS")
        await guest.sleep(0.01)
