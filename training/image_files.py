"""The files of what is trained of an image model: a LoRA with its new word, or a whole pipeline."""

from dataclasses import dataclass
from pathlib import Path

import torch

from families import kohya, lora, pipelines, shards, tokens, whole_file
from utils.cli import UserError
from utils.files import save_model
from utils.outputs import remove_written


@dataclass(frozen=True)
class Weights:
    """What is trained, whole: a LoRA by the keys of its file, or modules with all their weights."""

    adapters: dict[str, torch.Tensor]
    modules: dict[str, lora.Module]


@dataclass(frozen=True)
class ImageFiles:
    """Those of `modules`, the denoiser first, by the names of their folders in a pipeline; see training.state.Files.

    Adapters are trained, or where there is a `whole` model, all weights of the modules. `facts` go into the metadata.
    """

    modules: dict[str, lora.Module]
    facts: dict[str, str]
    token: tokens.Token | None = None  # a new word, whose embedding is trained too
    whole: pipelines.BaseModel | None = None
    kohya: str | None = None  # the model's family, where the LoRA is written for A1111 and ComfyUI too
    single_file: bool = False  # whether the pipeline is written for them too

    @property
    def noun(self) -> str:
        return "the pipeline" if self.whole else "the LoRA"

    @property
    def denoiser(self) -> lora.Module:
        return next(iter(self.modules.values()))

    @property
    def text_encoders(self) -> list[lora.Module]:
        return list(self.modules.values())[1:]

    def gather(self) -> Weights:
        """The weights as they are now. Where they are divided, all processes take part, and the first one gets them."""
        if self.whole:
            found = {name: shards.gather_module(module) for name, module in self.modules.items()}
            return Weights({}, {name: module for name, module in found.items() if module is not None})
        return Weights(lora.lora_state(self.denoiser, self.text_encoders), {})

    def write(self, folder: Path, weights: Weights) -> None:
        """The LoRA in the file that diffusers loads, or of all weights each part's folder."""
        if self.whole:
            for name, module in weights.modules.items():
                save_model(module, folder / name)
            return
        lora.save_lora(folder, weights.adapters, self.denoiser, self.text_encoders, self.facts)
        if self.token:
            tokens.write_token(folder, self.token, self.facts)

    def read(self, folder: Path, files: dict[str, dict[str, torch.Tensor]]) -> None:
        """Put back what `write` wrote, to the byte; `files` are those in the folder itself."""
        if self.whole:
            for name, module in self.modules.items():
                if name not in files and not (folder / name).is_dir():
                    raise UserError(f"the checkpoint holds no {name}; give the --method and the parts it was made with")
                # Earlier versions wrote a file for each part.
                state = files.get(name)
                if state is None:
                    kind = shards.own_class(module)
                    state = kind.from_pretrained(folder / name, dtype=torch.float32).state_dict()
                shards.load_whole(module, state)
            return
        if "pytorch_lora_weights" not in files:
            raise UserError("the checkpoint holds no LoRA; give the --method that it was made with")
        lora.load_lora_state(files["pytorch_lora_weights"], self.denoiser, self.text_encoders)
        if self.token:
            tokens.load_token(files, self.token)

    def write_result(self, folder: Path, weights: Weights, name: str, began: float | None) -> None:
        """The LoRA, or where all weights were trained, a whole pipeline.

        `name` is that of the result in A1111 and ComfyUI, if it is written for them.
        """
        if self.whole:
            single_file = folder / whole_file.whole_name(name)
            if not self.single_file:
                remove_written(single_file)  # of fewer steps
            written = single_file if self.single_file else None
            pipelines.write_pipeline(folder, self.whole, weights.modules, self.facts, written)
            return
        self.write(folder, weights)
        paths = folder / kohya.lora_name(name), folder / kohya.word_name(name)
        if self.kohya:
            self._write_kohya(*paths, weights, self.facts | {"training_started_at": str(began)})
        else:
            for path in paths:  # of fewer steps
                remove_written(path)

    def _write_kohya(self, lora_path: Path, word_path: Path, weights: Weights, facts: dict[str, str]) -> None:
        """The LoRA for A1111 and ComfyUI, and the new word, where there is one."""
        family = self.kohya or ""
        if self.token:  # whose place the name of its file takes there
            triggers = {name: facts[name] for name in ("instance_prompt", "trigger_word") if name in facts}
            facts |= {name: text.replace(self.token.text, word_path.stem) for name, text in triggers.items()}
        kohya.save_kohya(lora_path, weights.adapters, self.denoiser, self.text_encoders, family, facts)
        if self.token:
            kohya.save_word(word_path, self.token, family, facts)
