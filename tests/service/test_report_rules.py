"""What the rules find in runs that are made to show it, and that they say nothing of those that do not."""

import json
import os
import time

import pytest

from service.language import LANGUAGES
from service.report.cost_rules import judge_benchmark
from service.report.findings import comparable_numbers
from service.report.run_record import read_run
from service.report.writing import find_all, write_report
from tests.drawn_runs import VOICE, falling, finish, write_run, write_tone
from utils.cli import UserError


def found(folder) -> dict:
    """{name of the finding: the finding}; its texts are written too, since one may lack a value that they show."""
    findings = find_all(read_run(folder))
    assert all(one.text(language) and one.advice_text(language) != "" for one in findings for language in LANGUAGES)
    return {one.key.partition(".")[2]: one for one in findings}


def odd(folder) -> set[str]:
    return {name for name, one in found(folder).items() if one.severity in ("odd", "bad")}


def over_fitting(step: int) -> float:
    return 0.3 - 0.0004 * min(step, 500) + 0.0002 * max(0, step - 500)


def test_a_run_that_learns_is_called_good_and_nothing_is_odd(tmp_path):
    run = finish(write_run(tmp_path / "run", held_out=falling))
    (run / "best").mkdir()
    names = found(run)
    assert odd(run) == set() and {"ended", "loss_falls", "held_out_falls", "speed", "memory"} <= names.keys()
    assert names["held_out_falls"].values["best_step"] == 1000


def test_over_fitting_is_a_held_out_loss_that_rises_while_the_training_loss_does_not(tmp_path):
    run = write_run(tmp_path / "run", held_out=over_fitting)
    (run / "best").mkdir()
    finding = found(run)["over_fits"]
    assert finding.severity == "bad" and finding.values["best_step"] == 500
    assert finding.values["rise"] == pytest.approx(1.0)
    assert found(run)["best_before"].advice is None  # that of over-fitting names best/ already
    one_worse = write_run(tmp_path / "other", held_out=lambda step: falling(step) + 0.2 * (step == 1000))
    assert "over_fits" not in found(one_worse)  # the newest alone may be chance


def test_a_training_loss_that_rises_with_the_held_out_one_is_no_over_fitting(tmp_path):
    run = write_run(tmp_path / "run", loss=over_fitting, held_out=over_fitting)
    assert "held_out_rises" in odd(run) and "over_fits" not in odd(run)


def test_divergence_is_a_loss_far_above_its_lowest(tmp_path):
    def diverging(step: int) -> float:
        return falling(step) if step < 600 else 0.1 * 1.01 ** (step - 600)

    assert "diverges" in odd(write_run(tmp_path / "run", diverging))
    assert "diverges" in odd(write_run(tmp_path / "held", diverging, held_out=diverging))
    assert "diverges" not in odd(write_run(tmp_path / "noisy", noise=0.8))  # as diffusion's is
    assert "diverges" not in odd(write_run(tmp_path / "flat", lambda step: 0.1, noise=0.8))


def flat_since_half(step: int) -> float:
    return 0.1 + 0.2 * max(0.0, 1 - step / 500)


@pytest.mark.parametrize(("noise", "expected"), [(0.02, True), (0.3, False)])
def test_a_plateau_is_claimed_only_where_noise_leaves_no_doubt(noise, expected, tmp_path):
    assert ("plateau" in found(write_run(tmp_path / "run", flat_since_half, noise=noise))) == expected
    assert "plateau" not in found(write_run(tmp_path / "falling", lambda step: 0.3 - 0.0002 * step, noise=noise))


def test_a_plateau_of_the_held_out_loss_counts_where_it_is_measured_often(tmp_path):
    flat = found(write_run(tmp_path / "run", falling, held_out=flat_since_half, noise=0.3))
    assert flat["held_out_plateau"].values["share"] == pytest.approx(0, abs=1e-9)
    names = found(write_run(tmp_path / "falls", flat_since_half, held_out=lambda step: 0.3 - 0.0002 * step))
    assert not {"plateau", "held_out_plateau"} & names.keys()


def test_a_loss_that_does_not_fall_is_odd_unless_the_held_out_one_does(tmp_path):
    assert "loss_flat" in odd(write_run(tmp_path / "flat", lambda step: 0.1))
    assert "loss_rises" in odd(write_run(tmp_path / "rises", lambda step: 0.1 + step / 5000))
    assert "loss_noisy" in found(write_run(tmp_path / "better", lambda step: 0.1, held_out=falling))
    assert "loss_noisy" in found(write_run(tmp_path / "short", lambda step: 0.1, last=200))


def test_steps_that_were_not_finite_are_counted(tmp_path):
    skipped = found(write_run(tmp_path / "run", skipped_steps=lambda step: 3))["not_finite"]
    assert skipped.severity == "odd" and skipped.values["count"] == 3
    lost = found(write_run(tmp_path / "lost", lambda step: None if step == 500 else falling(step)))["not_finite"]
    assert lost.severity == "bad" and lost.values["count"] == 1


@pytest.mark.parametrize(
    ("rate", "loss", "expected"),
    [(1e-2, lambda step: 0.1, "rate_high"), (1e-6, lambda step: 0.1, "rate_low"), (1e-2, falling, "rate_above")],
)
def test_a_learning_rate_is_judged_by_what_the_loss_does(rate, loss, expected, tmp_path):
    assert expected in found(write_run(tmp_path / "run", loss, settings={"learning_rate": rate}))
    assert not {"rate_high", "rate_low", "rate_above"} & found(write_run(tmp_path / "usual", loss)).keys()


def test_the_usual_rate_depends_on_what_is_trained_and_how(tmp_path):
    full = write_run(tmp_path / "full", settings={"method": "full", "learning_rate": 1e-4})
    prodigy = write_run(tmp_path / "prodigy", settings={"optimizer": "prodigy", "learning_rate": 1.0})
    assert "rate_above" in found(full) and "rate_above" not in found(prodigy)


def test_a_warm_up_as_long_as_the_training_and_growing_gradients_are_odd(tmp_path):
    run = write_run(tmp_path / "run", settings={"lr_warmup_steps": 1000}, grad_norm=lambda step: 0.1 * 1.01**step)
    assert {"warm_up_long", "gradients_grow"} <= odd(run)
    assert "gradients_cut" in found(write_run(tmp_path / "cut", grad_norm=lambda step: 7.0))


def test_time_left_is_that_of_the_steps_that_are_left(tmp_path):
    finding = found(write_run(tmp_path / "run", last=400))["time_left"]
    assert finding.values == {"steps": 400, "last_step": 1000, "share": 0.4, "left": pytest.approx(600.0)}
    assert "faltam cerca de 10 min 0 s" in finding.text("pt") and "40%" in finding.text("en")


def test_a_run_that_has_stopped_without_an_end_is_noticed(tmp_path):
    run = write_run(tmp_path / "run", last=400)
    assert "silent" not in odd(run)
    an_hour_ago = time.time() - 3600
    os.utime(run / "metrics.jsonl", (an_hour_ago, an_hour_ago))
    assert "silent" in odd(run) and "silent" not in odd(finish(run))


def test_a_run_without_a_step_and_one_that_ended_early_say_so(tmp_path):
    empty = write_run(tmp_path / "empty", last=0)
    assert [one.key for one in find_all(read_run(empty))] == ["finding.not_begun"]
    early = finish(write_run(tmp_path / "early", last=400), stopped_early="no better held-out loss")
    assert found(early)["stopped_early"].values["steps"] == 400


def test_speed_that_falls_and_time_spent_elsewhere(tmp_path):
    slow = write_run(tmp_path / "slow", samples_per_second=lambda step: 16.0 if step < 700 else 8.0)
    finding = found(slow)["slows"]
    assert finding.values["share"] == pytest.approx(0.5) and "8 amostras por segundo agora, 16" in finding.text("pt")
    assert sorted(comparable_numbers([finding])[-2]) == [8.0, 16.0]  # those of one unit
    assert "waits_for_data" in odd(write_run(tmp_path / "data", seconds_data=lambda step: 5.0))
    assert "validates_long" in found(write_run(tmp_path / "check", seconds_validation=lambda step: 9.0))


def test_memory_is_compared_with_the_recorded_estimate(tmp_path):
    near = write_run(tmp_path / "near", estimated_memory_gib=lambda step: 3.0)
    far = write_run(tmp_path / "far", estimated_memory_gib=lambda step: 1.0)
    assert "memory_as_estimated" in found(near) and "memory_above" in odd(far)


def test_speed_is_compared_with_the_row_that_a_benchmark_recommends(tmp_path):
    chosen = {"train_batch_size": 4, "gradient_checkpointing": False}
    rows = [{"train_batch_size": 1, "gradient_checkpointing": False, "samples_per_second": 17.0}]
    rows += [chosen | {"samples_per_second": 40.0}]
    run = read_run(write_run(tmp_path / "run"))
    slower = judge_benchmark(run, {"recommended": chosen | {"command": "x"}, "rows": rows})
    assert slower.key == "finding.slower_than_measured" and slower.values["times"] == pytest.approx(0.4)
    assert "40" in slower.text("en") and slower.advice_text("pt")
    assert judge_benchmark(run, {"recommended": rows[0], "rows": rows}).key == "finding.as_measured"
    assert judge_benchmark(run, {}) is None


def test_invalid_images_of_the_newest_validation_are_worse_than_earlier_ones(tmp_path):
    name = "validation/invalid_images"
    now = write_run(tmp_path / "now", **{name: lambda step: 2.0 if step > 500 else 0.0})
    before = write_run(tmp_path / "before", **{name: lambda step: 2.0 if step < 500 else 0.0})
    assert found(now)["invalid_images"].values["newest"] == 2 and "invalid_images" not in odd(before)
    assert "invalid_images_before" in found(before)


def test_a_run_is_compared_with_those_beside_it_on_the_same_data_alone(tmp_path):
    run = finish(write_run(tmp_path / "mine", held_out=lambda step: 0.2 + falling(step)))
    assert not any(name.startswith("beside") for name in found(run))
    write_run(tmp_path / "better", held_out=falling, settings={"rank": 16})
    write_run(tmp_path / "elsewhere", held_out=lambda step: falling(step) / 10)
    (tmp_path / "elsewhere/environment.json").write_text(json.dumps({"dataset": "other"}))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/metrics.jsonl").write_text("")
    finding = found(run)["beside_worse"]
    assert finding.values["runs"] == 1 and finding.values["other"] == "better"
    assert finding.values["differ"] == "`rank` 8 (16)"
    assert "beside_better" in found(finish(tmp_path / "better"))


def test_a_run_that_goes_on_is_compared_at_its_own_step_and_not_called_worse(tmp_path):
    run = write_run(tmp_path / "mine", held_out=falling, last=300)
    finish(write_run(tmp_path / "longer", held_out=falling))
    finding = found(run)["beside_so_far"]
    assert finding.values["own"] == finding.values["theirs"] == pytest.approx(falling(300))
    write_run(tmp_path / "longer", held_out=lambda step: falling(step) / 2)
    assert found(run)["beside_so_far"].values["theirs"] == pytest.approx(falling(300) / 2)
    assert odd(run) == set()


def test_an_evaluation_beside_the_run_is_read(tmp_path):
    run = write_run(tmp_path / "run")
    floor = {"value": 15, "low": 14, "high": 16}
    figures = [
        {"id": "frechet/clip", "value": 48, "low": 45, "high": 51, "better": "lower", "floor": floor},
        {"id": "precision/clip", "value": 15, "low": 14, "high": 16, "better": "higher", "floor": floor},
        {"id": "copies/clip", "value": 0.01, "low": 0.0, "high": 0.02, "better": "lower", "floor": None},
        {"id": "kid/clip", "value": None, "refused": "too few"},
    ]
    place = tmp_path / "run_evaluation/metrics.json"
    place.parent.mkdir()
    place.write_text(json.dumps({"figures": figures}))
    assert found(run)["evaluated_worse"].values == {"worse": 1, "figures": 2}
    figures[2]["value"] = 0.2
    place.write_text(json.dumps({"figures": figures}))
    assert found(run)["copies"].values["share"] == 0.2
    for share, advice in ((0.05, None), (0.2, "advice.heard_wrong")):
        figures[2] = {"id": "cer", "value": share, "low": 0.0, "high": 1.0}
        place.write_text(json.dumps({"figures": figures}))
        assert found(run)["heard_wrong"].advice == advice
    place.write_text('{"figures": [1, {"id": 3}], "x"')
    assert not {"copies", "evaluated_worse"} & found(run).keys()


def test_a_voice_is_judged_by_its_mel_loss_and_its_sounds(tmp_path):
    run = write_run(tmp_path / "run", settings=VOICE, val_duration_error=lambda step: 0.1)
    write_tone(run / "validation/step-000500_1.wav", 0.0)  # of an earlier validation
    write_tone(run / "validation/step-001000_1.wav", 0.5)
    write_tone(run / "validation/step-000000_1_real.wav", 0.0)
    assert {"mel_falls", "sounds", "lengths"} <= found(run).keys() and odd(run) == set()
    write_tone(run / "validation/step-001000_2.wav", 3.0)
    assert found(run)["clipped_sounds"].values["clipped"] == 1
    write_tone(run / "validation/step-001000_3.wav", 0.0)
    assert found(run)["silent_sounds"].values == {"sounds": 3, "silent": 1, "clipped": 1}


def test_a_voice_with_wrong_lengths_and_discriminators_that_always_win_is_odd(tmp_path):
    def beaten(step: int) -> float:
        return 0.0 if step < 200 else 3.0 * 0.99 ** (step - 200)

    run = write_run(tmp_path / "run", settings=VOICE, val_duration_error=lambda step: 0.6, loss_discriminators=beaten)
    assert {"lengths_off", "discriminators_win"} <= odd(run)
    fair = write_run(tmp_path / "fair", settings=VOICE, loss_discriminators=lambda step: 2.0)
    assert "discriminators_win" not in odd(fair)


def test_damaged_records_are_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    clean = found(run)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": "x", "loss": 9}\n{"step": 1010, "loss": "NaN", "lr": true}\n{"loss": Infinity}\n{"st')
    assert "metrics.jsonl is damaged: 2 of its lines can't be read; 101 records can." in write_report(run, "en")
    assert odd(run) == {"records_damaged", "beyond_end"}
    assert found(run)["loss_falls"] == clean["loss_falls"]


@pytest.mark.parametrize(
    ("content", "name"), [(b"", "records_empty"), (None, "records_missing"), (bytes(range(256)) * 9, "records_damaged")]
)
def test_a_finished_run_whose_records_are_lost_is_not_called_new(content, name, tmp_path):
    run = finish(write_run(tmp_path / "run", held_out=falling))
    (run / "metrics.jsonl").unlink()
    if content is not None:
        (run / "metrics.jsonl").write_bytes(content)
    names = found(run)
    assert odd(run) == {name} and "ended" in names and not {"not_begun", "no_held_out"} & names.keys()
    (run / "summary.json").unlink()
    (run / "checkpoint-1000").mkdir()
    assert name in odd(run) and "not_begun" not in found(run)


def test_more_steps_than_the_settings_ask_for_are_odd(tmp_path):
    run = write_run(tmp_path / "run", settings={"max_train_steps": 40})
    assert "beyond_end" in odd(run) and "%" not in found(run)["beyond_end"].text("pt")


def test_settings_from_the_environment_and_losses_of_zero_break_no_rule(tmp_path):
    unknown = dict.fromkeys(("max_train_steps", "lr_warmup_steps", "max_grad_norm"), "${oc.env:STEPS}")
    assert "open_end" in found(write_run(tmp_path / "run", settings=unknown))
    zero = write_run(tmp_path / "zero", lambda step: 0.0, held_out=lambda step: 0.0, grad_norm=lambda step: 0.0)
    assert "## What happened" in write_report(zero, "en")


def test_a_sound_that_is_not_whole_yet_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", settings=VOICE)
    write_tone(run / "validation/step-001000_1.wav", 0.5)
    (run / "validation/step-001000_2.wav").write_bytes(b"RIFF")
    assert found(run)["sounds"].values["sounds"] == 1


def test_advice_names_only_flags_that_the_trainer_has(tmp_path):
    voice = found(write_run(tmp_path / "voice", held_out=over_fitting, settings=VOICE))["over_fits"]
    assert "--rank" not in voice.advice_text("en") and "best/" in voice.advice_text("pt")


def test_every_finding_and_advice_can_be_told_in_both_languages(tmp_path):
    run = write_run(tmp_path / "run", held_out=over_fitting, settings={"lr_warmup_steps": 1000})
    reports = {language: write_report(run, language) for language in ("en", "pt")}
    assert "## What is odd" in reports["en"] and "## O que chama a atenção" in reports["pt"]
    assert "step 500 (0.1)" in reports["en"] and "passo 500 (0,1)" in reports["pt"]


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"--run {tmp_path}: has no config.yaml; give the folder of a run"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no such folder; give"):
        read_run(tmp_path / "nope")
    (tmp_path / "config.yaml").write_text("[")
    with pytest.raises(UserError, match="config.yaml: is a file; give"):
        read_run(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="config.yaml is damaged .*; put back a whole copy of that file"):
        read_run(tmp_path)
