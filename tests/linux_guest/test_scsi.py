"""sg3-utils, written from the standards by others, against our SCSI target: inside Linux, through storvsc."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable

import attrs
import pytest

from partitions.topology_schema import DiskTable
from tests.linux_guest import guest, sg3_utils
from vsp_vsc.storage.scsi.target import ScsiTarget

MIB = 1 << 20
SIZE = 4 * MIB
TOOLS = (
    *("sg_inq", "sg_vpd", "sg_readcap", "sg_luns", "sg_turs", "sg_requests", "sg_opcodes", "sg_modes", "sg_wr_mode"),
    *("sg_logs", "sg_verify", "sg_sync", "sg_write_same", "sg_compare_and_write", "sg_unmap", "sg_get_lba_status"),
    *("sg_persist", "sg_start", "sg_prevent", "sg_senddiag", "sg_raw", "sg_dd", "sg_reset"),
)
D = "$D"
KEY, OTHER_KEY = "0x123abc", "0x777"
PATTERN = bytes(range(256)) * 2
"""A block that is written many times."""


def said(*commands: str) -> str:
    """Shell lines that run each command, and say how each ended."""
    return "\n".join(["D=/dev/$(disk 0)", *(f"{command}; echo '=' $?" for command in commands)])


STEPS = {
    "load": sg3_utils.INSTALL + "all; await 60 test -b /dev/sda",
    "inquiry": said(f"sg_inq {D}", f"sg_inq --page=sn {D}"),
    "pages": said(*(f"sg_vpd --page={page} {D}" for page in ("sv", "sn", "di", "bl", "bdc", "lbpv"))),
    "capacity": said(f"sg_readcap {D}", f"sg_readcap --long {D}"),
    "luns": said(f"sg_luns {D}"),
    "ready": said(f"sg_turs {D}", f"sg_requests {D}", f"sg_requests --desc {D}"),
    "opcodes": said(
        f"sg_opcodes {D}",
        f"sg_opcodes --opcode=0x28 {D}",
        f"sg_opcodes --opcode=0x5f,4 --rctd {D}",
        f"sg_opcodes --opcode=0x04 {D}",
        f"sg_opcodes --tmf {D}",
    ),
    "modes": said(f"sg_modes {D}", f"sg_modes --page=8 --control=1 {D}", f"sg_modes --six --page=8 {D}"),
    "write cache off": said(
        f"sg_wr_mode --page=8 --contents=08,12,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00 {D}",
        f"sg_modes --page=8 {D}",
        f"sg_wr_mode --page=8 --contents=08,12,04,01,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00 {D}",
    ),
    "write cache on": said(
        f"sg_wr_mode --six --page=8 --contents=08,12,04,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00,00 {D}",
        f"sg_modes --page=8 {D}",
    ),
    "descriptor sense": said(
        f"sg_wr_mode --page=0xa --contents=0a,0a,04,10,00,40,00,00,00,00,00,00 {D}",
        f"sg_raw --request=512 {D} 28 00 ff ff ff f0 00 00 01 00",
        f"sg_wr_mode --page=0xa --contents=0a,0a,00,10,00,40,00,00,00,00,00,00 {D}",
        f"sg_raw --request=512 {D} 28 00 ff ff ff f0 00 00 01 00",
    ),
    "logs": said(f"sg_logs --page=0 {D}", f"sg_logs --page=0xe {D}"),
    "verify": said(
        f"sg_verify --lba=0 --count={SIZE // 512} {D}",
        f"sg_dd if={D} of=/five bs=512 skip=5 count=4 blk_sgio=1 verbose=0 2>/dev/null",
        f"sg_verify --lba=5 --count=4 --ndo=2048 --in=/five {D}",
        f"sg_verify --16 --lba=5 --count=4 --ndo=2048 --in=/five {D}",
        f"sg_verify --lba=6 --count=4 --ndo=2048 --in=/five {D}",
        f"sg_verify --16 --lba={SIZE // 512 - 3} --count=4 {D}",
    ),
    "sizes": said(
        f"dd if={D} bs=512 skip=100 count=16 iflag=direct 2>/dev/null | sha256sum | cut -c1-16",
        *(
            f"sg_dd if={D} of=/got bs=512 skip=100 count=16 cdbsz={size} blk_sgio=1 2>/dev/null"
            f" && sha256sum /got | cut -c1-16"
            for size in (6, 10, 12, 16)
        ),
    ),
    "writes": said(
        *(
            f"sg_dd if=/pattern of={D} bs=512 seek={1000 + size} count=1 cdbsz={size} blk_sgio=1 2>/dev/null"
            for size in (6, 10, 12, 16)
        ),
        f"sg_sync {D}",
        f"sg_sync --16 {D}",
    ),
    "write same": said(
        f"sg_write_same --16 --lba=2000 --num=8 --in=/pattern {D}",
        f"sg_write_same --16 --lba=3000 --num=16 --ndob {D}",
        f"sg_write_same --16 --unmap --lba=4096 --num=64 --in=/dev/zero --xferlen=512 {D}",
        f"sg_write_same --16 --lba={SIZE // 512} --num=1 --in=/pattern {D}",
    ),
    "compare and write": said(
        f"dd if={D} of=/old bs=512 skip=2500 count=1 iflag=direct 2>/dev/null; cat /old /pattern >/both",
        f"sg_compare_and_write --lba=2500 --num=1 --xferlen=1024 --in=/both {D}",
        f"sg_compare_and_write --lba=2500 --num=1 --xferlen=1024 --in=/both {D}",
    ),
    "unmap": said(
        f"sg_get_lba_status --lba=4992 --maxlen=1024 {D}",
        f"sg_unmap --lba=5000 --num=1000 --force {D}",
        f"sg_unmap --lba={SIZE // 512} --num=1 --force {D}",
        f"sg_get_lba_status --lba=4992 --maxlen=1024 {D}",
        f"sg_get_lba_status --lba={SIZE // 512} {D}",
    ),
    "reservation": said(
        f"sg_persist --in --report-capabilities {D}",
        f"sg_persist --in --read-keys {D}",
        f"sg_persist --out --reserve --param-rk={KEY} --prout-type=5 {D}",
        f"sg_persist --out --register --param-sark={KEY} {D}",
        f"sg_persist --out --register --param-sark={KEY} --param-aptpl {D}",
        f"sg_persist --out --reserve --param-rk={KEY} --prout-type=5 {D}",
        f"sg_persist --in --read-keys {D}",
        f"sg_persist --in --read-reservation {D}",
        f"sg_persist --in --read-full-status {D}",
    ),
    "release": said(
        f"sg_persist --out --register-ignore --param-sark={OTHER_KEY} {D}",
        f"sg_persist --out --preempt --param-rk={OTHER_KEY} --param-sark={OTHER_KEY} --prout-type=3 {D}",
        f"sg_persist --in --read-reservation {D}",
        f"sg_persist --out --release --param-rk={OTHER_KEY} --prout-type=5 {D}",
        f"sg_persist --out --release --param-rk={OTHER_KEY} --prout-type=3 {D}",
        f"sg_persist --in --read-reservation {D}",
        f"sg_persist --out --clear --param-rk={OTHER_KEY} {D}",
        f"sg_persist --in --read-keys {D}",
    ),
    "stop": said(
        f"sg_prevent --prevent=1 {D}",
        f"sg_prevent --allow {D}",
        f"sg_senddiag --test {D}",
        f"sg_start --stop {D}",
        f"sg_turs {D}",
        f"sg_requests {D}",
        f"sg_start --start {D}",
        f"sg_turs {D}",
        f"sg_logs --page=0xe {D}",
    ),
    "reset": said(f"sg_reset --host --no-escalate {D}", f"sg_turs {D}; sg_turs {D}"),
    "complaints": "dmesg | grep -iE 'i/o error|storvsc.*(error|fail)|timed out|hung' || true",
}


@attrs.frozen
class Boot:
    """What the tools printed, and the images before and after."""

    seen: guest.Evidence
    before: bytes
    after: bytes

    def of(self, step: str) -> list[tuple[str, int]]:
        """Each command's output and status."""
        found = re.findall(r"(.*?)^= (\d+)$\n?", self.seen[step] + "\n", re.S | re.M)
        return [(words.strip(), int(status)) for words, status in found]

    def good(self, step: str) -> list[str]:
        """The outputs where every command ended well."""
        results = self.of(step)
        assert {status for _, status in results} == {0}, results
        return [words for words, _ in results]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory, evidence: Callable[[str, str], None]) -> Boot:
    folder = tmp_path_factory.mktemp("scsi")
    image = folder / "disk.raw"
    before = random.Random(7).randbytes(SIZE)
    image.write_bytes(before)
    extra = {**sg3_utils.fetch(TOOLS), "pattern": PATTERN}
    seen = guest.boot(guest.Plan(steps=STEPS, disks=[DiskTable(path=str(image))], extra=extra), folder)
    shown = ("pages", "modes", "reservation", "unmap")
    evidence("hv_storvsc", "sg3-utils\n" + "\n".join(f"--- {name}\n{seen.steps[name].output}" for name in shown))
    return Boot(seen, before, image.read_bytes())


def without_names(words: str) -> str:
    """What a tool prints below its lines about vendor and product."""
    return "\n".join(line for line in words.splitlines() if not re.match(r" *(PARTITA|Peripheral)", line)).strip()


def test_what_the_disk_is(boot: Boot) -> None:
    """Standard inquiry and five pages, decoded without complaint."""
    inquiry, serial = boot.good("inquiry")
    assert "Vendor identification: PARTITA" in inquiry
    assert "Peripheral device type: disk" in inquiry
    number = re.findall(r"Unit serial number: (\w{16})", inquiry)
    assert number == re.findall(r"Unit serial number: (\w{16})", serial)
    supported, _, names, limits, characteristics, provisioning = boot.good("pages")
    assert re.findall(r"\[(\w+)\]", supported) == ["sv", "sn", "di", "bl", "bdc", "lbpv"]
    assert f"0x3{number[0][1:]}" in names
    for line in (
        "Write same non-zero (WSNZ): 1",
        "Maximum compare and write length: 128 blocks",
        "Maximum unmap LBA count: 524288",
        "Maximum write same length: 0x20000 blocks",
        "Unmap granularity alignment valid: true",
    ):
        assert line in limits
    assert "Non-rotating medium" in characteristics
    assert all(f"({name}): 1" in provisioning for name in ("LBPU", "LBPWS", "LBPWS10", "LBPRZ"))
    assert "thin provisioned" in provisioning


def test_capacity_and_units(boot: Boot) -> None:
    """Both READ CAPACITYs, REPORT LUNS, and that it is ready."""
    short, long = boot.good("capacity")
    assert f"Number of logical blocks={SIZE // 512}" in short
    assert "Logical block length=512 bytes" in long
    assert "so physical block length=4096 bytes" in long
    assert "lbpme=1, lbprz=1" in long
    (luns,) = boot.good("luns")
    assert luns.splitlines()[-1].strip() == "0" * 16
    _, fixed, descriptor = boot.good("ready")
    assert "Fixed format, current; Sense key: No Sense" in fixed
    assert "Descriptor format, current; Sense key: No Sense" in descriptor


def test_operation_codes(boot: Boot) -> None:
    """sg_opcodes knows every command that the table has, by the name that the standards give it."""
    listed, read, preempt, unknown, tasks = boot.good("opcodes")
    found = re.findall(r"^ ([0-9a-f]{2})\s+([0-9a-f]*)\s+(\d+)\s+0,0\s+(.*)$", listed, re.M)
    rows = ScsiTarget.commands.rows
    assert [(int(opcode, 16), int(action, 16) if action else None) for opcode, action, _, _ in found] == [
        (row.opcode, row.action) for row in rows
    ]
    assert [int(size) for _, _, size, _ in found] == [len(row.cdb) for row in rows]
    plain = [(row.name, name) for row, (_, _, _, name) in zip(rows, found, strict=True) if row.action is None]
    assert all(ours.lower() == theirs.lower() for ours, theirs in plain), plain
    assert "Usage data: 28 f8 ff ff ff ff 00 ff ff 00" in read
    assert "Command is supported" in preempt
    assert "Command is NOT supported" in unknown
    assert [line.strip() for line in tasks.splitlines()[-4:]] == [
        "Abort task",
        "Abort task set",
        "Logical unit reset",
        "I_T nexus reset",
    ]


def test_mode_pages(boot: Boot) -> None:
    """Are read and changed as they say they can be; what cannot be changed is refused."""
    everything, changeable, six = boot.good("modes")
    assert ">> Caching, page_control: current" in everything
    assert ">> Control, page_control: current" in everything
    assert "08 12 04 00" in changeable
    assert "MODE SENSE(6)" in six
    (_, changed), (off, read), (refusal, refused) = boot.of("write cache off")
    assert (changed, read, refused) == (0, 0, 5), refusal
    assert "08 12 00 00" in off
    _, on = boot.good("write cache on")
    assert "08 12 04 00" in on


def test_formats_of_sense_data(boot: Boot) -> None:
    """The control page says which; both are understood, and both have the block."""
    (words, on), (descriptor, failed), (_, off), (fixed, failed_too) = boot.of("descriptor sense")
    assert (on, failed, off, failed_too) == (0, 22, 0, 22), words
    assert "Descriptor format, current; Sense key: Illegal Request" in descriptor
    assert "Fixed format, current; Sense key: Illegal Request" in fixed
    for text in (descriptor, fixed):
        assert "Logical block address out of range" in text
        assert "fffffff0" in text.lower()


def test_verify(boot: Boot) -> None:
    """By reading, by comparing, in both sizes; a difference is a miscompare."""
    results = boot.of("verify")
    assert [status for _, status in results] == [0, 0, 0, 0, 14, 22]
    assert "MISCOMPARE" in results[4][0]
    assert "LBA out of range" in results[5][0]


def test_cdbs_of_all_sizes_read_the_same(boot: Boot) -> None:
    """6, 10, 12 and 16 bytes, and Linux's own reads."""
    digest = hashlib.sha256(boot.before[100 * 512 : 116 * 512]).hexdigest()[:16]
    assert boot.good("sizes") == [digest] * 5


def test_what_is_on_the_disk_afterwards(boot: Boot) -> None:
    """Exactly what the writes, WRITE SAME, COMPARE AND WRITE and UNMAP that succeeded make of it."""
    assert boot.good("writes") == [""] * 6
    same, compared, unmapped = boot.of("write same"), boot.of("compare and write"), boot.of("unmap")
    assert [status for _, status in same] == [0, 0, 0, 22], same
    assert [status for _, status in compared] == [0, 0, 14], compared
    assert "Miscompare at byte offset: 0" in compared[2][0]
    assert [status for _, status in unmapped] == [0, 0, 22, 0, 22], unmapped
    model = bytearray(boot.before)
    for lba, data in (
        *((1000 + size, PATTERN) for size in (6, 10, 12, 16)),
        (2000, PATTERN * 8),
        (3000, bytes(512 * 16)),
        (4096, bytes(512 * 64)),
        (2500, PATTERN),
        (5000, bytes(512 * 1000)),
    ):
        model[lba * 512 : lba * 512 + len(data)] = data
    assert boot.after == model


def test_the_holes_are_where_blocks_were_unmapped(boot: Boot) -> None:
    """GET LBA STATUS tells what the image's file system knows."""
    (before, _), _, _, (after, _), _ = boot.of("unmap")
    lines = re.compile(r"LBA: 0x0*([0-9a-f]+)  blocks: +(\d+)  (mapped|deallocated)")
    assert lines.findall(before) == [("1380", "3200", "mapped")]
    assert lines.findall(after) == [
        ("1380", "8", "mapped"),
        ("1388", "1000", "deallocated"),
        ("1770", "2192", "mapped"),
    ]


def test_persistent_reservations(boot: Boot) -> None:
    """From registering to clearing; every answer is decoded without complaint."""
    results = [(without_names(words), status) for words, status in boot.of("reservation")]
    capabilities, none, stranger, registered, aptpl, reserved, keys, reservation, full = results
    assert "Compatible Reservation Handling(CRH): 1" in capabilities[0]
    assert "Persist Through Power Loss Capable(PTPL_C): 0" in capabilities[0]
    assert capabilities[0].count("registrants: 1") == 2
    assert "PR generation=0x0, there are NO registered reservation keys" in none[0]
    assert "Reservation conflict" in stranger[0] or "DID_ERROR" in stranger[0], "storvsc has an error of its own for it"
    assert (registered[1], aptpl[1], reserved[1]) == (0, 5, 0)
    assert keys[0].split() == f"PR generation=0x1, 1 registered reservation key follows: {KEY}".split()
    assert f"Key={KEY}" in reservation[0]
    assert "scope: LU_SCOPE,  type: Write Exclusive, registrants only" in reservation[0]
    assert "<< Reservation holder >>" in full[0]
    assert "Relative port address: 0x1" in full[0]


def test_reservations_end(boot: Boot) -> None:
    """Another key, another type, the wrong release, the right one, and nothing at the end."""
    results = [(without_names(words), status) for words, status in boot.of("release")]
    assert [status for _, status in results] == [0, 0, 0, 5, 0, 0, 0, 0]
    assert "type: Exclusive Access" in results[2][0]
    assert f"Key={OTHER_KEY}" in results[2][0]
    assert "there is NO reservation held" in results[5][0]
    assert "there are NO registered reservation keys" in results[7][0]


def test_stop_and_start(boot: Boot) -> None:
    """A disk that was stopped is not ready, says why, and counts its starts."""
    results = boot.of("stop")
    assert [status for _, status in results] == [0, 0, 0, 0, 2, 0, 0, 0, 0], results
    assert "device not ready" in results[4][0]
    assert "initializing command required" in results[5][0]
    assert "Accumulated start-stop cycles = 1" in results[8][0]
    pages, cycles = boot.good("logs")
    assert re.findall(r"0x(\w\w) ", pages) == ["00", "0e"]
    assert "Accumulated start-stop cycles = 0" in cycles


def test_after_a_reset_it_goes_on(boot: Boot) -> None:
    """The second TEST UNIT READY at the latest: the first may hear of the reset."""
    assert [status for _, status in boot.of("reset")] == [0, 0]


def test_nobody_complains(boot: Boot) -> None:
    """No error in the guest's log but for what was asked for."""
    assert boot.seen["complaints"] == ""
