"""Turn recordings into a dataset of speech that can be trusted: read, measure, clean, split without leakage, write.

The recordings are a folder in the layout of LJSpeech (metadata.csv, wavs/), Piper (file|text, file|speaker|text), the
TTS-Portuguese Corpus (texts.csv), CML-TTS or another table with names of columns, an audiofolder with metadata.jsonl,
sound files with <name>.txt beside them, or a hub dataset id. What is left out has its reason in metadata.json.
Long recordings without texts are cut at their pauses and transcribed with --segment.

    python prepare_speech.py --recordings data/TTS-Portuguese-Corpus --output_dir data/voz
    python prepare_speech.py --recordings data/cml_tts --disjoint speaker --sampling_rate 22050 --output_dir data/cml
    python prepare_speech.py --recordings data/podcast --segment --output_dir data/podcast_voz
    python prepare_speech.py --verify data/voz
"""

import argparse
import sys
from argparse import BooleanOptionalAction as OnOff
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli  # first: it says in one line which package is missing

# isort: split
from preparation import existing, messages
from speech import phonemes
from speech import speech_report as report
from speech import speech_writing as writing
from speech.audio import decode_sound
from speech.normalise import find_language, normalise
from speech.processing import Handling, Job, SoundFacts, process_recordings, remove_work, sound_file, work_folder
from speech.recordings import (
    HEADERLESS,
    Recording,
    Recordings,
    Source,
    check_column,
    choose_speakers,
    read_recordings,
    reject_recording,
    sound_of,
    source_fingerprint,
)
from speech.sound_measures import Limits, Take, find_contradictions, find_duplicates, find_fault, find_outliers
from speech.speech_report import Example
from speech.speech_splits import Placed, group_recordings, place_groups
from speech.verify_speech import verify_dataset
from utils.catalogue import Rejected
from utils.cli import Range, counted, seed_number, share, workers
from utils.dataset import SPLITS
from utils.files import write_json, write_lines, write_text
from utils.outputs import replaced_folder
from utils.parallel import available_cores
from utils.storage import fetch

if TYPE_CHECKING:
    from speech.recogniser import Recogniser
    from speech.segmenting import Reading
    from speech.transcripts import Heard

FEW = 30  # recordings: below, a voice can hardly be told from its sentences
ASR = "openai/whisper-small"
OF_SEGMENT = "piece_seconds padding min_confidence corrections page_pieces".split()
# Settings that do not change the result; what is in corrections changes it, but not the names of their files.
NOT_IN_RESULT = "verify strict output_dir overwrite num_workers recordings keep_splits new_splits corrections".split()
NOT_IN_RESULT += cli.COMMON


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    add_source_flags(parser)
    add_sound_flags(parser)
    add_segment_flags(parser)
    add_split_flags(parser)
    return parser


def add_source_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("recordings")
    group.add_argument(
        "--recordings", metavar="DIR|HUB_ID|s3://…", help="a folder in one of the layouts above, or a hub id"
    )
    group.add_argument("--audio_column", metavar="NAME", help="default: file_name, wav_filename, audio, path …")
    group.add_argument("--text_column", metavar="NAME", help="default: text, transcript, transcription or sentence")
    group.add_argument(
        "--speaker_column",
        metavar="NAME",
        help="default: speaker, speaker_id, client_id …; `folder`: the folder in which a sound lies",
    )
    group.add_argument(
        "--columns", nargs="+", choices=HEADERLESS, help="what a table without a header holds (default: by its look)"
    )
    group.add_argument("--speakers", nargs="+", metavar="NAME", help="speakers to include (default: all)")
    group.add_argument("--dataset_config_name", metavar="NAME", help="of a hub dataset that has several")
    group.add_argument("--dataset_split", default="train", metavar="NAME", help="the split of a hub dataset to read")

    group = parser.add_argument_group("what to do")
    group.add_argument("--verify", type=Path, metavar="DIR", help="read a dataset again, check every file, and stop")

    group = parser.add_argument_group("texts")
    group.add_argument("--language", default="pt-br", metavar="CODE", help="pt-br or en, or any without normalisation")
    group.add_argument("--normalise_text", action=OnOff, default=True, help="write out numbers, dates, abbreviations …")
    group.add_argument("--phonemes", choices=phonemes.ENGINES, metavar="espeak", help=phonemes.HELP)
    asr = "of Whisper or a CTC model, or demo: what hears for --segment and --max_cer (default: %(default)s)"
    group.add_argument("--asr", default=ASR, metavar="HUB_ID|DIR", help=asr)


def add_sound_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("sounds")
    group.add_argument("--sampling_rate", type=Range(8_000, 48_000, int), default=16_000, help="Hz; MMS has 16000")
    group.add_argument("--format", choices=["flac", "wav"], default="flac", help="of the files, with 16 bits")
    group.add_argument("--trim_silence", action=OnOff, default=True, help="at both ends, but for a tenth of a second")
    group.add_argument("--level_loudness", action=OnOff, default=True, help="bring each to --loudness")
    group.add_argument("--loudness", type=Range(-60, -10), default=-23, help="of the speech, in dB below full scale")

    group = parser.add_argument_group("what is left out")
    group.add_argument(
        "--seconds", type=Range(0, 600), nargs=2, default=[0.5, 20], metavar=("MIN", "MAX"), help="without silence"
    )
    group.add_argument("--min_speech", type=share, default=0.3, help="share of the time, by silero-vad; 0: any sound")
    group.add_argument("--max_clipping", type=share, default=0.005, help="share of the samples")
    group.add_argument("--min_snr", type=Range(0, 99), default=15, help="signal to noise, in dB")
    group.add_argument("--max_silence", type=share, default=0.6, help="share of the time, between the ends")
    group.add_argument(
        "--characters_per_second", type=Range(0, 1000), nargs=2, default=[4, 30], metavar=("MIN", "MAX"), help="of text"
    )
    group.add_argument(
        "--max_deviation",
        type=Range(1, 1000),
        default=6,
        help="of a pace from its speaker's median, in robust standard deviations",
    )
    group.add_argument(
        "--max_cer", type=share, help="characters that --asr hears otherwise, per one of the text; default: not heard"
    )
    group.add_argument("--upsample", action=OnOff, default=False, help="keep what was recorded at a lower rate")
    group.add_argument("--drop_duplicates", action=OnOff, default=True, help="keep one of takes that are the same")
    group.add_argument("--strict", action=OnOff, default=False, help="anything left out is an error; writes nothing")


def add_segment_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("long recordings without texts")
    group.add_argument("--segment", action="store_true", help="cut sound files at their pauses, transcribe the pieces")
    group.add_argument(
        "--piece_seconds", type=Range(0.2, 30), nargs=2, default=[1, 12], metavar=("MIN", "MAX"), help="of a piece"
    )
    group.add_argument("--padding", type=Range(0, 1), default=0.2, help="seconds of a pause that stay beside a piece")
    group.add_argument("--min_confidence", type=share, default=0.6, help="mean probability of what was recognised")
    group.add_argument("--corrections", type=cli.read_path, nargs="+", metavar="FILE", help="saved by corrections.html")
    group.add_argument("--page_pieces", type=Range(0, 2000, int), default=200, help="on corrections.html; 0: no page")


def add_split_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("split")
    group.add_argument(
        "--split_ratio",
        type=Range(0, cli.MANY),
        nargs=3,
        default=[90, 5, 5],
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares, any unit",
    )
    group.add_argument("--disjoint", metavar="COLUMN", help="speaker, book …: each value in one split (default: texts)")
    group.add_argument("--seed", type=seed_number, default=0, help="another seed gives other splits; kept splits stay")
    group.add_argument(
        "--keep_splits", type=Path, metavar="DIR|splits.json", help="default: --output_dir's own, if any"
    )
    group.add_argument("--new_splits", action="store_true", help="ignore the splits of the dataset that is replaced")

    group = parser.add_argument_group("output and performance")
    group.add_argument("--output_dir", type=Path, help="the dataset's folder")
    group.add_argument(
        "--overwrite", action="store_true", help="replace what is there; what no script wrote is moved aside"
    )
    group.add_argument("--num_workers", type=workers, help="processes; default: all cores")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    args.num_workers = args.num_workers or available_cores()
    if args.verify:
        messages.check_beside_verify(parser, args)
        return args
    if not args.recordings:
        parser.error("--recordings DIR or --verify DIR: give one of them")
    if not args.output_dir:
        parser.error(f"--output_dir: is missing; give the folder to write, not inside {args.recordings}")
    for name in ("seconds", "characters_per_second", "piece_seconds"):
        low, high = getattr(args, name)
        if low >= high:
            parser.error(f"--{name} {low:g} {high:g}: expected the first number below the second")
    if not args.split_ratio[0]:
        parser.error(f"{messages.describe_ratio(args.split_ratio)}: expected e.g. 90 5 5")
    if args.keep_splits and args.new_splits:
        parser.error("--keep_splits and --new_splits exclude each other")
    if args.columns and not ("file" in args.columns and {"text", "raw_text"} & {*args.columns}):
        parser.error(f"--columns {' '.join(args.columns)}: expected `file` and `text` among them")
    if args.segment and args.max_cer is not None:
        parser.error("--max_cer compares texts that are given; leave it out, or --segment, which reads none")
    needs = dict.fromkeys(OF_SEGMENT, ("--segment", args.segment))
    needs["asr"] = ("--segment or --max_cer", args.segment or args.max_cer is not None)
    cli.report_ignored(parser, args, needs | {"loudness": ("--level_loudness", args.level_loudness)})
    return args


def open_recogniser(args: argparse.Namespace) -> "Recogniser":
    from speech.recogniser import load_recogniser  # here: torch, which it needs, takes seconds
    from utils.devices import working_device

    return load_recogniser(args.asr, working_device(), args.language)


def segment_recordings(args: argparse.Namespace, source: Source) -> tuple[Recordings, list["Reading"]]:
    """The pieces of long recordings, and what was read in them; with --dry_run none is transcribed."""
    from speech import segmenting  # here: torch, which it needs, takes seconds
    from speech.corrections import read_corrections
    from speech.pauses import Cutting
    from speech.transcripts import read_transcripts, transcribe, transcripts_file

    corrections, cache = read_corrections(args.corrections or []), args.output_dir.parent / "cache" / "segments"
    whole = choose_speakers(segmenting.read_whole(source), args.speakers)
    shortest, longest = args.piece_seconds
    cutting = Cutting(shortest, longest, args.padding)
    pieces = segmenting.cut_recordings(whole, cutting, cache, args.num_workers)
    saved, sounds = transcripts_file(cache, args.asr, args.language), {one.digest: one.decode for one in pieces}
    seconds = sum(one.span.seconds for one in pieces)
    new = len(sounds.keys() - read_transcripts(saved).keys())
    what = f"{counted(len(pieces), 'piece')} between pauses, {seconds / 60:.1f} min"
    print(f"{what}; {new:,} to transcribe by {args.asr}")
    if args.dry_run:
        return Recordings(whole.kind, [], whole.rejected), []
    known = transcribe(sounds, lambda: open_recogniser(args), saved)
    if unknown := corrections.keys() - sounds.keys():
        what = f"{counted(len(unknown), 'correction')} of {len(corrections):,} for no piece of these recordings"
        print(f"warning: --corrections: {what}, as they are cut now", file=sys.stderr)
    readings = segmenting.read_pieces(pieces, known, corrections, args.min_confidence)
    return segmenting.as_recordings(whole, readings), readings


def write_corrections_page(args: argparse.Namespace, readings: list["Reading"], folder: Path) -> None:
    from speech.corrections import PAGE, write_page  # here: torch, which it needs, takes seconds

    facts = {"name": args.output_dir.resolve().name, "recogniser": args.asr, "language": args.language}
    write_page(folder / PAGE, readings, args.page_pieces, facts)


def limits_of(args: argparse.Namespace) -> Limits:
    return Limits(
        seconds=tuple(args.seconds),
        pace=tuple(args.characters_per_second),
        deviations=args.max_deviation,
        clipped=args.max_clipping,
        snr=args.min_snr,
        silent=args.max_silence,
        speech=args.min_speech,
        rate=0 if args.upsample else args.sampling_rate,
    )


@dataclass(frozen=True)
class Corpus:
    """What a dataset is made of, before any sound is read."""

    found: Recordings
    recordings: list[Recording]  # those that have a text
    texts: dict[str, str]  # {id: what a model reads}, in phonemes with --phonemes
    rejected: list[Rejected]  # the others
    kept: dict[str, str]  # {id: split} of those that have a place already


@dataclass(frozen=True)
class Sounds:
    """The sounds as they are processed: the folder in which they lie, and the facts by id."""

    handling: Handling
    work: Path
    facts: dict[str, SoundFacts]


@dataclass(frozen=True)
class Chosen:
    """What the dataset has, what it leaves out, and what was heard in it, with --max_cer."""

    examples: list[Example]
    rejected: list[Rejected]
    heard: dict[str, "Heard"]


def read_source(args: argparse.Namespace) -> Source:
    return Source(
        args.recordings,
        audio_column=args.audio_column,
        text_column=args.text_column,
        speaker_column=args.speaker_column,
        columns=tuple(args.columns or ()),
        config=args.dataset_config_name,
        split=args.dataset_split,
    )


def find_recordings(args: argparse.Namespace, source: Source) -> tuple[Recordings, list["Reading"]]:
    """The recordings of the source; with --segment the pieces of them, and what was read in those."""
    copy = fetch(source.name, args.output_dir.parent / "cache", source.flag)
    here = replace(source, name=str(copy))
    if args.segment:
        return segment_recordings(args, here)
    return choose_speakers(read_recordings(here), args.speakers), []


def describe_request(args: argparse.Namespace, found: Recordings, kept: dict[str, str]) -> existing.Request:
    options = cli.mask_secrets({key: value for key, value in vars(args).items() if key not in NOT_IN_RESULT})
    return existing.make_request(options, source_fingerprint(found), kept if args.keep_splits else None)


def prepare_texts(args: argparse.Namespace, found: Recordings, kept: dict[str, str]) -> Corpus:
    """The corpus of what was found; refused where nothing has a text, or with --strict where anything has none."""
    usable, texts, rejected = [], {}, list(found.rejected)
    for one in found.found:
        text = normalise(one.text, args.language) if one.text and args.normalise_text else one.text or ""
        if not one.text:
            rejected.append(reject_recording(one, "no text", "there is none beside it or in its row"))
        elif not any(map(str.isalpha, text)):
            rejected.append(reject_recording(one, "text without a letter", repr(one.text[:60])))
        else:
            usable.append(one)
            texts[one.id] = text
    if not usable:
        messages.refuse_all(f"--recordings {args.recordings}", "recording", rejected)
    if args.strict:
        messages.refuse_any(rejected, "duplicate")
    if args.phonemes:
        texts = dict(zip(texts, phonemes.phonemise(list(texts.values()), args.language)))
    return Corpus(found, usable, texts, rejected, kept)


def process_sounds(args: argparse.Namespace, corpus: Corpus) -> Sounds:
    """Decode, measure and write the sounds; what a killed process had done is taken as it is."""
    loudness = args.loudness if args.level_loudness else None
    handling = Handling(args.sampling_rate, f".{args.format}", args.trim_silence, loudness)
    work, recordings = work_folder(args.output_dir, handling), corpus.recordings
    jobs = (Job(one.id, sound_of(corpus.found, one), one.span) for one in recordings)
    listed = process_recordings(jobs, len(recordings), handling, work, args.num_workers)
    return Sounds(handling, work, dict(zip([one.id for one in recordings], listed, strict=True)))


def select_good(
    recordings: list[Recording], texts: dict[str, str], facts: dict[str, SoundFacts], limits: Limits
) -> tuple[list[Recording], list[Rejected]]:
    """The recordings without a fault, first of their own, then beside the others, and those that have one."""
    faults = {
        one.id: fault
        for one in recordings
        if (fault := facts[one.id].fault or find_fault(facts[one.id].measures, texts[one.id], limits))
    }
    sound = [one for one in recordings if one.id not in faults]
    faults |= find_contradictions([take_of(one, texts, facts) for one in sound])
    sound = [one for one in sound if one.id not in faults]
    paces = {one.id: facts[one.id].measures.pace(texts[one.id]) for one in sound}
    faults |= find_outliers(paces, {one.id: one.speaker for one in sound}, limits.deviations)
    rejected = [reject_recording(one, *faults[one.id]) for one in recordings if one.id in faults]
    return [one for one in sound if one.id not in faults], rejected


def take_of(one: Recording, texts: dict[str, str], facts: dict[str, SoundFacts]) -> Take:
    return Take(one.id, texts[one.id], one.speaker, facts[one.id].digest, facts[one.id].measures)


def drop_duplicates(
    good: list[Recording], texts: dict[str, str], facts: dict[str, SoundFacts], kept: dict[str, str]
) -> tuple[list[Recording], list[Rejected]]:
    """One of each group of the same takes, an old one if there is any, and the others."""
    old_first = sorted(good, key=lambda one: one.id not in kept)
    twins = find_duplicates([take_of(one, texts, facts) for one in old_first])
    rejected = [
        reject_recording(one, "duplicate", f"of {twins[one.id]}; --no-drop_duplicates keeps both")
        for one in good
        if one.id in twins
    ]
    return [one for one in good if one.id not in twins], rejected


def drop_mismatches(
    args: argparse.Namespace, recognise: "Recogniser", good: list[Recording], sounds: Sounds
) -> tuple[list[Recording], list[Rejected], dict[str, "Heard"]]:
    """The recordings whose text is heard, those with more than --max_cer of it heard otherwise, and what is heard."""
    from speech.transcripts import compare_text, find_mismatches, transcribe, transcripts_file

    facts = sounds.facts
    files = {facts[one.id].sha256: sound_file(sounds.work, one.id, sounds.handling) for one in good}
    decoders = {digest: partial(decode_sound, file) for digest, file in files.items()}
    saved = transcripts_file(args.output_dir.parent / "cache", args.asr, args.language)
    said = transcribe(decoders, lambda: recognise, saved)
    heard = {one.id: compare_text(one.text or "", said[facts[one.id].sha256].text, args.language) for one in good}
    faults = find_mismatches(heard, args.max_cer)
    rejected = [reject_recording(one, *faults[one.id]) for one in good if one.id in faults]
    return [one for one in good if one.id not in faults], rejected, heard


def place_recordings(args: argparse.Namespace, recordings: list[Recording], corpus: Corpus) -> Placed:
    values = {one.id: column_of(one, args.disjoint) for one in recordings}
    groups = group_recordings({one.id: corpus.texts[one.id] for one in recordings}, values, args.disjoint)
    return place_groups(groups, corpus.kept, dict(zip(SPLITS, args.split_ratio)), args.seed)


def column_of(one: Recording, column: str | None) -> str | None:
    return one.attributes.get(column) if column else None


def choose_examples(args: argparse.Namespace, corpus: Corpus, sounds: Sounds, recognise: "Recogniser | None") -> Chosen:
    """The good recordings in their splits; refused where there is none, or with --strict where any is left out."""
    texts, facts, heard = corpus.texts, sounds.facts, dict[str, "Heard"]()
    good, bad = select_good(corpus.recordings, texts, facts, limits_of(args))
    if args.drop_duplicates:
        good, twins = drop_duplicates(good, texts, facts, corpus.kept)
        bad += twins
    if recognise:
        good, mismatched, heard = drop_mismatches(args, recognise, good, sounds)
        bad += mismatched
    placed = place_recordings(args, good, corpus)
    bad += [reject_recording(one, "in two splits", placed.apart[one.id]) for one in good if one.id in placed.apart]
    rejected = corpus.rejected + bad
    if args.strict:
        messages.refuse_any(rejected, "duplicate")
    if not placed.splits:
        messages.refuse_all(f"--recordings {args.recordings}", "recording", rejected)
    kept = [one for one in good if one.id in placed.splits]
    examples = [Example(one, texts[one.id], facts[one.id], placed.splits[one.id]) for one in kept]
    return Chosen(examples, rejected, heard)


def write_dataset(folder: Path, corpus: Corpus, sounds: Sounds, chosen: Chosen, request: existing.Request) -> list[str]:
    """Write the dataset and its report, whose findings are returned."""
    texts, facts = corpus.texts, sounds.facts
    sums = writing.write_splits(folder, chosen.examples, sounds.work, sounds.handling)
    splits = {one.recording.id: one.split for one in chosen.examples}
    write_json(folder / "splits.json", dict(sorted((corpus.kept | splits).items())))
    rows = report.measure_rows(corpus.recordings, texts, facts, chosen.heard)
    write_lines(folder / "measures.jsonl", rows)
    findings = report.findings_lines(chosen.examples, chosen.rejected)
    write_text(folder / "report.txt", "\n".join([*report.source_lines(corpus.found), "", *findings]) + "\n")
    measured = {one.id: m for one in corpus.recordings if (m := facts[one.id].measures)}
    shown = {name: report.values_of(m, texts[name]) for name, m in measured.items()}
    report.draw_measures(folder / "figures/measures.png", shown, splits)
    metadata = writing.describe(chosen.examples, chosen.rejected, sums, corpus.found, vars(request))
    writing.write_description(folder, metadata, chosen.examples, sums)
    return findings


def warn_of_few(args: argparse.Namespace, counts: dict[str, int]) -> None:
    """Warn of a split without recordings, and of too few to train with."""
    by = f"--disjoint {args.disjoint}" if args.disjoint else ""
    messages.warn_of_empty_splits(args.split_ratio, counts, "recording", by)
    if 0 < counts["train"] < FEW:
        what = f"train gets {counted(counts['train'], 'recording')}: a voice takes {FEW} or more to adapt"
        print(f"warning: {what}, and thousands to train from nothing", file=sys.stderr)


def print_plan(args: argparse.Namespace, corpus: Corpus) -> None:
    """For --dry_run: the first texts, the characters, and what would be written."""
    texts = corpus.texts
    for one in corpus.recordings[:3]:
        print(f"{one.id}: {one.text}" + (f" → {texts[one.id]}" if texts[one.id] != one.text else ""))
    print(f"characters: {''.join(sorted(report.count_characters(list(texts.values()))))}")
    counts = Counter(place_recordings(args, corpus.recordings, corpus).splits.values())
    sizes = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
    if args.max_cer is not None:
        print(f"would compare each text with what {args.asr} hears")
    print(f"would write {args.output_dir}: {sizes}, if every recording is good")
    warn_of_few(args, counts)


def main(args: argparse.Namespace) -> int:
    if args.verify:
        return messages.report_verification(args.verify, "recording", *verify_dataset(args.verify, args.num_workers))
    cli.show_settings(args)
    source = read_source(args)
    existing.check_output(args.output_dir, (source.flag, source.name), args.overwrite)
    if args.normalise_text:
        find_language(args.language)

    found, readings = find_recordings(args, source)
    if args.segment and args.dry_run:
        return 0
    print("\n".join(report.source_lines(found)))
    check_column("--disjoint", args.disjoint, found)
    kept = existing.read_kept_splits(args.output_dir, args.keep_splits, args.new_splits)
    request = describe_request(args, found, kept)
    if existing.is_up_to_date(args.output_dir, request, args.new_splits, args.overwrite, "recordings"):
        return 0
    corpus = prepare_texts(args, found, kept)
    print(messages.describe_work(corpus.recordings, "recording", corpus.rejected, kept))
    if args.dry_run:
        print_plan(args, corpus)
        return 0

    recognise = open_recogniser(args) if args.max_cer is not None else None
    with replaced_folder(args.output_dir) as folder:
        sounds = process_sounds(args, corpus)
        chosen = choose_examples(args, corpus, sounds, recognise)
        if args.segment and args.page_pieces:
            write_corrections_page(args, readings, folder)
        findings = write_dataset(folder, corpus, sounds, chosen, request)
    remove_work(sounds.work)
    print("\n" + "\n".join(findings))
    warn_of_few(args, Counter(one.split for one in chosen.examples))
    print(f"written: {args.output_dir}")
    return 0


if __name__ == "__main__":
    arguments = parse_args()
    cli.run(main, arguments)
