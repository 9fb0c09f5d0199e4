"""Encoders, their cache, and what a set of images is."""

import hashlib
import json

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, Dinov2Config, Dinov2Model

from demo.shoes import draw_shoe
from evaluation import features
from evaluation.adherence import clip_scores
from evaluation.features import image_features, load_encoder, text_features
from evaluation.image_sets import read_images, spell_alike
from utils import image_checks
from utils.cli import UserError
from utils.hub import DEMO


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("demo")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, colour in enumerate(("Red", "Blue", "Green", "Black")):
        draw_shoe("Boots", colour, str(i), (96, 96)).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def counting(encoder, calls: list):
    return encoder._replace(forward=lambda batch: calls.append(len(batch)) or encoder.forward(batch))


def test_a_second_time_nothing_is_computed(encoder, files, tmp_path):
    calls = []
    first = image_features(counting(encoder, calls), files, tmp_path, batch_size=3)
    assert calls == [3, 1] and first.shape == (4, encoder.size) and first.dtype == np.float32
    copy = tmp_path / "renamed.png"  # what a file holds counts, not its name
    copy.write_bytes(files[2].read_bytes())
    again = image_features(counting(encoder, calls), [copy, *files[::-1]], tmp_path, workers=2)
    assert calls == [3, 1] and np.array_equal(again, first[[2, 3, 2, 1, 0]])
    draw_shoe("Heels", "Pink", "new", (96, 96)).save(copy)
    image_features(counting(encoder, calls), [*files, copy, copy], tmp_path)
    assert calls == [3, 1, 1]  # only what is new, and once


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_damaged_entries_are_made_again(encoder, files, tmp_path, harm):
    first = image_features(encoder, files, tmp_path)
    shard = next(tmp_path.rglob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-5] ^= 64
    shard.write_bytes(data[:-9] if harm == "cut" else data)
    calls = []
    again = image_features(counting(encoder, calls), files, tmp_path)
    assert calls == [4] and np.allclose(again, first, atol=1e-5)


def test_another_transform_or_other_weights_have_a_cache_of_their_own(encoder, files, tmp_path, monkeypatch):
    image_features(encoder, files, tmp_path)
    whole = CLIPImageProcessorPil.from_pretrained

    def darker(place):
        processor = whole(place)
        processor.image_mean = (0.4, 0.4, 0.4)
        return processor

    monkeypatch.setattr(CLIPImageProcessorPil, "from_pretrained", darker)
    other, calls = load_encoder("demo"), []
    assert other.fingerprint != encoder.fingerprint
    image_features(counting(other, calls), files, tmp_path)
    assert calls == [4] and len(list(tmp_path.iterdir())) == 2


def test_any_size_and_mode_gives_features(encoder, tmp_path):
    shoe = draw_shoe("Sandals", "Red", "1", (128, 128))
    shoe.save(tmp_path / "a.png")
    shoe.convert("RGBA").save(tmp_path / "b.png")
    shoe.convert("P").save(tmp_path / "c.gif")
    shoe.convert("L").save(tmp_path / "d.jpg")
    shoe.convert("CMYK").save(tmp_path / "e.jpg", quality=95)
    Image.fromarray(np.asarray(shoe.convert("L"), np.uint16) * 257).save(tmp_path / "f.png")
    shoe.resize((513, 259)).save(tmp_path / "g.png")
    shoe.resize((7, 300)).save(tmp_path / "h.png")
    found = image_features(encoder, sorted(tmp_path.iterdir()), None)
    assert found.shape == (8, encoder.size) and np.isfinite(found).all()
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert unit[0] @ unit[1] > 0.9999 and unit[0] @ unit[4] > 0.95


def test_reduction_averages_and_skips_no_pixel(encoder):
    """A chessboard of single pixels is grey from afar; a reduction that skips pixels makes stripes of it."""
    board = np.indices((520, 520)).sum(0) % 2 * 255
    board = Image.fromarray(np.stack([board] * 3, 2).astype(np.uint8))
    for prepare in (encoder.prepare, features._prepare_inception):
        assert prepare(board).std() < 0.05 * max(1, np.abs(prepare(board)).max())


def test_what_cannot_be_read_or_is_no_number_is_named(encoder, files, tmp_path):
    (tmp_path / "bad.png").write_bytes(files[0].read_bytes()[:200])
    with pytest.raises(UserError, match="bad.png"):
        image_features(encoder, [files[0], tmp_path / "bad.png"], None)
    nan = encoder._replace(forward=lambda batch: encoder.forward(batch) * np.array([[1], [np.nan]], np.float32))
    with pytest.raises(UserError, match="not a number in those of .*1.png"):
        image_features(nan, files[:2], tmp_path / "cache")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_texts_are_computed_once_and_long_ones_keep_their_end(encoder):
    calls = []
    counted = encoder._replace(embed_texts=lambda texts: calls.append(len(texts)) or encoder.embed_texts(texts))
    found = text_features(counted, ["red boots", "blue heels", "red boots"])
    assert calls == [2] and np.array_equal(found[0], found[2])
    limit = 32  # demo/clip's: the first 30 words, with begin and end
    long, cut = text_features(encoder, ["red " * 60, "red " * (limit - 2)])
    assert np.allclose(long, cut, atol=1e-5)


def test_dinov2_sees_the_whole_image(tmp_path):
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    BitImageProcessorPil(**size).save_pretrained(tmp_path)
    encoder = load_encoder("dinov2", str(tmp_path))
    image = Image.new("RGB", (128, 128), "white")
    framed = image.copy()
    framed.paste((0, 0, 0), (0, 0, 128, 4))
    one, other = encoder.forward(np.stack([encoder.prepare(each) for each in (image, framed)]))
    with pytest.raises(UserError, match="--encoders .*lack .* of the weights of a Dinov2Model, such as"):
        load_encoder("dinov2", str(DEMO / "clip"))  # it would be loaded with random layers, and a warning
    assert encoder.size == 32 and encoder.embed_texts is None and np.abs(one - other).max() > 1e-4


class TinyInception(torch.nn.Module):
    """Takes what the FID network takes."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(x.float() / 128 - 1, 2)
        return small.flatten(1) if return_features else small.mean((2, 3))


def test_inception_is_a_torchscript_file_with_its_checksum(files, tmp_path):
    path = tmp_path / "network.pt"
    torch.jit.script(TinyInception()).save(str(path))
    with pytest.raises(UserError, match="its sha256 is .* expected f58cb9b6"):
        load_encoder("inception", str(path))
    encoder = load_encoder("inception", str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert encoder.size == 12 and image_features(encoder, files, tmp_path).shape == (4, 12)
    with pytest.raises(UserError, match="no such file"):
        load_encoder("inception", str(tmp_path / "none.pt"))
    path.write_bytes(b"weights of another kind")
    with pytest.raises(UserError, match="network.pt: does not give features"):
        load_encoder("inception", str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def test_without_the_hub_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # or it asks for a minute
    for name in ("clip", "dinov2"):
        with pytest.raises(UserError) as raised:
            load_encoder(name, "owner/not-in-any-cache")
        text = str(raised.value)
        assert "owner/not-in-any-cache" in text and "hf download" in text and "demo" in text and "\n" not in text
    with pytest.raises(UserError, match="no such encoder"):
        load_encoder("vgg")


def test_a_set_is_a_split_a_generation_folder_or_any_images(files, trainer_data, tmp_path):
    split = read_images(trainer_data["prepared"] / "train", "--real")
    assert split[0]["path"].is_file() and split[0]["colour"] and split[0]["text"] and split[0]["id"]
    with pytest.raises(UserError, match="--real .*is a dataset; give one of its splits"):
        read_images(trainer_data["prepared"], "--real")
    plain = read_images(files[0].parent, "--generated")
    assert [one["path"] for one in plain] == files and {one["text"] for one in plain} == {None}
    made = tmp_path / "made"
    (made / "images").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "MANIFEST.json"):
        (made / name).write_text("{}")
    lines = [
        {"file_name": f"images/{i:06d}.png", "text": "red boots", "attributes": {"colour": "Red"}} for i in range(3)
    ]
    (made / "metadata.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    for i in range(2):  # the third is not there
        (made / f"images/{i:06d}.png").write_bytes(files[0].read_bytes())
    found = read_images(made, "--generated")
    assert [one["id"] for one in found] == ["000000", "000001"] and found[0]["colour"] == "Red"
    for name in ("config.yaml", "environment.json", "MANIFEST.json"):  # the lines and images alone, copied elsewhere
        (made / name).unlink()
    assert read_images(made, "--generated") == found
    with pytest.raises(UserError, match="--train .*no such folder"):
        read_images(tmp_path / "none", "--train")
    (made / "metadata.jsonl").write_text('{"file_name": 5, "text": "x", "attributes": {}}\n')
    with pytest.raises(UserError, match="metadata.jsonl: `file_name: 5`: expected a file's name"):
        read_images(made, "--generated")


def test_columns_have_one_name_and_values_one_spelling_in_all_sets(files, tmp_path):
    """As catalogue, template and hand-written table call them: what differs in case alone is the same colour."""
    said = {
        "real": {"baseColour": "Black", "season": "Fall"},
        "generated": {"colour": "black ", "ArticleType": "Boots", "year": 2012.0},
        "other": {"attributes": {"Colour": "", "color": "BLACK", "articleType": "boots", "ID": "mine", "heel": None}},
    }
    for name, row in said.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(files[0].read_bytes())
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "x", **row}) + "\n")
    found = spell_alike({name: read_images(tmp_path / name, "--real") for name in said})
    real, generated, other = (found[name][0] for name in said)
    assert real["colour"] == generated["colour"] == other["colour"] == "Black" and real["season"] == "Fall"
    assert generated["article"] == other["article"] == "Boots" and generated["year"] == "2012"
    assert other["id"] == "a" and not {"baseColour", "Colour", "articleType"} & {*real, *generated, *other}


def test_clip_scores_are_cosines_of_these_features(encoder, files):
    clip, texts = image_checks.load_clip("demo"), ["red boots"] * 4
    images = [Image.open(one).convert("RGB") for one in files]
    cosines = image_checks.cosines(image_features(encoder, files, None), text_features(encoder, texts))
    assert np.allclose(cosines, image_checks.clip_scores(clip, images, texts), atol=1e-5)
    records = [{"path": one, "text": text} for one, text in zip(files, texts)]
    found = clip_scores(encoder, image_features(encoder, files, None), [*records[:3], {"text": None}])
    assert np.allclose(found[:3], cosines[:3], atol=1e-5) and np.isnan(found[3]) and abs(found[:3]).max() < 1
