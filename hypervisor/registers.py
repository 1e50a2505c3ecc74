"""Synthetic registers that belong to a partition as a whole. Hypervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from hypervisor.overlay import OverlayPage
from hypervisor.reference_time import APIC_FREQUENCY, TSC_FREQUENCY

if TYPE_CHECKING:
    from hypervisor.statistics import StatsRegister

VMCALL_RETURN = bytes.fromhex("0f01c1c3")
"""`vmcall; ret`: what a hypercall page holds unless the backend has code of its own. Model guests never execute it."""


@attrs.define(eq=False)
class PartitionRegisters:
    """State behind the partition-wide MSRs, but for the guest OS ID and hypercall MSR, which the partition has."""

    hypercall_code: bytes = VMCALL_RETURN
    """Machine code of the hypercall page, at most a page; the backend sets what its processors trap on."""
    read_tsc: Callable[[], int] | None = None
    """The time stamp counter that the guest reads, where the backend has another than the hypervisor's."""
    tsc_frequency: int = TSC_FREQUENCY
    apic_frequency: int = APIC_FREQUENCY
    reference_tsc: int = 0
    """HV_X64_MSR_REFERENCE_TSC."""
    tsc_sequence: int = 0
    """Goes up whenever the reference TSC page's contents change; never 0 while the page is valid."""
    tsc_invariant: int = 0
    statistics: dict[int, StatsRegister] = attrs.field(factory=dict, repr=False)
    """Behind the MSRs of statistics pages, by number, as far as the guest has written them."""
    crash_parameters: list[int] = attrs.field(factory=lambda: [0] * 5)
    hypercall_page: OverlayPage = attrs.field(factory=lambda: OverlayPage("hypercall page"), repr=False)
    tsc_page: OverlayPage = attrs.field(factory=lambda: OverlayPage("reference TSC page"), repr=False)
