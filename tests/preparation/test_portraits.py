"""`prepare_dataset.py --portraits`: what is kept of a folder of photos, how it is cropped, and what can read it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import prepare_dataset
import train_dreambooth
import train_lora
from families.models import DEMO_MODEL
from preparation import portraits
from tests.toy_faces import draw_portrait, write_detector
from training import examples, read_data
from utils import faces
from utils.catalogue import Source
from utils.cli import UserError
from utils.dataset import read_metadata, read_split
from utils.faces import Face

SIDE = 256


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portraits") / "photos"
    folder.mkdir()
    tall = draw_portrait((400, 600), [(1, 130, (100, 180))])
    tall.save(folder / "tall.png")
    tall.resize((300, 450), Image.Resampling.LANCZOS).save(folder / "again.png")
    draw_portrait((600, 400), [(1, 90, (440, 100))], seed=2).save(folder / "wide.png")
    (folder / "wide.txt").write_text("a person at home\n")
    draw_portrait((500, 500), [], seed=3).save(folder / "nobody.png")
    draw_portrait((500, 500), [(1, 90, (40, 40)), (2, 100, (300, 300))], seed=4).save(folder / "two.png")
    soft = draw_portrait((500, 500), [(1, 150, (140, 140))], seed=5).filter(ImageFilter.GaussianBlur(8))
    soft.save(folder / "soft.png")
    draw_portrait((90, 90), [(1, 40, (25, 25))], seed=6).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    write_detector(folder.parent / "yunet.onnx")
    return folder


def prepare(photos: Path, output: Path, *flags, detector: bool = True) -> int:
    words = ["--portraits", photos, "--output_dir", output, "--resolution", SIDE, "--num_workers", 1, *flags]
    words += ["--face_detector", photos.parent / "yunet.onnx"] if detector else []
    return prepare_dataset.main(prepare_dataset.parse_args(list(map(str, words))))


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "me"
    assert prepare(photos, folder, "--trigger_word", "sks") == 0
    return folder


def test_every_photo_is_judged_and_what_is_left_out_has_its_reason(prepared):
    rows = {row["id"]: row for row in json.loads((prepared / "analysis.json").read_text())["photos"]}
    assert {one: row["reason"] for one, row in rows.items()} == {
        "tall": "",
        "wide": "",
        "again": "near duplicate",
        "nobody": "no face found",
        "two": "several faces",
        "soft": "not sharp",
        "tiny": "too small",
        "broken": "not an image",
    }
    assert [rows[one]["faces"] for one in ("tall", "nobody", "two")] == [1, 0, 2]
    left, top, right, bottom = rows["tall"]["crop"]
    assert rows["tall"]["face_share"] == pytest.approx(130**2 / ((right - left) * (bottom - top)), rel=0.05)
    assert rows["tiny"]["enlarged"] == pytest.approx(SIDE / 90, rel=0.01)
    assert rows["tall"]["sharpness"] > 20 * rows["soft"]["sharpness"]
    for one, flag in (("nobody", "--any_faces"), ("soft", "--min_sharpness"), ("tiny", "--max_enlargement")):
        assert flag in rows[one]["detail"]
    text = (prepared / "report.txt").read_text()
    assert "sharpness" in text and "face share" in text and "two" in text


def test_captions_come_from_txt_files_and_crops_go_to_buckets(prepared):
    records = {one["id"]: one for one in read_split(prepared, "train")}
    assert {one: record["text"] for one, record in records.items()} == {"tall": "", "wide": "sks, a person at home"}
    sizes = {one: Image.open(record["path"]).size for one, record in records.items()}
    assert sizes["tall"][0] < sizes["tall"][1] and sizes["wide"] == sizes["tall"][::-1]
    assert all(abs(width * height - SIDE**2) < 0.15 * SIDE**2 for width, height in sizes.values())
    assert read_metadata(prepared)["counts"]["train"] == 2
    card = (prepared / "README.md").read_text()
    assert "# Photos of one subject" in card and "about 256×256 pixels, each in the shape nearest" in card
    assert "Empty: 1." in card and "usable product" not in (prepared / "report.txt").read_text()


def test_a_photo_without_a_caption_gets_none_but_the_instance_prompt(photos, prepared, tmp_path, capsys):
    assert prepare(photos, tmp_path / "d", "--trigger_word", "sks") == 0
    said = "1 photo of 2 has no caption: train_dreambooth.py trains such photos with its --instance_prompt; write sks"
    assert said in capsys.readouterr().out
    assert prepare(photos, tmp_path / "dry", "--dry_run") == 0
    assert "7 photos of 8 have no caption" in capsys.readouterr().out
    words = ["--instance_data_dir", str(prepared), "--instance_prompt", "a photo of sks person"]
    read = train_dreambooth.read_photos(train_dreambooth.parse_args(words))[0]
    assert {one.id: one.text for one in read} == {"tall": words[-1], "wide": "sks, a person at home"}
    with pytest.raises(UserError, match="1 of 2 images have no caption .*train_dreambooth.py --instance_prompt"):
        examples.load_examples(read_data.read_records(Source(str(prepared), "--train_data_dir"))[0], [])


def test_the_trainers_take_the_shapes_it_was_cropped_to_and_cut_nothing_off(prepared, capsys):
    words = ["--instance_data_dir", str(prepared), "--instance_prompt", "sks", "--resolution", str(SIDE), "--dry_run"]
    for more, buckets in ((), True), (("--no-use_aspect_ratio_buckets",), False):
        args = train_dreambooth.parse_args([*words, "--pretrained_model_name_or_path", "demo", *more])
        train_dreambooth.main(args)
        assert ("pixels, as the dataset was prepared" in capsys.readouterr().out) == buckets
        shapes = examples.fitting_shapes(str(DEMO_MODEL), SIDE, buckets)
        found = examples.load_examples(train_dreambooth.read_photos(args)[0], shapes)
        assert [one.size == one.shape for one in found] == [buckets] * 2
    lora = ["--train_data_dir", str(prepared), "--pretrained_model_name_or_path", "demo", "--dry_run"]
    with pytest.raises(UserError, match="1 of 2 images have no caption"):  # there is no --instance_prompt here
        train_lora.main(train_lora.parse_args(lora))
    assert "pixels, as the dataset was prepared" in capsys.readouterr().out


def test_the_trainers_read_it_and_verify_finds_nothing_wrong(prepared, capsys):
    train, held_out = read_data.read_records(Source(str(prepared), "--train_data_dir"))
    assert {one.id for one in train} == {"tall", "wide"} and held_out == []
    check = ["--verify", str(prepared), "--num_workers", "1"]
    assert prepare_dataset.main(prepare_dataset.parse_args(check)) == 0
    assert "all checks passed" in capsys.readouterr().out


def test_the_same_command_again_does_nothing_and_another_needs_overwrite(photos, prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    assert prepare(photos, prepared, "--trigger_word", "sks") == 0
    assert "up to date" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    with pytest.raises(UserError, match="--overwrite"):
        prepare(photos, prepared, "--trigger_word", "sks", "--face_crop")


def test_a_dry_run_writes_nothing_and_says_that_no_face_is_counted(photos, tmp_path, capsys):
    assert prepare(photos, tmp_path / "d", "--dry_run", detector=False) == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "d").exists() and "no --face_detector: faces are not detected" in out


def test_without_a_face_model_photos_are_cropped_about_their_middle(photos, tmp_path, capsys):
    assert prepare(photos, tmp_path / "d", "--no-use_aspect_ratio_buckets", detector=False) == 0
    rows = {row["id"]: row for row in json.loads((tmp_path / "d/analysis.json").read_text())["photos"]}
    assert rows["tall"]["crop"] == [0, 100, 400, 500] and rows["tall"]["faces"] is None
    assert rows["nobody"]["kept"] and rows["two"]["kept"]
    assert "faces are not detected" in capsys.readouterr().out
    assert Image.open(tmp_path / "d/train/images/nobody.png").size == (SIDE, SIDE)


def test_head_and_shoulders_are_kept_and_captions_follow_the_template(photos, tmp_path):
    (tmp_path / "photos").mkdir()
    lines = []
    for name, place in (("tall", "park"), ("wide", None)):
        (tmp_path / "photos" / f"{name}.png").write_bytes((photos / f"{name}.png").read_bytes())
        lines.append({"file_name": f"{name}.png", "place": place})
    (tmp_path / "photos/metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (tmp_path / "yunet.onnx").write_bytes((photos.parent / "yunet.onnx").read_bytes())
    more = ["--caption_template", "a photo of sks, in a {place}", "--face_crop"]
    assert prepare(tmp_path / "photos", tmp_path / "d", *more, "--max_enlargement", "3") == 0
    records = {one["id"]: one for one in read_split(tmp_path / "d", "train")}
    assert records["tall"]["text"] == "a photo of sks, in a park" and records["tall"]["place"] == "park"
    assert records["wide"]["text"] == "a photo of sks"
    image = Image.open(records["tall"]["path"])
    assert image.size == (SIDE, SIDE)
    reds = np.asarray(image).astype(int)
    share = ((reds[..., 0] - reds[..., 1:].mean(-1)) > 100).mean()
    assert share == pytest.approx(1 / faces.HEAD**2, rel=0.15)


def test_of_two_copies_of_a_photo_the_one_with_a_caption_is_kept(photos, tmp_path):
    (tmp_path / "photos").mkdir()
    image = Image.open(photos / "wide.png")
    image.save(tmp_path / "photos/a.png")
    image.filter(ImageFilter.GaussianBlur(0.5)).save(tmp_path / "photos/b.png")
    (tmp_path / "photos/b.txt").write_text("a person at home")
    assert prepare(tmp_path / "photos", tmp_path / "d", detector=False) == 0
    assert [(one["id"], one["text"]) for one in read_split(tmp_path / "d", "train")] == [("b", "a person at home")]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--portraits", "a", "--pad", "white"], "--pad white: does nothing without --catalogue"),
        (["--catalogue", "a", "--face_crop"], "--face_crop: does nothing without --portraits"),
        (["--portraits", "a", "--any_faces"], "--any_faces: does nothing without --face_detector"),
        (["--portraits", "a", "--exposure", "9", "3"], "--exposure 9 3: expected the first number below the second"),
        (["--portraits", "a", "--exposure", "nan", "3"], "--exposure nan: expected a number, 0 to 255"),
        (["--portraits", "a", "--min_sharpness", "inf"], "--min_sharpness inf: expected a number, 0 to 1,000,000"),
        (["--portraits", "a", "--caption_template", "a {name"], "--caption_template a {name: a brace outside"),
        (["--catalogue", "a", "--output_dir", "b", "--caption_template", "{name.__class__}"], "a brace outside"),
        (["--portraits", "a", "--min_face_share", "5%"], "5%: expected a number, 0 to 1, such as 0.05"),
        (["--portraits", "a", "--resolution", "500"], "--resolution 500: expected a multiple of 8, such as 496"),
        (["--portraits", "a", "--num_workers", "100000"], "100000: expected a whole number, 1 to 256"),
        (["--portraits", "a", "--no-aspect_ratio_buckets"], "is now --no-use_aspect_ratio_buckets"),
        (["--portraits", ""], "--catalogue DIR, --portraits DIR or --verify DIR: give one of them"),
        (["--portraits", "a", "--catalogue", "b"], "--catalogue b: does not go with --portraits"),
        (["--catalogue", "a", "--caption_model", ""], "--caption_model '': is empty; give another value"),
        (["--catalogue", "a", "--caption_model", "--caption_prompt", ""], "--caption_prompt '': is empty; give"),
        (["--verify", "d", "--face_crop"], "--face_crop: does nothing without a new dataset, which --verify does not"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(words, said, capsys):
    with pytest.raises(SystemExit):
        prepare_dataset.parse_args([*words, "--output_dir", "b"])
    assert said in capsys.readouterr().err


def test_the_folder_to_write_is_asked_for_beside_the_photos(capsys):
    with pytest.raises(SystemExit):
        prepare_dataset.parse_args(["--portraits", "me"])
    assert "--output_dir: is missing; give the folder to write, not inside me" in capsys.readouterr().err


def test_a_face_crop_without_a_model_to_be_had_says_where_to_get_one(photos, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="--face_detector yunet: .*face_detection_yunet_2023mar.onnx.*crop the photos"):
        prepare(photos, tmp_path / "d", "--face_crop", detector=False)
    assert not (tmp_path / "d").exists()


def test_errors_name_the_flag_that_was_given(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^--portraits .*empty") as error:
        prepare(tmp_path / "empty", tmp_path / "d", detector=False)
    assert "--catalogue" not in str(error.value)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (2000, 500), (512, 512), (31, 700)])
def test_a_frame_lies_in_the_photo_has_a_bucket_s_proportions_and_holds_the_face(size):
    shapes = portraits.portrait_shapes(512, True)
    for x in (0.1, 0.5, 0.9):
        side = min(size) * 0.3
        left, top = x * (size[0] - side), x * (size[1] - side)
        face = Face((left, top, left + side, top + side), ((0.0, 0.0),) * 5, 1.0)
        box, shape = portraits.frame_photo(size, face, shapes, face_crop=False)
        assert 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1] and shape in shapes
        assert box[0] <= left + 1 and box[1] <= top + 1 and left + side <= box[2] + 1 and top + side <= box[3] + 1
        across, down = box[2] - box[0], box[3] - box[1]
        assert across / down == pytest.approx(shape[0] / shape[1], rel=0.1)
        assert across == size[0] or down == size[1]  # as much as can be
