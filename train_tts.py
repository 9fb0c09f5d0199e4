"""Train a voice (VITS) on recordings: fine-tune a published one, or begin from nothing; resumed by the same command.

The data is what prepare_speech.py made, or a folder of sounds with a metadata.jsonl. The default voice,
facebook/mms-tts-por, may not be used commercially (CC BY-NC 4.0), nor may what is trained from it.

    python3 train_tts.py --train_data_dir data/voice --max_train_steps 20000
    accelerate launch --config_file accelerate_configs/t4.yaml train_tts.py --config configs/voice_pt_br.yaml
    python3 train_tts.py --pretrained_model_name_or_path demo-voice --train_data_dir data/voice --dry_run
"""

import argparse
import contextlib
import functools
import logging
from argparse import BooleanOptionalAction as OnOff
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
import torch
from accelerate import Accelerator
from diffusers.training_utils import free_memory
from transformers import VitsConfig

from service.language import choose_language
from service.report.flags import add_report_flags
from service.report.writing import write_report
from speech import adaptation, batches, listening, prosody, vits2, voice_files
from speech.batches import data_fingerprint
from speech.dataset import Utterance, read_language, read_utterances
from speech.discriminators import Discriminators, check_discriminators, choose_sizes, open_discriminators
from speech.duration_discriminator import DurationDiscriminator, judge_durations, open_duration_discriminator
from speech.losses import discriminator_losses, feature_distances, generator_losses, mel_distances
from speech.parts import parts_of
from speech.planning import Wanted, plan_voice
from speech.references import encoder_of, hear_reference, plan_references, with_encoder
from speech.speaker import FLAG, encoder_key, load_speaker_encoder
from speech.texts import language_of, read_pieces
from speech.vits import Utterances, forward_train, no_dropout
from speech.voice_memory import MetaStep, build_step
from speech.voices import (
    DEFAULT_VOICE,
    FILES,
    SIZES,
    Voice,
    describe_unknown,
    fresh_voice,
    load_voice,
    note_reading,
    read_phonemes,
    read_voice_config,
    with_parts,
    with_speakers,
)
from training import dry_run, flags, memory, model_card, optimizers, sample_plan, setup, starting
from training.cache import ensure_cached
from training.episodes import Episodes, begin_episode, draw_episode_step, end_step, plan_episodes
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
from training.read_data import choose_records
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
from training.state import Training, averaged_weights, update_average
from utils.cli import Range, UserError, counted, learning_rate, positive, zero_or_more
from utils.console import print_table
from utils.devices import Precision
from utils.files import file_sha256
from utils.parallel import available_cores, in_main_process
from utils.storage import fetch
from utils.sync import sent_after_fault

logger = logging.getLogger(__name__)

STEPS, ACCUMULATION = 20_000, 4
LOSSES = ("loss", "loss_mel", "loss_kl", "loss_duration", "loss_adversarial", "loss_features", "loss_discriminators")
JUDGING = slice(len(LOSSES) - 1, len(LOSSES) + 1)  # the losses of discriminators
MORE_LOSSES = ("loss_duration_discriminator", "loss_duration_adversarial")  # with a discriminator of durations
# Flags of finetune-hf-vits and of diffusers' scripts that are refused, and why.
REFUSED = {name: why for name, why in flags.REFUSED.items() if "bucket" not in name and name != "debug_loss"} | {
    "model_name_or_path": "use --pretrained_model_name_or_path",
    "dataset_name": "prepare it with prepare_speech.py --recordings, and give the folder as --train_data_dir",
    "do_step_schedule_per_epoch": "the rate is a function of the step: --lr_scheduler",
    "lr_decay": "the rate is a function of the step: --lr_scheduler",
    "override_speaker_embeddings": "speakers that the voice lacks are added by themselves",
    "shard": "a voice is small: plain data parallel, by --config_file accelerate_configs/multi_gpu.yaml",
}
ON_THE_CARD = (
    "effective_batch_size learning_rate discriminator_lr lr_scheduler optimizer segment_frames weight_mel weight_kl "
    "weight_duration weight_gen weight_fmaps discriminator_start seed mixed_precision"
).split()
PARTS_ON_THE_CARD = "speaker_encoder vits2 mas_noise prosody style_tokens style_adaptive_norm".split()  # where given


def add_voice_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("voice")
    group.add_argument(
        "--pretrained_model_name_or_path",
        default=DEFAULT_VOICE,
        metavar="HUB_ID|DIR|demo-voice",
        help="a VITS voice in transformers' format",
    )
    group.add_argument(
        "--random_weights", action=OnOff, default=False, help="begin from nothing: the voice gives its sizes alone"
    )
    group.add_argument(
        "--discriminators",
        choices=["auto", "small", "published"],
        default="auto",
        help="sizes, where the voice brings none; auto: those of VITS for a voice of its size",
    )
    flags.add_average_flags(group)


def add_part_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("parts of a voice (docs/voices.md); default: those that the given voice has")
    group.add_argument(
        "--speaker_encoder",
        default="",
        metavar="demo|HUB_ID|DIR|FILE.pt",
        help="speak as whoever is heard in recordings (synthesize.py --reference), by the vectors of this model, in "
        "place of a table of speakers",
    )
    group.add_argument(
        "--vits2",
        nargs="+",
        choices=[*vits2.CHOICES, "all"],
        default=[],
        help="parts of VITS2, each by itself; all: but text_speaker where there is one speaker",
    )
    group.add_argument(
        "--mas_noise",
        type=Range(0, 10),
        metavar="SCALE",
        help=f"with --vits2 mas_noise: of the noise on the alignment's scores, less {vits2.FADING:g} each step; "
        f"default: {vits2.NOISE:g}",
    )
    group.add_argument(
        "--prosody", action=OnOff, default=False, help="hears pitch and energy: --pitch and --energy of synthesize.py"
    )
    group.add_argument(
        "--style_tokens",
        type=Range(2, 1000, int),
        metavar="N",
        help="hears the style of recordings, as a mix of N tokens",
    )
    group.add_argument(
        "--style_adaptive_norm",
        action=OnOff,
        default=False,
        help="speaker, prosody and style change the text's layer norms",
    )


def add_adaptation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("few sentences")
    group.add_argument(
        "--adapt",
        choices=list(adaptation.TRAINED),
        default="all",
        help="what is trained of the voice: how it hears who speaks, that and the decoder, or all weights",
    )
    group.add_argument(
        "--meta",
        choices=["first-order"],
        help="train weights to adapt from, by episodes of one speaker each (Reptile); default: off",
    )
    group.add_argument("--meta_steps", type=positive, default=8, help="optimizer steps of an episode")
    group.add_argument(
        "--meta_rate",
        type=Range(0, 1, above=True),
        default=0.5,
        metavar="SHARE",
        help="of the way to the weights at an episode's end that the start moves",
    )


def add_speech_data_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--train_data_dir", default="data/voice", metavar="DIR|s3://…", help="as prepare_speech.py made")
    add("--max_train_samples", type=positive, metavar="N", help="a seeded choice of N utterances")
    add("--held_out", type=flags.BELOW_ONE, default=0.0, metavar="SHARE", help="where there is no val split: this much")
    add("--segment_frames", type=Range(8, 1000, int), default=32, help="of an utterance that are decoded in a step")


def add_loss_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("losses")
    weight = Range(0, 1000)
    group.add_argument("--weight_mel", type=weight, default=45.0, help="of the log-mel spectrogram's distance")
    group.add_argument("--weight_kl", type=weight, default=1.0, help="of the latents' divergence from the text's")
    group.add_argument("--weight_duration", type=weight, default=1.0, help="of the durations of characters")
    group.add_argument("--weight_gen", type=weight, default=1.0, help="of what the discriminators say of the voice")
    group.add_argument("--weight_fmaps", type=weight, default=2.0, help="of the distance in the discriminators' layers")
    group.add_argument("--discriminator_lr", type=learning_rate, help="default: --learning_rate")
    group.add_argument(
        "--discriminator_start", type=zero_or_more, default=0, metavar="STEP", help="without discriminators until then"
    )


def add_listening_flags(parser: argparse.ArgumentParser) -> None:
    group = flags.add_validation_flags(parser)
    group.add_argument(
        "--validation_text",
        action="append",
        metavar="TEXT",
        help="may be repeated; default: sentences held out, or trained on",
    )
    group.add_argument(
        "--num_validation_sounds", type=Range(0, 100, int), default=4, help="sounds a validation; 0: figures only"
    )


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    add_voice_flags(parser)
    add_part_flags(parser)
    add_adaptation_flags(parser)
    add_speech_data_flags(parser)
    flags.add_training_flags(parser, STEPS, ACCUMULATION)
    add_loss_flags(parser)
    flags.add_optimizer_flags(parser)
    flags.add_performance_flags(parser)
    add_listening_flags(parser)
    flags.add_run_flags(parser, "runs/voice")
    add_report_flags(parser)
    # As VITS was trained; its gradients are large, and are clipped only where one explodes.
    parser.set_defaults(adam_beta1=0.8, adam_beta2=0.99, max_grad_norm=100.0, num_validation_samples=16)
    parser.set_defaults(gradient_checkpointing=False)
    cli.add_refused_flags(parser, REFUSED)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    flags.settle_defaults(parser, args, STEPS, ACCUMULATION)
    flags.check_training_flags(parser, args)
    check_adaptation_flags(parser, args)
    args.discriminator_lr = args.discriminator_lr or args.learning_rate
    settle_parts(parser, args)
    return args


def settle_parts(parser: cli.Parser, args: argparse.Namespace) -> None:
    noisy = vits2.wants(args.vits2, "mas_noise")
    if args.mas_noise is not None and not noisy:
        parser.error(f"--mas_noise {args.mas_noise:g}: needs --vits2 mas_noise")
    if noisy and args.mas_noise is None:
        args.mas_noise = vits2.NOISE


def check_adaptation_flags(parser: cli.Parser, args: argparse.Namespace) -> None:
    given = "--meta first-order", args.meta is not None
    cli.report_ignored(parser, args, {"meta_steps": given, "meta_rate": given})
    if args.meta and args.use_ema:
        parser.error(f"--use_ema: not with --meta {args.meta}, whose start is an average already; leave it out")
    if args.random_weights and args.adapt != "all":
        parser.error(f"--adapt {args.adapt}: not with --random_weights, which leave nothing to adapt; leave one out")


def describe_result(
    args: argparse.Namespace, training: Training, voice: Voice, train: list[Utterance], held_out: list[Utterance]
) -> dict[str, Any]:
    """What the model card says."""
    settings = cli.settings_of(args)
    shown = ON_THE_CARD + [name for name in PARTS_ON_THE_CARD if settings[name]]
    shown += ["adapt"] * (args.adapt != "all") + ["meta", "meta_steps", "meta_rate"] * bool(args.meta)
    return {
        "base_model": args.pretrained_model_name_or_path,
        "random_weights": args.random_weights,
        "speakers": voice.speakers,
        "parts": list(parts_of(voice.model.config)),
        "encoder": encoder_of(voice.model.config),
        "rate": voice.model.config.sampling_rate,
        "text": train[0].text,
        "data": args.train_data_dir,
        "fingerprint": training.identity["data"],
        "counts": [counted(len(train), "utterance"), f"{len(held_out):,} held out"],
        "hours": sum(one.seconds for one in train) / 3600,
        "repo_id": args.hub_model_id if args.push_to_hub else None,
        "settings": model_card.describe_settings({name: settings[name] for name in shown}),
    }


def data_folder(args: argparse.Namespace) -> Path:
    return fetch(args.train_data_dir, args.output_dir.parent / "cache", "--train_data_dir")


def read_data(args: argparse.Namespace) -> tuple[list[Utterance], list[Utterance]]:
    """The utterances to train on, and those held out."""
    train, held_out = read_utterances(data_folder(args), "--train_data_dir")
    train, held_out = choose_records([(train, held_out)], args.held_out, args.max_train_samples, args.seed, "utterance")
    if not train:
        raise UserError(f"--train_data_dir {args.train_data_dir}: there is no utterance to train on")
    setup.check_patience(args, held_out)
    if args.meta:
        check_episodes(args, train)
    return train, held_out


def check_episodes(args: argparse.Namespace, train: list[Utterance]) -> None:
    """Episodes are whole, and of more than one speaker."""
    if len(speakers := {one.speaker for one in train}) < 2:
        raise UserError(
            f"--meta {args.meta}: all utterances of --train_data_dir {args.train_data_dir} are of "
            f"{speakers.pop() or 'nobody by name'}; prepare recordings of several speakers with --speaker_column"
        )
    steps, size = starting.count_steps(args, len(train))[0], args.meta_steps
    if steps % size:
        given = "--num_train_epochs" if args.max_train_steps is None else "--max_train_steps"
        whole = steps + size - steps % size
        raise UserError(
            f"{given}: {steps} steps end within an episode of --meta_steps {size}; give --max_train_steps {whole}"
        )


def read_wanted(args: argparse.Namespace) -> Wanted:
    return Wanted(
        voice=args.pretrained_model_name_or_path,
        data=args.train_data_dir,
        is_new=args.random_weights,
        speaker_encoder=args.speaker_encoder,
        vits2=args.vits2,
        prosody=args.prosody,
        style_tokens=args.style_tokens,
        style_adaptive_norm=args.style_adaptive_norm,
        adapt=args.adapt,
    )


def match_reading(args: argparse.Namespace, voice: Voice) -> None:
    """Note in the voice what its texts are; a given voice that reads letters learns no phonemes, nor the reverse."""
    if not (written := read_language(data_folder(args), "--train_data_dir")):
        return
    language, phonemes = written
    if phonemes != read_phonemes(voice) and not args.random_weights:
        kinds = ["phonemes" if one else "letters" for one in (read_phonemes(voice), phonemes)]
        raise UserError(
            f"--pretrained_model_name_or_path {args.pretrained_model_name_or_path}: reads {kinds[0]}, but the texts of "
            f"--train_data_dir {args.train_data_dir} are {kinds[1]}; prepare them anew "
            f"{'with' if read_phonemes(voice) else 'without'} --phonemes, or train with --random_weights"
        )
    note_reading(voice, language, phonemes)


def measure_prosody(accelerator: Accelerator, cache: Path, *groups: list[Utterance]) -> list[list[Utterance]]:
    """The utterances with their pitch and energy, measured once by the main process and kept in the cache."""

    def measure() -> list[list[Utterance]]:
        return [prosody.measure_utterances(some, cache / prosody.CACHE, available_cores()) for some in groups]

    return in_main_process(accelerator, measure)


def encode_speakers(
    args: argparse.Namespace, encoder: str, utterances: list[Utterance], accelerator: Accelerator
) -> torch.Tensor | None:
    """What the encoder hears of each utterance's speaker (utterances, size): once, and kept by the sounds' content."""
    if not encoder:
        return None
    keys = [one.sha256 or file_sha256(one.path) for one in utterances]
    paths = {key: one.path for key, one in zip(keys, utterances)}
    device, folder = accelerator.device, args.output_dir.parent / "cache" / f"speakers-{encoder_key(encoder)}"
    flag = FLAG if args.speaker_encoder else "--pretrained_model_name_or_path: the voice's speaker encoder"

    def load() -> Callable[[str], dict[str, torch.Tensor]]:
        encode = load_speaker_encoder(encoder, device, flag)
        return lambda key: {key: torch.from_numpy(encode([hear_reference(paths[key], "--train_data_dir")])[0])}

    workers = available_cores() if device.type == "cpu" else 1
    found = ensure_cached(folder, keys, load, "speakers", accelerator, workers, "--output_dir")
    return torch.stack([found[key].get_tensor(key) for key in keys])


def open_voice(
    args: argparse.Namespace, config: VitsConfig, utterances: list[Utterance], vectors: torch.Tensor | None
) -> Voice:
    """The voice that is trained, with the parts of the planned config: given, able to learn the speakers, or new."""
    encoder, parts = encoder_of(config), parts_of(config)
    name, speakers = args.pretrained_model_name_or_path, sorted({one.speaker for one in utterances})
    if args.random_weights:
        voice = fresh_voice(name, [one.text for one in utterances], [] if encoder else speakers, args.seed)
    else:
        voice = load_voice(name)
    match_reading(args, voice)
    if unknown := describe_unknown(voice, (one.text for one in utterances)):
        logger.warning("--train_data_dir %s: %s", args.train_data_dir, unknown)
    if vectors is not None:
        voice = with_encoder(voice, encoder, utterances, vectors, args.seed)
    else:
        voice = with_speakers(voice, speakers, args.seed)
    voice = with_parts(voice, parts, args.seed)
    if heard := parts_of(voice.model.config).get(prosody.NAME):
        voice.model.config.parts[prosody.NAME] = prosody.plan_prosody(utterances, voice.speakers, heard)
    return voice


def read_validation_texts(voice: Voice, texts: list[str]) -> list[str]:
    """The texts as the voice reads them: normalised, and in phonemes if it learns those."""
    read = [" ".join(piece.text for piece in pieces) for pieces in read_pieces(voice, texts, language_of(voice))]
    for text in (given for given, said in zip(texts, read) if not said):
        raise UserError(f"--validation_text {text!r}: no character of it is in the voice's alphabet; give other text")
    return read


def build_training(
    args: argparse.Namespace,
    voice: Voice,
    discriminators: Discriminators,
    duration_discriminator: DurationDiscriminator | None,
    precision: Precision,
    device: torch.device,
    data: str,
) -> Training:
    """Voice and discriminators on the device, an optimizer of each; `data`: the fingerprint of what is trained on."""
    encoder = encoder_of(voice.model.config)
    no_dropout(voice.model)
    parameters = adaptation.freeze_others(voice.model, args.adapt)
    facts = {"base_model": args.pretrained_model_name_or_path, "data": data}
    files = voice_files.VoiceFiles(voice, discriminators, facts, duration_discriminator)
    modules = {name: module.to(device) for name, module in files.modules.items()}
    rates = dict.fromkeys(modules, args.discriminator_lr) | {"voice": args.learning_rate}
    settings = starting.read_optimizer(args)
    trained = {name: list(module.parameters()) for name, module in modules.items()} | {"voice": parameters}
    groups = {name: [{"params": found, "lr": rates[name]}] for name, found in trained.items()}
    return Training(
        modules=modules,
        parameters=parameters,
        optimizers={f"{name}_optimizer": optimizers.make_optimizer(settings, groups[name], device) for name in modules},
        scaler=torch.amp.GradScaler(device.type, enabled=precision.mixed_precision == "fp16"),
        average=[parameter.detach().clone() for parameter in parameters] if args.use_ema or args.meta else None,
        files=files,
        facts=facts,
        identity={"data": data} | ({"speaker encoder": encoder_key(encoder)} if encoder else {}),
    )


def open_episodes(args: argparse.Namespace, voice: Voice, train: list[Utterance], effective: int) -> Episodes | None:
    """Those of --meta, the first one begun."""
    if not args.meta:
        return None
    table = voice.model.embed_speaker.weight if voice.model.config.num_speakers > 1 else None
    speakers = [one.speaker for one in train]
    found = plan_episodes(speakers, args.meta_steps, args.meta_rate, args.seed, effective, table, voice.speakers)
    begin_episode(found, 0)
    return found


def lay_out_step(args: argparse.Namespace, config: VitsConfig, train: list[Utterance], micro: int) -> MetaStep:
    """A step with so many of the longest utterances at once, of sizes without content."""
    longest, sizes = max(train, key=lambda one: one.seconds), choose_sizes(args.discriminators, config)
    judges_durations = vits2.wants(args.vits2, "duration_discriminator")
    return build_step(config, sizes, longest, micro, args.segment_frames, judges_durations, args.adapt)


def estimate_memory(args: argparse.Namespace, step: MetaStep, precision: Precision) -> memory.Phases:
    """Bytes of a training step, by part."""
    trained, average = count_parameters(step, trained=True), "EMA" if args.use_ema else "start of the episodes"
    half = precision.dtype if precision.mixed_precision != "no" else None
    return {
        "training": {
            **{name: 4 * size for name, size in count_parameters(step).items()},
            "gradients": 4 * sum(trained.values()),
            "optimizers": int(memory.OPTIMIZER_BYTES[args.optimizer] * sum(trained.values())),
            average: 4 * trained["voice"] if args.use_ema or args.meta else 0,
            "activations": memory.most_live_bytes(lambda: step.run(args.gradient_checkpointing), half),
        }
    }


def count_parameters(step: MetaStep, trained: bool = False) -> dict[str, int]:
    """All of each module, or those that are `trained`."""
    return {
        name: sum(one.numel() for one in module.parameters() if one.requires_grad or not trained)
        for name, module in step.modules.items()
    }


def describe_dry_run(
    args: argparse.Namespace, step: MetaStep, precision: Precision, train: int, held_out: int
) -> dry_run.Rows:
    """What would be trained and what it would take."""
    sizes = ", ".join(f"{size:,} of the {name.replace('_', ' ')}" for name, size in count_parameters(step).items())
    if args.adapt != "all":
        sizes += f"; {count_parameters(step, trained=True)['voice']:,} of the voice's are trained"
    total_steps = starting.count_steps(args, train)[0]
    return [
        ("parameters", sizes),
        *dry_run.describe_memory(estimate_memory(args, step, precision), 1),
        *dry_run.describe_length(train, held_out, total_steps, args.effective_batch_size, "utterance"),
    ]


def zero_gradients(training: Training) -> None:
    for optimizer in training.optimizers.values():
        optimizer.zero_grad()


@sent_after_fault()
def main(args: argparse.Namespace) -> int:
    # The device, the batch, the data, the run's folder.
    name = args.pretrained_model_name_or_path
    folders = {"train_data_dir": args.train_data_dir}, {"pretrained_model_name_or_path": name}
    start = starting.begin(args, *folders)
    accelerator, precision, plan = start.accelerator, start.precision, start.plan
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    tracking = starting.announce(args, start, f"{adaptation.TRAINED[args.adapt][1]} of a voice, and its discriminators")
    train, held_out = read_data(args)
    trained = None if args.random_weights else name
    given = read_voice_config(name, FILES if trained else SIZES)
    config = plan_voice(given, read_wanted(args), [one.speaker for one in train + held_out])
    check_discriminators(trained, args.discriminators)

    def lay_out(micro: int) -> MetaStep:
        return lay_out_step(args, config, train, micro)

    def estimate(micro: int) -> memory.Phases:
        return estimate_memory(args, lay_out(micro), precision)

    if args.train_batch_size == "auto":
        plan = setup.fit_batch(plan, accelerator, False, estimate)
    free = flags.free_to_change(args) | {"validation_text", "num_validation_sounds"}

    def describe_end() -> str | None:
        return starting.describe_end(args, lambda: len(train))

    if args.dry_run:
        if is_main:
            state = runs.describe_run(out, tracking.settings, free, describe_end)
            more = describe_dry_run(args, lay_out(plan.micro), precision, len(train), len(held_out))
            print_table(starting.describe_start(start, plan, state) + more)
        return 0
    syncs = starting.open_folder(args, start, tracking, free, describe_end)
    if syncs is None:
        return 0

    # What is trained: the voice, and discriminators that tell it from recordings.
    seconds: dict[str, float] = {}
    with runs.timed(seconds, "loading"):
        if prosody.NAME in parts_of(config):
            train, held_out = measure_prosody(accelerator, out.parent / "cache", train, held_out)
        vectors = encode_speakers(args, encoder_of(config), train + held_out, accelerator)
        references = plan_references(train, held_out, vectors)
        voice = open_voice(args, config, train + held_out, vectors)
        validation_texts = read_validation_texts(voice, args.validation_text or [])
        discriminators = open_discriminators(trained, args.discriminators, voice.model.config, args.seed)
        loader, held_out_loader = (
            batches.make_loader(part, voice, args.segment_frames, own)
            for part, own in zip((train, held_out), references)
        )
        duration_discriminator = None
        if vits2.wants(args.vits2, "duration_discriminator"):
            duration_discriminator = open_duration_discriminator(trained, voice.model.config, args.seed)
        fingerprint = data_fingerprint(train)
        training = build_training(args, voice, discriminators, duration_discriminator, precision, device, fingerprint)
        episodes = open_episodes(args, voice, train, plan.effective)
    model = voice.model
    judges = [*discriminators.parameters(), *(duration_discriminator.parameters() if duration_discriminator else ())]
    parameters = training.parameters + judges
    progress, scaler = training.progress, training.scaler
    total_steps, validate_every = starting.count_steps(args, len(train))
    rates = [args.learning_rate, *[args.discriminator_lr] * (len(training.optimizers) - 1)]
    rates_at = optimizers.rate_schedule(starting.read_schedule(args), rates, total_steps)
    run = start_run(accelerator, out, training, args.resume_from_checkpoint, tracking, precision.reason, syncs, seconds)
    reporter = Reporter(run, args.report_every, functools.partial(write_report, language=choose_language(args.lang)))
    note_estimate(reporter, progress.step, lambda: estimate(plan.micro))

    # What a position of the sample plan means, and what a validation computes.
    autocast = devices.autocast(device, precision)
    samples = sample_plan.SamplePlan(args.seed, ((0, 0),) * len(train), plan.effective)

    def positions(step: int) -> list[batches.Position]:
        draws = draw_episode_step(episodes, step) if episodes else sample_plan.draw_step(samples, step)
        score_noise = vits2.noise_at(args.mas_noise or 0.0, step)
        return [batches.Position(draw.index, draw.crop, draw.noise_key, score_noise) for draw in draws]

    wanted = map(positions, range(progress.step, total_steps))
    steps = batches.load_steps(wanted, plan.micro, accelerator.process_index, plan.processes, loader)
    steps = sample_plan.prefetch(steps) if args.dataloader_num_workers else steps
    listener = listening.plan_listening(
        voice, held_out_loader, loader, validation_texts, args.num_validation_samples, args.num_validation_sounds
    )

    def check(shown: Path | None, stopped: Callable[[], bool]) -> dict[str, float] | None:
        with averaged_weights(training):
            return listening.listen(listener, shown, stopped)

    def losses_of(batch: Utterances) -> list[torch.Tensor]:
        """Of each utterance its loss and the parts of it; their means over a step's utterances are the step's."""
        adversarial = progress.step >= args.discriminator_start
        with autocast():
            found = forward_train(model, batch, args.segment_frames, args.gradient_checkpointing)
            generator = features = discriminator = torch.zeros(len(batch), device=device)
            of_durations = [generator, generator] if duration_discriminator else []
            if adversarial:
                real, decoded = discriminators(found.real), discriminators(found.segment)
                discriminator = discriminator_losses(real.scores, decoded.scores)
                generator = generator_losses(decoded.scores)
                features = feature_distances(real.features, decoded.features)
                if duration_discriminator:
                    judged = judge_durations(duration_discriminator, model, batch, found)
                    of_durations = [one / batch.step_tokens * plan.effective for one in judged]
        mel = mel_distances(found.segment, found.real, loader.settings)
        kl = found.kl / batch.step_frames * plan.effective
        duration = found.duration / batch.step_tokens * plan.effective
        loss = args.weight_mel * mel + args.weight_kl * kl + args.weight_duration * duration
        loss = loss + args.weight_gen * (generator + sum(of_durations[1:])) + args.weight_fmaps * features
        return [loss, mel, kl, duration, generator, features, discriminator, *of_durations]

    def forward_backward(batch: Utterances, number: int, backward: Backward) -> torch.Tensor:
        losses = losses_of(batch)
        judged = sum(losses[JUDGING])
        own, judging = (scaler.scale(one.sum() / plan.effective) for one in (losses[0], judged))
        if progress.step >= args.discriminator_start:  # from the same pass; each loss trains one of the networks
            backward(judging, inputs=judges, retain_graph=True)
        backward(own, inputs=training.parameters)
        return torch.stack(losses, 1).detach()

    # Both networks step at once, each by gradients at the other's weights of before: so a micro-batch needs one forward
    # of the voice, and may be halved in the middle of a step.
    micro = plan.micro  # utterances at once
    rows_to_log = progress.rows_to_log  # of the utterances since the last line of the log
    parts: list[Utterances] | None = None  # this step's micro-batches, kept while it is repeated; None: fetch the next
    cores = devices.share_cores(micro) if device.type == "cpu" else None
    patience = args.early_stopping_patience
    save_every, limit = args.checkpointing_steps, args.checkpoints_total_limit
    with contextlib.closing(steps), progress_bar(run, progress, total_steps) as bar:
        validate_if_due(run, training, check, validate_every, total_steps, bar)  # to compare with
        while not (is_finished(progress, total_steps, patience) or stop_requested(run)):
            step = progress.step
            with runs.timed(seconds, "data"):
                parts = parts or next(steps)  # this process's share of the effective batch
            with runs.timed(seconds, "step"):
                stepping = list(training.optimizers.values())[: None if step >= args.discriminator_start else 1]
                for one, rate in zip(stepping, rates_at(step)):
                    optimizers.set_rates(one, [rate])
                rows = None
                while rows is None:  # again with the same utterances, fewer at once, where the memory is full
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
                        zero_gradients(training)
                        free_memory()
                sum_gradients(accelerator, parameters)
                norms = []
                for one in stepping:
                    scaler.unscale_(one)  # does nothing unless in fp16
                    norms.append(clip_gradients(one.param_groups[0]["params"], args.max_grad_norm))
                step_rows, grad_norm = gather_rows(accelerator, rows, torch.stack(norms).norm())
                if overflowed(scaler, step_rows, grad_norm):  # again with the same utterances, at half the scale
                    scaler.update()
                    zero_gradients(training)
                    continue
                if all_finite(step_rows, grad_norm):
                    for one in stepping:
                        scaler.step(one)
                    if args.use_ema and training.average:
                        update_average(training.average, training.parameters, args.ema_decay, step)
                    progress.skipped_in_a_row = 0
                    rows_to_log += step_rows
                else:
                    own = diagnose(model, lambda batch: losses_of(batch)[0], parts, device)
                    skip_step(progress, args.on_nonfinite, grad_norm, own)
                scaler.update()  # after a skipped step too: it refuses to unscale twice without
                zero_gradients(training)
            progress.step, parts = step + 1, None
            if episodes:
                end_step(episodes, training)

            if rows_to_log and (progress.step % args.logging_steps == 0 or progress.step == total_steps):
                means = torch.tensor(rows_to_log, dtype=torch.float64).mean(0).tolist()
                losses = dict(zip(LOSSES + MORE_LOSSES, means))
                log_step(run, progress, losses, rates_at(step)[0], grad_norm, len(rows_to_log))
                rows_to_log.clear()
                bar.note = f"loss {progress.loss_smooth:.4f}"
            bar.update()
            validate_if_due(run, training, check, validate_every, total_steps, bar)
            save_if_due(run, training, save_every, limit)
            report_if_due(reporter, progress.step)

    # The end: the last step, no better held-out sentences for too long, or a signal.
    finished = is_finished(progress, total_steps, patience)
    save_last(run, training, save_every, limit, finished)
    if finished:
        facts = describe_result(args, training, voice, train, held_out)
        card = functools.partial(voice_files.write_card, facts=facts)
        write_results(run, training, card, plan.effective, starting.asked_length(args), total_steps)
        report_last(reporter)
        if args.push_to_hub and is_main:
            model_card.push_run(out, args.hub_model_id)
    return end_run(run, finished)


if __name__ == "__main__":
    cli.run(main, parse_args())
