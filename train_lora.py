"""Train a LoRA on Stable Diffusion, Z-Image, FLUX or Qwen-Image: exact, and resumed by the same command.

The data is what prepare_dataset.py made, an imagefolder, images with <name>.txt captions, or a hub dataset.
A folder in a bucket (s3://, gs://) is fetched once, and verified.

    python3 train_lora.py --max_train_steps 3000
    accelerate launch --config_file accelerate_configs/a100.yaml train_lora.py --train_batch_size auto
    python3 train_lora.py --pretrained_model_name_or_path demo --train_data_dir data/shoes --resolution 128 --dry_run
"""

import argparse
import contextlib
import functools
from typing import Any

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
import torch
from diffusers.training_utils import free_memory

from families import diffusion, models
from families.names import FAMILIES
from service.language import choose_language
from service.report.flags import add_report_flags
from service.report.writing import write_report
from training import (
    batches,
    dry_run,
    encoding,
    examples,
    flags,
    loss_masks,
    memory,
    model_card,
    optimizers,
    sample_plan,
    setup,
    starting,
    validation,
)
from training.batches import Batch
from training.build import Recipe, build_training
from training.gradients import (
    Backward,
    add_gradients,
    all_finite,
    clip_gradients,
    diagnose,
    gather_rows,
    overflowed,
    skip_step,
    smaller_micro_batch,
    sum_gradients,
)
from training.read_data import read_training_records, read_trigger
from training.reports import Reporter, note_estimate, report_if_due, report_last
from training.run import (
    end_run,
    is_finished,
    log_step,
    progress_bar,
    save_if_due,
    save_last,
    start_run,
    stop_requested,
    validate_if_due,
    write_results,
)
from training.state import update_average
from utils.console import print_table
from utils.sync import sent_after_fault

STEPS, ACCUMULATION = 3000, 8
# Flags of diffusers' text_to_image scripts, and of kohya's, that are refused, and why.
REFUSED = (
    flags.REFUSED
    | flags.FOR_KOHYA
    | {
        "proportion_empty_prompts": "use --caption_dropout",
        "validation_prompts": "give --validation_prompt once for each",
        "input_perturbation": "it is not supported; leave it out",
        "dream_training": "it is not supported; leave it out",
        "dream_detail_preservation": "it belongs to --dream_training, which is not supported; leave it out",
        "non_ema_revision": "one model is loaded, with or without --use_ema; leave it out",
        "foreach_ema": "--use_ema always works so; leave it out",
        "offload_ema": "the average of a LoRA is small, and stays on the device; leave it out",
    }
    | dict.fromkeys(
        (f"timestep_bias_{part}" for part in ("strategy", "multiplier", "portion", "begin", "end")),
        "timesteps are drawn evenly; leave it out, or weight them with --snr_gamma 5",
    )
)
ON_THE_CARD = (
    "resolution effective_batch_size learning_rate lr_scheduler optimizer optimizer_args lora_layers lokr_factor "
    "train_text_encoder quantize_base preserve_base class_prompt caption_prefix shuffle_tags "
    "keep_tokens mask_loss loss_type huber_c snr_gamma weighting_scheme timestep_shift guidance_scale "
    "max_sequence_length clip_skip noise_offset caption_dropout random_flip seed mixed_precision"
).split()


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    models.add_model_flags(parser)
    flags.add_vae_flag(parser)
    flags.add_data_flags(parser)
    flags.add_lora_flags(parser, alpha="2 x --rank")
    flags.add_training_flags(parser, STEPS, ACCUMULATION)
    flags.add_noise_flags(parser)
    flags.add_flow_flags(parser)
    flags.add_optimizer_flags(parser, flags.IMAGE_OPTIMIZERS)
    flags.add_image_performance_flags(parser)
    flags.add_image_validation_flags(parser)
    flags.add_run_flags(parser, "runs/casual_shoes")
    add_report_flags(parser)
    cli.add_refused_flags(parser, REFUSED)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    flags.settle_defaults(parser, args, STEPS, ACCUMULATION)
    flags.settle_alpha(args, alpha=2)
    flags.check_image_flags(parser, args)
    flags.check_training_flags(parser, args)
    cli.report_ignored(parser, args, {"class_prompt": ("--preserve_base", bool(args.preserve_base))})
    return args


def read_records(args: argparse.Namespace) -> tuple[list[examples.Record], list[examples.Record]]:
    """The images to train on and those held out, not yet opened."""
    sets = setup.read_data_sets(args, "train_data_dir")
    train, held_out = read_training_records(sets, args.held_out, args.max_train_samples, args.seed)
    setup.check_patience(args, held_out)
    return setup.draw_orders(args, train), held_out


def describe_dry_run(
    args: argparse.Namespace,
    records: tuple[list[examples.Record], list[examples.Record]],
    model: str,
    family: str,
    recipe: Recipe,
    phases: memory.Phases,
    shapes: list[tuple[int, int]],
    dtype: torch.dtype,
) -> dry_run.Rows:
    """What would be trained and what it would take, from the configs alone."""
    train, held_out = records
    examples.check_captions(train + held_out)
    if args.mask_loss:
        loss_masks.find_masks(setup.mask_folders(args), train)
    views = setup.read_views(args)
    shown = (len(train) * views.crops * (1 + views.flip) + len(held_out)) * args.cache_latents
    captions = 0 if recipe.trains_texts else len({*examples.list_texts(train + held_out), ""})
    samples = examples.count_epoch(train)
    total_steps = starting.count_steps(args, samples)[0]
    return [
        *dry_run.describe_model(model, family, recipe.adapter, recipe.train_text_encoder),
        *dry_run.describe_memory(phases, recipe.shards),
        *dry_run.describe_kept(model, family, recipe.blocks_on_cpu, dtype),
        *dry_run.describe_length(len(train), len(held_out), total_steps, args.effective_batch_size, samples=samples),
        *dry_run.describe_cache(
            model, family, examples.largest_shape(shapes), shown, captions, args.max_sequence_length, dtype
        ),
    ]


def describe_result(args: argparse.Namespace, prompt: str, train: int, held_out: int) -> dict[str, Any]:
    """What the model card says, besides what the file says of itself."""
    return {
        "prompt": prompt,
        "data": args.dataset_name or model_card.describe_value(args.train_data_dir),
        "counts": {"training": train, "held-out": held_out},
        "repo_id": args.hub_model_id if args.push_to_hub else None,
        "settings": model_card.choose_settings(cli.settings_of(args), ON_THE_CARD),
    }


@sent_after_fault()
def main(args: argparse.Namespace) -> int:
    # The device, the batch, the model.
    start = setup.start_trainer(args, "train_data_dir")
    accelerator, precision, plan, tracking = start.accelerator, start.precision, start.plan, start.tracking
    model, family, noising, shapes = start.model, start.family, start.noising, start.shapes
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    recipe = setup.read_recipe(args, plan)

    def estimate(micro: int) -> memory.Phases:
        load = setup.read_load(args, recipe, precision, shapes, micro)
        return memory.estimate_memory(model, family, load)

    if args.memory:
        recipe = setup.fit_memory(args, recipe, start, estimate)
    if args.train_batch_size == "auto":
        plan = setup.fit_batch(plan, accelerator, args.shard, estimate)

    # The data, and the run's folder: new, to be resumed, or finished.
    records = read_records(args)

    def describe_end() -> str | None:
        return starting.describe_end(args, lambda: examples.count_epoch(records[0]), setup.lacks_other_format(args))

    free = flags.free_to_change(args)
    if args.dry_run:
        if is_main:
            state = runs.describe_run(out, tracking.settings, free, describe_end)
            start_rows = starting.describe_start(start, plan, state)
            more = describe_dry_run(args, records, model, family, recipe, estimate(plan.micro), shapes, precision.dtype)
            print_table(start_rows + more)
        return 0
    syncs = starting.open_folder(args, start, tracking, free, describe_end)
    if syncs is None:
        return 0

    # The data: captions and images are encoded once, and each encoder is freed before the next part is loaded.
    seconds: dict[str, float] = {}
    with runs.timed(seconds, "loading"):
        train, held_out = (examples.load_examples(part, shapes) for part in records)
        masks, of_masks = setup.read_masks(args, train)
        prompts = args.validation_prompt or list(dict.fromkeys(one.text for one in held_out or train))[:4]
        texts = examples.list_texts(train + held_out) + prompts + [args.class_prompt] * bool(args.preserve_base)
        encode = None
        if not recipe.trains_texts:
            reading = setup.read_reading(args)
            encode = encoding.encode_captions(start.cache, model, family, texts, precision.dtype, accelerator, reading)
        views = setup.read_views(args)
        wanted, vae = views.of(train) + views.centre().of(held_out), args.pretrained_vae_model_name_or_path
        moments = encoding.latent_reader(start.cache, model, wanted, views, args.cache_latents, accelerator, vae)

        # What is trained.
        trigger, fingerprint = read_trigger(start.data), examples.data_fingerprint(train)
        facts = setup.read_facts(args, start, recipe, fingerprint, len(set(train)), trigger)
        built = build_training(model, family, recipe, precision, device, texts, facts, {"data": fingerprint} | of_masks)
    training = built.training
    encode = encode or built.encode
    denoiser, parameters, progress = training.modules[FAMILIES[family].DENOISER], training.parameters, training.progress
    optimizer, scaler = training.optimizers["optimizer"], training.scaler
    total_steps, validate_every = starting.count_steps(args, len(train))
    rates = [group["lr"] for group in optimizer.param_groups]
    rates_at = optimizers.rate_schedule(starting.read_schedule(args), rates, total_steps)
    run = start_run(accelerator, out, training, args.resume_from_checkpoint, tracking, precision.reason, syncs, seconds)
    reporter = Reporter(run, args.report_every, functools.partial(write_report, language=choose_language(args.lang)))
    note_estimate(reporter, progress.step, lambda: estimate(plan.micro))

    # What a position of the sample plan means, and what a validation computes.
    autocast = devices.autocast(device, precision)
    samples = sample_plan.SamplePlan(
        args.seed,
        tuple(one.shape for one in train),
        plan.effective,
        noising.draw_time,
        0.5 * args.random_flip,
        args.caption_dropout,
    )
    to_latents, posterior = models.latent_scaler(model, vae), FAMILIES[family].SAMPLES_POSTERIOR
    loader = batches.Loader(train, moments, to_latents, views.crops, args.noise_offset, masks, posterior)
    steps = batches.load_steps(
        range(progress.step, total_steps),
        plan,
        accelerator.process_index,
        lambda position: [sample_plan.draw_position(samples, position)],
        loader,
        training.sharded,
    )
    steps = sample_plan.prefetch(steps) if args.dataloader_num_workers else steps
    checks = setup.plan_checks(args, start, held_out, prompts, loader, encode)
    check = functools.partial(validation.validate, training, checks)
    preserve = setup.plan_preservation(args, training, family, encode, autocast)

    def forward_backward(batch: Batch, number: int, backward: Backward) -> torch.Tensor:
        """Forward and backward of the step's n-th micro-batch; the loss and the time of each of its samples."""
        if args.lora_dropout:  # its mask depends on the step and on the micro-batch
            devices.seed_everything(devices.key_seed("dropout", args.seed, progress.step, number))
        noisy = noising.add_noise(batch.latents, batch.noise, batch.times)
        with autocast():
            conditions = encode(batch.texts), batch.time_ids, args.guidance_scale
            prediction = FAMILIES[family].predict(denoiser, noisy, batch.times, *conditions)
        target = noising.target(batch.latents, batch.noise, batch.times)
        weights = noising.loss_weights(batch.times)
        losses = diffusion.sample_losses(prediction, target, weights, batch.mask, args.loss_type, args.huber_c)
        backward(scaler.scale(losses.sum() / plan.effective))
        kept = [preserve(batch, noisy, weights, backward)] if preserve else []
        return torch.stack([losses.detach(), batch.times, *kept], 1)

    # Not accelerator.accumulate and backward: a micro-batch may be halved in the middle of a step, and on a CPU each
    # core goes backward by itself.
    micro = plan.micro  # samples at once
    rows_to_log = progress.rows_to_log  # of the samples since the last line of the log
    parts: list[Batch] | None = None  # this step's micro-batches, kept while it is repeated; None: fetch the next
    # Dropout needs one generator; divided weights are gathered, and adapters are switched off, for one pass at a time.
    cores = None
    if device.type == "cpu" and not (args.lora_dropout or training.sharded or preserve):
        cores = devices.share_cores(micro)
    patience = args.early_stopping_patience
    save_every, limit = args.checkpointing_steps, args.checkpoints_total_limit
    with contextlib.closing(steps), progress_bar(run, progress, total_steps) as bar:
        validate_if_due(run, training, check, validate_every, total_steps, bar)  # to compare with
        while not (is_finished(progress, total_steps, patience) or stop_requested(run)):
            step = progress.step
            with runs.timed(seconds, "data"):
                parts = parts or next(steps)  # this process's share of the effective batch
            with runs.timed(seconds, "step"):
                optimizers.set_rates(optimizer, rates_at(step))
                rows = None
                while rows is None:  # again with the same samples, fewer at once, where the memory is full
                    parts = [piece for part in parts for piece in part.split(micro)]  # smaller if `micro` is
                    with devices.suppress_out_of_memory():
                        rows = torch.cat(
                            [
                                add_gradients(forward_backward, part.to(device), number, parameters, cores)
                                for number, part in enumerate(parts)
                            ]
                        )
                    if rows is None:
                        micro = smaller_micro_batch(micro, training.sharded)
                        optimizer.zero_grad()
                        free_memory()
                sum_gradients(accelerator, parameters)
                scaler.unscale_(optimizer)  # does nothing unless in fp16
                norm = clip_gradients(parameters, args.max_grad_norm)
                step_rows, grad_norm = gather_rows(accelerator, rows, norm)  # of all processes, as numbers
                if overflowed(scaler, step_rows, grad_norm):  # again with the same samples, at half the scale
                    scaler.update()
                    optimizer.zero_grad()
                    continue
                if all_finite(step_rows, grad_norm):
                    scaler.step(optimizer)
                    if training.average:
                        update_average(training.average, parameters, args.ema_decay, step)
                    progress.skipped_in_a_row = 0
                    rows_to_log += step_rows
                else:
                    losses_of = functools.partial(validation.batch_losses, denoiser, checks)
                    own = diagnose(denoiser, losses_of, parts, device)
                    skip_step(progress, args.on_nonfinite, grad_norm, own)
                scaler.update()  # after a skipped step too: it refuses to unscale twice without
                optimizer.zero_grad()
            progress.step, parts = step + 1, None

            if rows_to_log and (progress.step % args.logging_steps == 0 or progress.step == total_steps):
                means = diffusion.mean_losses(rows_to_log, noising.end)
                means |= {"preserve_loss": diffusion.mean_of_last(rows_to_log)} if preserve else {}
                log_step(run, progress, means, rates_at(step)[0], grad_norm, len(rows_to_log))
                rows_to_log.clear()
                bar.note = f"loss {progress.loss_smooth:.4f}"
            bar.update()
            validate_if_due(run, training, check, validate_every, total_steps, bar)
            save_if_due(run, training, save_every, limit)
            report_if_due(reporter, progress.step)

    # The end: the last step, no better loss for too long, or a signal.
    finished = is_finished(progress, total_steps, patience)
    save_last(run, training, save_every, limit, finished)
    if finished:
        known = facts | describe_result(args, prompts[0], len(set(train)), len(held_out))
        card = functools.partial(model_card.write_card, facts=model_card.read_facts(known))
        write_results(run, training, card, plan.effective, starting.asked_length(args), total_steps)
        report_last(reporter)
        if args.push_to_hub and is_main:
            model_card.push_run(out, args.hub_model_id)
    return end_run(run, finished)


if __name__ == "__main__":
    cli.run(main, parse_args())
