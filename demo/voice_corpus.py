"""The corpus of the embedded voice: own Portuguese sentences, spoken by voices of espeak-ng.

    python demo/voice_corpus.py --write                     # draw the sentences anew, and what lies in demo/voice
    python demo/voice_corpus.py --speaker clara --count 20 --output_dir /tmp/clara   # some recordings and their texts

demo/voice/corpus has the sentences with espeak-ng's phonemes, and the recordings of one held-back voice with the true
timings of its phonemes; those need no espeak-ng to be read.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
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


def write_recordings(
    folder: Path, speakers: Iterable[str], split: str, indices: Sequence[int], suffix: str = ".flac"
) -> None:
    """Sentences of a split in these voices: audio/, metadata.jsonl, and the phonemes of each sound in timings.json.

    metadata.jsonl, which datasets reads as `audiofolder` and prepare_speech.py as a source, comes last.
    """
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    sentences, rows, timings = read_sentences(split), [], {}
    for speaker, index in itertools.product(speakers, indices):
        name, text = f"{speaker}-{split}-{index:04}", sentences[index].text
        speech = say(text, SPEAKERS[speaker])
        soundfile.write(folder / "audio" / f"{name}{suffix}", speech.samples, RATE)
        row = {"file_name": f"audio/{name}{suffix}", "text": text.lower(), "raw_text": text, "speaker": speaker}
        rows.append({**row, "seconds": round(len(speech.samples) / RATE, 3)})
        timings[name] = [(ipa, round(start, 3), round(stop, 3)) for ipa, start, stop in speech.phonemes]
    files.write_text(folder / "timings.json", json.dumps(timings, ensure_ascii=False, separators=(",", ":")) + "\n")
    files.write_lines(folder / "metadata.jsonl", rows)


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
    write_recordings(args.output_dir, [args.speaker], args.split, range(args.count))


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    parser.add_argument("--write", action="store_true", help="make demo/voice/corpus")
    parser.add_argument("--speaker", choices=list(SPEAKERS), default="clara", help="who speaks")
    parser.add_argument("--split", choices=("train", "unseen"), default="train", help="which sentences")
    parser.add_argument("--count", type=cli.Range(1, TRAIN, int), default=20, help="the first so many of them")
    parser.add_argument("--output_dir", type=cli.read_path, help="a new folder: audio/ and metadata.jsonl")
    cli.run(main, cli.parse_args(parser))
