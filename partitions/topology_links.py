"""The tables of a slow network in a topology: what an adapter may send, and what its cable does to frames. Root side.

Everywhere the default means that nothing is done. The names of `link` are tc-netem's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from partitions.topology_controls import DEFAULT_WEIGHT, Weight, amount
from partitions.topology_units import Duration, Rate, Size
from vsp_vsc.network.switch.kinds import DEFAULT_QUEUE, LinkDirection

if TYPE_CHECKING:
    from vsp_vsc.network.shaping.settings import Bandwidth, LinkSettings

Percent = Annotated[float, Meta(ge=0, le=100)]
Queue = Annotated[int, Meta(ge=1, le=1_000_000)]


class BandwidthTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What an adapter may send, in bits a second such as `"8Mbit"`."""

    reserve: Annotated[Rate, amount("Guaranteed whenever it has so much to send.", 0)] = msgspec.field(
        default_factory=lambda: Rate(0)
    )
    limit: Annotated[Rate, amount("Never more; 0 is no limit.", 0)] = msgspec.field(default_factory=lambda: Rate(0))
    weight: Weight = DEFAULT_WEIGHT
    burst: Annotated[
        Size,
        amount(
            "Bytes that it may send at once after a rest; 0 is 10 ms at its limit, and ten full frames at least.", 0
        ),
    ] = msgspec.field(default_factory=lambda: Size(0))
    queue: Annotated[Queue, Meta(description="Frames that wait for their turn; what comes on top is dropped.")] = (
        DEFAULT_QUEUE
    )


class BurstLossTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Loss that comes in bursts, by Gilbert and Elliott: a good and a bad state, all in percent."""

    p: Annotated[Percent, Meta(description="That the good state ends with a frame.")] = 0.0
    r: Annotated[Percent, Meta(description="That the bad state ends with a frame.")] = 100.0
    bad: Annotated[Percent, Meta(description="That a frame is lost in the bad state (netem's 1-h).")] = 100.0
    good: Annotated[Percent, Meta(description="That a frame is lost in the good state (netem's 1-k).")] = 0.0


class LinkTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What an adapter's cable does to frames."""

    rate: Annotated[Rate, amount("How fast it is, in each direction; 0 is at once.", 0)] = msgspec.field(
        default_factory=lambda: Rate(0)
    )
    delay: Annotated[Duration, amount('How long it is, such as "50ms".', 0)] = msgspec.field(
        default_factory=lambda: Duration(0)
    )
    jitter: Annotated[Duration, amount("Up to so much longer, for each frame anew; none overtakes.", 0)] = (
        msgspec.field(default_factory=lambda: Duration(0))
    )
    loss: Annotated[Percent, Meta(description="Percent of frames that are lost.")] = 0.0
    burst_loss: BurstLossTable | None = None
    duplicate: Annotated[Percent, Meta(description="Percent of frames that arrive twice.")] = 0.0
    reorder: Annotated[Percent, Meta(description="Percent of frames that go without delay, and overtake.")] = 0.0
    gap: Annotated[int, Meta(ge=1, le=1_000_000, description="Only each such frame may be reordered.")] = 1
    corrupt: Annotated[Percent, Meta(description="Percent of frames of which one bit is turned over.")] = 0.0
    limit: Annotated[Queue, Meta(description="Frames that are on their way; what comes on top is dropped.")] = (
        DEFAULT_QUEUE
    )
    direction: Annotated[LinkDirection, Meta(description='"out": what the VM sends, "in", or "both".')] = (
        LinkDirection.BOTH
    )
    seed: Annotated[int, Meta(ge=0, description="Of its chances; by default they come of the host's.")] | None = None


def bandwidth_of(table: BandwidthTable | None) -> Bandwidth | None:
    """As the port takes it."""
    if table is None:
        return None
    from vsp_vsc.network.shaping.settings import Bandwidth

    return Bandwidth(table.reserve, table.limit, table.weight, table.burst, table.queue)


def link_of(table: LinkTable | None) -> LinkSettings | None:
    """As the port takes it."""
    if table is None:
        return None
    from vsp_vsc.network.shaping.settings import LinkSettings, chance

    bursts = table.burst_loss
    return LinkSettings(
        rate=table.rate,
        delay=table.delay,
        jitter=table.jitter,
        loss=chance(table.loss if bursts is None else bursts.good),
        to_bad=0 if bursts is None else chance(bursts.p),
        to_good=0 if bursts is None else chance(bursts.r),
        bad_loss=chance(100 if bursts is None else bursts.bad),
        duplicate=chance(table.duplicate),
        reorder=chance(table.reorder),
        gap=table.gap,
        corrupt=chance(table.corrupt),
        limit=table.limit,
        direction=table.direction,
        seed=table.seed,
    )
