"""Images to train on: of any layout, upright, in the right shape, with true crop coordinates."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from families import models
from families.models import DEMO_MODEL
from training import examples, read_data
from training.examples import Record, View, Views
from training.read_data import DataSet
from training.sample_plan import SamplePlan, draw_position
from utils import dataset, images
from utils.catalogue import Source
from utils.cli import UserError

SQUARE = [(64, 64)]


def noise(width, height, seed=0):
    """Smooth enough to be resized, and no two places alike."""
    small = np.random.default_rng(seed).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def make_folder(folder, count=3, captions=True):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        noise(80, 64, i).save(folder / f"p{i}.png")
        if captions:
            (folder / f"p{i}.txt").write_text(f"shoe {i}")
    return folder


def folder_source(place, caption_column="text", **more):
    return Source(str(place), "--train_data_dir", more.pop("image_column", None), caption_column, **more)


def read(place, *columns, held_out=0.0, **more):
    return read_data.read_training_records([DataSet(folder_source(place, *columns, **more))], held_out)


def load_one(path, shapes=SQUARE):
    return examples.load_examples([Record("a", path, "a shoe")], shapes)[0]


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8, 9])
def test_size_and_pixels_are_those_of_the_upright_image(tmp_path, ending, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    options = {"quality": 95} if ending != "tif" else {}
    noise(128, 64).save(path, exif=exif, **options)
    image = load_one(path, [(64, 64), (128, 64), (64, 128)])
    turned = orientation in (6, 8)
    assert image.size == image.shape == ((64, 128) if turned else (128, 64))
    turns = {3: 180, 6: 270, 8: 90}.get(orientation, 0)
    upright = noise(128, 64).rotate(turns, expand=True)
    found = examples.example_tensor(image, View())
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1).float() / 127.5 - 1
    assert found.shape == expected.shape and (found - expected).abs().mean() < 0.1


def test_transparency_is_white_and_every_mode_becomes_rgb(tmp_path):
    clear = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 32, 64))
    clear.save(tmp_path / "a.png")
    pixels = examples.example_tensor(load_one(tmp_path / "a.png"), View())
    assert pixels.shape == (3, 64, 64) and torch.all(pixels[:, :, 40:] == 1)
    assert pixels[:, 0, 0].tolist() == [-1, -1, 1]
    Image.new("L", (64, 64), 0).save(tmp_path / "b.png")
    assert torch.all(examples.example_tensor(load_one(tmp_path / "b.png"), View()) == -1)


@pytest.mark.parametrize("size", [(64, 64), (603, 400), (400, 603), (65, 64), (1000, 64), (40, 33)])
def test_the_centre_is_what_the_diffusers_scripts_take(tmp_path, size):
    noise(*size).save(tmp_path / "a.png")
    image = noise(*size)
    # torchvision's Resize(64, LANCZOS) and CenterCrop(64), as it works them out
    short, long = sorted(size)
    new = int(64 * long / short)
    shape = (64, new) if size[0] <= size[1] else (new, 64)
    image = image if size == shape else image.resize(shape, Image.Resampling.LANCZOS)
    left, top = round((shape[0] - 64) / 2), round((shape[1] - 64) / 2)
    expected = np.array(image.crop((left, top, left + 64, top + 64)))
    found = examples.example_tensor(load_one(tmp_path / "a.png"), View())
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1).float() / 127.5 - 1)


@pytest.mark.parametrize("size", [(200, 90), (90, 200), (64, 64), (97, 101)])
@pytest.mark.parametrize("crops", [0, 5])
def test_random_crops_lie_within_the_image_and_reach_its_ends(tmp_path, size, crops):
    noise(*size).save(tmp_path / "a.png")
    image = load_one(tmp_path / "a.png", [(64, 64)])
    places = set()
    for draw in torch.linspace(0, 0.9999, 60).tolist():
        view = examples.choose_view(image, draw, crops, False)
        (width, height), (left, top) = examples.crop_place(image, view)
        assert 0 <= left <= width - 64 and 0 <= top <= height - 64 and min(width, height) == 64
        assert examples.choose_view(image, draw, crops, False) == view
        places.add((left, top))
    room = max(examples.crop_place(image, View())[0]) - 64
    assert len(places) <= (crops or 60) and (room < 20 or len(places) > (3 if crops else 20))
    ends = {examples.crop_place(image, View(x, x))[1] for x in (0.0, 1.0)}
    assert (0, 0) in ends and max(map(max, ends)) == room


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(200, 90), (90, 200)])
def test_time_ids_say_where_in_the_seen_image_the_crop_lies(tmp_path, size, flip):
    noise(*size).save(tmp_path / "a.png")
    image = load_one(tmp_path / "a.png", [(64, 96)])
    view = View(0.2, 0.7, flip)
    height, width, top, left, target_height, target_width = examples.time_ids(image, view)
    assert (width, height) == size and (target_width, target_height) == (64, 96)
    seen = noise(*size).resize(examples.crop_place(image, view)[0], Image.Resampling.LANCZOS)
    seen = ImageOps.mirror(seen) if flip else seen
    part = np.array(seen.crop((left, top, left + target_width, top + target_height)))
    found = examples.example_tensor(image, view)
    assert torch.equal(found, torch.from_numpy(part).permute(2, 0, 1).float() / 127.5 - 1)
    assert left + top > 0


def test_a_key_changes_with_all_that_decides_the_pixels_and_with_nothing_else(tmp_path):
    noise(200, 90).save(tmp_path / "a.png"), noise(200, 90, 1).save(tmp_path / "b.png")
    one, other = load_one(tmp_path / "a.png"), load_one(tmp_path / "b.png")
    variants = [
        (one, View(), "lanczos"),
        (other, View(), "lanczos"),
        (one._replace(shape=(32, 32)), View(), "lanczos"),
        (one, View(0.1), "lanczos"),
        (one, View(flip=True), "lanczos"),
        (one, View(), "bicubic"),
    ]
    assert len({examples.view_key(*variant) for variant in variants}) == len(variants)
    again = one._replace(id="elsewhere", source=tmp_path / "moved.png", text="another caption")
    assert examples.view_key(again, View(), "lanczos") == examples.view_key(*variants[0])
    # where cropping leaves no room up or down, that choice shows the same
    assert examples.view_key(one, View(0.5, 0.9), "lanczos") == examples.view_key(*variants[0])


def test_all_views_are_all_that_draws_ask_for(tmp_path):
    found = examples.load_examples(
        [Record(path.stem, path, "x") for path in sorted(make_folder(tmp_path).glob("*.png"))], SQUARE
    )
    for crops, flip, count in ((1, False, 3), (4, False, 12), (4, True, 24), (0, True, 0)):
        views = Views(crops, flip, "lanczos").of(found)
        assert len(views) == count
        for draw in torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist() if crops else ():
            for mirrored in {False, flip}:
                assert (found[0], examples.choose_view(found[0], draw, crops, mirrored)) in views
    assert Views(4, True, "bicubic").centre().of(found) == [(one, View()) for one in found]


@pytest.mark.parametrize("resolution,step", [(512, 64), (1024, 64), (768, 8), (64, 64), (128, 16)])
def test_bucket_shapes_are_multiples_of_about_one_area(resolution, step):
    shapes = images.bucket_shapes(resolution, step)
    assert (resolution, resolution) in shapes and len(set(shapes)) == len(shapes)
    for width, height in shapes:
        assert width % step == height % step == 0 and (height, width) in shapes
        assert 0.85 * resolution**2 <= width * height <= resolution**2
        assert 0.49 <= width / height <= 2.05
    assert len(shapes) > 1 or resolution == step


def test_an_image_goes_to_the_shape_nearest_in_proportion():
    shapes = images.bucket_shapes(512, 64)
    assert images.nearest_shape((3000, 3000), shapes) == (512, 512)
    assert images.nearest_shape((4000, 1000), shapes) == max(shapes)
    assert images.nearest_shape((90, 70), shapes) == (576, 448) and images.nearest_shape((70, 90), shapes) == (448, 576)


def test_a_resolution_that_the_model_can_not_take_is_refused_with_the_nearest():
    assert models.training_shapes(str(DEMO_MODEL), 128, False) == [(128, 128)]
    with pytest.raises(UserError, match="--resolution 130: this model takes multiples of .*, such as 128"):
        models.training_shapes(str(DEMO_MODEL), 130, False)


def test_listed_shapes_are_heights_and_widths_and_images_go_to_the_nearest(tmp_path):
    shapes = examples.fitting_shapes(str(DEMO_MODEL), 512, True, "128,96;96,160;128,96")
    assert shapes == [(96, 128), (160, 96)]  # (width, height), each once
    for name, size in (("tall", (90, 128)), ("wide", (300, 170))):
        noise(*size).save(tmp_path / f"{name}.png")
    found = [load_one(tmp_path / f"{name}.png", shapes) for name in ("tall", "wide")]
    assert [one.shape for one in found] == [(96, 128), (160, 96)]
    assert [tuple(examples.example_tensor(one, View()).shape) for one in found] == [(3, 128, 96), (3, 96, 160)]


@pytest.mark.parametrize("listed", ["128,100", "128,128;100,128", "8,8"])
def test_listed_sides_that_the_model_can_not_take_are_refused(listed):
    bad = listed.split(";")[-1]
    with pytest.raises(UserError, match=f"^--aspect_ratio_buckets {bad}: this model takes multiples of .*; ") as error:
        examples.fitting_shapes(str(DEMO_MODEL), 128, True, listed)
    assert "\n" not in str(error.value)


def test_without_a_list_the_shapes_are_those_of_the_resolution():
    assert examples.fitting_shapes(str(DEMO_MODEL), 128, False) == [(128, 128)]
    several = examples.fitting_shapes(str(DEMO_MODEL), 128, True)
    assert several == models.training_shapes(str(DEMO_MODEL), 128, True) and len(several) > 1


def test_whether_proportions_are_kept_is_as_asked_or_else_as_the_data_was_prepared(tmp_path):
    for prepared, option in ((True, "use_aspect_ratio_buckets"), (True, "aspect_ratio_buckets"), (False, "other")):
        folder = tmp_path / option
        folder.mkdir()
        facts = {"format": dataset.FORMAT, "counts": {"train": 1}, "duplicates": {}, "fingerprint": "x"}
        (folder / "metadata.json").write_text(json.dumps(facts | {"options": {option: prepared}}))
        assert read_data.choose_buckets(None, None, [str(folder)]) is prepared
        assert read_data.choose_buckets(None, None, [str(folder / "train")]) is prepared
        assert read_data.choose_buckets(False, None, [str(folder)]) is False
        assert read_data.choose_buckets(True, None, [str(folder)]) is True
        assert read_data.choose_buckets(None, "64,64", [str(folder)]) is True
    assert read_data.choose_buckets(None, None, [str(tmp_path)]) is False


@pytest.mark.parametrize("spoilt", ["train/metadata.jsonl", "metadata.json", "image", "MANIFEST.json"])
def test_a_prepared_dataset_that_has_changed_is_refused(trainer_data, tmp_path, spoilt):
    folder = shutil.copytree(trainer_data["prepared"], tmp_path / "data")
    assert examples.load_examples(read(folder)[0], SQUARE)
    path = next((folder / "train" / "images").iterdir()) if spoilt == "image" else folder / spoilt
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if spoilt != "MANIFEST.json" else content[:-9])
    for place in (folder, folder / "train"):  # as a diffusers script wants it
        with pytest.raises(UserError, match=f"{path.name} (has changed since|is damaged)"):
            examples.load_examples(read(place)[0], SQUARE)


def test_missing_captions_are_counted(tmp_path):
    folder = make_folder(tmp_path / "d", 5)
    for i in (1, 3):
        (folder / f"p{i}.txt").unlink()
    records, _ = read_data.read_records(folder_source(folder))
    with pytest.raises(UserError, match=r"2 of 5 images have no caption.*p1.png.*--caption_column"):
        examples.load_examples(records, SQUARE)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", b"\0\0\0\x18ftypheic\0\0"],
)
def test_what_is_no_image_is_named_before_any_work(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a.png is (empty|not an image|HEIC \(convert it)"):
        load_one(tmp_path / "a.png")


def test_an_image_of_too_many_pixels_is_refused_in_one_line_without_pillows_own(tmp_path, recwarn):
    for width in (9_500, 10_500):
        Image.new("1", (width, 10_000)).save(tmp_path / f"{width}.png")
    records = [Record(path.stem, path, "boots") for path in sorted(tmp_path.iterdir())]
    with pytest.raises(UserError, match="1 of 2 images: .*10500.png has 10500x10000 pixels, more than 100,000,000"):
        examples.load_examples(records, [(64, 64)])
    assert not [one for one in recwarn if one.category is Image.DecompressionBombWarning]


def test_an_image_that_vanishes_or_is_cut_off_later_is_named(tmp_path):
    noise(200, 100).save(tmp_path / "a.png")
    image, content = load_one(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"a.png can't be read \(truncated"):
        examples.example_tensor(image, View())
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="a.png can't be read .*No such file"):
        examples.example_tensor(image, View())


def test_what_is_held_out_stays_so_when_data_grows():
    records = [Record(f"shoe-{i}", Path("x.png"), "x") for i in range(2000)]
    train, held_out = read_data.hold_out(records, 0.1)
    assert 150 < len(held_out) < 250 and len(train) + len(held_out) == 2000
    new = [Record(f"new-{i}", Path("x.png"), "x") for i in range(500)]
    grown_train, grown_held_out = read_data.hold_out(new + records[::-1], 0.1)
    assert set(held_out) <= set(grown_held_out) and set(train) <= set(grown_train)
    assert set(held_out) <= set(read_data.hold_out(records, 0.2)[1])
    assert read_data.hold_out(records, 0.0) == (records, [])
    few = read_data.choose_records([(records[:5], [])], 0.0001, None, 0, "image")
    assert [len(part) for part in few] == [4, 1] and set(few[1]) <= set(read_data.hold_out(records, 0.9)[1])


@pytest.mark.parametrize(
    "count, share, said",
    [
        (1, 0.1, "0.1: holds out all of 1 image, by a hash of each one's id; leave it out"),
        (3, 0.999, "0.999: holds out all of 3 images, .*; give a smaller share, or leave it out"),
    ],
)
def test_a_share_that_holds_out_all_is_an_error(tmp_path, count, share, said):
    for i in range(count):
        Image.new("RGB", (8, 8)).save(tmp_path / f"photo-{i}.png")
    with pytest.raises(UserError, match=f"--held_out {said}"):
        read(tmp_path, held_out=share)


def test_of_several_sets_an_epoch_has_each_image_as_often_as_its_set_says(tmp_path):
    sources = [folder_source(make_folder(tmp_path / name, count)) for name, count in (("a", 3), ("b", 2))]
    sets = [DataSet(sources[0]), DataSet(sources[1], repeats=3, prefix="in blue,")]
    epoch = examples.load_examples(read_data.read_training_records(sets)[0], SQUARE)
    plan = SamplePlan(0, tuple(one.shape for one in epoch), effective=2)
    drawn = [epoch[draw_position(plan, position).index].id for position in range(2 * len(epoch))]
    assert {one: drawn.count(one) for one in drawn} == {"1/p0": 2, "1/p1": 2, "1/p2": 2, "2/p0": 6, "2/p1": 6}
    assert {one.id: one.text for one in epoch if one.id[0] == "2"} == {f"2/p{i}": f"in blue, shoe {i}" for i in (0, 1)}
    once = examples.load_examples(read_data.read_training_records([*sets[:1], sets[1]._replace(repeats=1)])[0], SQUARE)
    assert set(once) == set(epoch) and examples.data_fingerprint(once) != examples.data_fingerprint(epoch)


def test_tags_are_in_so_many_orders_the_same_in_every_run_and_the_first_stay():
    record = Record("a", Path("a.png"), "my boots, red, tall,  of suede, old, worn")
    orders = [examples.shuffle_tags(record, 5, keep) for keep in (0, 2)]
    assert [len(one.captions) for one in orders] == [5, 5] and len(set(orders[0].captions)) > 3
    tags = [sorted(text.split(", ")) for one in orders for text in one.captions]
    assert all(one == ["my boots", "of suede", "old", "red", "tall", "worn"] for one in tags)
    assert all(text.startswith("my boots, red, ") for text in orders[1].captions) and len(set(orders[1].captions)) > 1
    assert examples.shuffle_tags(record, 3, 2).captions == orders[1].captions[:3]  # a cache serves other numbers too
    both = examples.shuffle_tags(record._replace(captions=("a, b", "c")), 2, 0).captions
    assert len(both) == 4 and set(both[:2]) <= {"a, b", "b, a"} and both[2:] == ("c", "c")


def test_several_captions_of_an_image_are_lines_or_a_list_where_they_are_asked_for(tmp_path):
    folder = make_folder(tmp_path / "lines", 2)
    (folder / "p0.txt").write_text("a shoe\n\n  a red   shoe\n")
    root = make_imagefolder(tmp_path / "list", ["train"]) / "train"
    lines = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    lines[0]["text"] = ["a shoe", "a red shoe"]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for place in (folder, root):
        several = folder_source(place, several_captions=True)
        first, *others = read_data.read_training_records([DataSet(several, prefix="my")])[0]
        assert (first.text, first.captions) == ("my a shoe", ("my a shoe", "my a red shoe"))
        assert all(one.text and not one.captions for one in others)
        loaded = examples.load_examples([first, *others], SQUARE)
        texts = examples.list_texts(loaded)
        assert texts[:2] == ["my a shoe", "my a red shoe"] and len(texts) == len(loaded) + 1
    assert read(folder)[0][0].text == "a shoe a red shoe" and len(read(root)[0]) == 2  # as before


def test_repeats_in_names_of_folders_as_kohya_has_them_are_warned_of(tmp_path, caplog):
    make_folder(tmp_path / "img" / "shoes")
    assert len(read(tmp_path / "img")[0]) == 3 and not caplog.text
    shutil.move(tmp_path / "img/shoes", tmp_path / "img/10_shoes")
    assert len(read(tmp_path / "img")[0]) == 3 and f"give --train_data_dir {tmp_path}/img/10_shoes:10" in caplog.text


def test_an_image_of_two_sets_is_held_out_of_both_and_once(tmp_path):
    sets = [DataSet(folder_source(make_folder(tmp_path / name, 12)), repeats=2) for name in ("a", "b")]
    train, held_out = read_data.read_training_records(sets, 0.3)
    assert {one.id[2:] for one in held_out} and not {one.id[2:] for one in held_out} & {one.id[2:] for one in train}
    assert len({one.id for one in held_out}) == len(held_out) and len(train) + len(held_out) == 24
    small_train, small_held_out = read_data.read_training_records(sets, 0.0001)
    assert len({one.id[2:] for one in small_held_out}) == 1 and [len(small_train), len(small_held_out)] == [22, 2]
    assert examples.count_epoch(train) == 2 * len(train) and examples.count_epoch(held_out) == len(held_out)


def test_an_image_that_breaks_off_is_found_without_training(tmp_path):
    for i, suffix in enumerate((".jpg", ".bmp", ".png")):
        noise(300, 300, i).save(tmp_path / f"{i}{suffix}")
    for name in ("0.jpg", "1.bmp"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-2000])
    records = [Record(path.stem, path, "boots") for path in sorted(tmp_path.iterdir())]
    found = examples.load_examples(records, [(64, 64)])  # their headers are sound
    with pytest.raises(UserError, match=r"2 of 3 images: .*0.jpg can't be read \(truncated.*1.bmp .*; remove"):
        examples.check_whole(found)
    examples.check_whole(found[2:])


def make_imagefolder(root, splits):
    for number, split in enumerate(splits):
        folder = root / split
        folder.mkdir(parents=True)
        lines = []
        for i in range(3):
            noise(64, 64, 10 * number + i).save(folder / f"{split}{i}.png")
            lines.append(json.dumps({"file_name": f"{split}{i}.png", "text": f"{split} {i}"}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("held", ["val", "validation"])
def test_an_imagefolder_with_splits_never_trains_on_its_test_images(tmp_path, held):
    root = make_imagefolder(tmp_path, ["train", held, "test"])
    train, held_out = read(root, held_out=0.5)
    assert [one.text for one in train] == ["train 0", "train 1", "train 2"]
    assert [one.text for one in held_out] == [f"{held} {i}" for i in range(3)]
    train, held_out = read(make_imagefolder(tmp_path / "b", ["train", "test"]))
    assert len(train) == 3 and not held_out


def test_rows_that_are_left_out_are_reported(tmp_path, caplog):
    root = make_imagefolder(tmp_path, ["train"])
    (root / "train/train1.png").unlink()
    train, _ = read_data.read_records(folder_source(root / "train"))
    assert len(train) == 2 and "1 of 3 rows are left out (no image: 1, as " in caplog.text
    table = root / "train/metadata.jsonl"
    table.write_text(table.read_text() + "\n{")
    read_data.read_records(folder_source(root / "train"))
    assert "row can't be read: 1, as row 4, expected a JSON object with `file_name`: {" in caplog.text


def test_a_choice_of_samples_is_seeded_and_of_training_images_alone(tmp_path):
    source = folder_source(make_imagefolder(tmp_path, ["train", "val"]))
    chosen = [read_data.read_training_records([DataSet(source)], 0.0, 2, seed) for seed in (0, 0, 1, 2, 3)]
    texts = [[one.text for one in train] for train, _ in chosen]
    assert texts[0] == texts[1] and len({tuple(t) for t in texts}) > 1 and all(len(h) == 3 for _, h in chosen)
    assert all(t == sorted(t) and len(t) == 2 for t in texts)


def test_a_saved_hub_dataset_is_read_with_its_splits_and_each_image_when_it_is_needed(tmp_path):
    import datasets

    def rows(split):
        for i in range(3):
            buffer = io.BytesIO()
            noise(80, 64, i + 10 * (split == "test")).save(buffer, "PNG")
            yield {"image": {"bytes": buffer.getvalue(), "path": None}, "caption": f"{split} {i}"}

    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    splits = {s: datasets.Dataset.from_list(list(rows(s)), features=features) for s in ("train", "validation", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "all")
    splits["train"].save_to_disk(tmp_path / "one")
    train, held_out = read(tmp_path / "all", "caption")
    assert [one.text for one in train] == [f"train {i}" for i in range(3)] and len(held_out) == 3
    assert all(one.text.startswith("validation") for one in held_out)
    alone, none = read(tmp_path / "one", "caption", image_column="image")
    found = examples.load_examples(alone, SQUARE)
    assert not none and [one.size for one in found] == [(80, 64)] * 3 and callable(found[0].source)
    expected = np.array(noise(80, 64, 2).crop((8, 0, 72, 64)))
    assert torch.equal(
        examples.example_tensor(found[2], View()), torch.from_numpy(expected).permute(2, 0, 1) / 127.5 - 1
    )
    assert examples.describe(found[2]) == f"image {found[2].id}"
    with pytest.raises(UserError, match="--image_column nothing"):
        read(tmp_path / "one", "caption", image_column="nothing")


def test_an_empty_folder_is_an_error_of_the_training_flag(tmp_path):
    with pytest.raises(UserError, match="--train_data_dir") as error:
        read_data.read_records(folder_source(tmp_path))
    assert "--catalogue" not in str(error.value)


def test_the_fingerprint_of_the_data_knows_images_captions_and_order(tmp_path):
    folder = make_folder(tmp_path)
    found = examples.load_examples(read_data.read_records(folder_source(folder))[0], SQUARE)
    before = examples.data_fingerprint(found)
    assert before == examples.data_fingerprint([one._replace(source=Path("moved")) for one in found])
    others = [
        found[::-1],
        found[:2],
        [found[0]._replace(text="other"), *found[1:]],
        [found[0]._replace(sha256="0"), *found[1:]],
        [found[0]._replace(captions=("a b", "c")), *found[1:]],
        [found[0]._replace(captions=("a", "b c")), *found[1:]],
    ]
    assert len({before, *map(examples.data_fingerprint, others)}) == 1 + len(others)
