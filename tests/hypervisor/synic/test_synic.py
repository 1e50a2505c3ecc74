"""Message slots, queues and event flags, as the guest finds them in its pages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.machine import GeneralProtection
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT
from hypervisor.status import HvError, HvStatus
from hypervisor.synic import synic as synic_module
from hypervisor.synic.messages import ANY_VP, MessageHeader, Sint
from tests.doubles.bare_hypervisor import BareHypervisor, RecordingRunner

SIM, SIEF = 8 << PAGE_SHIFT, 9 << PAGE_SHIFT
SLOT2 = SIM + 2 * 256


class Guest:
    """The child's processor 0 with SINT2 = 0xF3, a message port 1 and an event port 2 in it."""

    def __init__(self, vps: int = 1) -> None:
        self.host = BareHypervisor(vps=vps)
        self.vp = self.host.child.vps[0]
        self.runner = RecordingRunner()
        self.vp.runner = self.runner
        self.host.start_synic(self.host.child)
        self.port = self.host.message_port(self.host.child, self.host.root, 1)
        self.host.event_port(self.host.child, self.host.root, 2, base=0, count=2048)

    def post(self, payload: bytes, message_type: int = 1) -> None:
        self.host.post(self.host.root, 1, payload, message_type)

    def slot(self) -> MessageHeader:
        return MessageHeader.decode(self.host.child.memory.read(SLOT2, 16))

    def payload(self) -> bytes:
        return self.host.child.memory.read(SLOT2 + 16, self.slot().payload_size)

    def empty(self) -> None:
        """What a guest does after copying the message out, as one store."""
        self.host.child.memory.write(SLOT2, bytes(4))

    def eom(self) -> None:
        self.host.write_msr(self.vp, Msr.EOM, 0)

    def take(self) -> bytes:
        """Copy out, empty the slot, write EOM if the hypervisor asked for it."""
        taken = self.payload()
        pending = self.slot().flags & 1
        self.empty()
        if pending or self.slot().flags & 1:
            self.eom()
        return taken


@pytest.fixture
def guest() -> Guest:
    return Guest()


def refused(status: HvStatus, call: Callable[[], object]) -> None:
    with pytest.raises(HvError) as caught:
        call()
    assert caught.value.status is status


def test_a_message_lands_in_its_slot_whole(guest: Guest) -> None:
    """Type 0, size 4, flags 5, origination 8, payload 16; nothing of an older message stays behind."""
    guest.host.child.memory.write(SLOT2 + 16, b"\xff" * 240)
    guest.post(b"hello")
    raw = guest.host.child.memory.read(SLOT2, 256)
    assert raw == bytes.fromhex("01000000 05 00 0000 0100000000000000") + b"hello".ljust(240, b"\0")
    assert guest.runner.vectors == [0xF3]


def test_a_full_slot_queues_and_says_so(guest: Guest) -> None:
    """MessagePending appears in the slot that is occupied; EOM brings the next; order is first in, first out."""
    guest.post(b"one")
    assert guest.slot().flags == 0
    guest.post(b"two")
    guest.post(b"three")
    assert (guest.payload(), guest.slot().flags) == (b"one", 1)
    assert guest.runner.vectors == [0xF3], "no interrupt for what is not in a slot"
    guest.empty()
    guest.eom()
    assert (guest.payload(), guest.slot().flags) == (b"two", 1)
    guest.empty()
    guest.eom()
    assert (guest.payload(), guest.slot().flags) == (b"three", 0), "nothing is behind the last"
    assert guest.runner.vectors == [0xF3] * 3


def test_eom_before_the_slot_is_empty_delivers_nothing(guest: Guest) -> None:
    guest.post(b"one")
    guest.post(b"two")
    for _ in range(100):
        guest.eom()
    assert guest.payload() == b"one"
    assert guest.runner.vectors == [0xF3]
    guest.empty()
    guest.eom()
    assert guest.payload() == b"two"
    guest.empty()
    guest.eom()
    assert guest.slot().message_type == 0, "EOM with empty queues does nothing"


def test_a_new_post_looks_at_the_slot_too(guest: Guest) -> None:
    """A guest that emptied its slot without EOM gets the older message first."""
    guest.post(b"one")
    guest.post(b"two")
    guest.empty()
    guest.post(b"three")
    assert (guest.payload(), guest.slot().flags) == (b"two", 1)
    assert guest.take() == b"two"
    assert guest.take() == b"three"


def test_a_guest_that_empties_its_slot_while_we_announce_is_not_left_waiting(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw no MessagePending, so it will write no EOM: the slot is looked at again after the fence."""
    guest.post(b"one")
    monkeypatch.setattr(synic_module, "fence", guest.empty)
    guest.post(b"two")
    assert guest.payload() == b"two"
    assert guest.runner.vectors == [0xF3, 0xF3]


def test_a_port_holds_sixteen_messages_beside_the_slot(guest: Guest) -> None:
    """The buffer is free again once its message is in the slot; the sender retries until then."""
    for number in range(17):
        guest.post(bytes([number]))
    refused(HvStatus.INSUFFICIENT_BUFFERS, lambda: guest.post(b"too many"))
    assert guest.port.buffers == 0
    assert guest.take() == b"\0"
    guest.post(b"\x11")
    refused(HvStatus.INSUFFICIENT_BUFFERS, lambda: guest.post(b"too many"))
    assert [guest.take()[0] for _ in range(17)] == list(range(1, 18))
    assert guest.port.buffers == 16


def test_a_full_port_looks_at_the_slot_before_it_refuses(guest: Guest) -> None:
    for number in range(17):
        guest.post(bytes([number]))
    guest.empty()
    guest.post(b"\x11")
    assert guest.payload() == b"\x01"
    refused(HvStatus.INSUFFICIENT_BUFFERS, lambda: guest.post(b"too many"))


def test_buffers_are_a_ports_own(guest: Guest) -> None:
    """A second port of the same SINT still takes messages; the queue is one, in order of posting."""
    guest.host.message_port(guest.host.child, guest.host.root, 5)
    for number in range(17):
        guest.post(bytes([number]))
    guest.host.post(guest.host.root, 5, b"other")
    taken = [guest.take() for _ in range(18)]
    assert taken[-1] == b"other"


def test_a_masked_sint_gets_its_message_without_an_interrupt(guest: Guest) -> None:
    guest.host.write_msr(guest.vp, Msr.SINT2, 0x100F3)
    guest.post(b"quiet")
    assert guest.payload() == b"quiet"
    assert guest.runner.vectors == []
    guest.host.write_msr(guest.vp, Msr.SINT2, 0xF3 | Sint.POLLING)
    assert guest.take() == b"quiet"
    guest.post(b"polled")
    guest.host.signal(guest.host.root, 2, 1)
    assert guest.runner.vectors == [], "polling is unmasked without an interrupt"


def test_messages_need_the_controller_and_the_page(guest: Guest) -> None:
    """SCONTROL off, or SIMP off: INVALID_SYNIC_STATE. SIEFP does not matter to messages."""
    guest.host.write_msr(guest.vp, Msr.SIEFP, 0)
    guest.post(b"fine")
    guest.host.write_msr(guest.vp, Msr.SCONTROL, 0)
    refused(HvStatus.INVALID_SYNIC_STATE, lambda: guest.post(b""))
    guest.host.write_msr(guest.vp, Msr.SCONTROL, 1)
    guest.host.write_msr(guest.vp, Msr.SIMP, 0)
    refused(HvStatus.INVALID_SYNIC_STATE, lambda: guest.post(b""))


def test_messages_wait_for_a_controller_that_is_off(guest: Guest) -> None:
    """EOM delivers nothing while it is off; turning it on does."""
    guest.post(b"one")
    guest.post(b"two")
    guest.host.write_msr(guest.vp, Msr.SCONTROL, 0)
    guest.empty()
    guest.eom()
    assert guest.slot().message_type == 0
    guest.host.write_msr(guest.vp, Msr.SCONTROL, 1)
    assert guest.payload() == b"two"


def test_a_message_page_past_the_end_of_memory_is_accepted_and_out_of_reach(guest: Guest) -> None:
    """The MSR takes the value, messages are taken, the guest sees none of them (TLFS 2.0a, 8.1.3)."""
    guest.host.write_msr(guest.vp, Msr.SIMP, 1 << 40 | 1)
    assert guest.host.read_msr(guest.vp, Msr.SIMP) == 1 << 40 | 1
    for _ in range(17):
        guest.post(b"lost")
    refused(HvStatus.INSUFFICIENT_BUFFERS, lambda: guest.post(b"lost"))
    assert guest.host.child.memory.read(SLOT2, 256) == bytes(256)
    guest.host.write_msr(guest.vp, Msr.SIMP, SIM | 1)
    assert guest.payload() == b"lost", "the page keeps what it had"


def test_an_event_flag_interrupts_only_when_it_was_clear(guest: Guest) -> None:
    guest.host.signal(guest.host.root, 2, 5)
    guest.host.signal(guest.host.root, 2, 5)
    guest.host.signal(guest.host.root, 2, 6)
    assert guest.host.child.memory.read(SIEF + 2 * 256, 2) == b"\x60\x00"
    assert guest.runner.vectors == [0xF3, 0xF3]
    guest.host.child.memory.write(SIEF + 2 * 256, b"\x00")
    guest.host.signal(guest.host.root, 2, 5)
    assert guest.runner.vectors == [0xF3] * 3
    guest.host.signal(guest.host.root, 2, 2047)
    assert guest.host.child.memory.read(SIEF + 2 * 256 + 255, 2) == b"\x80\x00", "the last flag stays in its SINT"


def test_a_flag_that_is_set_is_never_stored_again(guest: Guest) -> None:
    """Else a guest that clears it at that moment would have it set with no interrupt to come, and sleep for ever."""
    guest.host.signal(guest.host.root, 2, 5)
    page = guest.vp.synic.event_page
    page.view = page.view.toreadonly()
    guest.host.signal(guest.host.root, 2, 5)
    with pytest.raises(TypeError):
        guest.host.signal(guest.host.root, 2, 6)


def test_events_need_controller_page_and_an_unmasked_sint(guest: Guest) -> None:
    for msr, value in ((Msr.SCONTROL, 0), (Msr.SIEFP, 0), (Msr.SINT2, 0x100F3)):
        before = guest.host.read_msr(guest.vp, msr)
        guest.host.write_msr(guest.vp, msr, value)
        refused(HvStatus.INVALID_SYNIC_STATE, lambda: guest.host.signal(guest.host.root, 2, 1))
        guest.host.write_msr(guest.vp, msr, before)
    guest.host.write_msr(guest.vp, Msr.SIMP, 0)
    guest.host.signal(guest.host.root, 2, 1)


def test_any_vp_takes_the_first_that_can() -> None:
    """And INVALID_SYNIC_STATE only when none can."""
    guest = Guest(vps=3)
    guest.host.message_port(guest.host.child, guest.host.root, 7, vp=ANY_VP)
    guest.host.event_port(guest.host.child, guest.host.root, 8, vp=ANY_VP)
    guest.host.write_msr(guest.vp, Msr.SCONTROL, 0)
    refused(HvStatus.INVALID_SYNIC_STATE, lambda: guest.host.post(guest.host.root, 7, b"x"))
    refused(HvStatus.INVALID_SYNIC_STATE, lambda: guest.host.signal(guest.host.root, 8))
    guest.host.start_synic(guest.host.child, vp=2, page=12)
    guest.host.post(guest.host.root, 7, b"x")
    guest.host.signal(guest.host.root, 8)
    assert guest.host.child.memory.read((12 << PAGE_SHIFT) + 512, 1) == b"\x01"
    assert guest.host.child.memory.read((13 << PAGE_SHIFT) + 512, 1) == b"\x01"


def test_two_processors_that_share_a_page_keep_their_own_contents() -> None:
    """Undefined for the guest, harmless for us: only one page is seen, both come back."""
    guest = Guest(vps=2)
    guest.host.start_synic(guest.host.child, vp=1, page=8)
    guest.host.message_port(guest.host.child, guest.host.root, 7, vp=1)
    guest.post(b"zero")
    guest.host.post(guest.host.root, 7, b"one")
    assert guest.payload() == b"one"
    guest.host.write_msr(guest.host.child.vps[1], Msr.SIMP, 0)
    assert guest.payload() == b"zero"


def test_reset_clears_registers_pages_and_queues(guest: Guest) -> None:
    for _ in range(5):
        guest.post(b"old")
    guest.host.signal(guest.host.root, 2, 1)
    guest.vp.reset()
    assert guest.port.buffers == 16
    assert [guest.host.read_msr(guest.vp, Msr.SINT0 + n) for n in range(16)] == [0x10000] * 16
    assert guest.host.read_msr(guest.vp, Msr.SIMP) == guest.host.read_msr(guest.vp, Msr.SCONTROL) == 0
    guest.host.start_synic(guest.host.child)
    assert guest.host.child.memory.read(SIM, 2 << PAGE_SHIFT) == bytes(2 << PAGE_SHIFT)


@pytest.mark.parametrize("value", [0, 15, 0x2000F])
def test_a_vector_of_the_processors_own_is_refused_while_unmasked(guest: Guest, value: int) -> None:
    with pytest.raises(GeneralProtection):
        guest.host.write_msr(guest.vp, Msr.SINT2, value)
    assert guest.host.read_msr(guest.vp, Msr.SINT2) == 0xF3
    guest.host.write_msr(guest.vp, Msr.SINT2, value | 0x10000)
    guest.host.write_msr(guest.vp, Msr.SINT2, 0xFFFF_FFFF_0000_FF10)
    assert guest.host.read_msr(guest.vp, Msr.SINT2) == 0xFFFF_FFFF_0000_FF10, "reserved bits are kept"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["post", "take", "empty", "eom"]), max_size=80))
def test_messages_arrive_once_and_in_order(actions: list[str]) -> None:
    """Whatever the guest does between, no message is lost, doubled or out of order, and no buffer leaks."""
    guest = Guest()
    posted: deque[bytes] = deque()
    number = 0
    for action in actions:
        match action:
            case "post":
                payload = number.to_bytes(2, "little")
                # A post finds an empty slot even when all buffers are in use, and so frees one.
                if guest.port.buffers or not guest.slot().message_type:
                    guest.post(payload)
                    posted.append(payload)
                    number += 1
                else:
                    refused(HvStatus.INSUFFICIENT_BUFFERS, lambda: guest.post(b""))
                    assert guest.vp.synic.queued == 16
            case "eom":
                guest.eom()
            case _ if guest.slot().message_type:
                expected = posted.popleft()
                if action == "take":
                    assert guest.take() == expected
                else:
                    assert guest.payload() == expected
                    guest.empty()
    guest.eom()
    while guest.slot().message_type:
        assert guest.take() == posted.popleft()
    assert not posted
    assert guest.port.buffers == 16
