"""What a row of the hypercall table says about a call. Hypervisor."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from hypervisor.hypercall.abi import FAST_BYTES, CallCode
from hypervisor.hypercall.layouts import NoInput
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import PartitionState
from hypervisor.privileges import Privilege
from hypervisor.wire import Wire

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

SimpleHandler: TypeAlias = "Callable[[Hypervisor, VirtualProcessor, Partition, Any], bytes | None]"
"""(hypervisor, calling VP, target partition, input) to the output block, or None where there is none. Raises HvError.

The target is the partition that the input names, checked already; the caller's own where the call names none.
"""


@attrs.define
class Reps:
    """The list elements of one trip of a rep call."""

    start: int
    """Index of the first element of this trip in the whole list."""
    count: int
    data: bytes = b""
    """Their input, a private copy."""
    output: bytearray = attrs.field(factory=bytearray)
    """The handler appends what each completed element puts out."""


RepHandler: TypeAlias = "Callable[[Hypervisor, VirtualProcessor, Partition, Any, Reps], None]"
"""As above, for a piece of the list; HvError.completed counts the elements of this piece before the failure."""


class Unfinished(Exception):
    """A simple call that has worked long enough for one trip; the caller executes it again as it stands."""


class Who(enum.Enum):
    """Which partition a call may name in the first eight bytes of its input, seen from the caller."""

    NOBODY = "no partition is named"
    PARENT = "parent of the partition"
    PARENT_OR_SELF = "parent of the partition, or itself"
    PARENT_OR_ROOT_SELF = "parent of the partition, or the root on itself"


ONLY_ACTIVE = frozenset({PartitionState.ACTIVE})


@attrs.frozen(kw_only=True)
class Call:
    """One row of the table: everything that the dispatcher and the documentation know of a call."""

    code: CallCode
    name: str
    handler: Callable[..., Any]
    """A SimpleHandler, or a RepHandler if `rep`; with a `variable` header, its bytes come behind the input."""
    privilege: Privilege = Privilege.NONE
    who: Who = Who.NOBODY
    states: frozenset[PartitionState] = ONLY_ACTIVE
    """States of the named partition in which the call is legal."""
    request: type[Wire] = NoInput
    response: type[Wire] | None = None
    rep: bool = False
    variable: bool = False
    """The caller puts a header of its own length, in units of eight bytes, between the input and the list."""
    element_in: int = 0
    """Bytes of input for each list element."""
    element_out: int = 0
    """Bytes of output for each list element."""
    reps_a_trip: int = 0
    """How many elements are done before the caller gets to take its interrupts."""
    fast: bool = False
    """May be called with the input in registers."""
    long_running: bool = False
    """May raise Unfinished."""

    # What the dispatcher reads at every call, worked out once.
    needs: int = attrs.field(init=False)
    input_size: int = attrs.field(init=False)
    output_size: int = attrs.field(init=False)
    unpack: Callable[..., tuple[Any, ...]] = attrs.field(init=False, repr=False)

    @needs.default
    def _needs(self) -> int:
        return int(self.privilege)

    @input_size.default
    def _input_size(self) -> int:
        return self.request.SIZE

    @output_size.default
    def _output_size(self) -> int:
        return self.response.SIZE if self.response else 0

    @unpack.default
    def _unpack(self) -> Callable[..., tuple[Any, ...]]:
        return self.request.STRUCT.unpack_from

    def __attrs_post_init__(self) -> None:
        """A row that contradicts itself is refused when the table is imported."""
        assert self.input_size % 8 == 0, "blocks are padded to eight bytes"
        assert self.output_size % 8 == 0, "blocks are padded to eight bytes"
        assert self.rep == bool(self.reps_a_trip)
        assert self.rep or not (self.element_in or self.element_out)
        assert not (self.rep and self.response), "rep calls put out lists only"
        fits = self.input_size <= FAST_BYTES and not (self.output_size or self.element_in or self.element_out)
        assert (fits and not self.variable) or not self.fast, "registers carry 16 bytes in and nothing out"
        assert self.who is Who.NOBODY or (self.request.FIELDS[0].offset, self.request.FIELDS[0].size) == (0, 8)
        assert self.input_size <= PAGE_SIZE
