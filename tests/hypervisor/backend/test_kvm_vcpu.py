"""The hand-over between a vCPU's thread and the Trio thread, with a KVM_RUN of our own in KVM's place."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable

import pytest
import trio

from hypervisor.backend.kvm import ioctls
from hypervisor.backend.kvm.ioctls import Exit, Request
from hypervisor.backend.kvm.vcpu import KICK_SIGNAL, Vcpu
from tests.doubles.looking import seen

RUN_SIZE = 12288
EXIT, SLEEP, FAIL, CRASH = "exit", "sleep", "fail", "crash"
Script = Callable[[], str]


class FakeKvm:
    """Executes a script: leave with an exit, execute until kicked, fail, or raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: Script) -> None:
        self.script = script
        self.runs = 0
        self.exits = 0
        self.vcpu: Vcpu
        self.stray: list[str] = []
        """What must never be seen."""
        self._runs_alone = threading.Lock()
        """KVM's lock of a vCPU: whoever runs it holds it, ioctls take it."""
        monkeypatch.setattr(ioctls, "ioctl", self._ioctl)
        monkeypatch.setattr(ioctls, "run", self._run)

    def _ioctl(self, fd: int, request: int, argument: object = None) -> int:
        if request == Request.CREATE_VCPU:
            page = os.memfd_create("vcpu")
            os.ftruncate(page, RUN_SIZE)
            return page
        if request == Request.GET_MSRS:
            time.sleep(0.02)  # a busy machine: the thread is in KVM_RUN again, if it may, before this thread is in KVM
            if not self._runs_alone.acquire(timeout=1):
                self.stray.append("an ioctl waited for the guest")
                return 0
            self._runs_alone.release()
        return 0

    def _run(self, fd: int) -> int:
        with self._runs_alone:
            return self._run_alone()

    def _run_alone(self) -> int:
        vcpu = self.vcpu
        self.runs += 1
        if vcpu.handed_over:
            self.stray.append("ran while the Trio thread had the page")
        if signal.sigtimedwait((KICK_SIGNAL,), 0):
            return -errno.EINTR
        match self.script():
            case "exit":
                self.exits += 1
                struct.pack_into("<I", vcpu.run, ioctls.RUN_EXIT_REASON, Exit.IO)
                return 0
            case "sleep":
                if signal.sigtimedwait((KICK_SIGNAL,), 20) is None:
                    self.stray.append("a kick was lost")
                return -errno.EINTR
            case "fail":
                return -errno.EFAULT
            case _:
                raise ZeroDivisionError("a bug in the thread")


def made(monkeypatch: pytest.MonkeyPatch, script: Script, on_exit: Callable[[Vcpu], None]) -> tuple[FakeKvm, Vcpu]:
    fake = FakeKvm(monkeypatch, script)
    fake.vcpu = Vcpu(3, 0, RUN_SIZE, on_exit)
    return fake, fake.vcpu


async def stopped(vcpu: Vcpu) -> None:
    vcpu.ask_to_stop()
    with trio.fail_after(10):
        await vcpu.ended_or_never_started()
    vcpu.close()


async def test_reading_a_running_processor_does_not_wait_for_its_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: a kicked thread was back in KVM_RUN before the ioctl came, and an idle guest never left it again."""
    fake, vcpu = made(monkeypatch, lambda: SLEEP, lambda _: None)
    vcpu.start()
    for _ in range(5):
        await trio.sleep(0.01)
        vcpu.read_tsc()
    vcpu.pause(True)
    vcpu.read_tsc()
    await trio.sleep(0.01)
    runs = fake.runs
    await trio.sleep(0.01)
    assert fake.runs == runs, "a paused processor stays out"
    await stopped(vcpu)
    assert fake.stray == []


async def test_what_a_processor_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its thread is at and what its exits took, without a word to KVM: looking must not stop a guest."""
    enough = trio.Event()

    def on_exit(vcpu: Vcpu) -> None:
        vcpu.exits["io"] += 1
        if vcpu.exits["io"] == 10:
            enough.set()
        vcpu.answer()

    fake, vcpu = made(monkeypatch, lambda: SLEEP if enough.is_set() else EXIT, on_exit)
    before = seen(vcpu.inspect())
    assert (before["kind"], before["thread_runs"], before["exits"]) == ("kvm", False, {})
    vcpu.start()
    with trio.fail_after(10):
        await enough.wait()
    await trio.sleep(0.01)
    monkeypatch.setattr(ioctls, "ioctl", lambda *_: pytest.fail("a look asks KVM nothing"))
    running = seen(vcpu.inspect())
    assert (running["thread_runs"], running["paused"], running["errno"]) == (True, False, 0)
    assert running["exits"] == {"io": 10}
    assert running["exit_latency"]["took"].total == running["exit_latency"]["last_exits"] == 10
    monkeypatch.setattr(ioctls, "ioctl", fake._ioctl)
    await stopped(vcpu)
    assert not seen(vcpu.inspect(), "thread_runs")
    assert fake.stray == []


async def test_run_time_is_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that computes has it, one that waits has next to none; after the end the last figure stays."""

    def compute() -> str:
        sum(range(200_000))
        return EXIT

    for script, busy in ((compute, True), (lambda: SLEEP, False)):
        times: list[int] = []
        enough = trio.Event()

        def on_exit(vcpu: Vcpu, times: list[int] = times, enough: trio.Event = enough) -> None:
            times.append(vcpu.run_time())
            if len(times) == 20:
                enough.set()
            vcpu.answer()

        _, vcpu = made(monkeypatch, script, on_exit)
        assert vcpu.run_time() == 0
        vcpu.start()
        with trio.move_on_after(30 if busy else 0.2):
            await enough.wait()
        if busy:
            assert times[0] < times[-1]
        else:
            assert vcpu.run_time() < 500_000, "50 ms"
        await stopped(vcpu)
        ended = vcpu.run_time()
        assert ended >= max(times, default=0)
        assert vcpu.run_time() == ended


async def test_an_exit_is_dealt_with_in_the_trio_thread_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()
    done = trio.Event()

    def on_exit(vcpu: Vcpu) -> None:
        if vcpu.stopping:
            return
        threads.add(threading.get_ident())
        assert vcpu.handed_over
        assert vcpu.exit_reason() is Exit.IO
        vcpu.answer()
        if fake.exits == 100:
            done.set()

    fake, vcpu = made(monkeypatch, lambda: EXIT if fake.exits < 100 else SLEEP, on_exit)
    vcpu.start()
    with trio.fail_after(10):
        await done.wait()
    await stopped(vcpu)
    assert threads == {threading.get_ident()}
    assert len(vcpu.latencies) >= 99
    assert not fake.stray


async def test_pauses_and_resumes_at_random_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever meets whatever: paused, the guest makes no progress; resumed, it does; at the end it leaves."""
    dice = random.Random(5)
    answered = 0

    def on_exit(vcpu: Vcpu) -> None:
        nonlocal answered
        if vcpu.stopping:
            return
        answered += 1
        if answered % 7 == 0:
            vcpu.pause(True)  # as a processor that stops for its parent
            vcpu.pause(False)
        vcpu.answer()

    fake, vcpu = made(monkeypatch, lambda: dice.choice((EXIT, EXIT, EXIT, SLEEP)), on_exit)
    vcpu.pause(True)
    vcpu.start()
    await trio.sleep(0.01)
    assert fake.runs == 0
    for _ in range(300):
        vcpu.pause(False)
        for _ in range(dice.randrange(4)):
            await trio.lowlevel.checkpoint()
            vcpu.kick()
        vcpu.pause(True)
        await trio.sleep(0.0005)
    await trio.sleep(0.05)
    before = fake.runs
    await trio.sleep(0.02)
    assert fake.runs == before, "it runs though it is paused"
    vcpu.pause(False)
    with trio.fail_after(10):
        while fake.runs == before:  # noqa: ASYNC110
            await trio.sleep(0.001)
    await stopped(vcpu)
    assert not fake.stray
    assert answered > 100


async def test_the_root_and_the_scheduler_hold_it_back_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs when neither wants it out, whoever was first to let go; reading its TSC lets it out of neither."""
    fake, vcpu = made(monkeypatch, lambda: SLEEP, lambda _: None)
    vcpu.hold(True)
    vcpu.start()
    await trio.sleep(0.01)
    assert fake.runs == 0

    async def runs() -> bool:
        await trio.sleep(0.01)  # what was kicked is out by now
        before = fake.runs
        vcpu.kick()
        with trio.move_on_after(0.05):
            while fake.runs == before:  # noqa: ASYNC110
                await trio.sleep(0.001)
        return fake.runs > before

    for root_first in (True, False):
        vcpu.hold(True)
        vcpu.pause(True)
        vcpu.read_tsc()
        assert not await runs()
        (vcpu.pause if root_first else vcpu.hold)(False)
        vcpu.read_tsc()
        assert not await runs()
        (vcpu.hold if root_first else vcpu.pause)(False)
        assert await runs()
    vcpu.hold(False)
    assert vcpu.kicks == 2, "one for each time that it had been let in"
    vcpu.hold(True)
    await stopped(vcpu)
    assert fake.stray == []


async def test_a_halted_guest_is_told_from_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a thread that is blocked in KVM_RUN itself has nothing to do; one that waits for us or computes has."""
    text = b"running\n"
    monkeypatch.setattr(os, "pread", lambda *_: text)
    _, vcpu = made(monkeypatch, lambda: SLEEP, lambda _: None)
    assert vcpu.sleeps(), "nobody has started it"
    vcpu.start()
    for text, sleeps in (
        (b"running\n", False),
        (b"16 0x12 0xae80 0x0 0x0 0x0 0x0 0x7f14869fe610 0x7f148bd1bd6b\n", True),
        (b"16 0x12 0xae81 0x7f14869fe000 0x0 0x0 0x0 0x7f14869fe610 0x7f148bd1bd6b\n", False),
        (b"202 0x559376da1410 0x189 0x0 0x0 0x0 0xffffffff 0x7f1484dfe8c0 0x7f148bca3f16\n", False),
    ):
        assert vcpu.sleeps() is sleeps, text
    await stopped(vcpu)
    assert vcpu.sleeps()


@pytest.mark.parametrize("moment", range(6))
async def test_a_stop_meets_an_exit(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Before, in and after the hand-over; the exit that was under way is dropped, and the thread is gone."""
    noted = []

    def on_exit(vcpu: Vcpu) -> None:
        noted.append(vcpu.stopping)
        if moment == 0:
            vcpu.ask_to_stop()
        if vcpu.stopping:
            return
        if len(noted) == moment:
            vcpu.answer()
            vcpu.ask_to_stop()
            return
        vcpu.answer()

    _, vcpu = made(monkeypatch, lambda: EXIT, on_exit)
    vcpu.start()
    if moment in (0, 5):
        await trio.sleep(0.01)
    else:
        with trio.fail_after(10):
            await vcpu.ended.wait()
    await stopped(vcpu)
    count = len(noted)
    await trio.sleep(0.01)
    assert len(noted) == count


async def test_a_processor_that_nobody_started_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when another's creation failed."""
    before = len(os.listdir("/proc/self/fd"))
    _, vcpu = made(monkeypatch, lambda: SLEEP, lambda _: None)
    await stopped(vcpu)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_failing_kvm_run_is_handed_over_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    done = trio.Event()

    def on_exit(vcpu: Vcpu) -> None:
        told.append(vcpu.error)
        done.set()

    _, vcpu = made(monkeypatch, lambda: FAIL, on_exit)
    vcpu.start()
    with trio.fail_after(10):
        await done.wait()
    await stopped(vcpu)
    assert told == [errno.EFAULT]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_bug_in_the_thread_ends_the_guest_and_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[int] = []
    _, vcpu = made(monkeypatch, lambda: CRASH, lambda vcpu: errors.append(vcpu.error))
    vcpu.start()
    with trio.fail_after(10):
        await vcpu.ended.wait()
    await stopped(vcpu)
    assert errors == [errno.EFAULT]


def test_the_thread_leaves_when_trio_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that died without taking its guests down must not hang at its end, nor print a second traceback."""
    go = threading.Event()
    fake, vcpu = made(monkeypatch, lambda: (go.wait(10), EXIT)[1], lambda _: None)

    async def start() -> None:
        vcpu.start()

    trio.run(start)
    go.set()
    assert vcpu._thread is not None
    vcpu._thread.join(10)
    assert not vcpu._thread.is_alive()
    assert not fake.stray
    vcpu.close()


async def test_a_kick_disturbs_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal needs no handler, and the Trio thread's mask is what it was."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler = signal.getsignal(KICK_SIGNAL)
    _, vcpu = made(monkeypatch, lambda: SLEEP, lambda _: None)
    vcpu.start()
    for _ in range(100):
        vcpu.kick()
    await stopped(vcpu)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert signal.getsignal(KICK_SIGNAL) == handler
