"""A guest from the future: it asks for versions of the bus that there are not yet, and takes what it gets."""


async def main(guest):
    print(f"the host and I speak VMBus {guest.bus.version}")
