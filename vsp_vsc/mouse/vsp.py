"""The mouse VSP: a pointer, its buttons and its wheel as a guest's HID driver gets them. Root side."""

from __future__ import annotations

import struct
from typing import Final

from hypervisor.trace import Trace
from vmbus.protocol.features import OfferFlag
from vmbus.server.offers import Offer
from vsp_vsc.input_device import InputVsp
from vsp_vsc.mouse.protocol import MAX_POSITION, MOUSE_INSTANCE, MOUSE_INTERFACE, Buttons
from vsp_vsc.mouse.session import MouseSession, button_words

_MESSAGE_PIPE: Final = 4
"""The pipe type that an offer's first word says."""


class MouseVsp(InputVsp[MouseSession]):
    """The mouse of one VM. Every call raises `NoDriver` while its guest has none."""

    def __init__(self, trace: Trace, partition_id: int, name: str = "mouse") -> None:
        offer = Offer(
            *(MOUSE_INTERFACE, MOUSE_INSTANCE),
            flags=int(OfferFlag.NAMED_PIPE_MODE),
            user_defined=struct.pack("<I116x", _MESSAGE_PIPE),
            name=name,
        )
        super().__init__(offer, MouseSession, trace, partition_id)
        self._counts = [0, 0, 0]

    def move(self, x: int, y: int, buttons: Buttons | int = 0, wheel: int = 0) -> None:
        """The pointer goes there, both 0 to 32767 across the screen, with exactly these buttons down.

        `wheel` counts steps away from the user. `ValueError` for what no report can say.
        """
        self._ready_session().report(x, y, int(buttons), wheel)
        self._send_soon()

    def point(self, x: int, y: int, width: int, height: int, buttons: Buttons | int = 0, wheel: int = 0) -> None:
        """The same in pixels of a screen; outside of it, the nearest on it."""
        self.move(scaled(x, width), scaled(y, height), buttons, wheel)

    def click(self, x: int, y: int, button: Buttons = Buttons.LEFT) -> None:
        """Go there, press and let go."""
        self.move(x, y)
        self.move(x, y, button)
        self.move(x, y)

    def release_all(self) -> None:
        """Every button goes up. Raises nothing."""
        if self.ready and self._session is not None:
            self._session.release_all()
            self._send_soon()

    # --- for `InputVsp`

    def _shown(self) -> dict[str, object]:
        counts, session = self._counts, self._session
        shown: dict[str, object] = {}
        if session is not None:
            counts = [a + b for a, b in zip(counts, _counts(session), strict=True)]
            shown = {"x": session.last.x, "y": session.last.y, "buttons": button_words(session.last.buttons)}
        return {**shown, **dict(zip(("reports", "merged", "lost"), counts, strict=True))}

    def _negotiated(self) -> str:
        return "version 2.0"

    def _ended(self, session: MouseSession) -> None:
        self._counts = [a + b for a, b in zip(self._counts, _counts(session), strict=True)]


def scaled(pixel: int, pixels: int) -> int:
    """A place on a screen so many pixels wide or high as a report has it, so that the guest gets that pixel back."""
    last = max(1, pixels - 1)
    return round(max(0, min(pixel, last)) * MAX_POSITION / last)


def _counts(session: MouseSession) -> tuple[int, int, int]:
    return session.reports, session.merged, session.lost
