"""train_classifier.py, on drawn shoes: what it promises about arms, steps, seeds, resuming and verdicts."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_classifier
from demo.shoes import draw_shoe
from evaluation import classifier_scores, labelled
from evaluation.report.evaluation_page import write_report
from utils import runs
from utils.cli import UserError

COLOURS = ("Red", "Blue", "Green", "White")


def draw_set(folder: Path, first: int, count: int, colours=COLOURS) -> Path:
    """An imagefolder of shoes whose `colour` is known."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(first, first + count):
        colour = colours[i % len(colours)]
        draw_shoe("Boots", colour, str(i), (64, 64)).save(folder / f"{i}.png")
        season = "Summer" if i % 10 else None
        lines.append({"file_name": f"{i}.png", "text": f"{colour} boots", "colour": colour, "season": season})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("utility")
    draw_set(root / "real" / "train", 0, 40)
    draw_set(root / "real" / "test", 100, 28)
    shutil.copytree(draw_set(root / "synthetic", 200, 52), root / "wrong")
    path = root / "synthetic" / "metadata.jsonl"  # in lower case, as a prompt has it
    path.write_text(path.read_text().replace('"colour": "Red"', '"colour": "red"'))
    path = root / "wrong" / "metadata.jsonl"  # every label is another's
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for one in lines:
        one["colour"] = COLOURS[(COLOURS.index(one["colour"]) + 1) % 4]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return root


def run(sets: Path, out: Path, *more, synthetic=("synthetic",), resolution=("--resolution", 32)) -> dict:
    """The user's command with short trainings, here; its results.json."""
    words = ["--real", sets / "real", "--synthetic", *(sets / one for one in synthetic), "--target", "baseColour"]
    words += [*resolution, *"--max_train_steps 12 --train_batch_size 16 --num_workers 1".split()]
    words += "--real_shares 0.25 1 --synthetic_ratios 1".split()
    locks, lock = [], runs.lock_folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "lock_folder", lambda *args: locks.append(lock(*args)))
        try:
            words = [str(word) for word in [*words, "--output_dir", out, *more]]
            assert train_classifier.main(train_classifier.parse_args(words)) == 0
        finally:
            for one in locks:  # as the end of a process would
                os.close(one)
    return json.loads((out / "results.json").read_text()) if (out / "results.json").exists() else {}


@pytest.fixture(scope="module")
def finished(sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "utility"
    return out, run(sets, out, synthetic=("synthetic", "wrong"))


def arm(results: dict, name: str, share: float) -> dict:
    return next(one for one in results["arms"] if (one["name"], one["real_share"]) == (name, share))


def verdict(results: dict, first: str, second: str, share: float, metric="accuracy") -> str:
    found = [one for one in results["comparisons"] if (one["first"], one["second"]) == (first, second)]
    return next(one["verdict"] for one in found if one["real_share"] == share and one["metric"] == metric)


def test_it_learns_and_good_labels_are_better_than_wrong_ones(finished):
    results = finished[1]
    assert arm(results, "real", 1.0)["accuracy_interval"][0] > 0.8  # chance: 0.25
    assert arm(results, "synthetic", 0.0)["accuracy_interval"][0] > 0.8
    assert arm(results, "wrong", 0.0)["accuracy_interval"][0] < 0.2
    assert verdict(results, "real", "real + wrong", 1.0) == "worse"
    assert verdict(results, "real + synthetic", "real + wrong", 1.0, "macro_f1") == "worse"  # the sets, compared
    assert any("worse with real + wrong" in line and "Holm-adjusted p" in line for line in results["verdict"])


def test_a_classifier_below_the_majority_class_has_learnt_nothing_and_gets_no_verdict(finished, capsys):
    results = finished[1]
    assert results["majority"]["accuracy"] == 0.25 and results["majority"]["macro_f1"] == pytest.approx(0.1)
    assert not arm(results, "wrong", 0.0)["learnt"] and arm(results, "real", 1.0)["learnt"]
    assert verdict(results, "real", "wrong", 1.0) == "no verdict: nothing learnt"
    said = "wrong alone against 100% of the real images: no verdict: nothing learnt"
    assert any(line.startswith(said) for line in results["verdict"])
    train_classifier.print_results(results)
    said = capsys.readouterr().out
    assert "always the most frequent class" in said and "0.250" in said and "  nothing learnt\n" in said


def test_all_arms_make_equal_steps_with_the_same_seeds_and_every_figure_has_its_interval(finished):
    out, results = finished
    assert {(step,) for one in results["arms"] for step in one["steps"]} == {(12,)}
    assert {tuple(one["seeds"]) for one in results["arms"]} == {(0, 1, 2, 3, 4)}
    assert arm(results, "synthetic", 0.0)["n_synthetic"] == 52 and not results["left_out"]
    for one in results["arms"]:
        for metric in ("accuracy", "macro_f1"):
            value, low, high = one[f"{metric}_interval"]
            assert 0 <= low <= value <= high <= 1 and low < high
            assert len(one[metric]) == 5 and value == pytest.approx(np.mean(one[metric]))
    assert results["classes"] == sorted(COLOURS) and results["made"]["command"]
    assert (out / "curves.png").stat().st_size > 5000


def test_the_report_of_an_evaluation_shows_its_results(finished, tmp_path):
    out, results = finished
    (tmp_path / "metrics.json").write_text(json.dumps({"figures": [], "utility": str(out)}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    for one in results["comparisons"]:
        assert f"{one['second']}, against {one['first']}" in page
    assert "Always the most frequent class" in page and "nothing learnt" in page and "Holm-adjusted p" in page


def test_the_same_command_trains_nothing_more_and_more_seeds_only_those(sets, tmp_path, capsys):
    run(sets, tmp_path, "--seeds", "2", "--real_shares", "1")
    lines = (tmp_path / "results.jsonl").read_bytes()
    run(sets, tmp_path, "--seeds", "2", "--real_shares", "1")
    assert "all trainings were done before" in capsys.readouterr().out
    assert (tmp_path / "results.jsonl").read_bytes() == lines
    results = run(sets, tmp_path, "--seeds", "3", "--real_shares", "1")
    assert (tmp_path / "results.jsonl").read_bytes().startswith(lines)
    assert {tuple(one["seeds"]) for one in results["arms"]} == {(0, 1, 2)}


def test_killed_and_started_again_it_gives_the_same_results(finished, sets, tmp_path):
    """What a kill leaves: some whole lines, and half of one."""
    out, results = finished
    shutil.copytree(out, tmp_path / "utility")
    lines = (out / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "utility" / "results.jsonl").write_bytes(b"".join(lines[:-3]) + lines[-3][:40])
    (tmp_path / "utility" / "results.json").unlink()
    again = run(sets, tmp_path / "utility", synthetic=("synthetic", "wrong"))
    assert again["arms"] == results["arms"] and again["comparisons"] == results["comparisons"]
    assert again["verdict"] == results["verdict"]


def test_other_settings_or_other_images_in_the_same_folder_are_an_error(finished, sets, tmp_path):
    out = finished[0]
    with pytest.raises(UserError, match="max_train_steps was 12, now 13"):
        run(sets, out, "--max_train_steps", "13", synthetic=("synthetic", "wrong"))
    shutil.copytree(sets, tmp_path / "sets")
    run(tmp_path / "sets", tmp_path / "out", "--seeds", "2", "--real_shares", "1", "--max_train_steps", "1")
    draw_shoe("Heels", "Red", "other", (64, 64)).save(tmp_path / "sets" / "synthetic" / "200.png")
    with pytest.raises(UserError, match="what --synthetic gives has changed"):
        run(tmp_path / "sets", tmp_path / "out", "--seeds", "2", "--real_shares", "1", "--max_train_steps", "1")


def test_copies_of_the_real_images_show_no_difference(sets, tmp_path):
    shutil.copytree(sets / "real/train", tmp_path / "copies")
    for path in (tmp_path / "copies").glob("*.png"):
        Image.open(path).save(path, compress_level=1)  # the same pixels in another file
    copies = str(tmp_path / "copies")
    results = run(sets, tmp_path / "out", "--real_shares", "1", synthetic=(copies,))
    assert verdict(results, "real", "real + synthetic", 1.0) == "no difference shown"
    assert results["verdict"][0] == "with 100% of the real images: no difference shown"
    assert any("real + 1x synthetic: is real + synthetic" in line for line in results["left_out"])


@pytest.mark.parametrize("split", ["test", "train"])
def test_real_images_among_the_synthetic_are_refused_by_content(sets, tmp_path, split):
    folder = shutil.copytree(sets / "synthetic", tmp_path / "leaking")
    shutil.copy(next((sets / "real" / split).glob("*.png")), folder / "200.png")
    with pytest.raises(UserError, match=f"--synthetic .*leaking: has 1 image of .*real/{split} .*must be new"):
        run(sets, tmp_path / "out", "--dry_run", synthetic=(str(folder),))


def test_classes_that_a_synthetic_set_lacks_are_listed_first(sets, tmp_path):
    draw_set(tmp_path / "few", 300, 24, ("Red", "Blue"))
    results = run(sets, tmp_path / "out", "--max_train_steps", "1", "--seeds", "2", synthetic=(str(tmp_path / "few"),))
    said = "synthetic has no image of 2 of 4 classes, which are 14 of 28 test images: Green (7), White (7)"
    assert results["verdict"][0] == results["lacking"][0] == said
    (tmp_path / "metrics.json").write_text(json.dumps({"figures": [], "utility": str(tmp_path / "out")}))
    page = write_report(tmp_path).read_text(encoding="utf-8").partition('<section id="utility">')[2]
    assert 0 < page.index(f"S{said[1:]}") < page.index('class="chart"') < page.index("<table")


def test_a_dry_run_says_the_plan_and_leaves_no_folder(sets, tmp_path, capsys):
    run(sets, tmp_path / "out", "--dry_run", "--synthetic_ratios", "1", "4")
    said = capsys.readouterr().out
    assert "8 arms x 5 seeds = 40 trainings of 12 steps" in said and not (tmp_path / "out").exists()
    assert "left out with 100% of the real images: real + 4x synthetic: it needs 160 images, the set has 52" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--target", "size"], r"--target size: no image of --real .*its columns are: colour, season"),
        (["--target", "season", "--min_per_class", "1"], "1 value has .*two are needed"),
        (["--min_per_class", "30"], "0 values have --min_per_class 30"),
        (["--real", "nowhere"], "--real nowhere: the split `train` is missing"),
        (["--synthetic", "nowhere"], "--synthetic nowhere: no such folder"),
        (["--model", "finetune", "--pretrained_model_name_or_path", "no"], "_path no: no such folder, and not a hub"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(sets, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run(sets, tmp_path / "out", *more)


def test_damaged_images_and_labels_of_another_spelling_are_errors(sets, tmp_path):
    shutil.copytree(sets / "synthetic", tmp_path / "synthetic")
    (tmp_path / "synthetic" / "205.png").write_bytes((tmp_path / "synthetic" / "205.png").read_bytes()[:300])
    with pytest.raises(UserError, match=r"205\.png: truncated"):
        run(sets, tmp_path / "out", "--synthetic", str(tmp_path / "synthetic"))
    draw_set(tmp_path / "strange", 0, 4, ("Purple", "Pink"))
    with pytest.raises(UserError, match="none of its labels is a class of the real set"):
        run(sets, tmp_path / "out", "--synthetic", str(tmp_path / "strange"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--synthetic"):
        run(sets, tmp_path / "out", "--synthetic", str(tmp_path / "empty"))


def test_the_probe_and_a_transformers_backbone_learn_too(sets, tmp_path):
    from transformers import (
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessorPil,
    )

    short = ["--seeds", "2", "--real_shares", "1", "--synthetic_ratios", "--max_train_steps", "40"]
    args = ["--model", "probe", "--encoder", "demo", "--learning_rate", "0.01"]
    results = run(sets, tmp_path / "probe", *args, *short, resolution=())
    assert arm(results, "real", 1.0)["accuracy_interval"][0] > 0.6
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")
    args = [
        "--model",
        "finetune",
        "--pretrained_model_name_or_path",
        str(tmp_path / "resnet"),
        "--learning_rate",
        "3e-3",
    ]
    results = run(sets, tmp_path / "finetune", *args, *short, resolution=())
    assert arm(results, "real", 1.0)["accuracy_interval"][0] > 0.6
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = ViTConfig(**sizes, image_size=32, patch_size=8)  # which sees one size only
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    args = ["--model", "finetune", "--pretrained_model_name_or_path", str(tmp_path / "vit"), "--resolution", "48"]
    with pytest.raises(UserError, match="--resolution 48: .*does not take images of that side"):
        run(sets, tmp_path / "other", *args, *short)


def test_subsets_are_nested_stratified_and_seeded():
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    parts = [labelled.real_part(labels, share, seed=3) for share in (0.1, 0.25, 1.0)]
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[5, 3, 1], [13, 8, 1], [50, 30, 4]]
    assert set(parts[0]) < set(parts[1]) < set(parts[2])
    assert set(labelled.real_part(labels, 0.1, seed=4)) != set(parts[0])
    fewer, more = (labelled.synthetic_part(labels, n, seed=3) for n in (20, 42))
    assert len(fewer) == 20 and set(fewer) < set(more) and len(set(more)) == 42
    assert np.abs(np.bincount(labels[more]) - [25, 15, 2]).max() <= 1


def test_scores_are_those_of_scikit_learns_definitions():
    truth, predicted = np.array([0, 0, 1, 1, 2]), np.array([[0, 1, 1, 1, 0]])
    got = classifier_scores.score(truth, predicted, np.ones((1, 5)))
    assert got["accuracy"][0, 0] == pytest.approx(0.6)
    assert got["macro_f1"][0, 0] == pytest.approx((0.5 + 0.8 + 0) / 3)
    assert classifier_scores.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_intervals_cover_the_truth_over_seeds_and_images():
    """Classifiers of known mean accuracy 0.8: some images are hard for all, some seeds are luckier."""
    rng, covered, widths = np.random.default_rng(0), 0, []
    for trial in range(200):
        chance = 0.8 + 0.15 * rng.choice([-1, 1], 150) + 0.02 * rng.standard_normal((5, 1))
        wrong = rng.random((5, 150)) > chance
        weights = classifier_scores.resample_weights(150, 200, trial)
        values = classifier_scores.score(np.zeros(150, int), wrong.astype(int), weights)["accuracy"]
        _, low, high = classifier_scores.interval(values)
        covered, widths = covered + (low <= 0.8 <= high), [*widths, high - low]
    assert covered >= 186 and np.mean(widths) < 0.15


def compare_arms(first: dict, second: dict) -> list[dict]:
    one, other = (labelled.Arm(name, 1.0, None, None, 100, 0) for name in ("one", "other"))
    majority = {"accuracy": 0.0, "macro_f1": 0.0}
    return classifier_scores.compare([(one, other)], {one: first, other: second}, majority)


@pytest.mark.parametrize("seeds, differences", [(2, [0.3, 0.31]), (5, [0.3] * 5), (5, [0.0] * 5)])
def test_few_seeds_or_equal_differences_give_no_p_and_no_verdict(seeds, differences):
    first = {metric: np.full((50, seeds), 0.5) for metric in classifier_scores.METRICS}
    second = {metric: values + np.array(differences) for metric, values in first.items()}
    for line in compare_arms(first, second):
        assert line["p"] is None and line["p_holm"] is None and line["verdict"] == "no difference shown"
    assert classifier_scores.holm([0.01, None, 0.03]) == pytest.approx([0.02, None, 0.03])


def test_no_difference_is_not_called_one_but_a_large_one_is():
    rng, called = np.random.default_rng(1), 0
    weights = classifier_scores.resample_weights(100, 200, 0)
    for _ in range(60):
        values = [
            classifier_scores.score(np.zeros(100, int), rng.integers(0, 10, (5, 100)) // 9, weights) for _ in "ab"
        ]
        called += any(one["verdict"] != "no difference shown" for one in compare_arms(*values))
    assert called <= 5
    better = classifier_scores.score(np.zeros(100, int), rng.integers(0, 50, (5, 100)) // 49, weights)
    worse = classifier_scores.score(np.zeros(100, int), rng.integers(0, 3, (5, 100)) // 2, weights)
    assert {one["verdict"] for one in compare_arms(worse, better)} == {"better"}


def test_an_interval_of_two_seeds_stays_within_what_a_difference_can_be():
    weights = classifier_scores.resample_weights(40, 200, 0)
    bad, mixed = np.ones((2, 40), int), np.array([[0] * 40, [1] * 40])
    one, other = (classifier_scores.score(np.zeros(40, int), seen, weights) for seen in (bad, mixed))
    assert all(-1 <= line["low"] < line["high"] <= 1 for line in compare_arms(one, other))


def test_a_column_of_captions_is_not_listed_whole():
    labels = [f"a photo of shoe {i}" for i in range(500)]
    _, lines = labelled.choose_classes(labels, labels[:100], 5)
    assert len(lines[0]) < 400 and "and 495 others" in lines[0]
