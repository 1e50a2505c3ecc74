"""How a byte layout is declared once: `@wire`, `at(offset)` and the `Wire` base class. Both sides.

    @wire(size=12, spec="storvsp packet header")
    class PacketHeader(Wire):
        operation: u32 = at(0x00)
        flags: u32 = at(0x04, default=0)
        status: u32 = at(0x08, default=0)

From the declaration follow the constructor (keywords or positions, seen by type checkers), `decode`, `encode` and
`encode_into`. Gaps between fields are padding: zero when written, ignored when read. Overlaps and a wrong size are
refused when the module is imported. Enumerations are decoded as plain integers on purpose: the peer may send any value,
and an `IntEnum` member compares equal to its integer.

The values are `msgspec.Struct`s because they cost 55 ns to make, a fifth of a frozen attrs class.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, dataclass_transform

import msgspec
import msgspec.structs

from hypervisor.wire.errors import ShortMessage
from hypervisor.wire.scalars import Guid

Buffer = bytes | bytearray | memoryview
W = TypeVar("W", bound="Wire")
_REQUIRED: Any = object()
_values: Any = msgspec.structs.astuple


class _At(msgspec.Struct, frozen=True):
    offset: int
    default: Any


class Field(msgspec.Struct, frozen=True):
    """One field of a layout, as tests, decoders for people and documentation tables read it."""

    name: str
    offset: int
    code: str
    """The `struct` code: B, H, I, Q, i, q or a byte count with s."""
    size: int
    is_guid: bool


def at(offset: int, *, default: Any = _REQUIRED) -> Any:
    """Place a field at a byte offset from the start of its struct."""
    return _At(offset, default)


class Wire:
    """Base of every declared layout. Values are immutable snapshots: memory is read once, in one C call."""

    __slots__ = ()

    SIZE: ClassVar[int] = 0
    """Bytes from the first field to the end of the struct."""
    SPEC: ClassVar[str] = ""
    """Where the layout is defined."""
    FIELDS: ClassVar[tuple[Field, ...]] = ()
    STRUCT: ClassVar[struct.Struct] = struct.Struct("")
    """The compiled layout, for hot paths that unpack into plain tuples."""
    GUIDS: ClassVar[tuple[int, ...]] = ()
    """Positions of the fields that decode to `Guid` and not to plain bytes."""

    if TYPE_CHECKING:

        def __init__(self, *values: Any, **named: Any) -> None: ...

    @classmethod
    def decode(cls, buffer: Buffer, offset: int = 0) -> Self:
        """Read one value from `offset`; more bytes than `SIZE` are fine. Raises `ShortMessage` and nothing else."""
        assert offset >= 0, "unpack_from would silently count a negative offset from the end"
        try:
            values = cls.STRUCT.unpack_from(buffer, offset)
        except struct.error:
            raise ShortMessage(cls.__name__, cls.SIZE, max(0, len(buffer) - offset)) from None
        if cls.GUIDS:
            mutable = list(values)
            for index in cls.GUIDS:
                mutable[index] = Guid(mutable[index])
            return cls(*mutable)
        return cls(*values)

    def encode(self) -> bytes:
        """The bytes on the wire, padding and reserved fields zero."""
        return self.STRUCT.pack(*_values(self))

    def encode_into(self, buffer: bytearray | memoryview, offset: int = 0) -> None:
        """Write into memory that is not published yet: `pack_into` shows a concurrent reader a moment of zero."""
        self.STRUCT.pack_into(buffer, offset, *_values(self))


@dataclass_transform(field_specifiers=(at,), frozen_default=True)
def wire(*, size: int, spec: str, order: str = "<") -> Callable[[type[W]], type[W]]:
    """Turn a class of annotated `at()` fields into a layout of `size` bytes, little-endian unless `order` is ">"."""

    def build(declared: type[W]) -> type[W]:
        name = declared.__name__
        scope = vars(sys.modules[declared.__module__])
        fields: list[Field] = []
        members: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        layout, end = order, 0
        for field_name, annotation in declared.__annotations__.items():
            place = vars(declared).get(field_name)
            if not isinstance(place, _At):
                if "ClassVar" in str(annotation):
                    continue
                raise TypeError(f"{name}.{field_name} has no at(offset)")
            kind = _scalar(annotation, scope)
            code = kind.__metadata__[0]
            field = Field(field_name, place.offset, code, struct.calcsize("<" + code), kind.__origin__ is Guid)
            if field.offset < end:
                raise TypeError(f"{name}.{field_name} at {field.offset:#x} overlaps the field before it")
            layout += "x" * (field.offset - end) + code
            end = field.offset + field.size
            fields.append(field)
            members.append((field_name, kind) if place.default is _REQUIRED else (field_name, kind, place.default))
        if end > size:
            raise TypeError(f"{name} is said to have {size} bytes, its fields end at {end}")
        dropped = {"__dict__", "__weakref__", "__annotations__", *(field.name for field in fields)}
        kept = {key: value for key, value in vars(declared).items() if key not in dropped}
        kept |= {
            "SIZE": size,
            "SPEC": spec,
            "FIELDS": tuple(fields),
            "STRUCT": struct.Struct(layout + "x" * (size - end)),
            "GUIDS": tuple(index for index, field in enumerate(fields) if field.is_guid),
        }
        return msgspec.defstruct(  # type: ignore[return-value]  # the bases keep W
            name,
            members,
            bases=(*declared.__bases__, msgspec.Struct),
            namespace=kept,
            frozen=True,
            gc=False,
            module=declared.__module__,
        )

    return build


def _scalar(annotation: Any, scope: dict[str, Any]) -> Any:
    """The `Annotated` alias behind an annotation, which is a bare name where annotations are postponed."""
    return scope[annotation] if isinstance(annotation, str) else annotation
