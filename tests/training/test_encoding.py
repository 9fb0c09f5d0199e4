"""Captions and latents are keyed by all that makes them: a change of anything is a new entry, never a stale one."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file, save_file

from families import models, sd
from families.models import PLAIN_READING, TextReading
from families.names import FAMILIES
from tests.tiny_models import build_tiny
from training import encoding
from training.examples import Record, View, Views, load_examples
from utils.cli import UserError
from utils.files import CHECKSUMS, file_sha256

TEXTS = ["a photo of red boots", "heels"]


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: build_tiny(tmp_path_factory.mktemp(family), family) for family in ("sd1", "sdxl")}


@pytest.fixture
def model(folders, tmp_path):
    shutil.copytree(folders["sd1"], tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def encoded(monkeypatch):
    """What is really encoded, of captions and of images, in its order."""
    done = []
    for module, name in ((sd, "encode_text"), (encoding, "encode_example")):
        real = getattr(module, name)

        def record(*given, _real=real, **more):
            done.append(given)
            return _real(*given, **more)

        monkeypatch.setattr(module, name, record)
    return done


def change_weight(folder, part, name=""):
    (path,) = Path(folder, part).glob("*.safetensors")
    tensors = load_file(path)
    name = name or sorted(tensors)[0]
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, path, {"format": "pt"})


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_merges(folder):
    path = Path(folder, "tokenizer/tokenizer.json")
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:50]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_cached_captions_are_what_the_encoders_make(folders, tmp_path, accelerator, family):
    features = encoding.encode_captions(tmp_path, folders[family], family, TEXTS, torch.float32, accelerator)
    parts = models.load_text_encoders(folders[family], family, torch.float32)
    zero = models.empty_prompt_is_zero(folders[family])
    wanted = [*TEXTS, "", TEXTS[0]]
    found = features(wanted)
    for text, one in zip(wanted, found):
        (expected,) = FAMILIES[family].encode_text(*parts, [text], zero)
        assert one.keys() == expected.keys() == set(FAMILIES[family].FEATURES)
        assert all(torch.equal(one[name], expected[name]) for name in one)
    assert (not found[2]["embeds"].any()) == (family == "sdxl")  # the empty caption is always there, for dropout


def test_captions_are_encoded_once(model, tmp_path, accelerator, encoded):
    def encode(texts, dtype=torch.float32, reading=PLAIN_READING):
        encoding.encode_captions(tmp_path / "cache", model, "sd1", texts, dtype, accelerator, reading)
        return len(encoded)

    assert encode(TEXTS + TEXTS) == 3
    assert encode(TEXTS[::-1]) == 3  # a second run has them
    assert encode([*TEXTS, "sandals"]) == 4
    assert encode(TEXTS, torch.bfloat16) == 7  # in another precision they are others
    assert encode(TEXTS, reading=TextReading(152)) == 10
    assert encode(TEXTS, reading=TextReading(152, clip_skip=1)) == encode(TEXTS, reading=TextReading(152, 1)) == 13


@pytest.mark.parametrize(
    "change",
    [
        lambda model: change_weight(model, "text_encoder"),
        lambda model: change_json(Path(model, "text_encoder/config.json"), layer_norm_eps=0.1),
        change_merges,
    ],
    ids=["weight", "config", "tokenizer"],
)
def test_another_text_encoder_or_tokenizer_makes_new_entries(model, tmp_path, accelerator, encoded, change):
    def encode():
        read = encoding.encode_captions(tmp_path / "cache", model, "sd1", TEXTS, torch.float32, accelerator)
        return read(TEXTS)[0]["embeds"]

    before = encode()
    change(model)
    after, made = encode(), len(encoded)
    assert made == 6 and not torch.equal(before, after)
    encode()
    assert len(encoded) == 6


@pytest.fixture
def loaded(monkeypatch):
    """The parts whose weights were loaded, in their order."""
    parts = []
    real = models.load_whole

    def record(kind, name, *given, **options):
        parts.append(options.get("subfolder", name))
        return real(kind, name, *given, **options)

    monkeypatch.setattr(models, "load_whole", record)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize("family, encoders", [("sd1", 1), ("sdxl", 2)])
def test_no_weight_is_loaded_where_the_cache_has_everything(folders, tmp_path, accelerator, loaded, family, encoders):
    views = [(one, View()) for one in make_images(tmp_path / "d")]

    def encode(texts, views):
        encoding.encode_captions(tmp_path / "cache", folders[family], family, texts, torch.float32, accelerator)
        read_latents(folders[family], tmp_path / "cache", views, accelerator)
        return len(loaded)

    assert encode(TEXTS, views[:1]) == encoders + 1
    assert encode(TEXTS[::-1], views[:1]) == encoders + 1
    assert encode([*TEXTS, "sandals"], views[:1]) == 2 * encoders + 1 and encode(TEXTS, views) == 2 * encoders + 2
    assert {*loaded} == {*FAMILIES[family].TEXT_ENCODERS, "vae"}


def test_a_weight_changed_in_place_is_noticed_though_its_files_checksum_was_kept(model, tmp_path, accelerator, encoded):
    (path,) = Path(model, "text_encoder").glob("*.safetensors")
    os.utime(path, (1, 1))  # so old that its checksum is kept

    def encode():
        encoding.encode_captions(tmp_path / "cache", model, "sd1", TEXTS, torch.float32, accelerator)
        return len(encoded)

    assert encode() == encode() == 3
    assert str(path) in json.loads((tmp_path / "cache" / CHECKSUMS).read_text())
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with open(path, "r+b") as file:  # the same file, size and time
        file.write(content)
    os.utime(path, (1, 1))
    assert encode() == 6


def test_weights_in_several_files_are_known_by_all_of_them(model, tmp_path):
    before = models.part_sha256(model, "text_encoder", file_sha256)
    encoder = models.load_text_encoders(model, "sd1", torch.float32)[1][0]
    Path(model, "text_encoder/model.safetensors").unlink()
    encoder.save_pretrained(Path(model, "text_encoder"), max_shard_size="20KB")
    files = sorted(Path(model, "text_encoder").glob("model-*.safetensors"))
    sums = [models.part_sha256(model, "text_encoder", file_sha256)]
    for path in files:
        tensors = load_file(path)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, path, {"format": "pt"})
        sums.append(models.part_sha256(model, "text_encoder", file_sha256))
    assert len(files) > 1 and len({before, *sums}) == len(files) + 2


def test_families_that_share_an_encoder_do_not_share_captions(folders, tmp_path, accelerator, monkeypatch):
    monkeypatch.setitem(FAMILIES, "other", sd)
    for family in ("sd1", "other"):
        encoding.encode_captions(tmp_path, folders["sd1"], family, TEXTS, torch.float32, accelerator)
    assert len(list(tmp_path.glob("captions-*"))) == 2


def test_the_empty_caption_of_another_convention_is_another(folders, tmp_path, accelerator):
    shutil.copytree(folders["sdxl"], tmp_path / "model")

    def empty():
        features = encoding.encode_captions(
            tmp_path / "cache", str(tmp_path / "model"), "sdxl", TEXTS, torch.float32, accelerator
        )
        return features([""])[0]["embeds"]

    assert not empty().any()
    change_json(tmp_path / "model/model_index.json", force_zeros_for_empty_prompt=False)
    assert empty().any()


def test_captions_beyond_the_limit_are_counted(folders, caplog):
    tokenizer = models.load_text_encoders(folders["sd1"], "sd1", torch.float32)[0][0]
    long = "red boots " * 40
    assert models.report_long_captions(tokenizer, ["boots", "", long]) == 1
    assert "1 of 2 captions are longer than the tokenizer's limit of 32 tokens" in caplog.text
    caplog.clear()
    assert models.report_long_captions(tokenizer, ["boots"]) == models.report_long_captions(tokenizer, [""]) == 0
    assert not caplog.records


def test_a_text_encoder_that_makes_nan_names_the_caption(model, tmp_path, accelerator):
    (path,) = Path(model, "text_encoder").glob("*.safetensors")
    tensors = load_file(path)
    name = next(key for key in tensors if "final_layer_norm.weight" in key)
    tensors[name].fill_(float("nan"))
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match="NaN.*--mixed_precision no"):
        encoding.encode_captions(tmp_path / "cache", model, "sd1", TEXTS, torch.float32, accelerator)


def make_images(folder, shapes=((64, 64),)):
    folder.mkdir(exist_ok=True)
    records = []
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (80, 120, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"p{i}.png")
        records.append(Record(f"p{i}", folder / f"p{i}.png", "x"))
    return load_examples(records, list(shapes))


def read_latents(model, cache, views, accelerator, interpolation="lanczos", cached=True):
    moments = encoding.latent_reader(cache, model, views, Views(1, False, interpolation), cached, accelerator)
    return [moments(*view) for view in views]


def test_cached_latents_are_those_made_without_a_cache(model, tmp_path, accelerator):
    views = [(one, view) for one in make_images(tmp_path / "d") for view in (View(), View(0.1, 0.5, True))]
    cached = read_latents(model, tmp_path / "cache", views, accelerator)
    each_time = read_latents(model, tmp_path / "none", views, accelerator, cached=False)
    assert all(torch.equal(a, b) for a, b in zip(cached, each_time)) and not (tmp_path / "none").exists()
    assert [tuple(one.shape) for one in cached] == [(2, 4, 32, 32)] * 4  # mean and deviation
    assert all(one.dtype == torch.float32 and (one[1] > 0).all() for one in cached)
    assert len({one.sum().item() for one in cached}) == 4


def test_images_encoded_side_by_side_are_the_same_in_any_number(model, tmp_path, accelerator, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # each image keeps one core, however many there are
    views = [(one, View(across)) for one in make_images(tmp_path / "d") for across in (0.2, 0.5, 0.8)]
    found = []
    for most in (3, 2):
        monkeypatch.setattr(encoding, "MOST_AT_ONCE", most)
        assert encoding.encoded_at_once(torch.device("cpu")) == most
        found.append(read_latents(model, tmp_path / f"cache{most}", views, accelerator))
    assert all(torch.equal(one, other) for one, other in zip(*found))
    assert encoding.encoded_at_once(torch.device("cuda")) == 1


def test_a_change_of_anything_that_decides_latents_is_a_new_entry(model, tmp_path, accelerator, encoded):
    folder, cache = tmp_path / "d", tmp_path / "cache"
    first, second = make_images(folder)
    made = []

    def read(views, **more):
        found = read_latents(model, cache, views, accelerator, **more)
        made.append(len(encoded))
        return found

    plain = read([(first, View()), (second, View())])
    assert read([(second, View()), (first, View())]) is not None and made == [2, 2]
    read([(first, View(0.1))])  # another crop
    read([(first, View(flip=True))])
    read([(first, View())], interpolation="bicubic")
    (wide,) = (one for one in make_images(folder, [(96, 64)]) if one.id == "p0")
    read([(wide, View())])  # another shape
    assert made[2:] == [3, 4, 5, 6]
    Image.open(folder / "p0.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(folder / "p0.png")
    (changed,) = load_examples([Record("p0", folder / "p0.png", "x")], [(64, 64)])
    assert not torch.equal(read([(changed, View())])[0], plain[0]) and made[-1] == 7
    change_weight(model, "vae", "quant_conv.bias")
    assert not torch.equal(read([(second, View())])[0], plain[1]) and made[-1] == 8
    moved = second._replace(id="other", source=tmp_path / "nowhere.png", text="other")
    assert read([(moved, View())]) and made[-1] == 8  # a name, a place or a caption decides nothing


@pytest.mark.parametrize("cached", [True, False])
def test_latents_that_are_not_finite_name_the_file(model, tmp_path, accelerator, cached):
    (path,) = Path(model, "vae").glob("*.safetensors")
    tensors = load_file(path)
    tensors["quant_conv.bias"].fill_(float("nan"))
    save_file(tensors, path, {"format": "pt"})
    image = make_images(tmp_path / "d")[1]
    with pytest.raises(UserError, match=r"the latents of .*p1\.png hold NaN"):
        read_latents(model, tmp_path / "cache", [(image, View())], accelerator, cached=cached)


def test_a_bit_that_flips_in_the_cache_is_noticed_and_the_image_encoded_anew(model, tmp_path, accelerator, caplog):
    image = make_images(tmp_path / "d")[0]
    before = read_latents(model, tmp_path / "cache", [(image, View())], accelerator)[0].clone()  # not the file itself
    (shard,) = tmp_path.glob("cache/latents-*/*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 4
    shard.write_bytes(content)
    after = read_latents(model, tmp_path / "cache", [(image, View())], accelerator)
    assert torch.equal(after[0], before) and shard.name in caplog.text


def test_the_vae_runs_in_float32_whatever_the_training_does(model, tmp_path, accelerator, encoded):
    with torch.autocast("cpu", torch.bfloat16):
        half = read_latents(model, tmp_path / "a", [(make_images(tmp_path / "d")[0], View())], accelerator)
    whole = read_latents(model, tmp_path / "b", [(make_images(tmp_path / "d")[0], View())], accelerator)
    assert {one[0].dtype for one in encoded} == {torch.float32} and torch.equal(half[0], whole[0])
