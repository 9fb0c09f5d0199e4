import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from demo.catalogue import draw_product, product
from demo.shoes import KINDS
from families import models
from families.sampling import decode_latents
from utils import image_checks
from utils.cli import UserError
from utils.hub import DEMO
from utils.image_checks import clip_scores, find_fault, finite_images, index_images, is_near, nearest

ROWS = [product(5, index, list(KINDS)) for index in range(24)]


def shoe(index: int, side: int = 128) -> Image.Image:
    return draw_product(ROWS[index], 5, (side, side))


@pytest.fixture(scope="module")
def pipeline():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield models.load_pipeline("demo", torch.device("cpu"), torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip():
    return image_checks.load_clip("demo")


@pytest.mark.parametrize("side", [128, 512])
def test_shoes_are_no_noise(side):
    assert [find_fault(shoe(index, side)) for index in range(12)] == [None] * 12


@pytest.mark.parametrize("deviation", [1, 3, 10])
def test_noise_through_the_vae_is_told(pipeline, deviation):
    for side in (16, 24):
        latents = torch.randn(3, 4, side, side, generator=torch.Generator().manual_seed(1)) * deviation
        with torch.no_grad():
            images = decode_latents(pipeline.vae, latents)
        assert {find_fault(image) for image in images} == {"noise"}


def test_an_image_drowned_in_noise_is_told():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3))
    assert find_fault(Image.fromarray(noise.astype(np.uint8))) == "noise"
    grainy = np.clip(np.asarray(shoe(0)) + (noise - 128) * 0.2, 0, 255)  # film grain: a bad image, and no noise
    assert find_fault(Image.fromarray(grainy.astype(np.uint8))) is None


def test_black_and_constant_images_and_nan_latents_have_their_own_names():
    assert find_fault(Image.new("RGB", (64, 64), (3, 3, 3))) == "black (or NaN)"
    assert find_fault(Image.new("RGB", (64, 64), (200, 90, 90))) == "of one colour"
    latents = torch.zeros(3, 4, 8, 8)
    latents[0, 1, 2, 3], latents[2, 0, 0, 0] = float("nan"), float("inf")
    assert finite_images(latents) == [False, True, False]
    assert find_fault(shoe(0), finite=False) == "NaN latents"


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "train"
    (folder / "images").mkdir(parents=True)
    for index in range(20):
        shoe(index, 192).save(folder / "images" / f"{ROWS[index]['id']}.png")
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "images/10000.png", "text": "a"}) + "\n")
    return folder


def test_copies_of_training_images_are_found(split, tmp_path):
    index = index_images(split)
    for number in (0, 7, 19):
        shoe(number, 192).resize((128, 128), Image.Resampling.LANCZOS).save(tmp_path / "copy.jpg", quality=40)
        copy = Image.open(tmp_path / "copy.jpg").convert("RGB")
        for view in (copy, copy.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
            name, bits, colour = nearest(index, view)
            assert name == ROWS[number]["id"] and is_near(bits, colour)


def test_another_shoe_or_colour_is_no_copy(split):
    index = index_images(split)
    assert not any(is_near(*nearest(index, shoe(number))[1:]) for number in range(20, 24))
    red, green, blue = shoe(3).split()
    name, bits, colour = nearest(index, Image.merge("RGB", (red.point(lambda v: v // 3), green, blue)))
    assert colour > image_checks.NEAR_COLOUR and not is_near(bits, colour)


def test_any_folder_of_images_makes_an_index(tmp_path):
    (tmp_path / "more").mkdir()
    shoe(0).crop((0, 20, 128, 100)).save(tmp_path / "more" / "wide.PNG")
    shoe(1).save(tmp_path / "b.jpg", quality=95)
    assert index_images(tmp_path).ids == ["b", "more/wide"]
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="--reject_near_train .*c.png: not an image"):
        index_images(tmp_path)


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--reject_near_train .*holds no images"):
        index_images(tmp_path)
    with pytest.raises(UserError, match="--reject_near_train .*no such folder"):
        index_images(tmp_path / "none")


def said(row: dict) -> str:
    return f"a photo of {row['baseColour'].lower()} {row['articleType'].lower()}"


def test_clip_likes_an_image_with_its_own_text(clip):
    images, texts = [shoe(index) for index in range(24)], [said(row) for row in ROWS]
    own = clip_scores(clip, images, texts)
    other = clip_scores(
        clip, images, ["a photo of blue sandals" if "sandals" not in one else "brown boots" for one in texts]
    )
    assert np.mean(own) > np.mean(other) + 0.2 and min(other) >= -1 and max(own) <= 1
    parts = [slice(start, start + 5) for start in range(0, 24, 5)]
    assert np.allclose(own, np.concatenate([clip_scores(clip, images[one], texts[one]) for one in parts]), atol=1e-5)


def test_a_long_text_keeps_its_end_token(clip):
    kept = clip.tokenizer.decode(clip.tokenizer("red boots").input_ids[1:-1])
    text = (kept + " ") * 40
    limit = clip.model.config.text_config.max_position_embeddings
    ids = clip.tokenizer(text, truncation=True, max_length=limit).input_ids
    assert len(ids) == limit and ids[-1] == clip.tokenizer.eos_token_id
    cut = clip.tokenizer.decode(ids[1:-1])  # what then is left, as a text of its own
    long, short = clip_scores(clip, [shoe(0)] * 2, [text, cut])
    assert abs(long - short) < 1e-5


def test_a_clip_that_cannot_be_had_is_one_line(tmp_path):
    lacking = shutil.copytree(DEMO / "clip", tmp_path / "lacking")
    weights = load_file(lacking / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, lacking / "model.safetensors", {"format": "pt"})
    for name in (str(tmp_path / "none"), "nowhere", str(tmp_path), str(lacking)):
        with pytest.raises(UserError, match="--clip_model .*"):
            image_checks.load_clip(name)
