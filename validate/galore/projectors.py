"""How much of a gradient each way of finding a basis keeps."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy

from ...nets import galore as gl
from ..checks import agrees, at_most, evidence, relative, rounding, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ._shared import orthonormal

NOISE = 0.5  # of the gradient that the basis in use was made from, relative to ‖G‖_F
NARROW, RANDOM = "gram_eigh, kept in bfloat16", "random_orthonormal"
EXACT = ("exact_svd", "gram_eigh")
SKETCHES = tuple(f"randomized, q = {q}" for q in range(3))
PROJECTORS = {
    **{name: gl.randomized_range(power_iters=q) for q, name in enumerate(SKETCHES)},
    "exact_svd": gl.exact_svd(),
    "gram_eigh": gl.gram_eigh(),
    "warm × 1": gl.subspace_iteration(1),
    "warm × 2": gl.subspace_iteration(2),
    RANDOM: gl.random_orthonormal(),
    NARROW: gl.gram_eigh(),
}
SPECTRA = {"i^−1/2": 0.5, "i^−1": 1.0}  # singular values σ_i = i^−power


def _with_spectrum(rng: np.random.Generator, size: tuple[int, int], power: float) -> np.ndarray:
    """A matrix of singular values i^−power, turned by one dense reflection on either side."""
    u, v = (x / np.linalg.norm(x) for x in map(rng.standard_normal, size))
    g = np.zeros(size)
    np.fill_diagonal(g, np.arange(1, len(u) + 1) ** -power)
    g -= np.outer(2 * u, u @ g)
    return g - np.outer(g @ v, 2 * v)


@functools.partial(jax.jit, static_argnames=("names", "r"))
def _bases(g, used, names, r):
    """The bases of g through the transform, where `used` is the basis in use."""

    def refreshed(name: str) -> Any:
        options = {"projector_dtype": jnp.bfloat16} if name == NARROW else {}
        state: Any = gl.scale_by_galore(optax.identity(), r, side="left", **options).init(g)
        state = state._replace(left=used.astype(state.left.dtype))
        return gl.galore_refresh(state, g, projector=PROJECTORS[name]).left

    return {name: refreshed(name) for name in names}


def _expected(singular: np.ndarray, columns: int, power_iters: int) -> float:
    """The energy that a random sketch of so many columns keeps, in the limit of large matrices: the projector onto
    `S^{1/2} Z` is on average `S (S + κ)⁻¹`, of trace `columns`, with `S = (G Gᵀ)^{2q+1}` (Dereziński et al., 2020)."""
    s = singular ** (2 * (2 * power_iters + 1))
    trace = lambda log_kappa: np.sum(s / (s + np.exp(log_kappa))) - columns
    root: Any = scipy.optimize.brentq(trace, np.log(s[-1]) - 20, np.log(s.sum()) + 20)
    return float(np.sum(singular**2 * s / (s + np.exp(root))))


def _measure(
    rng: np.random.Generator, label: str, size: tuple[int, int], r: int, names: Sequence[str], *, warm: bool = False
) -> dict[tuple[str, str], tuple[float, float]]:
    """The share of the best energy that each basis keeps, and how far it is from orthonormal."""
    g, used = _with_spectrum(rng, size, SPECTRA[label]), np.zeros((size[0], r))
    if warm:
        noise = rng.standard_normal(size)
        x = (g + NOISE * np.linalg.norm(g) / np.linalg.norm(noise) * noise).astype(np.float32)
        used = scipy.linalg.eigh(x @ x.T, subset_by_index=(len(x) - r, len(x) - 1))[1][:, ::-1]
    best, found = np.sum(np.arange(1.0, r + 1) ** (-2 * SPECTRA[label])), {}
    for name, basis in _bases(g, used.astype(g.dtype), tuple(names), r).items():
        p = np.asarray(basis, float)
        found[label, name] = np.sum((p.T @ g) ** 2) / best, np.abs(p.T @ p - np.eye(r)).max()
    return found


@claim(
    "Singular vectors keep Σ_{i≤r} σ_i² of a gradient's energy, the best possible. A random sketch with one power "
    "iteration keeps 96 % of that if σ_i = i^−1/2, and 99.9 % if i^−1. One product with a basis from a gradient that "
    "was off by half keeps 99 %.",
    source="equation 12 (singular vectors); randomised ranges: arXiv 0909.4061; shares at 1024 × 4096, r = 128",
    assumptions=(
        "sketches of r + 8 columns",
        f"basis in use: the singular vectors of G + noise, ‖noise‖_F = {NOISE:g} ‖G‖_F",
        "what sketches keep does not depend on the singular vectors, only on the values",
    ),
    tex=r"\max_{P^\top P = 1} \|P^\top G\|_F^2 = \sum_{i \leq r} \sigma_i^2",
)
def projectors(setting: Setting) -> Evidence:
    large, r, measure, found = (1024, 4096), 128, functools.partial(_measure, setting.rng), {}
    k_exact, r_exact = setting.pick(smoke=((64, 256), 8), laptop=((256, 1024), 32), paper=(large, r))
    # Zero singular values more change nothing for a sketch, but the noise in a basis is averaged over columns.
    square = setting.pick(smoke=(1024, 1024), laptop=large, paper=large)
    smoke, half, one = setting.scale == "smoke", *SPECTRA
    cold = (SKETCHES[1], RANDOM) if smoke else (*SKETCHES, RANDOM)
    for label in SPECTRA:
        found |= measure(label, k_exact, r_exact, (*EXACT, NARROW)) | measure(label, square, r, cold)
    for label in (half,) if smoke else SPECTRA:
        found |= measure(label, large, r, ("warm × 1",) if smoke else ("warm × 1", "warm × 2"), warm=True)

    share = {key: kept for key, (kept, _) in found.items()}
    exact = [share[label, name] - 1 for label in SPECTRA for name in EXACT]
    random = {label: {"random directions": 1 - share[label, RANDOM]} for label in SPECTRA}

    def lost(label: str, name: str, bound: float) -> Evidence:
        return at_most(f"share lost, {name}, {label}", 1 - share[label, name], bound, random[label])

    narrow, full = (
        [skew for (_, name), (_, skew) in found.items() if (name == NARROW) is kept] for kept in (True, False)
    )
    sizes = [f"{size[0]} × {size[1]}, r = {rank}" for size, rank in ((k_exact, r_exact), (large, r))]
    others = (f"{n} {kept:.4f} for {label}" for (label, n), kept in share.items() if n not in (*EXACT, NARROW))
    singular, orders = np.arange(1, large[0] + 1) ** -0.5, range(4)
    law = [_expected(singular, r, q) / np.sum(singular[:r] ** 2) for q in orders]
    sketched = [share.get((half, f"randomized, q = {q}"), np.nan) for q in orders]
    return evidence(
        vanishes(f"‖Pᵀ G‖²/Σ σ_i² − 1, singular vectors, {sizes[0]}", exact, random[half], within=rounding(80)),
        lost(half, SKETCHES[1], 0.04),
        lost(one, SKETCHES[1], 0.001),
        *(lost(label, "warm × 1", 0.01) for label in SPECTRA if (label, "warm × 1") in share),
        at_most("max |Pᵀ P − 1|", full, rounding(200)),
        at_most("max |Pᵀ P − 1|, kept in bfloat16", narrow, 5e-3),  # whose ε is 8e-3
        panels=[
            panel(
                f"random sketch, {half}, {sizes[1]}",
                ("power iterations q", np.arange(4)),
                y="share of the best energy",
                observed={"best r of r + 8": sketched},
                predicted={"limit law, r columns": law},
                control={"random directions": np.full(4, share[half, RANDOM])},
            )
        ],
        remarks=[
            f"Of the best energy at {sizes[1]}: {'; '.join(others)}.",
            f"A sketch of r columns, not r + 8, is expected to keep {law[0]:.3f} with no power iteration and "
            f"{law[1]:.3f} with one, for i^−1/2.",
        ],
    )


UPDATE_RANK, SCALE = 4, 0.25
SIZE, RANK = "‖update‖/(α‖N‖) − 1", "σ_{r+1}/σ₁ of the update"


@functools.partial(jax.jit, static_argnames=("names", "ranks"))
def _updates(grads, bases, names, ranks):
    """Updates, bases and Adam's output N, `(draws, steps, …)` each, for each projector and a Gaussian matrix; and sizes
    of first updates in the leading directions of `bases`, relative to Adam's, at these ranks."""
    adam = optax.scale_by_adam()

    def trail(projector):
        tx = gl.scale_by_galore(adam, UPDATE_RANK, 2, SCALE, projector=projector, transport="keep")

        def step(carry, g):
            result: Any = tx.update(g, carry[0])
            update, state = result
            n, inner = adam.update(state.left.T @ g, carry[1])
            return (state, inner), (update, state.left, n)

        start = lambda g: (tx.init(g), adam.init(jnp.zeros_like(g[:UPDATE_RANK])))
        return jax.vmap(lambda g: jax.lax.scan(step, start(g[0]), g)[1])(grads)

    def size(g, basis, r):
        tx = gl.scale_by_galore(adam, r, 1000, SCALE, projector=lambda g, previous, key, r: basis[:, :r])
        return jnp.linalg.norm(tx.update(g, tx.init(g))[0]) / jnp.linalg.norm(adam.update(g, adam.init(g))[0])

    gaussian = lambda g, previous, key, r: jax.random.normal(key, (g.shape[0], r), g.dtype) / np.sqrt(r).astype(g.dtype)
    sizes = [jax.vmap(functools.partial(size, r=r))(grads[:, 0], bases) for r in ranks]
    return [trail(PROJECTORS[name]) for name in names], trail(gaussian), jnp.stack(sizes)


def _checked(trail: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """What must vanish, for each draw and step: of the basis, of the update's size, form and rank."""
    update, p, n = (x.astype(float) for x in trail)
    norm = lambda x: np.linalg.norm(x, axis=(-2, -1))
    singular, adjoint = np.linalg.svd(update, compute_uv=False), p.swapaxes(-1, -2)
    return {
        "project(project_back(R)) − R": norm(adjoint @ p @ n - n) / norm(n),
        "Pᵀ update / α − N, over N": norm(adjoint @ update / SCALE - n) / norm(n),
        SIZE: norm(update) / (SCALE * norm(n)) - 1,
        RANK: singular[..., UPDATE_RANK] / singular[..., 0],
    }


@claim(
    "Projecting undoes projecting back. The update α P N has at most the size α‖N‖_F and the rank r. The first update "
    "of Adam is α√(r/k) of its full-rank size.",
    source="algorithm 2; section 5 (why a learning rate of 0.01 is stable)",
    assumptions=("normal gradients", f"rank {UPDATE_RANK}, scale {SCALE}, a gap of 2, four steps"),
    tex=r"\|\alpha P N\| \leq \alpha \|N\|, \quad \|\alpha P N_1\| = \alpha \sqrt{r/k}\, \|N^{\mathrm{full}}_1\|",
)
def update(setting: Setting) -> Evidence:
    k, n, draws = setting.pick(smoke=(16, 24, 16), laptop=(16, 24, 256), paper=(64, 96, 256))
    rng, every, ranks = setting.rng, ("exact_svd", SKETCHES[1], "warm × 1", RANDOM), (1, k // 4, k)
    grads, bases = rng.standard_normal((draws, 4, k, n)), orthonormal(rng, draws, k, k)
    found = _updates(grads, bases, setting.pick(smoke=every[:1], laptop=every, paper=every), ranks)
    ours, gaussian, sizes = jax.tree.map(np.asarray, found)
    checked, gaussian = [_checked(trail) for trail in ours], _checked(gaussian)
    over = {name: np.stack([x[name] for x in checked]) for name in gaussian}
    wrong = {name: {"a Gaussian matrix over √r, median": np.median(x)} for name, x in gaussian.items()}
    wrong[RANK] = {}  # which it has, too
    within, ratio = rounding(160), np.array(ranks) / k
    first, x = np.median(sizes, axis=1), ("rank r over short side k", ratio)
    law, adam = {"α√(r/k)": SCALE * np.sqrt(ratio)}, {"α": np.full(3, SCALE)}
    near = setting.bound(1e-6, 1e-5)  # |N| is |g|/(|g| + 1e-8), not quite one
    return evidence(
        *(vanishes(name, over[name], wrong[name], within=within) for name in over if name != SIZE),
        at_most(SIZE, over[SIZE], within, wrong[SIZE]),
        agrees("‖first update‖/‖Adam‖, median", x, first, law, adam, within=near, measure=relative, log="xy"),
    )
