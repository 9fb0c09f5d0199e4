"""What evaluate.py says of one person or one subject: identity, fidelity, and what training did to the class."""

import argparse
import logging
from pathlib import Path

import numpy as np

from evaluation import adherence, fidelity, identity
from evaluation.features import CLIPS, Encoder, text_features
from evaluation.image_sets import OWN
from utils import faces
from utils.cli import UserError, counted
from utils.tables import canonical

ENCODERS = ("clip", "dinov2", "demo")  # whose cosines say how alike two images are; Inception's were made for the FID
PRIOR = ("prior_before", "prior_after")
SETS = ("instance_data_dir", *PRIOR)
IDENTITY = [f"identity/{name}" for name in ("face_found", "centroid", "nearest", "verified")]
WITHOUT_REAL = "Without --real nothing says of quality, variety, novelty, or of the faults of product photos."

logger = logging.getLogger(__name__)


def add_subject_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("one person or subject (--real is then optional)")
    group.add_argument(
        "--identity_reference", type=Path, metavar="DIR", help="photos of one person, best several not trained on"
    )
    faces.add_face_flags(group, crop=False, embedder=True)
    group.add_argument("--instance_data_dir", type=Path, metavar="DIR", help="photos of the subject that was trained")
    group.add_argument("--prior_before", type=Path, metavar="DIR", help="class images drawn without the training")
    group.add_argument("--prior_after", type=Path, metavar="DIR", help="with it, of the same prompts and seeds")


def check_flags(given: set[str], encoders: list[str]) -> None:
    """`given`: the names of the flags that have a value."""
    if len(given & set(PRIOR)) == 1:
        raise UserError("--prior_before and --prior_after: one says nothing without the other; give both")
    measured = given & set(SETS)
    if measured and not set(encoders) & set(ENCODERS):
        raise UserError(
            f"--{min(measured)}: is measured by an encoder; name one of {', '.join(ENCODERS)} in --encoders"
        )


def known_figures(given: set[str], encoders: list[str]) -> list[str]:
    """The ids that metrics.json will have; where the images carry no texts, there will be no fidelity/prompt."""
    found = list(IDENTITY) if "identity_reference" in given else []
    kinds = ["prompt"] if given & {"identity_reference", *SETS} else []
    kinds += ["subject"] if "instance_data_dir" in given else []
    if "prior_after" in given:
        kinds += ["prior_distance", "prior_variety"] + (["prior_leak"] if "instance_data_dir" in given else [])
    told = [name for name in encoders if name in ENCODERS]
    return found + [f"fidelity/{kind}/{name}" for name in told for kind in kinds if kind != "prompt" or name in CLIPS]


def pair_images(before: list[dict], after: list[dict]) -> list[tuple[int, int]]:
    """The places of class images of one file name; where a prompt or seed is said, it must be the same."""
    tables = [{one["path"].name: i for i, one in enumerate(records)} for records in (before, after)]
    names = [name for name in tables[0] if name in tables[1]]
    if len(names) < fidelity.LEAST:
        raise UserError(
            f"--prior_before, --prior_after: {counted(len(names), 'image')} of the same file name, needs at least "
            f"{fidelity.LEAST}; draw both with generate.py, with the same prompts and seeds"
        )
    for name in names:
        pair = before[tables[0][name]], after[tables[1][name]]
        for key in ("text", "seed"):
            one, other = (record.get(key) for record in pair)
            if one is not None and other is not None and str(one) != str(other):
                raise UserError(
                    f"--prior_after: {name} has the {key} {other!r}, in --prior_before {one!r}; draw both with the "
                    "same prompts and seeds"
                )
    if lacking := len(before) + len(after) - 2 * len(names):
        logger.warning("--prior_before, --prior_after: %s in one of them only, left out", counted(lacking, "image"))
    return [(tables[0][name], tables[1][name]) for name in names]


def judge_fidelity(encoder: Encoder, rows: dict[str, np.ndarray], sets: dict[str, list[dict]]) -> list[dict]:
    """The figures of one encoder; `rows`: {set: features}."""
    figures, instance, drawn = [], rows.get("instance_data_dir"), rows["generated"]
    if instance is not None:
        figures += fidelity.subject_similarity(instance, drawn, encoder.name)
    told = [i for i, one in enumerate(sets["generated"]) if one["text"]]
    if encoder.embed_texts and len(told) >= fidelity.LEAST:
        texts = text_features(encoder, [sets["generated"][i]["text"] for i in told])
        figures += fidelity.prompt_similarity(drawn[told], texts, encoder.name)
    if "prior_before" in rows:
        before, after = zip(*pair_images(sets["prior_before"], sets["prior_after"]))
        pair = rows["prior_before"][list(before)], rows["prior_after"][list(after)]
        figures += fidelity.prior_divergence(*pair, encoder.name, instance)
    return figures


def split_columns(records: list[dict], wanted: list[str] | None) -> tuple[str, ...]:
    """The prompts, and the attributes that differ between the images."""
    there = [key for key in dict.fromkeys(key for one in records for key in one) if key not in OWN]
    wanted = [canonical(key) for key in wanted or there]
    values = {key: {one[key] for one in records if one.get(key)} for key in ("text", *wanted)}
    return tuple(key for key, found in values.items() if 1 < len(found) <= adherence.MOST_VALUES)


def judge_subject(
    encoders: list[Encoder],
    rows: dict[str, dict],
    sets: dict[str, list[dict]],
    references: list[Path],
    models: faces.Faces | None,
    attributes: list[str] | None,
) -> dict:
    """{"figures", "splits", "identity" (of those references, where there are models)} for metrics.json."""
    found = {"figures": [], "splits": {}}
    if models:
        images = sets["all generated"]
        compared = identity.compare_identity(references, images, models, split_columns(images, attributes))
        found = {key: compared.pop(key) for key in ("figures", "splits")} | {"identity": compared}
    for encoder in encoders:
        if encoder.name in ENCODERS:
            found["figures"] += judge_fidelity(encoder, rows[encoder.name], sets)
    return found
