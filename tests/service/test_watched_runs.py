"""The cards of watched runs: when they are made anew, and what one that can't be made leaves standing."""

import json
import logging
import os

import pytest

from service import watch
from service.language import translate
from service.watch import Watched
from tests.drawn_runs import VOICE, falling, write_run, write_tone


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "runs/shoes", held_out=falling, last=400)
    (tmp_path / "runs/shoes/best").mkdir()
    return tmp_path / "runs"


def says(watched: Watched, name: str = "shoes") -> str:
    card = next(one for one in watched.read("en") if one.name == name)
    return " ".join(sentence for sentences in card.report.sections.values() for sentence in sentences)


def test_a_card_is_kept_until_something_that_it_is_made_of_changes(runs):
    watched = Watched(runs)
    assert watched.read("en")[0] is watched.read("en")[0] and watched.read("pt")[0].state == "treinando"

    def changes_with(change) -> bool:
        before = watched.read("en")[0].version
        change()
        return watched.read("en")[0].version != before

    run = runs / "shoes"
    for name in ("config.yaml", "metrics.jsonl", "environment.json", "best"):
        assert changes_with(lambda name=name: os.utime(run / name, (1e9, 1e9))), name
    figures = [{"id": "copies/clip", "value": 0.2, "low": 0.1, "high": 0.3}]
    for place in (run / "evaluation", runs / "shoes_evaluation"):
        place.mkdir()
        assert changes_with(lambda place=place: (place / "metrics.json").write_text(json.dumps({"figures": figures})))
    assert "20% of the generated images are suspected copies" in says(watched)
    assert not changes_with(lambda: None)


def test_a_better_run_beside_it_shows_on_its_card(runs):
    watched = Watched(runs)
    assert "boots" not in says(watched)
    write_run(runs / "boots", held_out=lambda step: falling(step) / 2)
    (runs / "boots/best").mkdir()
    assert "boots, the best of 1 other run" in says(watched)


@pytest.mark.parametrize("fault", [KeyError("speed_now"), ValueError("a: [")])
def test_one_run_that_cannot_be_shown_breaks_no_other_and_is_logged_once(fault, runs, monkeypatch, caplog):
    write_run(runs / "boots")
    make = watch.make_report

    def fail_at_boots(run, findings, language):
        if run.name == "boots":
            raise fault
        return make(run, findings, language)

    monkeypatch.setattr(watch, "make_report", fail_at_boots)
    watched = Watched(runs)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cards = {card.name: card for card in watched.read("en")}
    assert cards["shoes"].report and cards["boots"].report is None
    assert len(caplog.records) == 1 and caplog.records[0].exc_info and "boots can't be shown" in caplog.text
    monkeypatch.undo()
    assert "boots" in {card.name for card in watched.read("en") if card.report}


def test_durations_are_written_as_the_language_writes_them(runs):
    write_run(runs / "shoes", last=980)
    card = Watched(runs).read("pt")[0]
    assert card.left == pytest.approx(20.0)
    assert translate("pt", "watching.left", left=card.left) == "faltam 20,0 s"


def test_the_files_that_were_named_last_can_be_asked_for(runs, monkeypatch):
    monkeypatch.setattr(watch, "MOST_RUNS", 1)
    watched = Watched(runs)
    paths = [runs / f"{number}.wav" for number in range(60)]
    first = watched.name_file(paths[0])
    names = [watched.name_file(path) for path in paths[1:50]]
    assert watched.name_file(paths[0]) == first and watched.find_file(first) == paths[0]
    watched.name_file(paths[50])
    assert watched.find_file(first) and watched.find_file(names[0]) is None


def test_a_voice_shows_what_it_said_in_its_newest_validation(runs):
    write_run(runs / "voice", settings=VOICE)
    for step in (500, 1000):
        write_tone(runs / f"voice/validation/step-{step:06d}_1.wav", 0.5)
    card = next(one for one in Watched(runs).read("en") if one.name == "voice")
    assert [path.name for path in card.files] == ["step-001000_1.wav"]


@pytest.mark.parametrize(("content", "fault"), [(None, "watching.no_settings"), ("a: [", "watching.damaged_settings")])
def test_a_run_whose_settings_cannot_be_read_says_so_on_its_card(content, fault, runs):
    write_run(runs / "boots")
    (runs / "boots/config.yaml").unlink()
    if content:
        (runs / "boots/config.yaml").write_text(content)
    assert {card.name: card.fault for card in Watched(runs).read("en")} == {"shoes": "", "boots": fault}


def test_a_folder_that_is_gone_is_logged_once(runs, caplog):
    watched = Watched(runs)
    assert len(watched.read("en")) == 1
    runs.rename(runs.with_name("elsewhere"))
    with caplog.at_level(logging.WARNING):
        assert [watched.read("en") for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1 and f"--watch {runs}: No such file" in caplog.text
    runs.with_name("elsewhere").rename(runs)
    assert len(watched.read("en")) == 1


def test_the_chart_names_the_ends_of_its_scale(runs):
    chart = Watched(runs).read("en")[0].chart
    heights = [float(pair.split(",")[1]) for curve in chart.curves for pair in curve.points.split()]
    assert chart.low < chart.high and (min(heights), max(heights)) == (0, watch.HEIGHT)
