"""A DVD drive: a read-only disc image that can be ejected and replaced, by MMC-6 and SPC-4. Root side.

The drive stays, the disc comes and goes: by the guest (START STOP UNIT), unless an initiator prevents it, and by the
host. News of that come twice, as MMC wants it: as a unit attention, and as a media event for those who poll with GET
EVENT STATUS NOTIFICATION. It is always a DVD-ROM with one session and one data track, whatever the image's size.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Callable
from functools import partial

from vsp_vsc.storage.backends.base import DiskBackend, IoOperation, Job, inspect_backend
from vsp_vsc.storage.scsi.answer import GOOD, Refused, ScsiResult, Views, first_bytes
from vsp_vsc.storage.scsi.commands import Call, CommandSet
from vsp_vsc.storage.scsi.primary import row
from vsp_vsc.storage.scsi.reservations import Access
from vsp_vsc.storage.scsi.sense import Reason, descriptor_sense, fixed_sense
from vsp_vsc.storage.scsi.unit import LogicalUnit

BLOCK = 2048
"""Bytes; the medium knows no other."""
_SHIFT = 11
_MOST_BLOCKS = 0xFFFF_FFFF
_DVD_ROM, _CD_ROM = 0x0010, 0x0008
"""Profiles (MMC-6 table 96)."""
_LEAD_OUT = 0xAA
_DATA_TRACK = 0x14
"""ADR 1, and a data track that was recorded without interruption."""
_FRAMES, _SECONDS, _PREGAP = 75, 60, 150
_MEDIA_EVENTS = 4
"""The notification class."""
_TRAY = 1
"""The loading mechanism."""


class MediaEvent(enum.IntEnum):
    """What GET EVENT STATUS NOTIFICATION tells once (MMC-6 table 297)."""

    NONE = 0
    EJECT_REQUEST = 1
    """Somebody pressed the button: the host asked."""
    NEW_MEDIA = 2
    MEDIA_REMOVAL = 3


class DvdDrive(LogicalUnit):
    """A drive with a disc, or without."""

    device_type = 0x05
    removable = True
    block_size = BLOCK
    read_only = True

    def __init__(self, backend: DiskBackend | None, *, identity: str) -> None:
        super().__init__(identity, "PARTITA", "VIRTUAL DVD", "1.0")
        self.backend = backend
        """The disc; None if there is none."""
        self.on_eject: Callable[[], object] = lambda: None
        """Called when the disc has been taken out, by whomever; its backend is the caller's to close."""
        self._event = MediaEvent.NONE

    @property
    def blocks(self) -> int:
        """Capacity, 0 without a disc; what lies behind the last block that has an address of 32 bits is not shown."""
        return 0 if self.backend is None else min(self.backend.size_bytes >> _SHIFT, _MOST_BLOCKS)

    # --- the host's hands

    def medium(self) -> dict[str, object]:
        """The disc, if there is one."""
        backend = self.backend
        return {"blocks": self.blocks, "disc": None if backend is None else lambda: inspect_backend(backend)}

    def insert(self, backend: DiskBackend) -> None:
        """Put a disc in. ValueError if there is one."""
        if self.backend is not None:
            raise ValueError("the drive has a disc in it")
        self.backend = backend
        self._event = MediaEvent.NEW_MEDIA
        self.attend(Reason.MEDIUM_MAY_HAVE_CHANGED)

    def eject(self) -> None:
        """Take the disc out, whoever prevents it: the pin in the little hole."""
        if self.backend is None:
            return
        self.backend = None
        self.preventing.clear()
        self._event = MediaEvent.MEDIA_REMOVAL
        self.on_eject()

    def request_eject(self) -> None:
        """Press the button on a drive whose disc is held: the guest is told, and may let go of it."""
        self._event = MediaEvent.EJECT_REQUEST

    # --- reading

    def read_now(self, lba: int, count: int, views: Views) -> bool:
        """See `Nexus.read_now`."""
        disc = self.backend
        try:
            return (
                disc is not None and lba + count <= self.blocks and disc.try_read(views, lba << _SHIFT, count << _SHIFT)
            )
        except OSError:
            return False

    def _read_10(self, call: Call) -> ScsiResult | None:
        return self._read(call, call.number(7, 2), 7)

    def _read_12(self, call: Call) -> ScsiResult | None:
        return self._read(call, call.number(6, 4), 6)

    def _read(self, call: Call, count: int, field: int) -> ScsiResult | None:
        disc, lba = self._disc(), call.number(2, 4)
        if lba + count > self.blocks:
            raise Refused(Reason.LBA_OUT_OF_RANGE, information=max(lba, self.blocks))
        size = count << _SHIFT
        if size > call.length:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=field)
        if not size:
            return GOOD
        views = call.views if size == call.length else first_bytes(call.views, size)
        try:
            if disc.try_read(views, lba << _SHIFT, size):
                return ScsiResult(0, b"", size)
        except OSError as error:
            return self._host_failed(error, lba)
        finished = partial(self._finished, call, call.nexus.begin(), lba, size)
        disc.submit(Job(IoOperation.READ, finished, views, lba << _SHIFT, size))
        return None

    def _finished(self, call: Call, epoch: int, lba: int, size: int, error: OSError | None) -> None:
        result = ScsiResult(0, b"", size) if error is None else self._host_failed(error, lba)
        call.nexus.end(epoch, call.tag, call.done, result)

    def _host_failed(self, error: OSError, lba: int) -> ScsiResult:
        self._host_errors += 1
        if error.errno == errno.EIO:
            return self.refuse(Refused(Reason.UNRECOVERED_READ_ERROR, information=lba))
        return self.refuse(Refused(Reason.INTERNAL_TARGET_FAILURE))

    # --- the disc

    def _disc(self) -> DiskBackend:
        if self.backend is None:
            raise Refused(Reason.MEDIUM_NOT_PRESENT)
        return self.backend

    def _test_unit_ready(self, _call: Call) -> ScsiResult:
        self._disc()
        return GOOD

    def _read_capacity(self, call: Call) -> ScsiResult:
        self._disc()
        return call.give((self.blocks - 1).to_bytes(4, "big") + BLOCK.to_bytes(4, "big"), 8)

    def _read_toc(self, call: Call) -> ScsiResult:
        """One track, and the lead-out behind it; or the one session."""
        self._disc()
        in_time, toc_format, start = bool(call.cdb[1] & 2), call.cdb[2] & 0x0F, call.cdb[6]
        match toc_format:
            case 0 if start <= 1:
                tracks = [(1, 0), (_LEAD_OUT, self.blocks)]
            case 0 if start == _LEAD_OUT:
                tracks = [(_LEAD_OUT, self.blocks)]
            case 1:
                tracks = [(1, 0)]
            case 0:
                raise Refused(Reason.INVALID_FIELD_IN_CDB, field=6)
            case _:
                raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=3)
        body = bytes((1, 1))
        for number, lba in tracks:
            body += bytes((0, _DATA_TRACK, number, 0)) + _place(lba, in_time=in_time)
        return call.give(len(body).to_bytes(2, "big") + body, call.number(7, 2))

    def _read_disc_information(self, call: Call) -> ScsiResult:
        """A complete disc of one session and one track, which cannot be written."""
        self._disc()
        if call.cdb[1] & 7:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=2)
        body = bytes((0x0E, 1, 1, 1, 1, 0, 0, 0, 0, 0)).ljust(32, b"\0")
        return call.give(len(body).to_bytes(2, "big") + body, call.number(7, 2))

    # --- the drive

    def _inquiry(self, call: Call) -> ScsiResult:
        page, allocation = call.cdb[2], call.number(3, 2)
        if not call.cdb[1] & 1:
            if page:
                raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2)
            header = bytes((self.device_type, 0x80, 0x05, 2, 31, 0, 0, 0x02))
            return call.give(header + self.vendor + self.product + self.revision, allocation)
        match page:
            case 0x00:
                body = bytes((0x00, 0x80, 0x83))
            case 0x80:
                body = self.serial.encode("ascii")
            case 0x83:
                name = self.vendor + self.serial.encode("ascii")
                body = bytes((0x02, 0x01, 0, len(name))) + name + bytes((0x01, 0x03, 0, len(self.wwn))) + self.wwn
            case _:
                raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2)
        return call.give(bytes((self.device_type, page, 0, len(body))) + body, allocation)

    def _request_sense(self, call: Call) -> ScsiResult:
        reason = call.nexus.next_attention()
        if reason is None:
            reason = Reason.NO_SENSE if self.backend is not None else Reason.MEDIUM_NOT_PRESENT
        return call.give(descriptor_sense(reason) if call.cdb[1] & 1 else fixed_sense(reason), call.cdb[4])

    def _get_configuration(self, call: Call) -> ScsiResult:
        """What the drive can do; a feature that needs a disc is current only with one."""
        wanted, start = call.cdb[1] & 3, call.number(2, 2)
        present = self.backend is not None
        body = b""
        for code, version, always, data in _FEATURES:
            if code < start or (wanted == 2 and code != start):
                continue
            current = always or present
            if wanted == 1 and not current:
                continue
            if code == 0:
                data = b"".join(
                    profile.to_bytes(2, "big") + bytes((present and profile == _DVD_ROM, 0))
                    for profile in (_DVD_ROM, _CD_ROM)
                )
            body += code.to_bytes(2, "big") + bytes((version << 2 | always << 1 | current, len(data))) + data
        if wanted == 3:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=1)
        profile = _DVD_ROM if present else 0
        header = (4 + len(body)).to_bytes(4, "big") + bytes(2) + profile.to_bytes(2, "big")
        return call.give(header + body, call.number(7, 2))

    def _get_event_status(self, call: Call) -> ScsiResult:
        """Polled only; each event is told once."""
        if not call.cdb[1] & 1:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=0)
        supported = 1 << _MEDIA_EVENTS
        if not call.cdb[4] & supported:
            return call.give(bytes((0, 2, 0x80, supported)), call.number(7, 2))  # no event of these classes
        allocation = call.number(7, 2)
        event = self._event
        if min(allocation, call.length) > 4:
            self._event = MediaEvent.NONE
        status = 0x02 if self.backend is not None else 0
        return call.give(bytes((0, 6, _MEDIA_EVENTS, supported, event, status, 0, 0)), allocation)

    def _start_stop(self, call: Call) -> ScsiResult:
        """Eject or load; a disc that was loaded by nobody does not appear. Spinning up and down needs nothing."""
        load_or_eject, start = call.cdb[4] & 2, call.cdb[4] & 1
        if load_or_eject and not start:
            if self.preventing:
                raise Refused(Reason.MEDIUM_REMOVAL_PREVENTED)
            self.eject()
        return GOOD

    def _prevent_allow(self, call: Call) -> ScsiResult:
        if call.cdb[4] & 1:
            self.preventing.add(call.nexus)
        else:
            self.preventing.discard(call.nexus)
        return GOOD

    def _mode_sense_6(self, call: Call) -> ScsiResult:
        pages = self._pages(call)
        return call.give(bytes((3 + len(pages), self._medium_type, 0x80, 0)) + pages, call.cdb[4])

    def _mode_sense_10(self, call: Call) -> ScsiResult:
        pages = self._pages(call)
        header = (6 + len(pages)).to_bytes(2, "big") + bytes((self._medium_type, 0x80)) + bytes(4)
        return call.give(header + pages, call.number(7, 2))

    @property
    def _medium_type(self) -> int:
        """120 mm data disc, or none."""
        return 0x41 if self.backend is not None else 0x70

    def _pages(self, call: Call) -> bytes:
        control, code = call.cdb[2] >> 6, call.cdb[2] & 0x3F
        if control == 3:
            raise Refused(Reason.SAVING_NOT_SUPPORTED)
        if call.cdb[3]:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=3)
        pages = [page for page in _PAGES if code in (page[0], 0x3F)]
        if not pages:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
        if control == 1:  # nothing can be changed
            pages = [page[:2] + bytes(len(page) - 2) for page in pages]
        return b"".join(pages)

    def _mechanism_status(self, call: Call) -> ScsiResult:
        return call.give(bytes((0, 0, 0, 0, 0, 1, 0, 0)), call.number(8, 2))

    def _nothing(self, _call: Call) -> ScsiResult:
        """Speeds and heads: there are none."""
        return GOOD


def _place(lba: int, *, in_time: bool) -> bytes:
    """A block's address, in 4 bytes: its number, or the minute, second and frame where a CD would have it."""
    if not in_time:
        return lba.to_bytes(4, "big")
    seconds, frame = divmod(lba + _PREGAP, _FRAMES)
    minute, second = divmod(seconds, _SECONDS)
    return bytes((0, min(minute, 255), second, frame))


# Code, version, whether it is always there, data (MMC-6 5.3). The profile list depends on the disc.
_FEATURES: tuple[tuple[int, int, bool, bytes], ...] = (
    (0x0000, 0, True, b""),
    (0x0001, 2, True, bytes((0, 0, 0, 1, 1, 0, 0, 0))),  # core, over SCSI
    (0x0002, 1, True, bytes((2, 0, 0, 0))),  # morphing: says of events that concern operation
    (0x0003, 1, True, bytes((_TRAY << 5 | 0x09, 0, 0, 0))),  # removable medium: ejects, can be locked
    (0x0010, 0, False, BLOCK.to_bytes(4, "big") + bytes((0, 1, 0, 0))),  # random readable, one block at a time
    (0x001F, 1, False, bytes((0, 0, 0, 0))),  # DVD read
    (0x0105, 1, True, bytes(4)),  # timeouts
)
_PAGES = (
    bytes((0x01, 0x0A)) + bytes(10),  # read error recovery
    # Capabilities: reads CD-R, CD-RW, DVD-ROM, DVD-R; tray, ejects, locks; 16 times a DVD's speed, and a buffer.
    bytes((0x2A, 0x14, 0x1B, 0, 0x10, 0, _TRAY << 5 | 0x09, 0))
    + (22160).to_bytes(2, "big")
    + bytes(2)
    + (512).to_bytes(2, "big")
    + (22160).to_bytes(2, "big")
    + bytes(6),
)


DvdDrive.commands = CommandSet(
    (
        row("00 00 00 00 00 00", Access.STATUS, DvdDrive._test_unit_ready),
        row("03 01 00 00 FF 00", Access.FREE, DvdDrive._request_sense, despite_attention=True),
        row("12 01 FF FF FF 00", Access.FREE, DvdDrive._inquiry, despite_attention=True),
        row("1A 08 FF FF FF 00", Access.READ, DvdDrive._mode_sense_6),
        row("1B 01 00 0F F7 00", Access.WRITE, DvdDrive._start_stop),
        row("1E 00 00 00 03 00", Access.WRITE, DvdDrive._prevent_allow),
        row("25 00 00000000 0000 00 00", Access.STATUS, DvdDrive._read_capacity),
        row("28 18 FFFFFFFF 00 FFFF 00", Access.READ, DvdDrive._read_10),
        row("2B 00 FFFFFFFF 000000 00", Access.READ, DvdDrive._nothing),
        row("43 02 0F 000000 FF FFFF 00", Access.READ, DvdDrive._read_toc),
        row("46 03 FFFF 000000 FFFF 00", Access.FREE, DvdDrive._get_configuration, despite_attention=True),
        row("4A 01 0000 FF 0000 FFFF 00", Access.FREE, DvdDrive._get_event_status, despite_attention=True),
        row("51 07 0000000000 FFFF 00", Access.READ, DvdDrive._read_disc_information),
        row("5A 18 FF FF 000000 FFFF 00", Access.READ, DvdDrive._mode_sense_10),
        row("A8 18 FFFFFFFF FFFFFFFF 80 00", Access.READ, DvdDrive._read_12),
        row("BB 03 FFFF FFFF 0000000000 00", Access.READ, DvdDrive._nothing),
        row("BD 00000000000000 FFFF 00 00", Access.STATUS, DvdDrive._mechanism_status),
    )
)
