"""The question that a topology asks before it runs, and whether a prediction fits what was measured. Root side.

    [question]
    ask = "What percent of the processor does c get?"
    unit = "%"
    measure = "vm/c cpu.run_percent"        # the language of partitions.resources.measure
    tolerance = 1                           # in the same unit
    because = "its weight is 700 of 1,000, and all three are busy"

An answer is a number, or, where there are `choices`, one of them.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from partitions.topology_question import QuestionTable

_ANSWER: Final = re.compile(r"([-+]?\d[\d_]*(?:,\d{3})*(?:\.\d+)?|[-+]?\.\d+)\s*((?!e[-+]?\d)[^\W\d].*|[^\w,.].*|)")


class AnswerError(ValueError):
    """A prediction that is no answer to the question; the text says what would be."""


class Verdict(msgspec.Struct, kw_only=True):
    """How a question was answered: by a person, if one has, and by the run. What `--json` has as `question`."""

    ask: str
    unit: str = ""
    prediction: float | str | None = None
    """None where nobody predicted."""
    measured: float | str | None = None
    """None where it could not be measured, and `problem` says why."""
    tolerance: float = 0.0
    fits: bool | None = None
    """Whether the prediction is within the tolerance of what was measured."""
    because: str = ""
    problem: str = ""


def read_answer(question: QuestionTable, text: str) -> float | str:
    """What a person has predicted. Raises `AnswerError`."""
    given = text.strip()
    if question.choices:
        for choice in question.choices:
            if choice.casefold() == given.casefold():
                return choice
        near = difflib.get_close_matches(given, question.choices, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"it is one of {', '.join(question.choices)}"
        raise AnswerError(f'"{text}" is no answer to "{question.ask}"; {hint}')
    match = _ANSWER.fullmatch(given)
    unit = f' in {question.unit}, as in: --predict "10 {question.unit}"' if question.unit else ", as in: --predict 10"
    if match is None:
        raise AnswerError(f'"{text}" is no answer to "{question.ask}"; it is a number{unit}')
    if match[2] and match[2].casefold() != question.unit.casefold():
        raise AnswerError(f'"{text}" is in "{match[2]}"; the answer to "{question.ask}" is a number{unit}')
    value = float(match[1].replace(",", "").replace("_", ""))
    if not math.isfinite(value):
        raise AnswerError(f'"{text}" is no answer to "{question.ask}"; it is a number{unit}')
    return value


def judge(
    question: QuestionTable, prediction: float | str | None, measured: float | str | None, problem: str = ""
) -> Verdict:
    """Hold what was predicted against what was measured."""
    fits: bool | None = None
    if prediction is not None and measured is not None:
        if isinstance(prediction, str) or isinstance(measured, str):
            fits = str(prediction).casefold() == str(measured).casefold()
        else:
            # What is written as 0.1 may differ in its last bit: a tolerance is meant for people.
            fits = abs(prediction - measured) <= question.tolerance + 1e-9 * max(1.0, abs(measured))
    return Verdict(
        ask=question.ask,
        unit=question.unit,
        prediction=prediction,
        measured=round(measured, 6) if isinstance(measured, float) else measured,
        tolerance=question.tolerance,
        fits=fits,
        because=question.because,
        problem=problem,
    )


def words_before(question: QuestionTable, prediction: float | str | None) -> list[str]:
    """What is printed before the run."""
    lines = [f"question: {question.ask}"]
    if question.choices:
        lines.append(f"          one of: {', '.join(question.choices)}")
    if prediction is None:
        example = f'"10 {question.unit}"' if question.unit else "ANSWER"
        example = question.choices[0] if question.choices else example
        lines.append(f"          Think first; the answer comes at the end, and --predict {example} checks yours.")
    else:
        lines.append(f"          you say: {amount(prediction, question.unit)}")
    return lines


def words_after(verdict: Verdict) -> list[str]:
    """What is printed at the end."""
    if verdict.measured is None:
        return [f"answer:   could not be measured: {verdict.problem}"]
    lines = [f"answer:   {amount(verdict.measured, verdict.unit)}"]
    if verdict.prediction is not None:
        lines.append(f"          you said {amount(verdict.prediction, verdict.unit)}, which {_fit(verdict)}")
    if verdict.because:
        lines.append(f"because:  {verdict.because}")
    return lines


def _fit(verdict: Verdict) -> str:
    word = "fits" if verdict.fits else "does not fit"
    if isinstance(verdict.prediction, str) or isinstance(verdict.measured, str):
        return word
    assert verdict.prediction is not None, "there is nothing to compare"
    assert verdict.measured is not None, "there is nothing to compare with"
    off = amount(abs(verdict.prediction - verdict.measured), verdict.unit)
    near = amount(verdict.tolerance, verdict.unit)
    if verdict.fits:
        return f"{word}: off by {off}, and {near} is near enough" if verdict.tolerance else word
    return f"{word}: off by {off}" + (f", more than {near}" if verdict.tolerance else "")


def amount(value: float | str, unit: str) -> str:
    """A value with its unit, without digits that say nothing."""
    text = value if isinstance(value, str) else f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{text} {unit}" if unit and not isinstance(value, str) else text
