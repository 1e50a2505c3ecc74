"""Trio under a test that goes step by step: each step runs in Trio's thread, and ends when nothing there can go on."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio
import trio.testing

Made = TypeVar("Made")
Result = TypeVar("Result")


class Stepper(Generic[Made]):
    """Holds an async context open on another thread, with a clock that stands still."""

    def __init__(self, context: Callable[[], AbstractAsyncContextManager[Made]]) -> None:
        self._context = context
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._hold, clock=trio.testing.MockClock())
        except BaseException as failure:  # raised again by `close`, or by the step under way
            self._failure = failure
        finally:
            self._ready.set()

    async def _hold(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with self._context() as self.made:
            self._ready.set()
            await self._end.wait()

    def step(self, function: Callable[[], Result]) -> Result:
        """Call a plain function in Trio's thread, and let everybody run."""

        async def run() -> Result:
            result = function()
            await trio.testing.wait_all_tasks_blocked()
            return result

        return self.wait(run)

    def wait(self, function: Callable[[], Awaitable[Result]]) -> Result:
        """The same for an async one."""
        try:
            return trio.from_thread.run(function, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            self._thread.join()
            raise self._failure or AssertionError("Trio has ended by itself") from None

    def close(self) -> None:
        """Leave the context. Raises whatever it does."""
        if self._thread.is_alive():
            self._token.run_sync_soon(self._end.set)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
