"""Predictions: which are answers, which fit, and what a person reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.question import AnswerError, judge, read_answer, words_after, words_before
from partitions.topology_question import QuestionTable

SHARE = QuestionTable(ask="How much?", measure="vm/a cpu.run_percent", unit="%", tolerance=1, because="it is so")
FIRST = QuestionTable(ask="Who is first?", measure='vm/a says "first: {}"', choices=["red", "Blue", "nobody"])


@pytest.mark.parametrize(
    ("text", "value"),
    [("70", 70.0), (" 70 % ", 70.0), ("70%", 70.0), ("-1.5", -1.5), ("1,000", 1000.0), ("1_000", 1000.0), (".5", 0.5)],
)
def test_numbers(text: str, value: float) -> None:
    """With the unit or without it."""
    assert read_answer(SHARE, text) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("b", 'it is a number in %, as in: --predict "10 %"'),
        ("", "it is a number in %"),
        ("70 ms", 'is in "ms"; the answer to "How much?" is a number in %'),
        ("nan", "it is a number in %"),
        ("1e999", '"1e999" is no answer to'),
        ("7,5 %", '"7,5 %" is no answer to'),
        ("7 0", "is a number in %"),
    ],
)
def test_answers_of_the_wrong_type(text: str, words: str) -> None:
    """The error names the question and shows what an answer looks like."""
    with pytest.raises(AnswerError) as caught:
        read_answer(SHARE, text)
    assert words in str(caught.value)


def test_choices() -> None:
    """Capital letters do not matter; what is none of them is refused with the nearest, or with all."""
    assert read_answer(FIRST, "blue") == "Blue"
    with pytest.raises(AnswerError, match='did you mean "nobody"'):
        read_answer(FIRST, "nobdy")
    with pytest.raises(AnswerError, match="it is one of red, Blue, nobody"):
        read_answer(FIRST, "7")


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_number_fits_within_the_tolerance(prediction: float, measured: float) -> None:
    """And at its edge; far from it never."""
    fits = judge(SHARE, prediction, measured).fits
    if abs(abs(prediction - measured) - 1) > 1e-2:
        assert fits == (abs(prediction - measured) <= 1)
    assert judge(SHARE, measured + 1, measured).fits


def test_nothing_is_judged_that_is_not_there() -> None:
    """Without a prediction or a measurement there is no verdict."""
    assert judge(SHARE, None, 70.0).fits is None
    assert judge(SHARE, 70.0, None, "it did not run").fits is None
    assert words_after(judge(SHARE, 70.0, None, "it did not run")) == [
        "answer:   could not be measured: it did not run"
    ]


def test_words() -> None:
    """The question before; the answer, how far off and why, after."""
    assert words_before(SHARE, None) == [
        "question: How much?",
        '          Think first; the answer comes at the end, and --predict "10 %" checks yours.',
    ]
    assert words_before(FIRST, "red")[1:] == ["          one of: red, Blue, nobody", "          you say: red"]
    assert words_after(judge(SHARE, 69.5, 70.04)) == [
        "answer:   70.04 %",
        "          you said 69.5 %, which fits: off by 0.54 %, and 1 % is near enough",
        "because:  it is so",
    ]
    assert words_after(judge(SHARE, 50.0, 70.04))[1] == (
        "          you said 50 %, which does not fit: off by 20.04 %, more than 1 %"
    )
    assert words_after(judge(FIRST, "red", "red"))[1] == "          you said red, which fits"
    assert words_after(judge(FIRST, None, "red")) == ["answer:   red"]
