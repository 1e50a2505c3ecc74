"""The least caps there are, and what ends at the very moment at which something else begins. Hypervisor."""

from __future__ import annotations

from fractions import Fraction

import pytest

from hypervisor.scheduler.kernel import CpuKernel
from tests.hypervisor.scheduler.kernels import MS, QUANTUM, SECOND, WHOLE, busy, check, ran


@pytest.mark.parametrize("lps", [1, 2])
def test_less_than_the_least_there_is(lps: int) -> None:
    """Paces are finer than caps: who is due less than 1/65536 of a logical processor is owed nothing out of turn."""
    kernel = CpuKernel(lps)
    group = kernel.add_group(kernel.root, "group", id=1, cap=3, period=SECOND)
    few = busy(kernel, 100, 100, 100, 100, parent=group, cap=1, period=SECOND)
    (rest,) = busy(kernel, 100)
    kernel.advance(10 * SECOND)
    check(kernel)
    assert sum(ran(kernel, few)) == Fraction(10 * (SECOND * 3 // WHOLE), MS)
    assert kernel.times(rest).run >= 10 * SECOND - 40 * (SECOND // WHOLE)


@pytest.mark.parametrize("turns", [2, 4, 6])
def test_who_is_owed_nothing_any_more_has_no_claim(turns: int) -> None:
    """A reserve that is taken away in the nanosecond in which it is due: turns by shares from then on."""
    kernel = CpuKernel(1)
    reserved, *others = busy(kernel, 100, 300, 300, 300)
    kernel.change(reserved, reserve=WHOLE // 2)
    kernel.advance(turns * QUANTUM)
    kernel.change(reserved, reserve=0)
    before = ran(kernel, [reserved, *others])
    kernel.advance(turns * QUANTUM + SECOND)
    got = [ms - old for ms, old in zip(ran(kernel, [reserved, *others]), before, strict=True)]
    assert got[0] <= 100, got  # and less, for the quanta that it came ahead by
    assert max(got[1:]) - min(got[1:]) <= 10, got


def test_nearly_uncapped_processors_do_not_chop_each_others_slices() -> None:
    """Two that have to run nearly all the time have LPs: for neither's sake does the other's slice have to be short."""
    kernel = CpuKernel(4)
    busy(kernel, 100, 100, cap=WHOLE * 999 // 1000)
    busy(kernel, 100, 100, prefix="free")
    kernel.advance(SECOND)
    assert kernel.dispatches <= 1000
