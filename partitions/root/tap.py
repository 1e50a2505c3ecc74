"""TAP devices of Linux: made or found, configured, and told in words why not. Root side.

A device that is made here goes when its descriptor is closed, whatever becomes of the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import socket
import struct
from typing import Final

import attrs

from partitions.root.nic_state import SwitchError
from vsp_vsc.network.port import FRAME_OVERHEAD

CLONE: Final = "/dev/net/tun"
_TUNSETIFF, _TAP, _NO_HEADER, _ONLY_NEW = 0x400454CA, 0x0002, 0x1000, 0x8000
_GET_FLAGS, _SET_FLAGS, _GET_MAC, _UP = 0x8913, 0x8914, 0x8927, 0x1
_SET_ADDRESS, _SET_MASK, _SET_MTU, _SET_MAC = 0x8916, 0x891C, 0x8922, 0x8924
_ADD_TO_BRIDGE: Final = 0x89A2
_ETHERNET: Final = 1
"""ARPHRD_ETHER."""
_REQUEST: Final = struct.Struct("16s24s")
"""struct ifreq."""


@attrs.frozen
class TapDevice:
    """An open one. Its descriptor does not block."""

    descriptor: int
    name: str
    made: bool
    """By us: then it is gone when it is closed."""
    mac: bytes
    """Of the host's interface."""

    def close(self) -> None:
        """A device that was there before stays."""
        os.close(self.descriptor)


def open_tap(switch: str, *, name: str, mac: bytes | None, mtu: int, address: str = "", bridge: str = "") -> TapDevice:
    """The device of a switch: the one of that name, or a new one, with a name made of the switch's if it is empty.

    A new one gets `mac`, and either gets the rest and is up then. Raises `SwitchError`.
    """
    there = name != "" and _exists(name)
    try:
        descriptor = os.open(CLONE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SwitchError(f'switch "{switch}": {_no_clone(error)}') from None
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, descriptor)
        wanted = name or f"{switch[:11].rstrip('.')}%d"
        flags = _TAP | _NO_HEADER | (0 if there else _ONLY_NEW)
        try:
            answer = fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", wanted.encode(), flags))
        except OSError as error:
            raise SwitchError(f'switch "{switch}": {_not_had(name, there, error)}') from None
        actual = answer[:16].rstrip(b"\0").decode()
        step = "configure it"
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                if not there and mac is not None:
                    _ask(control, _SET_MAC, actual, struct.pack("H6s", _ETHERNET, mac))
                if not there:
                    step = f"set its MTU to {mtu}"
                    _ask(control, _SET_MTU, actual, struct.pack("i", mtu))
                if address:
                    step = f"give it the address {address}"
                    _set_address(control, actual, address)
                if bridge:
                    step = f'add it to the bridge "{bridge}"'
                    _ask(control, _ADD_TO_BRIDGE, bridge, struct.pack("i", socket.if_nametoindex(actual)))
                step = "take it up"
                (now,) = struct.unpack_from("H", _ask(control, _GET_FLAGS, actual), 16)
                if not now & _UP:
                    _ask(control, _SET_FLAGS, actual, struct.pack("H", now | _UP))
                has = _ask(control, _GET_MAC, actual)[18:24]
        except OSError as error:
            raise SwitchError(f'switch "{switch}": {_not_set(actual, step, bridge, error)}') from None
        undo.pop_all()
        return TapDevice(descriptor, actual, not there, has)


def buffer_size(mtu: int) -> int:
    """What to read at a time: a frame that is longer than may be shows by its length, not by what is missing."""
    return mtu + FRAME_OVERHEAD + 1


def _ask(control: socket.socket, request: int, name: str, value: bytes = b"") -> bytes:
    return fcntl.ioctl(control, request, _REQUEST.pack(name.encode(), value))


def _set_address(control: socket.socket, name: str, written: str) -> None:
    address = ipaddress.ip_interface(written)
    if address.version == 4:
        for request, value in ((_SET_ADDRESS, address.ip), (_SET_MASK, address.network.netmask)):
            _ask(control, request, name, struct.pack("HH4s", socket.AF_INET, 0, value.packed))
        return
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control6:
        index = socket.if_nametoindex(name)
        fcntl.ioctl(control6, _SET_ADDRESS, struct.pack("16sIi", address.ip.packed, address.network.prefixlen, index))


def _exists(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


OTHERWISE: Final = 'or give the switch a socket in its place: listen = "lan.sock"'
"""What one can do who gets no TAP device."""


def _no_clone(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"there is no {CLONE}: load it with `modprobe tun`, {OTHERWISE}"
    root = "; run as root" if error.errno in (errno.EACCES, errno.EPERM) else ""
    return f"{CLONE} cannot be opened: {error.strerror}{root}, {OTHERWISE}"


def _not_had(name: str, there: bool, error: OSError) -> str:
    shown = name or "NAME"
    if error.errno == errno.EPERM:
        make = f"sudo ip tuntap add dev {shown} mode tap user $USER"
        if there:
            return f'the TAP device "{name}" is not yours; make it so: sudo ip link del {name} && {make}, {OTHERWISE}'
        named = "" if name else ' and tap = "NAME" in the topology'
        return f"making a TAP device is for root; let root make it once: {make}{named}, {OTHERWISE}"
    if error.errno == errno.EBUSY:
        return f'the TAP device "{name}" is in use, perhaps by another host; choose another tap'
    if error.errno == errno.EINVAL and there:
        return f'"{name}" is a network device, and no TAP device; choose another tap'
    return f'the TAP device "{shown}" cannot be had: {error.strerror}; {OTHERWISE}'


def _not_set(name: str, step: str, bridge: str, error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return f'the TAP device "{name}" is open, but to {step} is for root; let root do it once, {OTHERWISE}'
    if bridge and error.errno == errno.ENODEV:
        return f'there is no bridge "{bridge}"; make it: sudo ip link add {bridge} type bridge'
    if bridge and error.errno == errno.EOPNOTSUPP:
        return f'"{bridge}" is no bridge; choose another'
    return f'the TAP device "{name}": cannot {step}: {error.strerror}'
