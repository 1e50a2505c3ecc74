"""A guest with a bug: it divides by what its topology gives it."""


def share(cake, guests):
    return cake / guests


async def main(guest):
    print("working")
    await guest.sleep(0.02)
    print("one piece each:", share(12, guest.args["divisor"]))
