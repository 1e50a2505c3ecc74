"""WinHv: the root's hypercalls as functions, and the interrupt routine for messages and event flags. Root side.

The root boots its synthetic interrupt controllers as any guest does: guest OS ID, hypercall page, then for each of its
processors a message page, an event flags page and two SINTs. SINT2 is VMBus's: messages are told apart by the port they
came through, event flags by (processor, flag). SINT0 has the hypervisor's own messages about a child that it stopped;
they name the partition.

Everything here is synchronous: a hypercall is a trap, and handlers run inside the root's interrupt, so they may only
note and wake. The interrupt routine is never nested.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from hypervisor.backend.root import RootVp
from hypervisor.hypercall.abi import FAST, CallCode, control_word, result_completed
from hypervisor.hypercall.layouts import (
    STATE_CHUNK,
    ConnectPort2010Input,
    CreatePartitionInput,
    CreatePort2010Input,
    CreateVpInput,
    DeletePortInput,
    DepositMemoryInput,
    DisconnectPortInput,
    GetPartitionPropertyInput,
    MapGpaPagesInput,
    PartitionInput,
    PartitionOutput,
    PropertyOutput,
    RestorePartitionStateInput,
    RestorePartitionStateOutput,
    SavePartitionStateInput,
    SavePartitionStateOutput,
    SetPartitionPropertyInput,
    UnmapGpaPagesInput,
    VpInput,
    WithdrawMemoryInput,
)
from hypervisor.hypercall.processor_layouts import InstallInterceptInput
from hypervisor.hypervisor import Hypervisor
from hypervisor.msr import PAGE_ENABLE, Msr
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.partition import ROOT_ID
from hypervisor.saved_state.stream import StateResult
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.messages import FLAGS_OFFSET, HYPERVISOR_MESSAGE, INTERCEPT_SINT, MESSAGE_PENDING, SLOT_SIZE, Sint
from hypervisor.synic.ports import ConnectionInfo, PortInfo, PortType
from partitions.root.host_ports import FLAGS_PER_SINT, VMBUS_SINT, FlagAllocator, IdAllocator, Paying, PortsOf

OS_ID: Final = 0x8100 << 48 | 0x01 << 16
"""Open source (bit 63), of no registered kind, version 1: what the root writes to HV_X64_MSR_GUEST_OS_ID."""
VECTOR_BASE: Final = 0x30
"""The root gives SINT n the vector 0x30 + n."""

_SIGNAL: Final = CallCode.SIGNAL_EVENT | FAST
_POST: Final = int(CallCode.POST_MESSAGE)
_POST_HEADER: Final = struct.Struct("<IIII")
_STATUS: Final = {int(status): status for status in HvStatus}
_NO_FLAGS: Final = bytes(SLOT_SIZE)
_START: Final = 1
"""HV_SAVE_RESTORE_STATE_FLAGS: the first chunk."""
_REGISTER: Final = struct.Struct("<I12xQQ")
_ORIGINATION: Final = struct.Struct("<Q")

# Pages of WinHv's block: the hypercall page, input, output, then a message and a flags page for each processor.
_HYPERCALL_PAGE, _INPUT_PAGE, _OUTPUT_PAGE, _FIRST_VP_PAGE = range(4)


class HypercallFailed(HvError):
    """The hypervisor refused a call of the root: a limit was met, or a bug of ours."""

    def __init__(self, code: CallCode, status: HvStatus, completed: int = 0) -> None:
        super().__init__(status, completed)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code.name}: {self.status.name}"


class HypervisorMessage(msgspec.Struct, frozen=True, gc=False):
    """What the hypervisor says about a child that it has stopped."""

    message_type: int
    partition_id: int
    payload: bytes


class WinHv:
    """One for the host. Boots in the constructor; `close` gives its pages back."""

    root_id = ROOT_ID

    def __init__(self, hypervisor: Hypervisor) -> None:
        self.hypervisor = hypervisor
        self._vps: list[RootVp] = list(hypervisor.root_processors)
        pages = _FIRST_VP_PAGE + 2 * len(self._vps)
        self._first_page, block = hypervisor.add_root_block(pages * PAGE_SIZE, "winhv")
        self._memory = block.view
        self._input_gpa = (self._first_page + _INPUT_PAGE) << PAGE_SHIFT
        self._output_gpa = (self._first_page + _OUTPUT_PAGE) << PAGE_SHIFT
        self._input = block.view[_INPUT_PAGE * PAGE_SIZE : (_INPUT_PAGE + 1) * PAGE_SIZE]
        self._output = block.view[_OUTPUT_PAGE * PAGE_SIZE : (_OUTPUT_PAGE + 1) * PAGE_SIZE]
        self._call = self._vps[0].hypercall

        self.port_ids = IdAllocator(first=0x1000)
        self.connection_ids = IdAllocator(first=0x1000)
        self.flags = FlagAllocator(len(self._vps))
        self.message_handlers: dict[int, Callable[[bytes], None]] = {}
        """By port ID."""
        self.event_handlers: list[list[Callable[[], None] | None]] = [[None] * FLAGS_PER_SINT for _ in self._vps]
        """By processor and flag."""
        self.hypervisor_handlers: dict[int, Callable[[HypervisorMessage], None]] = {}
        """By partition: whoever answers for it when the hypervisor stops it."""
        self.intercepts: dict[int, Callable[[HypervisorMessage], bool]] = {}
        """By partition: who answers intercepts that were installed; False hands it to the one above."""
        self.stray = 0
        """Messages and flags for which there was no handler any more."""
        self._boot()

    # --- boot and interrupts

    def _boot(self) -> None:
        first = self._vps[0]
        first.write_msr(Msr.GUEST_OS_ID, OS_ID)
        first.write_msr(Msr.HYPERCALL, (self._first_page + _HYPERCALL_PAGE) << PAGE_SHIFT | PAGE_ENABLE)
        for index, vp in enumerate(self._vps):
            page = _FIRST_VP_PAGE + 2 * index
            messages = self._memory[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
            flags = self._memory[(page + 1) * PAGE_SIZE : (page + 2) * PAGE_SIZE]
            vp.set_interrupt_handler(_Isr(self, vp, index, messages, flags))
            vp.write_msr(Msr.SIMP, (self._first_page + page) << PAGE_SHIFT | PAGE_ENABLE)
            vp.write_msr(Msr.SIEFP, (self._first_page + page + 1) << PAGE_SHIFT | PAGE_ENABLE)
            # Nobody has to end interrupts: the root's handler runs to its end and is never nested.
            for sint in (INTERCEPT_SINT, VMBUS_SINT):
                vp.write_msr(Msr.SINT0 + sint, VECTOR_BASE + sint | Sint.AUTO_EOI)
            vp.write_msr(Msr.SCONTROL, 1)

    def close(self) -> None:
        """Switch the controllers off and give the pages back; every port has to be closed."""
        for vp in self._vps:
            for register in (Msr.SCONTROL, Msr.SIMP, Msr.SIEFP):
                vp.write_msr(register, 0)
            vp.set_interrupt_handler(_nothing)
        self._vps[0].write_msr(Msr.GUEST_OS_ID, 0)
        self._memory = self._input = self._output = memoryview(b"")
        self.hypervisor.remove_root_block(self._first_page)

    def ports_of(self, partition_id: int, paying: Paying, *, first_page: int = 0) -> PortsOf:
        """What a VMBus server for that child stands on; `paying` deposits pages where the hypervisor wants more.

        `first_page` is where the root sees the child's first page.
        """
        return PortsOf(self, partition_id, paying, first_page)

    def forget_event_handler(self, vp: int, flag: int) -> None:
        """The flag means nothing from here on."""
        self.event_handlers[vp][flag] = None

    # --- partitions

    def create_partition(self) -> int:
        """A new, uninitialized child; its ID."""
        output = self._simple(CallCode.CREATE_PARTITION, CreatePartitionInput().encode())
        return PartitionOutput.decode(output).partition_id

    def initialize_partition(self, partition_id: int) -> None:
        """Make it active."""
        self._simple(CallCode.INITIALIZE_PARTITION, PartitionInput(partition_id).encode())

    def finalize_partition(self, partition_id: int) -> None:
        """Destroy what it owns; nothing works in it from here on."""
        self._simple(CallCode.FINALIZE_PARTITION, PartitionInput(partition_id).encode())

    def delete_partition(self, partition_id: int) -> None:
        """Forget it; its pool has to be empty."""
        self._simple(CallCode.DELETE_PARTITION, PartitionInput(partition_id).encode())

    def set_partition_property(self, partition_id: int, code: int, value: int) -> None:
        """One 64-bit property."""
        self._simple(CallCode.SET_PARTITION_PROPERTY, SetPartitionPropertyInput(partition_id, code, value).encode())

    def get_partition_property(self, partition_id: int, code: int) -> int:
        """One 64-bit property."""
        output = self._simple(CallCode.GET_PARTITION_PROPERTY, GetPartitionPropertyInput(partition_id, code).encode())
        return PropertyOutput.decode(output).value

    # --- memory

    def deposit_memory(self, partition_id: int, first_page: int, count: int) -> None:
        """Give `count` adjacent pages of the root to the hypervisor for its structures of that partition."""
        header = DepositMemoryInput(partition_id).encode()
        for start, length in _chunks(count, len(header)):
            self._rep(CallCode.DEPOSIT_MEMORY, header + _page_list(first_page + start, length), length)

    def withdraw_memory(self, partition_id: int) -> list[tuple[int, int]]:
        """Every page that can come back, as runs (first page, count)."""
        runs: list[tuple[int, int]] = []
        payload = WithdrawMemoryInput(partition_id).encode()
        count = PAGE_SIZE // 8
        while True:
            result = self._trap(CallCode.WITHDRAW_MEMORY, payload, count)
            completed = result_completed(result)
            pages = array("Q", bytes(self._output[: 8 * completed]))
            for page in pages:
                if runs and page == runs[-1][0] + runs[-1][1]:
                    runs[-1] = (runs[-1][0], runs[-1][1] + 1)
                else:
                    runs.append((page, 1))
            status = _STATUS[result & 0xFFFF]
            if status is HvStatus.NO_RESOURCES:
                return runs
            if status is not HvStatus.SUCCESS:
                raise HypercallFailed(CallCode.WITHDRAW_MEMORY, status, completed)

    def map_gpa_pages(self, partition_id: int, target: int, source: int, count: int, access: Access) -> None:
        """Map `count` adjacent pages of the root into a child, a page of list entries a call."""
        for start, length in _chunks(count, MapGpaPagesInput.SIZE):
            header = MapGpaPagesInput(partition_id, target + start, int(access)).encode()
            self._rep(CallCode.MAP_GPA_PAGES, header + _page_list(source + start, length), length)

    def unmap_gpa_pages(self, partition_id: int, target: int, count: int) -> None:
        """Take pages out of a child's memory."""
        for start in range(0, count, 4095):
            payload = UnmapGpaPagesInput(partition_id, target + start).encode()
            self._rep(CallCode.UNMAP_GPA_PAGES, payload, min(4095, count - start))

    # --- virtual processors

    def create_vp(self, partition_id: int, index: int) -> None:
        """A processor, explicitly suspended."""
        self._simple(CallCode.CREATE_VP, CreateVpInput(partition_id, index).encode())

    def set_vp_register(self, partition_id: int, index: int, name: int, value: int) -> None:
        """One register, at most 64 bits of it."""
        header = VpInput(partition_id, index).encode()
        self._rep(CallCode.SET_VP_REGISTERS, header + _REGISTER.pack(name, value, 0), 1)

    def set_vp_registers(self, partition_id: int, index: int, registers: Iterable[tuple[int, int]]) -> None:
        """Several at once, at most 64 bits of each, in their order."""
        header = VpInput(partition_id, index).encode()
        elements = [_REGISTER.pack(name, value, 0) for name, value in registers]
        self._rep(CallCode.SET_VP_REGISTERS, header + b"".join(elements), len(elements))

    def install_intercept(self, partition_id: int, kind: int, access: int, parameter: int = 0) -> None:
        """Ask for a child's accesses of a kind; an access mask of 0 ends it."""
        payload = InstallInterceptInput(partition_id, access, kind, parameter).encode()
        self._simple(CallCode.INSTALL_INTERCEPT, payload)

    def get_vp_register(self, partition_id: int, index: int, name: int) -> int:
        """The low 64 bits of one register."""
        header = VpInput(partition_id, index).encode()
        self._rep(CallCode.GET_VP_REGISTERS, header + name.to_bytes(4, "little"), 1)
        return int.from_bytes(self._output[:8], "little")

    # --- saved state

    def save_partition_state(self, partition_id: int) -> bytes:
        """The state of a partition whose processors are suspended, as a stream."""
        stream, flags = b"", _START
        while True:
            output = self._simple(CallCode.SAVE_PARTITION_STATE, SavePartitionStateInput(partition_id, flags).encode())
            answer = SavePartitionStateOutput.decode(output)
            stream += answer.data[: answer.count]
            if answer.state != StateResult.INCOMPLETE:
                return stream
            flags = 0

    def restore_partition_state(self, partition_id: int, stream: bytes) -> int:
        """Put a state into a partition with the same processors, suspended. The last `StateResult`."""
        result, flags = int(StateResult.INCOMPLETE), _START
        for start in range(0, len(stream), STATE_CHUNK):
            chunk = stream[start : start + STATE_CHUNK]
            request = RestorePartitionStateInput(partition_id, flags, len(chunk), chunk.ljust(STATE_CHUNK, b"\0"))
            output = self._simple(CallCode.RESTORE_PARTITION_STATE, request.encode())
            result, flags = RestorePartitionStateOutput.decode(output).state, 0
            if result != StateResult.INCOMPLETE:
                break
        return result

    # --- ports and connections

    def create_message_port(self, owner: int, port_id: int, peer: int, *, vp: int, sint: int) -> None:
        """A port of `owner` that `peer` may be connected to; messages arrive at (vp, sint)."""
        info = PortInfo(PortType.MESSAGE, sint, vp).encode()
        self._simple(CallCode.CREATE_PORT_2010, CreatePort2010Input(owner, port_id, peer, info).encode())

    def create_event_port(self, owner: int, port_id: int, peer: int, *, vp: int, sint: int, flag: int) -> None:
        """As a message port, for the one event flag `flag`."""
        info = PortInfo(PortType.EVENT, sint, vp, flag, 1).encode()
        self._simple(CallCode.CREATE_PORT_2010, CreatePort2010Input(owner, port_id, peer, info).encode())

    def create_monitor_port(self, owner: int, port_id: int, peer: int, *, page: int) -> None:
        """A port for notifications that `peer` sets in a page, which `owner` sees at the GPA `page`."""
        info = PortInfo(PortType.MONITOR, page & 0xFFFF_FFFF, page >> 32).encode()
        self._simple(CallCode.CREATE_PORT_2010, CreatePort2010Input(owner, port_id, peer, info).encode())

    def delete_port(self, owner: int, port_id: int) -> None:
        """Messages that wait in its buffers are lost."""
        self._simple(CallCode.DELETE_PORT, DeletePortInput(owner, port_id).encode())

    def connect_port(
        self, partition_id: int, connection_id: int, port_owner: int, port_id: int, kind: PortType, *, page: int = 0
    ) -> None:
        """Let `partition_id` reach a port of that kind by a connection ID; for a monitor port, it sees `page`."""
        info = ConnectionInfo(kind, page).encode()
        payload = ConnectPort2010Input(partition_id, connection_id, port_owner, port_id, info).encode()
        self._simple(CallCode.CONNECT_PORT_2010, payload)

    def disconnect_port(self, partition_id: int, connection_id: int) -> None:
        """The connection ID means nothing from here on."""
        self._simple(CallCode.DISCONNECT_PORT, DisconnectPortInput(partition_id, connection_id).encode())

    def post_message(self, connection_id: int, message_type: int, payload: bytes) -> HvStatus:
        """HvPostMessage; the status is for the caller to judge, since a full port is everyday life."""
        page = self._input
        _POST_HEADER.pack_into(page, 0, connection_id, 0, message_type, len(payload))
        page[16 : 16 + len(payload)] = payload
        return _STATUS[self._call(_POST, self._input_gpa) & 0xFFFF]

    def signal_event(self, connection_id: int) -> HvStatus:
        """HvSignalEvent, fast form, flag 0."""
        return _STATUS[self._call(_SIGNAL, connection_id) & 0xFFFF]

    # --- the traps

    def _simple(self, code: CallCode, payload: bytes) -> memoryview:
        """A simple call in memory; its output page."""
        result = self._trap(code, payload, 0)
        if result & 0xFFFF:
            raise HypercallFailed(code, _STATUS[result & 0xFFFF])
        return self._output

    def _rep(self, code: CallCode, payload: bytes, count: int) -> None:
        result = self._trap(code, payload, count)
        if result & 0xFFFF:
            raise HypercallFailed(code, _STATUS[result & 0xFFFF], result_completed(result))

    def _trap(self, code: CallCode, payload: bytes, count: int) -> int:
        self._input[: len(payload)] = payload
        return self._call(control_word(code, count=count), self._input_gpa, self._output_gpa)


class _Isr:
    """The interrupt routine of one root processor."""

    __slots__ = ("_flags", "_handlers", "_intercepts", "_messages", "_types", "_vp", "_winhv")

    def __init__(self, winhv: WinHv, vp: RootVp, index: int, messages: memoryview, flags: memoryview) -> None:
        self._winhv = winhv
        self._vp = vp
        self._handlers = winhv.event_handlers[index]
        self._flags = flags[VMBUS_SINT * SLOT_SIZE : (VMBUS_SINT + 1) * SLOT_SIZE]
        self._messages = messages[VMBUS_SINT * SLOT_SIZE : (VMBUS_SINT + 1) * SLOT_SIZE]
        self._intercepts = messages[INTERCEPT_SINT * SLOT_SIZE : (INTERCEPT_SINT + 1) * SLOT_SIZE]
        self._types = messages.cast("I")

    def __call__(self, vector: int) -> None:
        """Flags before messages: data is frequent, control is not."""
        if vector == VECTOR_BASE + VMBUS_SINT:
            snapshot = self._flags.tobytes()
            if snapshot != _NO_FLAGS:
                self._flags[:] = _NO_FLAGS
                self._take_flags(int.from_bytes(snapshot, "little"))
            if self._types[VMBUS_SINT * SLOT_SIZE // 4]:
                self._take_messages(VMBUS_SINT, self._messages, self._from_port)
        elif self._types[INTERCEPT_SINT * SLOT_SIZE // 4]:
            self._take_messages(INTERCEPT_SINT, self._intercepts, self._from_hypervisor)

    def _take_flags(self, flags: int) -> None:
        handlers = self._handlers
        while flags:
            lowest = flags & -flags
            flags ^= lowest
            handler = handlers[lowest.bit_length() - 1]
            if handler is None:
                self._winhv.stray += 1
            else:
                handler()

    def _take_messages(self, sint: int, slot: memoryview, take: Callable[[int, int, bytes], None]) -> None:
        """Copy out, free the slot, and only then ask for the next, until the slot stays empty."""
        types, at = self._types, sint * SLOT_SIZE // 4
        while message_type := types[at]:
            message = slot.tobytes()
            types[at] = 0
            if slot[FLAGS_OFFSET] & MESSAGE_PENDING:
                self._vp.write_msr(Msr.EOM, 0)
            take(message_type, _ORIGINATION.unpack_from(message, 8)[0], message[16 : 16 + message[4]])

    def _from_port(self, message_type: int, port_id: int, payload: bytes) -> None:
        handler = self._winhv.message_handlers.get(port_id)
        if handler is None or message_type & HYPERVISOR_MESSAGE:
            self._winhv.stray += 1
        else:
            handler(payload)

    def _from_hypervisor(self, message_type: int, partition_id: int, payload: bytes) -> None:
        message = HypervisorMessage(message_type, partition_id, payload)
        intercepts = self._winhv.intercepts.get(partition_id)
        if intercepts is not None and intercepts(message):
            return
        handler = self._winhv.hypervisor_handlers.get(partition_id)
        if handler is None:
            self._winhv.stray += 1
        else:
            handler(message)


def _page_list(first: int, count: int) -> bytes:
    return array("Q", range(first, first + count)).tobytes()


def _chunks(count: int, header_bytes: int) -> Iterable[tuple[int, int]]:
    """(start, length) such that a header and the list of a chunk fit one page: 509 for mapping, 511 for depositing."""
    limit = (PAGE_SIZE - header_bytes) // 8
    return ((start, min(limit, count - start)) for start in range(0, count, limit))


def _nothing(vector: int) -> None:
    """The handler of a controller that is switched off."""
