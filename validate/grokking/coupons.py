"""Theorem 8: which mode a node learns, how many nodes collect them all, and what Muon has over gradient ascent."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ...dynamics.grokking import ScaledAscent, convolution_energy, race
from ...dynamics.groups import cyclic
from ..cheap import end_of
from ..checks import agrees, at_most, converges, evidence, mean, norms, relative, rounding, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..pair_networks import SQUARE
from ..panels import panel
from ._shared import ALL_PAIRS, SIGMAS, random_nodes, standard_errors

MU = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
EXPONENT = 2.0
MODES = len(MU)
HARMONIC = sum(1 / n for n in range(1, MODES + 1))
KEPT = 2**-EXPONENT  # the chance of a mode whose start is halved, over what it was


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
def _theory(random: Float[Array, "random modes"]):
    """What the formulas say of the six modes, of six of equal p, and of random p."""
    mu = jnp.asarray(MU, random.dtype)
    p = race.winner_probabilities(mu, EXPONENT)
    return {
        "p": p,
        "p ∝ μ": race.winner_probabilities(mu, 1.0),
        "T₀": race.coupon_time(p),
        "T_a": race.sequential_coupon_time(p, EXPONENT),
        "found": jnp.stack([race.distinct(p, jnp.asarray(draws, p.dtype)) for draws in (6.0, 12.0)]),
        "equal": race.coupon_time(jnp.full(MODES, 1 / MODES, p.dtype)),
        "bound": jax.lax.map(lambda p: race.coupon_bound(p) / race.coupon_time(p) - 1, random),
    }


@claim(
    "Of modes that grow as α̇_l = μ_l α_l² the largest μ_l α_l(0) wins: from Fréchet starts mode l with probability"
    " p_l = μ_l^a/Σμ^a. All L modes are found after T₀ = ∫ 1 − Π(1 − e^{−p_l t}) dt draws on average. It takes"
    " 2^{−a} T₀ + (1 − 2^{−a}) L if modes found before start with half as much.",
    source="Theorem 8, Lemmas 7, 8 and 9",
    assumptions=(
        "L = 6 orthonormal modes, μ = 1, 0.9, …, 0.5, independent Fréchet starts with a = 2",
        "Muon by the sequential protocol of the theorem: node after node, modes found before damped by exactly ½",
    ),
    tex=r"p_l = \frac{\mu_l^a}{\sum_k \mu_k^a},\ T_a = 2^{-a} T_0 + (1 - 2^{-a}) L",
    flow=race.ModeRace,
)
def coupons(setting: Setting) -> Evidence:
    trials = setting.pick(smoke=10_000, laptop=40_000, paper=400_000)
    rng, dtype, keys, tight = setting.rng, setting.dtype, jax.random.split(setting.key), rounding(4500)
    orthonormal = lambda rows, columns: np.linalg.qr(rng.normal(size=(rows, columns)))[0].astype(dtype)
    theory = jax.tree.map(np.asarray, _theory(rng.dirichlet(np.ones(MODES), 200).astype(dtype)))
    alone, after = (np.asarray(_collect(keys[i], trials, np.asarray(x, dtype))) for i, x in enumerate((1.0, 0.5)))
    found = np.sum(alone[:, None] <= np.array([6, 12])[:, None], axis=2)
    starts = (rng.exponential(size=(500, MODES)) ** (-1 / EXPONENT)).astype(dtype)  # Fréchet numbers too
    ends, winners = map(np.asarray, _ends(starts, orthonormal(2 * MODES, MODES).reshape(2, MODES, MODES)))
    # The last column of the polar factor of [Q, v], v with parts of these norms inside the span of Q and 0.6 outside.
    sizes, basis = 0.2 * 0.5 ** np.arange(6), orthonormal(12, 5)
    q, inside, outside = basis[:, :4], sizes.astype(dtype)[:, None] * np.mean(basis[:, :4], axis=1) * 2, basis[:, 4]
    columns = lambda v: (race.polar(jnp.column_stack([q, v]))[:, -1], race.polar_last_column(jnp.asarray(q), v))
    exact, predicted = map(np.asarray, jax.jit(jax.vmap(columns))(inside + 0.6 * outside))
    printed = outside + inside / (1 + 0.6**2)  # with ‖v_⊥‖² in place of ‖v_⊥‖
    in_errors = lambda name, samples, *laws: agrees(
        f"{name}, in standard errors", None, samples.astype(float), *laws, within=SIGMAS, measure=standard_errors
    )
    independent, equal, total = theory["T₀"], theory["equal"], MODES * HARMONIC
    lemma, as_printed = {"v_∥/(1 + ‖v_⊥‖)": predicted}, {"v_∥/(1 + ‖v_⊥‖²), as printed": printed}
    name = "fraction of nodes of norm one that end at another mode than the largest μ_l α_l(0)"
    by_start = {"than the largest α_l(0)": np.mean(ends != starts.argmax(axis=1))}
    sequence, (waits, halved) = np.arange(1, MODES + 1), (np.sort(x, axis=1).mean(axis=0) for x in (alone, after))
    damped = {"2^{−a} of these and (1 − 2^{−a}) l": KEPT * waits + (1 - KEPT) * sequence}
    undamped, seen = waits + (1 - KEPT) * sequence, {"independent": waits, "found modes halved": halved}
    title, axis = "draws until so many modes are found", ("modes found, l", sequence)
    where = "Theorem 8, the lower bound of T₀ in the main text"
    measure = "T₀ over the bound less one, for equal p, where it is least"
    form = "T₀ ≥ max(1/min p, L Σ 1/l), as in the appendix; without L the second is never above the first"
    off = (abs(equal / bound - 1) for bound in (total, HARMONIC))
    of_last = f"relative error of the last column at ‖v_∥‖ = {sizes[-1]:.2g}"
    last = (norms(exact, column)[-1] for column in (predicted, printed))
    return evidence(
        in_errors("T_a", after.max(axis=1), theory["T_a"], {"without 2^{−a}": independent + (1 - KEPT) * MODES}),
        in_errors("T₀", alone.max(axis=1), independent),
        in_errors("how often each mode wins", alone == 1, theory["p"], {"p ∝ μ": theory["p ∝ μ"]}),
        in_errors("modes found by 6 and by 12 draws", found, theory["found"]),
        at_most(name, np.mean(ends != winners), 0.0, by_start),
        at_most("max(1/min p, L·H_L) over T₀, less one", theory["bound"], tight),
        agrees("T₀ for equal p", None, equal, total, {"H_L": HARMONIC}, within=tight, measure=relative),
        converges("Lemma 9", ("‖v_∥‖", sizes), exact, lemma, as_printed, order=2),
        panels=[panel(title, axis, y="draws", predicted=damped, observed=seen, control={"without 2^{−a}": undamped})],
        remarks=[f"T₀ = {independent:.3f}, T_a = {theory['T_a']:.3f}."],
        errata=[
            Erratum(where, "T₀ ≥ max(1/min p, Σ 1/l)", form, *off, measure=measure),
            Erratum("Lemma 9", "v_∥/(1 + ‖v_⊥‖²)", "v_∥/(1 + ‖v_⊥‖)", *last, measure=of_last),
        ],
    )


# Muon in training that the theorem does not assume

STEP = 0.05
FREQUENCIES = 11
GROUP = cyclic(2 * FREQUENCIES + 1)


@partial(jax.jit, static_argnums=(1, 2))
def _train(w: Float[Array, "runs nodes 2 order"], steps: int, muon: bool) -> Float[Array, "runs nodes 2 order"]:
    """All nodes of each run at once, `w_j ← unit(w_j + 0.05 unit(d_j))`: d_j is the gradient of the energy of node j,
    or with Muon column j of the polar factor of the matrix, 2M × K, of all K gradients."""
    slope = jax.vmap(jax.grad(lambda w: convolution_energy(w, GROUP)))
    unit = lambda w: w / jnp.linalg.norm(w, axis=(1, 2), keepdims=True)

    def update(w, _):
        d = slope(w)
        if muon:
            d = race.polar(d.reshape(len(w), -1).T).T.reshape(w.shape)
        return unit(w + STEP * unit(d)), None

    # Run after run: the nodes of one fit into the cache.
    return jax.lax.map(lambda w: jax.lax.scan(update, w, length=steps)[0], w)


def _learned(w: Float[Array, "runs nodes 2 order"]) -> tuple[np.ndarray, np.ndarray]:
    """By run, how many frequencies the nodes up to each have, and the mean fraction of a node in its frequency."""
    power = np.sum(np.abs(np.fft.rfft(np.asarray(w))) ** 2, axis=2)[..., 1:]
    new = [[k not in run[:j] for j, k in enumerate(run)] for run in power.argmax(axis=2).tolist()]
    return np.cumsum(new, axis=1), np.mean(power.max(axis=2) / power.sum(axis=2), axis=1)


@claim(
    "Nodes that climb Σ E(w_j) along the polar factor of all gradients (Muon) learn more distinct frequencies than"
    " nodes that follow their own gradient. The latter find as many as independent draws do.",
    source="Theorem 8's conclusion, in a setting that it does not assume: nodes at once and normal starts",
    assumptions=(
        f"{ALL_PAIRS}, here Z_{GROUP.order}, whose {FREQUENCIES} frequencies are equally probable",
        SQUARE,
        "nodes of norm one, steps of 0.05 for each node, no momentum",
    ),
    tex=r"W \leftarrow W + \epsilon\, G (G^\top G)^{-1/2}\ \mathrm{finds\ more\ than}\ W \leftarrow W + \epsilon\, G",
)
def muon(setting: Setting) -> Evidence:
    rng, dtype, runs = setting.rng, setting.dtype, setting.pick(smoke=100, laptop=200, paper=1000)
    more = 4 * runs  # of gradient ascent, which costs little
    steps = setting.pick(smoke=80, laptop=100, paper=300)  # no frequency changes after 60
    both = {22: 0.4, 33: 0.25}
    parts, fractions, panels, remarks = [], [], [], []
    for nodes, gap in setting.pick(smoke={22: 0.4}, laptop=both, paper=both).items():
        starts = random_nodes(rng, more * nodes, GROUP.order).reshape(more, nodes, 2, GROUP.order).astype(dtype)
        alone, of_alone = _learned(_train(starts, steps, False))
        joint, of_joint = _learned(_train(starts[:runs], steps, True))
        count, p = np.arange(1, nodes + 1), jnp.full(FREQUENCIES, 1 / FREQUENCIES, dtype)
        drawn = np.asarray(jax.jit(jax.vmap(partial(race.distinct, p)))(count.astype(dtype)))
        by_gradient, by_muon = alone[:, -1], joint[:, -1]
        wrong = {"by gradient from other starts": by_gradient[2 * runs :] - by_gradient[: 2 * runs]}
        off, wrong_off = (standard_errors(found, drawn[-1:]) for found in (by_gradient, by_muon))
        less, name = by_muon - by_gradient[:runs], "by gradient, less independent draws, in standard errors"
        parts.append(mean(f"{nodes} nodes: frequencies by Muon, less by gradient", less, wrong, at_least=gap))
        parts.append(vanishes(f"{nodes} nodes: {name}", off, {"Muon": wrong_off}, within=SIGMAS))
        title, law = f"{nodes} nodes: what the first so many have learned", {"independent draws": drawn}
        seen, y = {"gradient": alone.mean(axis=0), "Muon": joint.mean(axis=0)}, "distinct frequencies"
        panels.append(panel(title, ("nodes", count), y=y, predicted=law, observed=seen))
        remarks.append(
            f"{nodes} nodes: {by_gradient.mean():.2f} of {FREQUENCIES} frequencies by gradient, {drawn[-1]:.2f} by"
            f" independent draws, {by_muon.mean():.2f} by Muon."
        )
        fractions += [of_alone, of_joint]
    parts.append(mean("fraction of a node in its frequency", np.concatenate(fractions), at_least=0.99))
    return evidence(*parts, panels=panels, remarks=remarks)
