import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prepare_dataset
from demo.catalogue import write_catalogue
from demo.shoes import KINDS
from evaluation import quality
from preparation import model_captions
from preparation.splits import apportion
from tests.tiny_captioner import build_captioner
from utils.cli import UserError
from utils.dataset import SPLITS, read_metadata, read_split
from utils.files import write_manifest

ROOT = Path(__file__).resolve().parent.parent
RATIO = dict(zip(SPLITS, (70, 15, 15)))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A drawn catalogue with every damage in it, and {id: damage}."""
    folder = tmp_path_factory.mktemp("catalogue") / "raw"
    return folder, write_catalogue(folder, 120, (128, 128), 0, list(KINDS), damage=True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("catalogue") / "raw"
    write_catalogue(folder, 60, (96, 128), 1, ["Casual Shoes", "Boots"], damage=False)
    return folder


def prepare(catalogue, output, *flags, workers=1) -> int:
    common = ["--resolution", "64", "--num_workers", str(workers)]
    words = ["--catalogue", str(catalogue), "--output_dir", str(output), *common, *flags]
    return prepare_dataset.main(prepare_dataset.parse_args(words))


def command(*words) -> list[str]:
    return [sys.executable, str(ROOT / "prepare_dataset.py"), *map(str, words)]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def verify(folder: Path) -> int:
    return prepare_dataset.main(prepare_dataset.parse_args(["--verify", str(folder), "--num_workers", "1"]))


def places(folder: Path) -> dict[str, str]:
    return {record["id"]: split for split in SPLITS for record in read_split(folder, split)}


@pytest.fixture(scope="module")
def prepared(damaged, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shoes"
    assert prepare(damaged[0], folder, workers=2) == 0
    return folder


def test_nothing_is_lost_and_nothing_invented(damaged, prepared):
    damage, metadata = damaged[1], read_metadata(prepared)
    written, excluded = places(prepared), {(one["id"], one["row"]): one["reason"] for one in metadata["excluded"]}
    rows = (damaged[0] / "styles.csv").read_text().splitlines()[1:]
    lines = {(line.split(",")[0], number) for number, line in enumerate(rows, 2)}
    assert len(written) + len(excluded) == len(rows) == metadata["source"]["rows"]
    assert set(written) == {one for one, _ in lines} - {one for one, row in excluded if one not in written}
    bad = {"missing": "no image", "truncated": "truncated", "not an image": "not an image"}
    bad |= {"empty file": "empty file", "blank": "blank or near uniform"}
    expected = {(one, int(one) - 9998): bad[what] for one, what in damage.items() if what in bad}
    twice = next(one for one, what in damage.items() if "row given twice" in what)
    expected |= {(twice, len(rows)): "row given twice", (twice, len(rows) + 1): "id used twice"}
    assert excluded == expected


def test_the_torn_row_is_recovered_and_reported(prepared):
    record = next(one for split in SPLITS for one in read_split(prepared, split) if one["id"] == "90000")
    assert record["name"] == "Rook Shoes, red, wide, new"
    assert read_metadata(prepared)["source"]["recovered_rows"] == [122]
    assert "torn rows recovered: 1 (line 122)" in (prepared / "report.txt").read_text()


def test_a_turned_image_is_upright_and_other_modes_are_rgb(damaged, prepared):
    kinds = {what: one for one, what in damaged[1].items()}
    images = {path.stem: Image.open(path) for path in prepared.rglob("images/*.png")}
    assert all(image.mode == "RGB" and image.size == (64, 64) for image in images.values())
    for what in ("EXIF rotation", "CMYK", "grey"):
        shoe = np.asarray(images[kinds[what]].convert("L")) < 225
        rows, columns = shoe.any(1).sum(), shoe.any(0).sum()
        assert columns > 1.2 * rows, what  # a shoe lies, and one that stands was not turned


def test_the_planted_duplicates_and_only_they_are_found_in_one_split(prepared):
    groups = read_metadata(prepared)["duplicates"]["groups"]
    assert groups == [["10008", "10009", "10010"]]
    assert len({places(prepared)[one] for one in groups[0]}) == 1
    assert (prepared / "figures/pairs.png").exists()


def test_counts_are_exact(prepared):
    counts = Counter(places(prepared).values())
    assert counts == apportion(sum(counts.values()), RATIO)


def test_captions_are_readable_and_agree(prepared):
    for split in SPLITS:
        records = read_split(prepared, split)
        assert json.loads((prepared / split / "captions.json").read_text()) == {
            one["id"]: one["text"] for one in records
        }
        assert (prepared / split / "ids.txt").read_text().split() == [one["id"] for one in records]
        for record in records:
            assert f" {record['colour'].lower()} {record['article'].lower()}, " in record["text"]
            assert not re.search(r"nan|None|,,|  |[{}]", record["text"])


def test_datasets_reads_the_result_with_its_captions(prepared, tmp_path):
    import datasets

    for split in SPLITS:
        loaded = datasets.load_dataset(
            "imagefolder", data_dir=str(prepared / split), split="train", cache_dir=str(tmp_path)
        )
        captions = {record["id"]: record["text"] for record in read_split(prepared, split)}
        assert {row["id"]: row["text"] for row in loaded} == captions
        assert loaded[0]["image"].size == (64, 64)


def test_same_seed_same_bytes_whatever_the_number_of_workers(damaged, prepared, tmp_path):
    prepare(damaged[0], tmp_path / "again", workers=1)
    assert tree(tmp_path / "again") == tree(prepared)
    prepare(damaged[0], tmp_path / "other", "--seed", "1")
    assert places(tmp_path / "other") != places(prepared)


def test_the_same_command_again_does_no_work(damaged, tmp_path, capsys):
    prepare(damaged[0], tmp_path / "d", "--category", "heels")
    said = capsys.readouterr()
    assert said.out.count("read: styles.csv") == 1 and "split_ratio" not in said.out
    assert "warning: test gets 3 images: evaluate.py judges quality from 50 real images on" in said.err
    assert prepare_dataset.LEAST_TO_EVALUATE == quality.LEAST["kid"] == quality.LEAST["frechet"] / 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")}
    assert prepare(damaged[0], tmp_path / "d", "--category", "Heels") == 0
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")}


def test_nothing_is_overwritten_without_a_flag(clean, tmp_path):
    prepare(clean, tmp_path / "d")
    before = tree(tmp_path / "d")
    with pytest.raises(UserError, match=r"resolution was 64, now 32.*--overwrite"):
        prepare(clean, tmp_path / "d", "--resolution", "32")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"this script did not write \(thesis.txt\).*--overwrite, which moves them"):
        prepare(clean, tmp_path / "mine")
    with pytest.raises(UserError, match="catalogue"):
        prepare(clean, clean / "inside")
    assert tree(tmp_path / "d") == before and tree(tmp_path / "mine") == {"thesis.txt": b"x"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "mine"]


def test_growth_moves_no_product_to_another_split(clean, tmp_path):
    small = tmp_path / "raw"
    shutil.copytree(clean, small)
    rows = (small / "styles.csv").read_text().splitlines()
    (small / "styles.csv").write_text("\n".join(rows[:31]))
    prepare(small, tmp_path / "d")
    first = places(tmp_path / "d")
    (small / "styles.csv").write_text("\n".join([rows[0], *reversed(rows[1:])]))
    prepare(small, tmp_path / "d", "--overwrite", "--seed", "5")
    grown = places(tmp_path / "d")
    assert len(first) == 30 and len(grown) == 60
    assert {one: grown[one] for one in first} == first
    assert Counter(grown.values()) == apportion(60, RATIO)
    prepare(small, tmp_path / "elsewhere", "--keep_splits", str(tmp_path / "d"), "--seed", "9")
    assert places(tmp_path / "elsewhere") == grown
    prepare(small, tmp_path / "d", "--overwrite", "--new_splits", "--seed", "5")
    assert places(tmp_path / "d") != grown


def test_a_product_that_was_away_comes_back_to_its_split(clean, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(clean, raw)
    prepare(raw, tmp_path / "d")
    first = places(tmp_path / "d")
    away = next(one for one, split in first.items() if split == "test")
    (raw / f"images/{away}.jpg").rename(tmp_path / "away.jpg")
    prepare(raw, tmp_path / "d", "--overwrite")
    assert away not in places(tmp_path / "d")
    (tmp_path / "away.jpg").rename(raw / f"images/{away}.jpg")
    prepare(raw, tmp_path / "d", "--overwrite")
    assert places(tmp_path / "d") == first


@pytest.mark.parametrize("damage", [lambda path: path.write_text('{"10'), lambda path: path.unlink()])
def test_lost_splits_are_taken_from_the_lists_of_ids(clean, tmp_path, caplog, damage):
    prepare(clean, tmp_path / "d")
    first = places(tmp_path / "d")
    damage(tmp_path / "d/splits.json")
    prepare(clean, tmp_path / "d", "--overwrite", "--seed", "7")
    assert places(tmp_path / "d") == first and "ids.txt" in caplog.text
    assert verify(tmp_path / "d") == 0


def test_a_new_copy_joins_its_twins_split_and_one_between_two_splits_is_left_out(clean, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(clean, raw)
    prepare(raw, tmp_path / "d")
    first = places(tmp_path / "d")
    one = next(key for key, split in first.items() if split == "test")
    row = next(line for line in (raw / "styles.csv").read_text().splitlines() if line.startswith(one))
    with open(raw / "styles.csv", "a") as file:
        file.write(row.replace(one, "77777", 1) + "\n")
    Image.open(raw / f"images/{one}.jpg").save(raw / "images/77777.jpg", quality=70)
    prepare(raw, tmp_path / "d", "--overwrite")
    assert places(tmp_path / "d") == first | {"77777": "test"}
    saved = json.loads((tmp_path / "d/splits.json").read_text())
    (tmp_path / "splits.json").write_text(json.dumps(saved | {one: "train"}))
    prepare(raw, tmp_path / "e", "--keep_splits", str(tmp_path / "splits.json"))
    reasons = {gone["id"]: gone["reason"] for gone in read_metadata(tmp_path / "e")["excluded"]}
    assert reasons == {one: "near duplicate across splits"}  # the test split keeps its own


def test_drop_duplicates_keeps_one_and_strict_does_not_mind(clean, damaged, tmp_path):
    prepare(damaged[0], tmp_path / "d", "--drop_duplicates")
    assert [one for one in ("10008", "10009", "10010") if one in places(tmp_path / "d")] == ["10008"]
    reasons = Counter(one["reason"] for one in read_metadata(tmp_path / "d")["excluded"])
    assert reasons["near duplicate"] == 2
    assert prepare(clean, tmp_path / "e", "--strict", "--drop_duplicates") == 0


def test_strict_makes_any_exclusion_an_error_and_writes_nothing(damaged, tmp_path, capsys):
    with pytest.raises(UserError, match="--strict: 3 rows"):
        prepare(damaged[0], tmp_path / "d", "--strict")
    assert "images/s" not in capsys.readouterr().err  # the table's faults are reported before any image is read
    raw = tmp_path / "raw"
    shutil.copytree(damaged[0], raw)
    rows = (raw / "styles.csv").read_text().splitlines()
    (raw / "styles.csv").write_text("\n".join([rows[0], *rows[2:-2]]))  # without the faults of the table
    with pytest.raises(UserError, match="--strict: 4 rows"):
        prepare(raw, tmp_path / "d", "--strict")
    assert "10002 (row 3): not an image" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_analyse_only_writes_a_report_and_figures_and_no_dataset(damaged, tmp_path):
    prepare(damaged[0], tmp_path / "a", "--analyse_only")
    names = {"report.txt", "analysis.json", "MANIFEST.json", "figures/shares.png", "figures/samples.png"}
    assert set(tree(tmp_path / "a")) == names | {"figures/pairs.png"}
    analysis = json.loads((tmp_path / "a/analysis.json").read_text())
    assert analysis["catalogue"]["rows"] == 123 and analysis["problems"]["no image"] == 1
    assert abs(sum(value["share"] for value in analysis["shares"]["colour"].values()) - 1) < 0.01
    report = (tmp_path / "a/report.txt").read_text()
    assert "123 rows" in report and re.search(r"Black +\d+ +\d+\.\d%", report)


@pytest.mark.parametrize("folder_too", [True, False])
def test_a_table_without_any_image_can_be_analysed_but_not_prepared(clean, tmp_path, capsys, folder_too):
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(clean / "styles.csv", raw)
    if folder_too:
        (raw / "images").mkdir()
    assert prepare(raw, tmp_path / "a", "--category", "Boots", "--analyse_only") == 0
    rows = [line.split(",") for line in (clean / "styles.csv").read_text().splitlines()[1:]]
    boots = [row for row in rows if row[4] == "Boots"]
    analysis = json.loads((tmp_path / "a/analysis.json").read_text())
    assert analysis["selection"] == {"rows": len(boots), "usable": 0}
    assert analysis["problems"] == {"no image": len(boots)}
    shares = {colour: value["count"] for colour, value in analysis["shares"]["colour"].items()}
    assert shares == Counter(row[5] for row in boots)
    text = (tmp_path / "a/report.txt").read_text()
    assert f"Boots: {len(boots)} rows, 0 usable images\nno usable image was found" in text
    assert ("there is no folder images/" in text) != folder_too
    assert set(tree(tmp_path / "a")) == {"report.txt", "analysis.json", "MANIFEST.json", "figures/shares.png"}
    assert prepare(raw, tmp_path / "a", "--category", "Boots", "--analyse_only") == 0
    assert "up to date" in capsys.readouterr().out
    with pytest.raises(UserError, match="no image can be used" if folder_too else "no folder images/"):
        prepare(raw, tmp_path / "d", "--category", "Boots")
    assert not (tmp_path / "d").exists()


def test_an_imagefolders_table_without_images_can_be_analysed(tmp_path):
    lines = [{"file_name": f"{index}.png", "text": "a shoe", "colour": "Red"} for index in range(3)]
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert prepare(tmp_path / "raw", tmp_path / "a", "--analyse_only") == 0
    analysis = json.loads((tmp_path / "a/analysis.json").read_text())
    assert analysis["shares"]["colour"] == {"Red": {"count": 3, "share": 1.0}}


def test_what_a_recipe_sets_for_portraits_does_nothing_to_a_catalogue_and_is_warned_of(clean, tmp_path, caplog):
    (tmp_path / "recipe.yaml").write_text("face_crop: true\nbalance: [colour]\n")
    assert prepare(clean, tmp_path / "d", "--dry_run", "--config", str(tmp_path / "recipe.yaml")) == 0
    assert "`face_crop: True` does nothing without --portraits" in caplog.text
    assert "`balance: ['colour']` does nothing without --write_prompt_plan" in caplog.text


def test_a_dry_run_reads_the_table_and_writes_nothing(clean, tmp_path, capsys):
    assert prepare(clean, tmp_path / "d", "--dry_run") == 0
    out = capsys.readouterr().out
    assert (
        "train 42, val 9, test 9" in out
        and "first caption, if on white: A professional" in out
        and "plan.jsonl" not in out
    )
    assert prepare(clean, tmp_path / "d", "--dry_run", "--write_prompt_plan", "50", "--balance", "baseColour") == 0
    assert "prompt_plan.jsonl for 50 images, filling up colour" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_verify_holds_and_finds_each_broken_promise(prepared, tmp_path, capsys):
    assert verify(prepared) == 0

    def broken(change) -> str:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(prepared, copy)
        change(copy)
        capsys.readouterr()
        assert verify(copy) == 1
        return capsys.readouterr().out

    train, test = read_split(prepared, "train")[0]["id"], read_split(prepared, "test")[0]["id"]

    def flip_a_bit(copy):
        data = bytearray((copy / f"train/images/{train}.png").read_bytes())
        data[len(data) // 2] ^= 1
        (copy / f"train/images/{train}.png").write_bytes(data)

    def leak(copy):
        (copy / f"test/images/{test}.png").write_bytes((copy / f"train/images/{train}.png").read_bytes())
        refresh(copy)

    def refresh(copy):
        (copy / "MANIFEST.json").unlink()
        write_manifest(copy)

    def wrong_size(copy):
        Image.new("RGB", (32, 32)).save(copy / f"train/images/{train}.png")
        refresh(copy)

    def edit(name, old, new):
        return lambda copy: (copy / name).write_text((copy / name).read_text().replace(old, new, 1))

    assert f"train/images/{train}.png: the file has changed" in broken(flip_a_bit)
    assert f"{train}.png: missing" in broken(lambda copy: (copy / f"train/images/{train}.png").unlink())
    assert "not in the manifest" in broken(lambda copy: (copy / "train/images/x.png").write_bytes(b"x"))
    assert "look-alikes in two splits" in broken(leak)
    assert "expected RGB of 64x64" in broken(wrong_size)
    assert "captions.json" in broken(edit("train/captions.json", "professional", "shaky"))
    assert f"{train}: in train and in test" in broken(edit("test/ids.txt", test, train))
    assert "fingerprint" in broken(edit("metadata.json", read_metadata(prepared)["fingerprint"], "0" * 64))
    assert "MANIFEST.json" in broken(lambda copy: (copy / "MANIFEST.json").unlink())
    assert "line 1: expected text as `text`, found None" in broken(edit("val/metadata.jsonl", '"text":', '"txt":'))
    assert "line 1: expected text as `id`, found None" in broken(edit("val/metadata.jsonl", '"id":', '"key":'))
    assert "expected {id: caption}" in broken(lambda copy: (copy / "val/captions.json").write_text("[]"))


def test_a_prompt_plan_has_n_images_in_the_training_shares(damaged, tmp_path):
    prepare(damaged[0], tmp_path / "d", "--write_prompt_plan", "200")
    plan = [json.loads(line) for line in (tmp_path / "d/prompt_plan.jsonl").read_text().splitlines()]
    train = read_split(tmp_path / "d", "train")
    assert sum(line["weight"] for line in plan) == 200 and {line["text"] for line in plan} <= {
        one["text"] for one in train
    }
    for column in ("colour", "gender", "season"):
        due, got = Counter(one[column] for one in train), Counter()
        for line in plan:
            got[line["attributes"][column]] += line["weight"]
        assert all(abs(got[value] - 200 * count / len(train)) < 1.5 for value, count in due.items())


def test_a_balanced_plan_and_the_training_split_together_are_level(damaged, tmp_path):
    prepare(damaged[0], tmp_path / "d", "--write_prompt_plan", "300", "--balance", "colour")
    together = Counter(one["colour"] for one in read_split(tmp_path / "d", "train"))
    for line in map(json.loads, (tmp_path / "d/prompt_plan.jsonl").read_text().splitlines()):
        together[line["attributes"]["colour"]] += line["weight"]
    assert max(together.values()) - min(together.values()) <= 2


def test_a_folder_with_captions_keeps_them_and_invents_none(tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    for index in range(12):
        rng = np.random.default_rng(index)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((90, 60)).save(source / f"{index}.png")
        if index:
            (source / f"{index}.txt").write_text(f"photo number {index}")
    prepare(source, tmp_path / "d", "--trigger_word", "sks")
    texts = {one["id"]: one["text"] for split in SPLITS for one in read_split(tmp_path / "d", split)}
    assert texts == {str(index): f"sks, photo number {index}" for index in range(1, 12)}
    assert [(one["id"], one["reason"]) for one in read_metadata(tmp_path / "d")["excluded"]] == [("0", "no caption")]
    prepare(source, tmp_path / "e", "--caption_template", "a photo of sks dog")
    assert {one["text"] for one in read_split(tmp_path / "e", "train")} == {"a photo of sks dog"}


def test_a_prepared_dataset_can_be_prepared_again(prepared, tmp_path):
    """Its splits are imagefolders, so another resolution or another framing can be made from it."""
    prepare(prepared, tmp_path / "d", "--resolution", "32", "--keep_splits", str(prepared))
    assert places(tmp_path / "d") == places(prepared)


def test_captions_lie_beside_the_images_too_where_that_is_asked_for(clean, tmp_path, capsys):
    prepare(clean, tmp_path / "d", "--sidecar_captions")
    for split in SPLITS:
        for one in read_split(tmp_path / "d", split):
            assert one["path"].with_suffix(".txt").read_text() == one["text"] + "\n"
    assert verify(tmp_path / "d") == 0
    card = (tmp_path / "d/README.md").read_text()
    assert "wants `<this folder>/train`" in card and "`train/images/<id>.txt`" in card
    import datasets

    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "d/val"), cache_dir=str(tmp_path))["train"]
    assert loaded["text"] == [one["text"] for one in read_split(tmp_path / "d", "val")]
    next((tmp_path / "d/test/images").glob("*.txt")).write_text("another")
    assert verify(tmp_path / "d") == 1 and "the file has changed" in capsys.readouterr().out


def test_a_dataset_from_before_a_flag_is_up_to_date_where_the_flag_is_off(clean, tmp_path, capsys):
    prepare(clean, tmp_path / "d", "--analyse_only")
    written = (tmp_path / "d/analysis.json").read_text()
    old = json.loads(written)
    del old["options"]["sidecar_captions"]
    (tmp_path / "d/analysis.json").write_text(json.dumps(old))
    (tmp_path / "d/MANIFEST.json").unlink()
    write_manifest(tmp_path / "d")
    assert prepare(clean, tmp_path / "d", "--analyse_only") == 0 and "up to date" in capsys.readouterr().out


def test_only_an_image_on_white_is_said_to_be(clean, tmp_path):
    raw = tmp_path / "raw"
    shutil.copytree(clean, raw)
    grey, worn, *others = sorted((raw / "images").glob("*.jpg"))
    for path, box in (grey, (0, 0, 96, 128)), (worn, (20, 90, 70, 128)):
        image = Image.open(path)
        dark = Image.new("RGB", image.size, (200, 200, 200) if path == grey else (60, 60, 90))
        image.paste(Image.blend(image, dark, 0.5).crop(box), box)
        image.save(path, quality=95)
    prepare(raw, tmp_path / "d", "--trigger_word", "sks")
    on_white = {
        one["id"]: "white background" in one["text"] for split in SPLITS for one in read_split(tmp_path / "d", split)
    }
    assert not on_white[grey.stem] and on_white[worn.stem] and sum(on_white.values()) == 59
    prepare(raw, tmp_path / "e", "--category", "Boots", "--caption_template", "{article}, on white background")
    assert all("white background" in one["text"] for one in read_split(tmp_path / "e", "train"))


@pytest.mark.slow
def test_a_model_describes_the_images_and_goes_on_where_it_was_killed(clean, prepared, tmp_path, monkeypatch, capsys):
    name, asked, out = build_captioner(tmp_path / "vlm"), "red shoes on the background", tmp_path / "data"
    words = ["--caption_model", name, "--caption_prompt", asked, "--caption_batch_size", "4", "--trigger_word", "sks"]
    note, noted = model_captions.append_metrics, []

    def note_until_killed(path, record):
        if len(noted) == 9:
            raise KeyboardInterrupt
        noted.append(record)
        note(path, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_captions, "append_metrics", note_until_killed)
        prepare(clean, out, *words)
    assert not out.exists()
    assert prepare(clean, out, *words) == 0
    (kept,) = (tmp_path / "cache").glob("captions-*.jsonl")
    said = [json.loads(line) for line in kept.read_text().splitlines()]
    assert said[:9] == noted and len(said) == len({one["image"] for one in said})

    records = [record for split in SPLITS for record in read_split(out, split)]
    captions = {one["caption"] for one in said}
    assert {one["text"] for one in records} == {f"sks, {caption}" for caption in captions} and len(captions) > 1
    assert {one["caption_by"] for one in records} == {name} and {one["colour"] for one in records} > {"Red"}
    options = read_metadata(out)["options"]
    assert (options["caption_model"], options["caption_prompt"]) == (name, asked)
    assert "caption_model" not in read_metadata(prepared)["options"] and verify(out) == 0
    assert prepare(clean, out, *words) == 0 and "is up to date" in capsys.readouterr().out


def test_a_model_for_captions_that_is_not_there_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match="^--caption_model ./vlm: no such folder, and not a hub id"):
        prepare(tmp_path / "missing", tmp_path / "data", "--caption_model", "./vlm", "--dry_run")


def test_an_image_for_which_a_model_writes_no_text_is_named_with_the_model(clean, tmp_path):
    path = next(clean.rglob("*.jpg"))
    captioner = model_captions.Captioner("owner/model", lambda images: [""] * len(images), 4, "key")
    with pytest.raises(UserError, match=f"^--caption_model owner/model: wrote no text for {path.name}; give another"):
        model_captions.caption_images(captioner, {"a": (path, "sum")}, tmp_path)


def test_captions_over_the_limit_are_counted(clean, tmp_path):
    template = "{colour} {article}" + ", extraordinarily comfortable" * 20
    prepare(clean, tmp_path / "d", "--caption_template", template)
    lengths = read_metadata(tmp_path / "d")["captions"]
    assert lengths["over_limit"] == 60 and lengths["longest"] > 77


def test_the_catalogues_own_names_of_columns_do_in_a_template(clean, tmp_path):
    prepare(clean, tmp_path / "d", "--caption_template", "{baseColour} {articleType}")
    assert all(one["text"].startswith(one["colour"].lower()) for one in read_split(tmp_path / "d", "train"))


def test_the_guides_commands_can_be_pasted_one_after_another(clean, tmp_path, monkeypatch):
    shutil.copytree(clean, tmp_path / "data/raw")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    styles = tmp_path / "data/raw/styles.csv"
    styles.write_text(styles.read_text().replace(",Boots,", ",Flip Flops,", 5).replace(",Boots,", ",Sandals,"))
    text = (ROOT / "docs/prepare_dataset.md").read_text()
    commands = re.findall(r"^    python prepare_dataset.py (.*)$", text, re.MULTILINE)[:3]
    monkeypatch.chdir(tmp_path)
    for words in commands:
        small = [*shlex.split(words), "--resolution", "32", "--num_workers", "1"]
        assert prepare_dataset.main(prepare_dataset.parse_args(small)) == 0
    assert len(list(tmp_path.glob("data/*/train"))) == 3


def test_an_empty_split_is_warned_of(clean, tmp_path, capsys):
    raw = tmp_path / "raw"
    shutil.copytree(clean, raw)
    (raw / "styles.csv").write_text("\n".join((raw / "styles.csv").read_text().splitlines()[:3]))
    for more in (["--dry_run"], []):
        prepare(raw, tmp_path / "d", *more)
        assert "warning: test gets no images" in capsys.readouterr().err


def test_several_categories_after_one_flag_or_several(damaged):
    words = ["--catalogue", "a", "--output_dir", "b", "--category", "Heels", "Flip Flops", "--category", "Boots"]
    assert prepare_dataset.parse_args(words).category == ["Heels", "Flip Flops", "Boots"]


def test_caption_columns_leave_the_others_out(clean, tmp_path):
    prepare(clean, tmp_path / "d", "--caption_columns", "colour", "article")
    assert all("collection" not in one["text"] for one in read_split(tmp_path / "d", "train"))


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--category", "Casual Sandals"], r"no product has this article; there are"),
        (["--stratify_by", "size"], "--stratify_by size: there is no such column"),
        (["--caption_template", "a {shape}"], "--caption_template shape: there is no such column"),
        (["--caption_columns", "usage"], "the template has no {usage}"),
        (["--keep_splits", "nowhere"], "nowhere"),
        (["--write_prompt_plan", "5", "--balance", "size"], "--balance size"),
        (["--tokenizer", "tests"], r"--tokenizer tests: does not contain a complete CLIP tokenizer \(no vocab.json"),
        (["--tokenizer", "nowhere"], "--tokenizer nowhere: no such folder, and not a hub id"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing_behind(clean, tmp_path, flags, expected):
    with pytest.raises(UserError, match=re.escape(expected) if "{" in expected else expected):
        prepare(clean, tmp_path / "d", *flags)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["/proc/x", "a file/x"])
def test_an_output_folder_that_cannot_be_made_is_reported_before_anything_is_read(tmp_path, folder):
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match=f"--output_dir .*{folder}: can't be created"):
        prepare(tmp_path / "no catalogue", tmp_path / folder, "--dry_run")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--split_ratio", "0", "1", "1"],
        ["--duplicate_threshold", "99"],
        ["--pad", "nocolour"],
        ["--balance", "colour"],
        ["--resolution", "5"],
        ["--num_workers", "0"],
    ],
)
def test_impossible_flags_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as caught:
        prepare_dataset.parse_args((["--catalogue", "a", "--output_dir", "b"] if words else []) + words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and (not words or words[0] in error)


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path):
    result = subprocess.run(
        command("--catalogue", tmp_path / "nowhere", "--output_dir", tmp_path / "d"),
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.strip().count("\n") == 0 and "nowhere" in result.stderr


def kill_while_writing(words, partial: Path, images: int) -> bool:
    """Whether kill -9 hit the command while it had written at least so many images."""
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if len(list(partial.glob("**/*.png"))) >= images:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


@pytest.mark.slow
def test_killed_it_leaves_the_old_dataset_or_the_new_one_and_no_processes(clean, tmp_path):
    target, partial = tmp_path / "d", tmp_path / ".d.partial"
    words = ["--catalogue", clean, "--output_dir", target, "--resolution", "64", "--num_workers", "2"]
    assert kill_while_writing(words, partial, 20)
    assert not target.exists() and partial.exists()
    prepare(clean, target)
    before = tree(target)
    assert not partial.exists()
    assert kill_while_writing([*words, "--seed", "3", "--pad", "white", "--overwrite"], partial, 20)
    assert tree(target) == before
    assert prepare(clean, target, "--pad", "white", "--overwrite") == 0
    assert verify(target) == 0 and tree(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    time.sleep(1)
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True).stdout
    assert not left


def test_overwrite_never_removes_a_file_of_someone_else(tmp_path):
    write_catalogue(tmp_path / "raw", 12, (64, 64), 0, ["Boots"], damage=False)
    words = ["--catalogue", tmp_path / "raw", "--output_dir", tmp_path / "out", "--resolution", "32"]
    command = [sys.executable, "prepare_dataset.py", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (tmp_path / "out/train/notes.txt").write_text("mine")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "train/notes.txt" in done.stderr
    (tmp_path / "out").rename(tmp_path / "disk")
    (tmp_path / "out").symlink_to("disk")
    done = subprocess.run([*command, "--overwrite"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "as it holds other files, it is kept as disk.replaced-" in done.stdout
    assert (tmp_path / "out").is_symlink() and not (tmp_path / "disk/train/notes.txt").exists()
    assert next(tmp_path.glob("disk.replaced-2*/train/notes.txt")).read_text() == "mine"
