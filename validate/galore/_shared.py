"""What the claims of GaLore share: stable ranks on the host, and draws of the gradient's operators."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


def stable_ranks(x: Float[np.ndarray, "*batch rows columns"]) -> Float[np.ndarray, "*batch"]:
    """As `metrics.stable_rank`, for a recorded batch: on the host, it compiles nothing."""
    singular = np.linalg.svd(x, compute_uv=False)
    return (singular**2).sum(-1) / singular[..., 0] ** 2


class Operators(NamedTuple):
    """Draws of `G(W) = (1/N) Σ (A_i − B_i W C_i)`, each with a leading axis `draws`: arrays of numpy or of JAX."""

    a: Any  # (draws, samples, rows, columns)
    b: Any  # (draws, samples, rows, rows)
    c: Any  # (draws, samples, columns, columns)
    w: Any  # (draws, rows, columns), where descent starts


def orthonormal(rng: np.random.Generator, draws: int, size: int, rank: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((draws, size, rank)))[0]


def psd(rng: np.random.Generator, shape: tuple[int, ...], size: int, full: bool) -> np.ndarray:
    """Positive semidefinite matrices `XXᵀ` of normal X; unless `full`, of every rank from one on, equally likely."""
    rank = np.full(shape, size) if full else rng.integers(1, size + 1, size=shape)
    x = rng.standard_normal((*shape, size, size)) * (np.arange(size) < rank[..., None])[..., None, :]
    return x @ x.swapaxes(-1, -2)


def draw_operators(
    rng: np.random.Generator, draws: int, size: tuple[int, int], *, full: bool = False, terms: int | None = None
) -> Operators:
    """Normal A and W, and B and C of all ranks (with `full`, of full rank only); of the four samples a random number
    has B ≠ 0, or as many as `terms` says."""
    (rows, columns), samples = size, 4
    number = rng.integers(1, samples + 1, size=draws) if terms is None else np.full(draws, terms)
    b, c = psd(rng, (draws, samples), rows, full), psd(rng, (draws, samples), columns, full)
    b = b * (np.arange(samples) < number[:, None])[:, :, None, None]
    return Operators(rng.standard_normal((draws, samples, *size)), b, c, rng.standard_normal((draws, *size)))
