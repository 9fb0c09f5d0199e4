"""Which generated images can't be used, by measures that need no encoder; each with its limit, and what photos gave.

The limits were looked at on 226 catalogue photos (126 of footwear), as they are and prepared at 512 pixels. They are
for product photos on a plain background; the real set's own share stands beside each, and says whether they fit it.
"""

import numpy as np

from evaluation import assessment
from evaluation.image_measures import COLUMNS, PALETTE, colour_group

ROUGH_RIM, COVERED_RIM, SMALL = 25.0, 0.02, 0.4
SHOWN = 12
LIMITS = {
    "invalid": ("Invalid images", "unreadable, black, of one colour or noise; none of 226 catalogue photos is"),
    "background": (
        "Background not clean",
        f"a quarter of the rim is more than {ROUGH_RIM:g} levels of 255 from its median; 8 of 226 photos are so "
        "(3 shaded to the rim, 5 with a model cut off along it), 2 once prepared",
    ),
    "cut_off": (
        "Object cut off",
        f"more than {COVERED_RIM:.0%} of the rim is over 40 levels from its median; none of 126 footwear photos is so, "
        "42 of 100 others are, worn by models whom the photo cuts off",
    ),
    "too_small": (
        "Object too small",
        f"the box around the object is shorter than {SMALL:.0%} of the image's side; 1 of 226 photos is so, none "
        "once prepared",
    ),
    "wrong_colour": (
        "Not the colour asked for",
        "most of the object is nearer to another of 13 colours than to the one in its attributes; 86 of 225 photos are "
        "so: the measure is coarse, and tells by how far it is from the real set's share",
    ),
}


def find_failures(records: list[dict], rows: np.ndarray) -> dict[str, np.ndarray]:
    """{reason: for each image 1, 0, or NaN where it can't be asked}. What is invalid is nothing else besides."""
    column = {name: rows[:, i] for i, name in enumerate(COLUMNS)}
    invalid = column["fault"] > 0
    names = list(PALETTE)
    measured = [names[int(place)] if place >= 0 else None for place in column["colour"]]
    wanted = [colour_group(record.get("colour")) for record in records]
    wrong = [np.nan if want is None else float(got != want) for got, want in zip(measured, wanted)]
    rough = column["border"] > ROUGH_RIM
    found = {
        "background": rough,
        "cut_off": (column["touch"] > COVERED_RIM) & ~rough,  # of a rim that is not plain one can't tell
        "too_small": column["extent"] < SMALL,
        "wrong_colour": np.array(wrong, float),
    }
    return {"invalid": invalid.astype(float)} | {
        reason: np.where(invalid, np.nan, hits.astype(float)) for reason, hits in found.items()
    }


def judge(records: list[dict], rows: np.ndarray, real: list[dict], real_rows: np.ndarray) -> tuple[list, list]:
    """The figures of group `failures`, and the counts with examples."""
    found, floors = find_failures(records, rows), find_failures(real, real_rows)
    figures, listed = [], []
    for reason, (name, threshold) in LIMITS.items():
        known, real_known = (~np.isnan(one[reason]) for one in (found, floors))
        how = threshold + ("; the floor is the real set's share" if real else "")
        one = assessment.figure(reason, "failures", name, "lower", "%", how)
        if not known.any():
            figures.append(assessment.refused(one, "no image is asked to have a colour that is known here"))
            continue
        share = assessment.share(found[reason][known] > 0)
        floor = assessment.share(floors[reason][real_known] > 0) if real_known.any() else None
        figures.append(assessment.fill(one, share, floor))
        failing = np.flatnonzero(found[reason] == 1)
        shown = np.random.default_rng(0).permutation(failing)[:SHOWN]
        listed.append(
            {
                "reason": name,
                "count": len(failing),
                "n": share["n"],
                "share": share["value"],
                "low": share["low"],
                "high": share["high"],
                "threshold": threshold,
                "examples": [records[i]["path"] for i in sorted(shown)],
            }
        )
    return figures, listed
