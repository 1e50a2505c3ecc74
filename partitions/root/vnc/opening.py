"""The VNC server of one VM, made at its first start. Root side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypervisor.trace import Trace
from partitions.root.exits import CannotStart
from partitions.root.vnc.server import ADDRESS, Console, VncServer

if TYPE_CHECKING:
    from partitions.root.management import ManagedVm
    from partitions.topology_schema import ScreenTable
    from vsp_vsc.keyboard.vsp import KeyboardVsp
    from vsp_vsc.mouse.vsp import MouseVsp
    from vsp_vsc.video.framebuffer import Framebuffer


def open_vnc(vm: ManagedVm, screen: ScreenTable, port: int, trace: Trace) -> VncServer:
    """A server that listens; its `run` is the caller's to start. Raises `CannotStart`."""

    def framebuffer() -> Framebuffer | None:
        worker = vm.worker
        return None if worker is None or worker.screen is None else worker.screen.framebuffer

    def keyboard() -> KeyboardVsp | None:
        worker = vm.worker
        return None if worker is None or worker.input is None else worker.input.keyboard

    def mouse() -> MouseVsp | None:
        worker = vm.worker
        return None if worker is None or worker.input is None else worker.input.mouse

    console = Console(framebuffer, keyboard, mouse, lambda: vm.changed)
    server = VncServer(vm.name, (screen.width, screen.height), console, trace)
    try:
        server.listen(port)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise CannotStart(f"screen.vnc: {ADDRESS}:{port}: {why}; use another port, or 0 for any") from error
    return server
