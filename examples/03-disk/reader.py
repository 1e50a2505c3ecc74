"""A guest with a disk of its own and one that it may only read; it prints the checksum of every disk it has."""

import hashlib

from vsp_vsc.storage.vsc import ScsiError

CHUNK = 256 * 1024
NOTE = b"a note, one block long".ljust(512, b".")


async def main(guest):
    notes = await guest.disk(0)
    await notes.write(7, NOTE, fua=True)
    print("note kept:", await notes.read(7) == NOTE)

    library = await guest.disk(1)
    print("library is read-only:", library.read_only)
    print("its first line:", (await library.read(0)).split(b"\n")[0].decode())
    try:
        await library.write(0, NOTE)
    except ScsiError as error:
        print("writing to it:", error.sense.words)
    try:
        await library.read(library.blocks)
    except ScsiError as error:
        print("reading past its end:", error.sense.words)

    # All disks, those of `--disk reader=FILE` too. Reads go out in batches: one signal for eight of them.
    for number, disk in enumerate(guest.disks):
        print(f"disk {number}: {disk.size} bytes, sha256 {await checksum(disk)}")


async def checksum(disk):
    digest = hashlib.sha256()
    step = CHUNK // disk.block_size
    pieces = [(lba, min(step, disk.blocks - lba)) for lba in range(0, disk.blocks, step)]
    for first in range(0, len(pieces), 8):
        for data in await disk.read_many(pieces[first : first + 8]):
            digest.update(data)
    return digest.hexdigest()
