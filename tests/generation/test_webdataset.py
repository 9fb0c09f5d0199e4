import json
import tarfile

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from demo.shoes import draw_shoe
from generation.contact_sheets import write_sheets
from utils.cli import UserError
from utils.webdataset import is_whole, shard_keys, shard_path, write_shard


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made = []
    for i in range(7):
        colour = ("Red", "Blue")[i % 2]
        draw_shoe("Boots", colour, str(i), (32, 32)).save(folder / f"{i:06d}.png")
        attributes = {"colour": colour.lower(), "size": i, "season": None if i % 3 else "été"}
        record = {"text": f"a photo of {colour.lower()} boots", "seed": i, "attributes": attributes}
        made.append((f"{i:06d}", folder / f"{i:06d}.png", record))
    return made


def write_shards(folder, samples, per_shard):
    shards = [shard_path(folder, number) for number in range(-(-len(samples) // per_shard))]
    for number, shard in enumerate(shards):
        write_shard(shard, samples[number * per_shard : (number + 1) * per_shard])
    return shards


def test_shards_hold_each_image_with_its_record(tmp_path, samples):
    shards = write_shards(tmp_path / "out", samples, per_shard=3)
    assert [shard.name for shard in shards] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert sum((shard_keys(shard) for shard in shards), []) == [key for key, _, _ in samples]
    with tarfile.open(shards[1]) as tar:
        assert tar.extractfile("000004.png").read() == samples[4][1].read_bytes()
        assert json.load(tar.extractfile("000004.json")) == samples[4][2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [shard.name for shard in shards]


def test_datasets_reads_the_shards(tmp_path, samples):
    shards = [str(shard) for shard in write_shards(tmp_path / "out", samples, per_shard=4)]
    rows = load_dataset("webdataset", data_files=shards, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 7
    for row, (key, path, record) in zip(rows, samples):
        assert row["__key__"] == key and row["json"] == record
        assert np.array_equal(row["png"].convert("RGB"), np.asarray(Image.open(path)))


def test_the_same_samples_give_the_same_bytes(tmp_path, samples):
    first, second = tmp_path / "first.tar", tmp_path / "second.tar"
    write_shard(first, samples)
    # from memory, and with the records' keys in another order
    write_shard(second, [(key, path.read_bytes(), dict(reversed(record.items()))) for key, path, record in samples])
    assert first.read_bytes() == second.read_bytes()


def test_a_shard_is_whole_or_not_there(tmp_path, samples):
    def broken():
        yield samples[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", broken())
    assert not list(tmp_path.iterdir())
    write_shard(tmp_path / "a.tar", samples)
    was = (tmp_path / "a.tar").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", broken())
    assert (tmp_path / "a.tar").read_bytes() == was and len(list(tmp_path.iterdir())) == 1


def test_a_damaged_shard_is_named(tmp_path, samples):
    write_shard(tmp_path / "a.tar", samples)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    with pytest.raises(UserError, match="a.tar: .*remove it"):
        shard_keys(tmp_path / "a.tar")
    assert not is_whole(tmp_path / "a.tar")


def test_a_key_with_a_dot_is_refused(tmp_path, samples):
    with pytest.raises(ValueError, match="no dot"):
        write_shard(tmp_path / "a.tar", [("a.b", *samples[0][1:])])


def test_contact_sheets_show_every_image(tmp_path, samples):
    images = [(path, record["text"]) for _, path, record in samples]
    sheets = list(write_sheets(tmp_path / "sheets", images, per_sheet=4, columns=2, side=64))
    assert [sheet.name for sheet in sheets] == ["sheet-0001.jpg", "sheet-0002.jpg"]
    assert sorted((tmp_path / "sheets").iterdir()) == sheets
    sheet, last = (np.asarray(Image.open(path)).astype(int) for path in sheets)
    assert sheet.shape == last.shape and sheet.shape[1] == 2 * 64 + 4
    tile = np.asarray(Image.open(samples[1][1]).resize((64, 64), Image.Resampling.NEAREST)).astype(int)
    assert np.abs(sheet[:64, 68:] - tile).mean() < 4  # the second image at the top right
    assert sheet[64:90, 68:].min() < 100 and last[-40:, 68:].min() > 240  # a caption, and no eighth image


def test_contact_sheets_keep_the_proportions(tmp_path):
    Image.new("RGB", (400, 200), "red").save(tmp_path / "wide.png")
    (sheet,) = write_sheets(tmp_path, [(tmp_path / "wide.png", "")], side=64)
    pixels = np.asarray(Image.open(sheet)).astype(int)
    assert pixels[8].min() > 240 and pixels[32, :, 1].max() < 20


def test_contact_sheets_read_one_sheet_of_images_at_a_time(tmp_path, samples):
    late = tmp_path / "late.png"
    sheets = write_sheets(tmp_path / "sheets", [(samples[0][1], "a"), (samples[1][1], "b"), (late, "c")], per_sheet=2)
    assert next(sheets).name == "sheet-0001.jpg"  # though the next one's image is not there yet
    late.write_bytes(samples[2][1].read_bytes())
    assert [path.name for path in sheets] == ["sheet-0002.jpg"]


def test_an_image_that_cannot_be_shown_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="a.png: empty file"):
        list(write_sheets(tmp_path, [(tmp_path / "a.png", "a")]))
