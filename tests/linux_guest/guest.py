"""A Linux kernel in a VM of ours, told what to do by a script, and what it reported. Root side.

The script runs as init. Its steps print what the guest itself has to say between two marks on the console, so one boot
can serve many checks; a step can also be answered from outside while it runs (`during`).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

import partitions
from hypervisor.backend.kvm.backend import KvmBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.trace import Level, Sink, TraceEvent
from partitions.host import Console, ExitRecord, Host, Vm, VmStatistics
from partitions.root.chipset.linux_boot import LinuxImage
from partitions.topology_controls import CpuTable
from partitions.topology_schema import (
    Backend,
    DiskTable,
    HostTable,
    InputName,
    NicTable,
    ScreenTable,
    Size,
    SwitchTable,
    Topology,
    VmTable,
)
from tests.linux_guest import parts

STORAGE = ("hv_vmbus", "hv_storvsc", "sd_mod", "ext4")
QUIET = "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off"
"""Each byte that a kernel prints costs an exit; a guest of tests prints what is asked for."""
UP = "init is up"
BEGIN, END, OVER = "<<< ", ">>> ", "init is done"
DEFAULT_TIMEOUT = 240.0
"""Seconds that nothing needs: an emulated machine on a busy host is now and then ten times slower than usual."""

INIT = f"""#!/bin/busybox sh
export PATH=/bin
echo {UP}
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
stty -echo -onlcr
trap 'echo SIGINT >>/signals' INT # what Ctrl-Alt-Del comes to, and the end of a shell that does not expect it
load() {{ insmod $(ls /modules/[0-9]*-$1.ko) $2; }}
all() {{ for module in $(ls /modules/*.ko); do insmod $module; done; }}
disk() {{ # disk LUN: its name, which depends on whose probe was the first to end
  for block in /sys/class/scsi_disk/*:0:0:$1/device/block/*; do echo ${{block##*/}}; done
}}
await() {{ # await SECONDS COMMAND...
  tenths=$(($1 * 10)); shift
  while ! "$@" 2>/dev/null; do
    tenths=$((tenths - 1)); [ $tenths -gt 0 ] || {{ echo "gave up: $*"; return 1; }}
    sleep 0.1
  done
}}
"""


class GuestFailed(Exception):
    """The guest did not come to the end of its script; the text has its last words."""


@attrs.frozen
class Step:
    """What one step of the script printed, and its status."""

    output: str
    status: int

    @property
    def lines(self) -> list[str]:
        """The output's lines."""
        return self.output.splitlines()


@attrs.frozen
class Evidence:
    """What a boot left behind."""

    steps: dict[str, Step]
    exit: ExitRecord
    statistics: VmStatistics
    boot_seconds: float
    """From `start` to the first line of init."""
    warnings: list[str]
    """What the host found wrong with the guest, where the plan was traced."""

    def __getitem__(self, step: str) -> str:
        """What a step printed; a step that failed is an error here, with its words."""
        done = self.steps[step]
        if done.status:
            raise GuestFailed(f"step {step!r} ended with status {done.status}:\n{done.output}")
        return done.output


@attrs.frozen
class Plan:
    """What to boot and what to have it do."""

    steps: Mapping[str, str]
    """Shell lines by step, run in this order."""
    disks: Sequence[DiskTable] = ()
    nics: Sequence[NicTable] = ()
    switches: Sequence[SwitchTable] = ()
    others: Sequence[VmTable] = ()
    """VMs that are switched on before it."""
    modules: Sequence[str] = STORAGE
    """Carried along with what they depend on; `all` or `load NAME` in a step puts them in."""
    kernel: str = parts.INNER
    processors: int = 1
    cpu: CpuTable | None = None
    logical_processors: int = 4
    """The host's."""
    memory: int = 256 << 20
    command_line: str = QUIET
    extra: Mapping[str, bytes] = attrs.Factory(dict)
    ending: str = "poweroff -f"
    timeout: float = DEFAULT_TIMEOUT
    synthetic_timers: bool = False
    """Offer Hyper-V's timers for clock events."""
    screen: ScreenTable | None = None
    input: Sequence[InputName] = ()
    traced: bool = False
    """Keep the host's warnings; every packet is traced then, which costs."""


def script(steps: Mapping[str, str], ending: str = "poweroff -f") -> str:
    """An init that goes through steps, each between its marks."""
    lines = INIT
    for name, step in steps.items():
        lines += f"echo '{BEGIN}{name}'\n(\n{step}\n) 2>&1\necho '{END}{name}' $?\n"
    return lines + f"sync\necho {OVER}\n{ending}\nsleep 1000\n"


def topology(plan: Plan, folder: Path) -> Topology:
    """One VM called linux with the plan's kernel, and its initramfs made in `folder`."""
    kernel = parts.kernel(plan.kernel)
    image = parts.initramfs(
        folder / "init.img", script(plan.steps, plan.ending), kernel.modules(plan.modules), plan.extra
    )
    vm = VmTable(
        name="linux",
        backend=Backend.KVM,
        kernel=str(kernel.image),
        initrd=str(image),
        cmdline=plan.command_line,
        memory=Size(plan.memory),
        processors=plan.processors,
        cpu=plan.cpu,
        synthetic_timers=plan.synthetic_timers,
        screen=plan.screen,
        input=list(plan.input),
        disk=list(plan.disks),
        nic=list(plan.nics),
    )
    host = HostTable(logical_processors=plan.logical_processors)
    return Topology(host=host, vm=[*plan.others, vm], switch=list(plan.switches), folder=folder)


@asynccontextmanager
async def booted(plan: Plan, folder: Path, sinks: Sequence[Sink] = ()) -> AsyncIterator[tuple[Host, Vm]]:
    """The plan's VM, running; turned off at the end of the block if it is not off by then."""
    async with partitions.open_host(topology(plan, folder), sinks=sinks) as host:
        await host.start_all()
        yield host, host["linux"]


During = Callable[[Host, Vm], Awaitable[None]]


def boot(plan: Plan, folder: Path, during: Mapping[str, During] | None = None, sinks: Sequence[Sink] = ()) -> Evidence:
    """Boot, let the script run to its end, collect. `during` has what to do outside when a step begins.

    `sinks` get the trace, all of it.

    Raises `GuestFailed`; the time-box is the plan's.
    """
    return trio.run(_boot, plan, folder, during or {}, sinks)


async def _boot(plan: Plan, folder: Path, during: Mapping[str, During], sinks: Sequence[Sink]) -> Evidence:
    began = time.perf_counter()
    up = began
    lines: list[str] = []
    warnings: list[str] = []
    late = ""

    def keep(event: TraceEvent) -> None:
        if event.level >= Level.WARNING:
            warnings.append(f"{event.event}: {event.words}")

    with trio.move_on_after(plan.timeout) as scope:
        async with booted(plan, folder, [*sinks, keep] if plan.traced else sinks) as (host, vm):
            began = time.perf_counter()

            async def listen() -> None:
                nonlocal up
                async for line in vm.console.follow(capacity=100_000):
                    lines.append(line.text)
                    if line.text == UP:
                        up = time.perf_counter()
                    if line.text.startswith(BEGIN) and (act := during.get(line.text.removeprefix(BEGIN))) is not None:
                        await act(host, vm)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                try:
                    exit_record = await vm.wait()
                finally:
                    if scope.cancel_called:
                        lines = vm.console.lines()
                nursery.cancel_scope.cancel()
            lines = [line.rstrip("\r") for line in vm.console.lines()]
            statistics = vm.statistics()
    if scope.cancelled_caught:
        raise GuestFailed(
            f"not at its end after {plan.timeout:g} s; {late}; its last lines:\n" + "\n".join(lines[-25:])
        )
    exit_record.raise_worker_failure()
    if OVER not in lines:
        raise GuestFailed(f"{exit_record} before its script was done; its last lines:\n" + "\n".join(lines[-25:]))
    return Evidence(_steps(lines), exit_record, statistics, up - began, warnings)


def _steps(lines: Sequence[str]) -> dict[str, Step]:
    steps: dict[str, Step] = {}
    inside: list[str] = []
    for line in lines:
        if line.startswith(BEGIN):
            inside = []
        elif line.startswith(END):
            name, _, status = line.removeprefix(END).rpartition(" ")
            steps[name] = Step("\n".join(inside), int(status))
        else:
            inside.append(line)
    return steps


class Shell:
    """A shell on a guest's console, typed at from outside."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reader = console.listen()
        self._unread = console.text
        """Printed and not yet asked for."""
        self._count = 0

    async def expect(self, words: str, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Wait until the guest prints these words; what it printed before them. Raises `GuestFailed`."""
        with trio.move_on_after(timeout) as scope:
            while words not in self._unread:
                self._unread += (await self._reader.receive()).decode("utf-8", "replace").replace("\r", "")
        if scope.cancelled_caught:
            raise GuestFailed(f"{words!r} did not come in {timeout:g} s:\n{self._unread[-2000:]}")
        before, _, self._unread = self._unread.partition(words)
        return before

    async def type(self, text: str) -> None:
        """Type as a quick person would, no faster than the guest reads."""
        rest = text.encode()
        while rest:
            rest = rest[self._console.send(rest[:16]) :]
            await trio.sleep(0.01)

    async def run(self, command: str, timeout: float = DEFAULT_TIMEOUT) -> str:
        """What a command prints. Raises `GuestFailed` if it fails."""
        self._count += 1
        # The shell puts the mark together, so an echo of what was typed is not taken for it.
        await self.type(f"{command}; echo '=='{self._count}: $?.\n")
        output = await self.expect(f"=={self._count}: ", timeout)
        status = await self.expect(".", timeout)
        if status != "0":
            raise GuestFailed(f"{command!r} ended with status {status}: {output}")
        return output.strip()


class Boots:
    """A backend factory that keeps what it made, for those who count exits."""

    def __init__(self) -> None:
        self.backends: list[KvmBackend] = []

    def __call__(self, hypervisor: Hypervisor, vm: VmTable) -> KvmBackend:
        image = LinuxImage.open(
            Path(vm.kernel),
            initrd=Path(vm.initrd),
            command_line=vm.cmdline,
            memory_bytes=vm.memory,
            processors=vm.processors,
        )
        made = KvmBackend(hypervisor, image.load)
        self.backends.append(made)
        return made
