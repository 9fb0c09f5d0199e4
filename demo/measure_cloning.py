"""Does a voice sound like somebody whom it has only heard? The table of cloning in docs/voices.md.

    python demo/measure_cloning.py                                   # resumable: run it again after a stop
    python demo/measure_cloning.py --work_dir runs/measured_cloning --judges resemblyzer/pretrained.pt

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
# Without discriminators, which would double the time: the distance of spectrograms too teaches whose voice it is.
TRAINING = """--speaker_encoder demo --max_train_steps 10000 --train_batch_size 8 --effective_batch_size 8
--learning_rate 8e-4 --lr_scheduler cosine --lr_warmup_steps 100 --adam_weight_decay 0.01 --segment_frames 16
--discriminator_start 10000 --held_out 0.02 --validation_steps 1000 --checkpointing_steps 500
--checkpoints_total_limit 2 --report_to none"""
LIKENESS = {  # by each encoder that judges
    "own": "likeness of the voice's other recordings",
    "nearest": "likeness of the nearest other voice",
    "others": "likeness of the other voices, mean",
    "identified": "the right voice is the nearest",
    "error_rate": "equal error rate against recordings",
}
SHARES = ("cer", "identified", "error_rate")
REST = {
    "pitch": "correlation of the voices' median pitch with the recordings'",
    "cer": "characters heard wrong",
    "mcd": "mel-cepstral distortion, dB",
    "f0_rmse": "pitch: error of its logarithm",
}
Table = dict[str, Estimate]  # of a kind of sound, by the names of LIKENESS or REST


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
    found = [find_pitch(sound, RATE) for sound in sounds]  # NaN where nothing is voiced
    voiced = [np.log(one.hertz[one.voiced]) for one in found]
    return np.array(
        [
            np.median(np.concatenate([voiced[i] for i in np.flatnonzero(speakers == name)]))
            for name in np.unique(speakers)
        ]
    )


def judge_likeness(rows: Sequence[dict[str, Any]], kind: str, folder: Path, encoder: str) -> Table:
    """How near what was spoken (generated), or the recordings (real), are to recordings of each voice."""
    encode, speakers = load_speaker_encoder(encoder, "cpu"), [row["speaker"] for row in rows]
    real, vectors = (encode(hear(rows, one, folder)) for one in ("real", kind))
    rate = verify_speakers(speakers, vectors, real)
    return compare_voices(np.array(speakers), vectors, real) | {"error_rate": rate}


def judge_rest(rows: Sequence[dict[str, Any]], kind: str, folder: Path) -> Table:
    """What no speaker encoder says: words, sound and pitch; of recordings themselves the words alone."""
    speakers, table = np.array([row["speaker"] for row in rows]), {}
    if kind != "real":
        pitches = np.array([find_pitches(speakers, hear(rows, one, folder)) for one in ("real", kind)])
        voiced = pitches[:, np.isfinite(pitches).all(0)]
        table["pitch"] = jackknife(list(voiced), lambda one, other: float(np.corrcoef(one, other)[0, 1]))
    for name in ("cer", "mcd", "f0_rmse") if kind != "real" else ("cer",):
        parts = read_parts(rows, kind, name)
        known = ~np.isnan(parts).any(1)
        table[name] = mean_interval([ratio(parts[(speakers == one) & known]) for one in np.unique(speakers)])
    return table


def say(found: Estimate | None, name: str) -> str:
    if not found:
        return ""
    if name in SHARES:
        found = Estimate(*np.clip(found, 0, 1).tolist())
    return "{} ({})".format(*format_interval(found, "%" if name in SHARES else ""))


def describe(tables: Sequence[Table], names: dict[str, str], whose: str = "") -> list[list[str]]:
    return [[title + whose, *(say(table.get(name), name) for table in tables)] for name, title in names.items()]


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
    given = "--pretrained_model_name_or_path", "demo-voice", "--train_data_dir", heard
    trials.train(voice, *given, *TRAINING.split())
    after = trials.judge(voice, unheard, voice / "evaluation")["utterances"]
    kinds = {
        "recordings": (after, "real", voice / "evaluation"),
        "clones": (after, "generated", voice / "evaluation"),
        "the embedded voice (clara)": (before, "generated", work / "before"),
    }
    rows = []
    for encoder in ("demo", *args.judges):
        likeness = [judge_likeness(*kind, encoder) for kind in kinds.values()]
        rows += describe(likeness, LIKENESS, f", by {Path(encoder).name}")
    trials.show(rows + describe([judge_rest(*kind) for kind in kinds.values()], REST), ["", *kinds])


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    count = cli.Range(3, len(JUDGED), int)
    parser.add_argument("--num_sentences", type=count, default=5, help="unseen ones, of each voice")
    judges = "further speaker encoders that judge, each as train_tts.py --speaker_encoder takes it"
    parser.add_argument("--judges", nargs="+", default=[], metavar="ENCODER", help=judges)
    parser.add_argument("--work_dir", type=Path, default=Path("runs/measured_cloning"), help="all that is made")
    cli.run(main, cli.parse_args(parser))
