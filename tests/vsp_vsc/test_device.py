"""The table of device pairs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hypervisor.wire import Guid
from vsp_vsc.device import BY_INTERFACE, BY_NAME, KINDS, DeviceKind, name_of
from vsp_vsc.integration.protocol import INTERFACES, RING_BYTES
from vsp_vsc.network.protocol import NETWORK_INTERFACE
from vsp_vsc.storage.protocol import STORAGE_INTERFACE


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_both_sides_of_each_kind_can_be_loaded(kind: DeviceKind) -> None:
    """The names in the table are those of the code."""
    assert callable(kind.load_vsp())
    assert callable(kind.load_vsc())
    assert BY_NAME[kind.name] is kind
    assert BY_INTERFACE[kind.interface] is kind


def test_interfaces_are_the_protocols() -> None:
    """The table spells them out so that it loads no protocol; they must not drift apart."""
    assert BY_NAME["storage"].interface == STORAGE_INTERFACE
    assert name_of(STORAGE_INTERFACE) == "storage"
    assert BY_NAME["network"].interface == NETWORK_INTERFACE
    for component, interface in INTERFACES.items():
        kind = BY_INTERFACE[interface]
        assert kind.name == component.name.lower().replace("_", "-")
        assert kind.ring_bytes == RING_BYTES
    assert name_of(Guid(bytes(16))) == "00000000-0000-0000-0000-000000000000"


def test_the_table_loads_no_device() -> None:
    """Neither side pays for the other, nor for devices that it does not have."""
    code = "import sys, vsp_vsc.device; print([name for name in sys.modules if name.startswith('vsp_vsc.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['vsp_vsc.device']"
