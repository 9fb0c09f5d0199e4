"""Kernel and distance matrices a few rows at a time, and the squared maximum mean discrepancy (MMD) from them."""

from collections.abc import Callable, Iterator

import numpy as np

BLOCK = 4_000_000  # numbers of a kernel or distance matrix in memory at a time: 32 MB
CMMD_SIGMA = 10  # as published, for embeddings of length 1


def blocks(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, BLOCK // columns)
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a|² + |b|² − 2ab, taken from b's first row, so that equal sets give zeros; what is only rounding is 0."""
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
    base = a @ b.T
    base /= a.shape[1]
    base += 1
    return base * base * base  # ** 3 takes four times as long


def gaussian_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    exponents = squared_distances(a, b)
    exponents /= -2 * CMMD_SIGMA**2
    return np.exp(exponents, out=exponents)


def kernel_sums(
    a: np.ndarray, b: np.ndarray, kernel: Callable, left: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Of the matrix K: sums by row and column, the sum of squares, and l K r for the rows of `left` and `right`."""
    rows, columns, squares, forms = np.empty(len(a)), np.zeros(len(b)), 0.0, np.zeros(len(left))
    for block in blocks(len(a), len(b)):
        part = kernel(a[block], b)
        rows[block] = part.sum(1)
        columns += part.sum(0)
        squares += np.vdot(part, part)
        forms += np.einsum("rj,rj->r", left[:, block] @ part, right)
    return rows, columns, float(squares), forms


def kernel_diagonal(features: np.ndarray, kernel: Callable) -> np.ndarray:
    if kernel is gaussian_kernel:
        return np.ones(len(features))
    return ((features**2).sum(1) / features.shape[1] + 1) ** 3


def mmd(real: np.ndarray, generated: np.ndarray, kernel: Callable, biased: bool) -> float:
    none = np.empty((0, len(real))), np.empty((0, len(generated)))
    value = -2 * kernel_sums(real, generated, kernel, *none)[0].sum() / (len(real) * len(generated))
    for features, nothing in zip((real, generated), none):
        n, own = len(features), kernel_sums(features, features, kernel, nothing, nothing)[0].sum()
        value += own / n**2 if biased else (own - kernel_diagonal(features, kernel).sum()) / (n * (n - 1))
    return float(value)
