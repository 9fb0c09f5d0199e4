"""Which generated images can't be used, by measures that need no encoder; each with its limit, and what photos gave.

The limits were checked on 226 catalogue photos (126 of footwear), as they are and prepared at 512 pixels. They are
for product photos on a plain background; the floor, the real set's own share, shows whether they fit it.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from evaluation.figures import Figure, Measured, measure_share, stratify
from evaluation.image_measures import COLOUR, COLUMNS
from evaluation.image_sets import ImageSet
from utils.images import Palette, measure_palette, place_in_palette

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
    "wrong_colour": "the object's most frequent colour is likelier for another label than for the one asked for, by "
    "the medians and spreads in CIELAB of the real images with each label",
}
FLOOR = "; the floor is the real set's share"
FLOORS = {"wrong_colour": f"{FLOOR}, with as many images of each colour as the generated set has"}


def real_palette(real: ImageSet | None) -> Palette:
    """What the real set's own labels of colours look like; empty without one."""
    if real is None:
        return measure_palette(np.empty((0, 3)), [])
    return measure_palette(real.measures[:, COLOUR], [one.get("colour") for one in real.records])


def find_failures(images: ImageSet, palette: Palette) -> dict[str, np.ndarray]:
    """{figure: for each image 1, 0, or NaN where it can't be checked}. Of an invalid image nothing else is checked.

    Not checked are colours that are not the palette's, or that most real images with that label don't show.
    """
    column = {name: images.measures[:, i] for i, name in enumerate(COLUMNS)}
    invalid, rough = column["fault"] > 0, column["border"] > ROUGH_RIM
    judged = [name for name, right in zip(palette.names, palette.right) if right > 0.5]
    asked = np.array([palette.names.index(w) if (w := one.get("colour")) in judged else -1 for one in images.records])
    shown = place_in_palette(palette, images.measures[:, COLOUR])
    found = {
        "background": rough,
        "cut_off": (column["touch"] > COVERED_RIM) & ~rough,  # a rough rim doesn't show what is cut off
        "too_small": column["extent"] < SMALL,
        "wrong_colour": np.where(asked < 0, np.nan, shown != asked),
    }
    return {"invalid": invalid.astype(float)} | {
        reason: np.where(invalid, np.nan, hits.astype(float)) for reason, hits in found.items()
    }


def describe_palette(palette: Palette) -> str:
    """Which colours are checked, and which share of the real images shows its own."""
    shares = [f"{name} {right:.0%} of {n:.0f}" for name, n, right in zip(palette.names, palette.counts, palette.right)]
    return f" ({', '.join(shares)} show their own; with half or fewer a colour is not checked)" if shares else ""


def judge_failures(generated: ImageSet, real: ImageSet | None) -> tuple[list[Figure], list[dict[str, Any]]]:
    """The figures, and for the report their counts with examples."""
    palette = real_palette(real)
    found, in_real = find_failures(generated, palette), find_failures(real, palette) if real else {}
    floors = {reason: known_share(hits) for reason, hits in in_real.items()}
    wrong = [
        {"value": name, "mean": 1 - palette.right[i], "n": palette.counts[i]} for i, name in enumerate(palette.names)
    ]
    asked = [one.get("colour") for one, hit in zip(generated.records, found["wrong_colour"]) if not np.isnan(hit)]
    floors["wrong_colour"] = stratify(wrong, asked)
    figures, listed = [], []
    for one in FIGURES:
        limit = LIMITS[one.id] + (describe_palette(palette) if one.id == "wrong_colour" else "")
        figure, share = one.of(None, limit + FLOORS.get(one.id, FLOOR) * bool(real)), known_share(found[one.id])
        if not share:
            figures.append(figure.refuse("no prompt asks for a colour that 5 real images have and most of them show"))
            continue
        figures.append(replace(figure, measured=replace(share, floor=floors.get(one.id))))
        failing = np.flatnonzero(found[one.id] == 1)
        counts = {"reason": one.name, "count": len(failing), "n": share.n}
        ends = {"share": share.value, "low": share.low, "high": share.high, "threshold": limit}
        shown = sorted(np.random.default_rng(0).permutation(failing)[:SHOWN])
        listed.append(counts | ends | {"examples": [generated.paths[i] for i in shown]})
    return figures, listed


def known_share(hits: np.ndarray) -> Measured | None:
    """The share of hits among the images that could be checked; None if there were none."""
    known = hits[~np.isnan(hits)]
    return measure_share(known > 0) if len(known) else None
