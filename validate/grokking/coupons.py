"""Theorem 8: which mode a node learns, and how many nodes it takes to collect them all."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from ...dynamics.grokking import race
from ...dynamics.grokking.energy import ScaledAscent
from ..claim import Erratum, Evidence, Setting, claim
from ..descent import end_of
from ..panels import panel
from ..rows import Row, identity, limit

MU = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
EXPONENT = 2.0
MODES = len(MU)
SIGMAS = 4.0  # which chance exceeds once in 16 000 times


@partial(jax.jit, static_argnums=1)
def _collect(key, trials: int, left: Float[Array, ""]) -> Int[Array, "trials modes"]:
    """At which draw each mode is won for the first time: races from Fréchet starts until each trial has all modes. A
    mode that was won before starts with the part `left` of its amount."""
    mu = jnp.asarray(MU, left.dtype)

    def draw(carry):
        key, first, count = carry
        key, now = jax.random.split(key)
        start = race.frechet(now, (trials, MODES), EXPONENT) * jnp.where(first > 0, left, 1.0)
        won = jnp.argmax(mu[None] * start, axis=1)[:, None] == jnp.arange(MODES)[None]
        return key, jnp.where((first == 0) & won, count, first), count + 1

    start = key, jnp.zeros((trials, MODES), int), jnp.ones((), int)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[1] == 0), draw, start)[1]


@jax.jit
def _ends(starts: Float[Array, "nodes modes"], modes: Float[Array, "2 half modes"]):
    """Which mode nodes of norm one end at that climb `⅓ Σ μ_l (ζ_lᵀw)³`, whose gradient is A(w)w, from these amounts of
    the orthonormal ζ; and the winner of the race."""
    mu = jnp.asarray(MU, modes.dtype)
    amounts = lambda w: jnp.einsum("ghl,gh->l", modes, w)
    flow = ScaledAscent(lambda w: jnp.sum(mu * amounts(w) ** 3) / 3)

    def end(start):
        w = jnp.einsum("ghl,l->gh", modes, start / jnp.linalg.norm(start))
        return jnp.argmax(amounts(end_of(flow, w, jnp.asarray(40.0, w.dtype), 400)))

    return jax.vmap(end)(starts), jax.vmap(race.ModeRace(mu).winner)(starts)


@jax.jit
def _last_columns(basis: Float[Array, "rows 5"], sizes: Float[Array, " n"]):
    """The last column of the polar factor of [Q, v], for v with parts of these norms inside the span of Q and 0.6
    outside; its prediction, and that prediction with ‖v_⊥‖² where it has ‖v_⊥‖."""
    q, inside, outside = basis[:, :4], jnp.mean(basis[:, :4], axis=1) * 2, 0.6 * basis[:, 4]

    def at(size):
        v = size * inside + outside
        printed = outside / 0.6 + size * inside / (1 + 0.6**2)
        return race.polar(jnp.column_stack([q, v]))[:, -1], race.polar_last_column(q, v), printed

    return jax.vmap(at)(sizes)


class _Theory(NamedTuple):
    """What the formulas say: for the six modes, for six of equal p, and for random p."""

    p: Float[ArrayLike, " modes"]
    mistaken: Float[ArrayLike, " modes"]
    alone: Float[ArrayLike, ""]
    after: Float[ArrayLike, ""]
    found: Float[ArrayLike, " draws"]
    equal: Float[ArrayLike, ""]
    below: Float[ArrayLike, " random"]


@jax.jit
def _theory(draws: Float[Array, " draws"], random: Float[Array, "random modes"]) -> _Theory:
    mu = jnp.asarray(MU, draws.dtype)
    p = race.winner_probabilities(mu, EXPONENT)
    return _Theory(
        p,
        race.winner_probabilities(mu, 1.0),
        race.coupon_time(p),
        race.sequential_coupon_time(p, EXPONENT),
        jax.vmap(partial(race.distinct, p))(draws),
        race.coupon_time(jnp.full(MODES, 1 / MODES, draws.dtype)),
        jax.lax.map(lambda p: race.coupon_bound(p) / race.coupon_time(p) - 1, random),
    )


def off_by(samples: np.ndarray, predicted: ArrayLike) -> Row:
    """By how many standard errors the mean of the samples, along the first axis, is off: at most four."""
    samples = np.asarray(samples, float)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return identity((samples.mean(axis=0) - np.asarray(predicted)) / error, SIGMAS)


# CONTROL: p ∝ μ; T_a without the factor 2^{−a}; the lower bound of T₀ without L; ‖v_⊥‖² in Lemma 9
@claim(
    "Of modes that grow as α̇_l = μ_l α_l² the largest μ_l α_l(0) wins: from Fréchet starts mode l with"
    " probability μ_l^a/Σμ^a. T₀ = ∫ 1 − Π(1 − e^{−p_l t}) dt draws find all L modes, and 2^{−a} T₀ + (1 − 2^{−a}) L if"
    " modes found before start with half as much.",
    source="Theorem 8, Lemmas 7, 8 and 9",
    assumptions=(
        "L = 6 orthonormal modes, μ = 1, 0.9, …, 0.5, independent Fréchet starts with a = 2",
        "Muon by the sequential protocol of the theorem: node after node, modes found before damped by exactly ½",
    ),
)
def coupons(setting: Setting) -> Evidence:
    trials = setting.pick(smoke=10_000, laptop=40_000, paper=400_000)
    rng, dtype, keys = setting.rng, setting.dtype, jax.random.split(setting.key)
    orthonormal = lambda rows, columns: np.linalg.qr(rng.normal(size=(rows, columns)))[0].astype(dtype)
    draws = np.arange(1, 41)
    random = rng.dirichlet(np.ones(MODES), 200).astype(dtype)
    theory = jax.tree.map(np.asarray, _theory(draws.astype(dtype), random))
    alone, after = (np.asarray(_collect(keys[i], trials, np.asarray(x, dtype))) for i, x in enumerate((1.0, 0.5)))
    won = alone == 1
    found = np.sum(alone[:, None] <= draws[None, :, None], axis=2)
    kept = 2**-EXPONENT
    undamped = theory.alone + (1 - kept) * MODES
    starts = (rng.exponential(size=(500, MODES)) ** (-1 / EXPONENT)).astype(dtype)  # Fréchet numbers too
    ends, winners = map(np.asarray, _ends(starts, orthonormal(2 * MODES, MODES).reshape(2, MODES, MODES)))
    sizes = 0.2 * 0.5 ** np.arange(6)
    exact, predicted, printed = map(np.asarray, _last_columns(orthonormal(12, 5), sizes.astype(dtype)))
    off, off_printed = (np.linalg.norm(exact - x, axis=1) for x in (predicted, printed))
    harmonic = sum(1 / n for n in range(1, MODES + 1))
    rounding = setting.bound(1e-12, 1e-5)
    sequence, waits = np.arange(1, MODES + 1), np.sort(alone, axis=1).mean(axis=0)
    return Evidence(
        rows={
            "T_a, in standard errors": off_by(after.max(axis=1), theory.after),
            "T₀, in standard errors": off_by(alone.max(axis=1), theory.alone),
            "how often each mode wins, in standard errors": off_by(won, theory.p),
            "modes found by 6 and by 12 draws, in standard errors": off_by(found[:, [5, 11]], theory.found[[5, 11]]),
            "nodes of norm one that end at another mode than the winner": identity(np.mean(ends != winners), 0.0),
            "by how much max(1/min p, L·H_L) exceeds T₀, relative": identity(max(0.0, theory.below.max()), rounding),
            "T₀ for equal p over L·H_L − 1": identity(theory.equal / (MODES * harmonic) - 1, rounding),
            "Lemma 9: error in ‖v_∥‖": limit(sizes, off, 2.0),
        },
        control={
            "T_a without 2^{−a}, in standard errors": off_by(after.max(axis=1), undamped),
            "how often each mode wins for p ∝ μ, in standard errors": off_by(won, theory.mistaken),
            "T₀ for equal p over H_L − 1": identity(theory.equal / harmonic - 1, rounding),
            "Lemma 9 with ‖v_⊥‖²": limit(sizes, off_printed, 2.0),
        },
        panels=[
            panel(
                "modes found by independent draws",
                ("draws", draws),
                y="distinct modes",
                predicted={"Σ 1 − (1 − p)^K": theory.found},
                observed={"races": found.mean(axis=0)},
            ),
            panel(
                "draws until so many modes are found",
                ("modes found, l", sequence),
                y="draws",
                predicted={"2^{−a} of these and (1 − 2^{−a}) l": kept * waits + (1 - kept) * sequence},
                observed={"independent": waits, "found modes halved": np.sort(after, axis=1).mean(axis=0)},
                control={"without 2^{−a}": waits + (1 - kept) * sequence},
            ),
            panel(
                "Lemma 9: the last column of the polar factor",
                ("‖v_∥‖", sizes),
                y="error",
                observed={"1 + ‖v_⊥‖": off},
                control={"1 + ‖v_⊥‖²": off_printed},
                log="xy",
            ),
        ],
        remarks=[f"T₀ = {theory.alone:.3f}, T_a = {theory.after:.3f}."],
        errata=[
            Erratum(
                "Theorem 8, the lower bound of T₀ in the main text",
                "T₀ ≥ max(1/min p, Σ 1/l)",
                "T₀ ≥ max(1/min p, L Σ 1/l), as in the appendix; without L the second is never above the first",
                f"T₀ = {theory.equal / (MODES * harmonic):.6g} L Σ 1/l for equal p, least for all p",
                f"T₀ = {theory.equal / harmonic:.6g} Σ 1/l for equal p",
            ),
            Erratum(
                "Lemma 9",
                "v_∥/(1 + ‖v_⊥‖²)",
                "v_∥/(1 + ‖v_⊥‖)",
                f"error {off[-1]:.2g} at ‖v_∥‖ = {sizes[-1]:.2g}, of second order",
                f"error {off_printed[-1]:.2g} there, of first order",
            ),
        ],
    )
