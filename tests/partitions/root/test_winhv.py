from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.backend.task import TaskVp
from hypervisor.hypervisor import Hypervisor
from hypervisor.monitor_page import MonitorPage, MonitorParameter
from hypervisor.pages import PAGE_SIZE
from hypervisor.partition import Partition
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.ports import PortType
from hypervisor.trace import Trace
from partitions.root.host_ports import FLAGS_PER_SINT, FlagAllocator, IdAllocator, PortsOf
from partitions.root.vid import VM_PRIVILEGES, OutOfHostMemory, Vid, VmPartition
from partitions.root.winhv import HypercallFailed, HypervisorMessage, WinHv
from tests.doubles.root import FLAGS_PAGE, MESSAGE_PAGE, MIB, boot_synic, post, signal

CHANNEL_1 = 0x2001


@attrs.define
class Root:
    """The root's software on a clock that stands still, and one child with its SynIC booted."""

    hypervisor: Hypervisor
    winhv: WinHv
    vid: Vid
    child: VmPartition
    guest: TaskVp
    ports: PortsOf

    @property
    def partition(self) -> Partition:
        return self.child.partition

    def slot(self, sint: int = 2) -> bytes:
        at = MESSAGE_PAGE * 4096 + sint * 256
        return bytes(self.guest.memory[at : at + 256])

    def flags(self, sint: int = 2) -> int:
        at = FLAGS_PAGE * 4096 + sint * 256
        return int.from_bytes(self.guest.memory[at : at + 256], "little")


@pytest.fixture
def root() -> Iterator[Root]:
    now = 0
    hypervisor = Hypervisor(lambda: now, Trace(lambda: now), memory_bytes=64 * MIB, root_vps=4)
    winhv = WinHv(hypervisor)
    vid = Vid(hypervisor, winhv, vm_memory=32 * MIB)
    with vid.open_partition(name="web", memory=MIB, processors=2) as child:
        guest = TaskVp(hypervisor, child.partition.vps[0])
        child.resume()
        boot_synic(guest)
        ports = winhv.ports_of(child.id, vid.paying)
        yield Root(hypervisor, winhv, vid, child, guest, ports)
        ports.close()
        guest.detach()
    vid.close()
    winhv.close()
    assert hypervisor.root_bytes == 0
    assert list(hypervisor.partitions) == [1]
    hypervisor.close()


# --- allocation


def test_flags_for_a_full_host() -> None:
    """Four root processors carry 1,024 children with seven channels; no pair is given twice and flag 0 never."""
    flags = FlagAllocator(4)
    pairs = {flags.take() for _ in range(1024 * 7)}
    assert len(pairs) == 1024 * 7
    assert all(0 < flag < FLAGS_PER_SINT for _, flag in pairs)
    for _ in range(4 * (FLAGS_PER_SINT - 1) - 1024 * 7):
        flags.take()
    with pytest.raises(HvError) as refused:
        flags.take()
    assert refused.value.status is HvStatus.NO_RESOURCES


@given(st.lists(st.booleans(), max_size=60))
def test_flags_come_back(steps: list[bool]) -> None:
    """Taken and free pairs never mix."""
    flags, held = FlagAllocator(2), set()
    for take in steps:
        if take or not held:
            pair = flags.take()
            assert pair not in held
            held.add(pair)
        else:
            flags.give_back(*held.pop())
        assert flags.taken == len(held)


def test_ids_come_back_late() -> None:
    """A freed ID is not the next one, so what was on its way to the old owner does not meet the new one."""
    ids = IdAllocator(first=0x1000)
    first = ids.take()
    ids.give_back(first)
    assert ids.take() != first
    wrapping = IdAllocator(first=0xFF_FFFF)
    assert (wrapping.take(), wrapping.take()) == (0xFF_FFFF, 1)


# --- ports


def test_messages_from_the_child(root: Root) -> None:
    """What the child posts to its connection reaches that connection's handler, whole and in order."""
    taken: list[tuple[int, bytes]] = []
    root.ports.receive_messages(1, lambda data: taken.append((1, data)))
    root.ports.receive_messages(4, lambda data: taken.append((4, data)))
    sent = [(1, b"a"), (4, bytes(240)), (1, b""), (4, b"b" * 7)]
    assert [post(root.guest, connection, data) for connection, data in sent] == [0, 0, 0, 0]
    assert taken == sent


def test_messages_posted_inside_a_handler(root: Root) -> None:
    """The interrupt is never nested: a message that a handler brings about is handled after it."""
    order: list[str] = []

    def handler(data: bytes) -> None:
        order.append(f"in {data!r}")
        if data == b"first":
            assert post(root.guest, 1, b"second") == 0
        order.append(f"out {data!r}")

    root.ports.receive_messages(1, handler)
    post(root.guest, 1, b"first")
    assert order == ["in b'first'", "out b'first'", "in b'second'", "out b'second'"]


def test_more_messages_than_buffers_inside_a_handler(root: Root) -> None:
    """A guest that floods while the root is busy is told so; what was accepted arrives, and later posts work again."""
    statuses: list[int] = []
    taken: list[bytes] = []

    def handler(data: bytes) -> None:
        taken.append(data)
        if data == b"go":
            statuses.extend(post(root.guest, 1, bytes([number])) for number in range(20))

    root.ports.receive_messages(1, handler)
    post(root.guest, 1, b"go")
    accepted = statuses.count(HvStatus.SUCCESS)
    assert set(statuses) == {HvStatus.SUCCESS, HvStatus.INSUFFICIENT_BUFFERS}
    assert taken == [b"go", *(bytes([number]) for number in range(accepted))]
    assert post(root.guest, 1, b"more") == HvStatus.SUCCESS


def test_events_from_the_child(root: Root) -> None:
    """Each channel's signal reaches its handler only; a root processor's flags do not mix with another's."""
    taken: list[int] = []
    for channel in range(1, 10):
        root.ports.receive_events(channel | 0x2000, lambda channel=channel: taken.append(channel))
    for channel in (3, 9, 1, 3):
        assert signal(root.guest, channel | 0x2000) == 0
    assert taken == [3, 9, 1, 3]


def test_events_seen_together(root: Root) -> None:
    """Flags of one processor that gather while its handler runs are all found, each once."""
    taken: list[int] = []

    def first() -> None:
        taken.append(0)
        for channel in range(2, 40):
            signal(root.guest, channel | 0x2000)
            signal(root.guest, channel | 0x2000)

    root.ports.receive_events(CHANNEL_1, first)
    for channel in range(2, 40):
        root.ports.receive_events(channel | 0x2000, lambda channel=channel: taken.append(channel))
    signal(root.guest, CHANNEL_1)
    assert set(taken) == {0, *range(2, 40)}
    # Processor 0 is in its handler, so its channels' second signals find the flag set; the others interrupt at once.
    assert {channel for channel in taken if taken.count(channel) == 1} == {0, *range(5, 40, 4)}


def test_messages_to_the_child(root: Root) -> None:
    """A message lands in the slot of the SINT that was named, from the port that was made for it."""
    out = root.ports.connect_messages(0, 2)
    assert out.post(b"hello") is HvStatus.SUCCESS
    slot = root.slot()
    assert (int.from_bytes(slot[:4], "little"), slot[4], slot[16:21]) == (1, 5, b"hello")
    assert root.partition.vps[0].pending == {0xF3}


def test_a_full_port_is_a_status(root: Root) -> None:
    """When the child has 16 messages unread the next one is refused, for the caller to try later."""
    out = root.ports.connect_messages(0, 2)
    statuses = [out.post(bytes([number])) for number in range(18)]
    assert statuses == [HvStatus.SUCCESS] * 17 + [HvStatus.INSUFFICIENT_BUFFERS]


def test_events_to_the_child(root: Root) -> None:
    """The flag of the channel's number, in the SINT that was named."""
    out = root.ports.connect_events(0, 2, 5)
    assert out.signal() is HvStatus.SUCCESS
    assert root.flags() == 1 << 5
    assert 2 | 2 << 4 | 5 << 8 in root.partition.ports


def test_the_same_flag_on_two_processors(root: Root) -> None:
    """A channel that moves to another processor has both ports for a moment: their numbers do not collide."""
    old = root.ports.connect_events(0, 2, 5)
    new = root.ports.connect_events(1, 2, 5)
    assert old.signal() is HvStatus.SUCCESS
    assert new.signal() is HvStatus.INVALID_SYNIC_STATE  # that processor's SynIC is off; the port itself is there
    old.close()
    new.close()


def test_refusals_leave_nothing_behind(root: Root) -> None:
    """A processor that is not there, a connection that is taken: HvError, and every ID and flag comes back."""
    winhv = root.winhv
    before = (
        set(winhv.port_ids.in_use),
        set(winhv.connection_ids.in_use),
        winhv.flags.taken,
        dict(root.partition.ports),
    )
    with pytest.raises(HvError) as refused:
        root.ports.connect_events(7, 2, 5)
    assert refused.value.status is HvStatus.INVALID_VP_INDEX
    kept = root.ports.receive_events(CHANNEL_1, lambda: None)
    with pytest.raises(HypercallFailed, match="CONNECT_PORT"):
        root.ports.receive_events(CHANNEL_1, lambda: None)
    kept.close()
    after = (
        set(winhv.port_ids.in_use),
        set(winhv.connection_ids.in_use),
        winhv.flags.taken,
        dict(root.partition.ports),
    )
    assert after == before
    assert root.ports.open_count == 0


def test_after_close(root: Root) -> None:
    """No handler is called any more, posting says that the connection is gone, and closing twice is harmless."""
    taken: list[bytes] = []
    receive = root.ports.receive_messages(1, taken.append)
    message, event = root.ports.connect_messages(0, 2), root.ports.connect_events(0, 2, 1)
    for closable in (receive, message, event, receive, message, event):
        closable.close()
    assert post(root.guest, 1, b"x") == HvStatus.INVALID_CONNECTION_ID
    assert message.post(b"x") is event.signal() is HvStatus.INVALID_CONNECTION_ID
    assert taken == []


def test_a_message_for_a_port_that_is_gone(root: Root) -> None:
    """One that waited while its port was deleted meets nobody, and is counted."""
    receive = root.ports.receive_messages(1, lambda data: None)
    stray = root.winhv.stray
    other = root.ports.receive_messages(4, lambda data: (post(root.guest, 1, b"late"), receive.close()))
    post(root.guest, 4, b"now")
    assert root.winhv.stray in (stray, stray + 1)
    other.close()


def test_many_channels_deposit_by_themselves(root: Root) -> None:
    """A child's pool grows with its channels, and nothing is left over at the end."""
    outs = [root.ports.connect_events(0, 2, flag) for flag in range(1, 500)]
    ins = [root.ports.receive_events(channel | 0x2000, lambda: None) for channel in range(1, 500)]
    assert root.ports.open_count == len(outs) + len(ins)


# --- what the hypervisor says


def test_a_stopped_child_is_reported_to_its_worker(root: Root) -> None:
    """Intercept messages go to whoever answers for that partition, by its ID."""
    said: list[HypervisorMessage] = []
    root.winhv.hypervisor_handlers[root.child.id] = said.append
    root.hypervisor.unrecoverable_exception(root.partition.vps[0], "it fell over")
    assert [(message.message_type, message.partition_id) for message in said] == [(0x80000021, root.child.id)]
    root.partition.vps[0].clear_intercept_suspend()


# --- partitions


def test_a_partition_is_ready_to_run(root: Root) -> None:
    """Memory from GPA 0, processors, the right to post and signal, and a name for people."""
    partition = root.partition
    assert (partition.memory.end, sorted(partition.vps), partition.label) == (MIB, [0, 1], "web")
    assert partition.privileges == VM_PRIVILEGES
    assert root.winhv.get_partition_property(partition.id, 0x10000) == VM_PRIVILEGES


def test_suspending_stops_the_partitions_time(root: Root) -> None:
    """Every processor is suspended, and with the last one the reference counter."""
    assert root.partition.reference_time.running
    root.child.suspend()
    assert [vp.explicit_suspend for vp in root.partition.vps.values()] == [True, True]
    assert root.winhv.get_vp_register(root.child.id, 1, 0) == 1
    assert not root.partition.reference_time.running
    root.child.resume()
    assert root.partition.reference_time.running


def test_memory_has_an_end(root: Root) -> None:
    """What the topology gives all VMs together is the limit; a refusal leaves nothing behind."""
    used = root.hypervisor.root_bytes
    with pytest.raises(OutOfHostMemory, match="33 MiB of memory wanted, 31 MiB are left"):
        root.vid.open_partition(name="big", memory=33 * MIB, processors=1).__enter__()
    with root.vid.open_partition(name="fits", memory=31 * MIB, processors=1), pytest.raises(OutOfHostMemory):
        root.vid.open_partition(name="one more", memory=MIB, processors=1).__enter__()
    assert root.hypervisor.root_bytes == used


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=4), fail_at=st.integers(0, 60))
def test_a_failure_anywhere_leaves_nothing_behind(sizes: list[int], fail_at: int) -> None:
    """Whichever hypercall the hypervisor refuses, everything made before it is taken apart again."""
    hypervisor = Hypervisor(lambda: 0, Trace(lambda: 0), memory_bytes=64 * MIB, root_vps=1)
    winhv = WinHv(hypervisor)
    vid = Vid(hypervisor, winhv, vm_memory=32 * MIB)
    before = hypervisor.root_bytes
    calls = 0
    trap = winhv._trap

    def failing(*args: object) -> int:
        nonlocal calls
        calls += 1
        return int(HvStatus.OPERATION_DENIED) if calls == fail_at else trap(*args)  # type: ignore[arg-type]

    winhv._trap = failing  # type: ignore[method-assign]
    done = 0
    for size in sizes:
        opened = vid.open_partition(name="x", memory=size * 4096, processors=1)
        try:
            opened.__enter__()
        except HypercallFailed:
            continue
        done += 1
        winhv._trap = trap  # type: ignore[method-assign]
        opened.__exit__(None, None, None)
        winhv._trap = failing  # type: ignore[method-assign]
    winhv._trap = trap  # type: ignore[method-assign]
    vid.close()
    assert done >= len(sizes) - 1
    assert (list(hypervisor.partitions), hypervisor.root_bytes, vid.vm_memory_used) == ([1], before, 0)
    winhv.close()
    hypervisor.close()


# --- monitor pages


def test_monitor_pages_of_a_child() -> None:
    """The root names the page where it sees it, the child where it lies; both ways are watched until closed."""
    now = 0
    hypervisor = Hypervisor(lambda: now, Trace(lambda: now), memory_bytes=64 * MIB, root_vps=4)
    winhv = WinHv(hypervisor)
    vid = Vid(hypervisor, winhv, vm_memory=32 * MIB)
    with vid.open_partition(name="web", memory=MIB, processors=1) as child:
        guest = TaskVp(hypervisor, child.partition.vps[0])
        child.resume()
        boot_synic(guest)
        ports = winhv.ports_of(child.id, vid.paying, first_page=child.first_page)
        rung: list[int] = []
        ports.receive_events(0x2001, lambda: rung.append(1))
        events = ports.connect_events(0, 2, 1)
        watches = ports.watch_sent(0x20000), ports.watch_received(0x21000)
        sent = MonitorPage(child.partition.memory.view(0x20000, PAGE_SIZE))
        received = MonitorPage(child.partition.memory.view(0x21000, PAGE_SIZE))
        for page, connection in ((sent, events.connection_id), (received, 0x2001)):
            page.set_up(0, 1000, MonitorParameter(connection))
            page.enable_groups(1)
            page.trigger(0)
        assert hypervisor.timers.deadline() == 0
        hypervisor.timers.fire_due(now, 8)
        assert rung == [1]
        assert child.partition.counters["monitor_signals"] == 1
        assert hypervisor.root.counters["monitor_signals"] == 1
        (port,) = (port for port in child.partition.ports.values() if port.type is PortType.EVENT)
        assert port.post_count == 1
        for watch in watches:
            watch.close()
        assert hypervisor.timers.deadline() is None
        ports.close()
        guest.detach()
    vid.close()
    winhv.close()
    hypervisor.close()
