"""The flow of Scan and Snap against autodiff on the real network: Lemma 1, and the trajectories."""

import jax
import jax.numpy as jnp
import numpy as np

from ...dynamics import solve
from ...dynamics.scan_snap import YZ, ScanSnap
from ...nets import scan_snap as nets
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ..rows import identity
from ._shared import ASSUMED, LONG, OUTPUTS, TIME, follow, log_times, loss_flow, reference, scan_flow


def _task(rng: np.random.Generator, vocabulary: int = 30, classes: int = 6, queries: int = 3) -> nets.SequenceClasses:
    """A random table, of no symmetry, with several classes a query; each class draws half of the tokens."""
    table = np.zeros((classes, vocabulary))
    contextual = vocabulary - queries
    table[:, :contextual] = rng.random((classes, contextual)) * (rng.random((classes, contextual)) < 0.5)
    table[:, 0] += 0.1
    return nets.SequenceClasses(table / table.sum(axis=1, keepdims=True), contextual + np.arange(classes) % queries)


def _lemma_1(model: nets.OneLayerTransformer, sequence: np.ndarray, label: int, normalise: bool = True):
    """Lemma 1 for one sequence, as printed: the ascent directions of Y and of the query's row of Z."""
    y, z = (np.asarray(m) for m in model.yz())
    x = np.eye(y.shape[0])[sequence[:-1]]
    scores = x @ z[sequence[-1]]
    b = np.exp(scores - scores.max())
    b /= b.sum()
    attended = x.T @ b
    norm = np.linalg.norm(attended)
    f = attended / norm
    logits = y.T @ f
    alpha = np.exp(logits - logits.max())
    alpha /= alpha.sum()
    residual = np.eye(y.shape[0])[label] - alpha
    back = y @ residual
    if normalise:
        back = back - f * (f @ back)
    return np.outer(f, residual), x.T @ np.diag(b) @ x @ back / norm


# CONTROL: the projection (I − f fᵀ) that normalisation brings, left out; Z without the √d of the slides
@claim(
    "The gradients of Y and Z are those of Lemma 1, for single sequences and in expectation, with ℓ2 "
    "normalisation and without; with orthonormal embeddings training W_V is training Y.",
    source="Lemma 1, eq. 3 and 4, and Lemma 2",
    assumptions=("orthonormal embeddings, for single sequences of the network in its original parameters",),
)
def gradients(setting: Setting) -> Evidence:
    rng, classes = setting.rng, _task(setting.rng)
    vocabulary = classes.probability.shape[1]
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), setting.dtype)
    u = jnp.asarray(np.linalg.qr(rng.standard_normal((vocabulary,) * 2))[0], setting.dtype)
    model = nets.OneLayerTransformer(u, normal(vocabulary, vocabulary), normal(vocabulary, vocabulary), normal(30, 30))
    sequences, labels = jax.jit(lambda key: classes.sequences(8, 12)(key))(setting.key)
    expected = classes.expected()
    tokens, queries = classes.keys.shape[0], classes.queries.shape[0]
    y, z = normal(tokens, OUTPUTS), normal(queries, tokens)

    @jax.jit
    def autodiff(model, sequences, labels, y, z):
        one = lambda model, sequence, label: nets.sequence_loss(model, (sequence[None], label[None]))
        single = jax.vmap(jax.grad(one), (None, 0, 0))(model, sequences, labels)
        population = {}
        for normalise in (True, False):
            real = nets.YZTransformer(tokens, queries, OUTPUTS, normalise=normalise, dtype=y.dtype)
            real = jax.tree.unflatten(jax.tree.structure(real), (y, z))
            slope = jax.grad(nets.cross_entropy)(real, expected)
            flow = ScanSnap(expected.x, expected.query, outputs=OUTPUTS, eta_z=0.3, normalise=normalise)
            population[normalise] = YZ(-slope.y, -0.3 * slope.z), flow(0.0, YZ(y, z))
        return single, population

    single, population = autodiff(model, sequences, labels, y, z)
    errors = {"Y": [], "Z": [], "Z without the projection": [], "Z without √d": []}
    root, w_k = vocabulary**0.5, np.asarray(model.w_k)
    for i, (sequence, label) in enumerate(zip(np.asarray(sequences), np.asarray(labels), strict=True)):
        # dL/dY = U (dL/dW_V)ᵀ Uᵀ, and dL/dW_Q = Uᵀ (dL/dZ) U W_K/√d.
        by_y = -np.asarray(u @ single.w_v[i].T @ u.T)
        for name, normalise in {"Z": True, "Z without the projection": False}.items():
            ascent_y, row = _lemma_1(model, sequence, int(label), normalise)
            by_z = np.zeros((vocabulary, vocabulary))
            by_z[sequence[-1]] = row
            w_q = -np.asarray(single.w_q[i])
            law = np.asarray(u).T @ by_z @ np.asarray(u) @ w_k / root
            errors[name].append(np.abs(law - w_q).max() / np.abs(w_q).max())
            if normalise:
                errors["Z without √d"].append(np.abs(law * root - w_q).max() / np.abs(w_q).max())
                errors["Y"].append(np.abs(ascent_y - by_y).max() / np.abs(by_y).max())
    relative = {name: np.array(values) for name, values in errors.items()}
    gap = {
        normalise: max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in zip(real, law, strict=True))
        for normalise, (real, law) in population.items()
    }
    exact = setting.bound(1e-12, 1e-4)
    number = np.arange(1, len(labels) + 1)
    return Evidence(
        rows={
            "one sequence, W_V against Lemma 1's Ẏ, relative": identity(relative["Y"], exact),
            "one sequence, W_Q against Lemma 1's ż, relative": identity(relative["Z"], exact),
            "expectation, autodiff against the flow, relative": identity(gap[True], exact),
            "expectation, without normalisation, relative": identity(gap[False], exact),
        },
        control={
            "ż without the projection": identity(relative["Z without the projection"], exact),
            "Z without its √d": identity(relative["Z without √d"], exact),
        },
        panels=[
            panel(
                "Lemma 1 on single sequences",
                ("sequence", number),
                y="relative error of the gradient",
                observed={"Y": np.maximum(relative["Y"], 1e-18), "Z": np.maximum(relative["Z"], 1e-18)},
                control={"Z without the projection": relative["Z without the projection"]},
                log="y",
            )
        ],
        errata=[
            Erratum(
                "slides",
                "Z = U W_Q W_Kᵀ Uᵀ",
                "Z = U W_Q W_Kᵀ Uᵀ/√d",
                f"{max(errors['Z']):.1g}",
                f"{max(errors['Z without √d']):.2g} relative error of the gradient",
            )
        ],
    )


# CONTROL: the 1/K left out of ż, as in the paper's eq. 10; column sums of Y
@claim(
    "The coupled flow of Y and Z is the gradient flow of the real network's expected loss, and rows of Y and "
    "Z keep their sums.",
    source="Lemma 1 in the limit of Lemma 2, with the factor 1/K; the flow through autodiff on the network",
    assumptions=(ASSUMED, LONG, "η_Z = 0.3 η_Y"),
)
def population_flow(setting: Setting) -> Evidence:
    data, ts = reference(), log_times(1, 1e4)
    law = follow(scan_flow("C", eta_z=0.3), ts)
    model = data.network(outputs=OUTPUTS)
    real = solve(loss_flow(data, model, eta_z=0.3), model, ts).ys
    printed = follow(scan_flow("C", eta_z=1.5), ts)  # 1/K = 1/5 left out
    gap_z, gap_printed = np.abs(law.z - np.asarray(real.z)), np.abs(printed.z - np.asarray(real.z))
    close, sums = setting.bound(1e-10, 2e-3), setting.bound(1e-10, 2e-4)
    own = slice(0, 5)
    return Evidence(
        rows={
            "Z: flow against the network's gradient flow": identity(gap_z, close),
            "Y: the same, relative": identity((law.y - np.asarray(real.y)) / np.abs(law.y).max(), close),
            "row sums of Y": identity(law.y.sum(axis=2), sums),
            "row sums of Z": identity(law.z.sum(axis=2), sums),
        },
        control={
            "Z without the 1/K": identity(gap_printed, close),
            "column sums of Y": identity(law.y.sum(axis=1), sums),
        },
        panels=[
            panel(
                "attention logits of one class's tokens",
                (TIME, ts),
                y="z",
                observed={"network, autodiff": np.asarray(real.z)[:, 0, own]},
                predicted={"flow": law.z[:, 0, own]},
                control={"1/K left out": printed.z[:, 0, own]},
                log="x",
            ),
            panel(
                "row sums along the flow",
                (TIME, ts),
                y="largest |sum|",
                observed={
                    "rows of Y": np.maximum(np.abs(law.y.sum(axis=2)).max(axis=1), 1e-18),
                    "rows of Z": np.maximum(np.abs(law.z.sum(axis=2)).max(axis=1), 1e-18),
                },
                control={"columns of Y": np.abs(law.y.sum(axis=1)).max(axis=1)},
                log="xy",
            ),
        ],
        errata=[
            Erratum(
                "paper, eq. 10, 94, 98, 100 and Theorem 3",
                "Σ_n without a weight",
                "(1/K) Σ_n, when t counts steps",
                f"{gap_z.max():.1g}",
                f"{gap_printed.max():.2g} error of Z",
            )
        ],
    )
