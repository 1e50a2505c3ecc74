"""Mode pages: their current, changeable and default values, and what MODE SELECT makes of them. Root side.

Every page is a row of bytes with its defaults and a mask of what can be changed. Nothing is saved. The values are one
set for all initiators; who changes them has the others told.
"""

from __future__ import annotations

import attrs

from vsp_vsc.storage.scsi.answer import Refused
from vsp_vsc.storage.scsi.sense import Reason

CACHING, CONTROL, ALL_PAGES = 0x08, 0x0A, 0x3F
_WCE = 0x04
_D_SENSE, _SWP, _TAS = 0x04, 0x08, 0x40


@attrs.frozen
class Page:
    """A mode page in page_0 format (SPC-4 table 349), its two header bytes included."""

    defaults: bytes
    changeable: bytes

    @property
    def code(self) -> int:
        """Its number."""
        return self.defaults[0]


def _page(code: int, size: int, defaults: dict[int, int], changeable: dict[int, int]) -> Page:
    def made(values: dict[int, int]) -> bytes:
        page = bytearray(size)
        page[0], page[1] = code, size - 2
        for offset, value in values.items():
            page[offset] = value
        return bytes(page)

    return Page(made(defaults), made(changeable))


PAGES = {
    page.code: page
    for page in (
        # SBC-3 6.5.5: a write cache, which can be turned off.
        _page(CACHING, 20, {2: _WCE}, {2: _WCE}),
        # SPC-4 7.5.8: one task set, in any order, aborted commands end with a status. Sense data in descriptor format
        # and software write protection can be turned on.
        _page(CONTROL, 12, {3: 0x10, 5: _TAS}, {2: _D_SENSE, 4: _SWP}),
    )
}


class ModePages:
    """One unit's values."""

    def __init__(self) -> None:
        self._current: dict[int, bytes] = {}
        self.restore()

    def restore(self) -> None:
        """Defaults, as after a reset."""
        self._current = {code: page.defaults for code, page in PAGES.items()}
        self._look()

    def _look(self) -> None:
        control = self._current[CONTROL]
        self.write_cache = bool(self._current[CACHING][2] & _WCE)
        """Whether writes may end before they are on the medium."""
        self.descriptor_sense = bool(control[2] & _D_SENSE)
        """Which format of sense data comes with CHECK CONDITION."""
        self.write_protected = bool(control[4] & _SWP)
        """Whether initiators have agreed not to write."""

    def sense(self, page_control: int, code: int, subpage: int) -> bytes:
        """The pages that MODE SENSE asks for, one after the other. Raises `Refused`."""
        if page_control == 3:
            raise Refused(Reason.SAVING_NOT_SUPPORTED)
        if code != ALL_PAGES and code not in PAGES:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
        if subpage not in (0x00, 0xFF):
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=3)
        return b"".join(self._value(number, page_control) for number in PAGES if code in (number, ALL_PAGES))

    def _value(self, code: int, page_control: int) -> bytes:
        if page_control == 1:
            return PAGES[code].changeable
        return PAGES[code].defaults if page_control == 2 else self._current[code]

    def select(self, untrusted_pages: bytes, first: int) -> bool:
        """The pages of a MODE SELECT, which begin at byte `first` of its parameter list; whether they change anything.

        All are checked before one is taken. Raises `Refused`.
        """
        values = dict(self._current)
        position = 0
        while position < len(untrusted_pages):
            position += self._select_one(untrusted_pages[position:], first + position, values)
        changed = values != self._current
        self._current = values
        self._look()
        return changed

    def _select_one(self, untrusted_rest: bytes, first: int, values: dict[int, bytes]) -> int:
        """Check the page that a list begins with and put it among `values`; its size."""
        page = PAGES.get(untrusted_rest[0])
        if page is None:
            raise _wrong(first)  # a page that is not there, or PS or SPF set
        size = len(page.defaults)
        if len(untrusted_rest) < 2:
            raise Refused(Reason.PARAMETER_LIST_LENGTH_ERROR)
        if untrusted_rest[1] != size - 2:
            raise _wrong(first + 1)
        if len(untrusted_rest) < size:
            raise Refused(Reason.PARAMETER_LIST_LENGTH_ERROR)
        old = self._current[page.code]
        for offset in range(2, size):
            fixed = (untrusted_rest[offset] ^ old[offset]) & ~page.changeable[offset]
            if fixed:
                raise _wrong(first + offset, fixed.bit_length() - 1)
        values[page.code] = untrusted_rest[:size]
        return size


def _wrong(field: int, bit: int | None = None) -> Refused:
    return Refused(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=field, bit=bit, in_data=True)
