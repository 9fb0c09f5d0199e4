"""Folders of runs with made-up records, for what reports say of them."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from scipy.io import wavfile

SETTINGS = {
    "pretrained_model_name_or_path": "demo",
    "max_train_steps": 1000,
    "learning_rate": 1e-4,
    "optimizer": "adamw",
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 100,
    "max_grad_norm": 1.0,
    "rank": 8,
    "seed": 0,
}
VOICE = {"segment_frames": 32, "learning_rate": 2e-4}


def falling(step: int) -> float:
    return 0.1 + 0.2 * 0.99 ** (step / 2)


def write_run(
    folder: Path,
    loss: Callable[[int], float | None] = falling,
    held_out: Callable[[int], float] | None = None,
    last: int = 1000,
    settings: dict | None = None,
    noise: float = 0.05,
    **more: Callable[[int], float],
) -> Path:
    """A run with a record every 10 steps, and a validation every 100 if `held_out` is given; `more`: other columns."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS | (settings or {})
    random.seed(0)
    lines = [{"step": 0, "val_loss": held_out(0)}] if held_out else []
    for step in range(10, last + 1, 10):
        value = loss(step)
        noisy = None if value is None else value * random.gauss(1, noise)
        name = "loss_mel" if "segment_frames" in settings else "loss"
        record = {"step": step, "loss": noisy, name: noisy, "lr": settings["learning_rate"], "grad_norm": 0.5}
        record |= {"samples_per_second": 16.0, "memory_gib": 4.0, "skipped_steps": 0}
        record |= {"seconds_data": 0.1, "seconds_step": 9.9}
        lines.append(record | {key: column(step) for key, column in more.items()})
        if held_out and step % 100 == 0:
            lines.append({"step": step, "val_loss": held_out(step), "seconds_validation": 5.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "environment.json").write_text(json.dumps({"dataset": "0123", "device": "CPU"}))
    return folder


def finish(folder: Path, **more) -> Path:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = {"steps": records[-1]["step"], "seconds": 1000.0, **more}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_tone(path: Path, level: float, seconds: float = 0.5, rate: int = 16000) -> None:
    """A tone of this amplitude; one above 1 is clipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.clip(level * np.sin(np.arange(int(seconds * rate)) * 0.2), -1, 1)
    wavfile.write(path, rate, (wave * 32767).astype(np.int16))
