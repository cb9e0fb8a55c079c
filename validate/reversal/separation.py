"""The bilinear model: its exact reduction, and how far apart training loss and reversal loss stay."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from ...dynamics import GradientFlow, solve
from ...dynamics.reversal import Bilinear, OneLayer, separation_exponent
from ...nets import reversal as nets
from ..claim import Evidence, Setting, claim
from ..panels import heatmap, panel
from ..rows import identity, statistic
from ._shared import TIME

TOKENS = 40
UPDATES = np.concatenate([[0.0], np.geomspace(0.01, 3000, 40)])  # t/N


def _pairs() -> tuple[Array, Array]:
    """Ten pairs, trained both ways but for the last, whose reversal is the test."""
    data = nets.reversal(10, 9, vocabulary=TOKENS)
    return data.train[:, ::2], data.test[:, ::2]


def _vectors(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Tokens `N(0, I/width)`, of shape `(…, tokens, width)`."""
    return rng.standard_normal(shape) / np.sqrt(shape[-1])


class _Path(NamedTuple):
    """Runs of the flow: L and L_rev, each `(times, runs)`, ε of each, and the state C, `(runs, times, m, m)`."""

    loss: np.ndarray
    reverse: np.ndarray
    exponent: np.ndarray
    c: np.ndarray


@jax.jit
def _flows(
    grams: Float[Array, "runs m m"],
    starts: Float[Array, "runs m m"],
    pairs: tuple[Array, Array],
    updates: Float[Array, " times"],
    symmetric: Any,
) -> tuple[Array, ...]:
    trained, test = pairs
    rtol, atol = (1e-9, 1e-11) if grams.dtype == jnp.float64 else (None, None)

    def run(gram, start):
        flow, ts = Bilinear(gram, trained, start, symmetric), updates * len(trained)
        c: Any = solve(flow, jnp.zeros_like(gram), ts, throw=False, rtol=rtol, atol=atol).ys
        return jax.vmap(flow.loss)(c), jax.vmap(lambda c: flow.loss(c, test))(c), c

    loss, reverse, c = jax.vmap(run, out_axes=(1, 1, 0))(grams, starts)
    return loss, reverse, separation_exponent(loss, reverse), c


def _follow(setting: Setting, vectors: np.ndarray, starts: np.ndarray, symmetric: bool) -> _Path:
    """The reduction for several draws of the `vectors`, `(runs, tokens, width)`. Both claims share its compilation."""
    as_float = lambda x: jnp.asarray(x, setting.dtype)
    grams = as_float(vectors @ vectors.transpose(0, 2, 1))
    return _Path(*map(np.asarray, _flows(grams, as_float(starts), _pairs(), as_float(UPDATES), symmetric)))


@jax.jit
def _logits(model: nets.Bilinear, theta: Float[Array, "times width width"]) -> Float[Array, "times tokens tokens"]:
    """All logits after all tokens."""
    network = lambda theta: eqx.tree_at(lambda m: m.theta, model, theta)
    return jax.vmap(lambda theta: jax.vmap(network(theta))(jnp.arange(TOKENS)))(theta)


# CONTROL: one Gram matrix left out of the logits; the free flow for symmetric Θ; random tokens taken as
# orthonormal
@claim(
    "Gradient flow of the bilinear model stays in Θ₀ + VᵀCV, with Ċ = (1/N) Σ e_x (e_y − p)ᵀ and logits "
    "VΘ₀Vᵀ + GCG; on orthonormal tokens, from zero, a row is that of the one-layer transformer and the reversal stays "
    "at 1/m.",
    source="section 3; the reduction is exact for any tokens",
    assumptions=(f"gradient flow, {TIME}",),
)
def bilinear_flow(setting: Setting) -> Evidence:
    rng, dtype, runs = setting.rng, setting.dtype, setting.pick(smoke=1, laptop=4, paper=8)
    trained, test = _pairs()
    ts = UPDATES * len(trained)

    def network(vectors, theta, symmetric=False):
        """All logits after all tokens along the gradient flow of the network's loss, `(times, tokens, tokens)`."""
        model = nets.Bilinear(jnp.asarray(vectors, dtype), jnp.asarray(theta, dtype), symmetric=symmetric)
        flow = GradientFlow(jax.tree_util.Partial(nets.pair_loss, pairs=trained))
        return np.asarray(_logits(model, solve(flow, model, ts).ys.theta))

    vectors, theta = _vectors(rng, 8, TOKENS, TOKENS), 0.1 * rng.standard_normal((8, TOKENS, TOKENS))
    theta = (theta + theta.transpose(0, 2, 1)) / 2  # so that the symmetric network starts where the other does
    transposed = vectors.transpose(0, 2, 1)
    starts, gram = vectors @ theta @ transposed, (vectors @ transposed)[:runs, None]
    c, c_symmetric = (_follow(setting, vectors, starts, symmetric).c[:runs] for symmetric in (False, True))
    starts = starts[:runs, None]
    reduced, reduced_symmetric = (starts + gram @ c @ gram for c in (c, c_symmetric))
    free, symmetric = (
        np.stack([network(v, start, symmetric) for v, start in zip(vectors[:runs], theta, strict=False)])
        for symmetric in (False, True)
    )
    orthonormal = network(np.eye(TOKENS), np.zeros((TOKENS, TOKENS)))
    row = OneLayer(TOKENS, len(trained))
    seen = np.asarray(jax.jit(lambda row, ts: row.seen(row.exact(ts)))(row, jnp.asarray(ts, dtype)))[:, None]
    of = lambda logits, pairs: special.softmax(logits, axis=-1)[..., pairs[:, 0], pairs[:, 1]]
    over_largest = lambda a, b: (a - b) / np.abs(a).max()
    bound = setting.bound(1e-8, 1e-4)
    shown = np.stack([trained[0], trained[-1], test[0]])
    lines = lambda logits: logits[0, 1:, shown[:, 0], shown[:, 1]]
    names, x = ("pair trained both ways", "pair trained one way", "its reversal"), ("t/N, updates a pair", UPDATES[1:])
    return Evidence(
        rows={
            f"all logits, over the largest, {runs} draws": identity(over_largest(free, reduced), bound),
            "symmetric Θ, all logits": identity(over_largest(symmetric, reduced_symmetric), bound),
            "orthonormal tokens, trained p": identity(of(orthonormal, trained) - seen, bound),
            "orthonormal tokens, m p − 1 of the reversal": identity(TOKENS * of(orthonormal, test) - 1, bound),
        },
        control={
            "logits CG": identity(over_largest(free, starts + c @ gram), bound),
            "symmetric Θ against the free reduction": identity(over_largest(symmetric, reduced), bound),
            "random tokens, trained p as if orthonormal": identity(of(free, trained) - seen, bound),
            "random tokens, m p − 1 of the reversal": identity(TOKENS * of(free, test) - 1, bound),
        },
        panels=[
            panel(
                f"{symmetry} Θ: {TOKENS} random tokens in {TOKENS} dimensions",
                x,
                y="logit",
                observed=dict(zip(names, lines(logits), strict=True)),
                predicted={"reduction, C": lines(law).T},
                log="x",
            )
            for symmetry, logits, law in (("free", free, reduced), ("symmetric", symmetric, reduced_symmetric))
        ],
    )


# CONTROL: Θ kept symmetric; for the row of symmetric Θ, Θ free
@claim(
    "For random tokens in width d the reversal loss obeys L_rev(t)/L_rev(0) ≥ (L(t)/L(0))^ε at all times, "
    "with an ε that falls with d, as d^−½ or faster, to below 0.05 at d = 1600. With symmetric Θ there is no curse.",
    source="Theorem 1 (its d is beyond any computer's; measured here); the cause it names is the asymmetry of Θ",
    assumptions=("gradient flow from Θ = 0", "m = 40 tokens N(0, I/d), 10 pairs", "t up to 3000 N, N = 19"),
)
def bilinear(setting: Setting) -> Evidence:
    widths = setting.pick(smoke=(25, 1600), laptop=(25, 100, 400, 1600), paper=(25, 100, 400, 1600, 6400))
    groups, each, wide = setting.pick(smoke=4, laptop=8, paper=16), 8, widths.index(1600)
    rng, still = setting.rng, np.zeros((each, TOKENS, TOKENS))

    def measure(width, groups, symmetric):
        """L, L_rev, `(times, runs)`, the ε of each run, `(runs,)`, and the logits at the end of the first."""
        vectors = [_vectors(rng, each, TOKENS, width) for _ in range(groups)]
        paths = [_follow(setting, v, still, symmetric) for v in vectors]
        gram = vectors[0][0] @ vectors[0][0].T
        join = lambda name: np.concatenate([getattr(path, name) for path in paths], axis=-1)
        return join("loss"), join("reverse"), join("exponent"), gram @ paths[0].c[0, -1] @ gram

    free = [measure(width, groups, False) for width in widths]
    symmetric = [measure(width, 1, True) for width in widths]
    exponent, exponent_s = (np.stack([run[2] for run in runs]) for runs in (free, symmetric))
    # One ε for the runs of a group: about half of them have ε = 0, for their reversal loss never falls.
    grouped, grouped_s = (
        exponent.reshape(len(widths), groups, each).max(2),
        exponent_s.reshape(len(widths), 4, 2).max(2),
    )
    slope = lambda exponent: np.polyfit(np.log(widths), np.log(exponent), 1)[0]
    (loss, reverse, _, logits), (_, reverse_s, _, logits_s) = free[wide], symmetric[wide]
    names = np.array([f"{letter}{i}" for letter in "AB" for i in range(1, 11)])
    maps = {"free Θ": logits, "symmetric Θ": logits_s}
    ends = ", ".join(f"{run[1][-1].mean():.2f} (d = {width})" for width, run in zip(widths, free, strict=True))
    return Evidence(
        rows={
            f"slope of ln ε over ln d, {groups} groups of {each} runs": statistic(slope(grouped), at_most=-0.5),
            f"largest ε at d = 1600, {groups * each} runs": identity(exponent[wide], 0.05),
            "symmetric Θ: L_rev at the end, d = 1600": identity(reverse_s[-1], 0.01),
        },
        control={
            "symmetric Θ: slope": statistic(slope(grouped_s), at_most=-0.5),
            "symmetric Θ: ε at d = 1600": identity(exponent_s[wide].min(), 0.05),
            "free Θ: L_rev at the end, d = 1600": identity(reverse[-1].min(), 0.01),
        },
        panels=[
            panel(
                "the ε that serves 8 runs",
                ("width d", np.array(widths)),
                y="ε",
                observed={"mean over groups": grouped.mean(1)},
                predicted={"d^−½": grouped.mean(1)[0] * np.sqrt(widths[0] / np.array(widths))},
                control={"symmetric Θ": exponent_s.max(1)},
                log="xy",
            ),
            panel(
                "d = 1600, mean over runs",
                ("t/N, updates a pair", UPDATES[1:]),
                y="cross-entropy (nats)",
                observed={"trained pairs, L": loss.mean(1)[1:], "untrained reversal, L_rev": reverse.mean(1)[1:]},
                predicted={"bound at ε = 0.05": (reverse[0] * (loss / loss[0]) ** 0.05).mean(1)[1:]},
                control={"L_rev, symmetric Θ": reverse_s.mean(1)[1:]},
                log="xy",
            ),
        ]
        + [
            heatmap(
                f"{name}, d = 1600; (B10, A10) is the test",
                ("next token", names),
                ("token", names),
                values[2:22, 2:22],
                z_label="logit",
                limits=(0.0, float(logits[2:22, 2:22].max())),
            )
            for name, values in maps.items()
        ],
        remarks=[
            f"Mean L_rev at the end, from ln {TOKENS} = {np.log(TOKENS):.2f}: {ends}; L is {loss[-1].mean():.1g} there."
        ],
    )
