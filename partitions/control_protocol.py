"""What may be said on a host's control socket, line by line. Root side.

Requests come in, one JSON object a line with `op`; each gets exactly one answer, in order, with the same `id`. Five
operations make a stream of the connection: after their answer come JSON lines (`events`), a tree as text (`inspect`), a
pcapng recording (`trace`) or raw bytes both ways (`console`, `connect`), until one end closes. docs/control.md has
every operation.
"""

from __future__ import annotations

import re
import typing
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from partitions.op_lines import Id, id_of, unknown_op

PROTOCOL_VERSION: Final = 1
MAX_LINE: Final = 64 * 1024
"""Bytes of a request, its line end not counted."""
MAX_TEXT: Final = 4096
"""Characters of a name, a filter or a path: what takes time to read must not hold up the host's loop."""
MAX_GRACE: Final = 3600.0
MAX_TAIL: Final = 1000
MAX_KEYS: Final = 64

Seconds = Annotated[float, Meta(ge=0, le=MAX_GRACE)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]


class Request(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, tag_field="op"):
    """What every request has."""

    id: Id = None
    """Comes back in the answer; anything that helps the speaker."""


class VmRequest(Request):
    """What every request about one VM has."""

    vm: Text


class Hello(Request, tag="hello"):
    """Who is there: the answer is a `Greeting`."""


class Ps(Request, tag="ps"):
    """The VMs: a list of `partitions.figures.VmFigures`."""

    vm: Text | None = None


class Stats(Request, tag="stats"):
    """What went through the VMs: a list of `partitions.figures.VmCounters`."""

    vm: Text | None = None


class Start(VmRequest, tag="start"):
    """Turn it on; answered when its guest runs."""


class Stop(VmRequest, tag="stop"):
    """Ask its guest to power off and cut the power after `grace` seconds; with `force`, cut it now.

    With `restart` or `hibernate` it is asked for that instead, and its power stays on if it does not.
    """

    force: bool = False
    grace: Seconds = 10.0
    restart: bool = False
    hibernate: bool = False
    insist: bool = False
    """Its programs may not object."""
    reason: Text = ""
    """For its people."""


class Pause(VmRequest, tag="pause"):
    """Stop its processors and its time."""


class Resume(VmRequest, tag="resume"):
    """Let it go on."""


class Reset(VmRequest, tag="reset"):
    """Boot it again without asking its guest."""


class Save(VmRequest, tag="save"):
    """Write its state to a file on the host, and end it."""

    path: str | None = None
    """From the topology's folder if relative; the VM's name with `.saved` by default."""


class Screenshot(VmRequest, tag="screenshot"):
    """What its screen shows now: its size, and a PNG file in base64."""


class AddDisk(VmRequest, tag="add-disk"):
    """Give it another disk; the members are the keys of `[[vm.disk]]`. The answer has its LUN."""

    path: str
    size: int | str | None = None
    read_only: bool = False
    block_size: int = 512
    type: Literal["disk", "dvd"] = "disk"
    lun: int | None = None
    iops: dict[str, int] | None = None


class RemoveDisk(VmRequest, tag="remove-disk"):
    """Take a disk away, whatever its guest is doing with it."""

    lun: int


class Kvp(VmRequest, tag="kvp"):
    """Its key-value pairs: all of them, those with a key, or, with a value or `delete`, a change to one.

    The answer is a list of items, each with pool, key and value.
    """

    key: Text | None = None
    value: str | int | None = None
    pool: Literal["external", "guest", "auto", "auto-external", "auto-internal"] | None = None
    """By default all where items are read, and the host's own, `external`, where one is changed."""
    delete: bool = False


class Copy(VmRequest, tag="copy"):
    """Copy a file of the host's into its guest. The answer has the number of bytes."""

    source: str
    path: Text
    overwrite: bool = False
    create_path: bool = False


class Freeze(VmRequest, tag="freeze"):
    """Hold its file systems still, for so many seconds of its time at most."""

    seconds: Annotated[float, Meta(gt=0, le=MAX_GRACE)] = 60.0


class Thaw(VmRequest, tag="thaw"):
    """Let its file systems go on."""


class TypeText(VmRequest, tag="type"):
    """Type on its keyboard; answered when its guest has room for the last character."""

    text: Text


class Keys(VmRequest, tag="keys"):
    """Press keys of its keyboard, one after the other."""

    keys: Annotated[list[Text], Meta(min_length=1, max_length=MAX_KEYS)]
    """Each those that are held down together, by name: `ctrl-alt-del`."""


class AddNic(VmRequest, tag="add-nic"):
    """Give it another network adapter; the members are the keys of `[[vm.nic]]`. The answer has its number."""

    switch: Text | None = None
    name: Text | None = None
    number: int | None = None
    mac: Text | None = None
    vlan: int | None = None
    trunk: Text | None = None
    mtu: int | None = None
    connected: bool | None = None
    spoofing: bool | None = None
    dhcp_guard: bool | None = None
    router_guard: bool | None = None
    isolated: bool | None = None
    mirroring: Text | None = None
    storm_limit: int | None = None
    acl: Annotated[list[dict[str, Text]], Meta(max_length=1000)] | None = None


class RemoveNic(VmRequest, tag="remove-nic"):
    """Take a network adapter away, whatever its guest is doing with it."""

    number: int


class ConnectNic(VmRequest, tag="connect-nic"):
    """Plug an adapter's cable into a switch, or pull it out."""

    number: int
    switch: Text | None = None


class Events(Request, tag="events"):
    """A stream: changes of VMs' states from now on as JSON lines, each a `Change`."""

    vm: Text | None = None


class Trace(Request, tag="trace"):
    """A stream: a pcapng recording from now on, until the host ends. What its reader is too slow for is dropped.

    The recording says how much that was, and where.
    """

    filter: Text = ""
    """As `--trace-filter` takes it; everything by default."""


class Capture(Request, tag="capture"):
    """A stream: Ethernet at ports of switches as pcapng from now on, until the host ends; as `trace` else."""

    ports: Annotated[list[Text], Meta(min_length=1, max_length=64)]
    """Such as `web/0` and `lan:uplink`."""


class Samples(Request, tag="samples"):
    """A stream: a heading, then what every pool and VM got, window by window, until the host ends; as JSON lines.

    They are a `Heading` and a `Sample` of `partitions.resources.sample` each.
    """

    window: Annotated[float, Meta(ge=0.05, le=3600)] = 1.0
    """Seconds."""


class Set(Request, tag="set"):
    """Change controls of a VM or a pool, all of them or none. The answer is a `partitions.root.resource_view.Row`."""

    node: Text
    """`web`, `vm/web`, `pool/prod`, `vm/web/disk/0`."""
    values: Annotated[dict[Text, Text | int | float | bool], Meta(min_length=1, max_length=MAX_KEYS)]
    """Such as `cpu.limit`, as the keys of a topology."""


class Pools(Request, tag="pools"):
    """The host and its resource pools as a tree: a list of rows as `set` answers."""


class AddPool(Request, tag="add-pool"):
    """A resource pool more; the answer is its row."""

    pool: Text
    values: Annotated[dict[Text, Text | int | float | bool], Meta(max_length=MAX_KEYS)] = {}
    """Its parent and its controls."""


class RemovePool(Request, tag="remove-pool"):
    """A resource pool less, when nothing is in it any more; those that are left."""

    pool: Text


class MovePool(Request, tag="move-pool"):
    """Put a resource pool into another, or the `host`, if what it has reserved is free there."""

    pool: Text
    parent: Text


class Inspect(Request, tag="inspect"):
    """A stream: the tree below a path, which ends with it."""

    path: Text = ""
    depth: Annotated[int, Meta(ge=0)] | None = None
    """Levels; all by default."""
    form: Literal["tree", "json"] = "json"


class Update(Request, tag="update"):
    """Change a setting of the tree; its value then, in words."""

    path: Text
    value: Text


class ConsoleOf(VmRequest, tag="console"):
    """A stream: its serial port, raw bytes both ways, until it is off."""

    tail: Annotated[int, Meta(ge=0, le=MAX_TAIL)] = 0
    """Lines to begin with that it has printed already."""


class ConnectTo(VmRequest, tag="connect"):
    """A stream: bytes both ways to a port that its guest listens on, until both ends have said all."""

    port: Annotated[int, Meta(ge=0)] | Text
    """Or the GUID of a service."""


class Down(Request, tag="down"):
    """End every VM as `stop` does, and with them the run; answered when all are off."""

    force: bool = False
    grace: Seconds = 10.0


AnyRequest = (
    *(Hello, Ps, Stats, Start, Stop, Pause, Resume, Reset, Save, Screenshot, AddDisk, RemoveDisk, Down),
    *(Kvp, Copy, Freeze, Thaw),
    *(TypeText, Keys),
    *(AddNic, RemoveNic, ConnectNic, Capture),
    *(Set, Pools, AddPool, RemovePool, MovePool),
    *(Inspect, Update, Events, Trace, Samples, ConsoleOf, ConnectTo),
)
OPERATIONS: Final = tuple(str(kind.__struct_config__.tag) for kind in AnyRequest)

ErrorKind = Literal["bad_line", "unknown_vm", "unknown_path", "wrong_state", "refused", "busy", "internal"]
"""A line that we cannot read; no VM of that name; nothing at that path, or it does not take that value; not now, but in
another state; cannot be done, and the message says why; too many connections; a mistake of ours."""


class Answer(msgspec.Struct, kw_only=True):
    """It is done, or the stream begins behind this line."""

    id: Id
    ok: Literal[True] = True
    result: Any = None


class Refused(msgspec.Struct, kw_only=True):
    """It is not done. The connection goes on, unless the line was too long or connections too many."""

    id: Id
    ok: Literal[False] = msgspec.field(default_factory=lambda: False)
    error: ErrorKind
    message: str


class Greeting(msgspec.Struct, kw_only=True):
    """Answer to `hello`."""

    name: str
    """As `--host` takes it, unless another host of the same topology runs."""
    pid: int
    clock: Literal["real", "virtual"]
    seconds: float
    """Since the host was opened, on its clock."""
    vms: list[str]
    protocol: int = PROTOCOL_VERSION


class Change(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of `events`."""

    time: float
    """Seconds since the host was opened, on its clock."""
    vm: str
    before: str
    after: str
    cause: str
    """What moved it: `start`, `turn_off`, `ended`, ..."""
    by: str = ""
    """Who asked for it; absent where nobody did, or the program that opened the host."""
    words: str = ""
    """How the run ended, where this is its end."""
    lost: int = 0
    """Changes before this one that the reader was too slow for."""


class BadLine(Exception):
    """A line that is no request; `id` is what could be told of the line's own."""

    def __init__(self, message: str, request_id: Id = None) -> None:
        super().__init__(message)
        self.request_id = request_id


def _plain(value: Any) -> int:
    """A number that is a little more than a number, as `Size`."""
    if isinstance(value, int):
        return int(value)
    raise TypeError(f"{type(value).__name__} has no place in an answer")


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(typing.Union[AnyRequest])  # noqa: UP007  # made of a tuple
encode = msgspec.json.Encoder(enc_hook=_plain).encode


def decode(line: bytes) -> Request:
    """One request from one line. Raises `BadLine` and nothing else."""
    try:
        return _decoder.decode(line)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        member = path.strip("`.")
        if (unknown := re.fullmatch(r"Invalid value '(.*)'", reason, re.DOTALL)) and member == "op":
            reason, member = unknown_op(unknown[1], OPERATIONS), ""
        raise BadLine(f"{member}: {reason}" if member else reason, id_of(line)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadLine(f"not JSON: {error}") from None


class LineTooLong(Exception):
    """The peer's line does not end within the limit."""


class Lines:
    """Cuts bytes into lines and keeps what follows; no more than `limit` of an unfinished one."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self._limit = limit
        self._held = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """More bytes."""
        self._held += data

    def next(self) -> bytes | None:
        """The next whole line without its end, or None. Raises `LineTooLong`."""
        end = self._held.find(b"\n", self._searched)
        if (len(self._held) if end < 0 else end) > self._limit:
            raise LineTooLong
        if end < 0:
            self._searched = len(self._held)
            return None
        line = bytes(self._held[:end])
        del self._held[: end + 1]
        self._searched = 0
        return line

    def take(self) -> bytes:
        """What came after the last line: the beginning of a stream."""
        rest = bytes(self._held)
        self._held.clear()
        self._searched = 0
        return rest
