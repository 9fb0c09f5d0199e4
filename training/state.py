"""All that a training changes, and how it is written: as a checkpoint, and as the result that others load."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from families import shards
from training.optimizers import averages
from utils import checkpoints
from utils.cli import UserError
from utils.metrics_log import SMOOTHING


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
    # Of the next line of the log: what was recorded of each sample, and the seconds spent on each activity.
    rows_to_log: list[list[float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

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


class Files(Protocol):
    """How the weights of one kind of model are written and read."""

    @property
    def noun(self) -> str:
        """What a message calls the result."""

    def gather(self) -> Any:
        """The weights as they are now, whole. Where they are divided, all take part, and the first one gets them."""

    def write(self, folder: Path, weights: Any) -> None:
        """As a checkpoint holds them."""

    def read(self, folder: Path, files: dict[str, checkpoints.Tensors]) -> None:
        """Put back what `write` wrote, to the byte; `files` are those in the folder itself."""

    def write_result(self, folder: Path, weights: Any, name: str, began: float | None) -> None:
        """The result for users, under this name where it has one; `began`: when the training did."""


@dataclass(frozen=True)
class Training:
    """`average` is what is validated and kept of `parameters`: their EMA, or the start that episodes train.

    `files` say how the weights of the `modules` are kept; `facts` go into the files' metadata; a run that resumes must
    have the same `identity`.
    """

    modules: dict[str, torch.nn.Module]
    parameters: list[torch.nn.Parameter]
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    average: list[torch.Tensor] | None
    files: Files
    facts: dict[str, str]
    identity: dict[str, str]
    sharded: bool = False  # whether weights and optimizer state are divided among the processes
    progress: Progress = field(default_factory=Progress)


def note_loss(progress: Progress, loss: float | None) -> bool:
    """Note that this step is validated; whether its held-out loss is the best so far."""
    progress.validated = progress.step
    best = progress.best_loss
    if loss is None or not math.isfinite(loss) or (best is not None and not loss < best):
        progress.worse_in_a_row += loss is not None
        return False
    progress.best_loss, progress.best_step, progress.worse_in_a_row = loss, progress.step, 0
    return True


def update_average(average: list[torch.Tensor], parameters: Sequence[torch.Tensor], decay: float, step: int) -> None:
    """One step of an exponential moving average; `step` counts from 0.

    The decay rises to its value as in diffusers' EMAModel, so that a short training too forgets its first weights.
    """
    decay = min(decay, (1 + step) / (10 + step)) if step else 0.0
    with torch.no_grad():
        torch._foreach_lerp_(shards.local(average), shards.local(parameters), 1 - decay)


@contextmanager
def averaged_weights(training: Training) -> Iterator[None]:
    """The average in the place of the trained weights while the block runs, where there is one.

    Some optimizers keep one themselves. Their own way back would round: the weights are put back as they were.
    """
    optimizers: list[Any] = [one for one in training.optimizers.values() if averages(one)]
    if training.average is None and not optimizers:
        yield
        return
    weights = shards.local(training.parameters)
    own = [one.detach().clone() for one in weights]
    with torch.no_grad():
        if training.average is not None:
            torch._foreach_copy_(weights, shards.local(training.average))
        for one in optimizers:
            one.eval()
        try:
            yield
        finally:
            for one in optimizers:
                one.train()
            torch._foreach_copy_(weights, own)


@dataclass(frozen=True)
class Snapshot:
    """The tensors of a checkpoint, whole: the weights, `files` of optimizer and average, and what is no tensor."""

    weights: Any
    files: dict[str, checkpoints.Tensors]
    optimizers: dict[str, Any]


def take_snapshot(training: Training) -> Snapshot:
    """Of the training as it is now. Where it is divided, all processes take part, and the first one gets it."""
    files, optimizers = checkpoints.pack_optimizers(training.optimizers)
    if training.average is not None:
        files["average"] = {str(i): shards.gather(tensor) for i, tensor in enumerate(training.average)}
    return Snapshot(training.files.gather(), files, optimizers)


def save_training(folder: Path, training: Training, snapshot: Snapshot) -> None:
    """A checkpoint: weights, optimizer, average, progress."""
    state = {
        "progress": asdict(training.progress),
        "identity": training.identity,
        **snapshot.optimizers,
        "scaler": training.scaler.state_dict(),
    }

    def write(partial: Path) -> None:
        training.files.write(partial, snapshot.weights)

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
        made = "with" if "average" in files else "without"
        raise UserError(f"--use_ema: {folder} was made {made} an average of the weights; do the same")
    training.files.read(folder, files)
    try:
        checkpoints.restore_optimizers(training.optimizers, files, state)
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


def save_best(folder: Path, training: Training, weights: Any) -> None:
    """The result with the weights of the best validation, in the folder's place in one step."""

    def write(partial: Path) -> None:
        name = f"{folder.resolve().parent.name}_{folder.name}"
        training.files.write_result(partial, weights, name, training.progress.began)

    state = {"step": training.progress.best_step, "val_loss": training.progress.best_loss}
    checkpoints.save_checkpoint(folder, write, {}, state)
