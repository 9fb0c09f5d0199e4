"""Train the embedded voice, the recogniser and the speaker encoder from nothing, on voices of espeak-ng.

    python demo/pretrain_voice.py                                   # all stages, resumable: run it again after a stop
    python demo/pretrain_voice.py --stages recogniser --work_dir runs/demo_pretrain_voice

It writes demo/voice/recogniser, demo/voice/speaker and, by train_tts.py, demo/voice/model; the stage `calibration` sets
how fast and with how much noise that voice speaks. Working files stay in --work_dir. Whatever records needs
espeakng-loader, and the words of the recogniser pyspellchecker (requirements-dev.in).
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import cli, devices, files

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from transformers import VitsConfig

from demo.espeak import Speaker, say
from demo.sentences import split_words
from demo.stages import Plan, Stage, train
from demo.voice_corpus import CALIBRATION, HEARD, NEVER_HEARD, TRAIN, TRAINED, read_sentences, write_recordings
from speech.audio import trim_silence
from speech.convolutions import FEATURES, RATE, Convolutions, Size, hear, pad, save_network
from speech.ctc import BLANK, score, spell
from speech.discriminators import load_discriminators, save_discriminators
from speech.distances import count_edits
from speech.normalise import plain_text
from speech.recogniser import load_recogniser
from speech.speaker import embed
from speech.synthesis import Speaking, speak
from speech.voices import DEMO_VOICE, Voice, load_voice, new_voice, save_voice

HERE = Path(__file__).resolve().parent / "voice"
SEED = 1_800
PITCHES = (25, 50, 75)  # a variant of espeak-ng counts as three speakers
SHARD = 500  # recordings
SHARDS = {"train": 24, "unseen": 1, "unheard": 1}
CHARACTERS = " abcdefghijklmnopqrstuvwxyzàáâãçéêíóôõú"
RECOGNISER, ENCODER = Size(192, 8, outputs=2 * len(CHARACTERS) + 2), Size(96, 5, outputs=64)
MORE_LAYERS = 4  # of the recogniser, after its first plan: sounds are learnt sooner than their spelling
PLAN = {"recogniser": Plan(3000, 16, 2e-3), "speaker": Plan(3000, 32, 2e-3), "deeper": Plan(6000, 16, 1.5e-3)}
# A VITS of about 3 million weights, a tenth of the published size; the durations are predicted without noise.
VOICE = VitsConfig(
    hidden_size=96,
    flow_size=96,
    num_hidden_layers=4,
    ffn_dim=384,
    use_stochastic_duration_prediction=False,
    duration_predictor_filter_channels=96,
    spectrogram_bins=513,
    prior_encoder_num_wavenet_layers=2,
    posterior_encoder_num_wavenet_layers=6,
    upsample_initial_channel=128,
    upsample_rates=[8, 8, 4],
    upsample_kernel_sizes=[16, 16, 8],
    resblock_kernel_sizes=[3, 7],
    resblock_dilation_sizes=[[1, 3], [1, 3]],
    speaker_embedding_size=48,
    sampling_rate=RATE,
)
VOICE_CHARACTERS = " !,-.?abcdefghijklmnopqrstuvxyzàáâãçéêíóôõú"  # those of the training sentences
ALWAYS = """--train_batch_size 8 --effective_batch_size 8 --adam_weight_decay 0.01 --held_out 0.005
--validation_steps 1000 --checkpointing_steps 500 --checkpoints_total_limit 3"""
TRAINING = (  # train_tts.py's words, each from the voice before it; the card says how the embedded one differed
    "--max_train_steps 5380 --learning_rate 7e-4 --lr_scheduler constant_with_warmup --lr_warmup_steps 200 "
    "--discriminator_start 4000",
    "--max_train_steps 1000 --learning_rate 8e-4 --lr_scheduler constant_with_warmup --lr_warmup_steps 100 "
    "--discriminator_start 1000 --seed 19",
    "--max_train_steps 3400 --learning_rate 7e-4 --lr_scheduler cosine --lr_warmup_steps 100 "
    "--discriminator_start 2200 --seed 20",
    "--max_train_steps 4200 --learning_rate 5e-4 --lr_scheduler cosine --lr_warmup_steps 100 --seed 41",
)
NOISE_SCALES = (0.1, 0.2, 0.333, 0.5, 0.667)  # above 0, so that a seed matters; the last one is VITS' own
STAGES = {name: Stage(name, plan, (number, SEED)) for number, (name, plan) in enumerate(PLAN.items())}

# --- corpus: recordings of many speakers, for recogniser and speaker encoder


def list_speakers(known: bool) -> list[tuple[str, int]]:
    """Variants with a pitch: those to train on, or those that are never heard."""
    variants = sorted({*HEARD, *(speaker.variant for speaker in TRAINED.values())}) if known else NEVER_HEARD
    return [(variant, pitch) for variant in variants for pitch in PITCHES]


def common_words() -> list[str]:
    """Words of pyspellchecker's list, without those that only unseen sentences have."""
    from spellchecker import SpellChecker

    known = {word for sentence in read_sentences("train") for word in split_words(sentence.text)}
    unseen = {word for sentence in read_sentences("unseen") for word in split_words(sentence.text)} - known
    counts = SpellChecker(language="pt").word_frequency.dictionary
    words = sorted(counts, key=lambda word: (-counts[word], word))[:40_000]
    return [word for word in words if word not in unseen and split_words(word) == [word] and not set(word) & set("kwy")]


def draw_text(rng: random.Random, sentences: list[str], words: list[str]) -> str:
    """A sentence, or some words in any order, so that the recogniser can't guess a word from those before it."""
    if rng.random() < 0.5:
        return rng.choice(sentences)
    drawn = rng.choices(words, k=rng.randint(2, 6))
    return " ".join(drawn) if rng.random() < 0.7 else ", ".join(drawn)


def make_shard(work: Path, kind: str, number: int) -> None:
    """One file with log-mels in float16, and beside it the texts, the speakers, and where each recording ends."""
    target = work / f"{kind}-{number:02}"
    if target.with_suffix(".json").exists():
        return
    torch.set_num_threads(1)  # another process makes the next one
    rng = random.Random(f"{SEED} {kind} {number}")
    speakers = list_speakers(kind != "unheard")
    sentences = [sentence.text for sentence in read_sentences("train" if kind == "train" else "unseen")]
    words = common_words() if kind == "train" else []
    pieces, rows, end = [], [], 0
    for _ in range(SHARD):
        text = draw_text(rng, sentences, words) if words else rng.choice(sentences)
        label = rng.randrange(len(speakers))
        variant, pitch = speakers[label]
        speaker = Speaker(variant, rng.randint(125, 200), pitch + rng.randint(-5, 5), rng.randint(30, 70))
        mels = hear(say(text, speaker).samples)
        pieces.append(mels.half().numpy())
        end += len(mels)
        rows.append({"text": text, "speaker": label, "end": end})
    with files.replaced_file(target.with_suffix(".npy")) as file:
        np.save(file, np.concatenate(pieces))
    files.write_json(target.with_suffix(".json"), rows)


@dataclass(frozen=True)
class Recording:
    text: str
    speaker: int
    mels: np.ndarray  # (frames, mels), float16, not read before it is used


def read_recordings(work: Path, kind: str) -> list[Recording]:
    """All recordings of a kind, which are made first where they are missing."""
    folder = work / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for done in [pool.submit(make_shard, folder, kind, number) for number in range(SHARDS[kind])]:
            done.result()
    return [recording for number in range(SHARDS[kind]) for recording in read_shard(folder / f"{kind}-{number:02}")]


def read_shard(path: Path) -> Iterator[Recording]:
    mels, start = np.load(path.with_suffix(".npy"), mmap_mode="r"), 0
    for row in json.loads(path.with_suffix(".json").read_text("utf-8")):
        yield Recording(row["text"], row["speaker"], mels[start : row["end"]])
        start = row["end"]


# --- what both networks hear of the recordings


def smooth_curve(spread: float, rng: np.random.Generator) -> np.ndarray:
    """Decibels for each mel, as natural logarithms of magnitudes."""
    points = rng.normal(0, spread, 9)
    return np.interp(np.linspace(0, 8, FEATURES.mels), np.arange(9), points) * (np.log(10) / 20)


def disturb(mels: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Another tone by a smooth filter, and light noise: what is judged later came from a network or a room."""
    heard = mels.astype(np.float32)
    if rng.random() < 0.6:
        heard = heard + smooth_curve(4, rng)
    if rng.random() < 0.6:
        level = np.log(np.exp(heard).mean()) - rng.uniform(15, 50) * (np.log(10) / 20)
        noise = level + smooth_curve(3, rng) + rng.normal(0, 0.4, heard.shape)
        heard = np.logaddexp(heard, noise)
    return torch.from_numpy(heard.astype(np.float32))


def draw_batch(recordings: list[Recording], count: int, rng: np.random.Generator) -> list[Recording]:
    """Recordings of about one length, so that little of a batch is padding."""
    drawn = sorted(rng.choice(len(recordings), 4 * count, replace=False), key=lambda i: len(recordings[i].mels))
    start = rng.integers(3 * count + 1)
    return [recordings[index] for index in drawn[start : start + count]]


# --- recogniser


def deepen(network: Convolutions, layers: int) -> Convolutions:
    """The network with more layers before its end, each of which changes little at first."""
    deeper = Convolutions(replace(network.size, layers=network.size.layers + layers))
    state = deeper.state_dict()
    for name, tensor in network.state_dict().items():
        state[name.replace(f"norms.{network.size.layers}.", f"norms.{deeper.size.layers}.")] = tensor
    for number in range(network.size.layers, deeper.size.layers):
        state[f"layers.{number}.weight"] *= 0.1
    deeper.load_state_dict(state)
    return deeper


def train_recogniser(work: Path, device: str) -> None:
    recordings = read_recordings(work, "train")
    torch.manual_seed(SEED)
    network = Convolutions(RECOGNISER)

    def step_loss(model: torch.nn.Module, step: int, rng: np.random.Generator) -> torch.Tensor:
        batch = draw_batch(recordings, PLAN["recogniser"].batch, rng)
        mels, lengths = pad([disturb(one.mels, rng).to(device) for one in batch])
        low = int(rng.integers(70))
        mels[:, low : low + int(rng.integers(12))] = 0  # hide some frequencies (SpecAugment, arXiv 1904.08779)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            scores, frames = score(model, mels, lengths)
        texts = [torch.tensor(spell(one.text, CHARACTERS)) for one in batch]
        sizes = torch.tensor([len(text) for text in texts])
        tokens = torch.cat(texts).to(device)
        return F.ctc_loss(scores.transpose(0, 1), tokens, frames, sizes, blank=BLANK, zero_infinity=True)

    network = train(STAGES["recogniser"], work, network, step_loss, device, average=0.998)
    deeper = deepen(network, MORE_LAYERS).requires_grad_(True)
    network = train(STAGES["deeper"], work, deeper, step_loss, device, average=0.998)
    save_network(HERE / "recogniser", network, {"characters": CHARACTERS})


# --- speaker encoder


class Classifier(torch.nn.Module):
    """The encoder with a direction for each speaker it learns from."""

    def __init__(self, speakers: int):
        super().__init__()
        self.network = Convolutions(ENCODER)
        self.directions = torch.nn.Parameter(torch.randn(speakers, ENCODER.outputs))

    def forward(self, mels: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss with an additive margin (Wang et al., 2018, arXiv 1801.05599)."""
        cosines = embed(self.network, mels, lengths).float() @ F.normalize(self.directions, dim=-1).T
        margin = 0.2 * F.one_hot(labels, cosines.shape[1])
        return F.cross_entropy(20 * (cosines - margin), labels)


def train_speaker(work: Path, device: str) -> None:
    recordings = read_recordings(work, "train")
    torch.manual_seed(SEED)
    classifier = Classifier(len(list_speakers(known=True)))

    def step_loss(model: torch.nn.Module, step: int, rng: np.random.Generator) -> torch.Tensor:
        batch = [recordings[index] for index in rng.choice(len(recordings), PLAN["speaker"].batch, replace=False)]
        pieces = []
        for one in batch:
            frames = int(rng.uniform(0.8, 2.0) * FEATURES.rate / FEATURES.hop)
            start = int(rng.integers(max(1, len(one.mels) - frames)))
            pieces.append(disturb(one.mels[start : start + frames], rng).to(device))
        labels = torch.tensor([one.speaker for one in batch], device=device)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            return model(*pad(pieces), labels)

    classifier = train(STAGES["speaker"], work, classifier, step_loss, device, average=0.998)
    save_network(HERE / "speaker", classifier.network, {})


# --- voice, by train_tts.py


def train_voice(work: Path) -> None:
    """One training after the other by train_tts.py, which resumes what was stopped; the last one's voice is kept."""
    data, voice = work / "data", work / "new"
    if not (data / "metadata.jsonl").is_file():
        write_recordings(data, TRAINED, "train", range(TRAIN))
    if not (voice / "config.json").is_file():
        save_voice(voice, new_voice(VOICE, VOICE_CHARACTERS, SEED, "por", list(TRAINED)))
    for number, words in enumerate(TRAINING, 1):
        folders = ["--pretrained_model_name_or_path", voice, "--train_data_dir", data]
        voice = work / f"run{number}"
        command = [sys.executable, HERE.parent.parent / "train_tts.py", *folders, "--output_dir", voice]
        subprocess.run([*map(str, command), *ALWAYS.split(), *words.split()], check=True)
    embed_voice(voice)


def embed_voice(folder: Path) -> None:
    """Make a voice `demo-voice`, in half its size, with the discriminators of its training for further ones."""
    voice = load_voice(str(folder))
    save_voice(DEMO_VOICE, voice, torch.float16)
    if judges := load_discriminators(str(folder)):
        save_discriminators(DEMO_VOICE, judges, torch.float16)


def calibrate(voice: Voice) -> None:
    """Let a voice speak as long as the recordings, and then with the noise of which least is heard wrong.

    Its plain durations predict the mean of a logarithm, which is below the logarithm of the mean.
    """
    said = [(name, read_sentences("unseen")[index].text) for name in TRAINED for index in CALIBRATION]
    meant = [plain_text(text, "pt-br") for _, text in said]
    recognise, own = load_recogniser("demo", "cpu", "pt-br"), voice.model.speaking_rate

    def seconds(sounds: Iterable[np.ndarray]) -> float:
        return sum(len(trim_silence(sound, RATE)) for sound in sounds) / RATE

    def speak_all(rate: float, noise: float) -> list[np.ndarray]:
        return [speak(voice, text, 0, Speaking(rate / own, noise, speaker=name)) for name, text in said]

    rate, recorded = 1.0, seconds(say(text, TRAINED[name]).samples for name, text in said)
    for _ in range(2):  # frames are whole, so length is not quite in proportion to the rate
        rate *= seconds(speak_all(rate, 0.0)) / recorded
    rate, wrong = round(rate, 2), {}
    for noise in NOISE_SCALES:
        heard = [plain_text(found.text, "pt-br") for found in recognise(speak_all(rate, noise))]
        wrong[noise] = sum(map(count_edits, heard, meant)) / sum(map(len, meant))
        print(f"speaking_rate {rate}, noise_scale {noise}: {wrong[noise]:.1%} of the characters are heard wrong")
    voice.model.config.speaking_rate, voice.model.config.noise_scale = rate, min(wrong, key=wrong.__getitem__)


def calibrate_embedded() -> None:
    voice = load_voice(str(DEMO_VOICE))
    calibrate(voice)
    save_voice(DEMO_VOICE, voice, torch.float16)


def main(args: argparse.Namespace) -> None:
    cli.show_settings(args)
    if args.dry_run:
        return
    args.work_dir.mkdir(parents=True, exist_ok=True)
    if "corpus" in args.stages:
        for kind in SHARDS:
            print(kind, len(read_recordings(args.work_dir, kind)))
    if "recogniser" in args.stages:
        train_recogniser(args.work_dir, args.device)
    if "speaker" in args.stages:
        train_speaker(args.work_dir, args.device)
    if "voice" in args.stages:
        train_voice(args.work_dir)
    if "calibration" in args.stages:
        calibrate_embedded()


if __name__ == "__main__":
    parser = cli.make_parser(__doc__)
    stages = ["corpus", "recogniser", "speaker", "voice", "calibration"]
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages, help="what to make")
    parser.add_argument(
        "--work_dir", type=Path, default=Path("runs/demo_pretrain_voice"), help="states, logs, recordings"
    )
    parser.add_argument("--device", default=str(devices.pick_device()), help="where to train")
    cli.run(main, cli.parse_args(parser))
