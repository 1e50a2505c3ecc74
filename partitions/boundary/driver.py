"""A session of the boundary driver: lines in, acts of the guest, answers and events out. Root side.

After each command the driver lets the root come to rest before it answers. Time stands still but for `advance`, and
disk I/O happens on this thread, so a session is a function of its input. A peer's mistakes are answers, not exceptions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import assert_never

import msgspec
import trio
import trio.testing

from hypervisor.clock import TICKS_PER_SECOND, seconds
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine import GeneralProtection, InvalidOpcode, ProcessorFault
from hypervisor.memory import GpaFault
from hypervisor.status import HvStatus
from hypervisor.trace import Sink, Trace
from partitions.boundary import protocol
from partitions.boundary.backend import BoundaryBackend, BoundaryVp
from partitions.boundary.host_side import CannotDo, HostSide
from partitions.boundary.protocol import BadLine, Line
from partitions.host import StartFailed, Vm, VmEvent, VmState, open_host
from partitions.op_lines import Id
from partitions.topology import Topology, VmTable
from partitions.topology_schema import SwitchTable

MAX_ADVANCE = 86_400 * TICKS_PER_SECOND
"""One day in 100 ns units: every timer on the way is run."""


class CannotStart(Exception):
    """The VM of the session does not start; the text says why."""


class _Refuse(Exception):
    """Ends a command with this answer."""

    def __init__(self, answer: protocol.Refused) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Session:
    """One speaker and one VM. `write` gets each line that goes out."""

    def __init__(
        self, vm: Vm, backends: Backends, write: Callable[[Line], None], host_side: HostSide | None = None
    ) -> None:
        """Without a `host_side` the speaker is the guest and nobody else."""
        self._host_side = host_side
        self._vm = vm
        self._backends = backends
        self._write = write
        self.over = False

    async def start(self) -> None:
        """Power on, and say so. Raises `StartFailed`."""
        await self._vm.start()
        await settle()
        partition = self._vm.partition_id
        assert partition is not None, "a VM without software does not end by itself"
        table = self._vm.settings
        self._write(
            protocol.Ready(vm=table.name, partition=partition, processors=table.processors, memory=int(table.memory))
        )

    async def handle(self, untrusted_line: bytes | None) -> None:
        """One line of the peer's: do it, let the root come to rest, answer."""
        try:
            if untrusted_line is None:
                raise BadLine(f"Expected at most {protocol.MAX_LINE} bytes")
            command = protocol.decode(untrusted_line)
        except BadLine as error:
            self._write(protocol.Refused(id=error.command_id, error="bad_line", message=str(error), field=error.field))
            return
        try:
            answer = await self._act(command)
        except _Refuse as refusal:
            answer = refusal.answer
        await settle()
        if self._vm.try_messages_again():
            await settle()  # a guest that has made room need not let time pass for what waits for it
        self._write(answer)

    async def _act(self, command: protocol.AnyCommand) -> Line:
        match command:
            case protocol.Settle():
                pass
            case protocol.Quit():
                self.over = True
            case protocol.Advance(ticks=ticks):
                if ticks > MAX_ADVANCE:
                    raise _refuse(command.id, "ticks", f"Expected at most {MAX_ADVANCE}, one day")
                await advance(ticks)
            case protocol.Turn(seconds=at):
                left = round((at - trio.current_time()) * TICKS_PER_SECOND)
                if left > MAX_ADVANCE:
                    raise _refuse(command.id, "seconds", "Expected at most one day from now")
                await advance(max(left, 0))
            case protocol.Reset():
                self._power(command.id)
                await self._vm.reset()
            case protocol.Start():
                if self._vm.state is not VmState.OFF:
                    raise _Refuse(protocol.Refused(id=command.id, error="off", message="the VM is on already"))
                try:
                    await self.start()
                except StartFailed as error:
                    raise _Refuse(protocol.Refused(id=command.id, error="off", message=str(error))) from None
            case protocol.Read() | protocol.Write():
                return self._memory(command)
            case protocol.Ask() | protocol.SendFrame() | protocol.Listen() | protocol.Connect():
                self._begin(command)
            case protocol.Send() | protocol.End() | protocol.HangUp():
                self._begin(command)
            case _:
                return self._trap(command)
        return protocol.Done(id=command.id)

    def _begin(self, command: protocol.HostCommand) -> None:
        if self._host_side is None:
            raise _refuse(command.id, "op", "nobody is in the host of this session")
        try:
            self._host_side.begin(command)
        except CannotDo as error:
            raise _refuse(command.id, error.field, str(error)) from None

    def _memory(self, command: protocol.Read | protocol.Write) -> Line:
        memory = self._power(command.id).vp.partition.memory
        try:
            match command:
                case protocol.Read(gpa=gpa, length=length):
                    if length > protocol.MAX_TRANSFER:
                        raise _refuse(command.id, "length", f"Expected at most {protocol.MAX_TRANSFER} bytes")
                    return protocol.Data(id=command.id, data=memory.read(int(gpa), int(length)).hex())
                case protocol.Write(gpa=gpa, data=data):
                    memory.write(int(gpa), data)
                    return protocol.Done(id=command.id)
                case _:
                    assert_never(command)
        except GpaFault as fault:
            words = f"guest physical address {fault.gpa:#x} is not there for this access"
            return protocol.Refused(id=command.id, error="memory", message=words)

    def _trap(
        self,
        command: protocol.Access,
    ) -> Line:
        vp = self._vp(command.id, command.vp)
        done = protocol.Done(id=command.id)
        try:
            match command:
                case protocol.Hypercall(control=control, input=input_gpa, output=output_gpa):
                    return returned(command.id, vp.hypercall(int(control), int(input_gpa), int(output_gpa)))
                case protocol.ReadMsr(msr=msr):
                    return protocol.Value(id=command.id, value=vp.read_msr(int(msr)))
                case protocol.WriteMsr(msr=msr, value=value):
                    vp.write_msr(int(msr), int(value))  # registers keep what they are given: plain numbers
                    return done
                case protocol.Cpuid(leaf=leaf, subleaf=subleaf):
                    eax, ebx, ecx, edx = vp.cpuid(_u32(command.id, "leaf", leaf), _u32(command.id, "subleaf", subleaf))
                    return protocol.Registers(id=command.id, eax=eax, ebx=ebx, ecx=ecx, edx=edx)
                case protocol.PortIn(port=port, size=size):
                    return protocol.Value(id=command.id, value=vp.port_in(_u16(command.id, "port", port), size))
                case protocol.PortOut(port=port, size=size, value=value):
                    if value >> (8 * size):
                        raise _refuse(command.id, "value", f"Expected a number of {8 * size} bits")
                    vp.port_out(_u16(command.id, "port", port), size, value)
                    return done
                case _:
                    assert_never(command)
        except ProcessorFault as fault:
            return protocol.Refused(id=command.id, error="fault", message=str(fault), fault=fault_name(fault))

    def _power(self, command_id: Id) -> BoundaryVp:
        """Processor 0, which a VM that is on has."""
        return self._vp(command_id, 0)

    def _vp(self, command_id: Id, index: int) -> BoundaryVp:
        machines = self._backends.machines
        if not machines:
            raise _Refuse(protocol.Refused(id=command_id, error="off", message='the VM is off; {"op":"start"} it'))
        if index not in machines:
            raise _refuse(command_id, "vp", f"Expected a processor from 0 to {len(machines) - 1}")
        return machines[index]

    async def tell_changes(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """What becomes of the VM, as events."""
        with self._vm.events() as changes:
            task_status.started()
            async for change in changes:
                record = self._vm.exit
                if change.event is VmEvent.WAS_RESET:
                    self._write(protocol.WasReset())
                elif change.event is VmEvent.ENDED and record is not None:
                    reason, code = record.reason.value, record.exit_code
                    self._write(protocol.Ended(reason=reason, exit_code=code, detail=record.detail))


def alone(topology: Topology, name: str) -> Topology:
    """One VM of a topology, and nothing by which others would reach it: the speaker is all that is outside."""
    replace = msgspec.structs.replace
    (vm,) = (vm for vm in topology.vm if vm.name == name)
    screen = None if vm.screen is None else replace(vm.screen, vnc=None)
    switches = [SwitchTable(name=switch.name) for switch in topology.switch]
    return replace(topology, vm=[replace(vm, sockets=None, screen=screen)], switch=switches)


async def settle() -> None:
    """Until every task of the root has nothing left to do, `tell_changes` included."""
    await trio.testing.wait_all_tasks_blocked()


async def advance(ticks: int) -> None:
    """Let time pass on Trio's `MockClock`, from timer to timer, so that each sees the time it was set for."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, trio.testing.MockClock), "a session runs on the virtual clock"
    until = trio.current_time() + seconds(ticks)
    while True:
        await settle()
        left = until - trio.current_time()
        following = max(trio.lowlevel.current_statistics().seconds_to_next_deadline, 0)
        clock.jump(max(min(left, following), 0))
        if following > left:
            return


class Backends:
    """Makes the session's backend for each start, and knows which is at work."""

    def __init__(self, write: Callable[[Line], None]) -> None:
        self._write = write
        self._latest: BoundaryBackend | None = None

    def __call__(self, hypervisor: Hypervisor, vm: VmTable) -> BoundaryBackend:
        """A `BackendFactory`."""
        self._latest = BoundaryBackend(hypervisor, self._interrupted)
        return self._latest

    def _interrupted(self, vp: int, vector: int) -> None:
        self._write(protocol.Interrupted(vp=vp, vector=vector))

    @property
    def machines(self) -> dict[int, BoundaryVp]:
        """The processors; none while the VM is off."""
        return {} if self._latest is None else self._latest.machines


async def serve(
    topology: Topology,
    lines: AsyncIterator[bytes | None],
    write: Callable[[bytes], None],
    *,
    sinks: Callable[[Trace], Iterable[Sink]] = lambda _: (),
) -> None:
    """A whole session: `topology` has one VM, `lines` come without their ends, None for one that is too long.

    Needs Trio's `MockClock`. Raises `CannotStart`. Ends where `write` finds that nobody reads any more.
    """
    read = True

    def send(line: Line) -> None:
        nonlocal read
        if read:
            try:
                write(protocol.encode(line) + b"\n")
            except BrokenPipeError:
                read = False  # not raised here: an interrupt is told from deep within the root

    backends = Backends(send)
    (table,) = topology.vm
    failed: StartFailed | None = None
    async with open_host(topology, clock="virtual", backends=backends) as host:
        for sink in sinks(host.trace):
            host.trace.add_sink(sink)
        async with trio.open_nursery() as nursery:
            vm = host[table.name]
            session = Session(vm, backends, send, HostSide(host, vm, send, nursery))
            await nursery.start(session.tell_changes)
            try:
                await session.start()
            except StartFailed as error:
                failed = error
            else:
                async for line in lines:
                    await session.handle(line)
                    if session.over or not read:
                        break
            nursery.cancel_scope.cancel()
    if failed is not None:  # raised here, where no nursery wraps it
        raise CannotStart(str(failed))


def returned(command_id: Id, rax: int) -> protocol.Returned:
    """The answer to a hypercall."""
    try:
        status = HvStatus(rax & 0xFFFF).name
    except ValueError:
        status = f"{rax & 0xFFFF:#x}"
    return protocol.Returned(id=command_id, rax=rax, status=status, reps=rax >> 32 & 0xFFF)


def _u32(command_id: Id, field: str, value: int) -> int:
    if value >> 32:
        raise _refuse(command_id, field, "Expected a number of 32 bits")
    return value


def _u16(command_id: Id, field: str, value: int) -> int:
    if value >> 16:
        raise _refuse(command_id, field, "Expected a number of 16 bits")
    return value


def _refuse(command_id: Id, field: str, words: str) -> _Refuse:
    return _Refuse(protocol.Refused(id=command_id, error="bad_line", message=words, field=field))


def fault_name(fault: ProcessorFault) -> str:
    """As answers have it."""
    match fault:
        case GeneralProtection():
            return "#GP"
        case InvalidOpcode():
            return "#UD"
        case _:
            return "stopped"
