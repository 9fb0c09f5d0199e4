"""The corpus of the embedded voice: own Portuguese sentences, spoken by voices of espeak-ng.

    python demo/voice_corpus.py --write                     # draw the sentences anew, and what lies in demo/voice
    python demo/voice_corpus.py --speaker clara --count 20 --output_dir /tmp/clara   # some recordings and their texts
    python demo/voice_corpus.py --speaker never_heard f1:75 --first 100 --apart --vary rate range --output_dir /tmp/many

demo/voice/corpus has the sentences with espeak-ng's phonemes, and the recordings of one held-back voice with the true
timings of its phonemes; those need no espeak-ng to be read.
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, files

# isort: split
import soundfile

from demo.espeak import RATE, Phoneme, Speaker, Speech, phonemes_of, say

CORPUS = Path(__file__).resolve().parent / "voice" / "corpus"
HELD_BACK = CORPUS / "held_back"
SEED, TRAIN, UNSEEN = 18, 4000, 300
# Of the unseen sentences, the first 160 chose settings of the voice, 80 to 119 how it speaks; the rest judge it.
CALIBRATION, JUDGED = range(80, 120), range(160, UNSEEN)
ADAPT, TEST = range(60), JUDGED[-40:]  # recordings of the held-back voice: of training sentences, of unseen ones

# The embedded voice learns the first two. Nothing that is trained here hears the others; `elisa` is in demo/voice.
TRAINED = {"clara": Speaker("f3", 160, 50), "davi": Speaker("m3", 160, 50)}
KEPT_BACK = {"elisa": Speaker("f2", 160, 50), "heitor": Speaker("m1", 160, 50)}
SPEAKERS = TRAINED | KEPT_BACK

# Variants that recogniser and speaker encoder hear, besides those of the embedded voice; some that they never hear.
HEARD = """f1 f4 f5 m2 m4 m5 m6 m7 Alex Andy Annie Alicia Denis Gene2 Henrique Lee Mario Michael Mike Reed Storm adam
anika antonio belinda benjamin david ed edward grandma iven3 klatt4 linda marcelo michel pablo paul pedro quincy robert
shelby steph steph2 travis""".split()
NEVER_HEARD = "f2 m1 m8 Andrea Diogo Hugo aunty boris miguel sandro steph3 victor".split()
GROUPS = {"heard": HEARD, "never_heard": NEVER_HEARD, "trained": list(TRAINED)}
# Whole numbers that an utterance's own rate, pitch or range is drawn from; the last two are settings from 0 to 100.
DRAWN = {"rate": (125, 200), "pitch": (20, 80), "range": (10, 90)}


class Sentence(NamedTuple):
    text: str
    phonemes: str  # IPA


def read_sentences(split: str) -> list[Sentence]:
    """The sentences of `train` or of `unseen`, each of which has a word that no sentence of `train` has."""
    lines = (CORPUS / f"{split}.tsv").read_text("utf-8").splitlines()
    return [Sentence(*line.split("\t")) for line in lines]


def speak_sentences(speaker: str, indices: Iterable[int], split: str = "train") -> list[Speech]:
    """Sentences of a split in the voice of a speaker, with the true timings of its phonemes. Needs espeak-ng.

    espeak-ng keeps a state of its own between sentences: the same one has a few samples more or less another time.
    """
    sentences = read_sentences(split)
    return [say(sentences[index].text, SPEAKERS[speaker]) for index in indices]


def read_timings(split: str) -> dict[str, list[Phoneme]]:
    """The phonemes of each recording of the held-back voice, by its id."""
    timings = json.loads((HELD_BACK / split / "timings.json").read_text("utf-8"))
    return {name: [Phoneme(*phoneme) for phoneme in phonemes] for name, phonemes in timings.items()}


class Take(NamedTuple):
    """One recording: who speaks which sentence how, and what metadata.jsonl says of it besides."""

    speaker: str
    voice: Speaker
    split: str
    index: int
    columns: dict[str, int] = {}


def find_speaker(name: str) -> Speaker:
    """Of a name such as `clara`, a variant of espeak-ng such as `f1`, or a variant at a pitch of its own, `f1:75`."""
    variant, _, pitch = name.partition(":")
    known = SPEAKERS.get(name)
    if known:
        return known
    if variant not in (*HEARD, *NEVER_HEARD) or not (pitch or "50").isdecimal() or int(pitch or 50) > 100:
        raise cli.UserError(f"--speaker {name}: expected {', '.join([*GROUPS, *SPEAKERS])}, a variant, or f1:75")
    return Speaker(variant, 160, int(pitch or 50))


def plan_takes(
    speakers: Iterable[str], split: str, indices: Sequence[int], vary: Iterable[str] = (), seed: int = 0
) -> Iterator[Take]:
    """Each sentence in each voice; what is to `vary` (see DRAWN) is drawn anew for each recording, by its own name.

    So a recording is the same whatever else is recorded.
    """
    for speaker, index in itertools.product(speakers, indices):
        drawn = {what: random.Random(f"{seed} {speaker} {split} {index} {what}").randint(*DRAWN[what]) for what in vary}
        yield Take(speaker, replace(find_speaker(speaker), **drawn), split, index, drawn)


def write_recordings(
    folder: Path, speakers: Iterable[str], split: str, indices: Sequence[int], suffix: str = ".flac"
) -> None:
    """Sentences of a split in these voices."""
    write_takes(folder, plan_takes(speakers, split, indices), suffix)


def write_takes(folder: Path, takes: Iterable[Take], suffix: str = ".flac") -> None:
    """Recordings: audio/, metadata.jsonl, and the phonemes of each sound in timings.json.

    metadata.jsonl, which datasets reads as `audiofolder` and prepare_speech.py as a source, comes last.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    sentences, rows, timings = {split: read_sentences(split) for split in ("train", "unseen")}, [], {}
    for speaker, voice, split, index, columns in takes:
        name, text = f"{speaker.replace(':', '_')}-{split}-{index:04}", sentences[split][index].text
        speech = say(text, voice)
        soundfile.write(folder / "audio" / f"{name}{suffix}", speech.samples, RATE)
        row = {"file_name": f"audio/{name}{suffix}", "text": text.lower(), "raw_text": text, "speaker": speaker}
        rows.append({**row, "seconds": round(len(speech.samples) / RATE, 3), **columns})
        timings[name] = [(ipa, round(start, 3), round(stop, 3)) for ipa, start, stop in speech.phonemes]
    files.write_text(folder / "timings.json", json.dumps(timings, ensure_ascii=False, separators=(",", ":")) + "\n")
    files.write_lines(folder / "metadata.jsonl", rows)


def choose_indices(split: str, first: int, count: int, number: int = 0) -> list[int]:
    """`count` sentences from `first` on; of speakers with other numbers the next ones. After the last, the first."""
    total = len(read_sentences(split))
    return [(first + number * count + i) % total for i in range(count)]


def write_corpus() -> None:
    """All of demo/voice/corpus, anew."""
    from demo.sentences import make_sentences

    CORPUS.mkdir(parents=True, exist_ok=True)
    for split, texts in zip(("train", "unseen"), make_sentences(TRAIN, UNSEEN, SEED), strict=True):
        lines = (f"{text}\t{phonemes_of(text)}\n" for text in texts)
        files.write_text(CORPUS / f"{split}.tsv", "".join(lines))
    for split, source, indices in (("train", "train", ADAPT), ("test", "unseen", TEST)):
        write_recordings(HELD_BACK / split, ["elisa"], source, indices, ".ogg")


def main(args: argparse.Namespace) -> None:
    if args.write:
        if HELD_BACK.exists():
            raise cli.UserError(f"--write: {HELD_BACK} exists; remove it first")
        write_corpus()
        return
    if args.output_dir is None:
        raise cli.UserError("--output_dir is not set; name a new folder for the recordings")
    if args.output_dir.exists():
        raise cli.UserError(f"--output_dir {args.output_dir} exists; name a new folder")
    speakers = list(dict.fromkeys(one for name in args.speaker for one in GROUPS.get(name, [name])))
    plans = (
        plan_takes(
            [one],
            args.split,
            choose_indices(args.split, args.first, args.count, number * args.apart),
            args.vary,
            args.seed,
        )
        for number, one in enumerate(speakers)
    )
    write_takes(args.output_dir, list(itertools.chain.from_iterable(plans)))


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--write", action="store_true", help="make demo/voice/corpus")
    parser.add_argument(
        "--speaker",
        nargs="+",
        default=["clara"],
        metavar="NAME",
        help="who speaks: clara, davi, elisa, heitor, a variant of espeak-ng as f1, one at a pitch as f1:75, or all of "
        "trained, heard, never_heard",
    )
    parser.add_argument("--split", choices=("train", "unseen"), default="train", help="which sentences")
    parser.add_argument("--first", type=cli.Range(0, TRAIN - 1, int), default=0, help="the first of them")
    parser.add_argument("--count", type=cli.Range(1, TRAIN, int), default=20, help="so many of them, of each speaker")
    parser.add_argument("--apart", action="store_true", help="each speaker says other sentences")
    parser.add_argument(
        "--vary", nargs="+", choices=list(DRAWN), default=[], help="drawn for each recording, and columns of its row"
    )
    parser.add_argument("--seed", type=cli.Range(0, 2**31, int), default=0, help="of what varies")
    parser.add_argument("--output_dir", type=cli.read_path, help="a new folder: audio/ and metadata.jsonl")
    cli.run(main, cli.parse_args(parser))
