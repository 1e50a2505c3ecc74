"""A guest that waits. `--timeout 1` is over before its patience is."""


async def main(guest):
    print("waiting")
    await guest.sleep(1.3)
    print("that was long")
