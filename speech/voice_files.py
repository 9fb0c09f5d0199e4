"""The files of a voice in training: in a checkpoint, as the result that others load, and its card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from speech.discriminators import Discriminators, save_discriminators
from speech.duration_discriminator import DurationDiscriminator, save_duration_discriminator
from speech.voices import Voice, save_voice
from utils.cli import UserError, mask_text
from utils.files import write_json, write_safetensors, write_text
from utils.outputs import flush_folder, partial_folder, put_in_place
from utils.runs import package_versions
from utils.wording import make_environment


@dataclass(frozen=True)
class VoiceFiles:
    """Those of a voice and of what tells it from recordings; see training.state.Files."""

    voice: Voice
    discriminators: Discriminators
    facts: dict[str, str]
    duration_discriminator: DurationDiscriminator | None = None

    @property
    def noun(self) -> str:
        return "the voice"

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        own = {"voice": self.voice.model, "discriminators": self.discriminators}
        more = self.duration_discriminator
        return own if more is None else own | {"duration_discriminator": more}

    def gather(self) -> None:
        """Nothing: every process has all weights, and the files are written of the modules themselves."""

    def write(self, folder: Path, weights: None) -> None:
        """All weights, in a file for each module."""
        for name, module in self.modules.items():
            write_safetensors(folder / f"{name}.safetensors", module.state_dict())

    def read(self, folder: Path, files: dict[str, dict[str, torch.Tensor]]) -> None:
        """Put back what `write` wrote, to the byte; `files` are those in the folder itself."""
        for name, module in self.modules.items():
            if name not in files:
                raise UserError(f"{folder} holds no {name}; it is not of train_tts.py")
            module.load_state_dict(files[name])

    def write_result(self, folder: Path, weights: None, name: str, began: float | None) -> None:
        """The voice as transformers reads it, and beside it the discriminators, for a later training.

        Written to a temporary folder first; config.json, without which it is no model, is moved last.
        """
        with partial_folder(folder / "voice") as new:
            save_voice(new, self.voice)
            save_discriminators(new, self.discriminators)
            if self.duration_discriminator is not None:
                save_duration_discriminator(new, self.duration_discriminator)
            write_json(new / "training.json", self.facts)
            flush_folder(new)
            (folder / "config.json").unlink(missing_ok=True)
            for entry in sorted(new.iterdir(), key=lambda one: one.name == "config.json"):
                put_in_place(entry, folder / entry.name)


def write_card(folder: Path, results: dict[str, str], facts: dict[str, Any]) -> None:
    """README.md of a run of train_tts.py; `facts`: see the template."""
    environment = make_environment(Path(__file__).parent / "templates")
    pictures = sorted(path.name for path in (folder / "validation").glob("step-*.png"))
    card = environment.get_template("voice_card.md.j2").render(
        **facts,
        name=folder.resolve().name,
        results=results,
        picture=pictures[-1] if pictures else None,
        has_curve=(folder / "loss_curve.png").is_file(),
        versions=", ".join(f"{package} {version}" for package, version in package_versions().items() if version),
    )
    write_text(folder / "README.md", mask_text(card))
