"""Figures of a voice against values known by hand, the differences of runs, and what the verdict says of them."""

import numpy as np
import pytest

from evaluation.report.spoken_page import summarise
from evaluation.report.spoken_verdict import judge_voice
from evaluation.spoken import choose_examples, compare_sentences, judge_sentences


def sentence(i, edits=0, real_edits=0, **generated):
    """A row of 20 characters; `edits` of them are heard wrong."""
    found = {"character_edits": edits, "word_edits": min(edits, 4), "mcd": 5 + i % 3, "heard": "x", **generated}
    real = {"character_edits": real_edits, "word_edits": 0, "heard": "y", "file": "r", "sha256": str(i)}
    sounds = {"generated": found, "real": real, "copy": {"mcd": 3 + i % 3}}
    return {"id": str(i), "text": f"text {i}", "characters": 20, "words": 4, "speaker": "", "sounds": sounds}


def judge(rows, **more):
    figures = judge_sentences(rows, 200, 0)
    return {"figures": figures, "utterances": rows, "made": {"hardware": "a CPU"}, **more}


def figure(metrics, name):
    return next(one for one in metrics["figures"] if one["id"] == name)


def test_errors_are_counted_over_all_characters_and_not_averaged_over_sentences():
    rows = [sentence(i, edits=i % 2) for i in range(40)]
    rows[0]["characters"], rows[0]["sounds"]["generated"]["character_edits"] = 400, 100
    cer = figure(judge(rows), "cer")
    assert cer["value"] == pytest.approx((20 + 100) / (39 * 20 + 400)) and cer["n"] == 40
    assert cer["low"] < cer["value"] < cer["high"]


def test_what_was_not_measured_of_a_sentence_is_left_out_of_its_figure_alone():
    rows = [sentence(i, f0_rmse=0.1 if i else None) for i in range(30)]
    metrics = judge(rows)
    assert figure(metrics, "f0_rmse")["n"] == 29 and figure(metrics, "mcd")["n"] == 30
    assert "similarity" not in {one["id"] for one in metrics["figures"]}
    few = judge([sentence(i, f0_rmse=0.1 if i else None) for i in range(2)])
    assert figure(few, "f0_rmse")["refused"] == "measured of 1 sentences, an interval needs at least 2"


def test_copy_synthesis_and_recordings_stand_beside_with_differences_over_the_same_sentences():
    metrics = judge([sentence(i, edits=2, real_edits=1) for i in range(30)])
    mcd, cer = figure(metrics, "mcd"), figure(metrics, "cer")
    assert mcd["beside"]["copy"]["value"] == pytest.approx(4) and "real" not in mcd["beside"]
    apart = mcd["beside"]["copy"]["difference"]  # each sentence differs by 2, whatever the spread over sentences
    assert [apart[key] for key in ("value", "low", "high")] == pytest.approx([2, 2, 2])
    assert cer["beside"]["real"]["difference"]["value"] == pytest.approx(0.05)


def test_paired_differences_of_runs_are_sharper_than_the_spread_of_sentences():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 10, 40)
    first = [sentence(i, edits=int(hard[i])) for i in range(40)]
    second = [sentence(i, edits=int(hard[i]) + 1) for i in range(40)]
    cer = next(one for one in compare_sentences({"a": first, "b": second}, 200, 0) if one["id"] == "cer")
    assert cer["differences"]["b"]["low"] == pytest.approx(0.05) == cer["differences"]["b"]["high"]
    assert cer["runs"]["a"]["high"] > cer["runs"]["b"]["low"]  # the intervals of the runs overlap
    half = [row if i % 2 else sentence(i, edits=int(hard[i])) for i, row in enumerate(second)]
    wide = next(one for one in compare_sentences({"a": first, "b": half}, 200, 0) if one["id"] == "cer")
    assert 0 < wide["differences"]["b"]["low"] < 0.025 < wide["differences"]["b"]["high"]


def test_the_verdict_says_when_a_voice_is_less_well_understood():
    assert judge_voice(judge([sentence(i, edits=4) for i in range(40)]))[0].startswith("Less well understood")
    same = judge_voice(judge([sentence(i, edits=i % 2, real_edits=i % 2) for i in range(40)]))[0]
    assert same.startswith("Not shown to be less well understood")


def test_there_is_no_verdict_of_few_sentences_or_of_a_recogniser_that_does_not_understand():
    few = judge([sentence(i) for i in range(9)])
    assert judge_voice(few)[0] == "No verdict: 9 sentences are too few, give 10 or more."
    deaf = judge([sentence(i, edits=6, real_edits=5) for i in range(40)])
    headline, _, doubts = judge_voice(deaf)
    assert "of the recordings too, the recogniser hears 25.0 % wrong" in headline
    assert any("hears 25.0 % of the characters of the recordings wrong" in one for one in doubts)
    silent = [sentence(i) for i in range(40)]
    for row in silent:
        for sound in row["sounds"].values():
            sound.pop("character_edits", None)
    assert "there is no recogniser" in judge_voice(judge(silent))[0]


def test_nothing_is_called_better_or_worse_of_few_sentences():
    """Each sentence differs by 2 dB, so that the interval is as narrow as can be."""
    for n, words in ((9, "too few sentences to tell"), (10, "worse")):
        rows = [sentence(i, spoken_seconds=2.0, real_seconds=1.0) for i in range(n)]
        said = judge_voice(judge(rows))[1]
        assert any(one.startswith("Mel-cepstral") and one.endswith(f", {words}.") for one in said)
        assert any("slower than the recordings" in one for one in said) == (n == 10)
        compared = compare_sentences({"a": rows, "b": [sentence(i, mcd=9.0) for i in range(n)]}, 200, 0)
        assert f"b: {words} in" in summarise(compared, ["a", "b"])[0]


def test_recordings_that_are_judged_as_the_voice_are_named():
    rows = [sentence(i, sha256=str(i if i < 5 else -i)) for i in range(12)]
    assert "5 of 12 generated sounds are the recordings themselves, byte for byte." in judge_voice(judge(rows))[2]


def test_what_cannot_be_trusted_is_named():
    rows = [sentence(i, pitch=62.0, real_pitch=200.0, similarity=0.4) for i in range(12)]
    for row in rows:
        row["sounds"]["real"]["similarity"] = 0.3
    metrics = judge(rows, frame_rate=62.5, left_out=["3 sentences were not spoken."])
    metrics["made"]["models"] = {"recogniser": "demo", "speaker encoder": "x"}
    _, sentences, doubts = judge_voice(metrics)
    said = " ".join(doubts)
    for words in ("3 sentences were not spoken", "12 sentences are few", "speaker encoder finds", "demo's recogniser"):
        assert words in said
    assert any("62 Hz" in one and "rate of its decoder's frames" in one for one in sentences)


def test_the_worst_and_the_best_are_found_and_no_sentence_is_shown_twice():
    rows = [sentence(i, edits=(7 * i) % 19) for i in range(19)]
    chosen = choose_examples(rows, 3, 0)
    edits = [(7 * i) % 19 for i in range(19)]
    assert sorted(edits[place] for place in chosen["worst"]) == [16, 17, 18]
    assert sorted(edits[place] for place in chosen["best"]) == [0, 1, 2]
    places = sum(chosen.values(), [])
    assert len(places) == len(set(places)) == 9
    assert sorted(sum(choose_examples(rows[:2], 3, 0).values(), [])) == [0, 1]
