"""`partita decode`: what people type and what they get."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
from pathlib import Path

import pytest

from partitions.cli import decode
from partitions.cli.main import main
from partitions.decode.kinds import KINDS
from partitions.decode.packet import DEVICES
from vmbus.ring import Packet, PacketType, RingWriter

Capture = pytest.CaptureFixture[str]
CONTACT = "0e00000000000000 0300050000000000 0200000000000000 0040000600000000 0050000600000000"
READ_10 = "28 00 00001000 00 0008 00"
TRACE = """\
# tracer: nop
          <idle>-0       [000] ..s..     0.700210: vmbus_onopen_result: child_relid 0x8, openid 8, status 0
"""


class Input:
    """Standard input with bytes in it."""

    def __init__(self, data: bytes) -> None:
        self.buffer = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]

    def isatty(self) -> bool:
        return False


def test_the_names_that_help_shows_are_all_that_there_are() -> None:
    """The parser must not import the decoders, so it has their names a second time."""
    assert tuple(KINDS) == decode.KIND_NAMES
    assert set(DEVICES) == set(decode.DEVICE_NAMES)


def test_help_lists_the_names(capsys: Capture) -> None:
    """All kinds and devices, and what the exit status means."""
    with pytest.raises(SystemExit):
        main(["decode", "--help"])
    told = capsys.readouterr().out
    assert all(name in told for name in (*decode.KIND_NAMES, *decode.DEVICE_NAMES, "Exit status:"))


def test_digits_on_the_command_line(capsys: Capture) -> None:
    """What they were taken for is said, and the tree has offset, bytes, name, value and words."""
    assert main(["decode", *CONTACT.split()]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("taken for a channel message: type 14 is INITIATE_CONTACT")
    assert "0008  03 00 05 00" in told[4]
    assert told[4].split()[5:] == ["version", "0x50003", "(327683)", "5.3"]


def test_a_command(capsys: Capture) -> None:
    """A CDB as a person types it."""
    assert main(["decode", READ_10]) == 0
    assert "SCSI READ(10) lba=4096 blocks=8" in capsys.readouterr().out


def test_json(capsys: Capture) -> None:
    """One document, with what was assumed and every field."""
    assert main(["decode", "-o", "json", CONTACT]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "message"
    assert document["assumed"][0].startswith("a channel message: ")
    assert document["words"] == "INITIATE_CONTACT version=5.3 vp=0 sint=2 features=0x0"
    assert document["faults"] == []
    assert document["data"] == CONTACT.replace(" ", "")
    version = next(field for field in document["fields"]["children"] if field["name"] == "version")
    assert version == {"name": "version", "offset": 8, "size": 4, "value": 0x50003, "words": "5.3"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--as", "msr", "SINT2", "0x200f3"], "SINT2 = 0x200f3: vector 0xf3, auto EOI"),
        (["--as", "msr", "0x40000083", "0x6001001"], "SIMP = 0x6001001: page at GPA 0x6001000"),
        (["--as", "hypercall", "0x1005d", "0x2001"], "HvSignalEvent connection_id=0x2001 flag_number=0x0 reserved=0x0"),
        (["--as", "result", "0x2600000012"], "INVALID_CONNECTION_ID, 38 elements done"),
        (["--as", "sense", "700005000000000a00000000240000000000"], "ILLEGAL REQUEST, invalid field in CDB (24h/00h)"),
        (["--as", "message", "--vmbus-version", "5.3", "1600000000000000", "0100000002000000"], "MODIFY_CHANNEL"),
    ],
)
def test_kinds(words: list[str], told: str, capsys: Capture) -> None:
    """Numbers of registers as people write them; bytes as everywhere."""
    assert main(["decode", *words]) == 0
    assert told in capsys.readouterr().out


def test_what_is_wrong_is_marked(capsys: Capture) -> None:
    """A fault is told in its place, and is the exit status."""
    assert main(["decode", "--as", "message", "--vmbus-version", "4.0", "18000000000000000100000000000000"]) == 1
    told = capsys.readouterr().out
    assert "! MODIFY_CHANNEL_RESPONSE is not legal at version 4.0: it came with 5.3" in told
    assert main(["decode", "--as", "message", "--direction", "root", "0100000000000000"]) == 1
    assert "! OFFER_CHANNEL never travels >root" in capsys.readouterr().out


def test_a_ring_from_a_memory_dump(tmp_path: Path, capsys: Capture) -> None:
    """The control page in words, and the packets that nobody has read yet."""
    region = bytearray(3 * 4096)
    writer = RingWriter(memoryview(region), shared=False)
    control = struct.pack("<III", 9, 1, 0) + bytes.fromhex("00000602")
    writer.write_batch([Packet(PacketType.INBAND, 1, 5, 0, control.ljust(64, b"\0"))])
    path = tmp_path / "ring.bin"
    path.write_bytes(region)
    assert main(["decode", str(path)]) == 0
    told = capsys.readouterr().out
    assert "taken for a ring: its first page has nothing but a ring's indices" in told
    assert "88 of 8192 bytes unread, 8096 free, written to 0x58, read to 0x0" in told
    assert main(["decode", str(path), "--device", "storage", "-x"]) == 0
    told = capsys.readouterr().out
    assert "INBAND id=0x5 flags=1: QUERY_PROTOCOL_VERSION" in told
    assert told.count("\n*\n") >= 1


def test_files_and_standard_input(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes in a file of bytes, of digits, of a dump, and on standard input."""
    data = bytes.fromhex(CONTACT)
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "digits").write_text(CONTACT)
    (tmp_path / "dump").write_text("".join(f"{at:08x}: {data[at : at + 16].hex(' ')}\n" for at in range(0, 40, 16)))
    trees = []
    for name in ("plain", "digits", "dump"):
        assert main(["decode", str(tmp_path / name)]) == 0
        trees.append(capsys.readouterr().out.splitlines()[-10:])
    for given in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", Input(data))
        assert main(["decode", *given]) == 0
        trees.append(capsys.readouterr().out.splitlines()[-10:])
    assert all(tree == trees[0] for tree in trees)
    assert main(["decode", "--binary", "--as", "cdb", str(tmp_path / "digits")]) == 0
    assert "30 30 30 30 30 30 20 30 .." in capsys.readouterr().out


def test_digits_too_long_for_a_file_name(capsys: Capture) -> None:
    """A long packet is pasted as one word, and no file system has room for a name of that length."""
    assert main(["decode", "--as", "payload", "00" * 600]) == 0
    assert capsys.readouterr().err == ""


def test_what_a_shell_substitutes(capsys: Capture) -> None:
    """`partita decode <(command)` names a pipe, which is a file to read as any other."""
    ours, theirs = os.pipe()
    try:
        os.write(theirs, b"0e00000000000000 0300050000000000 0200000000000000 0040000600000000 0050000600000000")
    finally:
        os.close(theirs)
    try:
        assert main(["decode", "-s", f"/dev/fd/{ours}"]) == 0
    finally:
        os.close(ours)
    assert capsys.readouterr().out.startswith("INITIATE_CONTACT version=5.3")


def test_a_guests_trace(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines as of a live trace, and the story; JSON lines for programs; a filter."""
    path = tmp_path / "trace.txt"
    path.write_text(TRACE)
    assert main(["decode", str(path)]) == 0
    told = capsys.readouterr().out
    assert "OPEN_CHANNEL_RESULT channel=8 open_id=8 status=0x0" in told
    assert "ch 8    ?                  open" in told
    monkeypatch.setattr(sys, "stdin", Input(TRACE.encode()))
    assert main(["decode", "-", "-o", "json"]) == 0
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["channel"], event["vm"]) == ("open_channel_result", 8, "guest")
    assert main(["decode", str(path), "--filter", "layer=packet"]) == 0
    assert "OPEN_CHANNEL_RESULT" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["08", "0g"], "the command line, character 5: 'g' is no hexadecimal digit"),
        (["0102"], "2 bytes (hexadecimal digits), and they look like nothing that is known here; say what they are"),
        (["--as", "mesage", "08"], '--as: there is no kind "mesage"; did you mean "message"?'),
        (["--device", "storge", "08"], '--device: there is no device "storge"; did you mean "storage"?'),
        (["--direction", "up", "08"], '--direction: "up"; it is root (from the guest) or child (to the guest)'),
        (["--vmbus-version", "5.9", "08"], '--vmbus-version: there is no version "5.9"; there are 0.13, 1.1'),
        (["--features", "wide", "08"], '--features: "wide" is no hexadecimal number'),
        (["--as", "msr", "SINT99"], 'the command line: there is no MSR "SINT99"; did you mean "SINT9"?'),
        (["--as", "msr", "SIMP", "0x10000000000000000"], '"0x10000000000000000" has more than 64 bits'),
        (["nowhere/trace.txt"], "nowhere/trace.txt: there is no such file; and it is no hexadecimal digits"),
        (["0800", "-"], "-: one file at a time, and not beside digits"),
        (["/usr/lib"], "/usr/lib: a folder; name a file in it"),
        (["x" * 300 + ".bin"], ".bin: there is no such file; and it is no hexadecimal digits"),
    ],
)
def test_refusals(words: list[str], complaint: str, capsys: Capture) -> None:
    """What cannot be read ends with status 2, the place and what would do."""
    assert main(["decode", *words]) == 2
    assert complaint in capsys.readouterr().err


def test_a_filter_that_nothing_fits(tmp_path: Path, capsys: Capture) -> None:
    """Silence would say that nothing happened; the nearest name says what was meant."""
    recording = str(tmp_path / "run.pcapng")
    assert main(["run", "02", "--clock", "virtual", "--pcap", recording]) == 0
    capsys.readouterr()
    assert main(["decode", recording, "--filter", "event=open_chanel"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", 'note: no event "open_chanel" in this trace; did you mean "open_channel"?\n')


def test_a_recording_and_json_lines(tmp_path: Path, capsys: Capture) -> None:
    """Events as of a live trace; where they have bytes, a tree below each."""
    recording, lines = tmp_path / "run.pcapng", tmp_path / "run.jsonl"
    assert main(["run", "02", "--clock", "virtual", "--pcap", str(recording), "--trace", str(lines)]) == 0
    capsys.readouterr()
    assert main(["decode", str(recording), "--filter", "layer=control|packet"]) == 0
    told = capsys.readouterr().out
    assert "0008  00 00 06 00" in told
    assert "descriptor" in told
    assert "  ! " not in told, "our own two halves make no mistakes"
    assert main(["decode", str(recording), "-s", "--filter", "layer=control"]) == 0
    assert "padding" not in capsys.readouterr().out
    assert main(["decode", str(recording), "-o", "json", "--filter", "event=open_channel"]) == 0
    event = json.loads(capsys.readouterr().out.splitlines()[0])
    assert event["decoded"]["name"] == "OPEN_CHANNEL"
    assert bytes.fromhex(event["data"])[0] == 5
    assert main(["decode", str(lines), "--filter", "event=open_channel"]) == 0
    assert "OPEN_CHANNEL channel=1" in capsys.readouterr().out
    assert main(["decode", str(lines), "--as", "message"]) == 2
    assert "--as goes with bytes; this is a trace (JSON lines)" in capsys.readouterr().err
    assert main(["decode", READ_10, "--filter", "layer=packet"]) == 2
    assert "--filter goes with a trace" in capsys.readouterr().err


def test_one_line(capsys: Capture) -> None:
    """In place of a tree; a packet's with what its device makes of it."""
    assert main(["decode", "-s", CONTACT]) == 0
    assert capsys.readouterr().out == "INITIATE_CONTACT version=5.3 vp=0 sint=2 features=0x0\n"
    assert main(["decode", "-s", "06000200 03000100 0500000000000000 0100000000000100", "--device", "keyboard"]) == 0
    assert capsys.readouterr().out == "INBAND id=0x5 flags=1: PROTOCOL_REQUEST 1.0\n"


def test_many_lines(tmp_path: Path, capsys: Capture) -> None:
    """Each line is a unit; a bad one is told with its number, and the rest goes on."""
    path = tmp_path / "log.txt"
    path.write_text(f"# from a log\n{CONTACT}\n\n0300000000000000\n08 0g\n0102\n0f00000000000000 0100000001000000\n")
    assert main(["decode", "--lines", "-s", str(path)]) == 1
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()] == [
        "INITIATE_CONTACT",
        "REQUEST_OFFERS",
        "VERSION_RESPONSE",
    ]
    assert f"error: {path}, line 5, character 5: 'g' is no hexadecimal digit" in told.err
    assert f"error: 2 bytes ({path}, line 6), and they look like nothing that is known here" in told.err
    assert main(["decode", "--lines", "-o", "json", str(path)]) == 1
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["line"] for document in documents] == [2, 4, 7]
    path.write_text("0300000000000000\n")
    assert main(["decode", "--lines", "-s", str(path)]) == 0
    assert main(["decode", "--lines", "-s", "--direction", "child", str(path)]) == 1
    assert capsys.readouterr().out.endswith("REQUEST_OFFERS  ! REQUEST_OFFERS never travels >child\n")
    assert main(["decode", "--lines", CONTACT]) == 2
    assert "--lines goes with a file" in capsys.readouterr().err


def test_a_trace_of_something_else(tmp_path: Path, capsys: Capture) -> None:
    """It is said what to turn on."""
    path = tmp_path / "trace.txt"
    path.write_text("# tracer: nop\n bash-1 [000] ..... 1.0: sched_switch: prev_comm=bash\n")
    assert main(["decode", str(path)]) == 2
    assert "an ftrace without events of the bus; turn them on in the guest: echo 1 >" in capsys.readouterr().err


def test_a_trace_cannot_drive_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    """Control characters in a line that somebody forged are spelled out."""
    path = tmp_path / "trace.txt"
    head = " x-1 [000] ..... 1.0: "
    path.write_text(f"{head}vmbus_open: sending child_relid \x1b[31m\n{head}nvsp_send: dev=eth0 type=\x1b[31m\n")
    assert main(["decode", str(path)]) == 0
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err
    assert "\\x1b[31m" in told.out
    assert "\\x1b[31m" in told.err


def test_a_foreign_file(tmp_path: Path, capsys: Capture) -> None:
    """And a name that is nearly one."""
    path = tmp_path / "capture.pcap"
    path.write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(40))
    assert main(["decode", str(path)]) == 2
    assert "capture.pcap: it is an old pcap capture" in capsys.readouterr().err
    assert main(["decode", str(tmp_path / "captures.pcap")]) == 2
    assert f'did you mean "{path}"?' in capsys.readouterr().err
