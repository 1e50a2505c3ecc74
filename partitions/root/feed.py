"""A stream of values for people who watch: bounded, and the slow reader loses the oldest. Root side.

The writer is a trap handler or a state machine, so it can neither wait nor grow without bound on behalf of a reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Subscription(Generic[T]):
    """One reader's queue; an async iterator that ends when the feed ends and the queue is empty."""

    __slots__ = ("_bell", "_closed", "_feed", "_items", "dropped")

    def __init__(self, feed: Feed[T], capacity: int) -> None:
        self._feed = feed
        self._items: deque[T] = deque(maxlen=capacity)
        self._bell = trio.Event()
        self._closed = False
        self.dropped = 0
        """Values that this reader was too slow for."""

    def _put(self, item: T) -> None:
        if len(self._items) == self._items.maxlen:
            self.dropped += 1
        self._items.append(item)
        self._bell.set()

    def _end(self) -> None:
        self._closed = True
        self._bell.set()

    def close(self) -> None:
        """Stop listening; what is queued can still be read."""
        self._feed.unsubscribe(self)
        self._end()

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                await trio.lowlevel.checkpoint()
                raise StopAsyncIteration
            self._bell = trio.Event()
            await self._bell.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._items.popleft()


class Feed(Generic[T]):
    """Hands each value to every subscription there is at that moment."""

    __slots__ = ("_closed", "_subscriptions")

    def __init__(self) -> None:
        self._subscriptions: list[Subscription[T]] = []
        self._closed = False

    def subscribe(self, capacity: int = 1024) -> Subscription[T]:
        """A new reader with a queue of `capacity` values. Of a closed feed it ends at once."""
        subscription = Subscription(self, capacity)
        if self._closed:
            subscription._end()
        else:
            self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription[T]) -> None:
        """Forget a reader; not an error if it is gone already."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    def put(self, item: T) -> None:
        """Never waits, never fails."""
        for subscription in self._subscriptions:
            subscription._put(item)

    def close(self) -> None:
        """No more values: readers end once they have read what they have."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription._end()
        self._subscriptions.clear()
