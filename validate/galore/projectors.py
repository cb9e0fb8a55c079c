"""How much of a gradient each way of finding a basis keeps."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
import scipy.optimize

from ...nets.galore import (
    exact_svd,
    galore_refresh,
    gram_eigh,
    random_orthonormal,
    randomized_range,
    scale_by_galore,
    subspace_iteration,
)
from ...nets.galore.projectors import Projector
from ..checks import agrees, at_most, evidence, relative, rounding, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import panel

NOISE = 0.5  # of the gradient that the basis in use was made from, relative to ‖G‖_F
EXACT = {"exact_svd": exact_svd(), "gram_eigh": gram_eigh()}
COLD = {
    "randomized, q = 0": randomized_range(power_iters=0),
    "randomized, q = 1": randomized_range(),
    "randomized, q = 2": randomized_range(power_iters=2),
}
WARM = {"warm × 1": subspace_iteration(1), "warm × 2": subspace_iteration(2)}
RANDOM = {"random_orthonormal": random_orthonormal()}
NARROW = "gram_eigh, kept in bfloat16"
PROJECTORS = EXACT | COLD | WARM | RANDOM | {NARROW: gram_eigh()}
SPECTRA = {"i^−1/2": 0.5, "i^−1": 1.0}  # singular values σ_i = i^−power


def _with_spectrum(rng: np.random.Generator, size: tuple[int, int], power: float) -> np.ndarray:
    """A matrix of singular values i^−power, turned by one dense reflection on either side."""
    k, o = size
    singular = np.arange(1, k + 1) ** -power
    u, v = (x / np.linalg.norm(x) for x in (rng.standard_normal(k), rng.standard_normal(o)))
    g = np.zeros(size)
    np.fill_diagonal(g, singular)
    g -= np.outer(2 * u, u @ g)
    return g - np.outer(g @ v, 2 * v)


def _refreshed(g: Any, used: Any, r: int, projector: Projector, **options: Any) -> Any:
    """The basis of g through the transform, where `used` is the basis in use."""
    state: Any = scale_by_galore(optax.identity(), r, side="left", **options).init(g)
    return galore_refresh(state._replace(left=used.astype(state.left.dtype)), g, projector=projector).left


@functools.partial(jax.jit, static_argnames=("names", "r"))
def _bases(g, used, names, r):
    options = {NARROW: {"projector_dtype": jnp.bfloat16}}
    return {name: _refreshed(g, used, r, PROJECTORS[name], **options.get(name, {})) for name in names}


def _leading(g: np.ndarray, r: int) -> np.ndarray:
    """The first r left singular vectors, to single precision."""
    k, g = len(g), g.astype(np.float32)
    return scipy.linalg.eigh(g @ g.T, subset_by_index=(k - r, k - 1))[1][:, ::-1]


def _expected(singular: np.ndarray, columns: int, power_iters: int) -> float:
    """The energy that a random sketch of so many columns keeps, in the limit of large matrices: the projector onto
    `S^{1/2} Z` is on average `S (S + κ)⁻¹`, of trace `columns`, with `S = (G Gᵀ)^{2q+1}` (Dereziński et al., 2020)."""
    s = singular ** (2 * (2 * power_iters + 1))
    trace = lambda log_kappa: np.sum(s / (s + np.exp(log_kappa))) - columns
    root: Any = scipy.optimize.brentq(trace, np.log(s[-1]) - 20, np.log(s.sum()) + 20)
    kappa = np.exp(root)
    return float(np.sum(singular**2 * s / (s + kappa)))


def _measure(
    rng: np.random.Generator, label: str, size: tuple[int, int], r: int, names: Sequence[str], *, dtype: Any, warm: bool
) -> dict[tuple[str, str], tuple[float, float]]:
    """The share of the best energy that each basis keeps, and how far it is from orthonormal."""
    power = SPECTRA[label]
    g, used = _with_spectrum(rng, size, power), np.zeros((size[0], r))
    if warm:
        noise = rng.standard_normal(size)
        used = _leading(g + NOISE * np.linalg.norm(g) / np.linalg.norm(noise) * noise, r)
    best = np.sum(np.arange(1, r + 1) ** (-2 * power))
    bases = _bases(jnp.asarray(g, dtype), jnp.asarray(used, dtype), tuple(names), r)
    bases = {name: np.asarray(basis, float) for name, basis in bases.items()}
    return {(label, name): (np.sum((basis.T @ g) ** 2) / best, _skew(basis)) for name, basis in bases.items()}


def _skew(basis: np.ndarray) -> float:
    return np.abs(basis.T @ basis - np.eye(basis.shape[1])).max()


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
    rng, large, r = setting.rng, (1024, 4096), 128
    k_exact, r_exact = setting.pick(smoke=((64, 256), 8), laptop=((256, 1024), 32), paper=(large, r))
    # Zero singular values more change nothing for a sketch, but the noise in a basis is averaged over columns.
    square = setting.pick(smoke=(1024, 1024), laptop=large, paper=large)
    few, every = ("randomized, q = 1", "random_orthonormal"), (*COLD, *RANDOM)
    cold, warm = setting.pick(smoke=(few, ("warm × 1",)), laptop=(every, tuple(WARM)), paper=(every, tuple(WARM)))
    spectra = setting.pick(smoke=("i^−1/2",), laptop=tuple(SPECTRA), paper=tuple(SPECTRA))  # for warm starts
    measure, found = functools.partial(_measure, rng, dtype=setting.dtype), {}
    for label in SPECTRA:
        found |= measure(label, k_exact, r_exact, (*EXACT, NARROW), warm=False) | measure(
            label, square, r, cold, warm=False
        )
    for label in spectra:
        found |= measure(label, large, r, warm, warm=True)

    share = {key: kept for key, (kept, _) in found.items()}
    exact = [share[label, name] - 1 for label in SPECTRA for name in EXACT]
    random = {label: {"random directions": 1 - share[label, "random_orthonormal"]} for label in SPECTRA}
    sizes = [f"{size[0]} × {size[1]}, r = {rank}" for size, rank in ((k_exact, r_exact), (large, r))]

    def lost(label: str, name: str, bound: float) -> Evidence:
        return at_most(f"share lost, {name}, {label}", 1 - share[label, name], bound, random[label])

    half, one = SPECTRA
    large_ones = {key: value for key, value in share.items() if key[1] not in (*EXACT, NARROW)}
    others = "; ".join(f"{name} {value:.4f} for {label}" for (label, name), value in large_ones.items())
    skew = {key: skew for key, (_, skew) in found.items()}
    narrow = [skew.pop((label, NARROW)) for label in SPECTRA]
    singular = np.arange(1, large[0] + 1) ** -0.5
    law = [_expected(singular, r, q) / np.sum(singular[:r] ** 2) for q in range(4)]
    return evidence(
        vanishes(f"‖Pᵀ G‖²/Σ σ_i² − 1, singular vectors, {sizes[0]}", exact, random[half], within=rounding(80)),
        lost(half, "randomized, q = 1", 0.04),
        lost(one, "randomized, q = 1", 0.001),
        *(lost(label, "warm × 1", 0.01) for label in spectra),
        at_most("max |Pᵀ P − 1|", list(skew.values()), rounding(200)),
        at_most("max |Pᵀ P − 1|, kept in bfloat16", narrow, 5e-3),  # whose ε is 8e-3
        panels=[
            panel(
                f"random sketch, {half}, {sizes[1]}",
                ("power iterations q", np.arange(4)),
                y="share of the best energy",
                observed={"best r of r + 8": [share.get((half, f"randomized, q = {q}"), np.nan) for q in range(4)]},
                predicted={"limit law, r columns": law},
                control={"random directions": np.full(4, share[half, "random_orthonormal"])},
            )
        ],
        remarks=[
            f"Of the best energy at {sizes[1]}: {others}.",
            f"A sketch of r columns, not r + 8, is expected to keep {law[0]:.3f} with no power iteration and "
            f"{law[1]:.3f} with one, for i^−1/2.",
        ],
    )


UPDATE_RANK, SCALE = 4, 0.25
SIZE, RANK = "‖update‖/(α‖N‖) − 1", "σ_{r+1}/σ₁ of the update"


def _first_ranks(k: int) -> tuple[int, ...]:
    return (1, k // 4, k)


def _remembered(base: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transform that keeps its last output N in its state."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        n, inner = base.update(updates, state[0], params)
        return n, (inner, n)

    return optax.GradientTransformation(
        lambda params: (base.init(params), jax.tree.map(jnp.zeros_like, params)), update
    )


@functools.partial(jax.jit, static_argnames="names")
def _updates(grads, bases, names):
    """Updates, bases and Adam's output N, `(draws, steps, …)` each, for each projector and a Gaussian matrix; and sizes
    of first updates in the leading directions of `bases`, relative to Adam's, at three ranks."""
    adam = optax.scale_by_adam()

    def trail(projector):
        base = _remembered(adam)
        tx = scale_by_galore(base, UPDATE_RANK, 2, SCALE, projector=projector, transport="keep")

        def step(state: Any, g: Any) -> Any:
            result: Any = tx.update(g, state)
            update, state = result
            return state, (update, state.left, state.inner_state[1])

        return jax.vmap(lambda g: jax.lax.scan(step, tx.init(g[0]), g)[1])(grads)

    def size(r):
        def of(g, basis):
            tx = scale_by_galore(adam, r, 1000, SCALE, projector=lambda g, previous, key, r: basis[:, :r])
            return jnp.linalg.norm(tx.update(g, tx.init(g))[0]) / jnp.linalg.norm(adam.update(g, adam.init(g))[0])

        return jax.vmap(of)(grads[:, 0], bases)

    gaussian = lambda g, previous, key, r: jax.random.normal(key, (g.shape[0], r), g.dtype) / np.sqrt(r).astype(g.dtype)
    sizes = jnp.stack([size(r) for r in _first_ranks(grads.shape[2])])
    return {name: trail(PROJECTORS[name]) for name in names}, trail(gaussian), sizes


def _checked(trail: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """What must vanish, for each draw and step: of the basis, of the update's size, form and rank."""
    update, p, n = trail
    norm = lambda x: np.linalg.norm(x, axis=(-2, -1))
    singular = np.linalg.svd(update, compute_uv=False)
    return {
        "project(project_back(R)) − R": norm(p.swapaxes(-1, -2) @ p @ n - n) / norm(n),
        "Pᵀ update / α − N, over N": norm(p.swapaxes(-1, -2) @ update / SCALE - n) / norm(n),
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
    rng, every = setting.rng, ("exact_svd", "randomized, q = 1", "warm × 1", "random_orthonormal")
    grads = jnp.asarray(rng.standard_normal((draws, 4, k, n)), setting.dtype)
    bases = jnp.asarray(np.linalg.qr(rng.standard_normal((draws, k, k)))[0], setting.dtype)
    results = _updates(grads, bases, setting.pick(smoke=every[:1], laptop=every, paper=every))
    ours, gaussian, sizes = jax.tree.map(lambda x: np.asarray(x, float), results)
    found, wrong = [_checked(trail) for trail in ours.values()], _checked(gaussian)
    over = lambda name: np.stack([x[name] for x in found])
    typical = {name: {"a Gaussian matrix over √r, median": np.median(x)} for name, x in wrong.items()}
    typical[RANK] = {}  # which it has, too
    within, ranks = rounding(160), np.array(_first_ranks(k))
    return evidence(
        *(vanishes(name, over(name), typical[name], within=within) for name in wrong if name != SIZE),
        at_most(SIZE, over(SIZE), within, typical[SIZE]),
        agrees(
            "‖first update‖/‖Adam‖, median",
            ("rank r over short side k", ranks / k),
            np.median(sizes, axis=1),
            {"α√(r/k)": SCALE * np.sqrt(ranks / k)},
            {"α": np.full(len(ranks), SCALE)},
            within=setting.bound(1e-6, 1e-5),  # |N| is |g|/(|g| + 1e-8), not quite one
            measure=relative,
            log="xy",
        ),
    )
