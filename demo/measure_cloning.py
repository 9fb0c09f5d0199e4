"""Does a voice sound like somebody whom it has only heard? The table of cloning in docs/voices.md.

    python demo/measure_cloning.py                                   # resumable: run it again after a stop
    python demo/measure_cloning.py --work_dir runs/measured_cloning --max_train_steps 1000

The embedded voice is trained with --speaker_encoder on 132 voices of espeak-ng. Then it speaks as twelve that neither
it nor the encoder has heard, each sentence by the recordings of the voice's others. Needs espeakng-loader.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli  # first: it says in one line which package is missing

# isort: split
import numpy as np

from demo import trials
from demo.pretrain_voice import PITCHES
from demo.voice_corpus import HEARD, JUDGED, NEVER_HEARD, choose_indices, plan_takes, write_recordings, write_takes
from evaluation.intervals import Estimate, jackknife, mean_interval
from evaluation.report.formatting import format_interval
from evaluation.spoken import ratio, read_parts
from evaluation.verification import verify_speakers
from speech.audio import read_sound, resample
from speech.convolutions import RATE
from speech.pitch import find_pitch
from speech.speaker import load_speaker_encoder

EACH = 10  # sentences of each voice to train on; no two voices say the same
TRAINING = """--pretrained_model_name_or_path demo-voice --speaker_encoder demo --held_out 0.02 --train_batch_size 8
--effective_batch_size 8 --learning_rate 7e-4 --lr_scheduler cosine --lr_warmup_steps 50 --adam_weight_decay 0.01
--discriminator_start 400 --validation_steps 500 --checkpointing_steps 100 --checkpoints_total_limit 2
--report_to none""".split()
SHARES = ("cer", "identified", "error_rate")
ROWS = {
    "own": "likeness of the voice's other recordings",
    "nearest": "likeness of the nearest other voice",
    "others": "likeness of the other voices, mean",
    "identified": "the right voice of the twelve is the nearest",
    "error_rate": "equal error rate against recordings",
    "pitch": "correlation of the voices' median pitch with the recordings'",
    "cer": "characters heard wrong",
    "mcd": "mel-cepstral distortion, dB",
    "f0_rmse": "pitch: error of its logarithm",
}
Table = dict[str, Estimate]  # of a kind of sound, by the names of ROWS


def write_heard(folder: Path) -> None:
    """Each variant that the encoder has heard, at three pitches, by sentences of its own."""
    speakers = [f"{variant}:{pitch}" for variant in HEARD for pitch in PITCHES]
    plans = [plan_takes([one], "train", choose_indices("train", 0, EACH, i)) for i, one in enumerate(speakers)]
    write_takes(folder, [take for plan in plans for take in plan])


def hear(rows: Sequence[dict[str, Any]], kind: str, folder: Path) -> list[np.ndarray]:
    sounds = [read_sound(folder / row["sounds"][kind]["file"], "--work_dir") for row in rows]
    return [resample(sound.samples, sound.rate, RATE) for sound in sounds]


def of_each_voice(speakers: np.ndarray, values: np.ndarray) -> Estimate:
    """The mean over voices of their means, with an interval for other voices."""
    return mean_interval([values[speakers == name].mean() for name in np.unique(speakers)])


def compare_voices(speakers: np.ndarray, vectors: np.ndarray, real: np.ndarray) -> Table:
    """The cosines of sounds and the mean recording of each voice, in which the same sentence is left out."""
    names = np.unique(speakers)
    keeps = (speakers == names[:, None])[None] & ~np.eye(len(speakers), dtype=bool)[:, None]
    centres = keeps.astype(np.float64) @ real  # (sounds, voices, size)
    scores = np.einsum("is,ivs->iv", vectors, centres / np.linalg.norm(centres, axis=2, keepdims=True))
    is_own = speakers[:, None] == names
    own, nearest = scores[is_own], np.where(is_own, -1, scores).max(1)
    values = {"own": own, "nearest": nearest, "identified": (own > nearest).astype(float)}
    values["others"] = np.where(is_own, 0, scores).sum(1) / (len(names) - 1)
    return {name: of_each_voice(speakers, one) for name, one in values.items()}


def find_pitches(speakers: np.ndarray, sounds: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithm of each voice's median pitch."""
    found = [find_pitch(sound, RATE) for sound in sounds]
    voiced = [np.log(one.hertz[one.voiced]) for one in found]
    return np.array(
        [
            np.median(np.concatenate([voiced[i] for i in np.flatnonzero(speakers == name)]))
            for name in np.unique(speakers)
        ]
    )


def describe_kind(rows: Sequence[dict[str, Any]], kind: str, folder: Path) -> Table:
    """All figures of what was spoken (generated), or of the recordings (real)."""
    encode, speakers = load_speaker_encoder("demo", "cpu"), np.array([row["speaker"] for row in rows])
    recordings, sounds = hear(rows, "real", folder), hear(rows, kind, folder)
    real, vectors = encode(recordings), encode(sounds)
    table = compare_voices(speakers, vectors, real)
    table["error_rate"] = verify_speakers(speakers.tolist(), vectors, real)
    if kind != "real":
        pitches = [find_pitches(speakers, some) for some in (recordings, sounds)]
        table["pitch"] = jackknife(pitches, lambda one, other: float(np.corrcoef(one, other)[0, 1]))
    for name in ("cer", "mcd", "f0_rmse") if kind != "real" else ("cer",):
        parts = read_parts(rows, kind, name)
        known = ~np.isnan(parts).any(1)
        voices = [ratio(parts[(speakers == one) & known]) for one in np.unique(speakers)]
        table[name] = mean_interval(voices)
    return table


def say(found: Estimate | None, name: str) -> str:
    return "{} ({})".format(*format_interval(found, "%" if name in SHARES else "")) if found else ""


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.dry_run:
        return
    work = args.work_dir
    heard, unheard, voice = work / "heard", work / "never_heard", work / "voice"
    if not (heard / "metadata.jsonl").is_file():
        write_heard(heard)
    if not (unheard / "metadata.jsonl").is_file():
        write_recordings(unheard, NEVER_HEARD, "unseen", JUDGED[: args.num_sentences])
    before = trials.judge("demo-voice", unheard, work / "before")["utterances"]
    trials.train(voice, "--train_data_dir", heard, "--max_train_steps", args.max_train_steps, *TRAINING)
    after = trials.judge(voice, unheard, voice / "evaluation")["utterances"]
    tables = {
        "recordings": describe_kind(after, "real", voice / "evaluation"),
        "clones": describe_kind(after, "generated", voice / "evaluation"),
        "the embedded voice (clara)": describe_kind(before, "generated", work / "before"),
    }
    rows = [[title, *(say(table.get(name), name) for table in tables.values())] for name, title in ROWS.items()]
    trials.show(rows, ["", *tables])


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    steps, count = cli.Range(1, 1_000_000, int), cli.Range(3, len(JUDGED), int)
    parser.add_argument("--max_train_steps", type=steps, default=1000, help="of 8 utterances")
    parser.add_argument("--num_sentences", type=count, default=10, help="unseen ones, of each voice")
    parser.add_argument("--work_dir", type=Path, default=Path("runs/measured_cloning"), help="all that is made")
    cli.run(main, cli.parse_args(parser))
