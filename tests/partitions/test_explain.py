"""`partita explain` answers "my kernel does not see its disk" from events alone, step by step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import partitions.host
from hypervisor.msr import Msr
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.explain import Explainer, os_words
from partitions.explain_steps import Explanation, Reached, explain, lines

STORAGE = "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
LINUX_6_1_170 = 0x8100_0006_01AA_0000
GUEST = 7


def write(msr: Msr, value: int, vp: int = 0) -> TraceEvent:
    return TraceEvent(
        0, Layer.MSR, "write_msr", GUEST, words=msr.name, fields={"vp": vp, "msr": int(msr), "value": value}
    )


def control(event: str, words: str, direction: str = TO_ROOT, channel: int | None = None) -> TraceEvent:
    return TraceEvent(0, Layer.CONTROL, event, GUEST, direction=direction, channel=channel, words=words)


def scsi(words: str, lun: int = 0) -> TraceEvent:
    return TraceEvent(0, Layer.DEVICE, "scsi_command", GUEST, channel=1, words=words, fields={"lun": lun})


def synic(vp: int) -> list[TraceEvent]:
    return [
        write(Msr.SIMP, 0x101001, vp),
        write(Msr.SIEFP, 0x102001, vp),
        write(Msr.SINT2, 0xF3, vp),
        write(Msr.SCONTROL, 1, vp),
    ]


OFFER = f"OFFER_CHANNEL channel=1 interface={STORAGE} instance={STORAGE} sub=0"
# What Debian's 6.1 cloud kernel does, one group a step, in its order.
STARTED = [TraceEvent(0, Layer.STATE, "vm_state", GUEST, Level.INFO, words="x", fields={"cause": "started"})]
CONSOLE = [TraceEvent(0, Layer.PORT, "port_out", GUEST, fields={"port": 0x3F8, "value": 10})]
OS_ID = [
    TraceEvent(0, Layer.MSR, "read_msr", GUEST, fields={"vp": 0, "msr": int(Msr.TSC_FREQUENCY)}),
    write(Msr.GUEST_OS_ID, LINUX_6_1_170),
]
PAGE = [write(Msr.HYPERCALL, 0x100001)]
CONTACT = [control("initiate_contact", "INITIATE_CONTACT version=5.3 vp=0 sint=2 features=0x0")]
AGREED = [control("version_response", "VERSION_RESPONSE supported=1 state=0 detail=0x1", TO_CHILD)]
REQUEST = [control("request_offers", "REQUEST_OFFERS")]
OFFERS = [
    control("offer_channel", OFFER, TO_CHILD, 1),
    control("all_offers_delivered", "ALL_OFFERS_DELIVERED", TO_CHILD),
]
RING = [control("gpadl_created", "GPADL_CREATED channel=1 gpadl=0xe1e10 status=0x0", TO_CHILD, 1)]
OPEN = [control("open_channel_result", "OPEN_CHANNEL_RESULT channel=1 open_id=1 status=0x0", TO_CHILD, 1)]
PACKET = [TraceEvent(0, Layer.PACKET, "packet_received", GUEST, channel=1, words="INBAND id=0x1 flags=1")]
SCAN = [scsi("SCSI INQUIRY")]
SIZE = [scsi("SCSI READ CAPACITY(16)")]
READ = [scsi("SCSI READ(10) lba=0 blocks=8")]
BOOT = [STARTED, CONSOLE, OS_ID, PAGE, synic(0), CONTACT, AGREED, REQUEST, OFFERS, RING, OPEN, PACKET, SCAN, SIZE, READ]


def told(*groups: list[TraceEvent], kvm: bool = True, processors: int = 1) -> Explanation:
    explainer = Explainer()
    for time, event in enumerate([event for group in groups for event in group], 1):
        explainer.feed(TraceEvent(time * 10_000_000, *_rest(event)))
    return explain(explainer, vm="web", kvm=kvm, processors=processors)


def _rest(event: TraceEvent) -> tuple[object, ...]:
    return tuple(getattr(event, name) for name in TraceEvent.__struct_fields__[1:])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (0, "Start the VM."),
        (1, "Nothing has been seen of the kernel"),
        (2, "built without CONFIG_HYPERV"),
        (3, "The guest has to write HYPERCALL"),
        (4, "hv_vmbus is not loaded: the kernel never wrote SIMP."),
        (5, "SynIC is ready; INITIATE_CONTACT has not come."),
        (6, "asked for VMBus 5.3 and this host refused; it speaks exactly 0.13, 1.1, 2.4, 3.0, 4.0,"),
        (7, "VMBus 5.3 is agreed. The guest has to send REQUEST_OFFERS"),
        (8, "Offers are on their way"),
        (9, "channel 1 (storage): nobody opened it: hv_storvsc is not loaded"),
        (10, "channel 1 (storage): its rings are shared; OPEN_CHANNEL has not come."),
        (11, "channel 1 (storage): it is open, and its driver has sent nothing yet."),
        (12, "channel 1 (storage): no SCSI command has come"),
        (13, "sd_mod is not loaded"),
        (14, "the disk is known (/dev/sda and on); nothing has been read from it yet."),
    ],
)
def test_each_place_where_a_kernel_may_stop_has_its_remedy(groups: int, words: str) -> None:
    """A kernel that stops after any step is told what the next one needs, and only that."""
    explanation = told(*BOOT[:groups])
    assert len(explanation.next) == 1
    assert words in explanation.next[0]
    assert not explanation.complete


def test_a_whole_boot_lacks_nothing() -> None:
    """Every step is reached, in order, with its time since the start."""
    explanation = told(*BOOT)
    assert explanation.next == []
    assert explanation.complete
    assert [step.reached for step in explanation.steps] == [Reached.YES] * 8
    times = [step.time for step in explanation.steps if step.time is not None and step.name != "ACPI device"]
    assert times == sorted(times)
    assert {step.name: step.detail for step in explanation.steps} == {
        "CPUID": "KVM answers CPUID without us; inferred from what follows",
        "guest OS ID": "Linux 6.1.170 (0x8100000601aa0000)",
        "hypercall page": "at 0x100000",
        "ACPI device": "Linux sets SynIC up only after it has found the device VMBus",
        "SynIC": "VP 0 of 1, SINT2 at vector 0xf3",
        "contact": "VMBus 5.3",
        "offers": "1 offered",
        "channel 1": "storage, opened, packets in 1, out 0, LUN 0 read or written",
    }


def test_what_leaves_no_event_is_not_claimed() -> None:
    """CPUID and ACPI tables are read without an exit: until something follows from them they are unseen, not missed."""
    steps = {step.name: step for step in told(STARTED, CONSOLE).steps}
    assert (steps["CPUID"].reached, steps["ACPI device"].reached) == (Reached.UNSEEN, Reached.UNSEEN)
    assert "KVM answers CPUID without us" in steps["CPUID"].detail
    assert "ACPI device" not in [step.name for step in told(STARTED, kvm=False).steps]


def test_synic_is_told_per_processor() -> None:
    """Processors that are ready, one that is half ready, and those that the guest never started."""
    explanation = told(STARTED, OS_ID, PAGE, synic(0), synic(1), synic(3)[:2], processors=6)
    (words,) = [step.detail for step in explanation.steps if step.name == "SynIC"]
    assert words == "VP 0-1 of 6, SINT2 at vector 0xf3; VP 3 lacks SINT2, SCONTROL"
    assert "3 processors have not set up SynIC: the guest has not started them" in explanation.notes
    alone = told(STARTED, OS_ID, PAGE, synic(0)[:3])
    assert alone.next[0].startswith("SynIC is half set up: VP 0 lacks SCONTROL.")


def test_a_masked_sint_or_a_page_that_is_off_is_not_set_up() -> None:
    """SINT2 with its mask bit, or SIMP without its enable bit, is no SynIC."""
    explanation = told(STARTED, OS_ID, PAGE, [write(Msr.SIMP, 0x101000), write(Msr.SINT2, 0x100F3)])
    assert explanation.next[0].startswith("SynIC is half set up: VP 0 lacks SIMP, SIEFP, SINT2, SCONTROL.")


def test_switching_off_in_order_does_not_undo_what_was_reached() -> None:
    """A guest that powers off clears its registers on the way; it did get there."""
    goodbye = [write(Msr.SINT2, 0x100F3), write(Msr.SIMP, 0), write(Msr.HYPERCALL, 0), write(Msr.GUEST_OS_ID, 0)]
    ended = TraceEvent(0, Layer.STATE, "vm_ended", GUEST, Level.INFO, words="powered off")
    explanation = told(*BOOT, goodbye, [ended])
    assert explanation.complete
    assert "ended: powered off" in explanation.notes


def test_versions_that_were_refused_before() -> None:
    """A kernel newer than this host tries downwards; all that it asked for is told."""
    newer = [control("initiate_contact", "INITIATE_CONTACT version=9.0 vp=0 sint=2 features=0x0")]
    refusal = [control("version_response", "VERSION_RESPONSE supported=0 state=0 detail=0x0", TO_CHILD)]
    explanation = told(STARTED, OS_ID, PAGE, synic(0), newer, refusal, CONTACT, AGREED, REQUEST, OFFERS)
    (words,) = [step.detail for step in explanation.steps if step.name == "contact"]
    assert words == "VMBus 5.3, after 9.0"


def test_no_device_at_all() -> None:
    """A VM without disks is complete once it has heard that there is nothing."""
    explanation = told(*BOOT[:8], OFFERS[1:])
    assert explanation.complete
    assert [step.detail for step in explanation.steps][-1] == "none: the topology gives this VM no device"


def test_a_refused_open_says_so() -> None:
    """The host's refusal is the next thing to look at, until an open succeeds."""
    refused = [control("open_channel_result", "OPEN_CHANNEL_RESULT channel=1 open_id=1 status=0x1", TO_CHILD, 1)]
    assert "the host refused: OPEN_CHANNEL_RESULT" in told(*BOOT[:10], refused).next[0]
    assert told(*BOOT[:10], refused, *BOOT[10:]).complete


def test_a_stopped_device_says_over_what() -> None:
    """A device that gave the guest up is told before anything else about its channel."""
    fault = TraceEvent(0, Layer.DEVICE, "device_stopped", GUEST, Level.WARNING, channel=1, words="disk: ring corrupt")
    assert told(*BOOT, [fault]).next == [
        "channel 1 (storage): the device stopped over what the guest sent: disk: ring corrupt"
    ]


def test_a_device_of_your_own() -> None:
    """Linux has no driver for it: the remedy is the generic one. A model guest has to ask for it."""
    own = [control("offer_channel", OFFER.replace(STORAGE, "6d3ec1f0-5c04-4d4f-9b7c-e6f1d1a0ec40"), TO_CHILD, 1)]
    assert "bind uio_hv_generic to it" in told(*BOOT[:8], own, OFFERS[1:]).next[0]
    model = [write(Msr.GUEST_OS_ID, 0xD041_0000_0001_0000)]
    explanation = told(STARTED, model, *BOOT[3:8], own, OFFERS[1:], kvm=False)
    assert explanation.next[0].endswith("nobody opened it: the guest's program has not asked for it.")


def test_a_kernel_on_its_way() -> None:
    """One that reads the frequency has found Hyper-V: it is not told that it was built without."""
    (words,) = told(STARTED, OS_ID[:1]).next
    assert words.startswith("The kernel has found Hyper-V and not yet said who it is")


def test_a_device_that_waits_for_a_program_of_the_guest() -> None:
    """KVP is open and silent until its daemon runs: that is how it is, and nothing is missing."""
    kvp = [control("offer_channel", OFFER.replace(STORAGE, "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"), TO_CHILD, 1)]
    explanation = told(*BOOT[:8], kvp, OFFERS[1:], RING, OPEN)
    assert explanation.complete
    assert explanation.steps[-1].detail.endswith("silent until hv_kvp_daemon runs in the guest")


def test_probes_for_hardware_are_no_mistakes() -> None:
    """Kernels for PCs look for a PCI bus wherever they run."""
    probe = TraceEvent(0, Layer.PORT, "unknown_port", GUEST, Level.WARNING, words="IN 0xcfc")
    assert told(STARTED, [probe]).notes == []


def test_a_reset_begins_anew() -> None:
    """What was reached before a reset does not count for what came after."""
    reset = [TraceEvent(0, Layer.STATE, "partition_reset", GUEST, Level.INFO)]
    explanation = told(*BOOT, reset, OS_ID)
    assert [step.name for step in explanation.steps if step.reached is Reached.YES] == ["CPUID", "guest OS ID"]
    assert "it was reset once; this is what came after" in explanation.notes
    assert explanation.seconds == 2


def test_a_crash_is_never_complete() -> None:
    """A guest that reached all its devices and fell over is not fine."""
    crash = TraceEvent(0, Layer.STATE, "guest_crash", GUEST, Level.ERROR, words="Kernel panic - not syncing")
    explanation = told(*BOOT, [crash])
    assert (explanation.complete, explanation.next) == (False, [])
    assert "it fell: Kernel panic - not syncing" in explanation.notes


def test_a_vm_that_could_not_start_says_why() -> None:
    """The reason is the next step: nothing else can help."""
    ended = TraceEvent(0, Layer.STATE, "vm_ended", 0, Level.ERROR, words="not started: no /dev/kvm")
    assert told([ended]).next == ["The VM never ran: not started: no /dev/kvm."]


def test_mistakes_are_told_with_their_number() -> None:
    """A warning comes at powers of two; its last count is what is known."""
    warnings = [
        TraceEvent(
            0, Layer.MSR, "read_msr_refused", GUEST, Level.WARNING, words="RDMSR 0x400000f0", fields={"count": n}
        )
        for n in (1, 2, 4)
    ]
    explanation = told(STARTED, warnings)
    assert "mistake answered: read_msr_refused: RDMSR 0x400000f0 (4 times or more)" in explanation.notes


@pytest.mark.parametrize(
    ("os_id", "words"),
    [
        (LINUX_6_1_170, "Linux 6.1.170"),
        (0x8100_0006_0CFF_0000, "Linux 6.12.255+"),
        (0x8200_0000_0000_0000, "FreeBSD 0.0.0"),
        (0xD041_0000_0001_0000, "Partita's model kernel 0.1"),
        (0xFF00_0001_0203_0000, "an open-source system of kind 0x7f 1.2.3"),
        (0x0001_040A_0000_4F7C, "Windows NT 10.0 build 20348"),
        (0x0001_090A_0000_0001, "Microsoft system 0x9 10.0 build 1"),
        (0x0002_0301_0200_0000, "a system of vendor 0x2, kind 0x3, version 1.2"),
    ],
)
def test_guest_os_ids(os_id: int, words: str) -> None:
    """TLFS 2.6: open-source and vendor forms; Linux puts LINUX_VERSION_CODE into the version."""
    assert os_words(os_id) == words


def test_lines_for_people() -> None:
    """One line a step, aligned, and the next step last."""
    shown = lines(told(*BOOT[:4]))
    assert shown[0] == "web: how far it got in 4.000 s"
    assert shown[2] == "  yes  guest OS ID        3.000 s  Linux 6.1.170 (0x8100000601aa0000)"
    (start,) = [at for at, line in enumerate(shown) if line.startswith("  next: hv_vmbus is not loaded")]
    assert all(line.startswith("        ") for line in shown[start + 1 :])
    assert all(len(line) <= 100 for line in shown)
    assert lines(told(*BOOT))[-1] == "  nothing is missing"


events = st.builds(
    TraceEvent,
    st.integers(0, 1 << 40),
    st.sampled_from(Layer),
    st.sampled_from(sorted({event.event for group in BOOT for event in group} | {"vm_ended", "partition_reset"})),
    st.just(GUEST),
    level=st.sampled_from(Level),
    channel=st.none() | st.integers(0, 2),
    words=st.sampled_from(["", OFFER, "supported=x", "interface=nonsense sub=-1", "version="]) | st.text(max_size=20),
    fields=st.fixed_dictionaries({}, optional={"msr": st.sampled_from(Msr), "value": st.integers(0, (1 << 64) - 1)}),
)


@given(st.lists(events, max_size=40), st.booleans())
def test_no_order_of_events_upsets_it(happened: list[TraceEvent], kvm: bool) -> None:
    """Words and numbers come from guests: whatever the events are, there is an explanation."""
    explainer = Explainer()
    for event in happened:
        explainer.feed(event)
    assert lines(explain(explainer, vm="web", kvm=kvm, processors=2))


async def test_a_model_guest_from_its_start_to_its_end(tmp_path: Path) -> None:
    """Against the real events: a guest that reads its disk lacks nothing."""
    (tmp_path / "reads.py").write_text("async def main(guest):\n    await (await guest.disk(0)).read(0, 1)\n")
    (tmp_path / "topology.toml").write_text(
        '[[vm]]\nname = "reads"\nprogram = "reads.py"\nmemory = "4MiB"\n[[vm.disk]]\npath = "a.img"\nsize = "1MiB"\n'
    )
    explainer = Explainer()
    async with partitions.host.open_host(tmp_path) as host:
        host.trace.add_sink(lambda event: explainer.feed(event) if event.partition in host.trace.names else None)
        await host.start_all()
        await host.wait_all()
    explanation = explain(explainer, vm="reads", kvm=False, processors=1)
    assert explanation.complete, lines(explanation)
    assert [step.reached for step in explanation.steps] == [Reached.YES] * 7
