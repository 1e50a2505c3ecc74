"""Random trees of groups and processors with all controls, all busy, and what each is to get. Hypervisor."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

from hypervisor.scheduler.kernel import CpuKernel, Group, Vp
from tests.hypervisor.scheduler.kernels import MS, WHOLE, entitled, inside


def draw_tree(seed: int, *, lps: int, caps: bool = False, reserves: bool = False) -> CpuKernel:
    """Three levels at most; caps of one length of period, which several quanta fit in; reserves that fit."""
    draw = random.Random(seed)
    period, quantum = draw.choice(((10, 1), (10, 2), (20, 1), (20, 2), (50, 1), (50, 2), (50, 5), (50, 10)))
    kernel = CpuKernel(lps, quantum=quantum * MS)
    numbers = iter(range(1000))

    def controls(most: int, free: int) -> dict[str, Any]:
        cap = draw.randint(WHOLE // 20, most) if caps and draw.random() < 0.5 else None
        reserve = 0
        if reserves and draw.random() < 0.5:
            reserve = draw.randint(0, min(free, most if cap is None else cap))
        shares = draw.choice((50, 100, 200, 400, 700, 10_000))
        return {"shares": shares, "cap": cap, "reserve": reserve, "period": period * MS}

    def fill(group: Group, levels: int, free: int) -> None:
        for _ in range(draw.randint(1, 4)):
            number = next(numbers)
            if levels and draw.random() < 0.5:
                child: Group | Vp = kernel.add_group(group, f"g{number}", id=number, **controls(2 * WHOLE, free))
                assert isinstance(child, Group)
                fill(child, levels - 1, child.reserve)
            else:
                child = kernel.add_vp(group, f"v{number}", id=number, **controls(WHOLE, free))
                kernel.work(child, None)
            free -= child.reserve

    fill(kernel.root, 2, lps * WHOLE)
    return kernel


def targets(kernel: CpuKernel) -> dict[Group | Vp, Fraction]:
    """What each is to get of one logical processor. Where some are left over, a group that uses up its cap counts as a
    whole: all in it run as long as it has a budget, since none may be idle (I2).
    """
    due = entitled(kernel)
    crowded = sum(due.values()) * WHOLE >= kernel.lps * WHOLE - len(due)
    result: dict[Group | Vp, Fraction] = {}

    def walk(node: Group | Vp) -> None:
        if isinstance(node, Vp):
            result[node] = due[node]
            return
        total = sum((due[vp] for vp in inside(node) if isinstance(vp, Vp)), Fraction(0))
        if node.cap is not None and not crowded and total * WHOLE >= node.cap:
            result[node] = total
            return
        for child in node.children.values():
            walk(child)

    walk(kernel.root)
    return result
