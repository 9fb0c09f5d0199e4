"""evaluate.py from end to end, on drawn shoes with the demo's encoder: good sets, and sets that are bad in one way."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors import safe_open

import evaluate
from demo.shoes import COLOURS, draw_shoe
from evaluation import adherence, image_measures, judge, subject, targets
from evaluation.image_sets import read_images
from evaluation.report import summary
from evaluation.report.comparison_page import compare_figures
from tests.toy_faces import draw_portrait, write_detector, write_embedder
from utils.cli import UserError

ROOT = Path(__file__).resolve().parent.parent
NAMES = list(COLOURS)


def draw_set(
    folder: Path, count: int, seed: str, colours=NAMES, kinds=("Boots", "Sandals"), wrong: int = 0, own: bool = False
) -> Path:
    """Images with texts and attributes; the texts are those of the image `wrong` places on.

    With `own` names and values of attributes are those of a user's template, baseColour=red.
    """
    folder.mkdir()
    asked = [(kinds[i % len(kinds)], colours[i // len(kinds) % len(colours)]) for i in range(count)]
    rows = []
    for i, (kind, colour) in enumerate(asked):
        draw_shoe(kind, colour, f"{seed}{i}", (64, 64)).save(folder / f"{i:03d}.png")
        kind, colour = asked[(i + wrong) % count]
        text = f"a photo of {colour.lower()} {kind.lower()}"
        said = {"article": kind, "colour": colour}
        if own:
            said = {"articleType": kind.lower(), "baseColour": colour.lower()}
        rows.append({"file_name": f"{i:03d}.png", "text": text, **said})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    return {
        "root": root,
        "real": draw_set(root / "real", 104, "r"),
        "train": draw_set(root / "train", 48, "t"),
        "good": draw_set(root / "good", 104, "g", own=True),
    }


def run(sets: dict, generated: Path, out: Path, *more) -> tuple[int, dict]:
    """The command's exit code, and {figure: entry} besides the rest of metrics.json."""
    words = f"--generated {generated} --output_dir {out} --encoders demo --resamples 100"
    words += f" --real {sets['real']}" if sets["real"] else ""
    try:
        code = evaluate.main(evaluate.parse_args([*words.split(), "--num_workers", "2", *map(str, more)]))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    metrics = json.loads((out / "metrics.json").read_text())
    return code, metrics | {one["id"]: one for one in metrics["figures"]}


def check_predicted(found: dict, given: set[str], columns: tuple = ()) -> None:
    """That a target is held against the figures that come, and against what they can be."""
    ids = [one["id"] for one in found["figures"]]
    assert sorted(ids) == sorted(judge.known_figures(given, ["demo"], columns))
    for one in found["figures"]:
        low, high = targets.figure_range(one["id"])
        assert (one["unit"] == "%") == ((low, high) == targets.SHARE), one["id"]
        assert one["value"] is None or low <= one["low"] and one["high"] <= high, one["id"]


@pytest.fixture(scope="module")
def good(sets):
    return run(sets, sets["good"], sets["root"] / "evaluation", "--train", sets["train"])[1]


def test_every_figure_has_its_n_and_an_interval_around_it(good, sets):
    assert len(good["figures"]) > 18 and not [one["id"] for one in good["figures"] if one.get("refused")]
    for one in good["figures"]:
        assert one["low"] <= one["value"] <= one["high"] and one["n"] >= 100 and one["how"] and one["floor"], one["id"]
    of = good["sets"]["generated"]
    assert (of["path"], of["n"], of["unreadable"]) == (str(sets["good"]), 104, 0)
    out = sets["root"] / "evaluation"
    for one in good["pictures"]["sample"] + good["pictures"]["worst"] + good["pictures"]["copies"]:
        assert (out / one["file"]).is_file()
    assert (out / "report.html").stat().st_size > 10_000
    assert {row["value"] for row in good["shares"]["colour"]} == set(NAMES)
    assert good["shares"]["colour"][0]["by"] == "clip" and good["shares"]["colour"][0]["plan"]
    check_predicted(good, {"real", "train"}, good["shares"])


def test_a_good_set_is_found_good(good):
    assert good["frechet/demo"]["at_floor_n"] < 3 * good["frechet/demo"]["floor"]["value"]
    assert good["precision/demo"]["value"] > 0.8 and good["colour_accuracy/demo"]["value"] > 0.9
    assert good["near_copies"]["value"] < 0.05 and good["invalid"]["value"] == 0 == good["background"]["value"]
    assert good["cut_off"]["value"] == good["too_small"]["value"] == 0 and good["wrong_colour"]["value"] < 0.2


def test_the_same_again_uses_the_cache_and_replaces_the_figures(good, sets, monkeypatch):
    monkeypatch.setattr(image_measures, "measure", lambda path: pytest.fail("measured again"))
    code, again = run(sets, sets["good"], sets["root"] / "evaluation", "--train", sets["train"])
    assert code == 0 and again["figures"] == good["figures"] and again["made"] != good["made"]


@pytest.mark.very_slow
def test_two_processes_share_the_encoding_and_find_the_same(good, sets, tmp_path):
    launch = "-m accelerate.commands.launch --config_file accelerate_configs/cpu_2proc.yaml --main_process_port 0"
    words = f"--real {sets['real']} --train {sets['train']} --generated {sets['good']} --output_dir {tmp_path / 'out'}"
    words = f"{launch} evaluate.py {words} --encoders demo --resamples 100 --batch_size 16"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *words.split()], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    for one, expected in zip(found["figures"], good["figures"], strict=True):
        ends = [[each[key] for key in ("value", "low", "high")] for each in (one, expected)]
        assert one["id"] == expected["id"] and ends[0] == pytest.approx(ends[1], rel=1e-4, abs=1e-4), one["id"]
    assert found["pictures"]["copies"][0]["distance"] == pytest.approx(
        good["pictures"]["copies"][0]["distance"], abs=1e-4
    )
    for folder in (tmp_path / "out/features").iterdir():  # of each set half by each process, and none of it twice
        rows = [safe_open(path, "np").get_slice("rows").get_shape()[0] for path in folder.iterdir()]
        copies = [64, 64, 64] if folder.name.startswith("demo") else []  # for the check of the encoder
        assert sorted(rows) == [24, 24, 52, 52, 52, 52, *copies], folder.name
    assert done.stdout.count("# settings") == 1


def test_another_set_does_not_replace_an_evaluation(good, sets):
    with pytest.raises(UserError, match="contains an evaluation of --generated .*--overwrite"):
        run(sets, sets["train"], sets["root"] / "evaluation")


@pytest.mark.parametrize("name, content", [("report.html", "mine"), ("metrics.json", '{"mine": 1}')])
def test_files_of_other_programs_are_moved_aside_only_with_overwrite(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} was not written by evaluate.py.*--overwrite, which moves it to"):
        evaluate.check_output(tmp_path, {}, overwrite=False)
    evaluate.check_output(tmp_path, {}, overwrite=True)
    os.close(evaluate.open_results(tmp_path, evaluate.RESULTS))
    assert next(tmp_path.glob(f"{name}.replaced-2*")).read_text() == content and not (tmp_path / name).exists()


def test_a_second_evaluation_into_one_folder_waits_for_its_turn(sets, tmp_path):
    lock = evaluate.open_results(tmp_path / "out", evaluate.RESULTS)
    with pytest.raises(UserError, match="another process is writing it"):
        run(sets, sets["good"], tmp_path / "out")
    os.close(lock)


def test_copies_are_caught(sets, tmp_path):
    """A third of the set are training images: some as they are, some mirrored and reduced to another format."""
    folder = shutil.copytree(sets["good"], tmp_path / "copying")
    for i in range(0, 104, 3):
        image = Image.open(sets["train"] / f"{i % 48:03d}.png")
        if i % 2:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image.save(folder / f"{i:03d}.png")
    found = run(sets, folder, tmp_path / "out", "--train", sets["train"])[1]
    assert found["near_copies"]["low"] > 0.2 and found["near_copies"]["floor"]["value"] < 0.05
    assert found["copies/demo"]["low"] > found["copies/demo"]["floor"]["high"]
    first = found["pictures"]["copies"][0]
    assert first["suspected"] and first["distance"] < first["limit"] and (tmp_path / "out" / first["nearest"]).is_file()
    assert {one["by"] for one in found["pictures"]["copies"]} == {"demo", "look"}


def test_a_set_of_one_colour_is_not_diverse(good, sets, tmp_path):
    one = draw_set(tmp_path / "red", 104, "c", colours=["Red"], kinds=["Boots"])
    found = run(sets, one, tmp_path / "out")[1]
    assert found["vendi/demo"]["high"] < found["vendi/demo"]["floor"]["low"] < good["vendi/demo"]["high"]
    assert found["mean_distance/demo"]["high"] < good["mean_distance/demo"]["low"]
    assert found["recall/demo"]["high"] < good["recall/demo"]["low"]
    shares = {row["value"]: row["generated"]["share"] for row in found["shares"]["colour"]}
    assert shares["Red"] > 0.9 and shares["Blue"] < 0.05


def test_wrong_captions_are_caught_by_adherence(good, sets, tmp_path):
    wrong = draw_set(tmp_path / "wrong", 104, "g", wrong=9)
    found = run(sets, wrong, tmp_path / "out", "--targets", "clip_score>0.7", "invalid<0.05", "--fail_under_targets")
    code, found = found
    assert found["clip_score/demo"]["high"] < good["clip_score/demo"]["low"]
    assert found["colour_accuracy/demo"]["high"] < 0.3 and found["wrong_colour"]["low"] > good["wrong_colour"]["high"]
    assert [one["met"] for one in found["targets"]] == [False, True] and code == 3
    assert abs(found["frechet/demo"]["value"] - good["frechet/demo"]["value"]) < 1e-6  # the images are the same


def test_bad_images_are_counted_by_what_is_wrong(sets, tmp_path):
    folder = shutil.copytree(sets["good"], tmp_path / "bad")
    shoe = draw_shoe("Boots", "Red", "x", (128, 128))
    room = Image.effect_noise((16, 16), 90).convert("RGB").resize((128, 128), Image.Resampling.BOX)
    (folder / "000.png").write_bytes(b"no image")
    Image.new("RGB", (64, 64)).save(folder / "001.png")
    room.paste(shoe.crop((20, 40, 110, 100)), (20, 40))
    room.save(folder / "002.png")
    cut = Image.new("RGB", (128, 128), "white")
    cut.paste(shoe, (40, 0))
    cut.save(folder / "003.png")
    small = Image.new("RGB", (128, 128), "white")
    small.paste(shoe.resize((40, 40)), (44, 44))
    small.save(folder / "004.png")
    draw_shoe("Boots", "Blue", "y", (64, 64)).save(folder / "010.png")
    found = run(sets, folder, tmp_path / "out")[1]
    failed = {one["reason"]: one for one in found["pictures"]["failures"]}
    assert failed["Invalid images"]["count"] == 2 and found["sets"]["generated"]["unreadable"] == 1
    wanted = {"Background not clean": "002", "Object cut off": "003", "Object too small": "004"}
    for reason, name in wanted.items():
        assert [Path(one).stem for one in failed[reason]["examples"]] == [name], reason
    assert any(one.endswith("010.png") for one in failed["Not the colour asked for"]["examples"])


def test_too_few_images_are_refused_in_plain_words_and_targets_on_them_before_the_work(sets, tmp_path, capsys):
    few = draw_set(tmp_path / "few", 24, "f")
    with pytest.raises(UserError, match="frechet/demo needs at least 100 generated images, found 24; add images, or"):
        run(sets, few, tmp_path / "out", "--targets", "frechet<50")
    found = run(sets, few, tmp_path / "out", "--train", sets["train"])[1]
    refused = {one["id"]: one["refused"] for one in found["figures"] if one["value"] is None}
    assert refused["frechet/demo"] == "needs at least 100 generated images, found 24"
    assert refused["precision/demo"] == "needs at least 50 generated images, found 24" and found["vendi/demo"]["value"]
    assert "not computed: KID · demo, CMMD · demo, Precision · demo" in capsys.readouterr().out
    records = {name: read_images(folder, "") for name, folder in {**sets, "generated": few}.items() if name != "root"}
    predicted = judge.predict_refusals(records, [one["id"] for one in found["figures"]])
    assert predicted == refused  # what is said before the work is what would come of it


def test_figures_of_the_generated_set_alone_need_no_real_images(good, sets, tmp_path):
    """Nor enough of them: the test split of a small catalogue holds a handful."""
    alone = run({**sets, "real": None}, sets["good"], tmp_path / "alone")[1]
    ids = ["vendi/demo", "mean_distance/demo", "clip_score/demo", "clip_score_lowest/demo", "invalid"]
    assert [one["id"] for one in alone["figures"]] == ids
    check_predicted(alone, set())
    few = draw_set(tmp_path / "few", 3, "q")
    small = run({**sets, "real": few}, sets["good"], tmp_path / "small")[1]
    for one in ids[:3]:
        assert alone[one]["value"] == small[one]["value"] == pytest.approx(good[one]["value"], rel=1e-6), one
    assert small["near_duplicates/demo"]["refused"] == "needs at least 20 real images, found 3"
    text = (tmp_path / "alone/report.html").read_text()
    assert "No verdict: there is no figure of quality." in text and "No encoder was checked on real images" in text


def test_an_encoder_counts_only_where_it_understands_the_real_images(good, sets, tmp_path):
    """The demo's knows drawn shoes; here it is given other images, which a set may resemble or not."""
    told = good["checks"]["demo"]["told"]
    assert set(told) == {"blurred", "noised", "shuffled"} and sum(told.values()) / 3 > 0.85
    assert good["checks"]["demo"]["problem"] == "" and good["checks"]["demo"]["labels"]["colour"]["share"] > 0.8
    assert len(good["pictures"]["real"]) == judge.SHOWN
    (tmp_path / "clouds").mkdir()
    for i in range(24):
        colours = np.random.default_rng(i).integers(0, 255, (6, 6, 3), np.uint8)
        Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / f"clouds/{i}.png")
    others = {**sets, "real": tmp_path / "clouds"}
    code, found = run(others, sets["good"], tmp_path / "out", "--targets", "clip_score>0.9")
    assert "of the real images from spoilt copies of them" in found["checks"]["demo"]["problem"]
    assert {one["encoder"] for one in found["figures"]} == {None} and code == 0
    assert found["targets"][0]["refused"] == "demo failed its check"
    text = (tmp_path / "out/report.html").read_text()
    assert "No verdict on the whole" in text and "use --encoders clip dinov2" in text


def test_without_an_encoder_what_needs_none_is_measured(sets, tmp_path):
    code, found = run(sets, sets["good"], tmp_path / "out", "--train", sets["train"], "--encoders", "none")
    assert code == 0 and found["near_copies"]["n"] == 104 and "frechet/demo" not in found
    assert found["shares"]["colour"][0]["by"] == "labels"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--targets", "beauty>3"], "no figure is called `beauty`"),
        (["--targets", "fid<50"], "it needs --inception"),
        (
            ["--targets", "article_colour>3"],
            "there are frechet/demo, kid/demo, cmmd/demo, .*article_accuracy/demo, colour_accuracy/demo",
        ),
        (["--targets", "copies<0.1"], "no figure is called `copies` with these flags"),
        (["--targets", "clip_score/dinov2>0"], "no figure is called `clip_score/dinov2`"),
        (["--targets", "invalid<200%"], r"invalid is 0 to 1 \(0% to 100%\)"),
        (["--targets", "invalid<2"], "invalid is 0 to 1"),
        (["--targets", "recall>1"], "recall/demo is 0 to 1"),
        (["--targets", "frechet<-5"], "frechet/demo is 0 or more"),
        (["--targets", "kid<5%"], "kid/demo is not a share"),
        (["--targets", "frechet<50%"], "frechet/demo is not a share"),
        (["--targets", "clip_score>25"], "clip_score/demo is -1 to 1"),
        (["--targets", "frechet=50"], "expected a figure and its limit"),
        (["--targets", "fid"], "expected a figure and its limit"),
        (["--encoders", "vgg"], "no such encoder"),
        (["--encoders", "inception=a", "--inception", "b"], "inception=b: inception twice; give it once"),
        (["--attributes", "heel"], "no image has this attribute; give one of: article, colour"),
        (["--utility", "nowhere"], "results.json is missing"),
        (["--ratings", "nowhere.json"], "--ratings nowhere.json: no such file"),
    ],
)
def test_mistakes_are_errors_before_the_work(sets, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        run(sets, sets["good"], tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_evaluation_is_named_with_its_flag(tmp_path):
    words = ["--compare", "nowhere", "neither", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="^--compare nowhere/metrics.json: No such file"):
        evaluate.main(evaluate.parse_args(words))


def test_a_dry_run_of_a_study_or_a_comparison_leaves_no_folder(good, sets, tmp_path, capsys):
    before, copy = sets["root"] / "evaluation", shutil.copytree(sets["root"] / "evaluation", tmp_path / "copy")
    words = f"--real {sets['real']} --generated {sets['good']} --human_study 4", f"--compare {before} {copy}"
    for task in words:
        assert evaluate.main(evaluate.parse_args(f"{task} --output_dir {tmp_path / 'out'} --dry_run".split())) == 0
    assert "104 images, 104 with a text" in capsys.readouterr().out and not (tmp_path / "out").exists()


EVERY_FLAG = """
    --real r|--train t|--generated g|--identity_reference i|--face_detector d|--face_embedder e|--instance_data_dir p
    |--prior_before b|--prior_after a|--encoders demo|--inception f|--inception_sha256 0|--attributes colour
    |--resamples 9|--seed 9|--targets fid<5|--fail_under_targets|--utility u|--human_study 4|--ratings c|--compare x y
    |--batch_size 9|--num_workers 99|--output_dir o|--overwrite
"""
EVERY_FLAG = [words.strip() for words in EVERY_FLAG.split("|")]


def refusal(words: str, capsys) -> str:
    with pytest.raises(SystemExit):
        evaluate.parse_args(words.split())
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "task, useful",
    [
        ("--compare x y --output_dir o", ["--overwrite", "--dry_run"]),
        ("--human_study 4 --real r --generated g --output_dir o", ["--seed 9", "--overwrite", "--dry_run"]),
    ],
)
def test_what_means_nothing_to_a_task_that_stands_alone_is_refused(capsys, task, useful):
    name = task.split()[0]
    evaluate.parse_args([*task.split(), *" ".join(useful).split()])
    for words in EVERY_FLAG:
        flag = words.split()[0]
        if flag not in task.split() and words not in useful and flag != "--compare":
            said = refusal(f"{task} {words}", capsys)
            assert f"error: {flag}" in said
            assert f"does nothing without an evaluation, which {name} does not make" in said


def test_every_flag_is_among_those_that_are_tried():
    there = {action.option_strings[-1] for action in evaluate.make_parser()._actions}
    common = {"--help", "--config", "--dry_run", "--verbose", "--debug"}
    assert there == {words.split()[0] for words in EVERY_FLAG} | common


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "--human_study 4 --compare x y",
            "--human_study 4: does nothing without an evaluation, which --compare does not make",
        ),
        ("--real r --fail_under_targets", "--fail_under_targets: does nothing without --targets"),
        ("--real r --inception_sha256 0", "--inception_sha256 0: does nothing without --inception"),
        ("--real r --face_embedder sface", "--face_embedder sface: does nothing without --identity_reference"),
        ("--instance_data_dir p --attributes colour", "does nothing without --real or --identity_reference; add that"),
        ("--real r --seed -1", "--seed -1: expected a whole number"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(capsys, words, message):
    assert message in refusal(f"{words} {'' if '--compare' in words else '--generated g'} --output_dir o", capsys)


@pytest.mark.parametrize(
    "words",
    [
        "--real r --encoders clip inception --inception_sha256 0",
        "--real r --encoders none --inception f --inception_sha256 0 --resamples 9 --batch_size 9",
        "--real r --encoders none --attributes colour",
        "--identity_reference i --attributes place --face_detector d --encoders demo --batch_size 9",
    ],
)
def test_flags_that_belong_together_are_taken(words):
    args, parser = evaluate.parse_args(f"{words} --generated g --output_dir o".split()), evaluate.make_parser()
    given = [word.removeprefix("--") for word in words.split() if word.startswith("--")]
    assert [name for name in given if getattr(args, name) == parser.get_default(name)] == []


def test_a_recipe_may_hold_flags_that_do_nothing_in_this_command(tmp_path, caplog):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("face_embedder: sface\nfail_under_targets: true\ntrain: t\n")
    words = f"--config {recipe} --generated g --output_dir o"
    evaluate.parse_args(f"{words} --real r".split())
    assert "`face_embedder: sface` does nothing without --identity_reference" in caplog.text
    assert "`fail_under_targets: True` does nothing without --targets" in caplog.text and "train" not in caplog.text
    evaluate.parse_args(f"--config {recipe} --compare x y --output_dir o".split())
    assert "`train: t` does nothing without an evaluation, which --compare does not make" in caplog.text


def test_nothing_is_written_among_images_that_are_read(sets):
    for name, folder in (("real", "real"), ("real", "real/evaluation"), ("generated", "good")):
        words = f"--real {sets['real']} --generated {sets['good']} --output_dir {sets['root'] / folder} --dry_run"
        for more in ("", " --human_study 4"):
            with pytest.raises(UserError, match=f"--output_dir .*(is the same as|is inside) --{name} "):
                evaluate.main(evaluate.parse_args((words + more).split()))


def test_a_sample_of_a_set_in_which_kinds_take_turns_holds_every_kind():
    records = [{"path": Path(f"{i}.png"), "text": f"kind {i % 5}"} for i in range(120)]
    first, again, other = (judge.choose_images(records, None, seed)["sample"] for seed in (0, 0, 1))
    assert len({one["text"] for one in first}) == 5 and first == again != other
    assert len({one["file"] for one in first}) == len(first) == judge.SHOWN


def test_training_images_are_no_test_of_novelty(sets, tmp_path):
    with pytest.raises(UserError, match="share 104 images"):
        run(sets, sets["good"], tmp_path / "out", "--train", sets["real"])


def test_a_recipe_states_the_targets(sets, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('targets: {clip_score: ">0.2", invalid: "<0.10"}\nencoders: {clip: folder}\nbatch_size: 8\n')
    words = f"--config {recipe} --real a --generated b --output_dir c"
    args = evaluate.parse_args(words.split())
    assert args.targets == ["clip_score=>0.2", "invalid=<0.10"] and args.encoders == ["clip=folder"]
    assert targets.parse_target(args.targets[0]) == ("clip_score", ">", 0.2)
    args = evaluate.parse_args([*words.split(), "--targets", "fid<5"])
    assert args.targets == ["fid<5"]


@pytest.mark.parametrize(
    "low, value, high, asked, met",
    [(1, 2, 3, "<4", True), (5, 6, 7, "<4", False), (3, 4, 5, "<4.5", None), (3, 4, 5, "> 2", True)],
)
def test_a_target_is_shown_only_where_the_interval_is_clear_of_it(low, value, high, asked, met):
    one = {"id": "frechet/inception", "low": low, "value": value, "high": high}
    found = targets.judge_target(f"fid{asked}", [one], {})
    assert found["met"] is met and found["figure"] == "frechet/inception"
    assert found["asked"].replace(" ", "") == asked.replace(" ", "")


def test_an_interval_ends_where_the_figure_does():
    def part(name, value, low, high):
        return {name: value, "low": low, "high": high}

    cosine = {"id": "identity/centroid", **part("value", 0.96, 0.88, 1.04), "floor": part("value", 0.99, 0.97, 1.01)}
    cmmd = {"id": "cmmd/clip", **part("value", -0.01, -0.04, 0.02), "floor": None}
    kid = {"id": "kid/clip", **part("value", 0.1, -0.4, 0.6), "floor": None}
    refused = {"id": "frechet/clip", **part("value", None, None, None), "floor": None}
    splits = {"identity_centroid": {"text": [part("mean", 0.9, 0.7, 1.1)]}}
    targets.keep_in_range({"figures": [cosine, cmmd, kid, refused], "splits": splits})
    assert (cosine["low"], cosine["high"], cosine["floor"]["high"]) == (0.88, 1, 1)
    assert (cmmd["low"], cmmd["high"]) == (-0.01, 0.02) and kid["low"] == -0.4 and refused["low"] is None
    assert splits["identity_centroid"]["text"][0]["high"] == 1


@pytest.mark.parametrize("words", ["invalid<1", "auth_pct>0", "kid<0", "cmmd<5", "vendi>1", "colour_accuracy>=90%"])
def test_a_limit_that_can_be_met_and_missed_is_taken(good, words):
    ids = [one["id"] for one in good["figures"]]
    targets.check_target(words, ids, {})
    figure = targets.find_figure(words, ids)
    ends = [max(-1e6, min(1e6, end)) for end in targets.figure_range(figure)]
    found = [targets.judge_target(words, [{"id": figure, "low": end, "value": end, "high": end}], {}) for end in ends]
    met = {one["met"] for one in found}  # None where the limit is the end itself
    assert True in met and len(met) == 2, found


def test_the_targets_of_the_documentation_can_be_asked_for_with_the_default_encoders(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse_args(["--help"])
    encoders = evaluate.make_parser().get_default("encoders")
    known = judge.known_figures({"real"}, encoders, ["colour"])
    page = (ROOT / "docs/evaluate.md").read_text()
    for text in (page.partition("## Targets")[2].partition("##")[0], " ".join(capsys.readouterr().out.split())):
        words = re.findall(r'"(\w+[<>][\d.]+)"', text)
        assert len(words) >= 3
        for one in words:
            targets.check_target(one, known, {})


def test_a_share_as_a_target_may_be_in_per_cent():
    assert targets.parse_target("invalid=<10%") == ("invalid", "<", 0.1)


def test_a_candidate_differs_from_another_in_the_value_alone():
    one, other = (adherence.phrase("colour", colour, "Boots") for colour in ("Red", "Navy Blue"))
    assert one == "a photo of red boots" and other == "a photo of navy blue boots"
    assert adherence.phrase("article", "Handbags", None) == "a photo of handbag"


@pytest.fixture(scope="module")
def person(tmp_path_factory):
    """Three photos of a red person; two runs of the same prompts and seeds: faithful, and half of another person."""
    root = tmp_path_factory.mktemp("person")
    words = ["--face_detector", write_detector(root / "yunet.onnx"), "--face_embedder", write_embedder(root / "f.onnx")]
    (root / "photos").mkdir()
    for i in range(3):  # too few to check the demo's encoder, which does not know portraits
        draw_portrait((96, 96), [(1, 60, (10 + 4 * i, 20))], seed=i).save(root / f"photos/{i}.png")
    for name, step in (("faithful", 0), ("other", 2)):
        (root / name).mkdir()
        rows = []
        for i in range(16):
            faces = [] if i == 15 else [(2 if step and i % step else 1, 60, (12, 10 + i))]
            draw_portrait((96, 96), faces, seed=20 + i).save(root / name / f"{i:02d}.png")
            place = ("at home", "on a beach")[i // 8]
            rows.append({"file_name": f"{i:02d}.png", "text": f"sks {place}", "seed": i, "place": place})
        (root / name / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root, words


def run_person(root: Path, name: str, out: Path, *more) -> tuple[int, dict]:
    words = ["--generated", root / name, "--output_dir", out, "--encoders", "demo", "--num_workers", 1, *more]
    try:
        code = evaluate.main(evaluate.parse_args([str(word) for word in words]))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    metrics = json.loads((out / "metrics.json").read_text())
    return code, metrics | {one["id"]: one for one in metrics["figures"]}


@pytest.fixture(scope="module")
def judged(person):
    """Evaluations of both runs, without real images."""
    root, words = person
    words = [*words, "--identity_reference", root / "photos", "--instance_data_dir", root / "photos"]
    words += ["--prior_before", root / "faithful", "--targets", "identity/verified>0.6", "fidelity/subject>0.1"]
    return [
        run_person(root, name, root / f"of {name}", *words, "--prior_after", root / name)
        for name in ("faithful", "other")
    ]


def test_a_person_is_judged_without_real_images_and_what_is_left_out_is_said(person, judged):
    (code, faithful), (_, other) = judged
    names = ["face_found", "centroid", "nearest", "verified"]
    ids = ["vendi/demo", "mean_distance/demo", "clip_score/demo", "clip_score_lowest/demo", "invalid"]
    ids += [*(f"identity/{name}" for name in names), "fidelity/subject/demo", "fidelity/prompt/demo"]
    ids += [f"fidelity/{name}/demo" for name in ("prior_distance", "prior_variety", "prior_leak")]
    assert code == 0 and [one["id"] for one in faithful["figures"]] == ids
    check_predicted(faithful, {"identity_reference", *subject.SETS})
    assert faithful["identity/verified"]["value"] == 15 / 16 and other["identity/verified"]["value"] == 8 / 16
    assert faithful["fidelity/prior_distance/demo"]["high"] < 1e-6 < other["fidelity/prior_distance/demo"]["low"]
    assert [one["met"] for one in faithful["targets"]] == [True, True] and other["targets"][0]["met"] is not True
    by_place = faithful["splits"]["identity_verified"]["place"]
    assert [(row["value"], row["n"]) for row in by_place] == [("at home", 8), ("on a beach", 8)]
    text = (person[0] / "of faithful/report.html").read_text()
    assert len(faithful["pictures"]["real"]) == 3 and "<figcaption>real</figcaption>" in text  # beside the generated
    assert "Without --real there are no figures of quality" in text and "Without a face: 1 of 16" in text
    assert 'class="missing"' not in text and "Verified as the person by place" in text
    assert faithful["sets"]["identity_reference"]["n"] == faithful["sets"]["instance_data_dir"]["n"] == 3


def test_the_printed_table_says_what_stands_beside_a_figure(judged):
    headline, head, *lines = summary.summarise(judged[0][1]).splitlines()
    assert headline == "All 2 targets are met. No verdict on the whole: there is no figure of quality or diversity."
    (verified,) = (line for line in lines if line.startswith("Verified as the person, sface"))
    assert head.split()[-1] == "floor" and "real" not in head
    assert re.search(r" 94 %  \d+ to \d+ +100 %$", verified)


def test_two_runs_of_one_person_are_compared(person, judged, capsys):
    root, _ = person
    words = ["--compare", root / "of faithful", root / "of other", "--output_dir", root / "compared"]
    assert evaluate.main(evaluate.parse_args(list(map(str, words)))) == 0
    said = capsys.readouterr().out.splitlines()[-3:]
    assert "worse in" in said[0] and "there is no figure of quality or diversity to compare" in said[1]
    assert said[2] == str(root / "compared/comparison.html")
    text = (root / "compared/comparison.html").read_text()
    assert "16 images in all runs share prompt and seed" in text and "measured against different" not in text
    assert "no difference shown in" in text and "worse in" in text
    compared = compare_figures({"first": judged[0][1], "second": judged[1][1]})
    rows = {one.figure["id"]: one.judgements["second"] for one in compared}
    assert rows["identity/face_found"].verdict == "no difference shown"
    assert rows["identity/verified"].verdict == rows["fidelity/prior_distance/demo"].verdict == "worse"
    difference = rows["fidelity/subject/demo"].estimate
    assert difference.low < 0 < difference.high  # red squares are no shoes


def test_a_persons_figures_join_those_beside_real_images(sets, person, tmp_path):
    words = ["--instance_data_dir", sets["train"], "--targets", "fidelity/prompt/demo>0"]
    found = run(sets, draw_set(tmp_path / "few", 12, "f"), tmp_path / "out", *words)[1]
    assert found["vendi/demo"] and found["fidelity/subject/demo"]["n_real"] == 48 and "left_out" not in found
    assert found["fidelity/prompt/demo"]["value"] == pytest.approx(found["clip_score/demo"]["value"])


IMAGES = ROOT / "docs/images"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--prior_before", "."], "--prior_before and --prior_after: .*give both"),
        (["--instance_data_dir", ".", "--encoders", "none"], "give one of clip, dinov2, demo"),
        (["--instance_data_dir", IMAGES, "--targets", "frechet<5"], "no figure is called `frechet` with these flags"),
        (["--instance_data_dir", "nowhere"], "--instance_data_dir nowhere: no such folder"),
        (
            ["--identity_reference", ".", "--face_detector", "x.onnx"],
            "--face_detector x.onnx: .*huggingface.co.*leave out --identity_reference, .* with --instance_data_dir$",
        ),
    ],
)
def test_mistakes_about_a_person_are_errors_before_the_work(person, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        run_person(person[0], "faithful", tmp_path / "out", *words)


@pytest.mark.parametrize("flag", ["--real", "--identity_reference", "--instance_data_dir"])
def test_an_image_is_not_compared_with_itself(person, tmp_path, flag):
    root, words = person
    (tmp_path / "photos").mkdir()
    for copy, of in (("me.png", "photos/0.png"), ("new.png", "faithful/03.png")):
        shutil.copy(root / of, tmp_path / "photos" / copy)
    words = words if flag == "--identity_reference" else []
    with pytest.raises(UserError, match=f"{flag} and --generated share 1 image \\(new.png\\): an image compared"):
        run_person(root, "faithful", tmp_path / "out", *words, flag, tmp_path / "photos", "--dry_run")


def test_class_images_of_other_prompts_or_seeds_are_no_pairs(person, tmp_path):
    root, _ = person
    for key, value in (("text", "a cat"), ("seed", "7")):
        folder = shutil.copytree(root / "faithful", tmp_path / key)
        rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
        rows[3][key] = value
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(UserError, match=f"03.png has the {key} '{value}', in --prior_before"):
            run_person(root, "other", tmp_path / "o", "--prior_before", root / "faithful", "--prior_after", folder)


def test_real_images_may_be_left_out_only_where_nothing_needs_them(capsys):
    assert "--train t: does nothing without --real" in refusal("--generated g --output_dir o --train t", capsys)
    assert "missing: --real" in refusal("--generated g --output_dir o --human_study 4", capsys)
