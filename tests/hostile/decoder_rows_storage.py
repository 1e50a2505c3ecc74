"""Decoders of a disk adapter's bytes."""

from __future__ import annotations

import functools
import struct

from tests.hostile.decoder_rows import NONE, Decoder, Rows, stateless
from vmbus.ring import Packet
from vsp_vsc.storage import saved
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.negotiation import Negotiation
from vsp_vsc.storage.scsi import modes, primary, provisioning, sense
from vsp_vsc.storage.scsi.answer import Refused, ScsiResult
from vsp_vsc.storage.scsi.target import ScsiTarget


@functools.cache
def disk() -> ScsiTarget:
    return ScsiTarget(MemoryBackend(1 << 20))


def command(data: bytes, number: int) -> object:
    """Any CDB, and any parameter data in its buffer."""
    cdb, rest = data[:16].ljust(16, b"\0"), bytearray(data[16:])
    nexus, ended = disk().connect("guest"), list[ScsiResult]()
    result = nexus.start(cdb, (memoryview(rest),), len(rest), "tag", lambda _tag, late: ended.append(late))
    assert (result is None) == bool(ended)
    nexus.close()
    return result


def negotiate(data: bytes, number: int) -> object:
    """Whatever a guest's control packet says, in any state."""
    negotiation = Negotiation(4)
    for operation, body in ((7, b""), (9, struct.pack("<HH", 0x602, 0)), (10, b""), (8, b""))[: number % 5]:
        negotiation.control(operation, bytes(12) + body.ljust(52, b"\0"))
    return negotiation.control(number >> 8 & 15, data)


FIXED_SENSE, DESCRIPTOR_SENSE = bytes((0x70, 0, 5, 0, 0, 0, 0, 10)) + bytes(10), bytes((0x72, 5, 0x24, 0, 0, 0, 0, 8))

DECODERS = {
    "vsp_vsc.storage.saved.decode_session": Decoder(
        stateless(saved.decode_session), (saved.encode_session(Negotiation(), [Packet(11, 0, 5, 0, bytes(64))]),)
    ),
    "vsp_vsc.storage.scsi.modes.ModePages.select": Decoder(
        lambda data, number: modes.ModePages().select(data, number & 15),
        tuple(page.defaults for page in modes.PAGES.values()),
        Refused,
    ),
    "vsp_vsc.storage.scsi.primary._says_the_same": Decoder(
        lambda data, number: primary._says_the_same(data, bytes(8 if number & 1 else 16)), (bytes(8), bytes(16))
    ),
    "vsp_vsc.storage.scsi.provisioning._unmap_ranges": Decoder(
        lambda data, number: provisioning._unmap_ranges(disk(), data),
        (struct.pack(">HH4xQI4x", 22, 16, 4, 8), struct.pack(">HH4x", 6, 0)),
        Refused,
    ),
    "vsp_vsc.storage.scsi.sense.decode_sense": Decoder(
        stateless(sense.decode_sense), (FIXED_SENSE, DESCRIPTOR_SENSE + bytes(12))
    ),
    "vsp_vsc.storage.negotiation.Negotiation.control": Decoder(negotiate, (bytes(64),)),
    "Nexus.start": Decoder(
        command,
        (
            *(bytes((code,)).ljust(40, b"\0") for code in (0x12, 0x15, 0x1A, 0x28, 0x2A, 0x41, 0x55, 0x5E, 0x5F)),
            struct.pack(">B6xHx6x", 0x42, 24) + struct.pack(">HH4xQI4x", 22, 16, 4, 8),
        ),
        NONE,
    ),
}

ELSEWHERE = {
    "vsp_vsc.storage.scsi.modes.ModePages._select_one": "of `select`",
    "vsp_vsc.storage.scsi.sense._decode_descriptors": "of `decode_sense`",
    "vsp_vsc.storage.negotiation.Negotiation._before_the_end": "of `control`",
    "vsp_vsc.storage.negotiation.Negotiation._create_sub_channels": "of `control`",
    "vsp_vsc.storage.negotiation.Negotiation._query_version": "of `control`",
    "vsp_vsc.storage.negotiation.Negotiation._ready": "of `control`",
    "vsp_vsc.storage.session.StorageSession._reset": "whole packets: tests/hostile/test_storage",
    "vsp_vsc.storage.session.StorageSession._without_data": "whole packets: as above",
    "vsp_vsc.storage.vsp.StorageVsp.load": "`decode_session`",
}

ROWS = Rows(DECODERS, ELSEWHERE, {"vsp_vsc.storage.": "hostile/test_storage_machine.py"})
