"""One run of a topology for a person or a script: the host, the watchers around it, and how it ended. Root side.

A person waits for the first guest's first instruction, so what only some runs show is imported by those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from hypervisor.clock import seconds
from partitions.cli.capturing import capturing
from partitions.cli.common import INTERRUPTED, Refusal, collect_garbage
from partitions.cli.reachable import reachable
from partitions.cli.summary import row_of
from partitions.cli.tally import Tally
from partitions.cli.terminal import Wish
from partitions.cli.viewer import Ending, Outcome, Viewer
from partitions.host import CannotSave, ExitReason, Host, InvalidTransition, StartFailed, SwitchError, Vm, open_host
from partitions.root.asking import asked_by

if TYPE_CHECKING:
    from partitions.cli.observing import Observer
    from partitions.root.control_socket import ControlSocket
    from partitions.root.worker import BackendFactory
    from partitions.topology import Topology

CONSOLE_KEY = "the console's escape key"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a run in order; one that this process was told to ignore, as nohup does, stays ignored."""


@contextlib.asynccontextmanager
async def _watched(host: Host, viewer: Viewer) -> AsyncIterator[trio.Event | None]:
    """The live picture, if there is to be one; what is given is set when somebody looks."""
    if viewer.page is None:
        yield None
        return
    from partitions.cli.watching import watched

    async with watched(host, str(viewer.options.target), viewer.page, viewer.note) as seen:
        viewer.note("the guests start when the page is open in a browser; Ctrl-C ends the run")
        yield seen


async def run(
    topology: Topology, viewer: Viewer, timeout: float | None, backends: BackendFactory | None = None
) -> Outcome:
    """Start all, wait for all, and take everything down in order whatever happens. `timeout` is in seconds.

    `backends` makes what executes the VMs, where it is not what the topology says.
    """
    options = viewer.options
    viewer.ask(topology)
    seed = topology.host.seed if options.seed is None else options.seed
    # Outermost the readers of consoles: closing the host ends them, after their last line.
    with trio.open_signal_receiver(*_signals()) as received:
        async with (
            trio.open_nursery() as readers,
            _open_host(topology, viewer, seed, backends) as host,
        ):
            viewer.attach(host)
            observer = viewer.observer(host)
            # A record and its replay have the same tasks, whatever is shown of either.
            if viewer.console or backends is not None:
                for vm in host.values():
                    await readers.start(viewer.follow, vm)
            if viewer.terminal is not None:
                await readers.start(_show, viewer, host[viewer.terminal.vm])
            async with (
                reachable(host, options, viewer.note) as control,
                _watched(host, viewer) as seen,
            ):
                with (
                    contextlib.nullcontext() if observer is None else observer.sampler as sampler,
                    Tally(host, sampler) as tally,
                ):
                    ending = await _watch(host, viewer, timeout, received, control, seen, observer)
            outcome = Outcome(
                topology=str(options.target),
                clock=options.clock,
                seed=seed,
                ending=ending,
                seconds=seconds(host.hypervisor.clock()),
                vms=[row_of(vm) for vm in host.values()],
                not_saved=viewer.not_saved,
                explanations=viewer.explanations(host),
                resources=tally.whole(),
                question=None if observer is None else observer.verdict(),
                lateness=host.hypervisor.scheduler.lateness.worst / 1e9,
                late_wakes=host.hypervisor.scheduler.lateness.wakes,
            )
        problems = viewer.problems(host)
    for problem in problems:
        viewer.note(problem)
    return outcome


@contextlib.asynccontextmanager
async def _open_host(
    topology: Topology, viewer: Viewer, seed: int | None, backends: BackendFactory | None
) -> AsyncIterator[Host]:
    """The host, with captures at its switches' ports. Raises `Refusal` for what cannot be had here or on this clock."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            opening = open_host(topology, clock=viewer.options.clock, seed=seed, backends=backends)
            host = await stack.enter_async_context(opening)
        except (SwitchError, ValueError) as error:
            raise Refusal(str(error)) from None
        with capturing(host, viewer.options.capture, viewer.note):
            yield host


async def _watch(
    host: Host,
    viewer: Viewer,
    timeout: float | None,
    received: AsyncIterator[int],
    control: ControlSocket | None,
    seen: trio.Event | None,
    observer: Observer | None,
) -> Ending:
    """The run itself with its watchers; returns when every VM is off, and with --stay, when somebody has ended it."""
    ending = Ending.ENDED
    starting, started, over = trio.CancelScope(), trio.Event(), trio.Event()

    def end(why: Ending) -> None:
        nonlocal ending
        ending = why
        over.set()
        starting.cancel()

    def stop(why: Ending, who: str) -> None:
        end(why)
        with asked_by(who):
            host.turn_all_off()

    times = 0
    saves: dict[str, Path] = viewer.options.save

    def interrupt(who: str) -> None:
        nonlocal times
        times += 1
        if times > 2:
            leave(viewer)
        elif times == 2:
            viewer.note("turning off; once more to leave at once")
            with asked_by(who):
                host.turn_all_off()
        else:
            viewer.note(f"{'saving' if saves else 'shutting down'}; once more to turn off")
            end(Ending.INTERRUPTED)
            with asked_by(who):
                watchers.start_soon(save_and_shut_down)

    def was_saved(vm: Vm) -> bool:
        return vm.exit is not None and vm.exit.reason is ExitReason.SAVED

    def not_saved(name: str, why: str) -> None:
        viewer.not_saved.append(name)
        viewer.note(f"error: VM {name} is not saved: {why}")

    async def save_all() -> None:
        await started.wait()
        for name, path in saves.items():
            if was_saved(host[name]):
                continue
            try:
                await host[name].save(path)
            except (CannotSave, InvalidTransition) as error:
                not_saved(name, str(error))

    async def save_and_shut_down() -> None:
        await save_all()
        await host.shut_down_all()

    async def save_later(after: float) -> None:
        await trio.sleep(after)
        with asked_by("--save-after"):
            await save_all()

    async def interrupts() -> None:
        async for number in received:
            interrupt(signal.Signals(number).name)

    async def taken_down() -> None:
        if control is not None:
            await control.down.wait()
            end(Ending.DOWN)

    def wish(what: Wish) -> None:
        if what is Wish.TURN_OFF:
            stop(Ending.INTERRUPTED, CONSOLE_KEY)
        else:
            interrupt(CONSOLE_KEY)

    async def unwatched() -> None:
        await viewer.outlets.gone.wait()
        stop(Ending.UNWATCHED, "the end of the output")

    async def expire(after: float) -> None:
        await trio.sleep(after)
        stop(Ending.TIMED_OUT, "--timeout")

    async def virtual_time() -> None:
        """Where time jumps, nothing comes from outside: when all wait and no timer is set, this is the end.

        The timeout is kept here and not by a timer, which would always be one more thing left to happen.
        """
        import trio.testing  # here and not above: it brings pytest along where that is installed

        expires = inf if timeout is None else trio.current_time() + timeout
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if observer is not None:
                observer.look()
            left = trio.lowlevel.current_statistics().seconds_to_next_deadline
            if left == inf:
                return stop(Ending.NOTHING_LEFT, "the end of the virtual time")
            if trio.current_time() + left > expires:
                return stop(Ending.TIMED_OUT, "--timeout")
            await trio.sleep(max(0, left if observer is None else min(left, observer.due)))

    async with trio.open_nursery() as watchers:
        watchers.start_soon(interrupts)
        watchers.start_soon(unwatched)
        watchers.start_soon(taken_down)
        if viewer.terminal is not None:
            watchers.start_soon(viewer.terminal.take, host[viewer.terminal.vm].console, wish)
        if viewer.options.clock == "virtual":
            watchers.start_soon(virtual_time)
        else:
            if timeout is not None:
                watchers.start_soon(expire, timeout)
            if observer is not None:
                watchers.start_soon(observer.keep_looking)
        if viewer.screen.live:
            watchers.start_soon(viewer.redraw, host)
        if saves and viewer.options.save_after is not None:
            watchers.start_soon(save_later, viewer.options.save_after)
        with starting:
            if seen is not None:
                await seen.wait()
            # A VM that does not start has a record that says why; the others go on.
            for vm in host.values():
                with contextlib.suppress(StartFailed):
                    saved = viewer.options.restore.get(vm.name)
                    await (vm.start() if saved is None else vm.restore(saved))
                collect_garbage()
        started.set()
        for vm in host.values():
            if vm.vnc_port is not None:
                viewer.note(f"{vm.name}: VNC at 127.0.0.1:{vm.vnc_port}")
        await host.wait_all()
        if viewer.options.stay and not over.is_set():
            viewer.note("note: all guests have ended; the host stays, until Ctrl-C or `partita down`")
            await over.wait()
            await host.wait_all()
        if observer is not None:
            observer.finish()
        watchers.cancel_scope.cancel()
    if viewer.options.save_after is not None and ending is Ending.ENDED:
        for name in saves:
            if name not in viewer.not_saved and not was_saved(host[name]):
                not_saved(name, "it ended before it was time")
    return ending


def leave(viewer: Viewer) -> None:
    """End the process here and now: a task guest that shields itself from cancellation cannot be made to let go."""
    viewer.note("error: leaving without the guests that do not let go")
    viewer.close()
    sys.stdout.flush()
    os._exit(INTERRUPTED)


async def _show(viewer: Viewer, vm: Vm, *, task_status: trio.TaskStatus[None]) -> None:
    """The console on the terminal, until it is closed; a terminal that has gone ends the run."""
    assert viewer.terminal is not None
    try:
        await viewer.terminal.show(vm.console, task_status=task_status)
    except OSError:
        viewer.outlets.gone.set()


def _signals() -> list[signal.Signals]:
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
