"""What docs/cpu-scheduler.md shows is what happens. Hypervisor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hypervisor.scheduler.kernel import CpuKernel
from tests.hypervisor.scheduler.kernels import MS, SECOND, WHOLE, listen

PAGE = Path(__file__).parents[3] / "docs" / "cpu-scheduler.md"
TRACES = re.findall(r"<!-- trace (\d+) (\d+) -->\n\n((?:    .*\n)+)", PAGE.read_text())


def test_there_are_traces() -> None:
    """Two periods are compared."""
    assert [period for period, _, _ in TRACES] == ["10", "100"]


@pytest.mark.parametrize(("period", "until", "shown"), TRACES, ids=[period for period, _, _ in TRACES])
def test_the_trace_is_true(period: str, until: str, shown: str) -> None:
    """Appendix B: a cap of 25 % beside a VP without one; and over whole seconds 250 and 750 ms in each."""
    kernel = CpuKernel(1)
    ear = listen(kernel)
    first = kernel.add_vp(kernel.root, "A", id=1, cap=WHOLE // 4, period=int(period) * MS)
    second = kernel.add_vp(kernel.root, "B", id=2)
    for vp in (first, second):
        kernel.work(vp, None)
    kernel.advance(int(until) * MS)
    lines = [
        f"    {it.name}  {it.begin / MS:5.1f} - {it.end / MS:5.1f}  {it.reason.value}\n"
        for it in ear.stretches
        if it.reason is not None
    ]
    assert "".join(lines) == shown
    kernel.advance(SECOND)
    one, other = kernel.times(first), kernel.times(second)
    assert (one.run, one.ready + one.capped, other.run) == (250 * MS, 750 * MS, 750 * MS)
    kernel.advance(4 * SECOND)
    assert kernel.times(first).run == SECOND
