"""A whole diffusers pipeline in a run's folder, around the parts that were trained."""

from pathlib import Path
from typing import NamedTuple

import torch

from families import models
from families.whole_file import save_whole
from utils.files import save_model, write_json
from utils.outputs import flush_folder, partial_folder, put_in_place


class BaseModel(NamedTuple):
    """The model that was trained, and the changes in its noise schedule, which sampling must use too."""

    model: str
    schedule: dict[str, str | bool]
    vae: str | None = None  # in place of its own


def write_pipeline(
    folder: Path,
    base: BaseModel,
    trained: dict[str, torch.nn.Module],
    facts: dict[str, str],
    single_file: Path | None = None,
) -> None:
    """Its parts in float32, those not trained as the base has them, so that the folder is a model like any other.

    Written to a temporary folder first; model_index.json, without which it is no pipeline, is moved last. Before that,
    all of it is written to `single_file` too, for other programs.
    """
    vae = {"vae": models.load_vae(base.model, vae=base.vae)} if base.vae else {}
    pipeline = models.fill_pipeline(base.model, trained | vae, torch.float32)
    pipeline.scheduler.register_to_config(**base.schedule)
    if single_file:
        save_whole(single_file, pipeline, models.model_family(base.model), facts)
    with partial_folder(folder / "pipeline") as new:
        save_model(pipeline, new, safe_serialization=True)
        write_json(new / "unet" / "training.json", facts)
        flush_folder(new)
        index = folder / "model_index.json"
        index.unlink(missing_ok=True)
        for entry in sorted(new.iterdir(), key=lambda one: one.name == index.name):
            put_in_place(entry, folder / entry.name)
