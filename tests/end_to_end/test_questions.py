"""Every question of an example has an answer in what the example says, and its README a prediction that is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from partitions.examples import examples
from partitions.question import judge, read_answer
from partitions.resources.measure import Amount, evaluate, parse_measure, said
from partitions.topology import load_topology

EXPECTED = Path(__file__).parent / "expected"
ASKING = [one.name for one in examples() if "\n[question]" in (one.folder / "topology.toml").read_text()]


def test_the_examples_of_resource_control_ask() -> None:
    """All of 30 to 39 do."""
    assert sorted(ASKING) == sorted(one.name for one in examples() if one.name.startswith("3"))
    assert len(ASKING) >= 9


@pytest.mark.parametrize("name", ASKING)
def test_a_question_is_answered_by_its_run(name: str) -> None:
    """What is measured stands in the consoles that the example's own test compares; the README's prediction can be
    judged by it, and there is a reason to tell.
    """
    folder = next(one.folder for one in examples() if one.name == name)
    question = load_topology(folder).question
    assert question is not None

    def look(amount: Amount) -> str:
        assert amount.says, "what only figures can tell is tested by running it"
        text = (EXPECTED / name / f"{amount.node.removeprefix('vm/')}.txt").read_text()
        return said(text.splitlines(), amount.says)

    measured = evaluate(parse_measure(question.measure), look, numeric=not question.choices)
    predictions = re.findall(
        rf"partita run {name} --predict (?:'([^']+)'|\"([^\"]+)\"|(\S+))", (folder / "README.md").read_text()
    )
    assert predictions, "its README shows how to predict"
    for words in predictions:
        verdict = judge(question, read_answer(question, "".join(words)), measured)
        assert verdict.fits is not None
    assert question.because
