"""Train a LoRA on Stable Diffusion 1.x, 2.x or XL: exact on any hardware, resumed by the same command.

The data is what prepare_dataset.py made, an imagefolder, images with <name>.txt captions, or a hub dataset.

    python3 train_lora.py --max_train_steps 3000
    accelerate launch --config_file accelerate_configs/a100.yaml train_lora.py --train_batch_size auto
    python3 train_lora.py --pretrained_model_name_or_path demo --train_data_dir data/shoes --resolution 128 --dry_run
"""

import argparse
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from families import diffusion, lora, models
from training import (
    batches,
    encoding,
    examples,
    flags,
    memory,
    model_card,
    optimizers,
    outlook,
    read_data,
    sample_plan,
    session,
    stepping,
    validation,
)
from training.training import kohya_path, start_training
from utils import cli, devices, runs, trackers
from utils.cli import UserError

logger = logging.getLogger("train_lora")
ON_THE_CARD = (
    "resolution effective_batch_size learning_rate lr_scheduler optimizer lora_layers train_text_encoder snr_gamma "
    "noise_offset caption_dropout random_flip seed mixed_precision"
).split()


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    models.add_model_flags(parser)
    flags.add_data_flags(parser)
    flags.add_lora_flags(parser)
    flags.add_training_flags(parser)
    flags.add_performance_flags(parser)
    flags.add_validation_flags(parser)
    flags.add_run_flags(parser, "runs/casual_shoes")
    cli.add_refused_flags(parser, flags.REFUSED)
    args = cli.parse_args(parser, argv)
    flags.check_training_flags(parser, args)
    return args


class Data(NamedTuple):
    """Images, and what gives their latents' moments and their captions' features."""

    train: list[examples.Example]
    held_out: list[examples.Example]
    prompts: list[str]  # of the validation images
    moments: Callable
    features: Callable | None  # None where the text encoder is trained


def read_records(args) -> tuple[list[dict], list[dict]]:
    """The images to train on and those held out, not yet opened."""
    place = (args.dataset_name, "--dataset_name") if args.dataset_name else (args.train_data_dir, "--train_data_dir")
    return read_data.read_training_records(
        *place, args.image_column, args.caption_column, args.dataset_config_name, args.held_out, args.max_train_samples,
        args.seed
    )  # fmt: skip


def crops_each(args) -> int:
    """How many crops of an image there are; 0: no end of them."""
    return 1 if args.center_crop else args.cache_crops


def load_data(args, model: str, family: str, cache: Path, dtype: torch.dtype, accelerator: Accelerator) -> Data:
    """Captions and images are encoded once, and each encoder is freed before the next part is loaded."""
    shapes = models.training_shapes(model, args.resolution, args.aspect_ratio_buckets)
    train, held_out = (examples.load_examples(part, shapes) for part in read_records(args))
    if args.early_stopping_patience and not held_out:
        raise UserError(
            f"--early_stopping_patience {args.early_stopping_patience}: the data has no held-out images to go by; "
            "add --held_out 0.1, or prepare it with a val split"
        )
    prompts = args.validation_prompt or list(dict.fromkeys(one.text for one in held_out or train))[:4]
    texts, features = [one.text for one in train + held_out] + prompts, None
    if not args.train_text_encoder:
        features = encoding.encode_captions(cache, model, family, texts, dtype, accelerator)
    views = examples.all_views(train, crops_each(args), args.random_flip) + examples.all_views(held_out, 1, flip=False)
    moments = encoding.latent_reader(
        cache, model, views, args.image_interpolation_mode, args.cache_latents, accelerator
    )
    return Data(train, held_out, prompts, moments, features)


def build_training(args, model: str, family: str, precision, effective: int, texts: list[str], device: torch.device):
    """The models with their adapters and the optimizer; and what encodes texts where the text encoder is trained."""
    devices.seed_everything(args.seed)  # the adapters' first weights are drawn on the CPU
    adapter = {"rank": args.rank, "alpha": args.lora_alpha, "dropout": args.lora_dropout}
    adapter |= {"use_dora": args.use_dora, "use_rslora": args.use_rslora}
    unet, encoders, features = models.load_unet(model, precision.dtype), [], None
    scale = effective if args.scale_lr else 1
    groups = [{"params": lora.attach_lora(unet, targets=args.lora_layers, **adapter), "lr": args.learning_rate * scale}]
    models.tune_unet(unet, args.gradient_checkpointing, args.enable_xformers_memory_efficient_attention, args.compile)
    if args.train_text_encoder:
        tokenizers, encoders = models.load_text_encoders(model, family, precision.dtype)
        rate = (args.text_encoder_lr or args.learning_rate) * scale
        for encoder in encoders:
            groups.append({"params": lora.attach_lora(encoder, targets=lora.TEXT_TARGETS, **adapter), "lr": rate})
            if args.gradient_checkpointing:
                encoder.activation_checkpointing_enable()
        models.report_long_captions(tokenizers[0], texts)
        features = functools.partial(
            models.encode_prompts, tokenizers, encoders, empty_is_zero=models.empty_prompt_is_zero(model)
        )
    if args.output_kohya_format:  # what has no name in that format is told now, and not after the training
        lora.kohya_tensors(lora.lora_state(unet, encoders), unet, encoders, family)
    adam = (args.adam_beta1, args.adam_beta2), args.adam_weight_decay, args.adam_epsilon
    scaled = precision.mixed_precision == "fp16"
    training = start_training(unet, encoders, groups, args.optimizer, adam, device, scaled, args.use_ema)
    return training, features


def foretell_memory(args, model: str, family: str, precision: devices.Precision, micro: int) -> dict:
    """Bytes by phase and part, with `micro` samples at once."""
    autocast = precision.dtype if precision.mixed_precision != "no" else None
    return memory.predict_memory(
        model, family, rank=args.rank, targets=args.lora_layers, use_dora=args.use_dora, ema=args.use_ema,
        height=args.resolution, width=args.resolution, micro_batch=micro, train_text_encoder=args.train_text_encoder,
        dtype=precision.dtype, autocast=autocast, gradient_checkpointing=args.gradient_checkpointing,
        optimizer=args.optimizer, vae_batch=encoding.encoded_at_once(devices.working_device())
    )  # fmt: skip


def count_steps(args, images: int) -> tuple[int, int]:
    """The steps of the training, and those from one validation to the next."""
    return batches.count_steps(
        images, args.effective_batch_size, args.max_train_steps, args.num_train_epochs, args.validation_steps,
        args.validation_epochs
    )  # fmt: skip


def dry_run(args, model: str, family: str, precision: devices.Precision, plan: batches.BatchPlan, end) -> None:
    """What would be trained and what it would take, from the configs alone: no weights are read."""
    texts = lora.TEXT_TARGETS if args.train_text_encoder else ()
    print(outlook.describe_model(model, family, args.rank, args.lora_layers, texts, args.use_dora))
    print(f"precision    {precision.reason}\nbatch        {plan}")
    print(f"run          {runs.describe_run(args.output_dir, cli.settings_of(args), flags.free_to_change(args), end)}")
    print(outlook.describe_memory(foretell_memory(args, model, family, precision, plan.micro)))
    train, held_out = read_records(args)
    examples.check_captions(train + held_out)
    print(outlook.describe_length(len(train), len(held_out), count_steps(args, len(train))[0], plan.effective))
    views = (len(train) * crops_each(args) * (1 + args.random_flip) + len(held_out)) * args.cache_latents
    captions = 0 if args.train_text_encoder else len({one["text"] for one in train + held_out} | {""})
    print(outlook.describe_cache(model, family, args.resolution, views, captions, precision.dtype))


def describe_result(args, data: Data) -> dict:
    """What the card says, beside what the file says of itself."""
    return {
        "prompt": data.prompts[0],
        "data": args.dataset_name or args.train_data_dir,
        "counts": {"training": len(data.train), "held-out": len(data.held_out)},
        "repo_id": args.hub_model_id if args.push_to_hub else None,
        "settings": {name: getattr(args, name) for name in ON_THE_CARD},
    }


def main(args) -> int | None:
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main = accelerator.device, accelerator.is_main_process
    plan = batches.plan_batch(
        args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, accelerator.num_processes
    )
    args.effective_batch_size, place = plan.effective, args.dataset_name or args.train_data_dir
    args.aspect_ratio_buckets = read_data.choose_buckets(args.aspect_ratio_buckets, place)
    if is_main:
        cli.show_settings(args)
        print(f"device: {devices.describe_device(device)}; precision: {precision.reason}; batch: {plan}", flush=True)
    if args.allow_tf32:
        torch.set_float32_matmul_precision("high")
    if args.push_to_hub:
        model_card.hub_token()
    cache = args.latent_cache_dir or args.output_dir.parent / "cache"
    model = models.resolve_model(args.pretrained_model_name_or_path, cache / "models", args.model_config)
    family = models.model_family(model)
    names = trackers.tracker_names(args.report_to)
    if args.train_batch_size == "auto":
        foretell = functools.partial(foretell_memory, args, model, family, precision)
        plan = plan._replace(micro=outlook.largest_batch(plan.micro, devices.device_memory(device)[1], foretell))
        logger.warning("--train_batch_size auto: %s", plan)
    if args.lora_layers != list(lora.UNET_TARGETS):  # a name that is wrong is told before anything is encoded
        lora.check_targets(memory.build_part(model, "unet"), args.lora_layers)
    asked = [args.max_train_steps, args.num_train_epochs]
    end = functools.partial(
        runs.describe_end, args.output_dir, asked, args.resume_from_checkpoint,
        lambda: count_steps(args, len(read_records(args)[0]) if args.num_train_epochs else 0)[0],
        args.output_kohya_format and not kohya_path(args.output_dir).exists()
    )  # fmt: skip
    if args.dry_run:
        return dry_run(args, model, family, precision, plan, end) if is_main else None
    if is_main:
        runs.open_run(args.output_dir, cli.settings_of(args), flags.free_to_change(args), args.overwrite, end)
    accelerator.wait_for_everyone()
    if told := end():
        accelerator.print(told)
        if args.push_to_hub and is_main:
            model_card.push_run(args.output_dir, args.hub_model_id)
        return 0

    seconds: dict[str, float] = {}
    scheduler = diffusion.training_scheduler(
        models.load_noise_scheduler(model), args.prediction_type, args.zero_terminal_snr
    )
    with runs.timed(seconds, "loading"):
        data = load_data(args, model, family, cache, precision.dtype, accelerator)
        training, features = build_training(
            args, model, family, precision, plan.effective, [one.text for one in data.train], device
        )
    features, unet, optimizer, scaler = features or data.features, training.unet, training.optimizer, training.scaler
    last, every = count_steps(args, len(data.train))
    rates = [group["lr"] for group in optimizer.param_groups]
    rates_at = optimizers.rate_schedule(
        args.lr_scheduler, rates, args.lr_warmup_steps, last, args.lr_num_cycles, args.lr_power
    )

    # Where this folder's run stands.
    identity = {"data": examples.data_fingerprint(data.train)}
    trigger, progress = read_data.prepared_with(place, "trigger_word"), training.progress
    facts = lora.describe(args.pretrained_model_name_or_path, args.rank, args.lora_alpha, identity["data"], trigger)
    here = session.open_session(
        accelerator, args.output_dir, training, identity, facts, seconds, args.resume_from_checkpoint,
        precision.reason, (names, args.logging_dir, cli.settings_of(args))
    )  # fmt: skip

    # What a position of the sample plan means, and what a validation does.
    autocast = devices.autocast(device, precision)
    timesteps, shapes = scheduler.config.num_train_timesteps, tuple(one.shape for one in data.train)
    load = functools.partial(batches.load_batch, moments=data.moments, scaling=models.latent_scale(model))
    position = functools.partial(
        sample_plan.draw_position, seed=args.seed, shapes=shapes, group=plan.effective, timesteps=timesteps,
        flip=0.5 * args.random_flip, dropout=args.caption_dropout
    )  # fmt: skip
    take = functools.partial(load, crops=crops_each(args), noise_offset=args.noise_offset)
    steps = range(progress["step"], last)
    steps = batches.load_steps(steps, plan, accelerator.process_index, data.train, lambda p: [position(p)], take)
    steps = sample_plan.prefetch(steps) if args.dataloader_num_workers else steps
    check = validation.make_check(
        training, scheduler, validation.held_out_batches(data.held_out, args.num_validation_samples, timesteps, load),
        features, autocast, data.prompts, args.num_validation_images, args.seed, model=model, family=family,
        steps=args.validation_inference_steps, guidance=args.validation_guidance_scale, size=args.resolution,
        stop=lambda: bool(here.received)
    )  # fmt: skip

    def learn(part: dict, number: int, backward: Callable) -> torch.Tensor:
        """Forward and backward of one micro-batch; (loss, timestep) of each sample."""
        if args.lora_dropout:  # its mask, too, depends on the step alone
            devices.seed_everything(devices.key_seed("dropout", args.seed, progress["step"], number))
        with autocast():
            prediction, target = diffusion.predict(unet, scheduler, part, *features(part["texts"]))
        weights = diffusion.snr_weights(scheduler, part["timesteps"], args.snr_gamma)
        loss = diffusion.sample_losses(prediction, target, weights)
        backward(scaler.scale(loss.sum() / plan.effective))
        return torch.stack([loss.detach(), part["timesteps"]], 1)

    micro, window = plan.micro, []
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
            losses = diffusion.mean_losses(window, timesteps)
            session.note_step(here, losses, rates_at(step)[0], found.norm, len(window))
            window = []
    done = session.is_done(progress, last, patience)
    if is_main and done:
        kohya = family if args.output_kohya_format else None
        session.finish(here, describe_result(args, data), plan.effective, asked, kohya)
        if args.push_to_hub:
            model_card.push_run(args.output_dir, args.hub_model_id)
    return session.close_session(here, done)


if __name__ == "__main__":
    cli.run(main, parse_args())
