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
from ..checks import agrees, at_least, evidence, rounding, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import panel

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


def _shapes(setting: Setting) -> dict[str, tuple[int, int]]:
    m, n = setting.pick(smoke=(6, 10), laptop=(16, 24), paper=(64, 96))
    return {"wide": (m, n), "tall": (n, m), "square": (m, m)}


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


@claim(
    "At full rank GaLore with gradient descent is gradient descent. This holds for wide, tall and square matrices, "
    "however bases are found and however often they are renewed.",
    source="section 4, r = min(m, n) and ρ = 1 reproduce the trajectory; true of the short side alone",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps; gaps of 1, 3 and 7, and one basis for all"),
    tex=r"r = \min(m, n): \quad P P^\top G_t = G_t",
)
def full_rank(setting: Setting) -> Evidence:
    shapes, gaps = _shapes(setting), np.array([1, 3, 7, NEVER])
    names = setting.pick(smoke=FEW, laptop=tuple(PROJECTORS), paper=tuple(PROJECTORS))
    found = _full_rank(_quadratic(setting, shapes), jnp.asarray(gaps, jnp.int32), names)
    exact, others, long, theirs = jax.tree.map(np.asarray, found)
    long_sides = {"side='long'": long, "optax.contrib.galore": theirs}
    wrong = {f"{side}, gap {gap}": x[i] for side, x in long_sides.items() for i, gap in enumerate(gaps) if gap > 1}
    drawn: dict[str, Any] = {"x": ("step", np.arange(1, STEPS + 1)), "y": "‖W − W_SGD‖/‖W_SGD‖", "log": "y"}

    def check(name: str, distance: np.ndarray, **more: Any) -> Evidence:
        return vanishes(f"distance from gradient descent, {name}", distance.T, within=rounding(40), **more)

    return evidence(
        check(f"exact_svd, tall {shapes['tall']}", exact["tall"], wrong=wrong, **drawn),
        *(check(f"exact_svd, {shape} {shapes[shape]}", exact[shape]) for shape in ("wide", "square")),
        *(check(f"{name}, tall", distance) for name, distance in others.items()),
        remarks=[
            f"optax.contrib.galore is {theirs[2, -1]:.2f} away from gradient descent after {STEPS} steps at a gap of 7 "
            f"on the tall matrix. Renewed at every step it is {theirs[0].max():.1g} away: its basis then holds the "
            "columns of the one gradient it is used for.",
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
    turned["square"] = of("momentum", "square", "both")
    return turned, {transport: of(transport, "wide") for transport in ("keep", "reset")}


@claim(
    "At full rank GaLore with heavy ball is heavy ball at any gap, if the momentum is turned into the new basis when "
    "the basis changes. Kept as it is, as in the paper and its code, it is another algorithm.",
    source="algorithm 2 keeps the moments; turning them by P_newᵀ P_old is LDAdam's (arXiv 2410.16103)",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps, β = 0.9, exact singular vectors"),
    tex=r"M \leftarrow P_{\mathrm{new}}^\top P_{\mathrm{old}}\, M",
)
def momentum_transport(setting: Setting) -> Evidence:
    gaps = np.array([1, 2, 5, 10, 25, NEVER])
    found = _momenta(_quadratic(setting, _shapes(setting)), jnp.asarray(gaps, jnp.int32))
    never = np.asarray(found[1]["keep"])[-1]
    turned, others = jax.tree.map(lambda x: np.asarray(x)[:, -1], found)
    wrong = {f"transport={name!r}, gap {gap}": x[i] for name, x in others.items() for i, gap in enumerate(gaps[:-1])}
    each = "momentum turned, every gap"
    return evidence(
        vanishes(f"{each}, wide", turned["wide"], wrong, within=rounding(40)),
        vanishes(f"{each}, tall", turned["tall"], within=rounding(40)),
        # Two sides are twice as many products, and roundings, as one.
        vanishes(f"{each}, square, both sides projected", turned["square"], within=rounding(80)),
        vanishes("momentum kept, basis never renewed", never, within=rounding(40)),
        panels=[
            panel(
                f"distance from heavy ball after {STEPS} steps, wide matrix",
                ("gap T (last: never renewed)", np.minimum(gaps, 2 * STEPS)),
                y="‖W − W_heavy ball‖/‖W_heavy ball‖",
                observed={"momentum turned": turned["wide"]},
                control={"kept (paper)": others["keep"], "reset": others["reset"]},
                log="xy",
            )
        ],
        remarks=[
            "Bases of successive gradients have arbitrary signs and order, so that a momentum that is kept points "
            f"anywhere: {others['keep'][2]:.2f} from heavy ball at a gap of 5, where forgetting it leaves "
            f"{others['reset'][2]:.2f}.",
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


@claim(
    "At full rank GaLore with Adam is Adam on V = Qᵀ W. That is Adam on W for a signed permutation Q, and for no other "
    "rotation tried: Adam divides entry by entry.",
    source="section 4; ρ commutes with signed permutations only",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps, one orthogonal basis Q for all"),
    tex=r"\rho(Q^\top G) = Q^\top \rho(G) \;\;\text{for signed permutations } Q \text{ only}",
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
    within = rounding(40)
    nearest = {"Adam on W, nearest of them": w_random.min()}
    return evidence(
        vanishes(f"Qᵀ W against Adam on V, {draws} random Q", v_random, nearest, within=within),
        vanishes(
            "Qᵀ W against Adam on V, rotations by 0° to 90°",
            v_turned.max(1),
            {"Adam on W": w_turned},
            within=within,
            x=("rotation of pairs of axes (degrees)", np.degrees(angles)),
            y="relative distance",
            log="y",
        ),
        vanishes(
            f"W against Adam on W, {draws} signed permutations", np.append(w_signed, v_signed), nearest, within=within
        ),
        vanishes(
            "W against Adam on W, rotation by 0° and 90°",
            w_turned[[0, -1]],
            {"nearest of 10° to 80°": w_turned[1:-1].min()},
            within=within,
        ),
        at_least(
            "W against Adam on W, all other rotations",
            np.append(w_random, w_turned[1:-1]),
            0.01,
            {"signed permutations": w_signed},
        ),
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


@claim(
    "A basis of r directions of the short side k keeps r/k of a later, independent gradient, one of the long side o "
    "keeps r/o. So at full rank only the short side loses nothing.",
    source="section 4, m ≤ n: left; optax.contrib projects the other side",
    assumptions=(
        "24 × 16 matrices of independent normal entries",
        "singular vectors of the first, used for the second",
    ),
    tex=r"\mathbb{E}\, \|P P^\top G\|_F^2 / \|G\|_F^2 = r/k",
)
def side(setting: Setting) -> Evidence:
    o, k, draws = 24, 16, setting.pick(smoke=100, laptop=2000, paper=20000)
    gradients = setting.rng.standard_normal((2, draws, o, k)).astype(setting.dtype)
    found = [tuple(map(np.asarray, x)) for x in _later_gradient(*map(jnp.asarray, gradients))]
    norm = lambda x: np.linalg.norm(x, axis=(1, 2))
    errors = [[norm(x - g) / norm(g) for x, g in zip(kept[:2], gradients, strict=True)] for kept in found]
    (short_first, short), (_, long), (theirs_first, theirs) = errors
    ranks, later = np.arange(1, k), gradients[1]
    along = lambda basis, g: (np.einsum("dkr,dko->dro", basis, g) ** 2).sum(2)  # of each direction, best first
    kept = lambda energy: (np.cumsum(energy, axis=1) / (later**2).sum((1, 2))[:, None]).mean(0)[: k - 1]
    # For normal G the share is of a beta distribution of this mean: 5 standard errors of the mean of draws.
    spread = lambda mean: np.sqrt(mean * (1 - mean) / (o * k / 2 + 1) / draws)

    def share(name: str, energy: np.ndarray, law: dict, wrong: dict) -> Evidence:
        measure = lambda seen, mean: (seen - mean) / spread(mean)
        name = f"share of a later gradient, {name} side (standard errors)"
        return agrees(name, ("rank r", ranks), kept(energy), law, wrong, within=5, measure=measure, y="‖P Pᵀ G‖²/‖G‖²")

    over_k, over_o = {"r/k": ranks / k}, {"r/o": ranks / o}
    return evidence(
        vanishes(
            "error of the later gradient, short side, r = k",
            short,
            {"side='long', least": long.min(), "optax.contrib, least": theirs.min()},
            within=rounding(40),
        ),
        vanishes("error of the first gradient, short side, r = k", short_first, within=rounding(40)),
        share("short", along(found[0][2], later.swapaxes(1, 2)), over_k, over_o),
        share("long", along(found[1][2], later), over_o, over_k),
        remarks=[
            f"At full rank the layout of optax.contrib has an error of {theirs_first.max():.1g} on the gradient that "
            f"the basis is made of, and of {theirs.mean():.3f} on the next: √(1 − k/o) = {np.sqrt(1 - k / o):.3f}.",
        ],
    )
