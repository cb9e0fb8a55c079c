"""Theorem 5: nodes that see one target only, and whether they end at a single pair or spread over many."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics import groups
from ...dynamics.grokking import ACTIVATIONS, ScaledAscent, SingleTarget
from ..cheap import end_of
from ..checks import at_most, evidence, solver, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel

RANDOM = 40  # starts, besides one near each pair
# Approaches have rates from 0.15 on. Up to 16 are met on the way: steps of 0.1 neither amplify them nor overshoot zero,
# beyond which an even activation would end at the other sign.
TIME, STEPS = 200.0, 2000


def _problem(group: groups.Group, setting: Setting):
    """The target and the probabilities, for any activation; starts w ≥ 0 for all of them, and other signs of these."""
    rng, order, cast = setting.rng, group.order, lambda x: jnp.asarray(x, setting.dtype)
    target, eye = int(rng.integers(order)), np.eye(order)
    # Two large ones, both alive for log cosh, and smaller ones.
    p = np.concatenate([[1, 0.85], np.linspace(0.45, 0.1, order - 2)])
    p = cast(rng.permutation(p / p.sum()))
    near = np.stack([eye, eye[group.table[group.inverse][:, target]]], axis=1) / np.sqrt(2)
    near += 0.01 * rng.normal(size=near.shape)  # the rarest pair wins for x³ if others hold below a tenth of it
    starts = np.abs(np.concatenate([rng.normal(size=(RANDOM, 2, order)), near]))
    starts /= np.linalg.norm(starts, axis=(1, 2), keepdims=True)
    return partial(SingleTarget, group, target, p), cast(starts), rng.choice([-1, 1], size=starts.shape)


@eqx.filter_jit
def _ascend(target: SingleTarget, w: Float[Array, "starts 2 order"]) -> dict[str, Array]:
    """The s at which ascents end, and that are predicted, for these p and for √p; the pair at which each ends, and the
    winner of its race; how far any end is from the nodes predicted; F at the best end less that at the profile."""
    p, single = target.probabilities, jnp.sqrt(2.0) * jnp.eye(w.shape[2], dtype=w.dtype)
    # √p for p: a mistake that leaves Σ s² and the order of the pairs as they are.
    other = eqx.tree_at(lambda one: one.probabilities, target, jnp.sqrt(p) / jnp.sum(jnp.sqrt(p)))
    ends = jax.vmap(lambda w: end_of(ScaledAscent(target), w, jnp.asarray(TIME, w.dtype), STEPS))(w)
    start, s = (jax.vmap(target.sums)(nodes) for nodes in (w, ends))
    raced, profile, mistaken = jnp.argmax(p * start, axis=1), target.profile(), other.profile()
    off = lambda s: jnp.max(jnp.abs(ends - jax.vmap(target.node)(jnp.broadcast_to(s, (len(w), len(p))))))
    # For the cube ascent is a race of rates p in s.
    predicted = {"off": profile, "off √p": mistaken, "off likely": single[jnp.argmax(p)], "off race": single[raced]}
    gain = jnp.max(jax.vmap(target)(ends)) - target(target.node(profile))
    found = {"p": p, "s": s, "profile": profile, "for √p": mistaken, "at": jnp.argmax(s, axis=1), "raced": raced}
    return found | {name: off(s) for name, s in predicted.items()} | {"gain": gain}


@claim(
    "A node that sees one target only does best at the most probable pair if φ(x) = σ'(x)/x never falls for x > 0. If φ"
    " falls, it does best spread over the pairs, s_g = φ⁻¹(2λ/p_g), Σ s² = 2. It ends there; x³ ends at any pair.",
    source="Theorem 5; where ascents for x³ end is derived here",
    assumptions=(
        "pairs (g, g⁻¹h) of one target h with probabilities p_g, one of them the largest",
        "F = Σ p_g σ(s_g) on ‖w‖ = 1: the energy itself is zero for one target",
        "from w ≥ 0, at random and near each pair",
    ),
    tex=r"\max_{\Vert w \Vert = 1} \sum_g p_g \sigma(s_g):\ s_g = \phi^{-1}(2\lambda/p_g),\ \phi(x) = \sigma'(x)/x",
    flow=ScaledAscent,
)
def memorisation(setting: Setting) -> Evidence:
    few = (groups.cyclic(6), groups.symmetric(3))  # of one order, which share their compilation
    more = (*few, groups.cyclic(7))
    some, everything = ("square", "cube", "relu", "log_cosh"), tuple(ACTIVATIONS)
    wanted = setting.pick(smoke=few, laptop=more, paper=(*more, groups.alternating(4), groups.metacyclic(7, 3, 2)))
    names = setting.pick(smoke=some, laptop=everything, paper=everything)
    problems, close = [_problem(group, setting) for group in wanted], solver(100)
    solved = lambda name: [jax.tree.map(np.asarray, _ascend(made(name), starts)) for made, starts, _ in problems]
    runs = {name: solved(name) for name in names}
    each = lambda name, key: [run[key] for run in runs[name]]
    spreading = [name for name in names if not ACTIVATIONS[name].focused]
    of_cube = lambda measured: np.mean(np.concatenate([measured(run) for run in runs["cube"]]))
    off_race = of_cube(lambda run: run["at"] != run["raced"])
    off_likely = of_cube(lambda run: run["at"] != run["p"].argmax())
    missed, square = ([len(run["p"]) - len(np.unique(run["at"])) for run in runs[name]] for name in ("cube", "square"))
    made, starts, signs = problems[-1]
    either = _ascend(made("relu"), signs * starts)
    stalled = ~np.all(np.abs(either["s"] - either["profile"]) < 1e-3, axis=1)  # without a gradient they are NaN
    where, printed = "Theorem 5, its last sentence", "there are no other local optima"
    form = "none but for x^q, q > 2: every single pair is one, and ascent ends at the largest p_g s_g(0)^(q−2)"
    elsewhere = "fraction of the ends for x³ that are elsewhere"

    last = {name: own[-1] for name, own in runs.items()}
    by_p, shown = np.argsort(-last["cube"]["p"]), wanted[-1].name
    axis = ("pair, by falling p", np.arange(1, len(by_p) + 1))
    spread: dict[str, Any] = {
        "predicted": {name: last[name]["profile"][by_p] for name in spreading},
        "observed": {name: last[name]["s"].mean(axis=0)[by_p] for name in spreading},
        "control": {"relu, for √p": last["relu"]["for √p"][by_p]},
    }
    fraction = lambda key: np.bincount(last["cube"][key], minlength=len(by_p))[by_p] / len(last["cube"][key])
    raced: dict[str, Any] = {"predicted": {"largest p·s(0)": fraction("raced")}, "observed": {"ascent": fraction("at")}}
    raced["control"] = {"the largest p (Theorem 5)": np.eye(len(by_p))[0]}

    def less(name, what, key, mistake="", off=""):
        wrong = {f"{mistake}, the least": min(each(name, off))} if off else {}
        return vanishes(f"{name}: ends less {what}", each(name, key), wrong, within=close)

    return evidence(
        less("square", "the focused node", "off"),
        *[less(name, "the spreading node", "off", "for √p", "off √p") for name in spreading],
        less("cube", "the pair of the largest p·s(0)", "off race", "of the largest p", "off likely"),
        at_most("cube: fraction of the ends elsewhere", off_race, 0.0, {"than at the largest p": off_likely}),
        at_most("cube: pairs at which no ascent ends", missed, 0, {"x²": square}),
        vanishes("cube: F of the best end less that at the largest p", each("cube", "gain"), within=close),
        panels=[
            panel(f"σ'(x)/x falls: spreading, {shown}", axis, **spread, y="s"),
            panel(f"x³: a local maximum at every pair, {shown}", axis, **raced, y="fraction of the ends"),
        ],
        remarks=[
            f"Of {len(stalled)} ascents of ReLU from starts of either sign {np.sum(stalled)} stop elsewhere, because"
            " pairs with s < 0 are dead."
        ],
        errata=[Erratum(where, printed, form, float(off_race), float(off_likely), elsewhere)],
    )
