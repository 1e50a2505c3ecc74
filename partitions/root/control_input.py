"""What a host does for requests to type on a VM's keyboard. Root side."""

from __future__ import annotations

from typing import Any

import trio

from partitions import control_protocol as protocol
from partitions.host import Vm, VmState
from partitions.root.control_requests import Denied
from vsp_vsc.input_device import InputRefused
from vsp_vsc.keyboard.scan_codes import UnknownKey, chord_codes


async def use_keyboard(vm: Vm, request: protocol.TypeText | protocol.Keys) -> Any:
    """What was typed. Raises `Denied`, before anything is typed as far as that can be known."""
    if vm.state is not VmState.RUNNING:
        state = vm.state.value.replace("_", " ")
        raise Denied("wrong_state", f"{vm.name} is {state}: only a guest that runs reads its keys")
    keyboard = vm.keyboard
    if keyboard is None:
        raise Denied("refused", f'{vm.name} has no keyboard: its topology gives it one with input = ["keyboard"]')
    try:
        match request:
            case protocol.TypeText():
                await keyboard.type_text(request.text)
                return {"vm": vm.name, "characters": len(request.text)}
            case protocol.Keys():
                for codes in [chord_codes(chord) for chord in request.keys]:
                    keyboard.tap(*codes)
                await trio.lowlevel.checkpoint()
                return {"vm": vm.name, "chords": len(request.keys)}
    except UnknownKey as error:
        raise Denied("bad_line", str(error)) from None
    except InputRefused as error:
        raise Denied("refused", f"{vm.name}: {error}") from None
