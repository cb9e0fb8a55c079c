"""The bilinear model: its exact reduction, and how far apart training loss and reversal loss stay."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy
import xarray as xr
from jaxtyping import Array, Float

from ...dynamics import GradientFlow, solve
from ...dynamics.reversal import Bilinear, OneLayer, separation_exponent
from ...nets import reversal as nets
from ..checks import agrees, at_most, evidence, mean, solver, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import heatmap, panel
from .assumptions import FIXED, FREE, ORTHOGONAL

TOKENS = 40
UPDATES = np.concatenate([[0.0], np.geomspace(0.01, 3000, 40)])  # t/N
AXIS = ("t/N, updates a pair", UPDATES[1:])


def _pairs() -> tuple[Array, Array]:
    """Ten pairs, trained both ways but for the last, whose reversal is the test."""
    data = nets.reversal(10, 9, vocabulary=TOKENS)
    return data.train[:, ::2], data.test[:, ::2]


def _vectors(rng: np.random.Generator, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Eight draws of tokens `N(0, I/width)`, and their Gram matrices."""
    vectors = rng.standard_normal((8, TOKENS, width)) / np.sqrt(width)
    return vectors, vectors @ vectors.transpose(0, 2, 1)


@jax.jit
def _reduced(grams: Float[Array, "runs m m"], starts: Float[Array, "runs m m"], symmetric: Any) -> tuple[Array, ...]:
    """L and L_rev of runs of the reduction, each `(times, runs)`, ε of each run, and C, `(runs, times, m, m)`."""
    trained, test = _pairs()
    rtol, atol = (1e-9, 1e-11) if grams.dtype == jnp.float64 else (None, None)

    def run(gram, start):
        flow, ts = Bilinear(gram, trained, start, symmetric), UPDATES * len(trained)
        c: Any = solve(flow, jnp.zeros_like(gram), ts, throw=False, rtol=rtol, atol=atol).ys
        return jax.vmap(flow.loss)(c), jax.vmap(lambda c: flow.loss(c, test))(c), c

    loss, reverse, c = jax.vmap(run, out_axes=(1, 1, 0))(grams, starts)
    return loss, reverse, separation_exponent(loss, reverse), c


def _network(vectors: np.ndarray, theta: np.ndarray, symmetric: bool = False) -> np.ndarray:
    """All logits after all tokens along the gradient flow of the network's loss, `(times, tokens, tokens)`."""
    weights, trained = [jnp.asarray(x, float) for x in (vectors, theta)], _pairs()[0]
    model = nets.Bilinear(*weights, symmetric=symmetric)
    flow = GradientFlow(jax.tree_util.Partial(nets.pair_loss, pairs=trained))
    logits = lambda theta: jax.vmap(eqx.tree_at(lambda m: m.theta, model, theta))(jnp.arange(TOKENS))
    return np.asarray(jax.vmap(logits)(solve(flow, model, UPDATES * len(trained)).ys.theta))


def _three_pairs(word: str, logits: np.ndarray, law: np.ndarray) -> xr.Dataset:
    """Logits of the first run."""
    trained, test = _pairs()
    shown = {"pair trained both ways": trained[0], "pair trained one way": trained[-1], "its reversal": test[0]}
    title, of = f"{word} Θ: {TOKENS} random tokens in {TOKENS} dimensions", lambda x, pair: x[0, 1:, pair[0], pair[1]]
    observed = {name: of(logits, pair) for name, pair in shown.items()}
    predicted = {"reduction, C": np.stack([of(law, pair) for pair in shown.values()], axis=1)}
    return panel(title, AXIS, y="logit", observed=observed, predicted=predicted, log="x")


@claim(
    "Gradient flow of the bilinear model stays in Θ₀ + VᵀCV, with Ċ = (1/N) Σ e_x (e_y − p)ᵀ and logits VΘ₀Vᵀ + GCG. "
    "On orthonormal tokens, from zero, a row is that of the one-layer transformer and the reversal stays at 1/m.",
    source="section 3; the reduction is exact for any tokens",
    assumptions=("gradient flow, t = learning rate × step", FIXED),
    tex=r"\Theta = \Theta_0 + V^T C V,\quad \dot C = \frac{1}{N} \sum_{(x,y)} e_x (e_y - p)^T",
    flow=Bilinear,
)
def bilinear_flow(setting: Setting) -> Evidence:
    rng, runs, bound = setting.rng, setting.pick(smoke=1, laptop=4, paper=8), solver(100)
    trained, test = _pairs()
    (vectors, gram), theta = _vectors(rng, TOKENS), 0.1 * rng.standard_normal((8, TOKENS, TOKENS))
    theta = (theta + theta.transpose(0, 2, 1)) / 2  # so that the symmetric network starts where the other does
    start = vectors @ theta @ vectors.transpose(0, 2, 1)

    def compare(symmetric):
        """Logits of the networks, by the reduction and with CG for GCG, `(runs, times, tokens, tokens)`."""
        c, g, first = np.asarray(_reduced(gram, start, symmetric)[3])[:runs], gram[:runs, None], start[:runs, None]
        networks = [_network(v, t, symmetric) for v, t in zip(vectors[:runs], theta, strict=False)]
        return np.stack(networks), first + g @ c @ g, first + c @ g

    (free, reduced, one_sided), (symmetric, reduced_symmetric, _) = compare(False), compare(True)
    orthonormal = _network(np.eye(TOKENS), np.zeros((TOKENS, TOKENS)))
    row, ts = OneLayer(TOKENS, len(trained)), jnp.asarray(UPDATES * len(trained), setting.dtype)
    seen = np.asarray(jax.jit(lambda row, ts: row.seen(row.exact(0.0, ts)))(row, ts))[:, None]
    of = lambda logits, pairs: scipy.special.softmax(logits, axis=-1)[..., pairs[:, 0], pairs[:, 1]]
    error, wrong = (of(logits, trained) - seen for logits in (orthonormal, free))
    reverse, wrong_reverse = (TOKENS * of(logits, test) - 1 for logits in (orthonormal, free))
    return evidence(
        agrees(f"all logits, {runs} draws", None, free, reduced, {"logits CG": one_sided}, within=bound),
        agrees("symmetric Θ", None, symmetric, reduced_symmetric, {"the free reduction": reduced}, within=bound),
        vanishes("orthonormal tokens, error of the trained p", error, {"random tokens": wrong}, within=bound),
        vanishes(
            "orthonormal tokens, m p − 1 of the reversal", reverse, {"random tokens": wrong_reverse}, within=bound
        ),
        panels=[_three_pairs("free", free, reduced), _three_pairs("symmetric", symmetric, reduced_symmetric)],
    )


@claim(
    "For random tokens in width d the reversal loss obeys L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε at all times. "
    "ε falls with d, as d^−½ or faster, to below 0.05 at d = 1600. With symmetric Θ there is no curse.",
    source="Theorem 1 (its d is beyond any computer's; measured here); the cause it names is the asymmetry of Θ",
    assumptions=(
        "gradient flow from Θ = 0",
        ORTHOGONAL.said("m = 40 tokens N(0, I/d), 10 pairs"),
        "t up to 3000 N, N = 19",
        FREE,
        FIXED,
    ),
    tex=r"\frac{L_{\mathrm{rev}}(t)}{L_{\mathrm{rev}}(0)} \geq \left(\frac{L(t)}{L(0)}\right)^{\epsilon}",
    flow=Bilinear,
)
def bilinear(setting: Setting) -> Evidence:
    widths = np.array(setting.pick(smoke=(25, 1600), laptop=(25, 100, 400, 1600), paper=(25, 100, 400, 1600, 6400)))
    groups, wide = setting.pick(smoke=4, laptop=8, paper=16), list(widths).index(1600)
    rng, still = setting.rng, np.zeros((8, TOKENS, TOKENS))

    def measure(width, groups, symmetric):
        """L, L_rev, `(times, runs)`, the ε of each run, `(runs,)`, and logits of the pairs at the end of the first."""
        grams = [_vectors(rng, width)[1] for _ in range(groups)]
        *curves, c = zip(*(map(np.asarray, _reduced(gram, still, symmetric)) for gram in grams), strict=True)
        return *(np.concatenate(x, axis=-1) for x in curves), (grams[0][0] @ c[0][0, -1] @ grams[0][0])[2:22, 2:22]

    free, symmetric = [measure(d, groups, False) for d in widths], [measure(d, 1, True) for d in widths]
    exponent, exponent_s = (np.stack([run[2] for run in runs]) for runs in (free, symmetric))
    # One ε for the runs of a group: about half of them have ε = 0, because their reversal loss never falls.
    grouped, grouped_s = exponent.reshape(len(widths), groups, 8).max(2), exponent_s.reshape(len(widths), 4, 2).max(2)
    slope = lambda exponent: np.polyfit(np.log(widths), np.log(exponent), 1)[0]
    (loss, reverse, _, logits), (_, reverse_s, _, logits_s) = free[wide], symmetric[wide]
    ends = ", ".join(f"{run[1][-1].mean():.2f} (d = {d})" for d, run in zip(widths, free, strict=True))
    name = f"slope of ln ε over ln d, {groups} groups of 8 runs"
    same, never = {"symmetric Θ": exponent_s[wide].min()}, {"free Θ": reverse[-1].min()}
    late, average = (lambda loss: loss.mean(1)[1:]), grouped.mean(1)
    square_root = {"d^−½": average[0] * np.sqrt(widths[0] / widths)}
    least = {
        "observed": {"mean over groups": average},
        "predicted": square_root,
        "control": {"symmetric Θ": exponent_s.max(1)},
    }
    losses = {
        "observed": {"trained pairs, L": late(loss), "untrained reversal, L_rev": late(reverse)},
        "predicted": {"bound at ε = 0.05": late(reverse[0] * (loss / loss[0]) ** 0.05)},
        "control": {"L_rev, symmetric Θ": late(reverse_s)},
    }
    tokens = np.array([f"{letter}{i}" for letter in "AB" for i in range(1, 11)])
    axes, maps = (("next token", tokens), ("token", tokens)), {"free": logits, "symmetric": logits_s}
    scale = {"z_label": "logit", "limits": (0, logits.max())}
    return evidence(
        mean(name, slope(grouped), {"symmetric Θ": slope(grouped_s)}, at_most=-0.5),
        at_most(f"largest ε at d = 1600, {groups * 8} runs", exponent[wide], 0.05, same),
        at_most("symmetric Θ: L_rev at the end, d = 1600", reverse_s[-1], 0.01, never),
        panels=[
            panel("the ε that serves 8 runs", ("width d", widths), y="ε", **least, log="xy"),
            panel("d = 1600, mean over runs", AXIS, y="cross-entropy (nats)", **losses, log="xy"),
            *(heatmap(f"{word} Θ, d = 1600; (B10, A10) is the test", *axes, x, **scale) for word, x in maps.items()),
        ],
        remarks=[
            f"Mean L_rev at the end, from ln {TOKENS} = {np.log(TOKENS):.2f}: {ends}; L is {loss[-1].mean():.1g} there."
        ],
    )
