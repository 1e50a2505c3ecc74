"""A guest that reads single blocks, and once a whole shelf: two dozen requests with one signal."""

CHUNK = 512  # blocks, 256 KiB
SHELF = 24  # chunks


async def main(guest):
    disk = await guest.disk(0)
    for chunk in range(SHELF):
        await disk.write(chunk * CHUNK, bytes([chunk]) * CHUNK * disk.block_size)
    for lba in range(0, 40, 8):
        await disk.read(lba)
    shelf = await disk.read_many([(chunk * CHUNK, CHUNK) for chunk in range(SHELF)])
    print(sum(map(len, shelf)), "bytes from the shelf")
    for lba in range(40, 80, 8):
        await disk.read(lba)
