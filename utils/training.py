"""What changes while a LoRA is trained, as one thing: saved as a checkpoint, and put back from it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from utils import checkpoints, guards, lora
from utils.cli import UserError

logger = logging.getLogger(__name__)


class Training(NamedTuple):
    """`progress` is plain: the step, the best held-out loss, what was skipped. `average` is the EMA of `parameters`."""

    unet: torch.nn.Module
    text_encoders: list[torch.nn.Module]
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: list[torch.Tensor] | None
    progress: dict


def new_progress() -> dict:
    return {
        "step": 0,
        "loss_smooth": None,
        "validated": -1,  # the last step that was validated
        "best_loss": None,
        "best_step": None,
        "worse_in_a_row": 0,
        "skipped": [],
        "skipped_in_a_row": 0,
        "rolled_back": False,
    }


@contextmanager
def averaged_weights(training: Training) -> Iterator[None]:
    """The average in the place of the trained weights while the block runs, where there is one."""
    if training.average is None:
        yield
        return
    own = [parameter.detach().clone() for parameter in training.parameters]
    with torch.no_grad():
        torch._foreach_copy_(training.parameters, training.average)
        try:
            yield
        finally:
            torch._foreach_copy_(training.parameters, own)


def write_lora(folder: Path, training: Training, facts: dict[str, str]) -> None:
    """The LoRA as it is now, in the file that diffusers loads."""
    state = lora.lora_state(training.unet, training.text_encoders)
    lora.save_lora(folder, state, training.unet, training.text_encoders, facts)


def kohya_path(folder: Path) -> Path:
    return folder / f"{folder.resolve().name}_kohya.safetensors"


def write_kohya(folder: Path, training: Training, facts: dict[str, str], family: str) -> None:
    """The same for A1111 and ComfyUI, in a file with the name of the folder."""
    state = lora.lora_state(training.unet, training.text_encoders)
    lora.save_kohya(kohya_path(folder), state, training.unet, training.text_encoders, family, facts)


def save_training(folder: Path, training: Training, identity: dict, facts: dict[str, str]) -> None:
    """A checkpoint. `identity` is what a run that resumes from it must have in common with this one."""
    tensors, rest = checkpoints.pack_optimizer(training.optimizer.state_dict())
    files = {"optimizer": tensors}
    if training.average is not None:
        files["average"] = {str(i): tensor for i, tensor in enumerate(training.average)}
    state = {
        "progress": training.progress,
        "identity": identity,
        "optimizer": rest,
        "scaler": training.scaler.state_dict(),
    }
    checkpoints.save_checkpoint(folder, lambda partial: write_lora(partial, training, facts), files, state)


@torch.no_grad()
def restore_training(folder: Path, training: Training, identity: dict) -> None:
    """Put back all that a verified checkpoint holds; one of another `identity` is refused."""
    files, state = checkpoints.load_checkpoint(folder)
    if "identity" not in state:
        raise UserError(
            f"--resume_from_checkpoint {folder}: holds a LoRA alone, and no state of a training; "
            "name a checkpoint-<step> folder"
        )
    changed = [name for name in identity if identity[name] != state["identity"].get(name)]
    if changed:
        raise UserError(
            f"--resume_from_checkpoint {folder}: since then the {' and '.join(changed)} has changed; "
            "bring it back, name another --output_dir, or begin anew with --overwrite"
        )
    if (training.average is not None) != ("average" in files):
        raise UserError(f"--use_ema: {folder} was made {'with' if 'average' in files else 'without'} it; do the same")
    lora.load_lora_state(files["pytorch_lora_weights"], training.unet, training.text_encoders)
    try:
        training.optimizer.load_state_dict(checkpoints.unpack_optimizer(files["optimizer"], state["optimizer"]))
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--resume_from_checkpoint {folder}: its optimizer's state doesn't fit ({' '.join(str(error).split())}); "
            "--optimizer and --train_text_encoder must be those it was made with"
        ) from error
    if state["scaler"]:  # none where it was saved on hardware that trains without one
        training.scaler.load_state_dict(state["scaler"])
    for i, tensor in enumerate(training.average or []):
        tensor.copy_(files["average"][str(i)])
    training.progress.update(state["progress"])


def roll_back(folder: Path, training: Training, identity: dict) -> None:
    """The weights and the optimizer of a checkpoint, while the step goes on: what broke it is not trained again."""
    kept = dict(training.progress)
    restore_training(folder, training, identity)
    training.progress.update(kept, rolled_back=True, skipped_in_a_row=0)


def skip_step(policy: str, story: str, training: Training, saved: Path | None, identity: dict) -> None:
    """What --on_nonfinite says: go on without this step, from the weights of the last checkpoint perhaps, or stop."""
    progress = training.progress
    action = guards.nonfinite_action(policy, progress, has_checkpoint=bool(saved))
    if action == "stop":
        raise UserError(f"{story}; skipped before: {progress['skipped'] or 'none'}. {guards.ADVICE}")
    logger.warning("%s: %s", story, action)
    if action == "rollback":
        roll_back(saved, training, identity)
    progress["skipped"].append(progress["step"])
    progress["skipped_in_a_row"] += 1


def save_best(folder: Path, training: Training, facts: dict[str, str]) -> None:
    """The LoRA of the best held-out loss, in the folder's place in one step."""

    def write(partial: Path) -> None:
        with averaged_weights(training):
            write_lora(partial, training, facts)

    state = {"step": training.progress["best_step"], "val_loss": training.progress["best_loss"]}
    checkpoints.save_checkpoint(folder, write, {}, state)
