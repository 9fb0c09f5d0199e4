"""What the steps of check.py share: where they work, the models and drawn data, and commands that are measured."""

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.drawings import drawn
from utils import console
from utils.files import locked_folder
from utils.metrics_log import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
LORA = "pytorch_lora_weights.safetensors"
OFFLINE = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHON_DOTENV_DISABLED": "1"}


class Machine(NamedTuple):
    """What decides how the steps are run. `half`: the half precision that this GPU has in hardware; a Mac's is `no`."""

    name: str
    half: str
    gpus: int
    memory_gib: float
    cores: int
    packages: dict[str, str | None]


class Setup(NamedTuple):
    """Where a check works (`folder`), on what, and with which checkout of diffusers."""

    folder: Path
    device: str
    tiny: bool
    baseline: Path | None
    machine: Machine


class Model(NamedTuple):
    """A family at the size that it was published with, samples at once, and diffusers' script for its LoRA.

    `reduced_text`: keys of a large text encoder's config that make it a small one. It encodes each caption once, so
    that neither the speed nor the memory of a training depends on it, and its weights would take most of the time.
    """

    family: str
    resolution: int
    batch: int
    disk: int  # GiB of its weights in half precision
    peer: str  # in examples/ of a checkout
    reduced_text: dict[str, int] = {}

    @property
    def is_flow(self) -> bool:
        """Whether it is one of today's large transformers: trained with gradient checkpointing, and in 4 bits."""
        return bool(self.reduced_text)


# FLUX.2 Klein reads the 27th layer: as many, but narrow inside.
NARROW = {"num_hidden_layers": 27, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 512}
# One row a family: its steps follow from it.
MODELS = (
    Model("sd1", 512, 4, 3, "text_to_image/train_text_to_image_lora.py"),
    Model("sdxl", 1024, 2, 7, "text_to_image/train_text_to_image_lora_sdxl.py"),
    Model("z_image", 1024, 1, 14, "dreambooth/train_dreambooth_lora_z_image.py", {"num_hidden_layers": 2}),
    Model("flux2_klein", 1024, 1, 10, "dreambooth/train_dreambooth_lora_flux2_klein.py", NARROW),
    Model("qwen_image", 1024, 1, 44, "dreambooth/train_dreambooth_lora_qwen_image.py", {"num_hidden_layers": 2}),
    Model("flux1", 1024, 1, 25, "dreambooth/train_dreambooth_lora_flux.py", {"num_layers": 2}),
)
TINY_SIDE = 32


class Skipped(Exception):
    """A step that can't be run here; the message says why."""


class Failed(Exception):
    """A step that did not do what it should; the message says what."""


class Measured(NamedTuple):
    """A command that ended well: its seconds, when each optimizer step ended, its peak memory, what it printed."""

    seconds: float
    steps: list[float]
    peak_gib: dict[str, float]
    log: str

    @property
    def peak(self) -> float:
        return self.peak_gib["reserved"]


def find_model(family: str) -> Model:
    return next(model for model in MODELS if model.family == family)


def side_of(setup: Setup, model: Model) -> int:
    return TINY_SIDE if setup.tiny else model.resolution


def weights_of(setup: Setup, family: str) -> Path:
    return setup.folder / "models" / family


def run_folder(setup: Setup, name: str) -> Path:
    """A training's --output_dir; its cache lies beside it, so that trainings at the same time share none."""
    return setup.folder / "runs" / name / "run"


# Data


def photos_of(setup: Setup, model: Model) -> Path:
    """The drawn photos that a LoRA of this model is trained on."""
    return photos(setup, 64 if model.resolution <= 512 else 24, side_of(setup, model))


def photos(setup: Setup, count: int, side: int, captions: bool = True) -> Path:
    """A folder of drawn photos: an imagefolder, or without captions what train_dreambooth.py takes."""
    folder = setup.folder / "data" / f"{'photos' if captions else 'subject'}-{count}-{side}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        names = [f"{i:03}.png" for i in range(count)]
        for i, name in enumerate(names):
            if not (folder / name).exists():
                drawn((side, side), i).save(folder / name)
        if captions:
            lines = [json.dumps({"file_name": name, "text": f"a photo of {i} shapes"}) for i, name in enumerate(names)]
            (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def coloured(folder: Path, first: int, count: int) -> Path:
    """An imagefolder whose column `colour` can be seen in each image."""
    colours = ("red", "blue", "green", "white")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(first, first + count):
        colour = colours[i % len(colours)]
        image = drawn((64, 64), i)
        image.paste(colour, (8, 8, 40, 40))
        image.save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"{colour} shapes", "colour": colour}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


# Commands


def environment(setup: Setup, more: dict[str, str] | None = None) -> dict[str, str]:
    devices = {
        "cpu": {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        "mps": {"PYTORCH_ENABLE_MPS_FALLBACK": "0"},  # an operator that MPS lacks is a failure, not the CPU's work
    }
    return {**os.environ, **OFFLINE, **devices.get(setup.device, {}), **(more or {})}


def last_words(log: str) -> str:
    return console.last_words(log)[-500:] or "it printed nothing"


def start(setup: Setup, name: str, command: Iterable[object], more: dict[str, str] | None = None) -> subprocess.Popen:
    """A command in the repository, with all that it prints in logs/NAME.txt."""
    (setup.folder / "logs").mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    with open(setup.folder / "logs" / f"{name}.txt", "wb") as log:
        return subprocess.Popen(
            words, cwd=ROOT, env=environment(setup, more), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def finish(setup: Setup, name: str, process: subprocess.Popen, expected: int = 0) -> str:
    """What the command printed; refuses another exit code than the expected one."""
    code = process.wait()
    log = (setup.folder / "logs" / f"{name}.txt").read_text("utf-8", "replace")
    if code != expected:
        raise Failed(f"{name} ended with exit code {code}: {last_words(log)} (logs/{name}.txt)")
    return log


def command(setup: Setup, name: str, script: str | Path, words: Iterable[object], *options: object) -> list[object]:
    """The script under measured.py, with its `options`."""
    record = setup.folder / "records" / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    return [sys.executable, ROOT / "tests/gpu/measured.py", "--record", record, *options, ROOT / script, *words]


def measure(
    setup: Setup,
    name: str,
    script: str | Path,
    words: Iterable[object],
    *options: object,
    more: dict[str, str] | None = None,
) -> Measured:
    """Run the script to its end under measured.py."""
    process = start(setup, name, command(setup, name, script, words, *options), more)
    return read_measured(setup, name, finish(setup, name, process))


def read_measured(setup: Setup, name: str, log: str) -> Measured:
    return Measured(**json.loads((setup.folder / "records" / f"{name}.json").read_text()), log=log)


def lora_words(setup: Setup, model: Model, name: str, *more: object) -> list[object]:
    """A command line of train_lora.py: 8 steps of 4 samples, 2 at once. `more` wins."""
    side = side_of(setup, model)
    short = "--train_batch_size 2 --effective_batch_size 4 --max_train_steps 8 --max_train_samples 8 --rank 8"
    short += " --learning_rate 1e-3 --lr_scheduler constant --validation_steps 0 --checkpointing_steps 0 --seed 0"
    short += " --logging_steps 1 --report_to none --no-output_kohya_format"
    words = ["--pretrained_model_name_or_path", weights_of(setup, model.family), "--resolution", side]
    words += ["--train_data_dir", photos_of(setup, model), "--output_dir", run_folder(setup, name)]
    return [*words, *short.split(), *more]


def train_lora(setup: Setup, model: Model, name: str, *more: object, options: tuple[object, ...] = ()) -> Measured:
    """A training of `lora_words`; one that has ended well before is not repeated."""
    folder = run_folder(setup, name).parent
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        if (folder / "run/summary.json").exists():
            return read_measured(setup, name, (setup.folder / "logs" / f"{name}.txt").read_text("utf-8", "replace"))
        return measure(setup, name, "train_lora.py", lora_words(setup, model, name, *more), *options)


# Results


def losses_of(setup: Setup, name: str, column: str = "loss") -> list[float]:
    """A column of metrics.jsonl; refuses a loss that is not finite, which stands there as null."""
    records = [one for one in read_metrics(run_folder(setup, name) / "metrics.jsonl") if column in one]
    if not records or any(one[column] is None for one in records):
        raise Failed(f"{name}: its losses are {[one[column] for one in records]}")
    return [one[column] for one in records]


def check_precision(name: str, log: str, wanted: str) -> None:
    """Refuse a run that computed in another precision than the one asked for."""
    found = re.search(r"; precision: ([^\n;]*)", log)
    expected = "float32, as requested" if wanted == "no" else f"{wanted}, as requested"
    if not found or not found[1].startswith(expected):
        raise Failed(f"{name}: asked for {wanted}, and found: {found[1] if found else 'nothing about precision'}")


def apart(first: list[float], second: list[float]) -> float:
    """The largest difference of two series, relative to the first."""
    if len(first) != len(second):
        raise Failed(f"{len(first)} losses against {len(second)}")
    return max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(first, second))


def compare_loras(first: Path, second: Path) -> tuple[bool, float, float]:
    """Whether two results are equal to the byte, their largest difference, and all of it relative to the first."""
    from safetensors.torch import load_file  # here: most steps need no torch, and start sooner

    a, b = load_file(first / LORA), load_file(second / LORA)
    if a.keys() != b.keys():
        raise Failed(f"{first} and {second} hold different tensors")
    equal = all(a[key].numpy().tobytes() == b[key].numpy().tobytes() for key in a)
    parts = [(a[key].double() - b[key].double()) for key in a]
    largest = max(part.abs().max().item() for part in parts)
    size = sum(a[key].double().square().sum().item() for key in a) ** 0.5
    return equal, largest, sum(part.square().sum().item() for part in parts) ** 0.5 / max(size, 1e-12)


def steps_per_second(steps: list[float]) -> float:
    """Of the later three quarters, by the median step: the first ones choose kernels, and compile."""
    later = steps[len(steps) // 4 :]
    if len(later) < 2:
        raise Failed(f"only {len(steps)} optimizer steps were seen")
    return 1 / statistics.median(b - a for a, b in zip(later, later[1:]))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))
