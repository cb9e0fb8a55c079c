"""The flow of Scan and Snap against autodiff on the real network: Lemma 1, and the trajectories."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ...dynamics import GradientFlow, solve
from ...dynamics.scan_snap import YZ, ScanSnap
from ...nets import scan_snap as nets
from ..checks import absolute, agrees, evidence, norms, rounding, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ._shared import FLOW, OUTPUTS, TIME, follow, log_times, reference, scan_flow


def _task(rng: np.random.Generator, vocabulary: int = 30, classes: int = 6, queries: int = 3) -> nets.SequenceClasses:
    """A random table without symmetry, with several classes a query; each class draws half of the tokens."""
    table, contextual = np.zeros((classes, vocabulary)), vocabulary - queries
    table[:, :contextual] = rng.random((classes, contextual)) * (rng.random((classes, contextual)) < 0.5)
    table[:, 0] += 0.1
    return nets.SequenceClasses(table / table.sum(axis=1, keepdims=True), contextual + np.arange(classes) % queries)


def _lemma_1(model: nets.OneLayerTransformer, sequence: np.ndarray, label: int):
    """Lemma 1 for one sequence, as printed: the ascent direction of Y, and of Z as it reaches W_Q; and the latter
    without the projection."""
    y, z, u, w_k = map(np.asarray, (*model.yz(), model.u, model.w_k))
    one_hot, query = np.eye(len(y)), sequence[-1]
    x = one_hot[sequence[:-1]]
    b = special.softmax(x @ z[query])
    norm = np.linalg.norm(x.T @ b)
    f = x.T @ b / norm
    residual = one_hot[label] - special.softmax(y.T @ f)
    back = y @ residual
    by_z = lambda back: np.outer(one_hot[query], x.T @ np.diag(b) @ x @ back / norm)
    w_q = lambda back: u.T @ by_z(back) @ u @ w_k / len(y) ** 0.5  # dZ = U dW_Q W_Kᵀ Uᵀ/√d
    return np.outer(f, residual), w_q(back - f * (f @ back)), w_q(back)


@jax.jit
def _single(model: nets.OneLayerTransformer, sequences, labels):
    """The ascent directions of Y = U W_Vᵀ Uᵀ and of W_Q, by autodiff, for one sequence each."""
    one = lambda model, sequence, label: nets.sequence_loss(model, (sequence[None], label[None]))
    slope = jax.vmap(jax.grad(one), (None, 0, 0))(model, sequences, labels)
    return -model.u @ jnp.swapaxes(slope.w_v, 1, 2) @ model.u.T, -slope.w_q


def _expected(data: nets.Contexts, at: YZ, eta_z: float):
    """The velocity of Y and Z on expected contexts, by whether `f` is normalised: by autodiff, and of the flow."""

    def both(at, normalise):
        network = nets.YZTransformer(at.z.shape[1], at.z.shape[0], OUTPUTS, normalise=normalise, dtype=at.y.dtype)
        slope = jax.grad(nets.cross_entropy)(jax.tree.unflatten(jax.tree.structure(network), (at.y, at.z)), data)
        flow = ScanSnap(data.x, data.query, outputs=OUTPUTS, eta_z=eta_z, normalise=normalise)
        return YZ(-slope.y, -eta_z * slope.z), flow(0.0, at)

    return jax.jit(lambda at: {normalise: both(at, normalise) for normalise in (True, False)})(at)


@claim(
    "The gradients of Y and Z are those of Lemma 1, for single sequences and in expectation, with ℓ2 normalisation "
    "and without. With orthonormal embeddings training W_V is training Y.",
    source="Lemma 1, eq. 3 and 4, and Lemma 2",
    assumptions=("orthonormal embeddings, for single sequences of the network in its original parameters",),
    tex=r"\dot Y = f g^\top,\quad \dot z = X^\top B X (I - f f^\top) Y g / \|X^\top b\|,\quad g = e_n - \alpha",
    flow=ScanSnap,
)
def gradients(setting: Setting) -> Evidence:
    rng, classes = setting.rng, _task(setting.rng)
    vocabulary = classes.probability.shape[1]
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), setting.dtype)
    u = jnp.asarray(np.linalg.qr(rng.standard_normal((vocabulary,) * 2))[0], setting.dtype)
    model = nets.OneLayerTransformer(u, *(normal(vocabulary, vocabulary) for _ in range(3)))
    sequences, labels = jax.jit(lambda key: classes.sequences(8, 12)(key))(setting.key)
    by_y, w_q = map(np.asarray, _single(model, sequences, labels))
    each = zip(np.asarray(sequences), np.asarray(labels).tolist(), strict=True)
    law_y, law_z, unprojected = map(np.stack, zip(*(_lemma_1(model, *one) for one in each), strict=True))
    without_root = vocabulary**0.5 * law_z
    tokens, queries = classes.keys.shape[0], classes.queries.shape[0]
    velocity = _expected(classes.expected(), YZ(normal(tokens, OUTPUTS), normal(queries, tokens)), 0.3)
    exact, label, first = rounding(2000), "without the projection I − f fᵀ", np.argsort(law_z[0].ravel())
    wrong = {label: unprojected, "without √d, as on the slides": without_root}
    options = {"within": exact, "measure": norms}
    ordered = lambda gradient: gradient[0].ravel()[first]
    axis, seen, control = ("Lemma 1", ordered(law_z)), {"autodiff": ordered(w_q)}, {label: ordered(unprojected)}
    title, predicted = "gradient of W_Q on one sequence, entry by entry", {"Lemma 1": ordered(law_z)}
    error = (float(norms(law, w_q).max()) for law in (law_z, without_root))

    def check(normalise, part):
        """In expectation, against the flow with normalisation or without."""
        words = "" if normalise else "no normalisation, "
        (seen, law), (_, other) = velocity[normalise], velocity[not normalise]
        name = f"expectation, {words}{'YZ'[part]}: autodiff against the flow"
        return agrees(name, None, seen[part], law[part], {"the other one's flow": other[part]}, within=exact)

    return evidence(
        agrees("one sequence, W_V against Lemma 1's Ẏ", None, by_y, law_y, **options),
        agrees("one sequence, W_Q against Lemma 1's ż", None, w_q, law_z, wrong, **options),
        *(check(normalise, part) for normalise in (True, False) for part in (0, 1)),
        panels=[panel(title, axis, y="−dL/dW_Q", observed=seen, predicted=predicted, control=control)],
        errata=[Erratum("slides", "Z = U W_Q W_Kᵀ Uᵀ", "Z = U W_Q W_Kᵀ Uᵀ/√d", *error)],
    )


@claim(
    "The coupled flow of Y and Z is the gradient flow of the real network's expected loss. Rows of Y and Z keep "
    "their sums.",
    source="Lemma 1 in the limit of Lemma 2, with the factor 1/K; the flow through autodiff on the network",
    assumptions=(*FLOW, "η_Z = 0.3 η_Y"),
    tex=r"\dot Y = -\eta_Y \nabla_Y L,\quad \dot Z = -\eta_Z \nabla_Z L,\quad Y 1 = 0,\quad Z 1 = 0",
    flow=ScanSnap,
)
def population_flow(setting: Setting) -> Evidence:
    data, ts = reference(), log_times(1, 1e4)
    law, printed = (follow(scan_flow("C", eta_z=eta), ts) for eta in (0.3, 1.5))  # 1.5: without 1/K = 1/5
    model = data.network(outputs=OUTPUTS)
    loss = jax.tree_util.Partial(nets.cross_entropy, batch=data.expected())
    real = solve(GradientFlow(loss, model.rates(eta_z=0.3)), model, ts).ys
    # Solves of 1e-10 and 1e-5; in float32 their errors add up over 1e4 units of time.
    close, sums = setting.bound(1e-10, 2e-3), setting.bound(1e-10, 2e-4)
    wrong, name = "without 1/K, as printed", "Z, flow against the network's gradient flow"
    options = {"within": close, "measure": absolute, "y": "attention logits z", "log": "x"}
    error = (float(np.abs(path.z - np.asarray(real.z)).max()) for path in (law, printed))
    where, corrected = "paper, eq. 10, 94, 98, 100 and Theorem 3", "(1/K) Σ_n, when t counts steps"
    return evidence(
        agrees(name, (TIME, ts), real.z, law.z, {wrong: printed.z}, **options),
        agrees("Y, relative", None, real.y, law.y, {wrong: printed.y}, within=close),
        vanishes("row sums of Y", law.y.sum(axis=2), {"column sums": law.y.sum(axis=1)}, within=sums),
        vanishes("row sums of Z", law.z.sum(axis=2), within=sums),
        errata=[Erratum(where, "Σ_n without a weight", corrected, *error, "absolute error of Z")],
    )
