"""CPUID of a vCPU: what KVM can show, with the hypervisor bit and a topology that is the partition's own. Hypervisor.

KVM passes on leaves that describe the host's processor: how many threads share a cache, which APIC ID this one has. A
guest with another count of processors would find them in contradiction and warn. Here every virtual processor is a core
of one package with one thread, its APIC ID is its VP index, and the last level of cache is shared by all.

Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypervisor.cpuid import HYPERVISOR_PRESENT

Entry = tuple[int, ...]
"""function, index, flags, eax, ebx, ecx, edx: struct kvm_cpuid_entry2."""

SIGNIFICANT_INDEX = 1 << 0
_HYPER_THREADING = 1 << 28
"""EDX of leaf 1: the count of logical processors there is meant."""
_LEGACY_CORES = 1 << 1
"""ECX of leaf 0x80000001 (AMD): that count is of cores."""
_TOPOLOGY_LEAVES = (0x0B, 0x1F)
_LEVEL_THREAD, _LEVEL_CORE = 1 << 8, 2 << 8


def processor_leaves(supported: Sequence[Entry], index: int, processors: int) -> list[Entry]:
    """The leaves below and beside the hypervisor's, for one of `processors` processors."""
    shift = (processors - 1).bit_length()
    entries: list[Entry] = []
    highest = 0
    for leaf, subleaf, flags, eax, ebx, ecx, edx in supported:
        match leaf:
            case 0:
                highest = eax
            case 0x0B | 0x1F | 0x8000_0026:
                continue  # Intel's are built anew below; a leaf that is missing reads as zeros, "not known"
            case 1:
                ebx = ebx & 0xFFFF | processors << 16 | index << 24
                ecx |= HYPERVISOR_PRESENT
                edx = _with(edx, _HYPER_THREADING, processors > 1)
            case 4 if eax & 0x1F:
                eax = eax & 0x3FFF | _sharers(eax, processors) << 14 | ((1 << shift) - 1) << 26
            case 0x8000_001D if eax & 0x1F:
                eax = eax & 0x3FFF | _sharers(eax, processors) << 14
            case 0x8000_0001:
                ecx = _with(ecx, _LEGACY_CORES, processors > 1 and bool(ecx & _LEGACY_CORES))
            case 0x8000_0008:
                ecx = ecx & ~0xF0FF | shift << 12 | processors - 1
            case 0x8000_001E:
                eax, ebx, ecx = index, index & 0xFF, 0
            case _:
                pass
        entries.append((leaf, subleaf, flags, eax, ebx, ecx, edx))
    for leaf in _TOPOLOGY_LEAVES:
        if leaf <= highest:
            entries += _topology(leaf, index, processors, shift)
    return entries


def _topology(leaf: int, index: int, processors: int, shift: int) -> list[Entry]:
    return [
        (leaf, 0, SIGNIFICANT_INDEX, 0, 1, _LEVEL_THREAD | 0, index),
        (leaf, 1, SIGNIFICANT_INDEX, shift, processors, _LEVEL_CORE | 1, index),
        (leaf, 2, SIGNIFICANT_INDEX, 0, 0, 2, index),
    ]


def _sharers(eax: int, processors: int) -> int:
    """How many processors beside this one share a cache: all the third level, none the others."""
    return processors - 1 if eax >> 5 & 7 >= 3 else 0


def _with(word: int, bit: int, on: bool) -> int:
    return word | bit if on else word & ~bit
