"""Which generated images can't be used, by measures that need no encoder; each with its limit, and what photos gave.

The limits were checked on 226 catalogue photos (126 of footwear), as they are and prepared at 512 pixels. They are
for product photos on a plain background; the floor, the real set's own share, shows whether they fit it.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.figures import Figure, Measured, measure_share
from evaluation.image_measures import COLUMNS, PALETTE, colour_group
from evaluation.image_sets import ImageSet

ROUGH_RIM, COVERED_RIM, SMALL = 25.0, 0.02, 0.4
SHOWN = 12


FIGURES = (
    Figure("invalid", "failures", "Invalid images", "lower", "%"),
    Figure("background", "failures", "Background not clean", "lower", "%"),
    Figure("cut_off", "failures", "Object cut off", "lower", "%"),
    Figure("too_small", "failures", "Object too small", "lower", "%"),
    Figure("wrong_colour", "failures", "Not the colour asked for", "lower", "%"),
)
LIMITS = {
    "invalid": "unreadable, black, of one colour or noise; none of 226 catalogue photos is",
    "background": f"a quarter of the rim is more than {ROUGH_RIM:g} levels of 255 from its median; 8 of 226 photos are "
    "so (3 shaded to the rim, 5 with a model cut off along it), 2 when prepared",
    "cut_off": f"more than {COVERED_RIM:.0%} of the rim is over 40 levels from its median; none of 126 footwear photos "
    "is so, 42 of 100 others are, worn by models that the photo cuts off",
    "too_small": f"the box around the object is shorter than {SMALL:.0%} of the image's side; 1 of 226 photos is so, "
    "none when prepared",
    "wrong_colour": "most of the object is nearer to another of 13 colours than to the one in its attributes; so "
    "are 86 of 225 photos: the measure is coarse, compare it with the real set's share",
}


def find_failures(images: ImageSet) -> dict[str, np.ndarray]:
    """{figure: for each image 1, 0, or NaN where it can't be checked}. Of an invalid image nothing else is checked."""
    column = {name: images.measures[:, i] for i, name in enumerate(COLUMNS)}
    invalid = column["fault"] > 0
    names = list(PALETTE)
    measured = [names[int(place)] if place >= 0 else None for place in column["colour"]]
    wanted = [colour_group(record.get("colour")) for record in images.records]
    wrong = [np.nan if want is None else float(got != want) for got, want in zip(measured, wanted)]
    rough = column["border"] > ROUGH_RIM
    found = {
        "background": rough,
        "cut_off": (column["touch"] > COVERED_RIM) & ~rough,  # a rough rim doesn't show what is cut off
        "too_small": column["extent"] < SMALL,
        "wrong_colour": np.array(wrong, float),
    }
    return {"invalid": invalid.astype(float)} | {
        reason: np.where(invalid, np.nan, hits.astype(float)) for reason, hits in found.items()
    }


def judge_failures(generated: ImageSet, real: ImageSet | None) -> tuple[list[Figure], list[dict[str, Any]]]:
    """The figures, and for the report their counts with examples."""
    found, floors = find_failures(generated), find_failures(real) if real else {}
    figures, listed = [], []
    for one in FIGURES:
        figure = one.of(None, LIMITS[one.id] + ("; the floor is the real set's share" if real else ""))
        share = known_share(found[one.id])
        if not share:
            figures.append(figure.refuse("no prompt names a colour that this check knows"))
            continue
        floor = known_share(floors[one.id]) if real else None
        figures.append(replace(figure, measured=replace(share, floor=floor)))
        failing = np.flatnonzero(found[one.id] == 1)
        counts = {"reason": one.name, "count": len(failing), "n": share.n}
        ends = {"share": share.value, "low": share.low, "high": share.high, "threshold": LIMITS[one.id]}
        shown = sorted(np.random.default_rng(0).permutation(failing)[:SHOWN])
        listed.append(counts | ends | {"examples": [generated.paths[i] for i in shown]})
    return figures, listed


def known_share(hits: np.ndarray) -> Measured | None:
    """The share of hits among the images that could be checked; None if there were none."""
    known = hits[~np.isnan(hits)]
    return measure_share(known > 0) if len(known) else None
