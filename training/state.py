"""All that a training changes, and how it is written: as a checkpoint, and as the result that others load."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from families import kohya, lora, pipelines, shards, tokens
from utils import checkpoints
from utils.cli import UserError
from utils.metrics_log import SMOOTHING
from utils.outputs import remove_written


@dataclass
class Progress:
    """Where a training stands, in plain values: a part of every checkpoint."""

    step: int = 0
    began: float | None = None  # in seconds since 1970
    losses: int = 0  # that were recorded
    loss_decayed: float = 0.0  # their exponential sum, which starts at 0
    validated: int = -1  # the last step that was validated
    best_loss: float | None = None
    best_step: int | None = None
    worse_in_a_row: int = 0  # validations since the best
    skipped: list[int] = field(default_factory=list)  # steps that were not finite
    skipped_in_a_row: int = 0

    @property
    def loss_smooth(self) -> float:
        """The exponential mean of the recorded losses."""
        return self.loss_decayed / (1 - SMOOTHING**self.losses)

    def add_loss(self, loss: float) -> None:
        self.losses += 1
        self.loss_decayed = SMOOTHING * self.loss_decayed + (1 - SMOOTHING) * loss

    def update(self, saved: dict[str, object]) -> None:
        """Set the fields that a checkpoint has; others, of earlier versions, are ignored."""
        for one in fields(self):
            if one.name in saved:
                setattr(self, one.name, saved[one.name])


@dataclass(frozen=True)
class Training:
    """`average` is the EMA of `parameters`, `modules` have the names of their folders in a pipeline.

    Adapters are trained, or where there is a `whole` model, all weights of the modules. `facts` go into the files'
    metadata; a run that resumes must have the same `identity`.
    """

    modules: dict[str, lora.Module]
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: list[torch.Tensor] | None
    facts: dict[str, str]
    identity: dict[str, str]
    token: tokens.Token | None = None  # a new word, whose embedding is trained too
    whole: pipelines.BaseModel | None = None
    kohya: str | None = None  # the model's family, where the result is written for A1111 and ComfyUI too
    sharded: bool = False  # whether weights and optimizer state are divided among the processes
    progress: Progress = field(default_factory=Progress)

    @property
    def unet(self) -> lora.Module:
        return self.modules["unet"]

    @property
    def text_encoders(self) -> list[lora.Module]:
        return [module for name, module in self.modules.items() if name != "unet"]


def update_average(average: list[torch.Tensor], parameters: Sequence[torch.Tensor], decay: float, step: int) -> None:
    """One step of an exponential moving average; `step` counts from 0.

    The decay rises to its value as in diffusers' EMAModel, so that a short training too forgets its first weights.
    """
    decay = min(decay, (1 + step) / (10 + step)) if step else 0.0
    with torch.no_grad():
        torch._foreach_lerp_(shards.local(average), shards.local(parameters), 1 - decay)


@contextmanager
def averaged_weights(training: Training) -> Iterator[None]:
    """The average in the place of the trained weights while the block runs, where there is one."""
    if training.average is None:
        yield
        return
    weights, average = shards.local(training.parameters), shards.local(training.average)
    own = [one.detach().clone() for one in weights]
    with torch.no_grad():
        torch._foreach_copy_(weights, average)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)


@dataclass(frozen=True)
class Weights:
    """What is trained, whole: a LoRA by the keys of its file, or modules with all their weights."""

    adapters: dict[str, torch.Tensor]
    modules: dict[str, lora.Module]


def whole_weights(training: Training) -> Weights:
    """The weights as they are now. Where they are divided, all processes take part, and the first one gets them."""
    if training.whole:
        found = {name: shards.gather_module(module) for name, module in training.modules.items()}
        return Weights({}, {name: module for name, module in found.items() if module is not None})
    return Weights(lora.lora_state(training.unet, training.text_encoders), {})


def write_weights(folder: Path, training: Training, weights: Weights) -> None:
    """The LoRA in the file that diffusers loads, or of all weights each part's folder."""
    if training.whole:
        for name, module in weights.modules.items():
            module.save_pretrained(folder / name)
        return
    lora.save_lora(folder, weights.adapters, training.unet, training.text_encoders, training.facts)
    if training.token:
        tokens.write_token(folder, training.token, training.facts)


def write_result(folder: Path, training: Training, weights: Weights, name: str) -> None:
    """The result for users: the LoRA, or where all weights were trained, a whole pipeline.

    `name` is that of the LoRA in A1111 and ComfyUI, if it is written for them.
    """
    if training.whole:
        pipelines.write_pipeline(folder, training.whole, weights.modules, training.facts)
        return
    write_weights(folder, training, weights)
    paths = folder / kohya.lora_name(name), folder / kohya.word_name(name)
    if training.kohya:
        write_kohya(*paths, training, weights, training.kohya)
    else:
        for path in paths:  # of fewer steps
            remove_written(path)


def write_kohya(lora_path: Path, word_path: Path, training: Training, weights: Weights, family: str) -> None:
    """The LoRA for A1111 and ComfyUI, and the new word, where there is one."""
    unet, encoders = training.unet, training.text_encoders
    facts = training.facts | {"training_started_at": str(training.progress.began)}
    if training.token:  # whose place the name of its file takes there
        triggers = {name: facts[name] for name in ("instance_prompt", "trigger_word") if name in facts}
        facts |= {name: text.replace(training.token.text, word_path.stem) for name, text in triggers.items()}
    kohya.save_kohya(lora_path, weights.adapters, unet, encoders, family, facts)
    if training.token:
        kohya.save_word(word_path, training.token, family, facts)


def read_weights(folder: Path, files: dict[str, dict[str, torch.Tensor]], training: Training) -> None:
    """Put back what `write_weights` wrote, to the byte; `files` are those in the folder itself."""
    if training.whole:
        for name, module in training.modules.items():
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
    lora.load_lora_state(files["pytorch_lora_weights"], training.unet, training.text_encoders)
    if training.token:
        tokens.load_token(files, training.token)


@dataclass(frozen=True)
class Snapshot:
    """The tensors of a checkpoint, whole: the weights, `files` of optimizer and average, and what is no tensor."""

    weights: Weights
    files: dict[str, checkpoints.Tensors]
    optimizers: dict[str, Any]


def take_snapshot(training: Training) -> Snapshot:
    """Of the training as it is now. Where it is divided, all processes take part, and the first one gets it."""
    files, optimizers = checkpoints.pack_optimizers({"optimizer": training.optimizer})
    if training.average is not None:
        files["average"] = {str(i): shards.gather(tensor) for i, tensor in enumerate(training.average)}
    return Snapshot(whole_weights(training), files, optimizers)


def save_training(folder: Path, training: Training, snapshot: Snapshot) -> None:
    """A checkpoint: weights, optimizer, average, progress."""
    state = {
        "progress": asdict(training.progress),
        "identity": training.identity,
        **snapshot.optimizers,
        "scaler": training.scaler.state_dict(),
    }

    def write(partial: Path) -> None:
        write_weights(partial, training, snapshot.weights)

    checkpoints.save_checkpoint(folder, write, snapshot.files, state)


@torch.no_grad()
def restore_training(folder: Path, training: Training) -> None:
    """Put back all that a verified checkpoint holds; one of another `identity` is refused."""
    files, state = checkpoints.load_checkpoint(folder)
    flag = f"--resume_from_checkpoint {folder}"
    if "identity" not in state:
        raise UserError(f"{flag}: holds a LoRA alone, without a training's state; name a checkpoint-<step> folder")
    changed = [name for name, value in training.identity.items() if value != state["identity"].get(name)]
    if changed:
        raise UserError(
            f"{flag}: since then the {' and '.join(changed)} has changed; restore it, name another --output_dir, or "
            "start again with --overwrite"
        )
    if (training.average is not None) != ("average" in files):
        raise UserError(f"--use_ema: {folder} was made {'with' if 'average' in files else 'without'} it; do the same")
    read_weights(folder, files, training)
    try:
        checkpoints.restore_optimizers({"optimizer": training.optimizer}, files, state)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{flag}: its optimizer's state doesn't fit ({' '.join(str(error).split())}); "
            "--optimizer and --train_text_encoder must be those it was made with"
        ) from error
    if state["scaler"]:  # none where it was saved on hardware that trains without one
        training.scaler.load_state_dict(state["scaler"])
    for i, tensor in enumerate(training.average or []):
        tensor.copy_(shards.divide(files["average"][str(i)], tensor))
    training.progress.update(state["progress"])


def save_best(folder: Path, training: Training, weights: Weights) -> None:
    """The result with the weights of the best validation, in the folder's place in one step."""

    def write(partial: Path) -> None:
        write_result(partial, training, weights, f"{folder.resolve().parent.name}_{folder.name}")

    state = {"step": training.progress.best_step, "val_loss": training.progress.best_loss}
    checkpoints.save_checkpoint(folder, write, {}, state)
