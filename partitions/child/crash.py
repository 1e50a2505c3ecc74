"""A guest's last words: the traceback on the console, then the crash registers, then silence. Child side.

The registers are Hyper-V's (TLFS; Linux's hyperv_report_panic_msg): five parameters and a control register whose write
tells the host. With a message, P3 is its address and P4 its length, at most one page.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

from hypervisor.machine import Machine
from hypervisor.msr import CRASH_MESSAGE, CRASH_MESSAGE_MAX, CRASH_NOTIFY, Msr
from hypervisor.pages import PAGE_SHIFT

PROGRAM_FAULT: Final = 1
"""P0: an exception left the guest program's `main`."""
KERNEL_FAULT: Final = 2
"""P0: an exception in the guest's kernel or a driver."""


def oops(fault: BaseException, program: Path | None) -> str:
    """The traceback for the console, with the program's own frames only where it has any."""
    fault = _alone(fault)
    report = traceback.TracebackException.from_exception(fault)
    if program is not None:
        _trim(report, str(program))
    return "".join(report.format())


def summary(fault: BaseException) -> str:
    """One line that names the exception, for the first line of the crash message."""
    return "".join(traceback.format_exception_only(_alone(fault))).strip().split("\n", 1)[0]


def fault_line(fault: BaseException, program: Path | None) -> int:
    """The line in the program where it happened, 0 when it was not there: this model's instruction pointer."""
    line = 0
    fault = _alone(fault)
    for frame in traceback.extract_tb(fault.__traceback__):
        if program is None or frame.filename == str(program):
            line = frame.lineno or line
    return line


def report_crash(machine: Machine, page: int, code: int, os_id: int, line: int, text: str) -> None:
    """Write the crash registers. `page` is a page of ours for the text; what does not fit is cut off."""
    message = text.encode("utf-8", "backslashreplace")[:CRASH_MESSAGE_MAX]
    gpa = page << PAGE_SHIFT
    machine.memory[gpa : gpa + len(message)] = message
    for number, value in enumerate((code, os_id, line, gpa, len(message))):
        machine.write_msr(Msr.CRASH_P0 + number, value)
    machine.write_msr(Msr.CRASH_CTL, CRASH_NOTIFY | CRASH_MESSAGE)


def _alone(fault: BaseException) -> BaseException:
    """An exception that is alone in its groups: the groups come from nurseries and say nothing to a person."""
    while isinstance(fault, BaseExceptionGroup) and len(fault.exceptions) == 1:
        fault = fault.exceptions[0]
    return fault


def _trim(report: traceback.TracebackException, program: str) -> None:
    own = [frame for frame in report.stack if frame.filename == program]
    if own:
        report.stack[:] = own
    for other in (report.__cause__, report.__context__, *(report.exceptions or ())):
        if other is not None:
            _trim(other, program)
