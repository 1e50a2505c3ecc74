"""The hypercall by which a parent asks for its child's accesses. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor import interception
from hypervisor.hypercall.processor_layouts import InstallInterceptInput

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor


def install_intercept(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: InstallInterceptInput
) -> None:
    """From the next access on, for all processors of the child; an access mask of 0 ends it."""
    interception.install(target, request.intercept_type, request.access, request.parameter)
