"""What may be said across the boundary driver, line by line. Root side.

Commands come in, one JSON object a line with `op`; each gets exactly one answer, in order, with the same `id`. Events
come in between, always before the answer to the command that caused them. docs/boundary.md has every command in use.
"""

from __future__ import annotations

import re
import typing
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from partitions.op_lines import Id, id_of, unknown_op

PROTOCOL_VERSION = 1
MAX_TRANSFER = 16 << 20
"""Bytes that one `read` or `write` moves at most."""
MAX_LINE = 2 * MAX_TRANSFER + 4096


class Word(int):
    """An unsigned 64-bit number, written as a JSON number or as text such as `"0x40000083"`."""


class PortSize(int):
    """Bytes that an IN or OUT moves: 1, 2 or 4."""


class Octets(bytes):
    """Bytes, written as hexadecimal digits; blanks between them are allowed."""


VpIndex = Annotated[int, Meta(ge=0)]
VsockPort = Annotated[int, Meta(ge=0, lt=1 << 32)]


class Command(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="op"):
    """What every command has."""

    id: Id = None
    """Comes back in the answer; anything that helps the speaker."""


class Read(Command, tag="read"):
    """Copy guest memory out, as the guest sees it: overlay pages hide what lies beneath."""

    gpa: Word
    length: Word


class Write(Command, tag="write"):
    """Store into guest memory."""

    gpa: Word
    data: Octets


class Hypercall(Command, tag="hypercall"):
    """The call through the hypercall page: RCX, RDX, R8. The fast bit makes the last two the parameters themselves."""

    control: Word
    input: Word = Word(0)
    output: Word = Word(0)
    vp: VpIndex = 0


class ReadMsr(Command, tag="rdmsr"):
    """RDMSR."""

    msr: Word
    vp: VpIndex = 0


class WriteMsr(Command, tag="wrmsr"):
    """WRMSR."""

    msr: Word
    value: Word
    vp: VpIndex = 0


class Cpuid(Command, tag="cpuid"):
    """CPUID."""

    leaf: Word
    subleaf: Word = Word(0)
    vp: VpIndex = 0


class PortIn(Command, tag="in"):
    """IN, an intercept."""

    port: Word
    size: PortSize = PortSize(1)
    vp: VpIndex = 0


class PortOut(Command, tag="out"):
    """OUT, an intercept."""

    port: Word
    value: Word
    size: PortSize = PortSize(1)
    vp: VpIndex = 0


class Settle(Command, tag="settle"):
    """Wait until the root has nothing left to do. Every command ends so; this one does nothing else."""


class Advance(Command, tag="advance"):
    """Let time pass on the virtual clock, which stands still otherwise."""

    ticks: Word
    """100 ns units."""


class Turn(Command, tag="turn"):
    """Let that time come, if it has not; in a record (`partita run --record`), when what follows was done."""

    seconds: Annotated[float, Meta(ge=0)]
    """On the virtual clock, to the last bit: two timers that are nearly together fire one after the other."""
    turn: Word
    """Which batch of tasks at that time; a replay keeps to it, a session need not."""


class Reset(Command, tag="reset"):
    """Reset the VM from outside: memory zero, processors and registers as at power on."""


class Start(Command, tag="start"):
    """Power on again after the VM has ended."""


class Quit(Command, tag="quit"):
    """Turn the VM off and end the session."""


class Ask(Command, tag="ask"):
    """Somebody in the host asks for something about the VM, as on the control socket; `asked` has the answer."""

    request: dict[str, Any]
    """A line of docs/control.md as an object; `vm` may be left out."""


class SendFrame(Command, tag="frame"):
    """A station at a switch sends an Ethernet frame."""

    switch: str
    data: Octets


class Listen(Command, tag="listen"):
    """Somebody in the host takes what the guest connects to a port."""

    port: VsockPort


class Connect(Command, tag="connect"):
    """Somebody in the host connects to a port of the guest's."""

    port: VsockPort


class Send(Command, tag="send"):
    """Bytes into a socket."""

    socket: int
    data: Octets


class End(Command, tag="end"):
    """The end of the stream into a socket; the other direction goes on."""

    socket: int


class HangUp(Command, tag="hang_up"):
    """A socket is closed, when what was sent is taken."""

    socket: int


HostCommand = Ask | SendFrame | Listen | Connect | Send | End | HangUp
"""What happens in the host, not in the guest."""
Access = Hypercall | ReadMsr | WriteMsr | Cpuid | PortIn | PortOut
"""What a virtual processor does."""
AnyCommand = Read | Write | Access | Settle | Advance | Turn | Reset | Start | Quit | HostCommand

OPERATIONS = tuple(str(kind.__struct_config__.tag) for kind in typing.get_args(AnyCommand))


class Done(msgspec.Struct, kw_only=True):
    """The answer where there is nothing to tell."""

    id: Id
    ok: Literal[True] = True


class Data(msgspec.Struct, kw_only=True):
    """Answer to `read`."""

    id: Id
    ok: Literal[True] = True
    data: str
    """Hexadecimal digits."""


class Returned(msgspec.Struct, kw_only=True):
    """Answer to `hypercall`."""

    id: Id
    ok: Literal[True] = True
    rax: int
    status: str
    """The low 16 bits of RAX by name, such as `SUCCESS`."""
    reps: int
    """Repetitions completed, bits 32 to 43."""


class Value(msgspec.Struct, kw_only=True):
    """Answer to `rdmsr` and `in`."""

    id: Id
    ok: Literal[True] = True
    value: int


class Registers(msgspec.Struct, kw_only=True):
    """Answer to `cpuid`."""

    id: Id
    ok: Literal[True] = True
    eax: int
    ebx: int
    ecx: int
    edx: int


class Refused(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The answer where something went wrong. The session goes on."""

    id: Id
    ok: bool = msgspec.field(default_factory=bool)  # a factory's value is not omitted
    error: Literal["bad_line", "fault", "memory", "off"]
    """A line we cannot read; an exception of the processor; memory that is not there; a VM that does not run."""
    message: str
    field: str | None = None
    """The member that is wrong, for `bad_line`."""
    fault: str | None = None
    """`#GP`, `#UD`, or `stopped` for a processor that the hypervisor took out of service."""


class Ready(msgspec.Struct, tag_field="event", tag="ready"):
    """The first line of a session, and the first after `start`."""

    vm: str
    partition: int
    processors: int
    memory: int
    """Bytes from GPA 0."""
    protocol: int = PROTOCOL_VERSION


class Interrupted(msgspec.Struct, tag_field="event", tag="interrupt"):
    """An interrupt was raised; one event for each time."""

    vp: int
    vector: int


class WasReset(msgspec.Struct, tag_field="event", tag="reset"):
    """The VM was reset: by `reset`, by the reset port or by HV_X64_MSR_RESET."""


class Ended(msgspec.Struct, tag_field="event", tag="ended"):
    """The VM is off."""

    reason: str
    """Such as `powered off`, `crashed`."""
    exit_code: int | None
    detail: str


class Asked(msgspec.Struct, tag_field="event", tag="asked", omit_defaults=True):
    """What came of `ask`: a result, or an error as on the control socket."""

    id: Id
    result: Any = None
    error: str = ""
    message: str = ""


class FrameTold(msgspec.Struct, tag_field="event", tag="frame"):
    """A frame that a switch has for the driver's station."""

    switch: str
    data: str


SocketState = Literal["open", "data", "end", "closed", "refused"]


class SocketTold(msgspec.Struct, tag_field="event", tag="socket", omit_defaults=True):
    """What became of a socket."""

    socket: int
    """From 1 on, in the order in which they are opened; 0 for one that was refused."""
    port: int
    state: SocketState = msgspec.field(default_factory=lambda: "closed")
    data: str = ""
    message: str = ""


Line = (
    Done
    | Data
    | Returned
    | Value
    | Registers
    | Refused
    | Ready
    | Interrupted
    | WasReset
    | Ended
    | Asked
    | FrameTold
    | SocketTold
)


class BadLine(Exception):
    """A line that is no command; `field` is the member that is wrong, `id` what could be told of the line's own."""

    def __init__(self, message: str, field: str | None = None, command_id: Id = None) -> None:
        super().__init__(message)
        self.field = field
        self.command_id = command_id


def _hook(kind: type, value: Any) -> Any:
    if kind is Word:
        return _word(value)
    if kind is PortSize:
        if type(value) is not int or value not in (1, 2, 4):
            raise ValueError("Expected 1, 2 or 4")
        return PortSize(value)
    assert kind is Octets, kind
    if not isinstance(value, str):
        raise ValueError("Expected hexadecimal digits as text")
    try:
        return Octets(bytes.fromhex(value))
    except ValueError:
        raise ValueError("Expected an even number of hexadecimal digits") from None


def _word(value: Any) -> Word:
    if isinstance(value, str):
        try:
            value = int(value, 0)
        except ValueError:
            raise ValueError('Expected a number, or text such as "0x1f"') from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError('Expected a number, or text such as "0x1f"')
    if not 0 <= value < 1 << 64:
        raise ValueError("Expected a number from 0 to 2**64 - 1")
    return Word(value)


_decoder: msgspec.json.Decoder[AnyCommand] = msgspec.json.Decoder(AnyCommand, dec_hook=_hook)
encode = msgspec.json.Encoder().encode


def decode(line: bytes) -> AnyCommand:
    """One command from one line. Raises `BadLine` and nothing else."""
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.strip("`.") or None
        if field is None and "field `" in reason:
            field = reason.split("field `")[1].split("`")[0]
        if (unknown := re.fullmatch(r"Invalid value '(.*)'", reason, re.DOTALL)) and field == "op":
            reason = unknown_op(unknown[1], OPERATIONS)
        raise BadLine(reason, field, id_of(line)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(f"not JSON: {error}") from None
