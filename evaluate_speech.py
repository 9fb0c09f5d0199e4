"""Is a voice understood, does it sound like its speaker? Every figure with its 95 % interval, beside the recordings.

    python evaluate_speech.py --real data/voice --pretrained_model_name_or_path runs/voice \\
        --output_dir runs/voice/evaluation
    python evaluate_speech.py --real data/voice/val --generated data/spoken/voice --asr openai/whisper-large-v3 \\
        --speaker_encoder none --output_dir runs/voice/evaluation
    python evaluate_speech.py --compare runs/a/evaluation runs/b/evaluation --output_dir runs/comparison
"""

import argparse
import functools
import hashlib
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils import cli, devices, runs  # first: it says in one line which package is missing

# isort: split
import numpy as np
import torch
from PIL import Image

from evaluation.feature_cache import cached_rows
from evaluation.human_study import half_real, merge_ratings
from evaluation.judge import relative_paths
from evaluation.listening import Pair, choose_items, write_listening
from evaluation.report.comparison_page import read_runs
from evaluation.report.spoken_page import (
    KIND,
    SHOWN,
    read_spoken,
    shared_sentences,
    write_spoken_comparison,
    write_spoken_report,
)
from evaluation.report.spoken_summary import summarise
from evaluation.report.spoken_verdict import judge_people
from evaluation.results import RESULTS, check_results, open_results
from evaluation.spoken import choose_examples, judge_sentences
from families.models import fingerprint
from speech import recogniser, speaker
from speech.audio import SYNTHETIC, encode_sound, level_loudness, read_sound, resample, trim_silence, write_sound
from speech.copy_synthesis import copy_sound
from speech.dataset import TABLE, Utterance, is_prepared, read_records, read_split, read_utterances
from speech.distances import count_edits
from speech.features import settings_of
from speech.measures import VERSION, Measures, compare_sounds, draw_spectrogram
from speech.normalise import plain_text
from speech.references import encoder_of, hear_reference, load_encoder, mean_vector
from speech.synthesis import SPEAKING_FLAGS, Speaking, add_speaking_flags, read_speaking, speak, speaker_number
from speech.transcripts import transcribe
from speech.voices import Voice, load_voice
from utils.cli import Range, UserError, at_once, counted, read_path, seed_number, workers
from utils.console import track
from utils.files import file_sha256, replaced_file, write_json
from utils.hub import model_key
from utils.metrics_log import append_metrics, read_metrics
from utils.outputs import check_apart
from utils.parallel import available_cores, parallel_map
from utils.wording import data_address

logger = logging.getLogger("evaluate_speech")
SCRIPT = "evaluate_speech"
ALONE = {  # a task other than an evaluation: the flags that it uses
    "compare": {"resamples", "seed", "overwrite"},
    "listening_test": {"against", "seed", "overwrite"},
    "ratings": set(),
}
CLIP_LEVEL = -23.0  # dB below full scale, of every sound on a listening page
MANY = 200  # pairs of sounds that are compared sooner than another process has started


@dataclass(frozen=True)
class Sentence:
    """A recording, what is said in it, and the other sounds of it: {kind: file}, {kind: what is known of it}."""

    real: Utterance
    said: str  # as it was written down, not as phonemes
    files: dict[str, Path] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    add = parser.add_argument_group("sounds").add_argument
    split = (
        "recordings that no voice was trained on: a dataset of prepare_speech.py (its split test) or one of its splits"
    )
    add("--real", type=read_path, metavar="DIR", help=split)
    voice = "a voice that speaks their sentences: a run's folder, a hub id, or demo-voice"
    add("--pretrained_model_name_or_path", metavar="HUB_ID|DIR|demo-voice", help=voice)
    add("--generated", type=read_path, metavar="DIR", help="or what synthesize.py made of their sentences")
    add("--max_sentences", type=Range(2, 100_000, int), help="only as many, chosen at random by --seed")
    group = parser.add_argument_group("voice")
    own = "of a voice of several; default: the recording's own"
    group.add_argument("--speaker", default="", metavar="NAME", help=own)
    add_speaking_flags(group)
    add = parser.add_argument_group("figures").add_argument
    asr = "Whisper or CTC model that hears the words: a hub id, a folder, `demo` (knows espeak-ng's voices), or `none`"
    add("--asr", default=recogniser.DEFAULT, metavar="HUB_ID|DIR|demo|none", help=asr)
    encoder = "model of who speaks: a hub id, a folder, Resemblyzer's pretrained.pt, `demo`, or `none`"
    add("--speaker_encoder", default=speaker.DEFAULT_ENCODER, metavar="HUB_ID|DIR|FILE.pt|demo|none", help=encoder)
    add("--language", default="pt-br", metavar="CODE", help="of the sentences: pt-br, en, …")
    add("--resamples", type=Range(1, 100_000, int), default=1000, help="bootstrap samples for each interval")
    add("--seed", type=seed_number, default=0, help="for the voice, bootstraps, and the choice of sentences")
    add = parser.add_argument_group("reports and listeners, of evaluations that are there").add_argument
    add("--compare", type=Path, nargs="+", metavar="DIR", help="compare these evaluations on one page, and stop")
    listen = "write a page on which N sounds are rated blind, half of them recordings, and stop"
    add("--listening_test", type=half_real, metavar="N", help=listen)
    others = "evaluations of other voices, each in turn: as many pairs are compared, too"
    add("--against", type=Path, nargs="+", metavar="DIR", help=others)
    rated = "the files that listeners downloaded: add them to the evaluation and its report, and stop"
    add("--ratings", type=Path, nargs="+", metavar="JSON", help=rated)
    add = parser.add_argument_group("work").add_argument
    add("--batch_size", type=at_once, default=16, help="sounds that are heard between two savings")
    add("--num_workers", type=workers, default=available_cores(), help="processes that compare sounds")
    add("--output_dir", type=Path, metavar="DIR", help="metrics.json, report.html, audio/ and features/ (cache)")
    add("--overwrite", action="store_true", help="replace what is there; what no script wrote is moved aside")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    check_flags(parser, args)
    return args


def check_flags(parser: cli.Parser, args: argparse.Namespace) -> None:
    """Refuse what argparse can't check by itself: missing flags, and flags that would do nothing."""
    task = next((name for name in ALONE if getattr(args, name)), None)
    needed = ["output_dir"] if task else ["real", "output_dir"]
    if missing := [f"--{name}" for name in needed if getattr(args, name) is None]:
        parser.error(f"missing: {'; '.join(missing)}")
    if task:
        used = {task, *cli.COMMON, "output_dir", *ALONE[task]}
        needs = {name: (f"an evaluation, which --{task} does not make", name in used) for name in vars(args)}
    else:
        name = args.pretrained_model_name_or_path
        if (name is None) == (args.generated is None):
            parser.error("give one of --pretrained_model_name_or_path, a voice, and --generated, what it has spoken")
        voice = ("--pretrained_model_name_or_path", name is not None)
        needs = dict.fromkeys(("speaker", *SPEAKING_FLAGS), voice)
        needs["language"] = ("--asr", args.asr != "none")
        needs["against"] = ("--listening_test", False)
    cli.report_ignored(parser, args, needs)


# Sentences


def read_real(folder: Path) -> list[Sentence]:
    """The recordings of a split; of a whole prepared dataset its test split, or val where that is empty."""
    flag = "--real"
    if is_prepared(folder):
        utterances = next(filter(None, (read_split(folder, name, flag) for name in ("test", "val"))), [])
    elif is_prepared(folder.parent):
        utterances = read_split(folder.parent, folder.name, flag)
    else:
        utterances = read_utterances(folder, flag)[0]
    if len(utterances) < 2:
        raise UserError(f"{flag} {folder}: holds {counted(len(utterances), 'recording')}; an interval needs at least 2")
    base = utterances[0].path.parent.parent
    raw = {base / row["file_name"]: row.get("raw_text") for _, row in read_records(base / TABLE, flag)}
    return [Sentence(one, str(raw.get(one.path) or one.text), {"real": one.path}) for one in utterances]


def choose_sentences(sentences: list[Sentence], count: int | None, seed: int) -> list[Sentence]:
    if count is None or count >= len(sentences):
        return sentences
    chosen = np.random.default_rng(seed).permutation(len(sentences))[:count]
    return [sentences[i] for i in sorted(chosen)]


def match_generated(sentences: list[Sentence], folder: Path, language: str) -> list[Sentence]:
    """Those sentences that synthesize.py spoke: by id where the text is the same too, or else by text."""
    flag = f"--generated {folder}"
    if not (folder / TABLE).is_file():
        raise UserError(f"{flag}: has no {TABLE}; give the folder of a set that synthesize.py made")
    rows = [row for _, row in read_records(folder / TABLE, "--generated")]
    if not rows:
        raise UserError(f"{flag}: {TABLE} is empty; give the folder of a set that synthesize.py made")
    by_id = {str(row.get("id")): row for row in rows}
    by_text = {plain_text(str(row.get("text")), language): row for row in reversed(rows)}
    found = []
    for one in sentences:
        texts = [plain_text(text, language) for text in (one.said, one.real.text)]
        row = by_id.get(one.real.id, {})
        if plain_text(str(row.get("text")), language) not in texts:
            row = next((by_text[text] for text in texts if text in by_text), {})
        if row:
            found.append(replace(one, files={**one.files, "generated": folder / row["file_name"]}))
    if len(found) < 2:
        raise UserError(
            f"{flag}: has {counted(len(found), 'sentence')} of the {len(sentences)} of --real, at least 2 are needed; "
            f"speak them with synthesize.py --text_file {sentences[0].real.path.parent.parent / TABLE}"
        )
    return found


def find_spoken(args: argparse.Namespace, sentences: list[Sentence]) -> tuple[list[Sentence], list[str]]:
    """The sentences that --generated has, and what the report says of the others."""
    found = match_generated(sentences, args.generated, args.language)
    check_rate(found, read_sound(found[0].files["generated"], "--generated").rate, "--generated")
    missing = len(sentences) - len(found)
    note = f"{counted(missing, 'sentence')} of {len(sentences):,} were not spoken, and are left out."
    return found, [note] if missing else []


def check_rate(sentences: Sequence[Sentence], rate: int, what: str) -> None:
    for one in sentences:
        if one.real.rate != rate:
            raise UserError(
                f"--real: {one.real.path} has {one.real.rate:,} samples a second, {what} {rate:,}; prepare the "
                f"recordings with prepare_speech.py --sampling_rate {rate}"
            )


# Sounds


def open_voice(name: str, speaker: str, sentences: list[Sentence], device: torch.device) -> Voice:
    """The voice on the device; refuses a speaker whom it lacks, and recordings of another rate than its own."""
    voice = load_voice(name)
    voice.model.to(device)
    check_rate(sentences, voice.model.config.sampling_rate, "the voice speaks with")
    speaker_number(voice, speaker)
    return voice


def speaker_of(voice: Voice, one: Sentence, wanted: str) -> str:
    """The name that the voice speaks by: the one that was asked for, or else the recording's."""
    return wanted or (one.real.speaker if one.real.speaker in voice.speakers else "")


def check_others(args: argparse.Namespace, voice: Voice, sentences: list[Sentence]) -> None:
    """A voice with a speaker encoder needs another recording of each sentence's speaker."""
    counts = Counter(one.real.speaker for one in sentences)
    if not encoder_of(voice.model.config) or args.speaker or min(counts.values()) > 1:
        return
    raise UserError(
        f"--real {args.real}: one recording of speaker {min(counts, key=counts.__getitem__)!r} is to be evaluated, but "
        "this voice listens to the speaker's others; add one, or name one of the voice's own with --speaker"
    )


def find_speakers(args: argparse.Namespace, voice: Voice, sentences: list[Sentence]) -> list[Speaking]:
    """How each sentence is spoken: a voice with a speaker encoder listens to the other recordings of its speaker."""
    how = read_speaking(args, voice, "")
    if not (encoder := encoder_of(voice.model.config)) or args.speaker:
        return [replace(how, speaker=speaker_of(voice, one, args.speaker)) for one in sentences]
    places: dict[str, list[int]] = {}
    for place, one in enumerate(sentences):
        places.setdefault(one.real.speaker, []).append(place)
    paths = [one.files["real"] for one in sentences]
    encode = load_encoder(voice, "--pretrained_model_name_or_path")
    cache = args.output_dir / "features" / f"references-{speaker.encoder_key(encoder)}"
    rows = torch.from_numpy(
        encode_speakers(paths, {path: file_sha256(path) for path in paths}, encode, cache, hear_reference)
    )
    others = [[i for i in places[one.real.speaker] if i != place] for place, one in enumerate(sentences)]
    return [replace(how, vector=tuple(mean_vector(rows[some]).tolist())) for some in others]


def speak_sentences(
    sentences: list[Sentence], voice: Voice, ways: list[Speaking], seed: int, folder: Path
) -> list[Sentence]:
    """Each sentence with what the voice makes of its text (generated) and of its recording (copy).

    What is there already, of the same voice and settings, is not made again.
    """
    rate, source, log = voice.model.config.sampling_rate, fingerprint(voice.model), folder / "sounds.jsonl"
    folder.mkdir(exist_ok=True)
    known = {one["file"]: one for one in read_metrics(log) if {"file", "sha256"} <= one.keys()}

    def make(kind: str, one: Sentence, how: Speaking, own: int) -> np.ndarray:
        if kind == "copy":
            return copy_sound(voice, read_sound(one.real.path, "--real").samples, how)
        return speak(voice, one.real.text, own, how)

    done = []
    for one, how in zip(track(sentences, len(sentences), "sentences", "speaking"), ways):
        own = devices.key_seed("speech", seed, one.real.id)
        recording = one.real.sha256 or file_sha256(one.real.path)
        inputs = {"generated": (one.real.text, own, how), "copy": (recording, how.speaker, how.vector)}
        files, facts = dict(one.files), {}
        for kind, given in inputs.items():
            key = hashlib.sha256(repr((source, kind, given)).encode()).hexdigest()[:24]
            path = folder / f"{key}.flac"
            if not is_whole(path, known.get(path.name)):
                began = time.perf_counter()
                samples = make(kind, one, how, own)
                took = time.perf_counter() - began
                if not np.isfinite(samples).all():
                    raise UserError(f"the voice gives no numbers (NaN) for {one.real.text!r}; train it again")
                write_sound(path, samples, rate, SYNTHETIC)
                known[path.name] = {"file": path.name, "sha256": file_sha256(path), "speaking_seconds": took}
                append_metrics(log, known[path.name])
            files[kind] = path
            facts[kind] = {"speaking_seconds": known[path.name]["speaking_seconds"]} if kind == "generated" else {}
        done.append(replace(one, files=files, facts=facts))
    return done


def is_whole(path: Path, record: dict[str, Any] | None) -> bool:
    """Whether a sound is as it was written; one that is not is named, and made again."""
    if record is None or not path.is_file():
        return False
    if file_sha256(path) == record["sha256"]:
        return True
    logger.warning("%s is damaged and is made again", path)
    return False


# What is measured


def measure_pair(files: tuple[Path, Path]) -> Measures:
    real, other = (read_sound(path, flag) for path, flag in zip(files, ("--real", "--generated")))
    if other.rate != real.rate:
        what = f"{files[1]} has {other.rate:,} samples a second, its recording {real.rate:,}"
        raise UserError(f"--generated: {what}; speak all sentences with one voice")
    return compare_sounds(real.samples, other.samples, real.rate)


def measure_sounds(pairs: list[tuple[Path, Path]], sums: dict[Path, str], cache: Path, processes: int) -> np.ndarray:
    """Measures of (recording, other sound), a row each."""

    def compute(places: list[int]) -> Iterator[np.ndarray]:
        found = parallel_map(measure_pair, [pairs[i] for i in places], min(processes, 1 + len(places) // MANY))
        for one in track(found, len(places), "sounds", "comparing"):
            yield np.array([one])

    keys = [hashlib.sha256(f"{sums[real]} {sums[other]}".encode()).hexdigest() for real, other in pairs]
    return cached_rows(cache / f"measures-{VERSION}", keys, len(Measures._fields), compute)


def read_heard(path: Path, flag: str) -> np.ndarray:
    sound = read_sound(path, flag)
    return resample(sound.samples, sound.rate, recogniser.RATE)


def encode_speakers(
    files: list[Path],
    sums: dict[Path, str],
    encode: speaker.Encode,
    cache: Path,
    hear: Callable[[Path, str], np.ndarray] = read_heard,
) -> np.ndarray:
    size = encode([np.zeros(recogniser.RATE, np.float32)]).shape[1]

    def compute(places: list[int]) -> Iterator[np.ndarray]:
        for i in track(places, len(places), "sounds", "recognising speakers"):
            yield encode([hear(files[i], "--real")])

    return cached_rows(cache, [sums[path] for path in files], size, compute)


def compare_speakers(sentences: Sequence[Sentence], vectors: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """{kind: the cosine of each sentence and the mean of the speaker's other recordings}; None without another."""
    speakers, real = np.array([one.real.speaker for one in sentences]), vectors["real"]
    found: dict[str, list[float | None]] = {kind: [] for kind in vectors}
    for i, name in enumerate(speakers):
        others = real[(speakers == name) & (np.arange(len(real)) != i)]
        centre = others.sum(0)
        length = float(np.linalg.norm(centre))
        for kind, rows in vectors.items():
            found[kind].append(float(rows[i] @ centre / length) if length else None)
    return found


@dataclass(frozen=True)
class Judges:
    """The models that judge, None for those that are not used, and the names of their caches."""

    recognise: recogniser.Recogniser | None
    encode: speaker.Encode | None
    heard: str
    vectors: str


def load_judges(args: argparse.Namespace, device: torch.device) -> Judges:
    asr, encoder = args.asr, args.speaker_encoder
    return Judges(
        None if asr == "none" else recogniser.load_recogniser(asr, device, args.language),
        None if encoder == "none" else speaker.load_speaker_encoder(encoder, device),
        f"transcripts-{model_key(asr, recogniser.DEMO_RECOGNISER)}-{args.language}.jsonl",
        f"speakers-{speaker.encoder_key(encoder)}",
    )


def measure_sentences(
    sentences: list[Sentence], args: argparse.Namespace, judges: Judges, cache: Path
) -> list[dict[str, Any]]:
    """A row for each sentence, as evaluation/spoken.py reads them."""
    kinds = list(sentences[0].files)
    sums = {path: file_sha256(path) for one in sentences for path in one.files.values()}
    rows = [describe_sentence(one, sums, args.language) for one in sentences]
    for kind in kinds:
        if kind == "real":
            continue
        pairs = [(one.files["real"], one.files[kind]) for one in sentences]
        for row, values in zip(rows, measure_sounds(pairs, sums, cache, args.num_workers)):
            row["sounds"][kind] |= name_measures(Measures(*map(float, values)), kind)
    if judges.recognise:
        read = {digest: functools.partial(read_sound, path, "--real") for path, digest in sums.items()}
        heard = transcribe(read, lambda: judges.recognise, cache / judges.heard, args.batch_size)
        for row in rows:
            for sound in row["sounds"].values():
                sound |= count_errors(heard[sound["sha256"]].text, row["text"], args.language)
    if judges.encode:
        vectors = {
            kind: encode_speakers([one.files[kind] for one in sentences], sums, judges.encode, cache / judges.vectors)
            for kind in kinds
        }
        for kind, values in compare_speakers(sentences, vectors).items():
            for row, value in zip(rows, values):
                row["sounds"][kind]["similarity"] = value
    return rows


def describe_sentence(one: Sentence, sums: dict[Path, str], language: str) -> dict[str, Any]:
    """Its row, before anything is measured but the lengths of text and sounds."""
    sounds = {}
    for kind, path in one.files.items():
        sound = read_sound(path, "--generated")
        facts = {"file": path, "sha256": sums[path], "seconds": len(sound.samples) / sound.rate}
        sounds[kind] = facts | one.facts.get(kind, {})
    text = plain_text(one.said, language)
    counts = {"characters": len(text), "words": len(text.split())}
    return {"id": one.real.id, "text": one.said, "speaker": one.real.speaker, **counts, "sounds": sounds}


def name_measures(found: Measures, kind: str) -> dict[str, float | None]:
    """The measures as metrics.json has them, None for what is undefined; a copy has its recording's duration."""
    values = {name: value if np.isfinite(value) else None for name, value in found._asdict().items()}
    values["spoken_seconds"] = values.pop("seconds")
    if kind == "generated":
        return values | {"duration_error": abs(found.seconds / found.real_seconds - 1)}
    return {name: value for name, value in values.items() if "seconds" not in name}


def count_errors(heard: str, said: str, language: str) -> dict[str, Any]:
    found, meant = plain_text(heard, language), plain_text(said, language)
    words = count_edits(found.split(), meant.split())
    return {"heard": heard, "character_edits": count_edits(found, meant), "word_edits": words}


# Results


def draw_examples(rows: list[dict[str, Any]], seed: int, folder: Path) -> None:
    """Spectrograms of the sentences that the report shows, named in their rows."""
    folder.mkdir(exist_ok=True)
    for place in {place for places in choose_examples(rows, SHOWN, seed).values() for place in places}:
        for sound in rows[place]["sounds"].values():
            path = folder / f"{sound['sha256'][:24]}.png"
            if not path.is_file():
                samples, rate = read_sound(sound["file"], "--generated")
                with replaced_file(path) as file:
                    Image.fromarray(draw_spectrogram(samples, rate)).save(file, "PNG")
            sound["picture"] = path


def check_output(out: Path, source: str, overwrite: bool) -> None:
    """Refuse to replace the evaluation of another voice."""
    check_results(out, RESULTS, overwrite, SCRIPT)
    if overwrite or not (out / "metrics.json").is_file():
        return
    try:
        before = read_spoken(out).get("source")
    except UserError as error:  # our own, damaged: nothing can be lost
        logger.warning("%s", error)
        return
    if before and before != source:
        raise UserError(
            f"--output_dir {out}: contains the evaluation of {before}, now {source}; give another folder, or add "
            "--overwrite"
        )


def compare_voices(args: argparse.Namespace) -> int:
    cli.show_settings(args)
    check_results(args.output_dir, ["comparison.html"], args.overwrite, SCRIPT)
    read_runs(args.compare, read_spoken)
    if not args.dry_run:
        lock = open_results(args.output_dir, ["comparison.html"], SCRIPT)
        page = args.output_dir / "comparison.html"
        print(*write_spoken_comparison(args.compare, page, args.resamples, args.seed), page, sep="\n")
        os.close(lock)
    return 0


def rows_with_files(folder: Path, flag: str) -> list[dict[str, Any]]:
    """The rows of an evaluation, with whole paths; refused where a sound is not what was evaluated."""
    rows = read_spoken(folder, flag)["utterances"]
    for row in rows:
        for sound in row["sounds"].values():
            sound["file"] = folder / sound["file"]
            if not sound["file"].is_file() or file_sha256(sound["file"]) != sound["sha256"]:
                raise UserError(f"{flag} {folder}: {sound['file']} is missing or has changed; evaluate the voice again")
    return rows


def encode_clip(path: Path, rate: int) -> str:
    """A sound as the address of a player: neither rate, loudness, silence nor name tell where it is from."""
    sound = read_sound(path, "--listening_test")
    samples = level_loudness(trim_silence(resample(sound.samples, sound.rate, rate), rate), rate, CLIP_LEVEL)
    return data_address(encode_sound(samples, rate, ".flac"), "audio/flac")


def pair_sentences(rows: list[dict[str, Any]], others: list[Path], count: int, seed: int) -> list[Pair]:
    """At most so many sentences, each as this voice and as one of the others says it; the others take turns."""
    if count < 2 * len(others):
        raise UserError(
            f"--listening_test {count}: {len(others)} voices of --against need 2 pairs each; ask for "
            f"{2 * len(others)} or more"
        )
    voices = {str(folder): {"utterances": rows_with_files(folder, "--against")} for folder in others}
    own, *shared = shared_sentences({"": {"utterances": rows}, **voices}, "--against").values()
    if len(own) < 2 * len(others):
        raise UserError(
            f"--against: {counted(len(own), 'sentence')} that all of {len(others) + 1} voices say, but {len(others)} "
            f"others need 2 pairs each; evaluate {2 * len(others)} or more"
        )
    order = np.random.default_rng(seed).permutation(len(own))[:count]
    turns = itertools.cycle(zip(voices, shared))
    return [Pair(own[i], theirs[i], name) for i, (name, theirs) in zip(order, turns)]


def make_listening(args: argparse.Namespace) -> int:
    cli.show_settings(args)
    out, names = args.output_dir, ["listening.html"]
    rows, pairs = rows_with_files(out, "--output_dir"), []
    check_results(out, names, args.overwrite, SCRIPT)
    if args.against:
        pairs = pair_sentences(rows, args.against, args.listening_test, args.seed)
    items = choose_items(rows, args.listening_test, pairs, args.seed)
    if not args.dry_run:
        lock = open_results(out, names, SCRIPT)
        rate = min(read_sound(file, "--listening_test").rate for one in items for file in one["files"])
        page = write_listening(out, items, args.seed, args.overwrite, lambda path: encode_clip(path, rate))
        print(f"{page}: {counted(args.listening_test, 'sound')} to rate, {counted(len(pairs), 'pair')} to compare")
        os.close(lock)
    return 0


def add_ratings(args: argparse.Namespace) -> int:
    cli.show_settings(args)
    out = args.output_dir
    metrics = read_spoken(out, "--output_dir")
    metrics["human"] = merge_ratings(out / "listening_key.json", args.ratings)
    if not args.dry_run:
        lock = open_results(out, RESULTS, SCRIPT)
        write_json(out / "metrics.json", metrics)
        report = write_spoken_report(out)
        os.close(lock)
        print(f"{judge_people(metrics)}\n{out / 'metrics.json'}, {report}")
    return 0


def main(args: argparse.Namespace) -> int:
    began, out = time.monotonic(), args.output_dir
    name, source = args.pretrained_model_name_or_path, str(args.pretrained_model_name_or_path or args.generated)
    data = {flag: getattr(args, flag) for flag in ("real", "compare", "against") if getattr(args, flag)}
    check_apart(out, data, {"generated": args.generated, "pretrained_model_name_or_path": name})
    if args.compare:
        return compare_voices(args)
    if args.listening_test:
        return make_listening(args)
    if args.ratings:
        return add_ratings(args)

    # Everything that can be refused is refused before any work.
    accelerator, _ = devices.start_accelerator("no")  # float32 on every device
    if accelerator.num_processes > 1:
        raise UserError("evaluate_speech.py runs in one process; start it without accelerate launch")
    check_output(out, source, args.overwrite)
    everything = read_real(args.real)
    sentences = choose_sentences(everything, args.max_sentences, args.seed)
    voice, left_out = None, list[str]()
    if name:
        voice = open_voice(name, args.speaker, sentences, accelerator.device)
        check_others(args, voice, sentences)
    else:
        sentences, left_out = find_spoken(args, sentences)
    cli.show_settings(args)
    print(f"{args.real}: {counted(len(everything), 'recording')}, {len(sentences)} to evaluate", flush=True)
    judges = load_judges(args, accelerator.device)
    if args.dry_run:
        return 0

    lock = open_results(out, RESULTS, SCRIPT)
    if voice:
        ways = find_speakers(args, voice, sentences)
        sentences = speak_sentences(sentences, voice, ways, args.seed, out / "audio")
    rows = measure_sentences(sentences, args, judges, out / "features")
    figures = judge_sentences(rows, args.resamples, args.seed)
    draw_examples(rows, args.seed, out / "pictures")

    made = runs.describe_making(devices.describe_device(accelerator.device), time.monotonic() - began)
    models = {"recogniser": args.asr, "speaker encoder": args.speaker_encoder}
    made |= {"seed": args.seed, "models": models}
    metrics: dict[str, Any] = {"version": 1, "kind": KIND, "name": Path(source).name, "source": source}
    metrics |= {"seed": args.seed, "made": made, "left_out": left_out}
    folders = {"real": args.real} if voice else {"real": args.real, "generated": args.generated}
    metrics["sets"] = {key: {"path": str(folder), "n": len(sentences)} for key, folder in folders.items()}
    if voice:
        metrics["frame_rate"] = voice.model.config.sampling_rate / settings_of(voice.model.config).hop
    metrics |= {"figures": figures, "utterances": relative_paths(rows, out)}
    write_json(out / "metrics.json", metrics)
    report = write_spoken_report(out)
    os.close(lock)
    print(f"{summarise(metrics)}\n\n{out / 'metrics.json'}, {report}")
    return 0


if __name__ == "__main__":
    cli.run(main, parse_args())
