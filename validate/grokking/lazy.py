"""Stage I: the gradient that a fitted output layer sends back, at its start, at its end, and for wide layers."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...dynamics import grokking
from ...dynamics.grokking import OutputLayer, Task
from ...dynamics.groups import cyclic, symmetric
from ...nets.pairs import split
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import heatmap, panel
from ..rows import identity, limit

FEATURES = "features x² of normal weights, held fixed"


def _hidden(pairs: Task, w: Float[Array, "2 order nodes"]) -> Float[Array, "pairs nodes"]:
    return jnp.square(w[0][pairs.first] + w[1][pairs.second])


def _layer(pairs: Task, w: Float[Array, "2 order nodes"], decay: float | Float[Array, ""]) -> OutputLayer:
    labels = jnp.asarray(np.eye(w.shape[1])[pairs.label], w.dtype)
    return OutputLayer(_hidden(pairs, w), labels, decay)


def _relative(x, y):
    return jnp.linalg.norm(x - y) / jnp.linalg.norm(y)


def _cosine(x, y):
    return jnp.vdot(x, y) / (jnp.linalg.norm(x) * jnp.linalg.norm(y))


ETA, BETA = 0.7, 1.6


@jax.jit
def _ridge(flow: OutputLayer, start: Float[Array, "nodes classes"], late: Float[Array, " times"]):
    """Errors of the two forms, of the rate, the way to the limit, the cosine with Ỹ Ỹᵀ F̃, both scalings, |G_F| at 0.
    `late`: times in units of 1/λ_min."""
    limit_, features, labels = flow.limit(), flow.features, flow.labels
    direct = flow.backpropagated(limit_)
    kernel = jnp.linalg.inv(features @ features.T + ETA * jnp.eye(len(features), dtype=features.dtype))
    by_kernel = ETA * kernel @ labels @ (labels.T @ kernel @ features)
    equation_4 = ETA * kernel @ flow.correlation() @ jnp.linalg.inv(flow.matrix())
    slowest = jnp.linalg.eigvalsh(flow.matrix())[0]
    gone = OutputLayer(features, jnp.zeros_like(labels), ETA)  # how V − V_r moves: no cancellation however late

    def gap(t):
        delta = gone.exact(t / slowest, start - limit_)
        return jnp.linalg.norm((labels - features @ limit_) @ delta.T - (features @ delta) @ (limit_ + delta).T)

    gaps = jax.vmap(gap)(late)
    rate = -jnp.polyfit(late, jnp.log(gaps), 1)[0]
    # Outputs βFV: the gradient with respect to F is β times that with respect to βF.
    louder = OutputLayer(BETA * features, labels, ETA).limit_gradient() * BETA
    scaled = OutputLayer(features, labels, ETA / BETA**2).limit_gradient()
    unbiased = OutputLayer(features, labels, 0.0)
    return (
        jnp.stack([_relative(x, direct) for x in (by_kernel, equation_4)]),
        rate - 1,
        gaps / gaps[0],
        _cosine(direct, flow.correlation()),
        _relative(scaled, louder),
        _relative(direct / BETA**2, louder),
        jnp.linalg.norm(unbiased.backpropagated(unbiased.limit())),
    )


# CONTROL: Lemma 1, G_F ∝ Ỹ Ỹᵀ F; G_F = 0 at η = 0 (more pairs than nodes); the scaled limit as G*/β²
@claim(
    "The fitted output layer sends back G_F = η K Ỹ Ỹᵀ F̃ A⁻¹ = η K Ỹ Ỹᵀ K F̃ (K, A the inverse-kernel and Gram"
    " matrices), which it approaches at the rate λ_min(A); outputs scaled by β see the decay η/β².",
    source="Equation 4 and appendix C.3; the kernel form and the exact scaling are derived here",
    assumptions=(FEATURES, "M = 11, all pairs, 40 nodes; S_3, half of the pairs, 30 nodes"),
)
def ridge_gradient(setting: Setting) -> Evidence:
    rng = setting.rng
    tasks = (
        (grokking.task(cyclic(11)), 11, 40),
        (grokking.task(symmetric(3), split(6, train=0.5, seed=setting.seed)), 6, 30),
    )
    late = jnp.linspace(*setting.bound((60, 90), (20, 40)), 6)  # float32 has no numbers of e⁻⁹⁰ squared
    found = [
        _ridge(
            _layer(pairs, jnp.asarray(rng.normal(size=(2, order, nodes)), setting.dtype), ETA),
            jnp.asarray(rng.normal(size=(nodes, order)), setting.dtype),
            late,
        )
        for pairs, order, nodes in tasks
    ]
    forms, rates, decays, cosines, scaled, printed, zero = map(np.array, zip(*found, strict=True))
    return Evidence(
        rows={
            "kernel form and equation 4 against G_F at V_r, relative": identity(forms, setting.bound(1e-11, 1e-2)),
            "rate of approach over λ_min, less one": identity(rates, setting.bound(1e-3, 0.1)),
            "outputs scaled by β: decay η/β², relative": identity(scaled, setting.bound(1e-11, 1e-2)),
        },
        control={
            "Lemma 1: 1 − cos(G_F, Ỹ Ỹᵀ F̃)": identity(1 - np.max(cosines), 0.01),
            "|G_F| at η = 0, 121 pairs, 40 nodes": identity(zero[0], 0.01),
            "scaled limit as G*/β²": identity(np.min(printed), 0.01),
        },
        panels=[
            panel(
                "approach of G_F to its limit",
                ("λ_min t", np.asarray(late)),
                y="|G_F(t) − G_F(∞)|, over the first",
                observed={"M = 11": decays[0], "S_3": decays[1]},
                predicted={"exp(−λ_min t)": np.exp(np.asarray(late[0] - late))},
                log="y",
            )
        ],
        errata=[
            Erratum(
                "regime table of the slides",
                "η = 0: G_F = 0",
                "only where the labels lie in the span of the features (about as many nodes as pairs)",
                "–",
                f"|G_F| = {zero[0]:.2f} at 121 pairs and 40 nodes",
            ),
            Erratum(
                "Appendix C.3",
                "outputs scaled by β: the limit is G*/β²",
                "G* at the decay η/β²",
                f"relative error {max(scaled):.1g}",
                f"{min(printed):.2g} to {max(printed):.2g}",
            ),
        ],
    )


# CONTROL: 2t Ỹ Ỹᵀ F̃; the raw Ỹ Ỹᵀ F, features not centred
@claim(
    "From V(0) of size α the gradient sent back starts as G_F(0) + t Ỹ Ỹᵀ F̃, with a relative error of order one in α.",
    source="Proposition 1",
    assumptions=(
        FEATURES,
        "M = 11, all pairs, 40 nodes",
        "t λ_max = 1e-9 (1e-5 in float32): its own error is linear in t",
    ),
)
def first_gradient(setting: Setting) -> Evidence:
    pairs, rng = grokking.task(cyclic(11)), setting.rng
    w = jnp.asarray(rng.normal(size=(2, 11, 40)), setting.dtype)
    noise = jnp.asarray(rng.normal(size=(40, 11)), setting.dtype)
    flow = _layer(pairs, w, 0.7)
    top = jnp.max(jnp.linalg.eigvalsh(flow.matrix()))
    t = setting.bound(1e-9, 1e-5) / top
    slope = jax.jit(lambda v: (flow.backpropagated(flow.exact(t, v)) - flow.backpropagated(v)) / t)
    alphas = np.array(setting.bound(1e-8, 3e-5) * 10.0 ** (np.arange(5) / 2))  # pyright: ignore[reportArgumentType]
    found = [slope(jnp.asarray(a, w.dtype) * noise) for a in alphas]
    law = flow.correlation()
    raw = flow.labels @ (flow.labels.T @ _hidden(pairs, w))
    raw = raw + jnp.mean(_hidden(pairs, w), axis=0, keepdims=True)  # what centring takes away
    errors = np.array([float(_relative(x, law)) for x in found])
    twice = np.array([float(_relative(x, 2 * law)) for x in found])
    return Evidence(
        rows={
            "relative error in α": limit(alphas, errors, 1.0),
            "relative error at the smallest α": identity(errors[0], setting.bound(1e-4, 1e-1)),
        },
        control={
            "twice the slope": limit(alphas, twice, 1.0),
            "features not centred": limit(alphas, np.array([float(_relative(x, raw)) for x in found]), 1.0),
        },
        panels=[
            panel(
                "slope of G_F at the start",
                ("α", alphas),
                y="relative error",
                observed={"Ỹ Ỹᵀ F̃": errors},
                predicted={"order 1": errors[0] * alphas / alphas[0]},
                control={"2 Ỹ Ỹᵀ F̃": twice},
                log="xy",
            )
        ],
    )


@jax.jit
def _wide(layer: OutputLayer):
    """|G_F|, its cosine with Ỹ Ỹᵀ F̃, and its norm over the wide limit's."""
    found, wide = layer.limit_gradient(), layer.wide_gradient()
    return jnp.stack([jnp.linalg.norm(found), _cosine(found, wide), jnp.linalg.norm(found) / jnp.linalg.norm(wide)])


# CONTROL: Lemma 1: |G_F| falls as K^{−1/2}; on 60 of the pairs G_F becomes proportional to Ỹ Ỹᵀ F̃ too
@claim(
    "On all pairs G_F → η/(4K+η)² Ỹ Ỹᵀ F̃ for K → ∞ nodes, its direction off by order 1/K: |G_F| falls as"
    " K^{−3/2}. A wide layer sends nothing back.",
    source="What holds of Lemma 1, with the exact kernel of x²; derived here",
    assumptions=(
        "features x² of normal weights of variance one, held fixed",
        "M = 11, all 121 pairs",
        "η = 1",
        "2048 to 16 384 nodes in float32",
    ),
)
def wide_limit(setting: Setting) -> Evidence:
    rng, pairs = setting.rng, grokking.task(cyclic(11))
    some = split(11, train=60.5 / 121, seed=setting.seed)
    powers = setting.pick(smoke=(12, 19, 2), laptop=(10, 19, 2), paper=(10, 21, 2))
    widths = 2 ** np.arange(*setting.bound(powers, (11, 15, 1)))  # float32 has too few digits for wider kernels
    draw = lambda nodes, pairs: _wide(_layer(pairs, jnp.asarray(rng.normal(size=(2, 11, nodes)), setting.dtype), 1.0))
    found = np.array([draw(int(k), pairs) for k in widths])
    part = np.array([draw(int(k), grokking.task(cyclic(11), some)) for k in widths[-4:-2]])
    kernel = _kernel_error(pairs, int(widths[-1]), rng, setting)
    largest = f"K = {widths[-1]}"
    return Evidence(
        rows={
            "1 − cos(G_F, Ỹ Ỹᵀ F̃) in 1/K": limit(
                1 / widths, 1 - found[:, 1], 1.0, setting.bound(0.15, 0.25)
            ),
            "|G_F| in 1/K, the four widest": limit(1 / widths[-4:], found[-4:, 0], 1.5, setting.bound(0.1, 0.25)),
            f"1 − cos(G_F, Ỹ Ỹᵀ F̃), {largest}": identity(1 - found[-1, 1], setting.bound(0.003, 0.03)),
            f"|G_F| over η/(4K+η)² |Ỹ Ỹᵀ F̃|, {largest}, less one": identity(found[-1, 2] - 1, setting.bound(0.01, 0.1)),
            f"F Fᵀ/K against 4·11ᵀ + 4I + 2(B₁B₁ᵀ + B₂B₂ᵀ), {largest}, relative": identity(kernel, 0.05),
        },
        control={
            "|G_F| in 1/K, Lemma 1": limit(1 / widths, found[:, 0], 0.5, 0.15),
            f"1 − cosine on 60 pairs, K = {widths[-3]}": identity(1 - part[-1, 1], 0.01),
        },
        panels=[
            panel(
                "direction",
                ("nodes K", widths),
                y="1 − cos(G_F, Ỹ Ỹᵀ F̃)",
                observed={"all pairs": 1 - found[:, 1]},
                predicted={"1/K": (1 - found[0, 1]) * widths[0] / widths},
                log="xy",
            ),
            panel(
                "size",
                ("nodes K", widths),
                y="|G_F|",
                observed={"all pairs": found[:, 0]},
                predicted={"η/(4K+η)² |Ỹ Ỹᵀ F̃|": found[:, 0] / found[:, 2]},
                control={"K^{−1/2} (Lemma 1)": found[0, 0] * np.sqrt(widths[0] / widths)},
                log="xy",
            ),
        ],
        remarks=[
            f"On 60 of the pairs the cosine is {part[0, 1]:.2f} at {widths[-4]} and {part[1, 1]:.2f} at {widths[-3]}."
        ],
        errata=[
            Erratum(
                "Lemma 1",
                "G_F = η/((K c₁+η)(n c₂+η)) Ỹ Ỹᵀ F, both Gram matrices multiples of the identity",
                "η/(4K+η)² Ỹ Ỹᵀ F̃ for K ≫ n² on all pairs; on a part of them never proportional",
                f"1 − cos {1 - found[-1, 1]:.2g} ({largest})",
                f"slope in K {np.polyfit(np.log(widths), np.log(found[:, 0]), 1)[0]:.2f}, printed −0.5",
            )
        ],
    )  # fmt: skip


def _kernel_error(pairs: Task, nodes: int, rng: np.random.Generator, setting: Setting) -> float:
    """Monte Carlo over the widest layer."""
    features = _hidden(pairs, jnp.asarray(rng.normal(size=(2, 11, nodes)), setting.dtype))
    law = grokking.wide_kernel(pairs)
    return float(np.linalg.norm(np.asarray(features @ features.T) / nodes - law) / np.linalg.norm(law))


# CONTROL: G_F → 0 for η → 0 with fewer nodes than pairs, as the slides have it
@claim(
    "With no fewer nodes than pairs G_F is 100 times smaller at small η, at large η and in wide layers than"
    " in between: there is nothing to learn features from. With fewer nodes it stays at small η.",
    source="The regime table of the slides, with its condition",
    assumptions=("features x² of normal weights of variance one", "all pairs of Z_23 (smoke: Z_11)"),
)
def regimes(setting: Setting) -> Evidence:
    order = setting.pick(smoke=11, laptop=23, paper=23)
    pairs, rng = grokking.task(cyclic(order)), setting.rng
    widths = setting.pick(smoke=(16, 256, 4096), laptop=(64, 1024, 16384), paper=(64, 1024, 16384))
    decays = np.array([1e-3, 0.2, 10.0, 1e3, 1e5])
    norms, cosines = np.empty((2, len(widths), len(decays)))
    for i, nodes in enumerate(widths):
        w = jnp.asarray(rng.normal(size=(2, order, nodes)), setting.dtype)
        for j, decay in enumerate(decays):
            norms[i, j], cosines[i, j], _ = np.asarray(_wide(_layer(pairs, w, jnp.asarray(decay, setting.dtype))))
    narrow, middle, wide = norms
    most = middle.max()
    return Evidence(
        rows={
            f"η = 1e-3 over the largest, K = {widths[1]}": identity(middle[0] / most, 0.01),
            f"η = 1e5 over η = 10, K = {widths[0]}": identity(narrow[-1] / narrow[2], setting.pick(
                smoke=0.1, laptop=0.1, paper=0.1)),
            f"K = {widths[2]} over K = {widths[1]}, η = 10": identity(wide[2] / middle[2], 0.01),
            f"η = 1e-3 over η = 0.2 less one, K = {widths[0]}: it stays": identity(narrow[0] / narrow[1] - 1, 0.01),
            "1 − cos(G_F, Ỹ Ỹᵀ F̃) at η = 1e5": identity(1 - cosines[:, -1], 0.02),
        },
        control={f"η = 1e-3 over the largest, K = {widths[0]}": identity(narrow[0] / narrow.max(), 0.01)},
        panels=[
            heatmap(
                "|G_F|", ("decay η", [f"{d:g}" for d in decays]), ("nodes K", list(map(str, widths))),
                norms, z_label="|G_F|", log="z",
            ),
            heatmap(
                "direction", ("decay η", [f"{d:g}" for d in decays]), ("nodes K", list(map(str, widths))), cosines,
                z_label="cos(G_F, Ỹ Ỹᵀ F̃)", limits=(0.0, 1.0),
            ),
        ],
        remarks=[
            f"|G_F| (cosine), η = {', '.join(f'{d:g}' for d in decays)}: "
            + "; ".join(
                f"K = {k}: " + ", ".join(f"{n:.2g} ({c:.2f})" for n, c in zip(*row, strict=True))
                for k, *row in zip(widths, norms, cosines, strict=True)
            )
            + "."
        ],
    )  # fmt: skip
