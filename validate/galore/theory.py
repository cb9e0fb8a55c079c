"""Lemma 3.3 and its corollaries: the stable rank of the gradient of a reversible network, step by step."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics.galore import ReversibleGradient, stable_rank_bound
from ..checks import at_most, evidence, quantile, rounding, scales
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ._shared import Operators, draw_operators, orthonormal, psd, stable_ranks

STEPS = 30
FORM = "G = (1/N) Σ (A_i − B_i W C_i) with constant A_i, B_i, C_i; B_i, C_i positive semidefinite"
DESCENT = "W ← W + ηG with ηλ_max < 1"


class _Path(NamedTuple):
    """Gradients G along descent, `(draws, steps + 1, rows, columns)`, their start split in two, and, `(draws, steps +
    1)`, q^s and Lemma 3.3's corrected bound."""

    g: np.ndarray
    split: Any  # a Split, on the host
    shrunk: np.ndarray
    bound: np.ndarray

    @property
    def rank(self) -> np.ndarray:
        return stable_ranks(self.g)

    def resolved(self, least: float) -> np.ndarray:
        """Where G is large enough against its start that the roundings of A − BWC do not show."""
        size = np.linalg.norm(self.g, axis=(2, 3))
        return size > least * size[:, :1]

    def excess(self, bound: np.ndarray, least: float) -> np.ndarray:
        """By how much the stable rank exceeds a bound, relative to it, in the steps that are resolved."""
        return (self.rank / bound - 1)[self.resolved(least)]

    def form(self, spectral: bool = False) -> np.ndarray:
        """The bound as printed; or, with `spectral`, the corrected one with ‖G⊥‖₂ in place of ‖G⊥‖_F below."""
        size = lambda x, order: np.linalg.norm(x, ord=order, axis=(1, 2))[:, None]
        parallel, rest = self.split.parallel, self.split.rest
        below = np.maximum(0, size(parallel, 2) - self.shrunk * size(rest, 2) * spectral)
        with np.errstate(divide="ignore"):
            return (size(parallel, "fro") ** 2 + self.shrunk**2 * size(rest, "fro") ** 2) / below**2


@jax.jit
@jax.vmap
def _descend(operators: Operators, fraction: Array, scales: Float[Array, " 2"]):
    """Descent with `η = fraction/λ_max`. A is moved so that the part of G(0) at λ₂ is multiplied by the first of
    `scales`, and all parts beyond by the second."""
    a, b, c, w = operators
    flow, s = ReversibleGradient(a, b, c), jnp.arange(STEPS + 1)
    values, modes = flow.modes()
    start = flow(0.0, w)
    split = flow.split(start)
    beyond = values > split.second + jnp.finfo(w.dtype).eps ** (2 / 3) * split.largest
    fast = jnp.einsum("k,kij->ij", jnp.where(beyond, jnp.einsum("kij,ij->k", modes, start), 0.0), modes)
    wanted = split.parallel + scales[0] * (split.rest - fast) + scales[1] * fast
    flow = ReversibleGradient(a + (wanted - start)[None], b, c)
    split, eta = flow.split(wanted), fraction / split.largest

    def step(w, _):
        g = flow(0.0, w)
        return w + eta * g, g

    g = jax.lax.scan(step, w, length=STEPS + 1)[1]
    return g, split, split.ratio(eta) ** s.astype(w.dtype), stable_rank_bound(split, eta, s)


def _follow(operators: Operators, fraction: np.ndarray, scales: np.ndarray | None = None) -> _Path:
    scales = np.ones((len(fraction), 2)) if scales is None else scales
    return _Path(*jax.tree.map(np.asarray, _descend(operators, fraction, scales)))


def _drawn(rng: np.random.Generator, draws: int, size: tuple[int, int]) -> _Path:
    """Descent on random instances, from starts at which G∥ has, or already has not, been outlived by the rest."""
    fraction, scale = rng.uniform(0.05, 0.95, draws), 10 ** rng.uniform(-2, 0, (draws, 1))
    return _follow(draw_operators(rng, draws, size), fraction, np.repeat(scale, 2, axis=1))


Q = np.geomspace(0.9, 0.45, 6)


def _near_limit(setting: Setting, rng: np.random.Generator, draws: int, terms: int, fast: float = 0.0):
    """Of a gradient of which the two slowest parts are left, the second small: what every gradient comes to in the end.
    `fast`: what is left of the others.

    The power of q^s with which |sr(G_s) − sr(G∥)| shrinks, `(draws,)`; and the median of this distance over its start
    where q^s is `Q`, for the draws have different q."""
    operators = draw_operators(rng, 4 * draws, (2, 2), full=True, terms=terms)
    fraction, scales = rng.uniform(0.5, 0.9, 4 * draws), np.tile([0.005, fast], (4 * draws, 1))
    path = _follow(operators, fraction, scales)
    q, error = path.shrunk[:, 1], np.abs(path.rank - stable_ranks(path.split.parallel)[:, None])
    good = (q > 0.7) & (q < 0.9) & path.resolved(setting.bound(1e-5, 1e-2))[:, 8]
    good = np.flatnonzero(good & (error[:, 0] > setting.bound(1e-8, 3e-4)))[:draws]  # the error shows above roundings
    seen = np.maximum(error[good, :9], np.finfo(setting.dtype).eps)  # in float32 an error may round to zero
    logs, shrunk = np.log(seen / seen[:, :1]), np.log(path.shrunk[good, :9])
    left = [np.interp(np.log(Q), x[::-1], y[::-1]) for x, y in zip(shrunk, logs, strict=True)]
    return logs[:, 8] / shrunk[:, 8], np.exp(np.median(left, axis=0))


# Diagonals of three orthogonal 6 × 6 matrices, found by search: the parts of G at λ₁, at λ₂ just above it, and beyond.
_NARROW = np.array(
    [
        [-0.771, -0.072, 0.689, -0.453, 0.153, 1.0],
        [-0.041, 0.065, 0.124, -0.135, 0.091, -0.187],
        [0.081, 0.076, 0.016, -0.005, 0.049, 0.047],
    ]
)


def _narrow() -> _Path:
    """An instance on which the corrected bound with ‖G⊥‖₂ in place of ‖G⊥‖_F is false.

    On diagonal G the operator is to be `I − 0.3 (p̂p̂ᵀ + 0.999 q̂q̂ᵀ)`: any diagonally dominant matrix is a sum of
    `B_i ⊗ C_i` there, two rank-one terms for each pair of places.
    """
    q, r = np.linalg.qr(_NARROW.T)  # orthogonal to the last digit; r has their lengths, up to signs
    start, eye = q @ np.diag(r), np.eye(6)
    wanted = eye - 0.3 * (np.outer(q[:, 0], q[:, 0]) + 0.999 * np.outer(q[:, 1], q[:, 1]))
    spare = 2 * wanted.diagonal() - np.abs(wanted).sum(1)
    terms = [(eye[i], eye[j], 1.0 if i != j else spare[i]) for i, j in np.ndindex(6, 6)]
    for i, j in itertools.combinations(range(6), 2):
        same = np.sign(wanted[i, j])
        terms += [(eye[i] + s * eye[j], eye[i] + s * same * eye[j], abs(wanted[i, j]) / 2) for s in (1, -1)]
    left, right, weights = (np.array(x) for x in zip(*terms, strict=True))
    assert weights.min() >= 0
    b = np.einsum("k,ki,kj->kij", weights * len(weights), left, left)[None]
    c = np.einsum("ki,kj->kij", right, right)[None]
    a = np.repeat(np.diag(start)[None, None], len(weights), axis=1)
    return _follow(Operators(a, b, c, np.zeros((1, 6, 6))), np.array([0.95]))


@claim(
    "The stable rank of the gradient never exceeds (‖G∥‖_F² + q^{2s}‖G⊥‖_F²)/max(0, ‖G∥‖₂ − q^s‖G⊥‖_F)², s steps after "
    "it was split, and tends to sr(G∥) as q^s.",
    source="Lemma 3.3, whose printed bound sr(G∥) + q^{2s}‖G⊥‖_F²/‖G∥‖₂² is false",
    assumptions=(FORM, DESCENT, "while roundings of A − BWC are small against G"),
    tex=r"\mathrm{sr}(G_s) \leq \frac{\|G_\parallel\|_F^2 + q^{2s}\|G_\perp\|_F^2}"
    r"{(\|G_\parallel\|_2 - q^s\|G_\perp\|_F)_+^2}",
    flow=ReversibleGradient,
)
def lemma_3_3(setting: Setting) -> Evidence:
    rng, draws = setting.rng, setting.pick(smoke=1000, laptop=10000, paper=100000)
    least = setting.bound(1e-6, 1e-2)
    within = rounding(4 / least)  # what is resolved to `least` of the start has lost as many digits
    # N = 1, B = C = e₁e₁ᵀ: the printed bound is false at the first step.
    e, g = np.diag([1.0, 0.0])[None, None], np.array([[-0.3, 1.0], [1.0, 1.0]])[None, None]
    two_by_two = _follow(Operators(g, e, e, np.zeros((1, 2, 2))), np.array([0.5]))
    paths = _drawn(rng, draws, (2, 2)), _drawn(rng, draws, (3, 4)), two_by_two, _narrow()
    near = functools.partial(_near_limit, setting, rng, setting.pick(smoke=300, laptop=1000, paper=4000))
    (power, left), (power_alone, left_alone) = near(4), near(1, fast=0.005)
    corrected, by_print, spectral = (
        [path.excess(bound(path), least) for path in paths]
        for bound in (lambda path: path.bound, _Path.form, functools.partial(_Path.form, spectral=True))
    )
    share = [np.mean(values > within) for values in by_print[:2]]
    finite = [np.mean(np.isfinite(path.bound[path.resolved(least)])) for path in paths[:2]]
    worst, exceeded = max(float(values.max()) for values in by_print[:3]), max(0.0, *(x.max() for x in spectral[:2]))
    cases = (f"{draws} draws 2 × 2", f"{draws} draws 3 × 4", "G = [[−0.3, 1], [1, 1]]", "6 × 6")
    wrong = [*({"the printed bound": values} for values in by_print[:3]), {"‖G⊥‖₂ in place of ‖G⊥‖_F": spectral[3]}]

    def bounded(i: int) -> Evidence:
        x = None if i < 2 else ("step s", np.arange(len(corrected[i])))
        return at_most(f"sr(G)/corrected bound − 1, {cases[i]}", corrected[i], within, wrong[i], x=x)

    name, alone = "|sr(G) − sr(G∥)| over its start, median of draws", "N = 1, where the slowest parts share a factor"
    return evidence(
        *map(bounded, range(4)),
        quantile("power of q^s, median", power, 0.5, {"of q^{2s}, as printed": power / 2}, at_least=0.95),
        quantile("power of q^s, median, at most", power, 0.5, {"N = 1": power_alone}, at_most=1.05),
        scales(name, ("q^s", Q), left, {alone: left_alone}, order=1),
        remarks=[
            f"The printed bound fails in {share[0]:.1%} of the checks on 2 × 2 and {share[1]:.1%} on 3 × 4 instances, "
            f"by up to {worst:.0%}. The corrected one says something (is finite) in {finite[0]:.0%} and "
            f"{finite[1]:.0%} of them.",
            f"With the spectral norm ‖G⊥‖₂ in its denominator the corrected bound is exceeded by {exceeded:.1g} in "
            "these draws. It is no theorem all the same: parts of G⊥ that cancel in the spectral norm may shrink at "
            "different rates.",
            "With N = 1 the approach is faster: the two slowest parts of G share a factor, so together they have rank "
            "one.",
        ],
        errata=[
            Erratum(
                "Lemma 3.3",
                "sr(G_t) ≤ sr(G∥) + q^{2s} ‖G_0 − G∥‖_F²/‖G∥‖₂²",
                "sr(G_t) ≤ (‖G∥‖_F² + q^{2s}‖G⊥‖_F²)/max(0, ‖G∥‖₂ − q^s‖G⊥‖_F)²",
                max(0.0, *(float(values.max()) for values in corrected)),
                worst,
                "excess of the stable rank over the bound, relative",
            )
        ],
    )


FEATURES, WIDTH, SPAN = 8, 6, 3  # samples, the order n of W, and N'


Features = tuple[np.ndarray, np.ndarray, np.ndarray]  # draws of a, B and f in G = (1/N) Σ (a_i − B_i W f_i) f_iᵀ


def _operators(features: Features, span: int | None = None) -> Operators:
    """In full, or within the span of the features, of that dimension."""
    a, b, f = features
    f = f if span is None else f @ np.linalg.svd(f)[2][:, :span].swapaxes(1, 2)
    outer = lambda x: x[..., :, None] * f[..., None, :]
    return Operators(outer(a), b, outer(f), np.zeros((len(f), WIDTH, f.shape[2])))


def _draw_features(rng: np.random.Generator, draws: int, span: int, common: bool = False) -> Features:
    """Features in a random subspace of dimension `span`; B of full rank, with `common` the same for all samples."""
    a, f = rng.standard_normal((2, draws, FEATURES, WIDTH))
    basis = orthonormal(rng, draws, WIDTH, span)
    b = psd(rng, (draws, 1 if common else FEATURES), WIDTH, True) + 0.1 * np.eye(WIDTH)
    return a, np.broadcast_to(b, (draws, FEATURES, WIDTH, WIDTH)), f @ basis @ basis.swapaxes(1, 2)


def _long_run(features: Features, left: float) -> tuple[np.ndarray, np.ndarray]:
    """Stable ranks, `(draws,)`, by the closed form `(1 − ηS)^s G(0)` at `η = 0.9/λ_max` when `q^s ‖G⊥‖/‖G∥‖ = left`
    within the span, and those of G∥ there."""
    a, b, c, _ = _operators(features, SPAN)
    draws, modes = len(a), WIDTH * SPAN
    values, vectors = np.linalg.eigh(np.einsum("dkia,dkbj->dijab", b, c).reshape(draws, modes, modes) / FEATURES)
    inside = np.einsum("dpk,dp->dk", vectors, a.mean(1).reshape(draws, -1))
    decay = 1 - 0.9 * values / values[:, -1:]
    rest = np.linalg.norm(inside[:, 1:], axis=1) / np.abs(inside[:, 0])
    steps = np.log(np.minimum(1, left / rest)) / np.log(decay[:, 1] / decay[:, 0])
    late = inside * (decay / decay[:, :1]) ** steps[:, None]
    rank = lambda x: stable_ranks(np.einsum("dpk,dk->dp", vectors, x).reshape(draws, WIDTH, SPAN))
    return rank(late), rank(inside * (np.arange(modes) == 0))


def _rank_at_most_span(least: float, path: _Path, path_full: _Path, units: np.ndarray) -> Evidence:
    """Descent with features in the span, with features of full rank, and the stable ranks with five unit vectors."""
    norm, singular = (lambda x: np.linalg.norm(x, axis=(1, 2))), (lambda x: np.linalg.svd(x, compute_uv=False))
    ratio = lambda values: values[..., SPAN] / values[..., 0]
    beyond = lambda path: ratio(singular(path.g))[path.resolved(least)]
    # Roundings of S turn its eigenspaces by up to ε mn λ_max/λ₂.
    part = lambda path: norm(path.split.parallel) / norm(path.g[:, 0])
    still = lambda path: part(path) * path.split.second / path.split.largest
    full = lambda of: {"features of full rank, median": np.median(of(path_full))}
    as_printed, in_span = {"sr(G) − n/2, as printed": units - WIDTH / 2}, (path.rank - SPAN)[path.resolved(least)]
    return evidence(
        at_most("σ_{N'+1}/σ₁ of G, N' = 3 of n = 6", beyond(path), rounding(10 / least), full(beyond)),
        at_most("‖G∥‖/‖G‖ for λ₁ = 0, times λ₂/λ_max", still(path), rounding(80), full(still)),
        at_most("sr(G) − N', N' = 3", in_span, rounding(10)),
        at_most("sr(G) − N', f = e₁…e₅ of n = 6", units - 5, rounding(100), as_printed),
        panels=[
            panel(
                "stable rank along descent, n = 6",
                ("step s", np.arange(STEPS + 1)),
                y="stable rank of G",
                observed={"N' = 3, five draws": path.rank[:5].T, "f = e₁…e₅, B = I": units},
                predicted={"N' = 3": np.full(STEPS + 1, 3.0)},
                control={"features of full rank, five draws": path_full.rank[:5].T},
            )
        ],
        remarks=[
            "Every f_i lies in the span, so G has no part outside of it: the eigenspace of λ₁ = 0, which is orthogonal "
            "to the span, holds nothing of G, and sr(G∥) is 0/0. The rank is below n/2 where N' is, else need not be: "
            f"sr(G_t) = {units[-1]:.3g} at all t for f = e₁…e₅, n = 6, B = I."
        ],
        errata=[
            Erratum(
                "Corollary 3.4",
                "sr(G∥) ≤ n − N', and thus sr(G_t) ≤ n/2 for large t",
                "G∥ = 0; sr(G_t) ≤ rank G_t ≤ N', and Lemma 3.3 within the span of the features",
                max(0.0, float(in_span.max()), float(units.max() - 5)),
                float(units.max() - WIDTH / 2),
                "excess of the stable rank over the bound",
            )
        ],
    )


@claim(
    "If the features span N' < n dimensions, the gradient has no part in the eigenspace of λ₁ = 0. Its rank is at most "
    "N' at all times, and Lemma 3.3 holds within the span. There a simple least eigenvalue with an eigenvector y ⊗ z "
    "makes the limit of rank one.",
    source="Corollaries 3.4 and 3.5. As printed, sr(G∥) ≤ n − N' is about G∥ = 0, and sr(G) ≤ n/2 is false",
    assumptions=("G = (1/N) Σ (a_i − B_i W f_i) f_iᵀ, B_i of full rank", DESCENT),
    tex=r"\mathrm{sr}(G_t) \leq \mathrm{rank}\, G_t \leq N'",
    flow=ReversibleGradient,
)
def corollary_3_4(setting: Setting) -> Evidence:
    rng, draws = setting.rng, setting.pick(smoke=64, laptop=512, paper=4096)
    least, fraction, left = setting.bound(1e-6, 1e-2), rng.uniform(0.05, 0.95, draws), 1e-3
    few, full = _draw_features(rng, draws, SPAN), _draw_features(rng, draws, WIDTH)
    common = _draw_features(rng, draws, SPAN, common=True)
    path, path_full = (_follow(_operators(features), fraction) for features in (few, full))
    # Five unit vectors as features, B = I and a_i = f_i: G(t) is a multiple of diag(1, 1, 1, 1, 1, 0) for ever. As
    # often as there are draws, to share their compiled program.
    units, eye = np.eye(FEATURES, WIDTH) * (np.arange(WIDTH) < 5), np.broadcast_to(np.eye(WIDTH), few[1].shape)
    units = np.broadcast_to(units, few[0].shape)
    units = _follow(_operators((units, eye, units)), np.full(draws, 0.3)).rank[0]
    # From starts at which G∥ has, or already has not, been outlived by the rest: else the bound is infinite.
    scales = np.repeat(10 ** rng.uniform(-3, 0, (draws, 1)), 2, axis=1)
    inside = _follow(_operators(few, SPAN), fraction, scales)
    finite = np.mean(np.isfinite(inside.bound[inside.resolved(least)]))
    (late, _), (late_mixed, end_mixed) = _long_run(common, left), _long_run(few, left)
    excess, limit = inside.excess(inside.bound, least), stable_ranks(inside.split.parallel)[:, None]
    wrong, mixed = {"sr(G∥) itself": inside.excess(limit, least)}, np.median(late_mixed) - 1
    one_b, most = "one B for all: sr(G) − 1 where q^s‖G⊥‖", (1 + left**2) / (1 - left) ** 2 - 1  # for sr(G∥) = 1
    return evidence(
        _rank_at_most_span(least, path, path_full, units),
        at_most("sr(G) over Lemma 3.3's bound within the span, less 1", excess, rounding(4 / least), wrong),
        at_most(f"{one_b} = {left:g} ‖G∥‖", late - 1, most, {"a B for each sample, median": mixed}),
        remarks=[
            f"Lemma 3.3's bound within the span is finite in {finite:.0%} of the checks. With a B for each sample the "
            f"limit has a median stable rank of {np.median(end_mixed):.2f}, at most {end_mixed.max():.2f}, in {draws} "
            "draws of order 6 × 3."
        ],
    )
