"""Speak texts with a voice: one seed each, every sound checked, long texts sentence by sentence.

Started again after an interruption, it makes the missing sounds. The complete set is a folder of audio with its texts.

    python synthesize.py --pretrained_model_name_or_path demo-voice --text "Bom dia! São 10 horas."
    accelerate launch --config_file accelerate_configs/a100.yaml synthesize.py --text_file texts.jsonl --format flac
    python synthesize.py --pretrained_model_name_or_path runs/voice --export_onnx voice.onnx
    python synthesize.py --pretrained_model_name_or_path runs/clones --reference me.wav --text "Bom dia!"
"""

import argparse
import os
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils import cli, devices, runs, sync  # first: it says in one line which package is missing

# isort: split
import numpy as np
from accelerate import Accelerator

from generation import set_folder
from generation.finish import merge_parts, read_sessions
from generation.set_folder import Job, Session, Share, record_item, record_session
from speech import texts
from speech.audio import SYNTHETIC, encode_sound
from speech.normalise import LANGUAGES
from speech.onnx_voice import export_onnx
from speech.references import add_reference_flag, encode_references, encoder_of
from speech.sentences import Piece
from speech.sound_checks import Limits
from speech.speaker import encoder_key
from speech.streaming import Spoken, join_pieces, piece_seeds, speak_piece
from speech.synthesis import Speaking, add_speaking_flags, fold_weight_norm, read_speaking
from speech.texts import PAUSES, Line
from speech.voices import DEFAULT_VOICE, Voice, describe_unknown, load_voice, local_name
from utils.cli import Range, UserError, counted, name_some
from utils.console import Bar, show_progress
from utils.dataset import SetKind
from utils.files import file_sha256, locked_folder, read_written, replaced_file, write_json, write_manifest, write_text
from utils.metrics_log import duration
from utils.outputs import check_apart, check_movable, discard_folder
from utils.parallel import available_cores, in_main_process
from utils.storage import fetch
from utils.sync import Sync

# Neither where the result goes nor how the work is divided changes a sound; of texts, a checksum is compared.
FREE = set("text text_file output_dir overwrite num_workers shard max_retries export_onnx sync_to".split())

# Which of a text's sounds, and so does nothing for a file of --export_onnx.
OF_SPEECH = "speaker speaking_rate noise_scale noise_scale_duration pitch energy seed language sentence_pause".split()


def make_parser() -> cli.Parser:
    parser = cli.make_parser(__doc__)
    add_voice_flags(parser)
    add_text_flags(parser)
    add_check_flags(parser)
    add_output_flags(parser)
    return parser


def add_voice_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("voice")
    group.add_argument(
        "--pretrained_model_name_or_path",
        default=DEFAULT_VOICE,
        metavar="HUB_ID|DIR|demo-voice",
        help="a VITS or MMS voice: a hub id, a folder such as a run's, or demo-voice; the default's licence, "
        "CC BY-NC 4.0, allows no commercial use (default: %(default)s)",
    )
    group.add_argument("--speaker", default="", metavar="NAME", help="of a voice of several; default: its first")
    add_reference_flag(group)
    add_speaking_flags(group)
    group.add_argument("--seed", type=texts.SEEDS, default=0, help="of the first text; the next has the next")


def add_text_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("text (one of the first two)")
    group.add_argument("--text", help="what to speak")
    group.add_argument(
        "--text_file",
        type=cli.read_place,
        metavar="FILE.txt|.jsonl|.csv|s3://…",
        help="one text per line, or rows with text and, where wanted, id, speaker, seed",
    )
    group.add_argument(
        "--language",
        choices=[*LANGUAGES, "none"],
        help="whose rules read numbers and abbreviations; none: as it is written; default: the voice's",
    )
    pause = PAUSES["sentence"]
    group.add_argument("--sentence_pause", type=Range(0, 10), default=pause, help="seconds between two sentences")


def add_check_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("checks")
    group.add_argument("--max_retries", type=Range(0, 1000, int), default=3, help="further seeds for a rejected sound")
    limits = Limits()
    group.add_argument(
        "--min_characters_per_second",
        type=Range(0, 1000, above=True),
        default=limits.slowest,
        help="slower sounds are rejected, as too long for their text",
    )
    group.add_argument(
        "--max_characters_per_second",
        type=Range(0, 1000, above=True),
        default=limits.fastest,
        help="faster sounds are rejected, as too short for their text",
    )


def add_output_flags(parser: cli.Parser) -> None:
    group = parser.add_argument_group("performance")
    group.add_argument(
        "--num_workers", type=cli.workers, default=available_cores(), help="on a CPU, sentences spoken at once"
    )

    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, metavar="DIR", help="default: data/spoken/ and the voice's name")
    group.add_argument("--format", choices=["wav", "flac", "mp3"], default="wav", help="of the sound files")
    group.add_argument("--overwrite", action="store_true", help="begin anew; what no script wrote is moved aside")
    set_folder.add_shard_flag(group)
    group.add_argument(
        "--export_onnx", type=Path, metavar="FILE.onnx", help="write the voice for onnxruntime; needs no text"
    )
    sync.add_sync_flag(group)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser()
    args = cli.parse_args(parser, argv)
    set_folder.check_shard(parser, args.shard)
    if args.export_onnx and args.export_onnx.suffix != ".onnx":
        parser.error(f"--export_onnx {args.export_onnx}: expected a name that ends in .onnx")
    if args.export_onnx and (args.style_reference or args.style_token):
        parser.error("--export_onnx: the file speaks without a style; leave --style_reference and --style_token out")
    if args.min_characters_per_second >= args.max_characters_per_second:
        parser.error(
            f"--min_characters_per_second {args.min_characters_per_second:g}: expected less than "
            f"--max_characters_per_second {args.max_characters_per_second:g}"
        )
    if args.reference and args.speaker:
        parser.error(f"--reference and --speaker {args.speaker} both say who speaks; give one of them")
    if args.reference and args.export_onnx:
        parser.error("--reference: a file of --export_onnx speaks as the voice's own speakers alone; leave one out")
    speaks = ("a text, as the file of --export_onnx holds none of it", not args.export_onnx or has_text(args))
    cli.report_ignored(parser, args, dict.fromkeys(OF_SPEECH, speaks))
    args.output_dir = args.output_dir or Path("data/spoken") / Path(args.pretrained_model_name_or_path).name
    return args


def has_text(args: argparse.Namespace) -> bool:
    return args.text is not None or args.text_file is not None


@dataclass(frozen=True)
class Plan:
    """What to speak, and with which voice."""

    voice: Voice
    how: Speaking
    lines: list[Line]
    pieces: list[list[Piece]]  # of each line
    language: str
    share: Share
    kind: SetKind


def is_whole(path: Path, record: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == record.get("bytes")


def make_plan(args: argparse.Namespace, voice: Voice, share: Share) -> Plan:
    """Cut the texts into pieces, and refuse what the voice can't say before any work."""
    place = args.text_file
    file = fetch(place, args.output_dir.parent / "cache", texts.FLAG) if place else None
    lines = texts.read_lines(args.text, file)
    if not voice.speakers:  # then those of a list, such as a dataset's, are all spoken by the one there is
        lines = [replace(one, speaker="") for one in lines]
    how = read_speaking(args, voice, args.speaker)
    if args.reference:
        how = replace(how, vector=encode_references(args.reference, voice))
    for one in lines:
        if one.speaker not in ("", *voice.speakers):
            who = f"--text_file {place}: text {one.id}: `speaker` is {one.speaker}"
            raise UserError(
                f"{who}, the voice has {name_some(voice.speakers)}; correct the rows, or leave it out of them"
            )
    language = args.language or texts.language_of(voice)
    pieces = texts.read_pieces(voice, [one.text for one in lines], language)
    if bad := [one for one, cut in zip(lines, pieces) if not cut]:
        name = f"--text_file {place}: text {bad[0].id}" if place else "--text"
        more = f", and {len(bad) - 1:,} others" if len(bad) > 1 else ""
        raise UserError(
            f"{name} ({bad[0].text[:60]!r}){more}: no character of it is in the voice's alphabet; give other text"
        )
    kind = SetKind("synthesize", "utterance", "text", "audio", f".{args.format}", is_whole)
    return Plan(voice, how, lines, pieces, language, share, kind)


def describe_settings(args: argparse.Namespace, plan: Plan) -> dict[str, Any]:
    """All settings that the sounds depend on, with checksums of texts and voice."""
    settings = cli.settings_of(args) | {"language": plan.language}
    if args.reference:
        settings["reference_sha256"] = [file_sha256(path)[:16] for path in args.reference]
        settings["speaker_encoder_key"] = encoder_key(encoder_of(plan.voice.model.config))
    if args.style_reference:
        settings |= {"style_reference_sha256": file_sha256(args.style_reference)[:16]}
    settings |= {plan.kind.count: len(plan.lines), plan.kind.digest: set_folder.items_digest(plan.lines)}
    return settings | {"pretrained_model_name_or_path_sha256": weights_sum(args.pretrained_model_name_or_path)}


def weights_sum(name: str) -> str:
    """A checksum of the voice's weights; empty for one of the hub, which its name stands for."""
    file = Path(local_name(name)) / "model.safetensors"
    return file_sha256(file)[:16] if file.is_file() else ""


def show_plan(args: argparse.Namespace, plan: Plan, device: str) -> None:
    cli.show_settings(args)
    model = plan.voice.model
    speakers = f"; speakers: {name_some(plan.voice.speakers)}" if plan.voice.speakers else ""
    print(f"device: {device}; the voice speaks at {model.config.sampling_rate:,} Hz{speakers}")
    print(texts.describe_lines(plan.lines, sum(map(len, plan.pieces)), plan.language))
    if unknown := describe_unknown(plan.voice, (one.text for cut in plan.pieces for one in cut)):
        print(unknown)
    if plan.share.of > 1:
        mine = len(plan.share.indices(len(plan.lines)))
        print(f"this process is {plan.share.number} of {plan.share.of} and speaks {counted(mine, 'text')}")


def seed_of(args: argparse.Namespace, line: Line, job: Job) -> int:
    first, index = (args.seed, job.index) if line.seed is None else (line.seed, 0)
    return devices.nth_seed(first, index, job.retry)


def start_job(args: argparse.Namespace, plan: Plan, job: Job, pool: ThreadPoolExecutor) -> list[Future[Spoken]]:
    line, cut = plan.lines[job.index], plan.pieces[job.index]
    who = line.speaker or args.speaker
    how = replace(plan.how, speaker=who, vector=() if who else plan.how.vector)
    limits = Limits(args.min_characters_per_second, args.max_characters_per_second)
    seeds = piece_seeds(seed_of(args, line, job), len(cut))
    return [pool.submit(speak_piece, plan.voice, one.text, seed, how, limits) for one, seed in zip(cut, seeds)]


def name_speaker(args: argparse.Namespace, plan: Plan, line: Line) -> str:
    """Who speaks a text; "" for who is heard in --reference."""
    return line.speaker or args.speaker or ("" if plan.how.vector else (plan.voice.speakers or [""])[0])


def save_sound(args: argparse.Namespace, plan: Plan, job: Job, spoken: list[Spoken]) -> dict[str, Any]:
    """Write a text's sound to audio/ or rejected/; its line in metadata.jsonl, with a `reason` where it is rejected."""
    line, cut, rate = plan.lines[job.index], plan.pieces[job.index], plan.voice.model.config.sampling_rate
    samples = join_pieces(cut, spoken, rate, args.sentence_pause / args.speaking_rate)
    seed, reason = seed_of(args, line, job), next((one.fault for one in spoken if one.fault), "")
    name = f"{job.index:06d}-{seed}.{args.format}" if reason else plan.kind.name(job.index)
    content = encode_sound(np.nan_to_num(samples), rate, f".{args.format}", SYNTHETIC)
    with replaced_file(args.output_dir / ("rejected" if reason else "") / name) as file:
        file.write(content)
    record = {
        "file_name": name,
        "id": line.id,
        "text": line.text,
        "spoken": " ".join(one.text for one in cut),
        "speaker": name_speaker(args, plan, line),
        "seed": seed,
        "seconds": round(len(samples) / rate, 3),
        "bytes": len(content),
    }
    faulty = [piece.text for piece, one in zip(cut, spoken) if one.fault]
    return record | ({"reason": reason, "detail": faulty[0][:200], "precision": "float32"} if reason else {})


def make_sounds(
    args: argparse.Namespace, plan: Plan, todo: deque[Job], received: list[int], bar: Bar
) -> dict[int, str]:
    """Speak the texts, several pieces at once on a CPU; {index: reason} of those without a good seed.

    Each piece is computed by one thread, so that their number changes no bit of it.
    """
    on_cpu = plan.voice.model.device.type == "cpu"
    workers = args.num_workers if on_cpu else 1
    session = Session(args.output_dir, plan.share)
    waiting: deque[tuple[Job, list[Future[Spoken]]]] = deque()
    failed: dict[int, str] = {}
    with ThreadPoolExecutor(workers, initializer=devices.use_torch_threads, initargs=(1,)) as pool:
        while (waiting or todo) and not received:
            while todo and sum(not one.done() for _, pieces in waiting for one in pieces) < 2 * workers:
                job = todo.popleft()
                waiting.append((job, start_job(args, plan, job, pool)))
            job, pieces = waiting.popleft()
            spoken = [one.result() for one in pieces if not received]  # of a long text, not all after a signal
            if len(spoken) < len(pieces):
                break
            record = save_sound(args, plan, job, spoken)
            session.amounts["speaking_seconds"] += sum(one.seconds for one in spoken)
            session.amounts["sound_seconds"] += record["seconds"]
            record_item(session, record)
            bar.update("reason" not in record)
            if "reason" in record and job.retry < args.max_retries:
                todo.appendleft(replace(job, retry=job.retry + 1))
            elif "reason" in record:
                failed[job.index] = record["reason"]
        pool.shutdown(cancel_futures=True)
    record_session(session)
    return failed


def make_missing(args: argparse.Namespace, plan: Plan, is_main: bool, received: list[int]) -> dict[int, str]:
    """Speak what is missing of this share; {index: reason} of the texts without a good seed."""
    mine = plan.share.indices(len(plan.lines))
    todo, failed = set_folder.find_missing(args.output_dir, plan.kind, mine, "float32", args.max_retries)
    if not todo:
        return failed
    with show_progress(len(mine), "texts", "speaking", len(mine) - len(todo), is_main) as bar:
        return failed | make_sounds(args, plan, todo, received, bar)


def finish_set(out: Path, plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    """Write what describes the complete set; returns its report. A real-time factor of 0.1 is ten times real time."""
    records = merge_parts(out)
    rejected = Counter(one["reason"] for one in merge_parts(out / "rejected"))
    write_text(out / "texts.txt", "".join(f"{' '.join(one.text.split())}\n" for one in plan.lines))
    sessions = read_sessions(out)
    names = ("seconds", "sound_seconds", "speaking_seconds")
    seconds, sound, speaking = (sum(one.get(name, 0.0) for one in sessions) for name in names)
    report = {
        "made": len(records),
        "rejected": dict(rejected.most_common()),
        "sound_seconds": round(sum(one["seconds"] for one in records), 3),
        "seconds": round(seconds, 2),  # of all processes together
        "real_time_factor": round(seconds / sound, 4) if sound else None,  # with rejected sounds, as all that was made
        "real_time_factor_of_one_thread": round(speaking / sound, 4) if sound else None,
        "sampling_rate": plan.voice.model.config.sampling_rate,
        "sessions": len(sessions),
        **facts,
    }
    write_json(out / "report.json", report)
    sums = {one["file_name"]: file_sha256(out / one["file_name"]) for one in records}
    write_manifest(out, sums, {*read_written(out, plan.kind.script), *sums})  # last of all: now the set is finished
    return report


def end_share(out: Path, plan: Plan, facts: dict[str, Any]) -> None:
    """Write what describes the set if it is complete; else say how many texts are missing."""
    if missing := len(plan.lines) - len(set_folder.done_indices(out, plan.kind)):
        print(f"{out}: this share is complete; other shares still have to speak {counted(missing, 'text')}")
    elif not set_folder.is_finished(out, plan.kind, len(plan.lines)):
        report = finish_set(out, plan, facts)
        factor = report["real_time_factor"]
        fast = f" in {duration(report['seconds'])}, {1 / factor:.3g} times real time" if factor else ""
        print(f"{out}: {counted(report['made'], 'utterance')}, {duration(report['sound_seconds'])} of sound{fast}")
        print(f"listen to {out / plan.kind.name(0)}")


def make_set(
    args: argparse.Namespace, plan: Plan, settings: dict[str, Any], accelerator: Accelerator, syncs: list[Sync]
) -> int:
    """Speak what is missing of this share, and write what describes the set once all is there; the exit code."""
    out, is_main = args.output_dir, accelerator.is_main_process
    lock = set_folder.enter_folder(out, plan.kind, settings, plan.lines, FREE, plan.share)
    if lock is None:
        if is_main:
            print(f"{out}: this set is finished; nothing to do")
        return 0
    for one in syncs:
        sync.start_sending(one)
    try:
        facts: dict[str, Any] = {"device": devices.describe_device(accelerator.device), "shares": plan.share.of}
        digest = settings[plan.kind.digest]
        runs.write_environment(out / "environment.json", facts["device"], "float32, always", texts=digest)
        received = runs.catch_signals("finishing the current sentences")
        failed = make_missing(args, plan, is_main, received)
    finally:
        os.close(lock)

    if received:
        saved = len(set_folder.done_indices(out, plan.kind))
        print(f"{out}: stopped; {saved:,} of {counted(len(plan.lines), 'text')} are spoken; the same command goes on")
        return 128 + received[0]
    if failed:
        some = ", ".join(f"{plan.lines[i].id} ({reason})" for i, reason in list(failed.items())[:3])
        raise UserError(
            f"{counted(len(failed), 'text')} rejected with each of {counted(args.max_retries + 1, 'seed')}: "
            f"{some}; listen to {out / 'rejected'}, and run the same command with a higher --max_retries"
        )
    for one in syncs:  # what other machines have made: whoever sends last, finds all
        sync.send_rest(one)
        sync.fetch_set(one, plan.kind, settings, FREE)
    with locked_folder(out):  # the process that comes last finds the set complete
        end_share(out, plan, facts)
    return 0


def start_over(folder: Path, kind: SetKind) -> None:
    """Remove what an earlier command wrote, unless another process is writing it."""
    place = folder.resolve()
    if place.is_dir() and any(place.iterdir()):
        check_movable(place)
        set_folder.refuse_busy(place)
        discard_folder(place, kind.script)


@sync.sent_after_fault()
def main(args: argparse.Namespace) -> int:
    name = args.pretrained_model_name_or_path
    given = {"text_file": args.text_file, "reference": args.reference, "style_reference": args.style_reference}
    check_apart(args.output_dir, given, {"pretrained_model_name_or_path": name})
    places = sync.find_place(args.sync_to, args.output_dir)
    accelerator, _ = devices.start_accelerator("no")
    device, is_main, out = accelerator.device, accelerator.is_main_process, args.output_dir
    voice = load_voice(name)
    fold_weight_norm(voice.model)
    if args.export_onnx and is_main and args.dry_run:
        print(f"{args.export_onnx}: to be written")
    elif args.export_onnx and is_main:
        export_onnx(args.export_onnx, voice)
        print(f"{args.export_onnx}: written; docs/speech.md shows how onnxruntime reads it")
    if args.export_onnx and not has_text(args):
        return 0
    voice.model.to(device)
    plan = make_plan(args, voice, set_folder.find_share(args.shard, accelerator))
    settings = describe_settings(args, plan)
    if is_main:
        show_plan(args, plan, devices.describe_device(device))
    if args.dry_run:
        return 0

    syncs: list[Sync] = []

    def fill() -> None:
        if args.overwrite:
            start_over(out, plan.kind)
        for one in places:
            syncs.append(set_folder.fill_folder(out, plan.kind, one, settings, FREE, args.shard))

    if places or args.overwrite:
        in_main_process(accelerator, fill)
    code = make_set(args, plan, settings, accelerator, syncs)
    if places:
        accelerator.wait_for_everyone()  # the main process sends what all of them make
    all_sent = sync.finish_all(syncs, sync.GRACE if code else sync.PATIENCE)
    return code or (0 if all_sent else 1)


if __name__ == "__main__":
    cli.run(main, parse_args())
