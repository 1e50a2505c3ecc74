"""A guest that looks at itself, and hears what the hypervisor says to nonsense."""

import struct

from hypervisor.cpuid import LEAF_FEATURES, LEAF_VENDOR
from hypervisor.hypercall.abi import CallCode, control_word
from hypervisor.machine import GeneralProtection
from hypervisor.msr import Msr
from hypervisor.privileges import privilege_names


async def main(guest):
    machine = guest.machine
    print(f"I am {guest.name}: {len(guest.machines)} VP(s), {len(machine.memory) >> 20} MiB")

    # CPUID: who is below us, and what may we do? EAX and EBX of leaf 3 are the partition's privileges.
    _, *vendor = machine.cpuid(LEAF_VENDOR)
    print("hypervisor:", struct.pack("<III", *vendor).decode())
    low, high, _, _ = machine.cpuid(LEAF_FEATURES)
    rights = privilege_names(high << 32 | low)
    print("may post messages:", "POST_MESSAGES" in rights)
    print("may create partitions:", "CREATE_PARTITIONS" in rights)

    # Each processor knows its own number from a synthetic register.
    print("VP indices:", [processor.read_msr(Msr.VP_INDEX) for processor in guest.machines])

    # The boot connected to the bus by messages: a version, then one offer for each device.
    print("VMBus", guest.bus.version, "with", len(guest.bus.offers), "offers")

    # Hypercalls that are none, or not ours. Each has its answer; nothing breaks.
    print("call 0x0fff:", guest.hypercall(0x0FFF).status.name)
    print("create a partition:", guest.hypercall(control_word(CallCode.CREATE_PARTITION), bytes(32)).status.name)
    print("post to connection 99:", guest.platform.post_message(99, b"anybody?").name)

    # A message that arrives and means nothing: the root counts it and says no word. Watch for `control` warnings.
    print("post nonsense to the bus:", guest.platform.post_message(4, b"\xff" * 16).name)

    # A register that is not there faults, as on a real processor.
    try:
        machine.read_msr(0x4000_0FFF)
    except GeneralProtection as fault:
        print("MSR 0x40000fff:", type(fault).__name__)

    await guest.sleep(0.01)
    print("done")
