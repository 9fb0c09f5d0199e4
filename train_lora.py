"""Train a LoRA on Stable Diffusion 1.x, 2.x or XL: exact on any hardware, resumed by the same command.

The data is what prepare_dataset.py made, an imagefolder, pictures with <name>.txt captions, or a hub dataset.

    python3 train_lora.py --max_train_steps 3000
    accelerate launch --config_file accelerate_configs/a100.yaml train_lora.py --train_batch_size auto
    python3 train_lora.py --pretrained_model_name_or_path demo --train_data_dir data/shoes --resolution 128 --dry_run
"""

import argparse
import functools
import logging
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from PIL import Image
from tqdm import tqdm

from utils import (
    batches,
    checkpoints,
    cli,
    devices,
    diffusion,
    encoding,
    estimate,
    flags,
    guards,
    lora,
    metrics_log,
    model_card,
    models,
    optimizers,
    outlook,
    pictures,
    runs,
    sampling,
    trackers,
    training_data,
    validation,
)
from utils.cli import UserError
from utils.training import (
    Training,
    averaged_weights,
    kohya_path,
    new_progress,
    restore_training,
    save_best,
    save_training,
    skip_step,
    write_kohya,
    write_lora,
)

logger = logging.getLogger("train_lora")
ON_THE_CARD = (
    "resolution effective_batch_size learning_rate lr_scheduler optimizer lora_layers train_text_encoder snr_gamma "
    "noise_offset caption_dropout random_flip seed mixed_precision"
).split()


def parse_args(argv=None) -> argparse.Namespace:
    parser = cli.make_parser(__doc__)
    flags.add_model_flags(parser)
    flags.add_data_flags(parser)
    flags.add_lora_flags(parser)
    flags.add_training_flags(parser)
    flags.add_performance_flags(parser)
    flags.add_validation_flags(parser)
    flags.add_run_flags(parser, "runs/casual_shoes")
    args = cli.parse_args(parser, argv)
    flags.check_training_flags(parser, args)
    return args


class Data(NamedTuple):
    """Pictures, and what gives their latents' moments and their captions' features."""

    train: list[pictures.Picture]
    held_out: list[pictures.Picture]
    prompts: list[str]  # of the validation pictures
    moments: Callable
    features: Callable | None  # None where the text encoder is trained


def read_records(args) -> tuple[list[dict], list[dict]]:
    """The pictures to train on and those held out, not yet opened."""
    place = (args.dataset_name, "--dataset_name") if args.dataset_name else (args.train_data_dir, "--train_data_dir")
    return training_data.read_training_records(
        *place, args.image_column, args.caption_column, args.dataset_config_name, args.held_out, args.max_train_samples,
        args.seed
    )  # fmt: skip


def crops_each(args) -> int:
    """How many crops of a picture there are; 0: no end of them."""
    return 1 if args.center_crop else args.cache_crops


def load_data(args, model: str, family: str, cache: Path, dtype: torch.dtype, accelerator: Accelerator) -> Data:
    """Captions and pictures are encoded once, and each encoder is freed before the next part is loaded."""
    shapes = pictures.training_shapes(model, args.resolution, args.aspect_ratio_buckets)
    train, held_out = (pictures.load_pictures(part, shapes) for part in read_records(args))
    if args.early_stopping_patience and not held_out:
        raise UserError(
            f"--early_stopping_patience {args.early_stopping_patience}: the data has no held-out pictures to go by; "
            "add --held_out 0.1, or prepare it with a val split"
        )
    prompts = args.validation_prompt or list(dict.fromkeys(one.text for one in held_out or train))[:4]
    texts, features = [one.text for one in train + held_out] + prompts, None
    if not args.train_text_encoder:
        features = encoding.encode_captions(cache, model, family, texts, dtype, accelerator)
    views = pictures.all_views(train, crops_each(args), args.random_flip) + pictures.all_views(held_out, 1, flip=False)
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
    groups = [{"params": lora.attach_lora(unet, targets=args.lora_layers, **adapter), "lr": args.learning_rate}]
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if args.enable_xformers_memory_efficient_attention:
        unet.enable_xformers_memory_efficient_attention()
    if args.compile:
        unet.compile_repeated_blocks()
    if args.train_text_encoder:
        tokenizers, encoders = models.load_text_encoders(model, family, precision.dtype)
        rate = args.text_encoder_lr or args.learning_rate
        for encoder in encoders:
            groups.append({"params": lora.attach_lora(encoder, targets=lora.TEXT_TARGETS, **adapter), "lr": rate})
            if args.gradient_checkpointing:
                encoder.gradient_checkpointing_enable()
        encoding.report_long_captions(tokenizers[0], texts)
        features = functools.partial(
            models.encode_prompts, tokenizers, encoders, empty_is_zero=models.empty_prompt_is_zero(model)
        )
    if args.output_kohya_format:  # what has no name in that format is told now, and not after the training
        lora.kohya_tensors(lora.lora_state(unet, encoders), unet, encoders, family)
    for module in (unet, *encoders):
        module.to(device).train()
    if device.type == "cuda":  # what its convolutions like best; on a CPU it is slower
        unet.to(memory_format=torch.channels_last)
    for group in groups:
        group["lr"] *= effective if args.scale_lr else 1
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = optimizers.make_optimizer(
        args.optimizer, groups, (args.adam_beta1, args.adam_beta2), args.adam_weight_decay, args.adam_epsilon, device
    )
    scaler = torch.amp.GradScaler(device.type, enabled=precision.mixed_precision == "fp16")
    average = [parameter.detach().clone() for parameter in parameters] if args.use_ema else None
    return Training(unet, encoders, parameters, optimizer, scaler, average, new_progress()), features


def foretell_memory(args, model: str, family: str, precision: devices.Precision, micro: int) -> dict:
    """Bytes by phase and part, with `micro` samples at once."""
    autocast = precision.dtype if precision.mixed_precision != "no" else None
    return estimate.predict_memory(
        model, family, rank=args.rank, targets=args.lora_layers, use_dora=args.use_dora, ema=args.use_ema,
        height=args.resolution, width=args.resolution, micro_batch=micro, train_text_encoder=args.train_text_encoder,
        dtype=precision.dtype, autocast=autocast, gradient_checkpointing=args.gradient_checkpointing,
        optimizer=args.optimizer
    )  # fmt: skip


def count_steps(args, pictures: int) -> tuple[int, int]:
    """The steps of the training, and those from one validation to the next."""
    epoch, last, every = pictures / args.effective_batch_size, args.max_train_steps, args.validation_steps
    if args.num_train_epochs:
        last = math.ceil(args.num_train_epochs * epoch)
    if args.validation_epochs:
        every = math.ceil(args.validation_epochs * epoch)
    return last, every


def dry_run(args, model: str, family: str, precision: devices.Precision, plan: batches.BatchPlan) -> None:
    """What would be trained and what it would take, from the configs alone: no weights are read."""
    texts = lora.TEXT_TARGETS if args.train_text_encoder else ()
    print(outlook.describe_model(model, family, args.rank, args.lora_layers, texts, args.use_dora))
    print(f"precision    {precision.reason}\nbatch        {plan}")
    print(f"run          {runs.describe_run(args.output_dir, cli.settings_of(args), flags.free_to_change(args))}")
    print(outlook.describe_memory(foretell_memory(args, model, family, precision, plan.micro)))
    train, held_out = read_records(args)
    print(outlook.describe_length(len(train), len(held_out), count_steps(args, len(train))[0], plan.effective))
    views = (len(train) * crops_each(args) * (1 + args.random_flip) + len(held_out)) * args.cache_latents
    captions = 0 if args.train_text_encoder else len({one["text"] for one in train + held_out} | {""})
    print(outlook.describe_cache(model, family, args.resolution, views, captions, precision.dtype))


def load_steps(args, train, plan, rank: int, timesteps: int, load: Callable, steps: range) -> Iterator[list[dict]]:
    """This process's micro-batches of every step, by the sample plan: what a position means depends on it alone."""
    shapes = tuple(one.shape for one in train)
    draw = functools.partial(
        sampling.draw_position, seed=args.seed, shapes=shapes, group=plan.effective, timesteps=timesteps,
        flip=0.5 * args.random_flip, dropout=args.caption_dropout
    )  # fmt: skip
    for step in steps:
        draws = [draw(position) for position in range(step * plan.effective, (step + 1) * plan.effective)]
        share = sampling.split_step(draws, shapes, plan.micro, rank, plan.processes)
        yield [load(one, train, crops=crops_each(args), noise_offset=args.noise_offset) for one in share]


def finish(args, training: Training, data: Data, facts: dict[str, str], family: str) -> None:
    """The LoRA, its other format, the loss curve, the card, the summary."""
    with averaged_weights(training):
        write_lora(args.output_dir, training, facts)
        if args.output_kohya_format:
            write_kohya(args.output_dir, training, facts, family)
    card = facts | {
        "prompt": data.prompts[0],
        "data": args.dataset_name or args.train_data_dir,
        "counts": {"training": len(data.train), "held-out": len(data.held_out)},
        "repo_id": args.hub_model_id if args.push_to_hub else None,
        "settings": {name: getattr(args, name) for name in ON_THE_CARD},
    }
    steps, skipped = training.progress["step"], len(training.progress["skipped"])
    counts = {"steps": steps, "samples": steps * args.effective_batch_size, "skipped_steps": skipped}
    asked = [args.max_train_steps, args.num_train_epochs]
    print(f"\n{model_card.write_results(args.output_dir, card, counts, asked)}\nthe LoRA is in {args.output_dir}")


def push(args) -> None:
    address = model_card.push_folder(args.output_dir, args.hub_model_id or args.output_dir.name, private=True)
    print(f"uploaded to {address}")


def main(args) -> int | None:
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    device, is_main = accelerator.device, accelerator.is_main_process
    plan = batches.plan_batch(
        args.train_batch_size, args.gradient_accumulation_steps, args.effective_batch_size, accelerator.num_processes
    )
    args.effective_batch_size = plan.effective
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
        lora.check_targets(estimate.build_part(model, "unet"), args.lora_layers)
    if args.dry_run:
        return dry_run(args, model, family, precision, plan) if is_main else None
    if is_main:
        runs.open_run(args.output_dir, cli.settings_of(args), flags.free_to_change(args), args.overwrite)
    accelerator.wait_for_everyone()
    complete = not args.output_kohya_format or kohya_path(args.output_dir).exists()
    if complete and runs.already_done(args.output_dir, [args.max_train_steps, args.num_train_epochs]):
        accelerator.print(f"{args.output_dir}: finished; more --max_train_steps go on, --overwrite begins anew")
        if args.push_to_hub and is_main:
            push(args)
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

    # Not accelerator.autocast, which does nothing in float16 on a CPU.
    autocast = functools.partial(torch.autocast, device.type, precision.dtype, precision.mixed_precision != "no")
    timesteps = scheduler.config.num_train_timesteps
    scaling = models.read_config(model, "vae/config.json").get("scaling_factor", 0.18215)
    load = functools.partial(batches.load_batch, moments=data.moments, scaling=scaling)
    held_out = validation.held_out_batches(data.held_out, args.num_validation_samples, timesteps, load)

    # Where this folder's run stands.
    identity = {"data": pictures.data_fingerprint(data.train)}
    trigger, progress = training_data.trigger_word(args.dataset_name or args.train_data_dir), training.progress
    facts = lora.describe(args.pretrained_model_name_or_path, args.rank, args.lora_alpha, identity["data"], trigger)
    saved = checkpoints.find_checkpoint(args.output_dir, args.resume_from_checkpoint)
    if saved:
        restore_training(saved, training, identity)
        accelerator.print(f"resuming from {saved}")
    metrics, followers = args.output_dir / "metrics.jsonl", {}
    if is_main:
        metrics_log.cut_metrics(metrics, progress["step"] if saved else -1)
        environment = args.output_dir / "environment.json"
        runs.write_environment(environment, devices.describe_device(device), precision.reason, dataset=identity["data"])
        logs, settings = args.output_dir / args.logging_dir, cli.settings_of(args)
        followers = trackers.start_trackers(names, logs, args.output_dir.name, settings, progress["step"])

    def log(record: dict) -> None:
        record |= {f"seconds_{name}": round(seconds.pop(name), 3) for name in list(seconds)}
        if is_main:
            metrics_log.append_metrics(metrics, record)
            trackers.log_scalars(followers, record, record["step"])

    steps = range(progress["step"], last)
    steps = load_steps(args, data.train, plan, accelerator.process_index, timesteps, load, steps)
    steps = sampling.prefetch(steps) if args.dataloader_num_workers else steps
    received, micro, window = runs.catch_signals(), plan.micro, []
    chosen = [data.prompts[i % len(data.prompts)] for i in range(args.num_validation_images)]
    draw = functools.partial(
        validation.validation_pictures, model=model, family=family, unet=unet, scheduler=scheduler,
        seeds=[args.seed + i for i in range(len(chosen))], steps=args.validation_inference_steps,
        guidance=args.validation_guidance_scale, size=args.resolution, autocast=autocast,
        stop=lambda: bool(received)
    )  # fmt: skip
    check = functools.partial(validation.validate, training, scheduler, held_out, features, autocast, chosen, draw)
    bar = tqdm(total=last, initial=progress["step"], unit=" steps", smoothing=0.05, **cli.progress(is_main))
    while True:
        step = progress["step"]
        done = step >= last
        if every and progress["validated"] < step and (step % every == 0 or done):
            with runs.timed(seconds, "validation"):
                grid = args.output_dir / "validation" / f"step-{step:06d}.png"
                found = [check(grid) if is_main else None]
                broadcast_object_list(found)
            if found[0]:
                if validation.note_loss(progress, found[0].get("val_loss")) and is_main:
                    save_best(args.output_dir / "best", training, facts)
                log({"step": step, **found[0]})
                if done and not math.isfinite(found[0].get("val_loss", 0)):
                    raise UserError(
                        f"step {step}: the held-out loss is not finite, and no LoRA written. {guards.ADVICE}"
                    )
                if is_main and args.num_validation_images:
                    trackers.log_images(followers, "validation", Image.open(grid), step)
        done = done or progress["worse_in_a_row"] >= (args.early_stopping_patience or math.inf)
        stopping = guards.any_process(accelerator, bool(received))
        path = args.output_dir / f"checkpoint-{step}"
        due = args.checkpointing_steps and (step % args.checkpointing_steps == 0 or done)
        due = due and (done or not progress["skipped_in_a_row"])  # a roll-back wants weights from before the trouble
        if step and path != saved and (due or stopping):
            with runs.timed(seconds, "checkpoint"):
                if is_main:
                    save_training(path, training, identity, facts)
                    checkpoints.rotate_checkpoints(args.output_dir, args.checkpoints_total_limit)
                accelerator.wait_for_everyone()
            saved = path
        if done or stopping:
            break

        # One training step: the samples of positions step*E … step*E+E-1, in micro-batches that fit.
        with runs.timed(seconds, "data"):
            parts = next(steps)
        with runs.timed(seconds, "step"):
            optimizers.set_rates(optimizer, rates_at(step))
            while True:  # once, or again where memory ran out or a float16 gradient overflowed
                parts = [half for part in parts for half in batches.split_batch(part, micro)]
                rows, ran_out = [], False
                try:
                    for number, part in enumerate(parts):
                        part = batches.to_device(part, device)
                        if args.lora_dropout:  # its mask, too, depends on the step alone
                            devices.seed_everything(sampling.key_seed("dropout", args.seed, step, number))
                        with autocast():
                            prediction, target = diffusion.predict(unet, scheduler, part, *features(part["texts"]))
                        weights = diffusion.snr_weights(scheduler, part["timesteps"], args.snr_gamma)
                        loss = diffusion.sample_losses(prediction, target, weights)
                        scaler.scale(loss.sum() / plan.effective).backward()
                        rows.append(torch.stack([loss.detach(), part["timesteps"]], 1))
                except RuntimeError as error:
                    ran_out = guards.out_of_memory(error)
                    if not ran_out:
                        raise
                    if micro == 1:
                        raise UserError(guards.NO_ROOM) from error
                if ran_out:
                    prediction = target = loss = rows = None  # they hold memory
                    micro = math.ceil(micro / 2)
                    optimizer.zero_grad()
                    encoding.free_memory(device)
                    logger.warning("out of memory: %d samples at once from here on, as many a step as before", micro)
                    continue
                guards.reduce_gradients(accelerator, training.parameters)
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(training.parameters, args.max_grad_norm)
                table = accelerator.gather(torch.cat(rows)).flatten()
                *table, norm = torch.cat([table, norm.reshape(1)]).tolist()  # the step's only wait for the device
                losses, times = table[::2], table[1::2]
                overflow = scaler.is_enabled() and scaler.get_scale() > 1 and not math.isfinite(norm)
                if not (overflow and all(map(math.isfinite, losses))):
                    break
                scaler.update()  # to half the scale
                optimizer.zero_grad()
            finite = math.isfinite(norm) and all(map(math.isfinite, losses))
            if finite:
                scaler.step(optimizer)
                if training.average is not None:
                    torch._foreach_lerp_(training.average, training.parameters, 1 - args.ema_decay)
                progress["skipped_in_a_row"] = 0
                window += zip(losses, times)
            else:
                cause = guards.diagnose(unet, scheduler, parts, features, device, autocast)
                story = guards.tell_nonfinite(step, norm, gather_object([cause]))
                skip_step(args.on_nonfinite, story, training, saved, identity)
            scaler.update()  # after a skipped step too: it refuses to unscale twice without
            optimizer.zero_grad()
        progress["step"] = step + 1
        bar.update()
        if window and ((step + 1) % args.logging_steps == 0 or step + 1 == last):
            losses = diffusion.mean_losses(window, timesteps)
            progress["loss_smooth"] = 0.9 * (progress["loss_smooth"] or losses["loss"]) + 0.1 * losses["loss"]
            bar.set_postfix(loss=f"{progress['loss_smooth']:.4f}", refresh=False)
            log({
                "step": step + 1, **losses, "loss_smooth": progress["loss_smooth"], "lr": rates_at(step)[0],
                "grad_norm": norm, "samples_per_second": len(window) / (seconds["data"] + seconds["step"]),
                "memory_gib": devices.peak_memory_gib(device), "skipped_steps": len(progress["skipped"]),
            })  # fmt: skip
            window = []
    bar.close()
    steps.close()
    if done and progress["skipped_in_a_row"]:
        raise UserError(f"the run ends amid steps that were not finite, and no LoRA is written. {guards.ADVICE}")
    if is_main and done:
        finish(args, training, data, facts, family)
        if args.push_to_hub:
            push(args)
    trackers.end_trackers(followers)
    accelerator.end_training()
    return 0 if done else 128 + (received or [signal.SIGTERM])[0]


if __name__ == "__main__":
    cli.run(main, parse_args())
