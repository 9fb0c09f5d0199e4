"""What changes in a training, as one thing: built, saved as a checkpoint, put back from it, written at the end."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from families import lora, pipelines, tokens
from training import guards, optimizers
from utils import checkpoints
from utils.cli import UserError
from utils.files import write_safetensors

logger = logging.getLogger(__name__)


class Training(NamedTuple):
    """`progress` is plain: the step, the best held-out loss, what was skipped. `average` is the EMA of `parameters`.

    Adapters are trained, or where there is a `whole` model, all weights of its UNet and of the text encoders given.
    """

    unet: torch.nn.Module
    text_encoders: list[torch.nn.Module]
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: list[torch.Tensor] | None
    progress: dict
    token: tokens.Token | None = None  # a new word, whose embedding is trained too
    whole: pipelines.Base | None = None


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


def start_training(
    unet: torch.nn.Module,
    encoders: list[torch.nn.Module],
    groups: list[dict],
    optimizer: str,
    adam: tuple[tuple[float, float], float, float],
    device: torch.device,
    scaled: bool,
    use_ema: bool,
    token: tokens.Token | None = None,
    whole: pipelines.Base | None = None,
) -> Training:
    """Models on their device, with an optimizer of the groups; `adam` is betas, weight decay, epsilon.

    `scaled` where gradients are computed in float16.
    """
    for module in (unet, *encoders):
        module.to(device).train()
    if device.type == "cuda":  # what its convolutions like best; on a CPU it is slower
        unet.to(memory_format=torch.channels_last)
    parameters = [parameter for group in groups for parameter in group["params"]]
    made = optimizers.make_optimizer(optimizer, groups, *adam, device)
    scaler = torch.amp.GradScaler(device.type, enabled=scaled)
    average = [parameter.detach().clone() for parameter in parameters] if use_ema else None
    return Training(unet, encoders, parameters, made, scaler, average, new_progress(), token, whole)


def _modules(training: Training) -> dict[str, torch.nn.Module]:
    """By the names of their folders in a pipeline."""
    return {"unet": training.unet} | dict(zip(("text_encoder", "text_encoder_2"), training.text_encoders))


def write_weights(folder: Path, training: Training, facts: dict[str, str]) -> None:
    """What is trained, as it is now: the LoRA in the file that diffusers loads, or all weights, a file a part."""
    if training.whole:
        for name, module in _modules(training).items():
            state = {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}
            write_safetensors(folder / f"{name}.safetensors", state)
        return
    state = lora.lora_state(training.unet, training.text_encoders)
    lora.save_lora(folder, state, training.unet, training.text_encoders, facts)
    if training.token:
        tokens.write_token(folder, training.token, facts)


def write_result(folder: Path, training: Training, facts: dict[str, str]) -> None:
    """The same for those who will use it: where all weights were trained, a whole pipeline."""
    if training.whole:
        pipelines.write_pipeline(folder, training.whole, _modules(training), facts)
    else:
        write_weights(folder, training, facts)


def read_weights(files: dict[str, dict[str, torch.Tensor]], training: Training) -> None:
    """The way back of `write_weights`, to the byte."""
    if training.whole:
        for name, module in _modules(training).items():
            if name not in files:
                raise UserError(f"the checkpoint holds no {name}; give the --method and the parts it was made with")
            module.load_state_dict(files[name])
        return
    if "pytorch_lora_weights" not in files:
        raise UserError("the checkpoint holds no LoRA; give the --method that it was made with")
    lora.load_lora_state(files["pytorch_lora_weights"], training.unet, training.text_encoders)
    if training.token:
        tokens.load_token(files, training.token)


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
    checkpoints.save_checkpoint(folder, lambda partial: write_weights(partial, training, facts), files, state)


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
    read_weights(files, training)
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
    """The weights of the best held-out loss, in the folder's place in one step."""

    def write(partial: Path) -> None:
        with averaged_weights(training):
            write_result(partial, training, facts)

    state = {"step": training.progress["best_step"], "val_loss": training.progress["best_loss"]}
    checkpoints.save_checkpoint(folder, write, {}, state)
