"""A program of two system calls that has a running kernel start another one, as kexec-tools would. Root side.

It finds the kernel open as descriptor 3 and the initramfs as 4: `/kexec 3</kernel 4</initramfs`. It returns only if the
kernel refuses, with the error's number as its status.
"""

from __future__ import annotations

import struct

KERNEL_FD, INITRAMFS_FD = 3, 4
_LOAD_ADDRESS = 0x400000
_HEADER = 64 + 56
_KEXEC_FILE_LOAD, _REBOOT, _EXIT = 320, 169, 60
_MAGIC_1, _MAGIC_2, _COMMAND_KEXEC = 0xFEE1DEAD, 672274793, 0x45584543


def program(command_line: str) -> bytes:
    """A static ELF file for x86-64; the other kernel gets this command line."""
    words = command_line.encode() + b"\0"
    code = _code(len(words), 0)
    body = _code(len(words), _LOAD_ADDRESS + _HEADER + len(code)) + words
    size = _HEADER + len(body)
    ident = b"\x7fELF" + bytes((2, 1, 1)).ljust(12, b"\0")
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _LOAD_ADDRESS + _HEADER, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return header + segment + body


def _code(length: int, address: int) -> bytes:
    return b"".join(
        (
            b"\xb8" + _dword(_KEXEC_FILE_LOAD),  # mov eax
            b"\xbf" + _dword(KERNEL_FD),  # mov edi
            b"\xbe" + _dword(INITRAMFS_FD),  # mov esi
            b"\xba" + _dword(length),  # mov edx
            b"\x41\xba" + _dword(address),  # mov r10d
            b"\x45\x31\xc0",  # xor r8d, r8d: no flags
            b"\x0f\x05",  # syscall
            b"\x85\xc0" + b"\x75\x16",  # test eax, eax; jnz to the neg
            b"\xb8" + _dword(_REBOOT),
            b"\xbf" + _dword(_MAGIC_1),
            b"\xbe" + _dword(_MAGIC_2),
            b"\xba" + _dword(_COMMAND_KEXEC),
            b"\x0f\x05",
            b"\xf7\xd8" + b"\x89\xc7",  # neg eax; mov edi, eax
            b"\xb8" + _dword(_EXIT),
            b"\x0f\x05",
        )
    )


def _dword(value: int) -> bytes:
    return struct.pack("<I", value)
