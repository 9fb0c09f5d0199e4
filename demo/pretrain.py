"""Train the demo models from scratch: a CLIP, a judge CLIP, an autoencoder and a UNet, on the drawn catalogue.

    python demo/pretrain.py                                        # all stages, resumable: run it again after a stop
    python demo/pretrain.py --stages autoencoder --work_dir runs/demo_pretrain

It writes demo/model/ (an ordinary StableDiffusionPipeline folder), demo/clip/ (the judge, which alone knows the
held-back kind). Working files stay in --work_dir. demo/measure.py then says how good they are.
"""

import argparse
import hashlib
import json
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, devices, files, runs  # first: it says in one line which package is missing

# isort: split
import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from demo.captions import MAX_TOKENS, caption, make_tokenizer, tokens_of
from demo.catalogue import draw_product, product
from demo.shoes import COLOURS, KINDS, KNOWN_KINDS
from demo.stages import Plan, Stage, train

HERE = Path(__file__).resolve().parent
SIZE, CLIP_SIZE = 128, 64
SEED, JUDGE_SEED = 1_000, 2_000  # of the catalogues to train on, with no product of one that users or tests draw
SCALING = 0.18215  # as in Stable Diffusion 1.x: latents times this have unit variance

PLAN = {
    "clip": Plan(1600, 128, 1e-3),
    "judge": Plan(2200, 128, 1e-3),
    "autoencoder": Plan(4400, 12, 1.5e-3),
    "unet": Plan(2600, 48, 1e-3),
}
STAGES = {name: Stage(name, plan, (number, SEED)) for number, (name, plan) in enumerate(PLAN.items())}


# --- data


def draw_array(task: tuple[dict[str, str], int]) -> np.ndarray:
    row, seed = task
    return np.asarray(draw_product(row, seed, (SIZE, SIZE)))


def draw_images(
    work: Path, name: str, seed: int, count: int, kinds: list[str]
) -> tuple[list[dict[str, str]], np.ndarray]:
    """Rows of the catalogue and their uint8 images, drawn once and then memory-mapped."""
    rows = [product(seed, index, kinds) for index in range(count)]
    path = work / f"{name}-{seed}-{count}.npy"
    if not path.exists():
        partial = path.with_suffix(".partial.npy")
        images = np.lib.format.open_memmap(partial, "w+", np.uint8, (count, SIZE, SIZE, 3))
        with ProcessPoolExecutor() as pool:
            for index, image in enumerate(pool.map(draw_array, ((row, seed) for row in rows), chunksize=64)):
                images[index] = image
        images.flush()
        os.replace(partial, path)
    return rows, np.load(path, mmap_mode="r")


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 NHWC to float NCHW in -1..1."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


# --- CLIP: the pipeline's own, and the judge


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    torch.manual_seed(SEED)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    size = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": 128,
    }
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, **size, **ids)
    vision = CLIPVisionConfig(image_size=CLIP_SIZE, patch_size=8, **size)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128)
    config._attn_implementation = "eager"  # at this size twice as fast as SDPA in bfloat16 on a CPU
    return CLIPModel(config)


def shrink(images: torch.Tensor) -> torch.Tensor:
    """128 to 64 pixels by averaging, which is antialiased; -1..1 is what both CLIPs see."""
    return F.avg_pool2d(images, SIZE // CLIP_SIZE)


def train_clip(stage: str, work: Path, tokenizer: CLIPTokenizer, device: str, kinds: list[str], seed: int) -> CLIPModel:
    rows, images = draw_images(
        work, "shoes" if stage == "clip" else "judged", seed, 24_000 if stage == "clip" else 20_000, kinds
    )
    labels = torch.tensor(
        [list(KINDS).index(r["articleType"]) * 100 + list(COLOURS).index(r["baseColour"]) for r in rows]
    )
    batch = PLAN[stage].batch

    def step_loss(model: torch.nn.Module, step: int, rng: np.random.Generator) -> torch.Tensor:
        index = np.sort(rng.choice(len(rows), batch, replace=False))
        words = random.Random(int(rng.integers(2**31)))
        # Shifts and a little noise: what the judge sees later is generated, not drawn.
        x = torch.roll(to_tensor(images[index]), tuple(int(s) for s in rng.integers(-4, 5, 2)), (2, 3))
        x = shrink(x)
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        x = (x + float(rng.uniform(0, 0.1)) * noise).to(device)
        ids = tokens_of(tokenizer, [caption(rows[i], words) for i in index]).to(device)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            out = model(input_ids=ids, pixel_values=x)
        # Every caption of the same kind and colour is right for an image, not only the one it was drawn with.
        same = (labels[index][:, None] == labels[index][None]).float().to(device)
        target = same / same.sum(1, keepdim=True)
        return (
            F.cross_entropy(out.logits_per_image.float(), target) + F.cross_entropy(out.logits_per_text.float(), target)
        ) / 2

    return train(STAGES[stage], work, make_clip(tokenizer), step_loss, device)


# --- autoencoder


def make_autoencoder() -> AutoencoderKL:
    torch.manual_seed(SEED)
    channels = (32, 48, 64, 96)
    model = AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=SCALING,
        mid_block_add_attention=False,
    )
    carry_colours(model)
    return model


@torch.no_grad()
def carry_colours(model: AutoencoderKL) -> None:
    """Let six channels start as +red, +green, +blue, -red, -green, -blue, averaged down to three latents and back.

    From a random start, details took all of the latents and one axis of colour was never found: purple came out grey.
    """

    def wire(conv: torch.nn.Conv2d, sources: dict[int, dict[int, float]]) -> None:
        middle = conv.kernel_size[0] // 2
        for out, weights in sources.items():
            conv.weight[out], conv.bias[out] = 0, 0
            for source, weight in weights.items():
                conv.weight[out, source, middle, middle] = weight

    keep = {c: {c: 1.0} for c in range(6)}
    split = {c: {c % 3: 1.0 if c < 3 else -1.0} for c in range(6)}
    join = {c: {c: 1.0, c + 3: -1.0} for c in range(3)}
    for module in model.modules():
        if isinstance(module, ResnetBlock2D) and module.conv_shortcut is not None:
            wire(module.conv_shortcut, keep)
        elif isinstance(module, Upsample2D):
            wire(module.conv, keep)
        elif isinstance(module, Downsample2D):
            wire(module.conv, keep)
            for c in range(6):
                module.conv.weight[c, c] = 0
                module.conv.weight[c, c, :2, :2] = 0.25
    wire(model.encoder.conv_in, split)
    wire(model.encoder.conv_out, join)
    wire(model.quant_conv, {c: {c: 1.0} for c in range(3)})
    wire(model.post_quant_conv, {c: {c: 1.0} for c in range(3)})
    wire(model.decoder.conv_in, split)
    wire(model.decoder.conv_out, join)
    model.quant_conv.bias[4:] = -6.0  # start almost without noise, or the posterior collapses


def mix_images(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Swap colour channels and paste panels of other images: it must decode two-tone shoes though it has seen none."""
    for i in range(len(x)):
        if rng.random() < 0.3:
            x[i] = x[i, rng.permutation(3)]
    other = torch.from_numpy(rng.permutation(len(x)))
    source = x.clone()
    for i in range(len(x)):
        if rng.random() < 0.5:
            w, h = rng.integers(6, 48, 2)
            left, top = rng.integers(0, x.shape[3] - w), rng.integers(0, x.shape[2] - h)
            x[i, :, top : top + h, left : left + w] = source[other[i], :, top : top + h, left : left + w]
    return x


def edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def train_autoencoder(work: Path, device: str) -> AutoencoderKL:
    rows, images = draw_images(work, "shoes", SEED, 24_000, list(KNOWN_KINDS))
    steps, batch = PLAN["autoencoder"].steps, PLAN["autoencoder"].batch

    def step_loss(model: torch.nn.Module, step: int, rng: np.random.Generator) -> torch.Tensor:
        whole = step >= steps * 0.93  # finish on whole images
        count = batch // 3 if whole else batch
        x = to_tensor(images[np.sort(rng.choice(len(rows), count, replace=False))])
        if not whole:  # crops where the shoes are: most of a product photo is white
            cut = [(int(t), int(s)) for t, s in zip(rng.integers(12, 57, count), rng.integers(0, 65, count))]
            x = torch.stack([image[:, t : t + 64, s : s + 64] for image, (t, s) in zip(x, cut)])
        x = mix_images(x, rng).to(device)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            posterior = model.encode(x).latent_dist
            noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, dtype=np.float32)).to(device)
            made = model.decode(posterior.mean + posterior.std * noise).sample
        made = made.float()
        sharp = sum((a - b).abs().mean() for a, b in zip(edges(made), edges(x)))
        colour = (F.avg_pool2d(made, 8) - F.avg_pool2d(x, 8)).abs().mean()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        return (made - x).abs().mean() + sharp + colour + 1e-5 * kl

    model = train(STAGES["autoencoder"], work, make_autoencoder(), step_loss, device, average=0.998)
    whiten(model, to_tensor(images[:1024:2]), device)
    return model


@torch.no_grad()
def whiten(model: AutoencoderKL, images: torch.Tensor, device: str) -> None:
    """Fold each latent channel's mean and spread into the 1x1 convolutions, so that SCALING is the true factor."""
    means = torch.cat([model.encode(x.to(device)).latent_dist.mean for x in images.split(32)])
    shift, scale = means.mean((0, 2, 3)), means.std((0, 2, 3)) * SCALING
    model.post_quant_conv.bias += (model.post_quant_conv.weight * shift[None, :, None, None]).sum((1, 2, 3))
    model.post_quant_conv.weight *= scale[None, :, None, None]
    model.quant_conv.bias[:4] = (model.quant_conv.bias[:4] - shift) / scale
    model.quant_conv.weight[:4] /= scale[:, None, None, None]
    model.quant_conv.bias[4:] -= 2 * scale.log()


# --- UNet


def make_unet() -> UNet2DConditionModel:
    torch.manual_seed(SEED)
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(48, 96, 128),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,  # in this class: the number of heads
        norm_num_groups=16,
    )


def make_scheduler() -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: np.ndarray, device: str, path: Path) -> torch.Tensor:
    """Mean and deviation of every image's latent, scaled: (n, 2, 4, 16, 16); kept in a file to resume with."""
    if not path.exists():
        parts = []
        for start in range(0, len(images), 64):
            with torch.autocast(device.split(":")[0], torch.bfloat16):
                posterior = vae.encode(to_tensor(images[start : start + 64]).to(device)).latent_dist
            parts.append(torch.stack([posterior.mean, posterior.std], 1).float().cpu() * SCALING)
        save_file({"latents": torch.cat(parts)}, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)
    return load_file(path)["latents"]


def train_unet(
    work: Path, tokenizer: CLIPTokenizer, clip: CLIPModel, vae: AutoencoderKL, device: str
) -> UNet2DConditionModel:
    rows, images = draw_images(work, "shoes", SEED, 24_000, list(KNOWN_KINDS))
    weights = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in vae.state_dict().values())).hexdigest()
    latents = encode_all(vae, images, device, work / f"latents-{weights[:12]}.safetensors")
    scheduler, batch = make_scheduler(), PLAN["unet"].batch
    text = clip.text_model.to(device)
    alphas = scheduler.alphas_cumprod.to(device)

    def step_loss(model: torch.nn.Module, step: int, rng: np.random.Generator) -> torch.Tensor:
        index = rng.choice(len(rows), batch, replace=False)
        words = random.Random(int(rng.integers(2**31)))
        captions = [caption(rows[i], words) if rng.random() > 0.1 else "" for i in index]
        with torch.no_grad():
            context = text(tokens_of(tokenizer, captions).to(device)).last_hidden_state
        mean, spread = latents[index].unbind(1)
        draw, noise = (torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32)) for _ in range(2))
        latent, noise = (mean + spread * draw).to(device), noise.to(device)
        # Evenly spread over the schedule, jittered: the loss of a step varies less.
        t = torch.from_numpy(((np.arange(batch) + rng.random(batch)) / batch * 1000).astype(np.int64)).to(device)
        made = model(scheduler.add_noise(latent, noise, t), t, context).sample
        snr = alphas[t] / (1 - alphas[t])
        weight = snr.clamp(max=5.0) / snr  # min-SNR, gamma 5 (Hang et al., 2023, arXiv 2303.09556)
        return (weight * ((made - noise) ** 2).mean((1, 2, 3))).mean()

    return train(
        STAGES["unet"], work, make_unet().to(memory_format=torch.channels_last), step_loss, device, average=0.9985
    )


def save_models(
    work: Path,
    tokenizer: CLIPTokenizer,
    clip: CLIPModel,
    judge: CLIPModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
) -> None:
    """demo/model, demo/clip and, for demo/measure.py, how long the training took and its last loss."""
    text = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to("cpu", torch.float16).save_pretrained(HERE / "model", safe_serialization=True)
    judge.to("cpu", torch.float16).save_pretrained(HERE / "clip", safe_serialization=True)
    tokenizer.save_pretrained(HERE / "clip")
    half = [0.5] * 3
    CLIPImageProcessorPil(
        size={"shortest_edge": CLIP_SIZE},
        crop_size=CLIP_SIZE,
        resample=Image.Resampling.BOX,
        image_mean=half,
        image_std=half,
    ).save_pretrained(HERE / "clip")
    stages = {}
    for stage, plan in PLAN.items():
        last = json.loads((work / f"{stage}.jsonl").read_text().splitlines()[-1])
        stages[stage] = {
            "steps": plan.steps,
            "batch": plan.batch,
            "last loss": last["loss"],
            "minutes": last["seconds"] // 60,
        }
    files.write_json(HERE / "model" / "training.json", {"git_commit": runs.git_commit(), "stages": stages})


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.dry_run:
        return
    args.work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(SEED)
    wanted = {*args.stages, *(("clip", "autoencoder") if "unet" in args.stages else ())}
    trained = {}
    for stage in (stage for stage in PLAN if stage in wanted):
        if stage == "clip":
            trained[stage] = train_clip(stage, args.work_dir, tokenizer, args.device, list(KNOWN_KINDS), SEED)
        elif stage == "judge":
            trained[stage] = train_clip(stage, args.work_dir, tokenizer, args.device, list(KINDS), JUDGE_SEED)
        elif stage == "autoencoder":
            trained[stage] = train_autoencoder(args.work_dir, args.device)
        else:
            trained[stage] = train_unet(args.work_dir, tokenizer, trained["clip"], trained["autoencoder"], args.device)
    if set(trained) == set(PLAN):
        save_models(
            args.work_dir, tokenizer, trained["clip"], trained["judge"], trained["autoencoder"], trained["unet"]
        )


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument(
        "--stages", nargs="+", choices=list(PLAN), default=list(PLAN), help="unet adds clip and autoencoder"
    )
    parser.add_argument("--work_dir", type=Path, default=Path("runs/demo_pretrain"), help="states, logs, drawn images")
    parser.add_argument("--device", default=str(devices.pick_device()), help="where to train")
    cli.run(main, cli.parse_args(parser))
