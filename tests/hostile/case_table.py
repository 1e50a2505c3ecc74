"""Malformed inputs by their number in the list that the host is held to: what a guest does, and the answer.

Each case runs in a session of its own at the boundary, on a VM with two processors and one disk, whose guest has booted
its SynIC and nothing more. What it returns is compared with `answer`, and answers.md is made from the same table.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import attrs

from hypervisor.wire import WireError
from tests.doubles.boundary_guest import (
    BoundaryGuest,
)
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import Version
from vsp_vsc.storage.protocol import NtStatus, SrbStatus
from vsp_vsc.storage.scsi.cdb import ScsiStatus

MEMORY: Final = 2 << 20
Act = Callable[[BoundaryGuest], Awaitable[str]]


@attrs.frozen
class Case:
    """One input and the answer it gets."""

    number: int
    what: str
    answer: str
    act: Act
    ends: str = ""
    """Why the VM is off afterwards, where it is."""


@attrs.frozen
class Elsewhere:
    """An input that a guest at the boundary cannot make, and the test that makes it."""

    number: int
    what: str
    answer: str
    test: str
    """File and function."""


@attrs.frozen
class NotHere:
    """Inputs that nobody can make here, and why."""

    first: int
    last: int
    what: str
    why: str


CASES: list[Case] = []


def case(number: int, what: str, answer: str, *, ends: str = "") -> Callable[[Act], Act]:
    """Add the function to the table."""

    def add(act: Act) -> Act:
        CASES.append(Case(number, what, answer, act, ends))
        return act

    return add


# --- answers in words


def words(messages: Sequence[bytes]) -> str:
    """What the host said on the bus."""
    said = []
    for data in messages:
        try:
            message = decode_message(data, sender=Direction.TO_CHILD, version=Version.V5_3)
        except WireError as error:
            raise AssertionError(f"the host said {data.hex()}") from error
        status = getattr(message, "status", None)
        name = message.TYPE.name
        if name == "VERSION_RESPONSE":
            name += f" supported={getattr(message, 'supported')}"  # noqa: B009
            if getattr(message, "connection_state", 0):
                name += f" state={getattr(message, 'connection_state')}"  # noqa: B009
        said.append(name if status is None else f"{name} status={status:#x}")
    return ", ".join(said) or "no answer"


def completions(packets: Sequence[tuple[bytes, bytes]]) -> str:
    """What the storage controller said."""
    said = []
    for head, body in packets:
        assert head[:2] == b"\x0b\x00"
        (status,) = struct.unpack_from("<I", body, 8)
        srb, scsi = body[14], body[15]
        text = NtStatus(status).name
        if srb:
            text += f", SRB {SrbStatus(srb & 0x3F).name}"
        if scsi:
            text += f", {ScsiStatus(scsi).name}"
        said.append(text)
    return "; ".join(said) or "no completion"


async def connected(guest: BoundaryGuest) -> None:
    await guest.connect()


def gpadl_header(
    channel: int = 1, gpadl: int = 0x10, words: Sequence[int] = (4096, 0x20), *, ranges: int = 1, length: int = -1
) -> bytes:
    """GPADL_HEADER with whatever is said in it."""
    size = 8 * len(words) if length < 0 else length
    return struct.pack("<IIIIHH", 8, 0, channel, gpadl, size, ranges) + struct.pack(f"<{len(words)}Q", *words)


def u32s(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


CREATED, REFUSED = "GPADL_CREATED status=0x0", "GPADL_CREATED status=0x8000ffff"
OPENED, NOT_OPENED = "OPEN_CHANNEL_RESULT status=0x0", "OPEN_CHANNEL_RESULT status=0x8000ffff"

NOT_HERE: Final = (
    NotHere(
        13,
        13,
        "hypercall from user or real mode",
        "a model guest has no privilege levels; on KVM the processor itself refuses the hypercall page's OUT",
    ),
    NotHere(101, 101, "IDE programmed I/O", "no emulated IDE: disks are synthetic from the first read on"),
    NotHere(
        102,
        103,
        "bad instructions and string I/O in an emulator",
        "no instruction is emulated by the host; KVM's emulator splits string I/O into single accesses",
    ),
    NotHere(106, 106, "VHD and VHDX headers, parents, block tables", "images are raw; there is nothing to parse"),
)

ELSEWHERE: Final = (
    Elsewhere(
        38,
        "a saved stream: any bits, other counts, bad order, forged under a right checksum",
        "CORRUPT_DATA, or the mismatch by name; nothing has changed",
        "tests/hypervisor/saved_state/test_stream.py::test_who_computes_the_checksum_gets_no_further",
    ),
    Elsewhere(
        38,
        "times in a saved stream that would outgrow 64 bits",
        "CORRUPT_DATA",
        "tests/hypervisor/saved_state/test_stream.py::test_times_that_would_outgrow_their_words",
    ),
    Elsewhere(
        38,
        "save and restore calls in a wrong order",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_saving.py::test_calls_in_a_wrong_order",
    ),
    Elsewhere(
        38,
        "save or restore with a count that no page holds",
        "INVALID_PARAMETER",
        "tests/hypervisor/hypercall/test_saving.py::test_a_count_that_no_page_holds",
    ),
    Elsewhere(
        38,
        "file of a saved VM with any bit changed",
        "refused before there is a guest, and why",
        "tests/partitions/test_saving.py::test_any_changed_bit_is_seen",
    ),
    Elsewhere(
        38,
        "file of a saved VM forged under right checksums",
        "refused, and the partition deleted",
        "tests/partitions/test_saving.py::test_forged_state_is_refused",
    ),
    Elsewhere(
        39,
        "save with a processor running",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_saving.py::test_processors_have_to_stand_still",
    ),
    Elsewhere(
        46,
        "OPEN_CHANNEL2 with a connection or event flag that is taken, or none",
        "OPEN_CHANNEL_RESULT, status 0x8000FFFF",
        "tests/partitions/test_connection_sequences.py::test_signals_go_by_the_numbers_of_the_guests_choice",
    ),
    Elsewhere(
        48,
        "a device rescinded in the middle of a GPADL",
        "GPADL_CREATED, status 0x8000FFFF, then RESCIND",
        "tests/partitions/test_bus_sequences.py::test_rescind_in_the_middle_of_a_gpadl",
    ),
    Elsewhere(
        48,
        "a device back before its channel is released",
        "a fresh offer of the same ID at the release",
        "tests/partitions/test_bus_sequences.py::test_a_device_that_is_back_before_the_release",
    ),
    Elsewhere(
        49,
        "a new kernel's contact in the middle of everything",
        "all of the old one's is closed first, then VERSION_RESPONSE",
        "tests/partitions/test_bus_sequences.py::test_a_contact_in_the_middle_of_everything",
    ),
    Elsewhere(
        52,
        "MODIFY_CONNECTION where it was not agreed on",
        "no answer",
        "tests/partitions/test_connection_sequences.py::test_modify_connection_unsupported",
    ),
    Elsewhere(
        64,
        "NVSP version 0 or unknown",
        "INIT_COMPLETE with status NONE; the guest may ask again",
        "tests/hostile/test_network.py::test_64_a_version_that_nobody_speaks",
    ),
    Elsewhere(
        65,
        "anything before INIT",
        "stopped",
        "tests/hostile/test_network.py::test_65_anything_before_init_stops_the_channel",
    ),
    Elsewhere(
        65,
        "an RNDIS packet before the versions and the receive buffer",
        "stopped",
        "tests/hostile/test_network.py::test_65_a_packet_before_the_buffers_stops_the_channel",
    ),
    Elsewhere(
        66,
        "a second receive buffer while there is one",
        "stopped",
        "tests/hostile/test_network.py::test_66_a_second_receive_buffer_stops_the_channel",
    ),
    Elsewhere(
        67,
        "a buffer whose GPADL is unknown, not whole pages, several ranges, or no memory",
        "status FAIL; the guest may name another",
        "tests/hostile/test_network.py::test_67_a_buffer_that_is_none",
    ),
    Elsewhere(
        67,
        "a ring full of buffers lent and revoked",
        "taken one at a time, others run in between",
        "tests/hostile/test_network.py::test_67_a_ring_full_of_buffers_holds_nobody_up",
    ),
    Elsewhere(
        68,
        "a receive buffer too small for a piece",
        "status FAIL",
        "tests/hostile/test_network.py::test_68_a_receive_buffer_without_a_piece_for_frames",
    ),
    Elsewhere(
        69,
        "a section past the last, or a message longer than a section",
        "completion status FAIL",
        "tests/hostile/test_network.py::test_69_a_section_that_is_not_there",
    ),
    Elsewhere(
        70,
        "RNDIS offsets and lengths that overflow, per-packet information without end",
        "completion status FAIL, no frame of the message is sent",
        "tests/hostile/test_network.py::test_a_data_message_that_makes_no_sense",
    ),
    Elsewhere(
        70,
        "RNDIS headers across two ranges of pages",
        "completion status FAIL",
        "tests/hostile/test_network.py::test_70_headers_that_cross_into_the_next_range",
    ),
    Elsewhere(
        70,
        "pages that are not memory, too few, or too many",
        "completion status FAIL",
        "tests/hostile/test_network.py::test_70_pages_that_cannot_be",
    ),
    Elsewhere(
        71,
        "RNDIS messages of no known kind",
        "completion status FAIL",
        "tests/hostile/test_network.py::test_71_a_control_message_of_no_known_kind",
    ),
    Elsewhere(
        71,
        "RNDIS messages shorter than their kind",
        "completion status FAIL",
        "tests/hostile/test_network.py::test_71_a_control_message_that_is_cut_short",
    ),
    Elsewhere(
        72,
        "an OID that is not there",
        "NOT_SUPPORTED",
        "tests/hostile/test_network.py::test_72_an_object_that_is_not_there",
    ),
    Elsewhere(
        72,
        "a value that is too short or makes no sense",
        "INVALID_LENGTH or INVALID_DATA; nothing has changed",
        "tests/hostile/test_network.py::test_72_a_value_that_makes_no_sense",
    ),
    Elsewhere(
        72,
        "a value that points outside of its message",
        "INVALID_DATA",
        "tests/hostile/test_network.py::test_72_a_value_that_is_not_in_its_message",
    ),
    Elsewhere(
        73,
        "RSS key or table of length 0, too short, or elsewhere",
        "INVALID_DATA or INVALID_LENGTH",
        "tests/hostile/test_network.py::test_receive_side_scaling_that_makes_no_sense",
    ),
    Elsewhere(
        74,
        "RSS table that names a channel that is not there",
        "INVALID_DATA",
        "tests/hostile/test_network.py::test_receive_side_scaling_that_makes_no_sense",
    ),
    Elsewhere(
        75,
        "segmentation or checksum outside of its frame, segments of no bytes or without end",
        "completion status FAIL",
        "tests/hostile/test_network.py::test_75_offloads_that_point_outside_of_their_frame",
    ),
    Elsewhere(
        75,
        "segments or frames without end in one message",
        "completion status FAIL past 2,048; no frame of it is sent",
        "tests/hostile/test_network.py::test_75_a_message_of_which_more_frames_come_than_others_can_wait_for",
    ),
    Elsewhere(
        76,
        "MTU 0 or 65535",
        "1514 is taken",
        "tests/hostile/test_network.py::test_76_an_mtu_that_cannot_be",
    ),
    Elsewhere(
        77,
        "control messages without end",
        "completion status FAIL past 100 KiB that wait",
        "tests/hostile/test_network.py::test_77_too_many_control_messages",
    ),
    Elsewhere(
        78,
        "frames from another's address or in another VLAN",
        "to the switch as they are, which decides by the port's settings",
        "tests/hostile/test_network.py::test_78_frames_of_anybodys_address_go_to_the_switch",
    ),
    Elsewhere(
        78,
        "frames from another's address or in another VLAN, at a port that may do neither",
        "dropped, and counted by the reason",
        "tests/hostile/test_switch.py::test_78_a_guest_that_forges_reaches_nobody",
    ),
    Elsewhere(
        78,
        "tags, and tags behind tags, of every kind that is one somewhere",
        "dropped, and counted",
        "tests/hostile/test_switch.py::test_78_no_tag_leads_out_of_a_vlan",
    ),
    Elsewhere(
        78,
        "IP behind LLC and SNAP, to get past a guard or an access list",
        "looked at as IP; behind a tag inside of it, dropped",
        "tests/hostile/test_switch.py::test_78_no_guard_is_passed_behind_llc_and_snap",
    ),
    Elsewhere(
        79,
        "frames shorter than 14 bytes or longer than MTU + 22",
        "completion status FAIL",
        "tests/hostile/test_network.py::test_a_data_message_that_makes_no_sense",
    ),
    Elsewhere(
        79,
        "the same at a port of the switch, whoever sits there",
        "dropped, and counted; the frames between them go",
        "tests/hostile/test_switch.py::test_79_frames_of_no_length_that_there_is",
    ),
    Elsewhere(
        80,
        "completions with another status",
        "the pieces are free all the same",
        "tests/hostile/test_network.py::test_80_a_completion_of_another_status",
    ),
    Elsewhere(
        80,
        "completions of nothing, or twice",
        "ignored and counted",
        "tests/hostile/test_network.py::test_80_a_completion_of_nothing",
    ),
    Elsewhere(
        83,
        "subchannels before their time, and the primary's operations on one",
        "INVALID_DEVICE_STATE",
        "tests/hostile/test_storage.py::test_90_no_operation_of_the_primarys_works_on_a_subchannel",
    ),
    Elsewhere(
        93,
        "component versions by counts, sizes and choices that were not on offer",
        "the component is served no more until its channel is closed",
        "tests/vsp_vsc/integration/test_session.py::test_a_choice_that_was_not_on_offer",
    ),
    Elsewhere(
        93,
        "negotiation twice",
        "dropped and counted",
        "tests/vsp_vsc/integration/test_session.py::test_a_negotiation_that_comes_twice_changes_nothing",
    ),
    Elsewhere(
        94,
        "KVP values without an end, too long, not UTF-16",
        "the component is served no more until its channel is closed",
        "tests/vsp_vsc/integration/test_vsp.py::test_values_that_cannot_be",
    ),
    Elsewhere(
        93,
        "versions that are none, of every component",
        "no version in common, or the component is served no more until its channel is closed",
        "tests/hostile/test_integration.py::test_93_answers_to_the_offer",
    ),
    Elsewhere(
        94,
        "KVP texts without a NUL, with one inside, of half a unit, and sizes past their fields",
        "odd texts are texts; for the others the component is served no more",
        "tests/hostile/test_integration.py::test_94_items_that_a_guest_may_have",
    ),
    Elsewhere(
        94,
        "KVP items without end",
        "cut off",
        "tests/pairs/test_integration_pair.py::test_a_guest_with_endless_items_is_cut_off",
    ),
    Elsewhere(
        95,
        "heartbeat with another sequence number",
        "does not count",
        "tests/vsp_vsc/integration/test_vsp.py::test_a_beat_answered_with_a_wrong_number_does_not_count",
    ),
    Elsewhere(
        96,
        "shutdown that is never answered",
        "no answer within its time; the VM can be turned off",
        "tests/pairs/test_integration_pair.py::test_one_request_at_a_time_and_a_mute_guest",
    ),
    Elsewhere(
        96,
        "snapshot and file copy questions with any answers, or none",
        "whoever asks hears how it ended; the guest is thawed, the copy cancelled",
        "tests/hostile/test_integration.py::test_any_answers",
    ),
    Elsewhere(
        97,
        "dates before and after all calendars",
        "nothing is set; the host sends dates, and takes none",
        "tests/vsp_vsc/integration/test_vsc.py::test_97_dates_before_and_after_all_calendars",
    ),
    Elsewhere(
        98,
        "resolutions 0x0 and 65535x65535, sizes, depths, pitches and offsets that overflow",
        "no acknowledgement, counted; what was shown before stays",
        "tests/vsp_vsc/video/test_session.py::test_98_a_mode_that_cannot_be_is_passed_over",
    ),
    Elsewhere(
        98,
        "frame buffer outside RAM and window, at the end of the address space, or wherever the host likes",
        "no acknowledgement, counted; the old one stays",
        "tests/vsp_vsc/video/test_session.py::test_98_a_frame_buffer_outside_memory_is_passed_over",
    ),
    Elsewhere(
        98,
        "a frame buffer whose memory the guest gives away",
        "those pixels are black",
        "tests/vsp_vsc/video/test_session.py::test_98_memory_that_goes_meanwhile",
    ),
    Elsewhere(
        98,
        "rectangles inverted, empty, off the screen",
        "counted each; the others of the message count",
        "tests/vsp_vsc/video/test_session.py::test_98_rectangles_that_are_none",
    ),
    Elsewhere(
        98,
        "255 rectangles, in as many bytes and in fewer",
        "taken; the whole message is passed over and counted",
        "tests/vsp_vsc/video/test_session.py::test_98_255_rectangles",
    ),
    Elsewhere(
        98,
        "pointers of 97 pixels, of 2^32, with other bytes than theirs, in parts out of order",
        "counted; the pointer stays",
        "tests/vsp_vsc/video/test_session.py::test_98_a_pointer_that_is_none",
    ),
    Elsewhere(
        98,
        "all of these through a host",
        "counted one by one; the sibling goes on",
        "tests/hostile/test_video.py::test_98_what_cannot_be_is_passed_over",
    ),
    Elsewhere(
        98,
        "a ring full of messages of 255 rectangles, with many viewers",
        "taken one at a time, others run in between; a viewer gets one rectangle around them",
        "tests/hostile/test_video.py::test_98_a_ring_full_of_rectangles_holds_nobody_up",
    ),
    Elsewhere(
        98,
        "messages of no type, of the host's, or cut short",
        "stopped",
        "tests/hostile/test_video.py::test_98_what_cannot_be_read_stops_the_channel",
    ),
    Elsewhere(
        98,
        "a frame buffer that moves about in the window for devices",
        "8 MiB of the host's, once; a reset gives them back",
        "tests/hostile/test_video.py::test_98_memory_in_the_window_comes_moves_and_goes",
    ),
    Elsewhere(
        99,
        "keys for a guest that does not read",
        "256 wait; more are refused and counted; keys that are down come up",
        "tests/hostile/test_input.py::test_99_keys_for_a_guest_that_does_not_read",
    ),
    Elsewhere(
        99,
        "lamps without end, and versions that are none",
        "the lamps are shown; each version is refused",
        "tests/hostile/test_input.py::test_99_a_guest_that_floods_its_keyboard",
    ),
    Elsewhere(
        99,
        "messages before their time, of no type, of the host's, or cut short",
        "stopped",
        "tests/hostile/test_input.py::test_99_what_no_keyboard_is_told",
    ),
    Elsewhere(
        100,
        "mouse messages before their time, of no type, of the host's, of sizes past their packet",
        "stopped",
        "tests/hostile/test_input.py::test_100_what_no_mouse_is_told",
    ),
    Elsewhere(
        100,
        "reports for a guest that does not read",
        "moves become one, 256 clicks wait; the last is as it should be",
        "tests/hostile/test_input.py::test_100_reports_for_a_guest_that_does_not_read",
    ),
    Elsewhere(
        104,
        "port access of 3 bytes",
        "#GP",
        "tests/hypervisor/test_hypervisor.py::test_accesses_that_no_instruction_makes",
    ),
    Elsewhere(
        104,
        "an intercept that the parent answers by nothing, for ever",
        "16 tries, then as a triple fault",
        "tests/hypervisor/test_interception.py::test_a_parent_that_never_answers_does_not_hang_the_host",
    ),
    Elsewhere(
        105,
        "a guest that resets itself for ever",
        "after 8 quick ones each waits longer, up to a second",
        "tests/hostile/test_guest_software.py::test_a_guest_that_resets_itself_at_once",
    ),
    Elsewhere(
        10,
        "parameters in memory that is not there (a VM's memory has no holes)",
        "intercept to the parent, the processor is suspended",
        "tests/hypervisor/hypercall/test_dispatch.py::test_parameters_in_missing_memory_stop_the_vp",
    ),
    Elsewhere(
        14,
        "hypercall before the page is enabled",
        "#UD",
        "tests/hypervisor/hypercall/test_dispatch.py::test_no_hypercall_before_the_page_is_enabled",
    ),
    Elsewhere(
        17,
        "unknown or deleted partition, from one that may be a parent",
        "INVALID_PARTITION_ID",
        "tests/hypervisor/hypercall/test_dispatch.py::test_a_parent_gets_invalid_partition_id",
    ),
    Elsewhere(
        20,
        "message to a deleted port",
        "INVALID_PORT_ID",
        "tests/hypervisor/synic/test_ports.py::test_using_the_wrong_kind_or_a_dead_end",
    ),
    Elsewhere(
        21,
        "17th message to a port whose owner takes none",
        "INSUFFICIENT_BUFFERS",
        "tests/hypervisor/hypercall/test_ports_and_messages.py::test_a_flood_stops_at_the_ports_buffers",
    ),
    Elsewhere(
        24,
        "port ID used again with messages of its past life waiting",
        "those are lost, the new port is another",
        "tests/hypervisor/synic/test_ports.py::test_a_reused_port_id_is_another_port",
    ),
    Elsewhere(
        35,
        "one page twice in a deposit",
        "OPERATION_DENIED after the first",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_a_page_twice_in_one_list",
    ),
    Elsewhere(
        36,
        "map with the right to write only",
        "INVALID_PARAMETER",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_rights",
    ),
    Elsewhere(
        37,
        "map a deposited page",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_sources_are_mapped_and_not_deposited",
    ),
    Elsewhere(
        40,
        "finalize a partition with children",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_partitions.py::test_a_parent_of_children_cannot_be_finalized",
    ),
    Elsewhere(
        49,
        "monitor bits that are not assigned, or of channels that are not open",
        "taken and dropped; nobody looks while no such channel is open",
        "tests/hostile/test_monitor_pages.py::test_bits_that_nobody_has",
    ),
    Elsewhere(
        49,
        "monitor pages that change while they are looked at",
        "each word is read once; a trigger reaches ports of the page's receiver only",
        "tests/hostile/test_monitor_pages.py::test_pages_that_change_while_they_are_looked_at",
    ),
    Elsewhere(
        49,
        "interrupt page bits of no channel, or of one that is not open",
        "cleared and counted",
        "tests/hostile/test_monitor_pages.py::test_bits_of_the_interrupt_page",
    ),
    Elsewhere(
        61,
        "indices and descriptors that change while the host reads",
        "each is read once; what was checked is used",
        "tests/hostile/test_ring.py::test_descriptor_changes_between_two_copies",
    ),
    Elsewhere(
        91,
        "resets with commands under way",
        "SUCCESS after them; they end with BUS_RESET",
        "tests/hostile/test_storage.py::test_91_resets_while_much_is_under_way",
    ),
)
