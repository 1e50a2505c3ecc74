"""A guest that fills a disk with a pattern, flushes it, and reads all of it back."""

import hashlib

CHUNK = 256 * 1024
AT_ONCE = 8


def pattern(chunk):
    """Another pattern for each chunk, so that a chunk in the wrong place is found."""
    return hashlib.sha256(b"chunk %d" % chunk).digest() * (CHUNK // 32)


async def main(guest):
    disk = await guest.disk(0)
    print(f"disk 0: {disk.model}, {disk.size >> 20} MiB in blocks of {disk.block_size}")
    blocks = CHUNK // disk.block_size
    chunks = range(disk.size // CHUNK)

    for first in chunks[::AT_ONCE]:
        await disk.write_many([(chunk * blocks, pattern(chunk)) for chunk in chunks[first : first + AT_ONCE]])
    await disk.flush()
    print(f"wrote and flushed {len(chunks)} chunks of {CHUNK >> 10} KiB")

    wrong = 0
    for first in chunks[::AT_ONCE]:
        batch = chunks[first : first + AT_ONCE]
        data = await disk.read_many([(chunk * blocks, blocks) for chunk in batch])
        wrong += sum(read != pattern(chunk) for chunk, read in zip(batch, data, strict=True))
    print(f"read them back: {wrong} wrong")

    # Single blocks out of order, one request at a time: the slow way, for comparison in the trace.
    for lba in (disk.blocks - 1, 0, disk.blocks // 2):
        block = await disk.read(lba)
        expected = pattern(lba // blocks)[:512]
        print(f"block {lba}:", "as written" if block == expected else "wrong")

    for number, extra in enumerate(guest.disks[1:], 1):
        print(f"disk {number}: {extra.size} bytes, sha256 {await checksum(extra)}")
    return 1 if wrong else 0


async def checksum(disk):
    """The SHA-256 of a whole disk, read in order."""
    digest = hashlib.sha256()
    step = CHUNK // disk.block_size
    for lba in range(0, disk.blocks, step):
        digest.update(await disk.read(lba, min(step, disk.blocks - lba)))
    return digest.hexdigest()
