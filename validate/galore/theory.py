"""Lemma 3.3 and its corollaries: the stable rank of the gradient of a reversible network, step by step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics.galore import ReversibleGradient, Split, stable_rank_bound
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ..rows import identity, limit, statistic
from ._shared import Operators, draw_operators, psd, stable_ranks

STEPS = 30
FORM = "G = (1/N) Σ (A_i − B_i W C_i) with constant A_i, B_i, C_i; B_i, C_i positive semidefinite"
DESCENT = "W ← W + ηG with ηλ_max < 1"


class _Path(NamedTuple):
    """Gradients G along descent, `(draws, steps + 1, rows, columns)`, their start split in two, and Lemma 3.3's q and
    corrected bound."""

    g: np.ndarray
    split: Split
    q: np.ndarray  # (draws,)
    bound: np.ndarray  # (draws, steps + 1)

    @property
    def rank(self) -> np.ndarray:
        return stable_ranks(self.g)

    @property
    def shrunk(self) -> np.ndarray:
        """q^s, `(draws, steps + 1)`."""
        return self.q[:, None] ** np.arange(self.g.shape[1])

    def resolved(self, least: float) -> np.ndarray:
        """Where G is large enough against its start that the roundings of A − BWC do not show."""
        size = np.linalg.norm(self.g, axis=(2, 3))
        return size > least * size[:, :1]

    def form(self, spectral: bool = False) -> np.ndarray:
        """The bound as printed; or, with `spectral`, the corrected one with ‖G⊥‖₂ in place of ‖G⊥‖_F below."""
        square = lambda x: (x**2).sum((1, 2))[:, None]
        top = lambda x: np.linalg.norm(x, ord=2, axis=(1, 2))[:, None]
        parallel, rest, shrunk = self.split.parallel, self.split.rest, self.shrunk
        below = np.maximum(0, top(parallel) - shrunk * top(rest)) if spectral else top(parallel)
        with np.errstate(divide="ignore"):
            return (square(parallel) + shrunk**2 * square(rest)) / below**2


@jax.jit
@jax.vmap
def _descend(operators: Operators, fraction: Array, scales: Float[Array, " 2"]):
    """Descent with `η = fraction/λ_max`. A is moved so that the part of G(0) at λ₂ is multiplied by the first of
    `scales`, and all parts beyond by the second."""
    a, b, c, w = operators
    flow = ReversibleGradient(a, b, c)
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
    return g, split, split.ratio(eta), stable_rank_bound(split, eta, jnp.arange(STEPS + 1))


def _follow(setting: Setting, operators: Operators, fraction: np.ndarray, scales: np.ndarray) -> _Path:
    arguments = jax.tree.map(lambda x: jnp.asarray(x, setting.dtype), (operators, fraction, scales))
    return _Path(*jax.tree.map(np.asarray, _descend(*arguments)))


def _drawn(setting: Setting, rng: np.random.Generator, draws: int, size: tuple[int, int]) -> _Path:
    """Descent on random instances, from starts at which G∥ has, or already has not, been outlived by the rest."""
    fraction, scale = rng.uniform(0.05, 0.95, draws), 10 ** rng.uniform(-2, 0, (draws, 1))
    return _follow(setting, draw_operators(rng, draws, size), fraction, np.repeat(scale, 2, axis=1))


def _near_limit(setting: Setting, rng: np.random.Generator, draws: int, terms: int) -> tuple[np.ndarray, np.ndarray]:
    """|sr(G_s) − sr(G∥)| and q^s, each `(draws, steps + 1)`, of a gradient of which the two slowest parts are left,
    the second small: what every gradient comes to in the end."""
    operators = draw_operators(rng, 4 * draws, (2, 2), full=True, terms=terms)
    fraction, scales = rng.uniform(0.5, 0.9, 4 * draws), np.tile([0.005, 0.0], (4 * draws, 1))
    path = _follow(setting, operators, fraction, scales)
    good = np.flatnonzero((path.q > 0.7) & (path.q < 0.9) & path.resolved(setting.bound(1e-5, 1e-2))[:, 8])
    error = np.abs(path.rank - stable_ranks(np.asarray(path.split.parallel))[:, None])
    good = good[error[good, 0] > setting.bound(1e-8, 3e-4)][:draws]  # and the error shows above roundings
    return error[good], path.shrunk[good]


def _two_by_two(setting: Setting) -> _Path:
    """N = 1, B = C = e₁e₁ᵀ, G(0) = [[−0.3, 1], [1, 1]]: the printed bound is false at its first step."""
    e, g = np.diag([1.0, 0.0])[None, None], np.array([[-0.3, 1.0], [1.0, 1.0]])[None, None]
    return _follow(setting, Operators(g, e, e, np.zeros((1, 2, 2))), np.array([0.5]), np.ones((1, 2)))


# Diagonals of three orthogonal 6 × 6 matrices, found by search: the parts of G at λ₁, at λ₂ just above it, and beyond.
_NARROW = np.array(
    [
        [-0.771, -0.072, 0.689, -0.453, 0.153, 1.0],
        [-0.041, 0.065, 0.124, -0.135, 0.091, -0.187],
        [0.081, 0.076, 0.016, -0.005, 0.049, 0.047],
    ]
)


def _narrow(setting: Setting) -> _Path:
    """An instance on which the corrected bound with ‖G⊥‖₂ in place of ‖G⊥‖_F is false.

    On diagonal G the operator is to be `I − 0.3 (p̂p̂ᵀ + 0.999 q̂q̂ᵀ)`: any diagonally dominant matrix is a sum of
    `B_i ⊗ C_i` there, two rank-one terms for each pair of places.
    """
    q, r = np.linalg.qr(_NARROW.T)  # orthogonal to the last digit; r has their lengths, up to signs
    unit, eye = (q * np.sign(np.diag(r))).T, np.eye(6)
    parts = unit * np.abs(np.diag(r))[:, None]
    wanted = eye - 0.3 * (np.outer(unit[0], unit[0]) + 0.999 * np.outer(unit[1], unit[1]))
    pairs, weights = [], []
    for i in range(6):
        for j in range(6):
            alone = 1.0 if i != j else wanted[i, i] - np.abs(np.delete(wanted[i], i)).sum()
            pairs.append((eye[i], eye[j]))
            weights.append(alone)
            if i < j:
                sign = np.sign(wanted[i, j])
                pairs += [(eye[i] + s * eye[j], eye[i] + s * sign * eye[j]) for s in (1, -1)]
                weights += [abs(wanted[i, j]) / 2] * 2
    assert min(weights) >= 0
    left, right = (np.stack(vectors) for vectors in zip(*pairs, strict=True))
    b = np.einsum("k,ki,kj->kij", np.array(weights) * len(weights), left, left)[None]
    c = np.einsum("ki,kj->kij", right, right)[None]
    a = np.repeat(np.diag(parts.sum(0))[None, None], len(weights), axis=1)
    return _follow(setting, Operators(a, b, c, np.zeros((1, 6, 6))), np.array([0.95]), np.ones((1, 2)))


# CONTROL: the bound as printed; the corrected bound with ‖G⊥‖₂ for ‖G⊥‖_F; the printed rate q^{2s}
@claim(
    "The stable rank of the gradient never exceeds (‖G∥‖_F² + q^{2s}‖G⊥‖_F²)/max(0, ‖G∥‖₂ − q^s‖G⊥‖_F)², "
    "s steps after it was split, and tends to sr(G∥) as q^s.",
    source="Lemma 3.3, whose printed bound sr(G∥) + q^{2s}‖G⊥‖_F²/‖G∥‖₂² is false",
    assumptions=(FORM, DESCENT, "while roundings of A − BWC are small against G"),
)
def lemma_3_3(setting: Setting) -> Evidence:
    rng, draws = setting.rng, setting.pick(smoke=1000, laptop=10000, paper=100000)
    least, bound = setting.bound(1e-6, 1e-2), setting.bound(1e-9, 1e-3)
    small, large = (_drawn(setting, rng, draws, size) for size in ((2, 2), (3, 4)))
    two, narrow = _two_by_two(setting), _narrow(setting)
    error, shrunk = _near_limit(setting, rng, setting.pick(smoke=300, laptop=1000, paper=4000), 4)
    with np.errstate(divide="ignore"):  # in float32 an error may round to zero
        logs = np.log(error[:, :9] / error[:, :1])
    slope = logs[:, 8] / np.log(shrunk[:, 8])

    def excess(path: _Path, form: np.ndarray) -> np.ndarray:
        """By how much the stable rank exceeds a bound, relative to it, in the steps that are resolved."""
        return np.maximum(0, path.rank / form - 1)[path.resolved(least)]

    printed = {"2 × 2": excess(small, small.form()), "3 × 4": excess(large, large.form())}
    share = {name: np.mean(values > bound) for name, values in printed.items()}
    spectral = max(excess(path, path.form(spectral=True)).max() for path in (small, large))
    finite = [np.mean(np.isfinite(path.bound[path.resolved(least)])) for path in (small, large)]
    # The draws have different q: their errors, over the first, read off at common values of q^s.
    steps, common = np.arange(STEPS + 1), np.geomspace(0.9, 0.45, 6)
    left = np.array([np.interp(np.log(common), np.log(x[8::-1]), y[::-1]) for x, y in zip(shrunk, logs, strict=True)])
    left = np.exp(np.median(left, axis=0))
    worst = max(values.max() for values in printed.values())
    rows = {
        f"excess over the corrected bound, {draws} draws 2 × 2": identity(excess(small, small.bound), bound),
        f"excess, {draws} draws 3 × 4": identity(excess(large, large.bound), bound),
        "excess, two constructed instances": identity(max(excess(p, p.bound).max() for p in (two, narrow)), bound),
        "median power of q^s in |sr − sr(G∥)|, at least": statistic(slope, quantile=0.5, at_least=0.95),
        "median power, at most": statistic(slope, quantile=0.5, at_most=1.05),
        "power of q^s, of the median error": limit(common, left, 1.0),
    }
    control = {
        "printed bound, G = [[−0.3, 1], [1, 1]], B = C = e₁e₁ᵀ": identity(excess(two, two.form()), bound),
        "printed bound, 2 × 2 draws": identity(printed["2 × 2"], bound),
        "‖G⊥‖₂ in the corrected bound, 6 × 6": identity(excess(narrow, narrow.form(spectral=True)), bound),
        "power 2 of q^s, of the median error": limit(common, left, 2.0),
    }
    return Evidence(
        rows,
        control,
        panels=[
            panel(
                title,
                ("step s", steps),
                y="stable rank of G",
                observed={"descent": path.rank[0]},
                predicted={"corrected bound": path.bound[0], "sr(G∥)": np.full(len(steps), limit_rank)},
                control={wrong: form},
            )
            for title, path, limit_rank, wrong, form in (
                (
                    "G = [[−0.3, 1], [1, 1]]",
                    two,
                    stable_ranks(np.asarray(two.split.parallel))[0],
                    "printed bound",
                    two.form()[0],
                ),
                (
                    "6 × 6, constructed",
                    narrow,
                    stable_ranks(np.asarray(narrow.split.parallel))[0],
                    "corrected, with ‖G⊥‖₂",
                    narrow.form(spectral=True)[0],
                ),
            )
        ]
        + [
            panel(
                "near the limit",
                ("q^s", common),
                y="|sr(G) − sr(G∥)| over its start, median of draws",
                observed={"descent": left},
                predicted={"∝ q^s": common},
                control={"∝ q^{2s} (printed)": common**2},
                log="xy",
            )
        ],
        remarks=[
            f"The printed bound fails in {share['2 × 2']:.1%} of the checks on 2 × 2 and {share['3 × 4']:.1%} on 3 × 4 "
            f"instances, by up to {worst:.0%}. The corrected one says something (is finite) in {finite[0]:.0%} and "
            f"{finite[1]:.0%} of them.",
            f"With the spectral norm ‖G⊥‖₂ in its denominator the corrected bound is exceeded by {spectral:.1g} in "
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
                f"exceeded by at most {max(excess(p, p.bound).max() for p in (small, large)):.1g} (relative)",
                f"exceeded in {share['2 × 2']:.1%} of the checks, by up to {worst:.0%}",
            )
        ],
    )


FEATURES, WIDTH, SPAN = 8, 6, 3  # samples, the order n of W, and N'


class _Features(NamedTuple):
    """`G = (1/N) Σ (a_i − B_i W f_i) f_iᵀ`: draws of a, B and f, `(draws, samples, …)`."""

    a: np.ndarray
    b: np.ndarray
    f: np.ndarray

    def operators(self, basis: np.ndarray | None = None) -> Operators:
        """In full, or within the span of the features, of which `basis`, `(draws, n, N')`, has orthonormal columns."""
        f = self.f if basis is None else self.f @ basis
        outer = lambda x: x[..., :, None] * f[..., None, :]
        return Operators(outer(self.a), self.b, outer(f), np.zeros((len(f), self.a.shape[2], f.shape[2])))


def _draw_features(rng: np.random.Generator, draws: int, span: int, common: bool = False) -> _Features:
    """Features in a random subspace of dimension `span`; B of full rank, with `common` the same for all samples."""
    a, f = rng.standard_normal((2, draws, FEATURES, WIDTH))
    basis = np.linalg.qr(rng.standard_normal((draws, WIDTH, span)))[0]
    b = psd(rng, (draws, 1 if common else FEATURES), WIDTH, True) + 0.1 * np.eye(WIDTH)
    return _Features(a, np.broadcast_to(b, (draws, FEATURES, WIDTH, WIDTH)), f @ basis @ basis.swapaxes(1, 2))


def _long_run(features: _Features, left: float) -> tuple[np.ndarray, np.ndarray]:
    """Stable ranks, `(draws,)`, by the closed form `(1 − ηS)^s G(0)` at `η = 0.9/λ_max` when `q^s ‖G⊥‖/‖G∥‖ = left`
    within the span, and those of G∥ there."""
    basis = np.linalg.svd(features.f)[2][:, :SPAN].swapaxes(1, 2)
    a, b, c, _ = features.operators(basis)
    draws = len(a)
    s = np.einsum("dkia,dkbj->dijab", b, c).reshape(draws, WIDTH * SPAN, -1) / FEATURES
    values, vectors = np.linalg.eigh(s)
    inside = np.einsum("dpk,dp->dk", vectors, a.mean(1).reshape(draws, -1))
    decay = 1 - 0.9 * values / values[:, -1:]
    rest = np.linalg.norm(inside[:, 1:], axis=1) / np.abs(inside[:, 0])
    steps = np.log(np.minimum(1, left / rest)) / np.log(decay[:, 1] / decay[:, 0])
    late = inside * (decay / decay[:, :1]) ** steps[:, None]
    matrix = lambda x: np.einsum("dpk,dk->dp", vectors, x).reshape(draws, WIDTH, SPAN)
    return stable_ranks(matrix(late)), stable_ranks(matrix(inside * (np.arange(WIDTH * SPAN) == 0)))


# CONTROL: the printed sr(G) ≤ n/2; features of full rank; for the limit of rank one, a different B for each
# sample
@claim(
    "If the features span N' < n dimensions, the gradient has no part in the eigenspace of λ₁ = 0: its rank "
    "is at most N' at all times, and Lemma 3.3 holds within the span. There a simple least eigenvalue with an "
    "eigenvector y ⊗ z makes the limit of rank one.",
    source="Corollaries 3.4 and 3.5. As printed, sr(G∥) ≤ n − N' is about G∥ = 0, and sr(G) ≤ n/2 is false",
    assumptions=("G = (1/N) Σ (a_i − B_i W f_i) f_iᵀ, B_i of full rank", DESCENT),
)
def corollary_3_4(setting: Setting) -> Evidence:
    rng, draws = setting.rng, setting.pick(smoke=64, laptop=512, paper=4096)
    least, still = setting.bound(1e-6, 1e-2), np.ones((draws, 2))
    fraction = rng.uniform(0.05, 0.95, draws)
    few, full = _draw_features(rng, draws, SPAN), _draw_features(rng, draws, WIDTH)
    common = _draw_features(rng, draws, SPAN, common=True)
    path, path_full = (_follow(setting, features.operators(), fraction, still) for features in (few, full))
    basis = np.linalg.svd(few.f)[2][:, :SPAN].swapaxes(1, 2)
    inside = _follow(setting, few.operators(basis), fraction, still)
    # Five unit vectors as features, B = I and a_i = f_i: G(t) is a multiple of diag(1, 1, 1, 1, 1, 0) for ever.
    units = np.concatenate([np.eye(WIDTH)[: WIDTH - 1], np.zeros((FEATURES - WIDTH + 1, WIDTH))])
    identities = np.broadcast_to(np.eye(WIDTH), (FEATURES, WIDTH, WIDTH))
    isotropic = jax.tree.map(lambda x: np.broadcast_to(x, (draws, *x.shape)), _Features(units, identities, units))
    printed = _follow(setting, isotropic.operators(), np.full(draws, 0.3), still)

    def beyond(path: _Path) -> np.ndarray:
        """The singular value N' + 1 over the first, in the steps that are resolved."""
        singular = np.linalg.svd(path.g, compute_uv=False)
        return (singular[..., SPAN] / singular[..., 0])[path.resolved(least)]

    norm = lambda x: np.linalg.norm(x, axis=(1, 2))
    within = np.maximum(0, inside.rank / inside.bound - 1)[inside.resolved(least)]
    # Roundings of S turn its eigenspaces by up to ε mn λ_max/λ₂.
    still_part = norm(path.split.parallel) / norm(path.g[:, 0]) * path.split.second / path.split.largest
    left = 1e-3
    late, _ = _long_run(common, left)
    late_mixed, end_mixed = _long_run(few, left)
    near_one = (1 + left**2) / (1 - left) ** 2 - 1  # Lemma 3.3 with sr(G∥) = 1
    steps = np.arange(STEPS + 1)
    return Evidence(
        rows={
            "σ_{N'+1}/σ₁ of G, N' = 3 of n = 6": identity(beyond(path), setting.bound(1e-8, 1e-3)),
            "‖G∥‖/‖G‖ for λ₁ = 0, times λ₂/λ_max": identity(still_part, setting.bound(1e-13, 1e-5)),
            "excess over Lemma 3.3's bound within the span": identity(within, setting.bound(1e-9, 1e-3)),
            f"one B for all: sr(G) − 1 where q^s‖G⊥‖ = {left:g} ‖G∥‖": identity(late - 1, near_one),
        },
        control={
            "printed sr(G) − n/2, f = e₁…e₅ of n = 6": identity(np.maximum(0, printed.rank[:, -1] - WIDTH / 2), 1e-3),
            "features of full rank: σ₄/σ₁": identity(np.median(beyond(path_full)), setting.bound(1e-8, 1e-3)),
            "a B for each sample: median of sr(G) − 1": identity(np.median(late_mixed) - 1, near_one),
        },
        panels=[
            panel(
                "stable rank along descent, n = 6",
                ("step s", steps),
                y="stable rank of G",
                observed={
                    "N' = 3, five draws": path.rank[:5].T,
                    "f = e₁…e₅, B = I": printed.rank[0],
                },
                predicted={"N' = 3": np.full(len(steps), 3.0)},
                control={"features of full rank, five draws": path_full.rank[:5].T},
            )
        ],
        remarks=[
            "Every f_i lies in the span, so G has no part outside of it: the eigenspace of λ₁ = 0, which is orthogonal "
            "to the span, holds nothing of G, and sr(G∥) is 0/0. The rank is below n/2 where N' is, else need not be.",
            f"With a B for each sample the limit has a median stable rank of {np.median(end_mixed):.2f}, at most "
            f"{end_mixed.max():.2f}, in {draws} draws of order 6 × 3.",
        ],
        errata=[
            Erratum(
                "Corollary 3.4",
                "sr(G∥) ≤ n − N', and thus sr(G_t) ≤ n/2 for large t",
                "G∥ = 0; sr(G_t) ≤ rank G_t ≤ N', and Lemma 3.3 within the span of the features",
                f"σ_{{N'+1}}/σ₁ ≤ {beyond(path).max():.1g}",
                f"sr(G_t) = {printed.rank[0, -1]:.3g} at all t for f = e₁…e₅, n = 6, B = I",
            )
        ],
    )
