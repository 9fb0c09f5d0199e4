"""Teach Stable Diffusion 1.x, 2.x or XL one subject from 5 to 30 photos: as a LoRA, or as a whole pipeline.

With --with_prior_preservation it also trains on what the model itself draws of the class, so that it forgets less.

    python3 train_dreambooth.py --instance_data_dir photos --instance_prompt "a photo of sks shoes"
    python3 train_dreambooth.py --config configs/demo_dreambooth.yaml --instance_data_dir runs/demo/subject
    accelerate launch --config_file accelerate_configs/a100.yaml train_dreambooth.py --instance_data_dir photos \\
        --instance_prompt "a photo of sks shoes" --method full --train_text_encoder --with_prior_preservation \\
        --class_data_dir data/class_shoes --class_prompt "a photo of shoes"
"""

import argparse
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from families import diffusion, lora, models, pipelines, tokens
from families.sampler import Execution, SamplerParts, Sampling, load_sampler
from preparation import portraits
from training import (
    batches,
    dreambooth_flags,
    encoding,
    examples,
    flags,
    loss_masks,
    memory,
    model_card,
    optimizers,
    outlook,
    prior,
    read_data,
    sample_plan,
    session,
    stepping,
    validation,
)
from training.training import kohya_path, start_training
from utils import cli, devices, faces, runs, trackers
from utils.cli import UserError

logger = logging.getLogger("train_dreambooth")
ON_THE_CARD = (
    "method instance_prompt train_token with_prior_preservation class_prompt prior_loss_weight num_class_images "
    "mask_loss resolution effective_batch_size learning_rate lr_scheduler optimizer train_text_encoder seed"
).split()


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    dreambooth_flags.add_flags(parser)
    return dreambooth_flags.check_flags(parser, cli.parse_args(parser, argv))


class Data(NamedTuple):
    """Photos and class images, and what gives their latents' moments, masks and captions' features."""

    train: list[examples.Example]
    prior: list[examples.Example]
    held_out: list[examples.Example]
    prompts: list[str]  # of the validation images
    moments: Callable
    masks: Callable | None
    features: Callable | None  # None where the text encoder is trained
    identity: dict[str, str]


def trains_texts(args) -> bool:
    return bool(args.train_text_encoder or args.train_token)


def read_photos(args, heads: Path | None = None) -> tuple[list[dict], list[dict]]:
    """The photos to train on and those held out, not yet opened; the instance prompt where one has no caption.

    With --face_crop their heads and shoulders, which are kept in `heads`; without that folder, whole.
    """
    place, flag = (args.dataset_name, "--dataset_name") if args.dataset_name else (args.instance_data_dir, "")
    found = read_data.read_training_records(
        place, flag or "--instance_data_dir", args.image_column, args.caption_column, args.dataset_config_name,
        args.held_out
    )  # fmt: skip
    silent = sum(not one["text"] for part in found for one in part)
    if silent and not args.instance_prompt:
        raise UserError(f"--instance_prompt: {silent} of the photos have no caption; give it, as: a photo of sks shoes")
    read = [[one | {"text": one["text"] or args.instance_prompt} for one in part] for part in found]
    word = args.train_token
    if word and not any(word in one["text"] for one in read[0]):
        raise UserError(f"--train_token {word}: is in none of the photos' captions, so nothing would be learnt; add it")
    if args.face_crop and heads:
        detector, count = faces.load_faces(args.face_detector or "yunet"), len(read[0])
        cropped = portraits.head_crops(read[0] + read[1], detector, heads)
        read = [cropped[:count], cropped[count:]]
    return read


def load_photos(
    args, model: str, heads: Path | None
) -> tuple[list[examples.Example], list[examples.Example], Callable | None, str]:
    """Those to train on and those held out, opened; with --mask_loss what gives their masks, and a checksum of all.

    `heads`: see `read_photos`.
    """
    shapes = models.training_shapes(model, args.resolution, args.aspect_ratio_buckets)
    train, held_out = (examples.load_examples(part, shapes) for part in read_photos(args, heads))
    if args.early_stopping_patience and not held_out:
        raise UserError(f"--early_stopping_patience {args.early_stopping_patience}: needs --held_out above 0")
    read_data.tell_captions([one.text for one in train], args.instance_prompt)
    return train, held_out, *(loss_masks.mask_reader(args.mask_loss, train) if args.mask_loss else (None, ""))


def class_images(args) -> prior.ClassImages:
    """The class images that --class_data_dir is to hold."""
    how = Sampling(args.validation_inference_steps, args.validation_guidance_scale, args.resolution)
    model = args.pretrained_model_name_or_path
    return prior.ClassImages(args.class_data_dir, args.class_prompt, args.num_class_images, args.seed, model, how)


def make_class_images(args, model: str, family: str, precision: devices.Precision, accelerator: Accelerator) -> None:
    """Those that --class_data_dir lacks, generated as generate.py does."""
    if wanted := args.prior_generation_precision:
        precision = devices.choose_precision(accelerator.device, "no" if wanted == "fp32" else wanted)
    parts = SamplerParts(model, family, prediction_type=args.prediction_type)
    execution = Execution(accelerator.device, precision.dtype, args.sample_batch_size)
    images = class_images(args)
    prior.make_class_images(
        images, lambda: load_sampler(parts, images.sampling, execution, [images.prompt]), accelerator
    )


def load_data(args, photos, model: str, family: str, cache: Path, dtype: torch.dtype, accelerator: Accelerator) -> Data:
    """Captions and images are encoded once, and each encoder is freed before the next part is loaded.

    `photos`: what `load_photos` gives.
    """
    train, held_out, masks, masks_sha256 = photos
    drawn = []
    if args.with_prior_preservation:
        drawn = prior.prior_examples(args.class_data_dir, args.class_prompt, args.num_class_images, args.resolution)
    identity = {"data": examples.data_fingerprint(train + drawn)} | ({"masks": masks_sha256} if masks else {})
    prompts = args.validation_prompt or [args.instance_prompt or train[0].text]
    texts, features = [one.text for one in train + drawn + held_out] + prompts, None
    if not trains_texts(args):
        features = encoding.encode_captions(cache, model, family, texts, dtype, accelerator)
    views = examples.all_views(train + drawn, crops_each(args), args.random_flip)
    views += examples.all_views(held_out, 1, flip=False)
    filter = args.image_interpolation_mode
    moments = encoding.latent_reader(cache, model, views, filter, args.cache_latents, accelerator)
    return Data(train, drawn, held_out, prompts, moments, masks, features, identity)


def crops_each(args) -> int:
    """How many crops of an image there are; 0: no end of them."""
    return 1 if args.center_crop else args.cache_crops


def build_training(args, model: str, family: str, precision, effective: int, texts: list[str], device: torch.device):
    """The models with what is to be trained in them, and the optimizer; what encodes texts where that is trained."""
    devices.seed_everything(args.seed)  # the adapters' first weights are drawn on the CPU
    adapter = {"rank": args.rank, "alpha": args.lora_alpha, "dropout": args.lora_dropout}
    adapter |= {"use_dora": args.use_dora, "use_rslora": args.use_rslora}
    full, scale = args.method == "full", effective if args.scale_lr else 1
    dtype = torch.float32 if full else precision.dtype  # weights that are trained stay in float32

    def choose(module: torch.nn.Module, targets, rate: float) -> dict:
        found = list(module.requires_grad_(True).parameters()) if full else None
        return {"params": found or lora.attach_lora(module, targets=targets, **adapter), "lr": rate * scale}

    unet, encoders, token, features = models.load_unet(model, dtype), [], None, None
    groups = [choose(unet, args.lora_layers, args.learning_rate)]
    models.tune_unet(unet, args.gradient_checkpointing, args.enable_xformers_memory_efficient_attention, args.compile)
    rate = args.text_encoder_lr or args.learning_rate
    if trains_texts(args):
        tokenizers, encoders = models.load_text_encoders(model, family, dtype)
        for encoder in encoders:
            encoder.to(device)
        if args.train_token:
            token = tokens.new_token(tokenizers, encoders, args.train_token, args.initializer_token)
            at = (args.token_learning_rate or rate) * scale
            groups.append({"params": token.vectors, "lr": at, "weight_decay": 0.0})  # no pull of a word towards 0
        for encoder in encoders:
            if args.train_text_encoder:
                groups.append(choose(encoder, lora.TEXT_TARGETS, rate))
            if args.gradient_checkpointing:
                encoder.activation_checkpointing_enable()
        models.report_long_captions(tokenizers[0], texts)
        zero = models.empty_prompt_is_zero(model)
        encode = functools.partial(models.encode_prompts, tokenizers, encoders, empty_is_zero=zero)
        features = functools.partial(encoding.encode_distinct, encode)
    if args.output_kohya_format:  # what has no name in that format is told now, and not after the training
        lora.kohya_tensors(lora.lora_state(unet, encoders), unet, encoders, family)
    changes = diffusion.schedule_changes(args.prediction_type, args.zero_terminal_snr)
    whole = pipelines.Base(model, changes) if full else None
    training = start_training(
        unet, encoders, groups, args.optimizer,
        ((args.adam_beta1, args.adam_beta2), args.adam_weight_decay, args.adam_epsilon), device,
        precision.mixed_precision == "fp16", args.use_ema, token, whole
    )  # fmt: skip
    return training, features


def foretell_memory(args, model: str, family: str, precision: devices.Precision, micro: int) -> dict:
    """Bytes by phase and part, with `micro` photos at once, and as many class images."""
    full = args.method == "full"
    return memory.predict_memory(
        model, family, rank=None if full else args.rank, targets=args.lora_layers, use_dora=args.use_dora,
        ema=args.use_ema, height=args.resolution, width=args.resolution, optimizer=args.optimizer,
        micro_batch=micro * (1 + args.with_prior_preservation), train_text_encoder=trains_texts(args),
        dtype=torch.float32 if full else precision.dtype, gradient_checkpointing=args.gradient_checkpointing,
        autocast=precision.dtype if precision.mixed_precision != "no" else None,
        vae_batch=encoding.encoded_at_once(devices.working_device())
    )  # fmt: skip


def count_steps(args, photos: int) -> tuple[int, int]:
    """The steps of the training, and those from one validation to the next."""
    return batches.count_steps(
        photos, args.effective_batch_size, args.max_train_steps, args.num_train_epochs, args.validation_steps,
        args.validation_epochs
    )  # fmt: skip


def dry_run(args, model: str, family: str, precision, plan: batches.BatchPlan, free: set[str], end: Callable) -> None:
    """What would be trained and what it would take, from the configs and images alone: no weights are read."""
    rank = None if args.method == "full" else args.rank
    texts = lora.TEXT_TARGETS if args.train_text_encoder else ()
    print(outlook.describe_model(model, family, rank, args.lora_layers, texts, args.use_dora))
    print(f"precision    {precision.reason}\nbatch        {plan}")
    print(f"run          {runs.describe_run(args.output_dir, cli.settings_of(args), free, end)}")
    train, held_out, *_ = load_photos(args, model, None)
    there = []
    if args.with_prior_preservation:
        folder, prompt, count = args.class_data_dir, args.class_prompt, args.num_class_images
        prior.check_folder(class_images(args))
        there = prior.prior_examples(folder, prompt, count, args.resolution)
        print(f"class images {count:,}: {len(there):,} in {folder}, {count - len(there):,} to be drawn into it")
    examples.check_whole(train + held_out + there)
    print(outlook.describe_memory(foretell_memory(args, model, family, precision, plan.micro)))
    print(outlook.describe_length(len(train), len(held_out), count_steps(args, len(train))[0], plan.effective))


def describe_result(args, data: Data, token: tokens.Token | None) -> dict:
    """What the card says, beside what the file says of itself."""
    hidden = () if args.with_prior_preservation else dreambooth_flags.OF_PRIOR
    return {
        "script": "train_dreambooth.py",
        "method": args.method,
        "token_files": tokens.FILES[: len(token.vectors)] if token else (),
        "prompt": data.prompts[0],
        "data": args.dataset_name or args.instance_data_dir,
        "counts": {"photos": len(data.train), "held-out": len(data.held_out), "class images": len(data.prior)},
        "repo_id": args.hub_model_id if args.push_to_hub else None,
        "settings": {
            name: value for name in ON_THE_CARD if (value := getattr(args, name)) is not None and name not in hidden
        },
    }


def main(args) -> int | None:
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    plan = batches.plan_batch(
        args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, accelerator.num_processes
    )
    args.effective_batch_size, place = plan.effective, args.dataset_name or args.instance_data_dir
    args.aspect_ratio_buckets = read_data.choose_buckets(args.aspect_ratio_buckets, place)
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}; batch: {plan}", flush=True)
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    if args.push_to_hub:
        model_card.hub_token()
    cache = args.latent_cache_dir or out.parent / "cache"
    model = models.resolve_model(args.pretrained_model_name_or_path, cache / "models", args.model_config)
    family, names = models.model_family(model), trackers.tracker_names(args.report_to)
    if args.train_batch_size == "auto":
        foretell = functools.partial(foretell_memory, args, model, family, precision)
        plan = plan._replace(micro=outlook.largest_batch(plan.micro, devices.device_memory(device)[1], foretell))
        logger.warning("--train_batch_size auto: %s", plan)
    if args.lora_layers != list(lora.UNET_TARGETS):  # a name that is wrong is told before anything is encoded
        lora.check_targets(memory.build_part(model, "unet"), args.lora_layers)
    free = flags.free_to_change(args) | {"sample_batch_size", "prior_generation_precision"}
    asked = [args.max_train_steps, args.num_train_epochs]
    end = functools.partial(
        runs.describe_end, out, asked, args.resume_from_checkpoint,
        lambda: count_steps(args, len(read_photos(args)[0]) if args.num_train_epochs else 0)[0],
        args.output_kohya_format and not kohya_path(out).exists()
    )  # fmt: skip
    if args.dry_run:
        return dry_run(args, model, family, precision, plan, free, end) if is_main else None
    if is_main:
        runs.open_run(out, cli.settings_of(args), free, args.overwrite, end)
    accelerator.wait_for_everyone()
    if told := end():
        accelerator.print(told)
        if args.push_to_hub and is_main:
            model_card.push_run(out, args.hub_model_id)
        return 0

    # What is trained, and on what.
    seconds: dict[str, float] = {}
    scheduler = models.load_noise_scheduler(model)
    scheduler = diffusion.training_scheduler(scheduler, args.prediction_type, args.zero_terminal_snr)
    with runs.timed(seconds, "loading"):
        photos = load_photos(args, model, cache / "heads")
        if args.with_prior_preservation:  # a damaged one is told before class images are drawn
            examples.check_whole(photos[0] + photos[1])
    if args.with_prior_preservation:
        with runs.timed(seconds, "class_images"):
            make_class_images(args, model, family, precision, accelerator)
    with runs.timed(seconds, "loading"):
        data = load_data(args, photos, model, family, cache, precision.dtype, accelerator)
        texts = [one.text for one in data.train + data.prior]
        training, features = build_training(args, model, family, precision, plan.effective, texts, device)
    features, unet, optimizer, scaler = features or data.features, training.unet, training.optimizer, training.scaler
    last, every = count_steps(args, len(data.train))
    rates = [group["lr"] for group in optimizer.param_groups]
    rates_at = optimizers.rate_schedule(
        args.lr_scheduler, rates, args.lr_warmup_steps, last, args.lr_num_cycles, args.lr_power
    )

    # Where this folder's run stands.
    rank, alpha = (args.rank, args.lora_alpha) if args.method == "lora" else (None, None)
    base, progress = args.pretrained_model_name_or_path, training.progress
    facts = lora.describe(base, rank, alpha, data.identity["data"], args.train_token)
    used = args.instance_prompt in [one.text for one in data.train]  # captions of their own may have overruled it
    facts |= {"instance_prompt": args.instance_prompt} if used else {}
    here = session.open_session(
        accelerator, out, training, data.identity, facts, seconds, args.resume_from_checkpoint, precision.reason,
        (names, args.logging_dir, cli.settings_of(args))
    )  # fmt: skip

    # What a position of the sample plan means: a photo, and with prior preservation a class image beside it.
    autocast = devices.autocast(device, precision)
    timesteps, photos = scheduler.config.num_train_timesteps, len(data.train)
    view = functools.partial(
        sample_plan.draw_position, group=plan.effective, timesteps=timesteps, flip=0.5 * args.random_flip,
        dropout=args.caption_dropout
    )  # fmt: skip
    shapes, prior_shapes = (tuple(one.shape for one in part) for part in (data.train, data.prior))

    def draw(position: int) -> list[sample_plan.Draw]:
        found = [view(position, args.seed, shapes)]
        if data.prior:
            beside = view(position, ("class", args.seed), prior_shapes)
            found.append(beside._replace(index=photos + beside.index))
        return found

    load = functools.partial(batches.load_batch, moments=data.moments, scaling=models.latent_scale(model))
    take = functools.partial(load, crops=crops_each(args), noise_offset=args.noise_offset, masks=data.masks)
    steps = range(progress["step"], last)
    steps = batches.load_steps(steps, plan, accelerator.process_index, data.train + data.prior, draw, take)
    steps = sample_plan.prefetch(steps) if args.dataloader_num_workers else steps
    held_out = validation.held_out_batches(data.held_out, args.num_validation_samples, timesteps, load)
    check = validation.make_check(
        training, scheduler, held_out, features, autocast, data.prompts, args.num_validation_images, args.seed,
        model=model, family=family, steps=args.validation_inference_steps, size=args.resolution,
        guidance=args.validation_guidance_scale, stop=lambda: bool(here.received)
    )  # fmt: skip

    def learn(part: dict, number: int, backward: Callable) -> torch.Tensor:
        """Forward and backward of one micro-batch; (loss, timestep, whether of a class image) of each sample."""
        if args.lora_dropout:  # its mask, too, depends on the step alone
            devices.seed_everything(devices.key_seed("dropout", args.seed, progress["step"], number))
        with autocast():
            prediction, target = diffusion.predict(unet, scheduler, part, *features(part["texts"]))
        weights = diffusion.snr_weights(scheduler, part["timesteps"], args.snr_gamma)
        loss = diffusion.sample_losses(prediction, target, weights, part.get("mask"))
        is_prior = part["index"] >= photos
        counts = torch.where(is_prior, args.prior_loss_weight, 1.0)
        backward(scaler.scale((loss * counts).sum() / plan.effective))
        return torch.stack([loss.detach(), part["timesteps"], is_prior], 1)

    micro, window = plan.micro * (1 + bool(data.prior)), []
    cores = None if args.lora_dropout else stepping.train_cores(device, micro)  # dropout draws from one generator
    kept = args.checkpointing_steps, args.checkpoints_total_limit
    patience, shown = args.early_stopping_patience, args.num_validation_images
    for parts in session.each_step(here, steps, last, every, check, shown, patience, kept):
        # One training step: the samples of positions step*E … step*E+E-1, in micro-batches that fit.
        step = progress["step"]
        with runs.timed(seconds, "step"):
            optimizers.set_rates(optimizer, rates_at(step))
            # `learn` from each micro-batch, over again in smaller ones where memory gives out; sum and clip.
            found = stepping.compute_gradients(training, parts, micro, learn, accelerator, args.max_grad_norm, cores)
            micro = found.micro
            if found.finite:
                scaler.step(optimizer)
                stepping.follow_weights(training, args.ema_decay)
                window += found.rows
            else:
                stepping.skip_nonfinite(here, found, args.on_nonfinite, scheduler, features, autocast)
        if window and ((step + 1) % args.logging_steps == 0 or step + 1 == last):
            losses = diffusion.mean_losses([row[:2] for row in window if not row[2]], timesteps)
            if data.prior:
                losses["prior_loss"] = diffusion.mean_losses([row[:2] for row in window if row[2]], timesteps)["loss"]
            session.note_step(here, losses, rates_at(step)[0], found.norm, len(window))
            window = []
    done = session.is_done(progress, last, patience)
    if is_main and done:
        kohya = family if args.output_kohya_format else None
        session.finish(here, describe_result(args, data, training.token), plan.effective, asked, kohya)
        if args.push_to_hub:
            model_card.push_run(out, args.hub_model_id)
    return session.close_session(here, done)


if __name__ == "__main__":
    cli.run(main, parse_args())
