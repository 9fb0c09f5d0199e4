"""train_dreambooth.py from end to end: exact and resumed like train_lora.py, with what a subject needs beside."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

import generate
import train_dreambooth
import train_lora
from demo.shoes import draw_shoe
from families import diffusion, tokens
from families.lora import read_lora
from families.lora_mix import Lora, learnt_words, parse_lora
from families.models import DEMO_MODEL
from families.sampler import Execution, ImageRequest, Sampler, SamplerParts, Sampling, generate_images, load_sampler
from generation.set_folder import Share
from tests.benchmarks import dreambooth_effect
from tests.tiny_models import DDPM
from tests.tiny_runs import (
    LORA,
    PRIOR,
    ROOT,
    as_in_a_process,
    cells,
    column,
    difference,
    drawn_by_diffusers,
    forget_after,
    same_bytes,
    snapshot,
    subject_flags,
    teach,
)
from tests.toy_faces import draw_portrait, write_detector
from training import encoding, examples, loss_masks, prior, read_data, sample_plan
from utils import checkpoints, devices
from utils.cli import UserError
from utils.files import file_sha256
from utils.image_checks import load_clip
from utils.images import write_png
from utils.parallel import available_cores

TOKEN = ("--train_token", "<sks>", "--initializer_token", "shoes")
FULL = ("--method", "full", "--learning_rate", "1e-3")
UNET = "unet/diffusion_pytorch_model.safetensors"


def on_cpu(batch: int) -> Execution:
    return Execution(torch.device("cpu"), torch.float32, batch)


def sample(sampler: Sampler, prompts: list[str], seeds: list[int]) -> np.ndarray:
    requests = [ImageRequest(prompt, seed) for prompt, seed in zip(prompts, seeds)]
    return np.stack([np.asarray(one.image, int) for one in generate_images(sampler, requests)])


def divide(micro: int, accumulation: int) -> list:
    return ["--train_batch_size", micro, "--gradient_accumulation_steps", accumulation]


# Exactness


def test_any_division_of_a_batch_trains_the_same(trainer_data, tmp_path):
    words = [*PRIOR, "--prior_loss_weight", 0.5, "--random_flip", "--max_train_steps", 3]
    assert teach(trainer_data, tmp_path / "one", *words) == 0
    assert teach(trainer_data, tmp_path / "other", *words, *divide(2, 4)) == 0
    for name in ("loss", "prior_loss"):
        assert np.allclose(column(tmp_path / "one", name), column(tmp_path / "other", name), rtol=1e-5)
    assert difference(tmp_path / "one", tmp_path / "other") < 1e-5


def test_cores_that_share_a_batch_train_the_same_and_to_the_byte_again(trainer_data, tmp_path):
    words = [*PRIOR, *TOKEN, "--max_train_steps", 3]
    assert teach(trainer_data, tmp_path / "alone", *words) == 0
    assert devices.share_cores(16) is None
    torch.set_num_threads(2)
    try:
        for name in ("one", "again"):
            assert teach(trainer_data, tmp_path / name, *words) == 0
    finally:
        torch.set_num_threads(1)
    assert difference(tmp_path / "alone", tmp_path / "one") < 1e-5
    if available_cores() > 1:
        assert not same_bytes(tmp_path / "alone", tmp_path / "one")  # so it was another way
    assert same_bytes(tmp_path / "one", tmp_path / "again")
    assert column(tmp_path / "one", "loss") == column(tmp_path / "again", "loss")


KEEPS = ("--preserve_base", 10, "--class_prompt", "a photo of shoes")


def test_what_the_base_model_predicts_of_the_class_is_kept_without_class_images(trainer_data, tmp_path):
    """A text encoder that is trained too is switched off as well, or the first distance were not 0."""
    words = [*KEEPS, "--train_text_encoder", "--max_train_steps", 4]
    assert teach(trainer_data, tmp_path / "kept", *words) == 0
    assert teach(trainer_data, tmp_path / "divided", *words, *divide(2, 4)) == 0
    assert teach(trainer_data, tmp_path / "free", *words, "--preserve_base", 1e-9) == 0
    kept, free = (column(tmp_path / name, "preserve_loss") for name in ("kept", "free"))
    assert kept[:1] == free[:1] == [0] and kept[-1] < free[-1] / 2
    assert difference(tmp_path / "kept", tmp_path / "divided") < 1e-5


@pytest.mark.very_slow
def test_two_processes_train_all_weights_the_same(trainer_data, tmp_path):
    words = [*PRIOR, *FULL, "--max_train_steps", 3]
    assert teach(trainer_data, tmp_path / "one", *words) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", "accelerate_configs/cpu_2proc.yaml", "--main_process_port", "0", "train_dreambooth.py"]
    launch += subject_flags(trainer_data, tmp_path / "two", *words, *divide(2, 2))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert np.allclose(column(tmp_path / "one", "loss"), column(tmp_path / "two", "loss"), rtol=1e-5)
    first, second = (load_file(tmp_path / name / UNET) for name in ("one", "two"))
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)


def test_a_step_is_what_diffusers_does_by_hand(trainer_data, tmp_path):
    """Photos and class images in one batch, the latter by their own weight; only the draws are taken from the plan."""
    words = [*PRIOR, *FULL, "--prior_loss_weight", 0.3, "--lr_warmup_steps", 0, "--max_train_steps", 2]
    assert teach(trainer_data, tmp_path / "run", *words) == 0
    model = trainer_data["sd1"]
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    scheduler = DDPMScheduler.from_pretrained(model, subfolder="scheduler")
    vae = DiffusionPipeline.from_pretrained(model).vae
    encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, weight_decay=1e-2)
    sides = [("subject", "a photo of <sks> shoes", 0, 1), ("class", "a photo of shoes", ("class", 0), 0.3)]
    losses, shapes = [], ((16, 16),) * 5
    plans = {name: sample_plan.SamplePlan(seed, shapes, 8, DDPM.draw_time) for name, _, seed, _ in sides}
    for step in range(2):
        total = {"subject": 0, "class": 0}
        for position in range(8 * step, 8 * step + 8):
            for name, prompt, _, weight in sides:
                draw = sample_plan.draw_position(plans[name], position)
                noise, posterior, _ = sample_plan.draw_noise(draw.noise_key, (4, 8, 8))
                image = Image.open(trainer_data[name] / f"shoe{draw.index}.png")
                image = image.resize((16, 16), Image.Resampling.LANCZOS)
                pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
                ids = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
                with torch.no_grad():
                    moments, text = vae.encode(pixels).latent_dist, encoder(ids)[0]
                latents = (moments.mean + moments.std * posterior) * vae.config.scaling_factor
                timestep = torch.tensor([draw.time])
                noisy = scheduler.add_noise(latents, noise[None], timestep)
                loss = F.mse_loss(unet(noisy, timestep, text).sample, noise[None]) / 8
                total[name] = total[name] + loss.item()
                (loss * weight).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total["subject"], total["class"]))
    found = list(zip(column(tmp_path / "run", "loss"), column(tmp_path / "run", "prior_loss")))
    assert np.allclose(found, losses, rtol=1e-5)
    state, expected = load_file(tmp_path / "run" / UNET), unet.state_dict()
    apart = sum((state[key] - expected[key]).square().sum() for key in state).sqrt()
    whole = UNet2DConditionModel.from_pretrained(model, subfolder="unet").state_dict()
    moved = sum((state[key] - whole[key]).square().sum() for key in state).sqrt()
    assert apart < 1e-2 * moved


@pytest.mark.parametrize(
    "family, words",
    [
        ("sd1", [*TOKEN, *PRIOR, "--use_ema", "--ema_decay", 0.5, "--random_flip", "--caption_dropout", 0.2]),
        ("sd2", [*FULL, "--train_text_encoder", "--use_ema", "--ema_decay", 0.5]),
        ("sdxl", [*TOKEN, "--train_text_encoder", *PRIOR]),
        ("sdxl", [*FULL, "--prediction_type", "v_prediction", "--zero_terminal_snr"]),  # so must what draws
    ],
)
def test_resumed_equals_uninterrupted_and_every_pipeline_generates_its_images(trainer_data, tmp_path, family, words):
    prompts = ["a photo of <sks> shoes", "a photo of shoes"]
    words = [*words, "--max_train_steps", 4, "--checkpointing_steps", 2, "--validation_steps", 4]
    words += ["--num_validation_images", 2, "--validation_prompt", prompts[0], "--validation_prompt", prompts[1]]
    words += ["--logging_steps", 3]  # the first line is of steps on both sides of the checkpoint
    out, full = tmp_path / "whole", "full" in words
    assert teach(trainer_data, out, *words, family=family) == 0
    shutil.copytree(out, tmp_path / "broken")
    forget_after(tmp_path / "broken", 2)
    assert teach(trainer_data, tmp_path / "broken", *words, family=family) == 0
    names = [path.relative_to(out) for path in out.rglob("*.safetensors") if "checkpoint" not in str(path)]
    assert len(names) >= 3 if full else LORA in map(str, names)
    assert all((out / name).read_bytes()[-4096:] == (tmp_path / "broken" / name).read_bytes()[-4096:] for name in names)
    assert column(out, "loss") == column(tmp_path / "broken", "loss")
    if full and "--use_ema" not in words:  # else the checkpoint has the weights themselves, the result their average
        last = UNet2DConditionModel.from_pretrained(out, subfolder="checkpoint-4/unet").state_dict()
        assert all(torch.equal(last[key], value) for key, value in load_file(out / UNET).items())
    assert (out / "checkpoint-4/text_encoder/config.json").exists() == (full and "--train_text_encoder" in words)

    pipeline = DiffusionPipeline.from_pretrained(out if full else trainer_data[family], safety_checker=None)
    if not full:
        pipeline.load_lora_weights(out)
    for name, end in zip(tokens.FILES, ("", "_2")):
        if (out / name).exists():
            parts = {part: getattr(pipeline, f"{part}{end}") for part in ("text_encoder", "tokenizer")}
            pipeline.load_textual_inversion(out, weight_name=name, **parts)
    assert (len(list(out.glob("learned_embeds*"))) > 0) == ("--train_token" in words)
    if "--train_token" in words:  # in one file for ComfyUI and A1111
        joint = load_file(out / "whole_word.safetensors")
        vectors = [next(iter(load_file(one).values())) for one in sorted(out.glob("learned_embeds*"))]
        assert all(torch.equal(joint[key], vector) for key, vector in zip(("clip_l", "clip_g"), vectors, strict=False))
        assert len(joint) == len(vectors) == (2 if family == "sdxl" else 1)
        facts = read_lora(out / "whole_kohya.safetensors")[1]  # where the name of that file stands for the word
        assert facts["modelspec.trigger_phrase"] == "a photo of whole_word shoes"
    expected = cells(out / "validation/step-000004.png", 2, 16)
    assert np.abs(expected - cells(out / "validation/step-000000.png", 2, 16)).max() > 3  # it has an effect
    assert np.abs(drawn_by_diffusers(pipeline, prompts, 16) - expected).max() <= 1
    loras = () if full else (parse_lora(str(out)),)
    parts = SamplerParts(str(out if full else trainer_data[family]), family, loras)
    images = sample(load_sampler(parts, Sampling(3, 7.5, 16), on_cpu(2), prompts), prompts, [0, 1])
    assert np.abs(images - expected).max() <= 1  # generate.py, too
    card = (out / "README.md").read_text()
    assert ("load_textual_inversion" in card) == ("`whole_word`" in card) == ("--train_token" in words)
    assert ("load_lora" in card) != full
    assert (
        "Its instance prompt is `a photo of <sks> shoes`" in card and "instance_prompt: a photo of <sks> shoes" in card
    )
    assert ("Its trigger is `<sks>`" in card) == ("trigger" in card) == ("--train_token" in words)
    for row in ("| class prompt |", "| prior loss weight |", "| num class images |", "5 class images"):
        assert (row in card) == (PRIOR[0] in words), row


@pytest.mark.slow
def test_a_whole_pipeline_in_one_file_draws_the_same_images_and_can_be_asked_for_later(trainer_data, tmp_path, capsys):
    out, words = tmp_path / "run", [*FULL, "--train_text_encoder", "--max_train_steps", 1, "--lr_warmup_steps", 0]
    assert teach(trainer_data, out, *words) == 0 and not (out / "run_whole.safetensors").exists()
    assert teach(trainer_data, out, *words, "--output_single_file") == 0  # of a finished run
    whole = StableDiffusionPipeline.from_single_file(out / "run_whole.safetensors", config=str(out))
    shown = drawn_by_diffusers(whole, ["a photo of shoes"], 16)
    folder = DiffusionPipeline.from_pretrained(out, safety_checker=None)
    assert np.array_equal(shown, drawn_by_diffusers(folder, ["a photo of shoes"], 16))
    base = DiffusionPipeline.from_pretrained(trainer_data["sd1"], safety_checker=None)
    assert np.abs(shown - drawn_by_diffusers(base, ["a photo of shoes"], 16)).max() > 3
    facts = read_lora(out / "run_whole.safetensors", facts_only=True)[1]
    assert facts["modelspec.architecture"] == "stable-diffusion-v1" and facts["base_model"] == str(trainer_data["sd1"])
    assert "| `run_whole.safetensors` | ComfyUI, A1111" in (out / "README.md").read_text()
    assert (
        teach(trainer_data, out, *words, "--output_single_file") == 0
        and "nothing was changed" in capsys.readouterr().out
    )
    with pytest.raises(SystemExit):
        teach(trainer_data, tmp_path / "other", "--output_single_file")
    assert "--output_single_file: does nothing without --method full" in capsys.readouterr().err


# What is learnt


@pytest.fixture(scope="module")
def worded(trainer_data, tmp_path_factory):
    """A run that has learnt the word <sks> for one step."""
    words = [*TOKEN, "--token_learning_rate", 0.1, "--lr_warmup_steps", 0, "--max_train_steps", 1]
    run = tmp_path_factory.mktemp("worded") / "run"
    assert teach(trainer_data, run, *words) == 0
    return run


def test_a_new_word_is_learnt_alone_and_starts_where_it_should(trainer_data, worded, tmp_path):
    (vector,) = load_file(worded / tokens.FILES[0]).values()
    encoder = CLIPTextModel.from_pretrained(trainer_data["sd1"], subfolder="text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(trainer_data["sd1"], subfolder="tokenizer")
    first = tokens.first_vector(tokenizer, encoder.get_input_embeddings().weight, "shoes")
    assert 0 < (vector - first).abs().max() <= 0.1 + 1e-5  # Adam's first step is the rate at most
    base = ["--pretrained_model_name_or_path", str(trainer_data["sd1"]), "--resolution", "16", "--prompt", "x"]
    args = generate.parse_args([*base, "--lora", str(worded), "--output_dir", str(tmp_path / "set")])
    settings = generate.describe_settings(args, generate.make_plan(args, Share(0, 1)), "no")
    assert settings["lora_sha256"] == [file_sha256(worded / name)[:16] for name in (LORA, tokens.FILES[0])]
    assert read_lora(worded)[1]["trigger_word"] == "<sks>"
    with pytest.raises(UserError, match="--lora .*: holds one of .*, and SDXL needs both"):
        tokens.read_token(worded, "<sks>", [tokenizer] * 2, [encoder] * 2)
    (tmp_path / tokens.FILES[0]).write_bytes(b"half a file")
    with pytest.raises(UserError, match="--lora .*learned_embeds.safetensors: can't be read"):
        tokens.read_token(tmp_path, "<sks>", [tokenizer], [encoder])
    before = encoder.get_input_embeddings().weight.detach().clone()
    token = tokens.read_token(worded, "<b>", [tokenizer], [encoder])  # under another name
    table = encoder.get_input_embeddings()
    number = tokenizer.convert_tokens_to_ids("<b>")
    assert token.text == "<b>" and torch.equal(table.weight[: len(before)], before)
    assert torch.equal(table(torch.tensor([[number, 5]]))[0], torch.stack([vector[0], before[5]]))
    for known in ("<b>", "shoes"):
        with pytest.raises(UserError, match=f"--train_token {known}: the tokenizer knows this word already"):
            tokens.new_token([tokenizer], [encoder], known, None)


def test_a_learnt_word_that_prompts_lack_is_reported_once_before_anything_is_generated(
    trainer_data, worded, tmp_path, caplog
):
    (tmp_path / "prompts.txt").write_text("a photo of <SKS> shoes\na photo of shoes\nboots\nboots\n")
    line = ["--lora", worded, "--prompts_file", tmp_path / "prompts.txt", "--output_dir", tmp_path / "out"]
    line += ["--pretrained_model_name_or_path", trainer_data["sd1"], "--resolution", 16, "--dry_run"]
    assert generate.main(generate.parse_args(list(map(str, line)))) == 0
    found = [one.getMessage() for one in caplog.records if "comes with the word" in one.getMessage()]
    assert len(found) == 1 and found[0].endswith("the word <sks>, and 2 of 3 prompts lack it, as: a photo of shoes")
    tokens.warn_missing_word(worded, "<sks>", ["a <sks> boot"])
    assert caplog.text.count("comes with the word") == 1


def test_two_runs_with_one_learnt_word_are_mixed_where_one_of_them_is_renamed(trainer_data, worded, tmp_path, caplog):
    other, model = Path(shutil.copytree(worded, tmp_path / "other")), str(trainer_data["sd1"])
    line = ["--prompt", "<sks> and <b>", *f"--output_dir {tmp_path}/set --resolution 16 --num_images 1".split()]
    line += ["--lora", f"{worded}:0.8"]  # the base model is the one that it was trained on
    with pytest.raises(UserError, match=f"--lora {worded} and --lora {other} both come with the word <sks>; give one"):
        generate.main(generate.parse_args([*line, str(other), "--dry_run"]))
    for word, said in (("shoes", "knows this word already"), ("a:b", "expected one word"), ("", "expected one word")):
        with pytest.raises(UserError, match=said):
            generate.main(generate.parse_args([*line, f"{other}:word={word}", "--dry_run"]))
    with pytest.raises(UserError, match="comes with no learnt word; leave `:word=` out"):
        learnt_words([Lora(tmp_path / LORA, 1.0, "<b>")])
    assert generate.main(generate.parse_args([*line, f"{other}:0.5:word=<b>", "--dry_run"])) == 0
    assert "comes with the word" not in caplog.text and "which the LoRA was trained on" in caplog.text
    loras = parse_lora(f"{worded}:0.8"), parse_lora(f"{other}:0.5:word=<b>")
    sampler = load_sampler(SamplerParts(model, "sd1", loras), Sampling(2, 1.0, 16), on_cpu(1), ["<sks>", "<b>", "b"])
    features = [sampler.features[prompt]["embeds"] for prompt in ("<sks>", "<b>", "b")]
    assert torch.equal(features[0], features[1]) and not torch.equal(features[0], features[2])


def test_texts_that_repeat_are_encoded_once():
    seen = []

    def encode(texts):
        seen.append(texts)
        return [{"embeds": torch.tensor([float(len(text))])} for text in texts]

    found = encoding.encode_distinct(encode, ["ab", "c", "ab"])
    assert [one["embeds"].item() for one in found] == [2, 1, 2] and seen == [["ab", "c"]]


def test_repeated_texts_have_the_same_gradient_to_the_byte_every_time():
    """An index would add the rows of equal texts on several threads in any order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    weights = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(0), requires_grad=True)
    factors = torch.randn(8, 77, 768, generator=torch.Generator().manual_seed(1))
    found = set()
    for _ in range(20):
        texts = ["a"] * 6 + ["b"] * 2
        rows = encoding.encode_distinct(lambda _: [{"embeds": one} for one in weights * 1.0], texts)
        (gradient,) = torch.autograd.grad((diffusion.stack(rows, "embeds") * factors).sum(), weights)
        found.add(gradient.numpy().tobytes())
    torch.set_num_threads(threads)
    assert len(found) == 1


@pytest.mark.very_slow
def test_the_subject_is_learnt_and_the_class_drifts_less_with_prior_preservation(tmp_path):
    """As in tests/benchmarks/dreambooth_effect.py, shorter."""
    clip, photos = load_clip("demo"), dreambooth_effect.save_photos(tmp_path / "photos")
    before, found = dreambooth_effect.draw(None, 4, 8), {}
    short = "--max_train_steps 30 --train_batch_size 3 --validation_inference_steps 12 --dataloader_num_workers 0"
    for preserve in (True, False):
        out = tmp_path / str(preserve)
        words = dreambooth_effect.train_command(
            tmp_path / "photos",
            tmp_path / "class",
            out,
            preserve,
            short.split() + ["--num_class_images", "8"] * preserve,
        )
        with as_in_a_process():
            assert train_dreambooth.main(train_dreambooth.parse_args(words)) == 0
        found[preserve] = dreambooth_effect.measure(clip, photos, before, dreambooth_effect.draw(out, 4, 8))
    start = dreambooth_effect.measure(clip, photos, before, before)
    assert start.likeness + 0.3 < min(one.likeness for one in found.values())
    assert found[True].drift < 0.8 * found[False].drift


# Masks


def test_only_what_a_mask_shows_is_learnt():
    prediction = torch.randn(2, 4, 6, 6, requires_grad=True)
    target, mask = torch.randn(2, 4, 6, 6), torch.zeros(2, 1, 6, 6)
    mask[0, :, 1:3, 2:5] = 1
    mask[1] = 0.25
    losses = diffusion.sample_losses(prediction, target, mask=mask)
    inside = F.mse_loss(prediction[0, :, 1:3, 2:5], target[0, :, 1:3, 2:5])
    assert torch.allclose(losses, torch.stack([inside, F.mse_loss(prediction[1], target[1])]))
    losses[0].backward()
    assert (prediction.grad[0] != 0).any(0).equal(mask[0, 0] > 0)


def test_a_mask_is_seen_as_its_photo_is(tmp_path):
    photo = draw_shoe("Boots", "Black", "0", (48, 32)).convert("L").convert("RGB")
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
        photo.save(tmp_path / folder / "a.png")
    record = examples.Record("a", tmp_path / "photos/a.png", "boots")
    (image,) = examples.load_examples([record], [(16, 16)])
    read, _ = loss_masks.mask_reader([tmp_path / "masks"], [image])
    for view in (examples.View(), examples.View(0.9, 0.5, True)):
        pixels = examples.example_tensor(image, view, "bilinear")
        expected = F.avg_pool2d(pixels[:1], 2) / 2 + 0.5
        assert torch.allclose(read(image, view, (8, 8)), expected, atol=0.01)
    assert read(image._replace(id="class/0"), examples.View(), (8, 8)).eq(1).all()


def test_masks_that_do_not_fit_are_named(trainer_data, tmp_path):
    def masks(size, colour, names=range(5)):
        for name in names:
            Image.new("L", size, colour).save(tmp_path / f"shoe{name}.png")

    with pytest.raises(UserError, match=r"--mask_loss .*: 5 of 5 images have no mask \(shoe0.png"):
        words = [*PRIOR, "--class_data_dir", tmp_path / "class", "--mask_loss", tmp_path]
        teach(trainer_data, tmp_path / "run", *words)
    assert not (tmp_path / "class").exists()  # refused before class images are generated
    masks((16, 16), 255)
    with pytest.raises(UserError, match=r"shoe0.png: is \(16, 16\), its image \(32, 32\)"):
        teach(trainer_data, tmp_path / "run", "--mask_loss", tmp_path)
    masks((32, 32), 0)
    with pytest.raises(UserError, match="shoe0.png: is all black"):
        teach(trainer_data, tmp_path / "run", "--mask_loss", tmp_path)
    masks((32, 32), 255)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "shoe0.png")
    with pytest.raises(UserError, match="shoe0.png: is in colour; give a grey image"):
        teach(trainer_data, tmp_path / "run", "--mask_loss", tmp_path)
    masks((32, 32), 255)
    words = ["--max_train_steps", 2]
    assert teach(trainer_data, tmp_path / "run", *words, "--mask_loss", tmp_path) == 0  # white: as without
    assert teach(trainer_data, tmp_path / "plain", *words) == 0
    assert difference(tmp_path / "run", tmp_path / "plain") < 1e-5
    masks((32, 32), 200, [2])
    with pytest.raises(UserError, match="the masks has changed"):
        teach(trainer_data, tmp_path / "run", "--mask_loss", tmp_path, "--max_train_steps", 4)


def test_a_face_crop_trains_on_heads_and_shoulders(trainer_data, tmp_path):
    photos, plain = tmp_path / "photos", tmp_path / "plain"
    for folder in (photos, plain):
        folder.mkdir()
        for i in range(3):
            faces = [] if folder is plain else [(1, 48, (60 + 20 * i, 40))]
            draw_portrait((240, 180), faces, seed=i).save(folder / f"{i}.png")
    words = ["--face_crop", "--face_detector", write_detector(tmp_path / "yunet.onnx"), "--max_train_steps", 1]
    words += ["--latent_cache_dir", tmp_path / "cache"]
    assert teach(trainer_data, tmp_path / "run", *words, "--instance_data_dir", photos) == 0
    crops = [Image.open(path) for path in (tmp_path / "cache/heads").iterdir()]
    assert len(crops) == 3 and all(one.width == one.height < 180 for one in crops)
    shutil.copy(photos / "0.png", plain / "face.png")  # so that only one of the two parts has a face
    line = ["--instance_data_dir", plain, "--instance_prompt", "sks", "--held_out", 0.5, *words[:3]]
    args = train_dreambooth.parse_args(list(map(str, line)))
    photos = train_dreambooth.read_photos(args)
    heads = train_dreambooth.crop_heads(args, *photos, tmp_path / "heads")
    assert [[one.id for one in part] for part in heads] == [[one.id for one in part] for part in photos]
    assert len(list((tmp_path / "heads").iterdir())) == 1
    (plain / "face.png").unlink()
    with pytest.raises(UserError, match="--face_crop: no face is found in any of 3 photos"):
        teach(trainer_data, tmp_path / "other", *words, "--instance_data_dir", plain)


# Class images


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """4 class images of the demo pipeline, and what draws more."""
    prompt, folder = "a professional product photo of shoes", tmp_path_factory.mktemp("class")
    how = Sampling(6, 1.0, 64)
    sampler = load_sampler(SamplerParts(str(DEMO_MODEL), "sd1"), how, on_cpu(4), [prompt])

    def draw(folder, count=4, batch=4, load=lambda: sampler, prompt=prompt, **other):
        wanted = prior.ClassImages(folder, prompt, count, 3, "demo", replace(how, **other))
        sampler.batch_size = batch
        prior.make_class_images(wanted, load, Accelerator())

    draw(folder)
    return folder, draw, sampler


def pixels_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path), int) for path in sorted(folder.glob("*.png"))}


def test_class_images_are_those_of_generate_and_only_the_missing_are_drawn(drawn, tmp_path):
    folder, draw, sampler = drawn
    texts = ["a professional product photo of shoes"] * 4
    sampler.batch_size = 4
    expected = sample(sampler, texts, [3, 4, 5, 6])
    found = pixels_of(folder)
    assert list(found) == [f"00000{i}.png" for i in range(4)]
    assert all(np.abs(image - one).max() <= 1 for image, one in zip(found.values(), expected))

    again = Path(shutil.copytree(folder, tmp_path / "class"))
    (again / "000001.png").unlink()
    (again / "000002.png").write_bytes((folder / "000002.png").read_bytes()[:-20])  # a power cut
    times = {name: (again / name).stat().st_mtime_ns for name in ("000000.png", "000003.png")}
    draw(again, batch=1)
    assert all((again / name).stat().st_mtime_ns == time for name, time in times.items())
    assert all(np.abs(one - found[name]).max() <= 1 for name, one in pixels_of(again).items()) and len(found) == 4
    draw(again, load=lambda: pytest.fail("nothing is missing"))


def test_class_images_of_the_user_count_and_those_drawn_otherwise_are_refused(drawn, tmp_path):
    folder, draw, _ = drawn
    mixed = Path(shutil.copytree(folder, tmp_path / "class"))
    draw_shoe("Boots", "Grey", "0", (64, 64)).save(mixed / "mine.jpg")
    draw(mixed, count=5, load=lambda: pytest.fail("there are 5"))
    wanted = prior.ClassImages(mixed, "shoes", 5, 3, "demo", Sampling(6, 1.0, 64))
    loaded = prior.load_class_images(wanted)
    assert len(loaded) == 5 and {one.text for one in loaded} == {"shoes"}
    for other, flag in (
        ({"prompt": "hats"}, "class_prompt a professional product photo of shoes, now it is hats"),
        ({"steps": 7}, "validation_inference_steps 6, now it is 7"),
        ({"guidance_scale": 7.5}, "validation_guidance_scale 1.0, now it is 7.5"),
    ):
        with pytest.raises(
            UserError, match=f"--class_data_dir .*: 00000..png was generated with --{flag}; give that again"
        ):
            draw(mixed, count=6, **other)
    draw(mixed, count=5, steps=7, load=lambda: pytest.fail("nothing is to be drawn"))
    for path in mixed.glob("0*.png"):  # as earlier versions wrote them
        write_png(path, Image.open(path), {"prompt": "a professional product photo of shoes"})
    draw(mixed, steps=7, load=lambda: pytest.fail("nothing is missing"))
    with pytest.raises(UserError, match="--class_data_dir .*/mine.jpg: is a file"):
        draw(mixed / "mine.jpg")


def test_a_bad_class_image_is_drawn_again_from_another_seed(drawn, tmp_path, monkeypatch):
    folder, draw, _ = drawn
    judge, judged = prior.find_fault, []

    def fault(image, finite):
        judged.append(1)
        return "noise" if len(judged) == 1 else judge(image, finite)

    monkeypatch.setattr(prior, "find_fault", fault)
    draw(tmp_path, count=2)
    with Image.open(tmp_path / "000000.png") as one:
        assert one.info["seed"] == str(3 + devices.RETRY_SEEDS)
    assert not np.array_equal(pixels_of(tmp_path)["000000.png"], pixels_of(folder)["000000.png"])
    monkeypatch.setattr(prior, "find_fault", lambda *args: "noise")
    with pytest.raises(UserError, match=r"--class_prompt .*: image \d is bad with each of 4 seeds \(noise\)"):
        draw(tmp_path / "none", count=1)


# The user's command


def parameters(model: Path) -> int:
    return sum(one.numel() for one in UNet2DConditionModel.from_pretrained(model, subfolder="unet").parameters())


def test_dry_run_says_what_would_be_generated_and_trained_and_makes_nothing(trainer_data, tmp_path, capsys):
    words = ["--with_prior_preservation", "--class_data_dir", tmp_path / "none", "--class_prompt", "shoes", "--dry_run"]
    for more in (FULL, ()):
        assert teach(trainer_data, tmp_path / "run", *words, *more) == 0
        output = capsys.readouterr().out
        assert f"100: 0 in {tmp_path / 'none'}, 100 to be generated into it" in output
        assert "8 a step" in output and "MiB at the peak" in output
        assert (f"{parameters(trainer_data['sd1']):,} trainable" in output) == (more == FULL)
    assert not (tmp_path / "run").exists() and not (tmp_path / "none").exists()


@pytest.mark.parametrize("broken", ["photos/shoe0.png", "photos/shoe1.jpg", "class/shoe0.png", "class/shoe1.jpg"])
def test_dry_run_counts_class_images_and_finds_damaged_images_as_the_run_does(trainer_data, tmp_path, capsys, broken):
    for name, source in (("photos", "subject"), ("class", "class")):
        shutil.copytree(trainer_data[source], tmp_path / name)
        draw_shoe("Boots", "Grey", "0", (64, 64)).save(tmp_path / name / "shoe1.jpg")
    words = [*PRIOR, "--class_data_dir", tmp_path / "class", "--instance_data_dir", tmp_path / "photos"]
    before, drawn = snapshot(tmp_path), snapshot(tmp_path / "class")
    assert teach(trainer_data, tmp_path / "run", *words, "--num_class_images", 9, "--dry_run") == 0
    assert f"9: 6 in {tmp_path / 'class'}, 3 to be generated into it" in capsys.readouterr().out
    content = (tmp_path / broken).read_bytes()  # the header stays, and of a PNG the end, by which it counts as whole
    (tmp_path / broken).write_bytes(content[:-100] + (content[-12:] if broken.endswith(".png") else b""))
    for more in (["--dry_run"], []):
        with pytest.raises(UserError, match=f"{broken} can't be read"):
            teach(trainer_data, tmp_path / "run", *words, "--latent_cache_dir", tmp_path / "cache", *more)
        assert more == [] or snapshot(tmp_path).keys() == before.keys()
    if broken.startswith("photos"):  # refused before any class image is generated
        assert snapshot(tmp_path / "class") == drawn


def test_an_empty_folder_of_photos_is_refused_before_anything_is_written(trainer_data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--instance_data_dir {tmp_path / 'empty'}: it is empty"):
        teach(trainer_data, tmp_path / "run", "--instance_data_dir", tmp_path / "empty")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_does_nothing_and_other_settings_are_an_error(trainer_data, tmp_path, capsys):
    words = [*FULL, "--max_train_steps", 1]
    assert teach(trainer_data, tmp_path / "run", *words[:-1], 2) == 0
    assert "Loading" not in capsys.readouterr().err  # no bars of the libraries
    before = snapshot(tmp_path / "run")
    for same in ([*words, "--max_train_steps", 2], [*FULL, "--num_train_epochs", 3]):  # 5 photos, 8 a step
        assert teach(trainer_data, tmp_path / "run", *same, "--logging_steps", 2) == 0
        assert ": finished with 2 steps; nothing was changed" in capsys.readouterr().out
    for fewer in (words, [*words, "--dry_run"], [*FULL, "--num_train_epochs", 1]):
        with pytest.raises(UserError, match="already has 2 steps; nothing was changed. For fewer steps give another"):
            teach(trainer_data, tmp_path / "run", *fewer)
    assert snapshot(tmp_path / "run") == before
    with pytest.raises(UserError, match="method was full, now lora"):
        teach(trainer_data, tmp_path / "run", "--max_train_steps", 1, "--learning_rate", "1e-3")
    assert teach(trainer_data, tmp_path / "run", *words, "--overwrite", "--seed", 1) == 0
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-1"]


@pytest.mark.parametrize("flag", ["--pretrained_model_name_or_path", "--instance_data_dir", "--class_data_dir"])
def test_what_is_read_is_never_the_folder_that_is_replaced(trainer_data, tmp_path, flag):
    shutil.copytree(trainer_data["sd1" if "model" in flag else "subject"], tmp_path / "given")
    (tmp_path / "link").symlink_to("given")
    before = snapshot(tmp_path / "given")
    for out in (tmp_path / "given", tmp_path / "link", tmp_path):
        with pytest.raises(UserError, match=f"--output_dir .*: (is the same as|contains) {flag} .*given"):
            teach(trainer_data, out, *PRIOR, flag, tmp_path / "given", "--overwrite")
    assert snapshot(tmp_path / "given") == before
    with pytest.raises(UserError, match="contains --class_data_dir"):  # else the second start would be refused
        teach(trainer_data, tmp_path / "new", *PRIOR, "--class_data_dir", tmp_path / "new/class")


def test_only_a_run_with_several_captions_says_so_on_its_card():
    for words, said in ((["--multiple_captions"], True), ([], None)):
        args = train_dreambooth.parse_args(["--instance_data_dir", "photos", *words])
        settings = train_dreambooth.describe_result(args, "shoes", {}, None)["settings"]
        assert settings.get("multiple_captions") is said
        args = train_lora.parse_args(words)
        assert train_lora.describe_result(args, "shoes", 1, 0)["settings"].get("multiple_captions") is said


def test_captions_win_over_the_instance_prompt(trainer_data, tmp_path):
    photos = Path(shutil.copytree(trainer_data["subject"], tmp_path / "photos"))
    (photos / "shoe1.txt").write_text("a photo of sks shoes in the rain")
    parse = train_dreambooth.parse_args
    read = train_dreambooth.read_photos(parse(["--instance_data_dir", str(photos), "--instance_prompt", "sks"]))[0]
    assert sorted(one.text for one in read) == ["a photo of sks shoes in the rain"] + ["sks"] * 4
    with pytest.raises(UserError, match="--instance_prompt: 4 of the photos have no caption"):
        train_dreambooth.read_photos(parse(["--instance_data_dir", str(photos)]))
    prefix = ["--instance_prompt", "sks", "--caption_prefix", "in a shop,"]
    with pytest.raises(UserError, match="--caption_prefix 'in a shop,': some .*; write it into that"):
        train_dreambooth.read_photos(parse(["--instance_data_dir", str(photos), *prefix]))


@pytest.mark.parametrize(
    "texts, said",
    [
        (["sks", "sks"], ""),
        (["sks", "sks at home"], "1 photo trains with it, 1 with captions of their own"),
        (["a shoe\nsks at home"], "'sks': 0 photos train with it, 1 with captions of their own"),
        (["Sks at home"] * 3, "'sks': 0 photos train with it, 3 with captions of their own"),
        (["sks", "at his desks"], "1 photo trains with it, 1 with captions of their own; none of these holds: sks."),
    ],
)
def test_an_instance_prompt_that_captions_overrule_is_reported(caplog, texts, said):
    split = [tuple(text.split("\n")) for text in texts]
    images = [examples.Record("a", Path("a.png"), one[0], captions=one) for one in split]
    read_data.report_captions(images, "sks")
    assert said in caplog.text and bool(said) == bool(caplog.text)
    assert ("none of these" in caplog.text) == ("none" in said)


def test_the_card_names_no_instance_prompt_that_captions_kept_from_every_photo(trainer_data, tmp_path):
    photos = Path(shutil.copytree(trainer_data["subject"], tmp_path / "photos"))
    for photo in photos.glob("*.png"):
        photo.with_suffix(".txt").write_text("boots")
    assert teach(trainer_data, tmp_path / "run", "--instance_data_dir", photos, "--max_train_steps", 1) == 0
    assert "instance_prompt" not in read_lora(tmp_path / "run" / LORA)[1]
    assert "Its instance prompt" not in (tmp_path / "run/README.md").read_text()


def test_command_lines_for_the_diffusers_scripts_run_unchanged(trainer_data, tmp_path):
    shared = (
        f"--pretrained_model_name_or_path={trainer_data['sd1']} --instance_data_dir={trainer_data['subject']} "
        "--resolution=16 --train_batch_size=1 --gradient_accumulation_steps=1 --lr_scheduler=constant "
        "--lr_warmup_steps=0 --max_train_steps=2 --checkpointing_steps=100 --report_to=tensorboard --seed=0 "
        "--mixed_precision=no --validation_prompt=boots --num_validation_images=1 --center_crop "
    )
    lora = "--learning_rate=1e-4 --validation_epochs=25 --rank=4 --gradient_checkpointing --instance_prompt"
    full = f"--with_prior_preservation --prior_loss_weight=1.0 --class_data_dir={trainer_data['class']} "
    full += "--num_class_images=5 --sample_batch_size=2 --learning_rate=2e-6 --train_text_encoder --method=full "
    full += "--class_prompt=shoes --validation_steps=100 --prior_generation_precision=fp32 --instance_prompt"
    for name, words in (("lora", lora), ("full", full)):
        line = [*shared.split(), *words.split(), "a photo of sks dog", f"--output_dir={tmp_path / name}"]
        with as_in_a_process():
            assert train_dreambooth.main(train_dreambooth.parse_args(line)) == 0
    assert (tmp_path / "lora" / LORA).is_file() and (tmp_path / "full/text_encoder/model.safetensors").is_file()
    assert json.loads((tmp_path / "full/summary.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    "words, said",
    [
        ("--hub_token x", "--hub_token: put the token into the environment as HF_TOKEN"),
        ("--offset_noise", "--offset_noise: use --noise_offset 0.1"),
        ("--repeats=5", "--repeats: use more --max_train_steps"),
        ("--with_prior_preservation", "--with_prior_preservation: needs --class_data_dir"),
        ("--train_token <x>", "--train_token <x>: isn't in --instance_prompt"),
        ("--initializer_token shoe", "--initializer_token shoe: does nothing without --train_token"),
        ("--aspect_ratio_buckets 16", "--aspect_ratio_buckets 16: expected heights and widths, as 512,512;384,640"),
        (
            "--aspect_ratio_buckets 16,16 --no-use_aspect_ratio_buckets",
            "--aspect_ratio_buckets: not with --no-use_aspect_ratio_buckets",
        ),
        ("--method full --output_kohya_format", "--output_kohya_format: not with --method full; leave it out"),
        ("--method full --train_token sks", "--train_token sks: not with --method full; leave it out"),
        ("--use_dora --output_kohya_format", "--output_kohya_format: not with --use_dora"),
        ("--learning_rate 0", "--learning_rate 0: expected a number, above 0, at most 100"),
        ("--prior_loss_weight 0", "--prior_loss_weight 0: expected a number, above 0"),
        ("--aspect_ratio_buckets 16,99999999", "--aspect_ratio_buckets 99999999: expected a whole number, 16 to 4,096"),
        ("--dataset_name a/b", "--instance_data_dir DIR or --dataset_name HUB_ID: give one of the two"),
        (
            "--with_prior_preservation --class_prompt shoes --class_data_dir ./photos",
            "--class_data_dir photos: has the photos themselves; give another folder",
        ),
    ],
)
def test_a_flag_that_cannot_be_is_refused_in_one_line_with_the_reason(capsys, words, said):
    line = ["--instance_data_dir", "photos", "--instance_prompt", "a photo of sks shoes"]
    with pytest.raises(SystemExit) as caught:
        train_dreambooth.parse_args([*line, *words.split()])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and said in error and error.count("\n") == 1


OF_LORA = ["--rank 4", "--lora_alpha 8.0", "--lora_dropout 0.1", "--use_dora", "--use_rslora", "--lora_layers to_k"]
OF_PRIOR = ["--class_data_dir class", "--num_class_images 5", "--prior_loss_weight 0.5", "--sample_batch_size 2"]
OF_PRIOR += ["--prior_generation_precision fp16"]
IGNORED = [(words, "--method lora", "--method lora") for words in OF_LORA]
WITH_PRIOR = "--with_prior_preservation --class_data_dir c --class_prompt s"
IGNORED += [(words, "--with_prior_preservation", WITH_PRIOR) for words in OF_PRIOR]
IGNORED += [("--class_prompt shoes", "--with_prior_preservation or --preserve_base", WITH_PRIOR)]
IGNORED += [("--token_learning_rate 0.1", "--train_token", "--method lora --train_token sks")]
IGNORED += [("--ema_decay 0.5", "--use_ema", "--use_ema"), ("--hub_model_id a/b", "--push_to_hub", "--push_to_hub")]
IGNORED += [("--lr_power 2.0", "--lr_scheduler polynomial", "--lr_scheduler polynomial")]
IGNORED += [("--cache_crops 9", "--no-center_crop", "--no-center_crop")]


@pytest.mark.parametrize("words, needed, with_it", IGNORED)
def test_a_flag_that_does_nothing_is_an_error_and_from_a_recipe_a_warning(
    caplog, capsys, tmp_path, words, needed, with_it
):
    line = ["--instance_data_dir", "photos", "--instance_prompt", "sks", "--method", "full"]
    with pytest.raises(SystemExit) as caught:
        train_dreambooth.parse_args([*line, *words.split()])
    error = capsys.readouterr().err
    flag, *value = words.split()
    assert caught.value.code == 2 and error.count("\n") == 1
    assert f": error: {words}: does nothing without {needed}; add that, or leave {flag} out" in error
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{flag.removeprefix('--')}: {value[0] if value else 'true'}\n")
    line += ["--config", str(recipe)]
    train_dreambooth.parse_args(line)
    (message,) = caplog.messages
    assert message.startswith(f"--config: `{flag.removeprefix('--')}: ") and message.endswith(
        f"` does nothing without {needed}"
    )
    caplog.clear()
    train_dreambooth.parse_args([*line, *with_it.split()])
    assert not caplog.messages


def test_flags_of_published_commands_that_do_nothing_are_only_warned_of(caplog):
    line = ["--instance_data_dir", "photos", "--instance_prompt", "sks", "--set_grads_to_none"]
    assert train_dreambooth.parse_args([*line, "--text_encoder_lr", "5e-06"]).text_encoder_lr == 5e-6
    assert caplog.messages == [
        "--text_encoder_lr 5e-06 does nothing without --train_text_encoder",
        "--set_grads_to_none does nothing: it is always done",
    ]


def test_listed_shapes_are_trained_and_class_images_stay_square(trainer_data, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, size in enumerate([(64, 32), (32, 64), (64, 40)]):
        draw_shoe("Boots", "Black", str(i), size).save(photos / f"{i}.png")
    words = [*PRIOR, "--instance_data_dir", photos, "--aspect_ratio_buckets", "16,32;32,16", "--max_train_steps", 1]
    words += ["--latent_cache_dir", tmp_path / "cache"]
    assert teach(trainer_data, tmp_path / "run", *words) == 0
    shapes = set()
    for path in (tmp_path / "cache").glob("latents-*/*.safetensors"):
        shapes |= {tuple(one.shape[2:]) for one in load_file(path).values()}
    assert shapes == {(8, 16), (16, 8), (8, 8)}
    with pytest.raises(UserError, match="^--aspect_ratio_buckets 16,17: this model takes multiples of 4; change"):
        teach(trainer_data, tmp_path / "other", *words[:-4], "--aspect_ratio_buckets", "16,16;16,17")
    assert not (tmp_path / "other").exists()


def test_a_layer_that_is_not_there_is_refused_first(trainer_data, tmp_path):
    with pytest.raises(UserError, match="--lora_layers nothing"):
        teach(trainer_data, tmp_path / "run", "--lora_layers", "nothing")
    assert not (tmp_path / "run").exists()


def test_the_method_chooses_the_rate_and_alpha_is_the_rank():
    line = ["--instance_data_dir", "photos", "--instance_prompt", "a photo of sks shoes"]
    for words, rate, alpha in ((["--rank", "4"], 1e-4, 4), (["--method", "full"], 5e-6, 8)):
        args = train_dreambooth.parse_args([*line, *words])
        assert (args.learning_rate, args.lora_alpha, args.effective_batch_size) == (rate, alpha, 2)
