"""Rings between two processors, one access to a control word at a time, stores late: no wake-up is lost. Both sides."""

from __future__ import annotations

import random
import threading
from typing import Any

from hypervisor.pages import PAGE_SIZE
from tests.doubles.campaign import examples
from vmbus.ring import Packet, PacketType, RingReader, RingWriter

PACKETS = 12


class Steps:
    """Two processors in turns; what one stores, the other sees later, in order, at a fence at the latest."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.turns = [threading.Semaphore(0), threading.Semaphore(0)]
        self.stores: list[list[tuple[Any, int, int]]] = [[], []]
        self.signals = [False, False]
        self.asleep = [False, False]
        self.done = [False, False]
        self.lost = False

    def step(self, who: int) -> None:
        """Perhaps it is the other's turn."""
        for one in (0, 1):
            while self.stores[one] and self.choice.random() < 0.1:
                self.drain(one, 1)
        if self.choice.random() < 0.5:
            self.give(who)

    def give(self, who: int) -> None:
        if not self.done[1 - who]:
            self.turns[1 - who].release()
            self.turns[who].acquire()

    def drain(self, who: int, count: int) -> None:
        for words, word, value in self.stores[who][:count]:
            words[word] = value
        del self.stores[who][:count]

    def fence(self, who: int) -> None:
        self.drain(who, len(self.stores[who]))

    def sleep(self, who: int) -> None:
        """Until the other's signal; where none can come, it was lost."""
        self.fence(who)
        self.asleep[who] = True
        while not self.signals[who] and not self.lost:
            other = 1 - who
            if self.done[other] or (self.asleep[other] and not self.signals[other]):
                self.lost = True
                break
            self.give(who)
        self.asleep[who] = self.signals[who] = False


class Words:
    """A control page as one processor sees it."""

    def __init__(self, steps: Steps, who: int, words: Any) -> None:
        self.steps, self.who, self.words = steps, who, words

    def __getitem__(self, word: int) -> int:
        self.steps.step(self.who)
        for words, at, value in reversed(self.steps.stores[self.who]):
            if words.obj is self.words.obj and at == word:
                return value
        return int(self.words[word])

    def __setitem__(self, word: int, value: int) -> None:
        self.steps.step(self.who)
        self.steps.stores[self.who].append((self.words, word, value))


class Fence:
    """What a lock that nobody else takes is to a processor."""

    def __init__(self, steps: Steps, who: int) -> None:
        self.steps, self.who = steps, who

    def acquire(self) -> None:
        self.steps.fence(self.who)

    def release(self) -> None:
        pass


def lost(seed: int, *, fences: bool = True) -> bool:
    """Whether a wake-up was lost on the way of some packets through a small ring."""
    steps = Steps(seed)
    region = memoryview(bytearray(2 * PAGE_SIZE))
    reader, writer = RingReader(region, shared=fences), RingWriter(region, shared=fences)
    ends: list[Any] = [writer, reader]
    for who, end in enumerate(ends):
        end._control = Words(steps, who, end._control)
        end._fence = Fence(steps, who) if fences else None
    packet = Packet(PacketType.INBAND, 0, 0, 0, bytes(steps.choice.choice([8, 900, 2000])))
    room = len(packet.body) + 24
    got = 0

    def write() -> None:
        for _ in range(PACKETS):
            while not steps.lost and not writer.write_batch([packet]):
                if not writer.wait_for(room):
                    steps.sleep(0)
                    writer.stop_waiting()
            if writer.signal_needed():
                steps.signals[1] = True

    def read() -> None:
        nonlocal got
        reader.mask()
        while got < PACKETS and not steps.lost:
            packets = reader.read_batch(1)
            got += len(packets)
            if packets and reader.signal_needed():
                steps.signals[0] = True
            if not packets:
                if not reader.unmask():
                    steps.sleep(1)
                reader.mask()

    def run(who: int, work: Any) -> None:
        steps.turns[who].acquire()
        work()
        steps.fence(who)
        steps.done[who] = True
        steps.turns[1 - who].release()

    threads = [threading.Thread(target=run, args=(who, work)) for who, work in enumerate((write, read))]
    for thread in threads:
        thread.start()
    steps.turns[0].release()
    for thread in threads:
        thread.join()
    assert steps.lost or got == PACKETS
    return steps.lost


def test_no_wake_up_is_lost_between_processors() -> None:
    """Whatever the order of loads and stores, a reader hears of packets and a writer of room."""
    assert not any(lost(seed) for seed in range(examples(150)))


def test_fences_are_needed() -> None:
    """Without them the same steps lose one: this test would see it."""
    assert any(lost(seed, fences=False) for seed in range(300))
