"""Linux's hyperv_keyboard and hid_hyperv on our keyboard and mouse: what they are, and what arrives of each key."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import groupby

import pytest
import trio

from partitions.host import Host, Vm
from partitions.topology_schema import InputName
from tests.linux_guest import guest
from vsp_vsc.input_device import NoDriver
from vsp_vsc.keyboard.vsp import CannotType
from vsp_vsc.mouse.protocol import Buttons

MODULES = ("hv_vmbus", "hyperv_keyboard", "hid_hyperv", "evdev")
PATIENCE = 60.0
"""Seconds that a driver may take to come."""
TEXT = "Hello, World! 'quoted' {0} [1] ~|\\ #$%&*"
AGAIN = "and once more"
CHORDS = {
    "a": (30,),
    "shift-a": (42, 30),
    "ctrl-alt-del": (29, 56, 111),
    "right-ctrl": (97,),
    "alt-gr": (100,),
    "up": (103,),
    "keypad-enter": (96,),
    "f12": (88,),
    "win": (125,),
    "menu": (127,),
    "pause": (119,),
}
"""Keys by name, and Linux's numbers of them (input-event-codes.h)."""
SYN, KEY, REL, ABS = 0, 1, 2, 3
WHEEL, LEFT, SIDE = 8, 0x110, 0x113
EVENT = struct.Struct("<QQHHi")

KEYBOARD, MOUSE = "AT Translated Set 2 keyboard", "Microsoft Vmbus HID-compliant Mouse"
STEPS = {
    "drivers": "all; await 30 grep -q 'AT Translated' /proc/bus/input/devices;"
    " await 30 grep -q 'Microsoft Vmbus' /proc/bus/input/devices; echo 0 >/proc/sys/kernel/ctrl-alt-del; echo in",
    "devices": "cat /proc/bus/input/devices",
    "modules": "cd /sys/bus/vmbus/devices;"
    " for d in *; do [ ! -e $d/driver ] || echo $(cat $d/class_id) $(basename $(readlink $d/driver)); done",
    # What is typed while nobody has the terminal open is lost.
    "terminal": 'sleep 1000 </dev/tty1 & await 10 sh -c "ls -l /proc/$!/fd | grep -q tty1"; echo open',
    "typed": "head -n 1 </dev/tty1",
    "refused": "read go",
    "listen": """
for device in /sys/class/input/event*; do
  case "$(cat $device/device/name)" in AT*) to=/keys;; Microsoft*) to=/reports;; *) continue;; esac
  cat /dev/input/${device##*/} >$to 2>/dev/null & await 10 sh -c "ls -l /proc/$!/fd | grep -q event"
done; echo both
""",
    "keys": 'read go; sleep 1; hexdump -v -e \'24/1 "%02x" "\\n"\' /keys',
    "signals": "cat /signals",
    "reports": 'read go; sleep 1; hexdump -v -e \'24/1 "%02x" "\\n"\' /reports',
    "out": "rmmod hyperv_keyboard && echo out",
    "no driver": "read go",
    "in": "load hyperv-keyboard; await 30 grep -q 'AT Translated' /proc/bus/input/devices; echo in",
    "typed again": "head -n 2 </dev/tty1",  # the first has what the keys before it typed here
    "complaints": "dmesg | grep -iE 'hyperv.keyboard|hid.hyperv|atkbd' | grep -iE 'error|fail|unknown|invalid' || true",
}


class Seen:
    """What the host knew while the guest ran."""

    def __init__(self) -> None:
        self.refused = ""
        self.without = ""
        self.states: list[str] = []

    async def type(self, host: Host, vm: Vm) -> None:
        await ready(vm)
        assert vm.keyboard is not None
        await vm.keyboard.type_text(f"{TEXT}\n")

    async def be_refused(self, host: Host, vm: Vm) -> None:
        assert vm.keyboard is not None
        self.states.append(vm.keyboard.state)
        try:
            await vm.keyboard.type_text("grüße")
        except CannotType as error:
            self.refused = str(error)
        vm.console.send(b"\n")

    async def press(self, host: Host, vm: Vm) -> None:
        assert vm.keyboard is not None
        for chord in CHORDS:
            vm.keyboard.chord(chord)
            await trio.sleep(0.3)  # evdev keeps a few dozen events for a reader, and an emulated one is slow
        vm.console.send(b"\n")

    async def point(self, host: Host, vm: Vm) -> None:
        with trio.move_on_after(PATIENCE):
            while vm.mouse is None or not vm.mouse.ready:  # noqa: ASYNC110  # what a person would do, too
                await trio.sleep(0.1)
        assert vm.mouse is not None
        for report in ((100, 32767, 0, 0), (100, 32767, Buttons.LEFT, 0), (300, 5, 0, 0), (300, 5, Buttons.BACK, -2)):
            vm.mouse.move(*report)
            await trio.sleep(0.2)
        self.states.append(vm.mouse.state)
        vm.console.send(b"\n")

    async def miss(self, host: Host, vm: Vm) -> None:
        assert vm.keyboard is not None
        try:
            vm.keyboard.press(0x1E)
        except NoDriver as error:
            self.without = str(error)
        vm.console.send(b"\n")

    async def type_again(self, host: Host, vm: Vm) -> None:
        await ready(vm)
        assert vm.keyboard is not None
        await vm.keyboard.type_text(f"{AGAIN}\n")


async def ready(vm: Vm) -> None:
    """Its keyboard has a driver, and its terminal a reader."""
    with trio.move_on_after(PATIENCE):
        while vm.keyboard is None or not vm.keyboard.ready:  # noqa: ASYNC110
            await trio.sleep(0.1)
    await trio.sleep(1)


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> guest.Evidence:
    """One boot with both devices."""
    during = {
        "typed": seen.type,
        "refused": seen.be_refused,
        "keys": seen.press,
        "reports": seen.point,
        "no driver": seen.miss,
        "typed again": seen.type_again,
    }
    plan = guest.Plan(steps=STEPS, modules=MODULES, input=tuple(InputName), traced=True, timeout=180)
    return guest.boot(plan, tmp_path_factory.mktemp("input"), during)


def test_what_they_are(typed: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """An AT keyboard below hyperv_keyboard; a HID mouse of Microsoft's whose descriptor Linux's HID core has parsed."""
    devices = typed["devices"]
    assert f'Name="{KEYBOARD}"' in devices
    mouse = next(one for one in devices.split("\n\n") if f'Name="{MOUSE}"' in one)
    assert "Vendor=045e Product=0621" in mouse
    assert "B: ABS=3" in mouse
    assert "B: KEY=1f0000 0 0 0 0" in mouse
    drivers = dict(line.split() for line in typed["modules"].splitlines() if len(line.split()) == 2)
    assert drivers["{f912ad6d-2b17-48ea-bd65-f927a61c7684}"] == "hyperv_keyboard"
    assert drivers["{cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a}"] == "hid_hyperv"
    evidence("input", f"{devices}\n{typed['modules']}")


def test_what_is_typed_is_read(typed: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """On a virtual terminal, through Linux's own key map: every kind of character that keys have."""
    assert typed["typed"].rstrip("\n") == TEXT
    evidence("input", f"typed on /dev/tty1: {typed['typed']}")


def test_what_no_key_has_is_refused(seen: Seen, typed: guest.Evidence) -> None:
    """Linux takes keys alone, and the host knows it by its OS ID; nothing of the text is typed."""
    assert "no key types 'ü'" in seen.refused
    assert seen.states[0] == "ready"


def events(typed: guest.Evidence, step: str) -> list[tuple[int, int, int]]:
    """What came to /dev/input/eventN: type, code, value."""
    data = bytes.fromhex("".join(typed[step].split()))
    return [one[2:] for one in EVENT.iter_unpack(data)]


def test_keys_are_linux_keys(typed: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """Each name is the key that Linux knows by it, prefixes and the two codes of pause included; all go up again.

    Ctrl-Alt-Del comes to init as the signal that the kernel makes of it.
    """
    expected = []
    for codes in CHORDS.values():
        expected += [(code, 1) for code in codes]
        expected += [(code, 0) for code in reversed(codes)]
    assert [(code, value) for kind, code, value in events(typed, "keys") if kind == KEY and value != 2] == expected
    assert typed["signals"] == "SIGINT"
    evidence("input", f"keys: {', '.join(CHORDS)} are {list(CHORDS.values())}")


def test_reports_are_linux_events(typed: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """Absolute positions as they were sent, buttons, and the wheel."""
    seen = [one for one in events(typed, "reports") if one[0] in (SYN, KEY, REL, ABS)]
    reports = [set(group) for end, group in groupby(seen, key=lambda one: one[0] == SYN) if not end]
    assert reports[0] == {(ABS, 0, 100), (ABS, 1, 32767)}
    assert reports[1] == {(KEY, LEFT, 1)}
    assert reports[2] == {(ABS, 0, 300), (ABS, 1, 5), (KEY, LEFT, 0)}
    assert {(KEY, SIDE, 1), (REL, WHEEL, -2)} <= reports[3]
    evidence("input", f"reports: {reports}")


def test_a_driver_that_goes_and_comes_back(typed: guest.Evidence, seen: Seen) -> None:
    """Between the two nothing can be typed, and it says why; after it everything can."""
    assert typed["out"].strip() == "out"
    assert seen.without == "keyboard: the guest takes no input: no driver"
    assert typed["typed again"].rstrip("\n").endswith(AGAIN)


def test_nobody_complains(typed: guest.Evidence) -> None:
    """Neither Linux of what we send, nor the host of what Linux does."""
    assert typed["complaints"] == ""
    assert [warning for warning in typed.warnings if "keyboard" in warning or "mouse" in warning] == []
