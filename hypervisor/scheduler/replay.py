"""A kernel's inputs played again: the same schedule. Hypervisor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypervisor.scheduler.kernel import CpuKernel, Entry, Group, Listener, Vp

_NODES = {"remove": 1, "move": 2, "change": 1, "work": 1, "stop": 1, "suspend": 1, "resume": 1, "charge": 1}
"""How many of the first values are serial numbers of nodes."""


def replay(
    log: Sequence[Entry], listener: Listener | None = None, attach: Callable[[CpuKernel], object] | None = None
) -> CpuKernel:
    """A kernel that was given the inputs of `log`, at the time of the last one. `attach` is shown it before that."""
    _, first, (lps, quantum, min_run, switch_cost) = log[0]
    if first != "CpuKernel":
        raise ValueError("not a log from its beginning")
    kernel = CpuKernel(_int(lps), quantum=_int(quantum), min_run=_int(min_run), switch_cost=_int(switch_cost), log=True)
    kernel.listener = listener
    if attach is not None:
        attach(kernel)
    nodes: dict[object, Group | Vp] = {kernel.root.normal.serial: kernel.root}
    for moment, name, values in log[1:]:
        kernel.advance(moment)
        given: list[Any] = list(values)
        match name:
            case "add_group":
                parent, label, number, shares, cap, reserve, period, lps = given
                group = kernel.add_group(
                    _group(nodes[parent]),
                    label,
                    id=number,
                    shares=shares,
                    cap=cap,
                    reserve=reserve,
                    period=period,
                    processors=lps,
                )
                nodes[group.normal.serial] = group
            case "add_vp":
                parent, label, number, shares, cap, reserve, period, batch = given
                vp = kernel.add_vp(
                    _group(nodes[parent]),
                    label,
                    id=number,
                    shares=shares,
                    cap=cap,
                    reserve=reserve,
                    period=period,
                    batch=batch,
                )
                nodes[vp.serial] = vp
            case "change":
                node, shares, cap, reserve, period, batch, lps = given
                its: dict[str, Any] = {"shares": shares, "cap": cap, "reserve": reserve, "period": period}
                its |= {"processors": lps} if isinstance(nodes[node], Group) else {"batch": batch}
                kernel.change(nodes[node], **its)
            case _:
                count = _NODES.get(name, 0)
                getattr(kernel, name)(*(nodes[value] for value in given[:count]), *given[count:])
    return kernel


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _group(node: Group | Vp) -> Group:
    assert isinstance(node, Group)
    return node
