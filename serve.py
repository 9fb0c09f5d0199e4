"""Serve what was trained: a page to try it, and a REST API in OpenAI's shapes for images and speech.

Nothing of a request is written to the disk. Beyond this machine (--host 0.0.0.0) it needs a token, in SERVE_API_TOKEN.

    python3 serve.py --lora runs/casual_shoes --voice runs/minha_voz
    python3 serve.py --pretrained_model_name_or_path demo --voice demo-voice --port 8080
    python3 serve.py --watch runs/
"""

import argparse
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from utils import cli, devices  # first: it says in one line which package is missing

# isort: split
import numpy as np
import torch
from transformers import VitsModel

from families import lora_mix, models, sampling
from families.image_facts import short_name
from families.names import LABELS
from families.sampler import Execution, SamplerParts, Sampling, check_parts
from preparation.captions import DEFAULT_TEMPLATE, add_trigger
from service import site
from service.guard import Access
from service.image_api import ImageLimits, ImageService
from service.image_model import ImageModel
from service.image_queue import ImageQueue, QueueLimits, Settings
from service.kept_files import KeptFiles
from service.language import LANGUAGES
from service.measures import Measures
from service.page_api import page_routes
from service.pickers import Pickers, read_pickers
from service.site import Site
from service.speech_api import ServedVoice, SpeechBody, SpeechService
from service.watch import find_runs, watch_routes
from speech import prosody, streaming, styles
from speech.normalise import LANGUAGES as READ_LANGUAGES
from speech.parts import parts_of
from speech.references import encode_references, encoder_of, hear_reference
from speech.styles import Weights, choose_style
from speech.synthesis import Speaking, find_prosody, fold_weight_norm
from speech.texts import language_of
from speech.voices import Voice, load_voice
from utils.cli import Range, UserError, counted, name_some, suggest
from utils.parallel import available_cores

logger = logging.getLogger("serve")
CACHE = Path("data/cache")  # for what is fetched from a bucket, and for single files that are converted
SPARE_CONNECTIONS = 500  # beyond those that wait for images and speech; more get 503
OF_SOME_VOICES = {"pitch": prosody.NAME, "energy": prosody.NAME, "style_token": styles.NAME}  # field: voice's part
NAME = re.compile(r"[\w.+-]{1,100}")


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    models.add_model_flags(parser, of_lora=True)
    add_what_flags(parser)
    add_limit_flags(parser)
    add_access_flags(parser)
    return parser


def add_what_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("what is served")
    group.add_argument(
        "--lora",
        action="extend",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR|FILE|s3://…[:WEIGHT]",
        help="run folders or .safetensors files of one base model; a request chooses among them by their names, which "
        "are the folders' if none is given, and may give other weights",
    )
    group.add_argument("--allow_other_base", action="store_true", help="accept a LoRA of another base model")
    group.add_argument(
        "--voice",
        action="extend",
        nargs="+",
        default=[],
        metavar="[NAME=]DIR|HUB_ID|demo-voice",
        help="VITS or MMS voices; of one with several speakers each is a voice, as NAME/SPEAKER",
    )
    group.add_argument(
        "--reference",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=SOUND",
        help="recordings of who is to speak: a further voice, VOICE/NAME, of each that was trained with "
        "--speaker_encoder; several of one NAME are of one person; only with that person's consent (docs/voices.md)",
    )
    group.add_argument(
        "--style_reference",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=SOUND",
        help="recordings to speak like, of voices that were trained with --style_tokens; a request names one",
    )
    group.add_argument(
        "--watch",
        type=Path,
        metavar="DIR",
        help="a folder of runs, shown as they train at /watch; nothing in it changes",
    )
    group.add_argument("--lang", choices=LANGUAGES, help="of the pages; default: the browser's")

    group = parser.add_argument_group("images")
    group.add_argument("--scheduler", choices=[*sampling.SCHEDULERS, sampling.FLOW_SCHEDULER], help="default: dpm++")
    group.add_argument("--resolution", type=cli.pixels, help="side where a request names no size; default: the model's")
    group.add_argument(
        "--batch_size", type=cli.at_once, default=8, help="images at once, of requests of the same settings"
    )
    group.add_argument(
        "--batch_wait", type=Range(0, 10), default=0.03, help="seconds for which a batch waits for more images"
    )
    group.add_argument(
        "--image_metadata",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="prompt and settings in each PNG, as A1111 writes them, and IPTC's mark of a synthetic image",
    )
    group.add_argument(
        "--mixes_in_memory", type=Range(1, 100, int), default=2, help="mixes of LoRAs that stay ready on the device"
    )
    group.add_argument(
        "--mixed_precision",
        choices=["no", "fp16", "bf16"],
        help="default: the fastest precision that passes this device's test",
    )


def add_limit_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("limits of a request")
    group.add_argument("--max_size", type=cli.pixels, metavar="N", help="largest side; default: twice the model's")
    group.add_argument("--max_steps", type=Range(1, 1000, int), default=100, help="of the scheduler")
    group.add_argument("--max_images", type=Range(1, 100, int), default=8, help="of one request (n)")
    group.add_argument(
        "--max_waiting",
        type=Range(1, 100_000, int),
        default=64,
        help="images, and speech requests, that wait; others get 429",
    )
    group.add_argument("--timeout", type=Range(1, 86_400), default=300.0, help="seconds until a request is given up")
    group.add_argument("--max_body", type=Range(1, 1 << 20, int), default=64, help="KiB of a request's body")
    group.add_argument(
        "--keep_minutes", type=Range(0.01, 10_080), default=60.0, help="for which an image's address is valid"
    )
    group.add_argument(
        "--keep_memory", type=Range(1, 1 << 20, int), default=256, help="MiB of such images; the oldest go"
    )
    group.add_argument(
        "--num_workers", type=cli.workers, help="sentences spoken at once, on a CPU; default: as many as cores"
    )


def add_access_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("access")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; beyond loopback SERVE_API_TOKEN is needed"
    )
    group.add_argument("--port", type=Range(0, 65_535, int), default=8000, help="0: any free one, which is printed")
    group.add_argument(
        "--cors_origin",
        action="append",
        default=[],
        metavar="https://…",
        help="a server whose pages may send requests here; may be repeated; default: none",
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    is_image = makes_images(args)
    if not (is_image or args.voice or args.watch):
        parser.error("there is nothing to serve; give --lora, --pretrained_model_name_or_path, --voice or --watch")
    needs = {name: ("a model of images", is_image) for name in OF_IMAGES}
    needs |= {name: ("--lora", bool(args.lora)) for name in ("allow_other_base", "mixes_in_memory")}
    needs |= {
        name: ("a model of images or --voice", is_image or bool(args.voice)) for name in ("max_waiting", "timeout")
    }
    needs |= {name: ("--voice", bool(args.voice)) for name in ("num_workers", "reference", "style_reference")}
    cli.report_ignored(parser, args, needs)
    for origin in args.cors_origin:
        if not re.fullmatch(r"https?://[\w.:\[\]-]+", origin):
            parser.error(f"--cors_origin {origin}: expected a scheme and a host, such as https://example.org")
    return args


OF_IMAGES = (
    "scheduler resolution batch_size batch_wait mixed_precision max_size max_steps max_images "
    "keep_minutes keep_memory prediction_type zero_terminal_snr model_config max_sequence_length clip_skip "
    "image_metadata"
).split()


def makes_images(args: argparse.Namespace) -> bool:
    return bool(args.lora or args.pretrained_model_name_or_path)


def split_name(spec: str, flag: str, own: str) -> tuple[str, str]:
    """`NAME=DIR` in its parts; without a name, `own`."""
    name, equals, rest = spec.partition("=")
    if not equals or not NAME.fullmatch(name) or Path(spec).exists():
        return own, spec
    if not rest:
        raise UserError(f"{flag} {spec}: names nothing after `=`; expected {name}=runs/{name}")
    return name, rest


def name_all(specs: list[str], flag: str) -> dict[str, str]:
    """{name in requests: place} of what is given as [NAME=]PLACE."""
    named = [split_name(one, flag, lora_mix.run_name(lora_mix.split_spec(one)[0])) for one in specs]
    names = [name for name, _ in named]
    for name, place in named:
        if names.count(name) > 1:
            raise UserError(f"{flag}: two are called {name}; name one of them, as {flag} other={place}")
        if not NAME.fullmatch(name):
            raise UserError(f"{flag}: {name} can't be a name in requests; give another one, as {flag} shoes=DIR")
    return dict(named)


def read_loras(specs: list[str]) -> dict[str, lora_mix.Lora]:
    """The LoRAs by their names in requests."""
    named = name_all(specs, "--lora")
    return {name: lora_mix.parse_lora(lora_mix.fetch_lora(spec, CACHE)) for name, spec in named.items()}


def find_parts(args: argparse.Namespace, loras: dict[str, lora_mix.Lora]) -> SamplerParts:
    """The base model; refuses LoRAs that don't go with it, or with each other."""
    given = tuple(loras.values())
    name = args.pretrained_model_name_or_path or lora_mix.named_base(given) or models.DEFAULT_MODEL
    args.pretrained_model_name_or_path = name
    for lora in given if not args.allow_other_base else ():
        lora_mix.check_base(lora, name)
    model = models.resolve_model(name, CACHE / "models", args.model_config)
    noise = args.prediction_type, args.zero_terminal_snr
    reading = models.TextReading(args.max_sequence_length, args.clip_skip or 0)
    parts = SamplerParts(model, models.model_family(model), given, None, *noise, reading=reading)
    check_parts(parts, name, args.allow_other_base)
    return replace(parts, loras=())


def find_defaults(args: argparse.Namespace, parts: SamplerParts) -> Sampling:
    """How images are sampled where a request doesn't say: as generate.py does."""
    steps, guidance = sampling.default_sampling(parts.model)
    scheduler = sampling.choose_scheduler(parts.family, args.scheduler)
    size = sampling.choose_size(parts.model, args.resolution)
    args.max_size = args.max_size or 2 * size
    if size > args.max_size:
        raise UserError(f"--max_size {args.max_size}: is below the size of an image, {size}; give {size} or more")
    if steps > args.max_steps:
        raise UserError(f"--max_steps {args.max_steps}: is below the model's own {steps}; give {steps} or more")
    return Sampling(steps=steps, guidance_scale=guidance, size=size, scheduler=scheduler)


def load_images(
    args: argparse.Namespace,
    loras: dict[str, lora_mix.Lora],
    device: torch.device,
    dtype: torch.dtype,
    measures: Measures,
) -> ImageService:
    """The model, ready: it has made an image."""
    parts = find_parts(args, loras)
    defaults = find_defaults(args, parts)
    model = ImageModel(parts, loras, defaults, Execution(device, dtype, args.batch_size), args.mixes_in_memory)
    first = tuple((name, lora.weight) for name, lora in list(loras.items())[:1])
    model.warm_up(Settings(defaults, first))
    queue = ImageQueue(model.make, QueueLimits(args.batch_size, args.max_waiting, args.batch_wait), measures)
    return ImageService(
        model=model,
        queue=queue,
        kept=KeptFiles(args.keep_memory << 20, 60 * args.keep_minutes),
        base=short_name(args.pretrained_model_name_or_path),
        family=parts.family,
        has_guidance=sampling.has_guidance(parts.model),
        loras={name: lora.weight for name, lora in loras.items()},
        defaults=defaults,
        multiple=models.side_step(parts.model),
        limits=ImageLimits(args.max_size, args.max_steps, args.max_images, args.timeout),
        clip_skip=parts.reading.clip_skip,
        describes=args.image_metadata,
    )


def load_models(args: argparse.Namespace, loras: dict[str, lora_mix.Lora], what: Site) -> None:
    """Fill in what makes images and speech; to watch runs alone, no device is taken from them."""
    if not (makes_images(args) or args.voice):
        return
    accelerator, precision = devices.start_accelerator(args.mixed_precision)
    print(f"device: {devices.describe_device(accelerator.device)}; precision: {precision.reason}", flush=True)
    if makes_images(args):
        what.images = load_images(args, loras, accelerator.device, precision.dtype, what.measures)
    if args.voice:
        what.speech = load_speech(args, accelerator.device)


def find_pickers(loras: dict[str, lora_mix.Lora]) -> dict[str, Pickers]:
    """What the page offers to compose a prompt, by the LoRA that was trained on it."""
    found = {name: read_pickers(lora.path, DEFAULT_TEMPLATE, add_trigger) for name, lora in loras.items()}
    return {name: one for name, one in found.items() if one}


def group_sounds(specs: list[str], flag: str) -> dict[str, list[Path]]:
    """{name in requests: its recordings} of what is given as NAME=SOUND."""
    found: dict[str, list[Path]] = {}
    for spec in specs:
        name, _, file = spec.partition("=")
        if not NAME.fullmatch(name) or not file:
            raise UserError(f"{flag} {spec}: expected a name for requests and a file, as {flag} me=me.wav")
        found.setdefault(name, []).append(Path(file))
    return found


def name_styles(specs: list[str]) -> dict[str, Path]:
    """{name in requests: recording}."""
    found = group_sounds(specs, "--style_reference")
    for name, files in found.items():
        if len(files) > 1:
            raise UserError(f"--style_reference {name}={files[1]}: a style is that of one recording; name it otherwise")
    return {name: files[0] for name, files in found.items()}


def load_voices(specs: list[str], device: torch.device) -> dict[str, tuple[Voice, Speaking]]:
    """{name in requests: (voice, who speaks)}."""
    found: dict[str, tuple[Voice, Speaking]] = {}
    for name, source in name_all(specs, "--voice").items():
        voice = load_voice(source, "--voice")
        fold_weight_norm(voice.model)
        voice.model.to(device)
        named = {f"{name}/{one}": Speaking(speaker=one) for one in voice.speakers} or {name: Speaking()}
        found |= {one: (voice, who) for one, who in named.items()}
    return found


def hear_speakers(references: dict[str, list[Path]], given: dict[str, Voice]) -> dict[str, tuple[Voice, Speaking]]:
    """A further voice for who is heard in each reference, of each voice that listens; refused where none does."""
    listening = {name: voice for name, voice in given.items() if encoder_of(voice.model.config)} or given
    found = {}
    for name, voice in listening.items():
        for reference, files in references.items():
            if reference in voice.speakers:
                raise UserError(
                    f"--reference {reference}={files[0]}: {name} has a speaker of this name; give another one"
                )
            found[f"{name}/{reference}"] = voice, Speaking(vector=encode_references(files, voice))
    return found


def hear_styles(references: dict[str, Path], given: dict[str, Voice]) -> dict[str, dict[str, Weights]]:
    """{name of a voice: {name of a reference: its style}} of each that knows styles; refused where none does."""
    knowing = {name: voice for name, voice in given.items() if styles.NAME in parts_of(voice.model.config)} or given
    return {
        name: {one: choose_style(voice.model, file, None) for one, file in references.items()}
        for name, voice in knowing.items()
    }


def load_speech(args: argparse.Namespace, device: torch.device) -> SpeechService:
    """The voices, on the device. On a CPU each sentence is spoken by one thread, which changes no bit of it."""
    references, style_references = group_sounds(args.reference, "--reference"), name_styles(args.style_reference)
    voices = load_voices(args.voice, device)
    given = {name.partition("/")[0]: voice for name, (voice, _) in voices.items()}
    voices |= hear_speakers(references, given)
    heard = hear_styles(style_references, given)
    served = {name: serve_voice(voice, who, name, heard) for name, (voice, who) in voices.items()}
    if args.num_workers and device.type != "cpu":
        raise UserError(
            f"--num_workers {args.num_workers}: does nothing on a GPU, which speaks by one thread; leave it out"
        )
    workers = args.num_workers or (available_cores() if device.type == "cpu" else 1)
    threads = ThreadPoolExecutor(workers, "speech", initializer=devices.use_torch_threads, initargs=(1,))
    return SpeechService(served, threads, args.max_waiting, args.timeout)


def serve_voice(voice: Voice, who: Speaking, name: str, heard: dict[str, dict[str, Weights]]) -> ServedVoice:
    """`heard` are by voice the styles of the recordings that a request may name."""
    model = name.partition("/")[0]
    known = heard.get(model, {})

    def say(body: SpeechBody) -> Iterator[np.ndarray]:
        language = read_language(body.language, voice)
        how = read_manner(body, voice, who, known)
        spoken = streaming.say(voice, body.input, body.seed, how, language, body.sentence_pause)
        return (one.samples for one in spoken)

    encode = partial(streaming.SoundStream, rate=voice.model.config.sampling_rate)
    learnt = parts_of(voice.model.config)
    takes = tuple(field for field, part in OF_SOME_VOICES.items() if part in learnt)
    return ServedVoice(say, encode, model, language_of(voice), takes, tuple(known))


def read_language(asked: str | None, voice: Voice) -> str:
    """The rules by which a text is read: those that are asked for, or else the voice's."""
    if asked not in (None, *READ_LANGUAGES, "none"):
        raise UserError(f"--language {asked}: expected one of {', '.join(READ_LANGUAGES)}, none")
    return asked or language_of(voice)


def read_manner(body: SpeechBody, voice: Voice, who: Speaking, known: dict[str, Weights]) -> Speaking:
    """How a request wants the voice to speak; refuses what the voice has not learnt, as synthesize.py does."""

    def look_up(_: VitsModel, name: str) -> Weights:
        if name not in known:
            some = f"there is {name_some(list(known))}{suggest(name, known)}" if known else "the server was given none"
            raise UserError(f"--style_reference {name}: {some}; see /v1/audio/voices")
        return known[name]

    tokens = [f"{number}:{weight}" for number, weight in body.style_token.items()]
    how = replace(
        who,
        rate=body.speed,
        noise_scale=body.noise_scale,
        noise_scale_duration=body.noise_scale_duration,
        pitch=body.pitch,
        energy=body.energy,
        style=choose_style(voice.model, body.style_reference, tokens, look_up),
    )
    find_prosody(voice, how)
    return how


def describe(args: argparse.Namespace, what: Site) -> list[str]:
    lines = []
    if what.images:
        loras = ", ".join(what.images.loras) or "none"
        side, steps = what.images.defaults.size, what.images.defaults.steps
        lines.append(f"images: {what.images.base} at {side} pixels in {steps} steps; LoRAs: {loras}")
    if what.speech:
        lines.append(f"speech: {counted(len(what.speech.voices), 'voice')}: {cli.name_some(list(what.speech.voices))}")
    if args.watch:
        lines.append(f"runs: those in {args.watch}, at /watch")
    return lines


def dry_run_sounds(flag: str, sounds: dict[str, list[Path]]) -> None:
    """Read the recordings, which may be damaged."""
    for file in (one for files in sounds.values() for one in files):
        hear_reference(file, flag)
    if sounds:
        print(f"{flag}: {', '.join(sounds)}")


def dry_run(args: argparse.Namespace) -> None:
    """Report what would be loaded; no weights are read but the LoRAs'."""
    if makes_images(args):
        loras = read_loras(args.lora)
        parts = find_parts(args, loras)
        defaults = find_defaults(args, parts)
        print(f"images: {parts.model} ({LABELS[parts.family]}) at {defaults.size} pixels in {defaults.steps} steps")
        print(f"LoRAs: {', '.join(loras) or 'none'}")
    if args.voice:
        print(f"voices: {', '.join(name_all(args.voice, '--voice'))}")
        dry_run_sounds("--reference", group_sounds(args.reference, "--reference"))
        dry_run_sounds("--style_reference", {name: [file] for name, file in name_styles(args.style_reference).items()})
    if args.watch:
        print(f"runs: {counted(len(find_runs(args.watch)), 'run')} in {args.watch}")


def main(args: argparse.Namespace) -> int:
    if args.watch and not args.watch.is_dir():
        problem = "is a file" if args.watch.exists() else "no such folder"
        raise UserError(f"--watch {args.watch}: {problem}; give one that holds runs, such as runs")
    token = site.read_token(args.host)
    cli.show_settings(args)
    if args.dry_run:
        dry_run(args)
        return 0
    listening = site.open_socket(args.host, args.port)  # before the models are loaded: another may listen there
    what = Site(Measures(), language=args.lang, has_token=bool(token), watches=bool(args.watch))
    loras = read_loras(args.lora)
    load_models(args, loras, what)
    print(*describe(args, what), sep="\n")
    pages = [page_routes(what, find_pickers(loras))] + ([watch_routes(what, args.watch)] if args.watch else [])
    app = site.build_app(what, Access(token, args.max_body << 10, tuple(args.cors_origin)), pages)
    print(f"serving at {address(args.host, listening.getsockname()[1])}", flush=True)
    server = site.make_server(app, partial(stop, what), 2 * args.max_waiting + SPARE_CONNECTIONS)
    server.run(sockets=[listening])
    return 0


def stop(what: Site) -> None:
    if what.images:
        what.images.queue.close()
    if what.speech:
        what.speech.close()


def address(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else name}:{port}"


if __name__ == "__main__":
    cli.run(main, parse_args())
