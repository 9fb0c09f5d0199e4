"""Which numbers of a text follow from given ones."""

import random

import pytest

from service.report.findings import comparable_numbers
from service.report.llm import write_question
from service.report.numbers import find_invented, read_numbers
from service.report.run_record import read_run
from service.report.writing import find_all
from tests.drawn_runs import write_run

GIVEN = [0.1797, 0.04808, 0.732, 3000, 2500, 1e-4, 7.25]
ALIKE = [[0.1797, 0.04808], [3000, 2500]]


@pytest.mark.parametrize(
    "text",
    [
        "from 0.1797 to 0.04808",
        "de 0,1797 para 0,048",
        "0.18 and 0.05",
        "3,000 steps, 3.000 passos, 3000, 3 mil, 3k",
        "a rate of 1e-4 or 0.0001",
        "73 % and 73.2%",
        "73 percent, 73.2 per cent, 73 percentage points",
        "73 por cento, 73,2 porcento, 73 pontos percentuais",
        "500 steps more",  # a difference
        "1.2 times as many, 120 %",  # a ratio
        "0.1316 lower",
        "1. first\n2) second",  # of a list
        "fp16 on a T4, adamw8bit, SD1.5",
        "about 7",
        "no number at all",
    ],
)
def test_what_is_equal_rounded_a_difference_or_a_ratio_follows(text):
    assert find_invented(text, GIVEN, ALIKE) == []


@pytest.mark.parametrize(
    ("text", "invented"),
    [
        ("it fell to 0.061", ["0.061"]),
        ("87 % of the images", ["87 %"]),
        ("87 per cent of them", ["87 per cent"]),
        ("87 por cento", ["87 por cento"]),
        ("73 periods", ["73"]),  # a number alone is no share
        ("in 4,321 steps", ["4,321"]),
        (".42 now", [".42"]),
        ("twenty-one times", ["twenty"]),
        ("cinquenta passos", ["cinquenta"]),
        ("½ of it", ["½"]),
        ("on 27.11.2026", ["27.11.2026"]),
        ("0.17974", ["0.17974"]),  # more digits than are known
        ("9 and 9", ["9"]),
    ],
)
def test_other_numbers_are_named_as_they_stand(text, invented):
    assert find_invented(text, GIVEN, ALIKE) == invented


def test_a_difference_or_ratio_of_what_has_nothing_in_common_does_not_follow():
    assert find_invented("20% and 0.5523", GIVEN, []) == ["20%", "0.5523"]
    assert find_invented("0.5523", GIVEN, [[0.1797, 0.732]]) == []


def test_made_up_figures_are_found_beside_the_numbers_of_a_whole_report(tmp_path):
    """Of all that a report says: some made-up numbers are near one of it by chance."""
    run = write_run(tmp_path / "run", held_out=lambda step: 0.3 - 0.0002 * min(step, 500) + 0.0001 * max(0, step - 500))
    write_run(tmp_path / "other", held_out=lambda step: 0.3 - 0.0002 * step)
    findings = find_all(read_run(run))
    question = write_question(findings, "en")
    given = [one.value for _, readings in read_numbers(question) for one in readings]
    assert len(given) > 30 and find_invented(question, given, []) == []
    random.seed(0)
    made_up = [f"{10 ** random.uniform(-3, 4):.3g}" for _ in range(300)]
    unnoticed = [one for one in made_up if not find_invented(one, given, comparable_numbers(findings))]
    assert len(unnoticed) < 15
