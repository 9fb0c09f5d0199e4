"""Kernel and distance matrices a few rows at a time, so that they need not fit into memory."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 4_000_000  # numbers of a kernel or distance matrix in memory at a time: 32 MB
CMMD_SIGMA = 10  # as published, for embeddings of length 1
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // columns)
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a|² + |b|² − 2ab from b's first row as the origin, so that equal sets give zeros; rounding errors become 0."""
    a, b = a - b[0], b - b[0]
    a_lengths, b_lengths = (a**2).sum(1)[:, None], (b**2).sum(1)
    squared = a @ b.T
    squared *= -2
    squared += a_lengths
    squared += b_lengths
    rows, columns = np.nonzero(squared < 1e-13 * (a_lengths + b_lengths.max()))
    rounding = squared[rows, columns] < 1e-13 * (a_lengths[rows, 0] + b_lengths[columns])
    squared[rows[rounding], columns[rounding]] = 0
    return squared


def polynomial_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a·b/d + 1)³, the kernel of KID (Bińkowski et al. 2018, arXiv 1801.01401)."""
    base = a @ b.T
    base /= a.shape[1]
    base += 1
    return base * base * base  # ** 3 takes four times as long


def gaussian_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """exp(−|a − b|² / 2σ²) with σ = 10, the kernel of CMMD (Jayasumana et al. 2024, arXiv 2401.09603)."""
    exponents = squared_distances(a, b)
    exponents /= -2 * CMMD_SIGMA**2
    return np.exp(exponents, out=exponents)


def kernel_diagonal(features: np.ndarray, kernel: Kernel) -> np.ndarray:
    if kernel is gaussian_kernel:
        return np.ones(len(features))
    return ((features**2).sum(1) / features.shape[1] + 1) ** 3


class KernelSums(NamedTuple):
    """Sums of the kernel matrix K of two sets."""

    rows: np.ndarray
    columns: np.ndarray
    squares: float  # the sum of the squares of all its elements
    forms: np.ndarray  # l K r for each pair of weights


def kernel_sums(a: np.ndarray, b: np.ndarray, kernel: Kernel, left: np.ndarray, right: np.ndarray) -> KernelSums:
    """The sums of the kernel matrix of two sets; `left` and `right` are weights of their items, one vector a row."""
    rows, columns, squares, forms = np.empty(len(a)), np.zeros(len(b)), 0.0, np.zeros(len(left))
    for block in blocks(len(a), len(b)):
        part = kernel(a[block], b)
        rows[block] = part.sum(1)
        columns += part.sum(0)
        squares += float(np.vdot(part, part))
        forms += np.einsum("rj,rj->r", left[:, block] @ part, right)
    return KernelSums(rows, columns, squares, forms)
