"""Labels of colours that an image contradicts, for a person to look at."""

from typing import NamedTuple

import numpy as np

from preparation.records import ImageFacts
from utils.catalogue import Product
from utils.images import measure_palette

SPREADS = 3  # of a label's images, in the channel that differs most: more is unusual for it
FAR, NEAR = 30, 15  # units of CIELAB from a label's median: other colours to any eye, and about the same one


class Contradiction(NamedTuple):
    id: str
    label: str
    looks: str  # the label whose images it looks like

    def __str__(self) -> str:
        return f"{self.id}: labelled {self.label}, looks {self.looks}"


def find_contradictions(products: list[Product], images: dict[str, ImageFacts]) -> list[Contradiction]:
    """The products whose object is far from all that has its label, and near what has another label."""
    labelled = [one for one in products if one.attributes.get("colour") and images[one.id].colour is not None]
    labels = [str(one.attributes["colour"]) for one in labelled]
    colours = np.array([images[one.id].colour for one in labelled]).reshape(-1, 3)
    palette = measure_palette(colours, labels)
    if not palette.names:
        return []
    apart = colours[:, None] - palette.medians
    unusual, distance = np.abs(apart / palette.spreads).max(2) > SPREADS, np.linalg.norm(apart, axis=2)
    likely = np.where(palette.right > 0.5, distance, np.inf)  # not a label that its own images do not show
    found = []
    for i, (one, label) in enumerate(zip(labelled, labels)):
        if label in palette.names:
            own, other = palette.names.index(label), int(likely[i].argmin())
            if unusual[i, own] and distance[i, own] > FAR and likely[i, other] < NEAR:
                found.append(Contradiction(one.id, label, palette.names[other]))
    return found
