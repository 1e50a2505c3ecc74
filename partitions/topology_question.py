"""A topology's `[question]`, and its rules: what it measures must be there to be measured. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from partitions.topology_check import Check
    from partitions.topology_schema import TopologyFile


class QuestionTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the topology asks a person to predict before it runs; docs/top-and-plot.md has the language of measures."""

    ask: Annotated[str, Meta(description="The question.")]
    measure: Annotated[
        str,
        Meta(description='What the run answers, such as "vm/c cpu.run_percent" or \'vm/a says "took {} ms"\'.'),
    ]
    unit: Annotated[str, Meta(description='Of a number, such as "%".')] = ""
    tolerance: Annotated[float, Meta(ge=0, description="How far off a number may be, in that unit.")] = 0.0
    choices: Annotated[list[str], Meta(description="Answers to choose from; without them it is a number.")] = (
        msgspec.field(default_factory=list)
    )
    because: Annotated[str, Meta(description="Why it is so, for the end.")] = ""


def check_question(check: Check, file: TopologyFile, question: QuestionTable) -> None:
    """All of it."""
    from partitions.resources.measure import MeasureError, parse_measure
    from partitions.topology_source import nearest

    if not question.ask.strip():
        check.problem(("question", "ask"), "is empty")
    if len(question.choices) == 1:
        check.problem(("question", "choices"), "must be two at least, or none for a question with a number as answer")
    folded = [choice.casefold() for choice in question.choices]
    if len(set(folded)) < len(folded):
        check.problem(("question", "choices"), "must differ in more than capital letters")
    for key in ("unit", "tolerance"):
        if question.choices and getattr(question, key):
            check.problem(("question", key), f"is for a question with a number as answer; remove {key} or choices")
    if not question.measure.strip():
        return  # a missing one is reported as that
    try:
        measure = parse_measure(question.measure)
    except MeasureError as error:
        check.problem(("question", "measure"), str(error))
        return
    if question.choices and measure.second is not None:
        check.problem(("question", "measure"), "is a number, and the question has choices; remove one of them")
    there = {"vm": [vm.name for vm in file.vm], "pool": [pool.name for pool in file.pool]}
    for amount in measure.amounts:
        kind, _, name = amount.node.partition("/")
        if name and name not in there[kind]:
            near = nearest(name, there[kind])
            hint = f'did you mean "{near}"?' if near else f"there are {', '.join(there[kind]) or 'none'}"
            check.problem(("question", "measure"), f'no {"VM" if kind == "vm" else kind} is called "{name}"; {hint}')
