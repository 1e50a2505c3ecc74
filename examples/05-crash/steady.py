"""A guest that goes on with its work, whatever happens next door."""


async def main(guest):
    for step in range(1, 6):
        await guest.work(0.01)
        print(f"step {step} of 5")
