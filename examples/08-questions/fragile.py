"""A guest with a bug: it takes the head of a list that is empty."""


async def main(guest):
    await guest.sleep(0.5)
    print("the first:", [][0])
