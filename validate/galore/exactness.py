"""What a projection leaves exactly as it is: descent and momentum at full rank, Adam up to the basis that it sees."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ...nets.galore import (
    exact_svd,
    galore,
    gram_eigh,
    random_orthonormal,
    randomized_range,
    scale_by_galore,
    subspace_iteration,
)
from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import identity

STEPS, RATE, NEVER = 50, 0.1, 1000  # a gap of NEVER: one basis for the whole run
PROJECTORS = {
    "exact_svd": exact_svd(),
    "gram_eigh": gram_eigh(),
    "randomized_range": randomized_range(),
    "subspace_iteration": subspace_iteration(),
    "random_orthonormal": random_orthonormal(),
}
FEW = ("exact_svd", "subspace_iteration", "random_orthonormal")
FULL = "rank min(m, n), scale 1, no weight decay"
QUADRATIC = "loss ½ Σ c (W − T_t)² with curvatures c in [0.5, 1.5] and targets T_t drawn anew for each step"


def _quadratic(setting: Setting, shapes: dict[str, tuple[int, int]]) -> tuple[PyTree, PyTree, PyTree]:
    """Where descent starts, the curvatures, and the targets of each step, for matrices of these shapes."""
    rng = setting.rng
    cast = lambda x: jnp.asarray(x, setting.dtype)
    start = {name: cast(rng.standard_normal(shape)) for name, shape in shapes.items()}
    curvature = {name: cast(rng.uniform(0.5, 1.5, shape)) for name, shape in shapes.items()}
    targets = {name: cast(rng.standard_normal((STEPS, *shape))) for name, shape in shapes.items()}
    return start, curvature, targets


def _gradient(curvature: PyTree) -> Callable[[PyTree, PyTree], PyTree]:
    return lambda w, target: jax.tree.map(lambda c, w, t: c * (w - t), curvature, w, target)


def _descend(optimiser: Any, start: PyTree, gradient: Callable, targets: PyTree) -> PyTree:
    """The parameters after each step."""

    def step(carry, target):
        params, state = carry
        updates, state = optimiser.update(gradient(params, target), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (start, optimiser.init(start)), targets)[1]


def _distance(x: PyTree, y: PyTree) -> PyTree:
    """`‖x − y‖_F / ‖y‖_F` of each matrix after each step."""
    norm = lambda x: jnp.linalg.norm(x, axis=(-2, -1))
    return jax.tree.map(lambda x, y: norm(x - y) / norm(y), x, y)


@functools.partial(jax.jit, static_argnames="names")
def _full_rank(data, gaps, names):
    """Distance from gradient descent, `(gaps, steps)`: for each shape with singular vectors, for the tall one with each
    of the other projectors, and for it with the long side projected."""
    rank = data[0]["square"].shape[0]

    def of(make, leaves):
        start, curvature, targets = ({name: tree[name] for name in leaves} for tree in data)
        gradient = _gradient(curvature)
        plain = _descend(optax.sgd(RATE), start, gradient, targets)
        return jax.vmap(lambda gap: _distance(_descend(make(gap), start, gradient, targets), plain))(gaps)

    ours = lambda **options: lambda gap: galore(RATE, rank, gap, 1.0, optax.identity(), **options)
    shapes = of(ours(projector=exact_svd()), tuple(data[0]))
    others = {name: of(ours(projector=PROJECTORS[name]), ["tall"])["tall"] for name in names if name != "exact_svd"}
    long = of(ours(projector=exact_svd(), side="long"), ["tall"])["tall"]
    theirs = of(lambda gap: optax.contrib.galore(RATE, rank, gap, 1.0, optax.identity()), ["tall"])["tall"]
    return shapes, others, long, theirs


# CONTROL: the long side projected: side='long', and the layout of optax.contrib.galore
@claim(
    "At full rank GaLore with gradient descent is gradient descent: for wide, tall and square matrices, "
    "however bases are found and however often they are renewed.",
    source="section 4, r = min(m, n) and ρ = 1 reproduce the trajectory; true of the short side alone",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps; gaps of 1, 3 and 7, and one basis for all"),
)
def full_rank(setting: Setting) -> Evidence:
    m, n = setting.pick(smoke=(6, 10), laptop=(16, 24), paper=(64, 96))
    shapes, gaps = {"wide": (m, n), "tall": (n, m), "square": (m, m)}, np.array([1, 3, 7, NEVER])
    names = setting.pick(smoke=FEW, laptop=tuple(PROJECTORS), paper=tuple(PROJECTORS))
    found = _full_rank(_quadratic(setting, shapes), jnp.asarray(gaps, jnp.int32), names)
    exact, others, long, theirs = jax.tree.map(np.asarray, found)
    bound, steps = setting.bound(1e-14, 2e-6), np.arange(1, STEPS + 1)
    floor = np.finfo(setting.dtype).eps / 10  # so that an error of zero is seen on a logarithmic axis
    curves = {f"exact_svd, {shape}": x.max(0) for shape, x in exact.items()}
    curves |= {f"{name}, tall": x.max(0) for name, x in others.items()}
    rows = {f"‖W − W_SGD‖/‖W_SGD‖, exact_svd, {shape} {shapes[shape]}": exact[shape] for shape in shapes}
    rows |= {f"the same, {name}, tall": x for name, x in others.items()}
    return Evidence(
        rows={name: identity(x, bound) for name, x in rows.items()},
        control={
            f"{name}, tall, gap {gap}": identity(x[i, -1], bound)
            for name, x in (("side='long'", long), ("optax.contrib.galore", theirs))
            for i, gap in enumerate(gaps)
            if gap > 1
        },
        panels=[
            panel(
                "distance from gradient descent at full rank, worst gap",
                ("step", steps),
                y="‖W − W_SGD‖/‖W_SGD‖",
                observed={name: np.maximum(x, floor) for name, x in curves.items()},
                predicted={"bound": np.full(STEPS, bound)},
                control={
                    "optax.contrib, tall, gap 7": np.maximum(theirs[2], floor),
                    "side='long', tall, gap 7": np.maximum(long[2], floor),
                },
                log="y",
            )
        ],
        remarks=[
            f"optax.contrib.galore is {theirs[2, -1]:.2f} away from gradient descent after {STEPS} steps at a "
            f"gap of 7 on the tall matrix. Renewed at every step it is {theirs[0].max():.1g} away, for then its "
            "basis holds the columns of the one gradient it is used for.",
        ],
    )


@jax.jit
def _momenta(data, gaps):
    """Distance from heavy ball, `(gaps, steps)`: with the momentum turned, kept and reset."""
    ball, rank = optax.trace(0.9), data[0]["square"].shape[0]

    def of(transport, leaf, side: Any = "short"):
        start, curvature, targets = (tree[leaf] for tree in data)
        gradient = _gradient(curvature)
        plain = _descend(optax.chain(ball, optax.scale(-RATE)), start, gradient, targets)

        def distance(gap):
            tx = galore(RATE, rank, gap, 1.0, ball, projector=exact_svd(), transport=transport, side=side)
            return _distance(_descend(tx, start, gradient, targets), plain)

        return jax.vmap(distance)(gaps)

    turned = {"wide": of("momentum", "wide"), "tall": of("momentum", "tall")}
    turned["square, both sides projected"] = of("momentum", "square", "both")
    return turned, {transport: of(transport, "wide") for transport in ("keep", "reset")}


# CONTROL: transport='keep', the paper's, and transport='reset', each at a gap below the number of steps
@claim(
    "At full rank GaLore with heavy ball is heavy ball at any gap, if the momentum is turned into the new "
    "basis when the basis changes. Kept as it is, as in the paper and its code, it is another algorithm.",
    source="algorithm 2 keeps the moments; turning them by P_newᵀ P_old is LDAdam's (arXiv 2410.16103)",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps, β = 0.9, exact singular vectors"),
)
def momentum_transport(setting: Setting) -> Evidence:
    m, n = setting.pick(smoke=(6, 10), laptop=(16, 24), paper=(64, 96))
    shapes, gaps = {"wide": (m, n), "tall": (n, m), "square": (m, m)}, np.array([1, 2, 5, 10, 25, NEVER])
    found = _momenta(_quadratic(setting, shapes), jnp.asarray(gaps, jnp.int32))
    turned, others = jax.tree.map(np.asarray, found)
    bound, switching = setting.bound(1e-14, 2e-6), gaps < STEPS
    last = {name: x[:, -1] for name, x in others.items()}
    return Evidence(
        # Two sides are twice as many products, and roundings, as one.
        rows={
            f"momentum turned, every gap, {name}": identity(x[:, -1], 2 * bound if "both" in name else bound)
            for name, x in turned.items()
        }
        | {"momentum kept, basis never renewed": identity(others["keep"][~switching], bound)},
        control={
            f"transport={name!r}, gap {gap}": identity(x[i], bound)
            for name, x in last.items()
            for i, gap in enumerate(gaps)
            if gap < STEPS
        },
        panels=[
            panel(
                f"distance from heavy ball after {STEPS} steps, wide matrix",
                ("gap T (last: never renewed)", np.minimum(gaps, 2 * STEPS)),
                y="‖W − W_heavy ball‖/‖W_heavy ball‖",
                observed={"momentum turned": turned["wide"][:, -1]},
                predicted={"bound": np.full(len(gaps), bound)},
                control={"kept (paper)": last["keep"], "reset": last["reset"]},
                log="xy",
            )
        ],
        remarks=[
            "Bases of successive gradients have arbitrary signs and order, so that a momentum that is kept points "
            f"anywhere: {last['keep'][2]:.2f} from heavy ball at a gap of 5, where forgetting it leaves "
            f"{last['reset'][2]:.2f}.",
        ],
    )


@jax.jit
def _adam_in_bases(bases, data):
    """For each basis Q: W of Adam in the basis, V = Qᵀ W of plain Adam on V, and W of plain Adam."""
    start, curvature, targets = (x["w"] for x in data)
    gradient = lambda w, t: curvature * (w - t)
    plain = _descend(optax.adam(RATE), start, gradient, targets)

    def one(q: Float[Array, "k k"]):
        tx = galore(RATE, q.shape[0], 10, projector=lambda g, previous, key, r: q)
        ours = _descend(tx, start, gradient, targets)
        turned = _descend(optax.adam(RATE), q.T @ start, lambda v, t: q.T @ gradient(q @ v, t), targets)
        return _distance(q.T @ ours, turned), _distance(ours, plain)

    return jax.vmap(one)(bases)


def _rotations(size: int, angles: np.ndarray) -> np.ndarray:
    """Rotations of the planes of axes (0, 1), (2, 3), … by each angle."""
    pairs = np.kron(np.eye(size // 2), np.ones((2, 2))) - np.eye(size)
    sign = np.tril(np.ones((size, size))) - np.triu(np.ones((size, size)))
    return np.cos(angles)[:, None, None] * np.eye(size) + np.sin(angles)[:, None, None] * pairs * sign


# CONTROL: the same equality with plain Adam on W for rotations by 10° and more, and for random Q
@claim(
    "At full rank GaLore with Adam is Adam on V = Qᵀ W. That is Adam on W for a signed permutation Q, for "
    "no other rotation tried: Adam divides entry by entry.",
    source="section 4; ρ commutes with signed permutations only",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps, one orthogonal basis Q for all"),
)
def adam_basis(setting: Setting) -> Evidence:
    k, n, draws = setting.pick(smoke=(8, 12, 4), laptop=(16, 24, 16), paper=(64, 96, 16))
    rng, angles = np.random.default_rng(setting.seed + 1), np.linspace(0, np.pi / 2, 10)
    signed = np.stack([np.eye(k)[rng.permutation(k)] * rng.choice([-1.0, 1.0], k) for _ in range(draws)])
    random = np.linalg.qr(rng.standard_normal((draws, k, k)))[0]
    bases = jnp.asarray(np.concatenate([signed, random, _rotations(k, angles)]), setting.dtype)
    on_v, on_w = map(np.asarray, _adam_in_bases(bases, _quadratic(setting, {"w": (k, n)})))
    at = [slice(draws), slice(draws, 2 * draws), slice(2 * draws, None)]
    v_signed, v_random, v_turned = (on_v[part] for part in at)
    w_signed, w_random, w_turned = (on_w[part, -1] for part in at)
    bound = setting.bound(1e-14, 5e-6)
    degrees = np.degrees(angles)
    return Evidence(
        rows={
            f"Qᵀ W against Adam on V, {draws} random Q": identity(v_random, bound),
            "Qᵀ W against Adam on V, rotations by 0° to 90°": identity(v_turned, bound),
            f"W against Adam on W, {draws} signed permutations": identity(np.append(w_signed, v_signed), bound),
            "W against Adam on W, rotation by 0° and 90°": identity(w_turned[[0, -1]], bound),
        },
        control={
            "W against Adam on W, least of the random Q": identity(w_random.min(), bound),
            "W against Adam on W, least of 10° to 80°": identity(w_turned[1:-1].min(), bound),
        },
        panels=[
            panel(
                f"Adam in a rotated basis, after {STEPS} steps",
                ("rotation of pairs of axes (degrees)", degrees),
                y="relative distance",
                observed={"from Adam on V = QᵀW": np.maximum(v_turned[:, -1], np.finfo(setting.dtype).eps / 10)},
                predicted={"bound": np.full(len(degrees), bound)},
                control={"from Adam on W": np.maximum(w_turned, np.finfo(setting.dtype).eps / 10)},
                log="y",
            )
        ],
        remarks=[
            f"A random basis takes Adam {np.median(w_random):.2f} away from itself in {STEPS} steps, so that no "
            "trajectory of Adam is to be expected of GaLore, even at full rank.",
        ],
    )


@jax.jit
@jax.vmap
def _later_gradient(first, second):
    """Full-rank projections of a gradient and of the next to the basis of the first, and the basis: for the short side,
    the long one, and optax.contrib."""

    def kept(tx, basis):
        once, state = tx.update(first, tx.init(first))
        return once, tx.update(second, state)[0], basis(state)

    options = {"update_proj_gap": NEVER, "projector": exact_svd()}
    ours = lambda side: scale_by_galore(optax.identity(), min(first.shape), side=side, **options)
    theirs = optax.contrib.scale_by_galore(min(first.shape), NEVER, 1.0, optax.identity())
    return (
        kept(ours("short"), lambda state: state.right),
        kept(ours("long"), lambda state: state.left),
        kept(theirs, lambda state: state.projector),
    )


# CONTROL: the long side at full rank, also that of optax.contrib; its share taken to be r/k
@claim(
    "A basis of r directions of the short side k keeps r/k of a later, independent gradient, one "
    "of the long side o keeps r/o. So at full rank only the short side loses nothing.",
    source="section 4, m ≤ n: left; optax.contrib projects the other side",
    assumptions=(
        "24 × 16 matrices of independent normal entries",
        "singular vectors of the first, used for the second",
    ),
)
def side(setting: Setting) -> Evidence:
    o, k, draws = 24, 16, setting.pick(smoke=100, laptop=2000, paper=20000)
    gradients = setting.rng.standard_normal((2, draws, o, k)).astype(setting.dtype)
    found = [tuple(map(np.asarray, x)) for x in _later_gradient(*map(jnp.asarray, gradients))]
    norm = lambda x: np.linalg.norm(x, axis=(1, 2))
    errors = [[norm(x - g) / norm(g) for x, g in zip(kept[:2], gradients, strict=True)] for kept in found]
    (short_first, short), (_, long), (theirs_first, theirs) = errors
    ranks, bound = np.arange(1, k + 1), setting.bound(1e-14, 2e-6)
    energy = (gradients[1] ** 2).sum((1, 2), keepdims=False)[:, None]
    along = lambda basis, g: (np.einsum("dkr,dko->dro", basis, g) ** 2).sum(2)  # of each direction, best first
    shares = {
        "short": np.cumsum(along(found[0][2], gradients[1].swapaxes(1, 2)), axis=1) / energy,
        "long": np.cumsum(along(found[1][2], gradients[1]), axis=1) / energy,
    }
    kept = {name: x.mean(0) for name, x in shares.items()}

    def deviation(name: str, length: int) -> np.ndarray:
        """Of the mean share from r/length, in standard errors of the beta distribution that it has for normal G."""
        a, b = ranks[:-1] * o * k / (2 * length), (length - ranks[:-1]) * o * k / (2 * length)
        spread = np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
        return (kept[name][:-1] - ranks[:-1] / length) * np.sqrt(draws) / spread

    return Evidence(
        rows={
            "error of the later gradient, short side, r = k": identity(short, bound),
            "error of the first gradient, short side, r = k": identity(short_first, bound),
            "share kept − r/k, short side, r < k (standard errors)": identity(deviation("short", k), 5.0),
            "share kept − r/o, long side, r < k (standard errors)": identity(deviation("long", o), 5.0),
        },
        control={
            "error of the later gradient, side='long', r = k": identity(long.min(), bound),
            "error of the later gradient, optax.contrib, r = k": identity(theirs.min(), bound),
            "share kept − r/k, long side, least of r (standard errors)": identity(
                np.abs(deviation("long", k)).min(), 5.0
            ),
        },
        panels=[
            panel(
                f"share of a later gradient, {o} × {k}, {draws} draws",
                ("rank r", ranks),
                y="‖P Pᵀ G‖²/‖G‖²",
                observed={"short side": kept["short"], "long side (optax.contrib)": kept["long"]},
                predicted={"r/k": ranks / k, "r/o": ranks / o},
            )
        ],
        remarks=[
            f"At full rank the layout of optax.contrib has an error of {theirs_first.max():.1g} on the gradient that "
            f"the basis is made of, and of {theirs.mean():.3f} on the next: √(1 − k/o) = {np.sqrt(1 - k / o):.3f}.",
        ],
    )
