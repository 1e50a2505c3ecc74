"""What a port has carried and dropped, shaped or not. Root side."""

from __future__ import annotations

import attrs

from vsp_vsc.network.switch.ports import Port


@attrs.frozen
class PortFigures:
    """What a port has done since it was made; bits, frames, nanoseconds."""

    sent_bits: int
    """By the adapter, that came to the switch."""
    received_bits: int
    """By the adapter."""
    dropped: int
    """Frames, for whatever reason."""
    queued_frames: int
    """That wait for their turn, or are on the cable."""
    queued_bits: int
    """Those that wait for their turn."""
    delayed_frames: int
    """That had to wait for their turn."""
    delay_ns: int
    """They together."""


def plain_figures(port: Port) -> PortFigures:
    """Of a port where nothing waits."""
    return PortFigures(
        sent_bits=8 * port.sent_bytes,
        received_bits=8 * port.received_bytes,
        dropped=sum(port.drops.values()),
        queued_frames=0,
        queued_bits=0,
        delayed_frames=0,
        delay_ns=0,
    )
