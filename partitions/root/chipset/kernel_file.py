"""A bzImage on disk: read and unpacked once, ahead of time where that was asked for. Root side.

Reading and unpacking take a while, most of it without the interpreter, so a thread can have them done while Python
still imports the host. The Trio thread asks for the file when it starts a VM, and for the unpacked kernel from a
thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from partitions.root.chipset.vmlinux import NotUnpacked, Vmlinux, unpack


class KernelFile:
    """One kernel of one VM."""

    def __init__(self, path: Path, *, unpack: bool = True) -> None:
        self.path = path
        self._wanted = unpack
        self._reading = threading.Lock()
        self._unpacking = threading.Lock()
        self._image: bytes | None = None
        self._vmlinux: Vmlinux | None = None
        self.why_not = "" if unpack else "the topology says so"
        """Why the guest has to unpack it; empty if it need not, or nobody has looked."""

    def image(self) -> bytes:
        """The file. Raises `OSError`."""
        with self._reading:
            if self._image is None:
                self._image = self.path.read_bytes()
            return self._image

    def vmlinux(self) -> Vmlinux | None:
        """The kernel in it; None where the guest has to unpack it. Raises `OSError`.

        It is given away and not kept: a VM that starts again has it unpacked again.
        """
        image = self.image()
        with self._unpacking:
            made = self._unpacked(image)
            self._vmlinux = None
            return made

    def _unpacked(self, image: bytes) -> Vmlinux | None:
        if self._vmlinux is None and not self.why_not:
            try:
                self._vmlinux = unpack(memoryview(image))
            except NotUnpacked as reason:
                self.why_not = str(reason)
        return self._vmlinux

    def begin(self) -> None:
        """Read and unpack in a thread; what goes wrong there comes out when somebody asks."""
        threading.Thread(target=self._work, name=f"unpack {self.path.name}", daemon=True).start()

    def _work(self) -> None:
        try:
            image = self.image()
        except OSError:
            return
        with self._unpacking:
            self._unpacked(image)


_AHEAD: dict[Path, list[KernelFile]] = {}


def read_ahead(paths: Iterable[Path]) -> None:
    """Begin with what VMs are going to ask for, once for each of them."""
    for path in paths:
        file = KernelFile(path)
        _AHEAD.setdefault(path, []).append(file)
        file.begin()


def kernel_file(path: Path, *, unpack: bool = True) -> KernelFile:
    """The one that was begun ahead of time, or a new one."""
    ahead = _AHEAD.get(path)
    if not ahead or not unpack:
        return KernelFile(path, unpack=unpack)
    file = ahead.pop()
    if not ahead:
        del _AHEAD[path]
    return file
