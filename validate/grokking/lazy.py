"""Stage I: the gradient that a fitted output layer sends back, at its start, at its end, and for wide layers."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ...dynamics import grokking
from ...dynamics.grokking import OutputLayer, Pairs
from ...dynamics.groups import cyclic, symmetric
from ...nets.pairs import split
from ..checks import agrees, at_most, converges, evidence, norms, relative, rounding, scales, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..pair_networks import ALL_PAIRS, LAZY, SQUARE
from ..panels import heatmap

FEATURES = LAZY.said("features x² of normal weights, held fixed")
ETA, BETA = 0.7, 1.6


def _hidden(pairs: Pairs, w: Float[Array, "2 order nodes"]) -> Float[Array, "pairs nodes"]:
    return jnp.square(w[0][pairs.first] + w[1][pairs.second])


def _layer(pairs: Pairs, w: Float[ArrayLike, "2 order nodes"], decay: float, setting: Setting) -> OutputLayer:
    weights, labels = (jnp.asarray(x, setting.dtype) for x in (w, np.eye(np.shape(w)[1])[pairs.label]))
    return OutputLayer(_hidden(pairs, weights), labels, jnp.asarray(decay, setting.dtype))


def _by_kernel(layer: OutputLayer) -> tuple[Float[Array, "pairs pairs"], Float[Array, "pairs nodes"]]:
    """K, and `η K Ỹ Ỹᵀ K F̃`."""
    features, labels, eta = layer.features, layer.labels, layer.decay
    kernel = jnp.linalg.inv(features @ features.T + eta * jnp.eye(len(features), dtype=features.dtype))
    return kernel, eta * kernel @ labels @ (labels.T @ kernel @ features)


@jax.jit
def _ridge(flow: OutputLayer, start: Float[Array, "nodes classes"], late: Float[Array, " times"]):
    """Relative errors of forms of G_F at the ridge solution and for outputs scaled by β, how fast it is approached, and
    |G_F| without decay. `late`: times in units of 1/λ_min."""
    limit, features, labels = flow.limit(), flow.features, flow.labels
    off = lambda x, y: jnp.linalg.norm(x - y) / jnp.linalg.norm(y)
    direct, along, slowest = flow.backpropagated(limit), flow.correlation(), jnp.linalg.eigvalsh(flow.matrix())[0]
    kernel, by_kernel = _by_kernel(flow)
    gone = OutputLayer(features, jnp.zeros_like(labels), ETA)  # how V − V_r moves: no cancellation however late

    def gap(t):
        delta = gone.exact(start - limit, t / slowest)
        return jnp.linalg.norm((labels - features @ limit) @ delta.T - (features @ delta) @ (limit + delta).T)

    gaps = jax.vmap(gap)(late)
    # Outputs βFV: the gradient with respect to F is β times that with respect to βF.
    louder = OutputLayer(BETA * features, labels, ETA).limit_gradient() * BETA
    unbiased = OutputLayer(features, labels, 0.0)
    return {
        "kernel": off(by_kernel, direct),
        "equation 4": off(ETA * kernel @ along @ jnp.linalg.inv(flow.matrix()), direct),
        "Lemma 1": off(along * jnp.vdot(direct, along) / jnp.vdot(along, along), direct),
        "approach": gaps / gaps[0],
        "slowest": slowest,
        "η/β²": off(OutputLayer(features, labels, ETA / BETA**2).limit_gradient(), louder),
        "G*/β²": off(direct / BETA**2, louder),
        "no decay": jnp.linalg.norm(unbiased.backpropagated(unbiased.limit())),
    }


@claim(
    "The fitted output layer sends back G_F = η K Ỹ Ỹᵀ F̃ A⁻¹ = η K Ỹ Ỹᵀ K F̃. Here K is the inverse kernel and A the"
    " Gram matrix. G_F approaches this at the rate λ_min(A). Outputs scaled by β see the decay η/β².",
    source="Equation 4 and appendix C.3; the kernel form and the exact scaling are derived here",
    assumptions=(FEATURES, "M = 11, all pairs, 40 nodes; S_3, half of the pairs, 30 nodes"),
    tex=r"G_F = \eta K \tilde Y \tilde Y^\top \tilde F A^{-1} = \eta K \tilde Y \tilde Y^\top K \tilde F",
    flow=OutputLayer,
)
def ridge_gradient(setting: Setting) -> Evidence:
    rng, some = setting.rng, split(6, fraction=0.5, seed=setting.seed)
    tasks = (grokking.pairs(cyclic(11).table), 11, 40), (grokking.pairs(symmetric(3).table, some), 6, 30)
    late = np.linspace(*setting.bound((60, 90), (20, 40)), 6)  # float32 has no e⁻⁹⁰ squared
    cast = lambda x: jnp.asarray(x, setting.dtype)

    def measured(pairs, order, nodes):
        flow = _layer(pairs, rng.normal(size=(2, order, nodes)), ETA, setting)
        return _ridge(flow, cast(rng.normal(size=(nodes, order))), cast(late))

    found = jax.tree.map(lambda *x: np.array(x), *(measured(*task) for task in tasks))
    later, (bare, spanned), tight = late[:, None] - late[0], found["no decay"], rounding(4.5e4)
    forms = {"η K Ỹ Ỹᵀ K F̃": found["kernel"], "equation 4": found["equation 4"]}
    rate, wrong_rate = {"exp(−λ_min t)": np.exp(-later)}, {"exp(−ηt)": np.exp(-later * ETA / found["slowest"])}
    # What the next eigenvalues still add, in float32 at earlier times.
    beside = {"within": setting.bound(0.01, 0.5), "measure": relative, "log": "y"}
    scaled, as_printed = found["η/β²"], {"G*/β², as printed": found["G*/β²"]}
    only = "only where the labels lie in the span of the features (about as many nodes as pairs)"
    sizes = "|G_F|; corrected: 18 pairs and 30 nodes, printed: 121 pairs and 40 nodes"
    no_decay = Erratum("regime table of the slides", "η = 0: G_F = 0", only, spanned, bare, sizes)
    limits = "outputs scaled by β: the limit is G*/β²", "G* at the decay η/β²"
    lemma = {"the best multiple of Ỹ Ỹᵀ F̃ (Lemma 1)": found["Lemma 1"]}
    fewer = {"121 pairs and 40 nodes, zero in the slides": bare}
    return evidence(
        vanishes("G_F at V_r, relative error", forms, lemma, within=tight),
        agrees("|G_F(t) − G_F(∞)| over the first", ("λ_min t", late), found["approach"].T, rate, wrong_rate, **beside),
        vanishes("outputs scaled by β: G* at the decay η/β², relative error", scaled, as_printed, within=tight),
        vanishes("|G_F| at η = 0 with more nodes than pairs", spanned, fewer, within=tight),
        errata=[no_decay, Erratum("Appendix C.3", *limits, scaled.max(), found["G*/β²"].max())],
    )


@claim(
    "From V(0) of size α the gradient sent back starts as G_F(0) + t Ỹ Ỹᵀ F̃, with a relative error of order one in α.",
    source="Proposition 1",
    assumptions=(
        FEATURES,
        "M = 11, all pairs, 40 nodes",
        "t λ_max = 1e-9 (1e-5 in float32): its own error is linear in t",
    ),
    tex=r"G_F(t) = G_F(0) + t\, \tilde Y \tilde Y^\top \tilde F\, (1 + O(\alpha))",
    flow=OutputLayer,
)
def first_gradient(setting: Setting) -> Evidence:
    pairs, rng = grokking.pairs(cyclic(11).table), setting.rng
    w, noise = (jnp.asarray(rng.normal(size=size), setting.dtype) for size in ((2, 11, 40), (40, 11)))
    flow = _layer(pairs, w, ETA, setting)
    t = setting.bound(1e-9, 1e-5) / jnp.max(jnp.linalg.eigvalsh(flow.matrix()))
    slope = jax.jit(lambda v: (flow.backpropagated(flow.exact(v, t)) - flow.backpropagated(v)) / t)
    least, wide = setting.bound((1e-8, 2), (3e-5, 1))  # float32 resolves none smaller, and to α of order one is not far
    alphas = np.geomspace(least, least * 10**wide, 5)
    found = np.array([slope(jnp.asarray(a, setting.dtype) * noise) for a in alphas])
    law = flow.correlation()
    wrong = {"2 Ỹ Ỹᵀ F̃": 2 * law, "features not centred": law + jnp.mean(_hidden(pairs, w), axis=0)}
    same, of_order_alpha = f"the same at α = {alphas[0]:.2g}", setting.bound(1e-4, 1e-1)
    return evidence(
        converges("slope of G_F", ("α", alphas), found, {"Ỹ Ỹᵀ F̃": law}, wrong, order=1),
        agrees(same, None, found[:1], law, wrong, within=of_order_alpha, measure=norms),
    )


@partial(jax.jit, static_argnames="direct")
def _wide(layer: OutputLayer, direct: bool = False):
    """|G_F|, its cosine with Ỹ Ỹᵀ F̃, its norm in the wide limit, and by Lemma 1: both Gram matrices as multiples of the
    identity that have their traces. `direct`: by the ridge solution, not by the kernel form, which `ridge_gradient`
    checks: it takes a hundredth of the time for wide layers, but more digits at a small η."""
    wide, along, eta, size = layer.wide_gradient(), layer.correlation(), layer.decay, jnp.linalg.norm
    found = layer.limit_gradient() if direct else _by_kernel(layer)[1]
    by_lemma = eta * size(along) / jnp.prod(jnp.sum(layer.features**2) / jnp.array(layer.features.shape) + eta)
    return jnp.stack([size(found), jnp.vdot(found, wide) / (size(found) * size(wide)), size(wide), by_lemma])


@claim(
    "On all pairs G_F → η/(4K+η)² Ỹ Ỹᵀ F̃ as the number of nodes K → ∞. Its direction is off by order 1/K, and |G_F|"
    " falls as K^{−3/2}: a wide layer sends nothing back.",
    source="What holds of Lemma 1, with the exact kernel of x²; derived here",
    assumptions=(
        LAZY.said("features x² of normal weights of variance one, held fixed"),
        ALL_PAIRS.said("M = 11, all 121 pairs"),
        SQUARE,
        "η = 1",
        "1024 to 16 384 nodes in float32",
    ),
    tex=r"G_F \to \frac{\eta}{(4K+\eta)^2} \tilde Y \tilde Y^\top \tilde F",
    flow=OutputLayer,
)
def wide_limit(setting: Setting) -> Evidence:
    rng, pairs = setting.rng, grokking.pairs(cyclic(11).table)
    some = grokking.pairs(cyclic(11).table, split(11, fraction=60.5 / 121, seed=setting.seed))
    powers = setting.pick(smoke=(12, 19, 2), laptop=(10, 19, 2), paper=(10, 21, 2))
    widths = 2 ** np.arange(*setting.bound(powers, (10, 15, 1)))  # float32 has too few digits for wider kernels
    draw = lambda nodes, pairs: np.asarray(_wide(_layer(pairs, rng.normal(size=(2, 11, nodes)), 1.0, setting)))
    size, cosine, wide, lemma = np.array([draw(k, pairs) for k in widths]).T
    part = 1 - np.array([draw(k, some)[1] for k in widths[-4:-2]])
    features = _hidden(pairs, jnp.asarray(rng.normal(size=(2, 11, widths[-1])), setting.dtype))
    kernel = np.asarray(features @ features.T)[None] / widths[-1]
    law, largest, four = grokking.wide_kernel(pairs), f"K = {widths[-1]}", slice(-4, None)
    # In float32 the few digits of narrow layers bend the slopes.
    close, slope, by_size, by_angle = setting.bound((0.01, 0.1, 0.15, 0.003), (0.1, 0.25, 0.25, 0.03))
    widest, turned = ("1/K", 1 / widths[four]), 1 - cosine
    on_part, limit = {f"60 pairs, K = {widths[-3]}": part[-1]}, {"η/(4K+η)² |Ỹ Ỹᵀ F̃|": wide[-1]}
    kernels = {"4·11ᵀ + 4I + 2(B₁B₁ᵀ + B₂B₂ᵀ)": law}
    identity = {"a multiple of the identity (Lemma 1)": np.eye(len(law)) * np.trace(law) / len(law)}
    falls = np.polyfit(np.log(widths), np.log(size), 1)[0]
    printed = "G_F = η/((K c₁+η)(n c₂+η)) Ỹ Ỹᵀ F, both Gram matrices multiples of the identity"
    corrected = "η/(4K+η)² Ỹ Ỹᵀ F̃ for K ≫ n² on all pairs; on a subset of them never proportional"
    errors = (abs(size[-1] / predicted[-1] - 1) for predicted in (wide, lemma))
    by_width, y = {"order": 1.5, "tolerance": slope}, "|G_F|"
    return evidence(
        scales("1 − cos(G_F, Ỹ Ỹᵀ F̃) in 1/K", ("1/K", 1 / widths), turned, order=1, tolerance=by_size),
        scales("|G_F| in 1/K, the four widest", widest, size[four], {"Lemma 1": lemma[four]}, **by_width, y=y),
        at_most(f"1 − cos(G_F, Ỹ Ỹᵀ F̃), {largest}", turned[-1], by_angle, on_part),
        agrees(f"|G_F|, {largest}", None, size[-1], limit, {"Lemma 1": lemma[-1]}, within=close),
        agrees(f"F Fᵀ/K, {largest}", None, kernel, kernels, identity, within=0.05, measure=norms),
        remarks=[
            f"On 60 pairs the cosine is {1 - part[0]:.2f} at K = {widths[-4]}, {1 - part[1]:.2f} at K = {widths[-3]}.",
            f"|G_F| falls as K to the power {falls:.2f}; Lemma 1 says −0.5.",
        ],
        errata=[Erratum("Lemma 1", printed, corrected, *errors, measure=f"relative error of |G_F|, {largest}")],
    )


@claim(
    "With no fewer nodes than pairs |G_F| is 100 times smaller at small η, and in much wider layers, than in between."
    " Features have nothing to learn from. With fewer nodes it stays at small η, and at large η is 10 times smaller.",
    source="The regime table of the slides, with its condition",
    assumptions=("features x² of normal weights of variance one", "all pairs of Z_23 (smoke: Z_11)"),
    tex=r"K \geq n:\ G_F \to 0 \ \mathrm{as}\ \eta \to 0\ \mathrm{or}\ K \to \infty",
    flow=OutputLayer,
)
def regimes(setting: Setting) -> Evidence:
    order = setting.pick(smoke=11, laptop=23, paper=23)
    pairs, rng = grokking.pairs(cyclic(order).table), setting.rng
    widths = setting.pick(smoke=(16, 256, 4096), laptop=(64, 1024, 16384), paper=(64, 1024, 16384))
    decays = np.array([1e-3, 0.2, 10.0, 1e3, 1e5])
    layers = [_layer(pairs, rng.normal(size=(2, order, nodes)), 1.0, setting) for nodes in widths]
    with_decay = lambda layer, decay: eqx.tree_at(lambda one: one.decay, layer, decay)
    each = jax.vmap(lambda layer, decay: _wide(with_decay(layer, decay), direct=True), (None, 0))
    found = np.array([each(layer, jnp.asarray(decays, setting.dtype)) for layer in layers])
    sizes, cosines = np.moveaxis(found[..., :2], 2, 0)
    narrow, middle, wide = sizes
    fewer, enough, many = (f"K = {k}" for k in widths)
    axes = ("decay η", [f"{d:g}" for d in decays]), ("nodes K", list(map(str, widths)))
    of_largest, too_few = middle[0] / middle.max(), {f"{fewer}, fewer nodes than pairs": narrow[0] / narrow.max()}
    line = lambda norms, angles: ", ".join(f"{n:.2g} ({c:.2f})" for n, c in zip(norms, angles, strict=True))
    told = [f"K = {k}: {line(*own)}" for k, *own in zip(widths, sizes, cosines, strict=True)]
    return evidence(
        at_most(f"|G_F| at η = 1e-3 over the largest, {enough}", of_largest, 0.01, too_few),
        at_most(f"at η = 1e5 over η = 10, {fewer}", narrow[-1] / narrow[2], 0.1),
        at_most(f"{many} over {enough}, η = 10", wide[2] / middle[2], 0.01),
        agrees(f"at η = 1e-3 and 0.2, {fewer}: it stays", None, narrow[0], narrow[1], within=0.01),
        at_most("1 − cos(G_F, Ỹ Ỹᵀ F̃) at η = 1e5", 1 - cosines[:, -1], 0.02, {"at η = 0.2": 1 - cosines[:, 1]}),
        panels=[
            heatmap("|G_F|", *axes, sizes, z_label="|G_F|", log="z"),
            heatmap("direction", *axes, cosines, z_label="cos(G_F, Ỹ Ỹᵀ F̃)", limits=(0.0, 1.0)),
        ],
        remarks=[f"|G_F| (cosine), η = {', '.join(f'{d:g}' for d in decays)}: {'; '.join(told)}."],
    )
