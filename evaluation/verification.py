"""How well vectors tell speakers apart: the equal error rate of verification, over all pairs of their sounds."""

from collections.abc import Sequence

import numpy as np

from evaluation.intervals import Estimate, jackknife
from utils.cli import UserError


def equal_error_rate(same: np.ndarray, other: np.ndarray) -> float:
    """The share of errors at the threshold that refuses as many of `same` as it accepts of `other`.

    `same` are scores of pairs of one speaker, `other` of two; between two thresholds the rates are interpolated.
    """
    if not (len(same) and len(other)):
        raise UserError("an equal error rate: needs pairs of one speaker and pairs of two; give two speakers or more")
    same, other = np.sort(same), np.sort(other)
    thresholds = np.append(np.unique(np.concatenate([same, other])), np.inf)
    refused = np.searchsorted(same, thresholds) / len(same)
    accepted = 1 - np.searchsorted(other, thresholds) / len(other)
    after = int(np.argmax(refused >= accepted))  # from here on, more are refused; at the first threshold, none is
    gaps = accepted[after - 1 : after + 1] - refused[after - 1 : after + 1]
    return float(np.interp(0, -gaps, refused[after - 1 : after + 1]))


def verify_speakers(speakers: Sequence[str], vectors: np.ndarray, against: np.ndarray | None = None) -> Estimate:
    """The equal error rate by the cosines of unit rows, with an interval for other speakers (jackknife).

    `against`: rows of other sounds of the same speakers in the same order, such as recordings beside clones; then every
    row is compared with every one of these but that in its own place; those of other speakers may say the same.
    Without, with every other row. The interval needs three speakers.
    """
    names = np.asarray(speakers)
    scores = vectors @ (vectors if against is None else against).T
    is_pair = ~np.eye(len(names), dtype=bool)

    def rate(kept: np.ndarray) -> float:
        pairs = is_pair & np.isin(names, kept)[:, None] & np.isin(names, kept)
        same = names[:, None] == names
        return equal_error_rate(scores[pairs & same], scores[pairs & ~same])

    return jackknife([np.unique(names)], rate)
