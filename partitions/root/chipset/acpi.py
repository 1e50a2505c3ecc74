"""The ACPI tables that a real kernel needs to find its processors, its power-off port and VMBus. Root side.

Source: ACPI specification 6.5, chapter 5. The hardware-reduced model is used: no PM timer, no SCI, no fixed events; the
sleep and reset registers are ports of our power device. Linux looks for a device named "VMBUS" or "VMBus" and takes its
MMIO window from `_CRS` of the device or of one above it (linux drivers/hv/vmbus_drv.c).
"""

from __future__ import annotations

import struct

from partitions import ports
from partitions.root.chipset import aml

TABLES_GPA = 0xE0000
"""Where the tables lie: in the range that a kernel scans for the RSDP."""
TABLES_END = 0x100000

MMIO_BASE = 0xF800_0000
MMIO_LENGTH = 0x0400_0000
"""A window below 4 GiB for synthetic devices, as Hyper-V gives."""

LOCAL_APIC_GPA = 0xFEE0_0000
IO_APIC_GPA = 0xFEC0_0000

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_OEM = b"PARTIT"


def build_tables(processors: int) -> bytes:
    """All tables as the bytes to lay at `TABLES_GPA`, RSDP first. `processors` have APIC IDs 0, 1, and so on."""
    layout = bytearray(36)

    def place(table: bytes) -> int:
        layout.extend(bytes(-len(layout) % 16))
        address = TABLES_GPA + len(layout)
        layout.extend(table)
        return address

    dsdt = place(_table(b"DSDT", 2, _definition_block()))
    fadt = place(_table(b"FACP", 5, _fadt(dsdt)))
    madt = place(_table(b"APIC", 4, _madt(processors)))
    xsdt = place(_table(b"XSDT", 1, struct.pack("<2Q", fadt, madt)))
    layout[:36] = _rsdp(xsdt)
    if len(layout) > TABLES_END - TABLES_GPA:
        raise ValueError(f"ACPI tables of {len(layout)} bytes do not fit below {TABLES_END:#x}")
    return bytes(layout)


def _checksum(data: bytes) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    fields = [signature, length, revision, 0, _OEM, b"PARTITA ", 1, b"PRTA", 1]
    fields[3] = _checksum(_HEADER.pack(*fields) + body)
    return _HEADER.pack(*fields) + body


def _rsdp(xsdt: int) -> bytes:
    first = bytearray(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM, 2, 0))
    first[8] = _checksum(bytes(first))
    whole = bytearray(bytes(first) + struct.pack("<IQB3x", 36, xsdt, 0))
    whole[32] = _checksum(bytes(whole))
    return bytes(whole)


def _definition_block() -> bytes:
    return b"".join(
        [
            aml.name(r"_S5", aml.package(aml.integer(0), aml.integer(0))),
            aml.scope(
                "_SB",
                aml.device(
                    "BUS0",
                    aml.name("_HID", aml.eisa_id("PNP0A05")),
                    aml.name("_CRS", aml.resources(aml.memory_window(MMIO_BASE, MMIO_LENGTH))),
                    aml.device(
                        "VMBS",
                        aml.name("_HID", aml.string("VMBus")),
                        aml.name("_UID", aml.integer(0)),
                        # Linux looks no further, and finds no window, where the device itself has no resources.
                        aml.name("_CRS", aml.resources()),
                        aml.method_returning("_STA", aml.integer(0xF)),
                    ),
                ),
                aml.device(
                    "COM1",
                    aml.name("_HID", aml.eisa_id("PNP0501")),
                    aml.name("_UID", aml.integer(1)),
                    aml.name("_CRS", aml.resources(aml.io_ports(ports.COM1, 8), aml.irq(ports.COM1_LINE))),
                ),
            ),
        ]
    )


def _generic_address(port: int) -> bytes:
    """A one-byte register in I/O space."""
    return struct.pack("<BBBBQ", 1, 8, 0, 1, port)


def _fadt(dsdt: int) -> bytes:
    """Revision 5 (268 bytes with its header); offsets in the comments count from the start of the table."""
    hardware_reduced, reset_supported, wbinvd = 1 << 20, 1 << 10, 1 << 0
    body = bytearray(268 - _HEADER.size)

    def put(offset: int, data: bytes) -> None:
        body[offset - _HEADER.size : offset - _HEADER.size + len(data)] = data

    put(40, struct.pack("<I", dsdt))
    put(109, struct.pack("<H", 1 << 0 | 1 << 2))  # boot flags: legacy devices, a CMOS clock; no VGA
    put(112, struct.pack("<I", hardware_reduced | reset_supported | wbinvd))
    put(116, _generic_address(ports.RESET))
    put(128, bytes([ports.RESET_NOW]))
    put(140, struct.pack("<Q", dsdt))
    put(244, _generic_address(ports.POWER + 1))  # sleep control: SLP_EN there is POWER_OFF's bit
    put(256, _generic_address(ports.POWER))  # sleep status
    return bytes(body)


def _madt(processors: int) -> bytes:
    body = struct.pack("<II", LOCAL_APIC_GPA, 1)  # flag: the PC/AT pair of 8259s is there too
    for apic_id in range(processors):
        body += struct.pack("<BBBBI", 0, 8, apic_id, apic_id, 1)
    return body + struct.pack("<BBBBII", 1, 12, 0, 0, IO_APIC_GPA, 0)
