"""What evaluate.py measures of one person or subject: identity, fidelity, and what training changed in the class."""

import logging
from collections.abc import Sequence

from evaluation import fidelity, identity
from evaluation.adherence import MOST_VALUES
from evaluation.features import CLIPS, Encoder, text_features
from evaluation.figures import Figure
from evaluation.image_sets import OWN, ImageSet, Record
from utils.catalogue import canonical
from utils.cli import UserError, counted

ENCODERS = ("clip", "dinov2", "demo")  # whose cosines measure how alike images are; Inception's were made for the FID
CLASS_SETS = ("prior_before", "prior_after")
SETS = ("instance_data_dir", *CLASS_SETS)
SAME = "generate both with generate.py, with the same prompts and seeds"

logger = logging.getLogger(__name__)


def check_flags(given: set[str], encoders: Sequence[str]) -> None:
    """`given`: the names of the flags that have a value."""
    if len(given & set(CLASS_SETS)) == 1:
        raise UserError("--prior_before and --prior_after: one does nothing without the other; give both")
    measured = given & set(SETS)
    if measured and not set(encoders) & set(ENCODERS):
        raise UserError(
            f"--{min(measured)}: is measured by an encoder; give one of {', '.join(ENCODERS)} in --encoders"
        )


def known_figures(given: set[str], encoders: Sequence[str]) -> list[str]:
    """The ids that metrics.json will have; where the images have no texts, there will be no fidelity/prompt."""
    found = [f"identity/{name}" for name in identity.KEYS] if "identity_reference" in given else []
    kinds = ["prompt"] if given & {"identity_reference", *SETS} else []
    kinds += ["subject"] if "instance_data_dir" in given else []
    if "prior_after" in given:
        kinds += [kind for kind in fidelity.PRIOR if kind != "prior_leak" or "instance_data_dir" in given]
    used = [name for name in encoders if name in ENCODERS]
    return found + [f"fidelity/{kind}/{name}" for name in used for kind in kinds if kind != "prompt" or name in CLIPS]


def pair_images(before: list[Record], after: list[Record]) -> list[tuple[int, int]]:
    """The places of class images of one file name; refuses another prompt or seed under that name."""
    tables = [{one["path"].name: i for i, one in enumerate(records)} for records in (before, after)]
    names = [name for name in tables[0] if name in tables[1]]
    if len(names) < fidelity.LEAST:
        raise UserError(
            f"--prior_before, --prior_after: {counted(len(names), 'image')} of the same file name, expected at least "
            f"{fidelity.LEAST}; {SAME}"
        )
    for name in names:
        pair = before[tables[0][name]], after[tables[1][name]]
        for key in ("text", "seed"):
            one, other = (record.get(key) for record in pair)
            if one is not None and other is not None and str(one) != str(other):
                raise UserError(f"--prior_after: {name} has the {key} {other!r}, in --prior_before {one!r}; {SAME}")
    if single := len(before) + len(after) - 2 * len(names):
        logger.warning("--prior_before, --prior_after: %s in one of them only, not used", counted(single, "image"))
    return [(tables[0][name], tables[1][name]) for name in names]


def judge_fidelity(encoder: Encoder, sets: dict[str, ImageSet]) -> list[Figure]:
    """The figures of one encoder; none of Inception's."""
    if encoder.name not in ENCODERS:
        return []
    figures, rows = [], {name: one.features[encoder.name] for name, one in sets.items()}
    instance, images, records = rows.get("instance_data_dir"), rows["generated"], sets["generated"].records
    if instance is not None:
        figures.append(fidelity.subject_similarity(instance, images, encoder.name))
    known = [i for i, one in enumerate(records) if one["text"]]
    if encoder.embed_texts and len(known) >= fidelity.LEAST:
        texts = text_features(encoder, [records[i]["text"] for i in known])
        figures.append(fidelity.prompt_similarity(images[known], texts, encoder.name))
    if "prior_before" in rows:
        before, after = zip(*pair_images(sets["prior_before"].records, sets["prior_after"].records))
        pair = rows["prior_before"][list(before)], rows["prior_after"][list(after)]
        figures += fidelity.prior_divergence(*pair, encoder.name, instance)
    return figures


def split_columns(records: list[Record], wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The prompts, and the attributes that differ between the images."""
    there = [key for key in dict.fromkeys(key for one in records for key in one) if key not in OWN]
    wanted = [canonical(key) for key in wanted or there]
    values = {key: {one[key] for one in records if one.get(key)} for key in ("text", *wanted)}
    return tuple(key for key, found in values.items() if 1 < len(found) <= MOST_VALUES)
