"""A guest that takes devices as they come, uses them, and copes with their going."""

import struct

import trio

THERMOMETER = "7e3a0000-51c4-4e0b-9a2d-1f6f0c4b8a10"


async def measure(guest, device, finished):
    """Print what a thermometer says until it is pulled out, which is the end of its channel."""
    channel = await guest.open_channel(device)
    readings = []
    async for packet in channel:
        readings += struct.unpack_from("<d", packet.payload)
        if len(readings) <= 3:
            print(f"thermometer: {readings[-1]} degrees")
    print("thermometer: gone in the middle of it")
    finished.set()


async def look(guest):
    """A disk that came has its driver when the kernel has settled."""
    await guest.settled()
    disk = guest.disks[-1]
    await disk.write(0, b"the guest was here".ljust(disk.block_size))
    await disk.flush()
    print(f"disk: {disk.blocks * disk.block_size >> 10} KiB, and our mark is on it")


async def main(guest):
    finished, measured = trio.Event(), False
    print("devices at the start:", len(guest.bus.offers))
    async for change in guest.device_changes():
        if not change.arrived:
            await guest.departure(change.device)
            if change.name != THERMOMETER:
                print("went:", change.name)
            if measured and not guest.bus.offers:
                break
        elif change.name == THERMOMETER:
            measured = True
            print("came: a thermometer, on channel", change.device.channel_id)
            guest.start_soon(measure, guest, change.device, finished)
        else:
            print(f"came: {change.name}, on channel {change.device.channel_id}")
            guest.start_soon(look, guest)
    await finished.wait()
    print("devices at the end:", len(guest.bus.offers))
