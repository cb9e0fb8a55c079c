"""What a projection leaves exactly as it is: descent and momentum at full rank, Adam up to the basis that it sees."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ...nets import galore as gl
from ..checks import agrees, at_least, evidence, rounding, vanishes
from ..claim import Evidence, Setting, claim
from ..panels import panel

STEPS, RATE, NEVER = 50, 0.1, 1000  # a gap of NEVER: one basis for the whole run
FEW = (gl.exact_svd, gl.subspace_iteration, gl.random_orthonormal)
PROJECTORS = (*FEW, gl.gram_eigh, gl.randomized_range)
FULL = "rank min(m, n), scale 1, no weight decay"
QUADRATIC = "loss ½ Σ c (W − T_t)² with curvatures c in [0.5, 1.5] and targets T_t drawn anew for each step"
Task = tuple[Array, Array, Array]
Case = tuple[str, Callable]


def _shapes(setting: Setting) -> dict[str, tuple[int, int]]:
    m, n = setting.pick(smoke=(6, 10), laptop=(16, 24), paper=(64, 96))
    return {"wide": (m, n), "tall": (n, m), "square": (m, m)}


def _quadratic(setting: Setting, shapes: dict[str, tuple[int, int]]) -> dict[str, Task]:
    """Where descent starts, the curvatures, and the targets of each step, for matrices of these shapes."""
    rng = setting.rng
    start = [rng.standard_normal(shape) for shape in shapes.values()]
    curvature = [rng.uniform(0.5, 1.5, shape) for shape in shapes.values()]
    targets = [rng.standard_normal((STEPS, *shape)) for shape in shapes.values()]
    tasks = zip(start, curvature, targets, strict=True)
    return jax.tree.map(lambda x: jnp.asarray(x, setting.dtype), dict(zip(shapes, tasks, strict=True)))


def _descend(optimiser: Any, task: Task, q: Array | None = None) -> Any:
    """W after each step; with an orthogonal Q, V = Qᵀ W after each step of an optimiser that sees V."""
    start, curvature, targets = task
    turned, back = (lambda w: w if q is None else q.T @ w), (lambda v: v if q is None else q @ v)

    def step(carry, target):
        params, state = carry
        updates, state = optimiser.update(turned(curvature * (back(params) - target)), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (turned(start), optimiser.init(turned(start))), targets)[1]


def _distance(x: Array, y: Array) -> Array:
    """`‖x − y‖_F / ‖y‖_F` after each step."""
    norm = lambda x: jnp.linalg.norm(x, axis=(-2, -1))
    return norm(x - y) / norm(y)


def _case(shape: str, **options: Any) -> Case:
    """A shape, and full-rank GaLore as it is called for it, with singular vectors unless `options` say otherwise."""
    return shape, functools.partial(gl.galore, **{"projector": gl.exact_svd()} | options)


def _from_plain(setting: Setting, gaps: np.ndarray, base: Any, cases: dict[str, Case]) -> dict[str, np.ndarray]:
    """The distance of GaLore around `base` from descent by `base` itself, `(gaps, steps)`, in each case."""
    shapes = _shapes(setting)

    @jax.jit
    def distances(tasks, gaps):
        plain = {shape: _descend(optax.chain(base, optax.scale(-RATE)), task) for shape, task in tasks.items()}

        def of(shape: str, make: Callable) -> Array:
            ours = lambda gap: _descend(make(RATE, min(shapes[shape]), gap, 1.0, base), tasks[shape])
            return jax.vmap(lambda gap: _distance(ours(gap), plain[shape]))(gaps)

        return [of(*case) for case in cases.values()]

    found = distances(_quadratic(setting, shapes), jnp.asarray(gaps, jnp.int32))
    return dict(zip(cases, map(np.asarray, found), strict=True))


@claim(
    "At full rank GaLore with gradient descent is gradient descent. This holds for wide, tall and square matrices, "
    "however bases are found and however often they are renewed.",
    source="section 4, r = min(m, n) and ρ = 1 reproduce the trajectory; true of the short side alone",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps; gaps of 1, 3 and 7, and one basis for all"),
    tex=r"r = \min(m, n): \quad P P^\top G_t = G_t",
)
def full_rank(setting: Setting) -> Evidence:
    shapes, gaps = _shapes(setting), np.array([1, 3, 7, NEVER])
    cases = {f"exact_svd, {shape} {shapes[shape]}": _case(shape) for shape in ("tall", "wide", "square")}
    for make in setting.pick(smoke=FEW, laptop=PROJECTORS, paper=PROJECTORS)[1:]:
        cases[f"{make.__name__}, tall"] = _case("tall", projector=make())
    long_sides = {"side='long'": _case("tall", side="long"), "optax.contrib.galore": ("tall", optax.contrib.galore)}
    found = _from_plain(setting, gaps, optax.identity(), cases | long_sides)
    theirs, over = found["optax.contrib.galore"], [(i, gap) for i, gap in enumerate(gaps) if gap > 1]
    wrong = {f"{side}, gap {gap}": found[side][i] for side in long_sides for i, gap in over}
    drawn: dict[str, Any] = {"x": ("step", np.arange(1, STEPS + 1)), "y": "‖W − W_SGD‖/‖W_SGD‖", "log": "y"}

    def check(name: str, **more: Any) -> Evidence:
        return vanishes(f"distance from gradient descent, {name}", found[name].T, within=rounding(40), **more)

    first, *others = cases
    return evidence(
        check(first, wrong=wrong, **drawn),
        *map(check, others),
        remarks=[
            f"optax.contrib.galore is {theirs[2, -1]:.2f} away from gradient descent after {STEPS} steps at a gap of 7 "
            f"on the tall matrix. Renewed at every step it is {theirs[0].max():.1g} away: its basis then holds the "
            "columns of the one gradient it is used for."
        ],
    )


@claim(
    "At full rank GaLore with heavy ball is heavy ball at any gap, if the momentum is turned into the new basis when "
    "the basis changes. Kept as it is, as in the paper and its code, it is another algorithm.",
    source="algorithm 2 keeps the moments; turning them by P_newᵀ P_old is LDAdam's (arXiv 2410.16103)",
    assumptions=(FULL, QUADRATIC, f"{STEPS} steps, β = 0.9, exact singular vectors"),
    tex=r"M \leftarrow P_{\mathrm{new}}^\top P_{\mathrm{old}}\, M",
)
def momentum_transport(setting: Setting) -> Evidence:
    gaps, within, turned = np.array([1, 2, 5, 10, 25, NEVER]), rounding(40), {"transport": "momentum"}
    cases = {shape: _case(shape, **turned) for shape in ("wide", "tall")}
    cases["square"] = _case("square", side="both", **turned)
    cases |= {transport: _case("wide", transport=transport) for transport in ("keep", "reset")}
    found = _from_plain(setting, gaps, optax.trace(0.9), cases)
    end = {name: x[:, -1] for name, x in found.items()}
    others = [(name, i, gap) for name in ("keep", "reset") for i, gap in enumerate(gaps[:-1])]
    wrong = {f"transport={name!r}, gap {gap}": end[name][i] for name, i, gap in others}
    each = "momentum turned, every gap"
    return evidence(
        vanishes(f"{each}, wide", end["wide"], wrong, within=within),
        vanishes(f"{each}, tall", end["tall"], within=within),
        # Two sides are twice as many products, and roundings, as one.
        vanishes(f"{each}, square, both sides projected", end["square"], within=2 * within),
        vanishes("momentum kept, basis never renewed", found["keep"][-1], within=within),
        panels=[
            panel(
                f"distance from heavy ball after {STEPS} steps, wide matrix",
                ("gap T (last: never renewed)", np.minimum(gaps, 2 * STEPS)),
                y="‖W − W_heavy ball‖/‖W_heavy ball‖",
                observed={"momentum turned": end["wide"]},
                control={"kept (paper)": end["keep"], "reset": end["reset"]},
                log="xy",
            )
        ],
        remarks=[
            "Bases of successive gradients have arbitrary signs and order, so that a momentum that is kept points "
            f"anywhere: {end['keep'][2]:.2f} from heavy ball at a gap of 5, where forgetting it leaves "
            f"{end['reset'][2]:.2f}."
        ],
    )


@jax.jit
def _adam_in_bases(bases, task):
    """For each basis Q, how far GaLore's Adam is from Adam on V = Qᵀ W, and from Adam on W, after each step."""
    plain = _descend(optax.adam(RATE), task)

    def one(q: Float[Array, "k k"]):
        ours = _descend(gl.galore(RATE, q.shape[0], 10, projector=lambda g, previous, key, r: q), task)
        return _distance(q.T @ ours, _descend(optax.adam(RATE), task, q)), _distance(ours, plain)

    return jax.vmap(one)(bases)


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
    # Rotations of the planes of axes (0, 1), (2, 3), … by each angle.
    turn = np.kron(np.eye(k // 2), [[0.0, -1.0], [1.0, 0.0]])
    turns = np.cos(angles)[:, None, None] * np.eye(k) + np.sin(angles)[:, None, None] * turn
    bases = jnp.asarray(np.concatenate([signed, random, turns]), setting.dtype)
    on_v, on_w = map(np.asarray, _adam_in_bases(bases, _quadratic(setting, {"w": (k, n)})["w"]))
    v_signed, v_random, v_turned = np.split(on_v, [draws, 2 * draws])
    w_signed, w_random, w_turned = np.split(on_w[:, -1], [draws, 2 * draws])
    within, nearest = rounding(40), {"Adam on W, nearest of them": w_random.min()}
    to_v, to_w, others = "Qᵀ W against Adam on V", "W against Adam on W", w_turned[1:-1]
    exact, not_exact = np.append(w_signed, v_signed), np.append(w_random, others)
    x, y = ("rotation of pairs of axes (degrees)", np.degrees(angles)), "relative distance"
    turned, wrong, least = v_turned.max(1), {"Adam on W": w_turned}, {"nearest of 10° to 80°": others.min()}
    return evidence(
        vanishes(f"{to_v}, {draws} random Q", v_random, nearest, within=within),
        vanishes(f"{to_v}, rotations by 0° to 90°", turned, wrong, within=within, x=x, y=y, log="y"),
        vanishes(f"{to_w}, {draws} signed permutations", exact, nearest, within=within),
        vanishes(f"{to_w}, rotation by 0° and 90°", w_turned[[0, -1]], least, within=within),
        at_least(f"{to_w}, all other rotations", not_exact, 0.01, {"signed permutations": w_signed}),
        remarks=[
            f"A random basis takes Adam {np.median(w_random):.2f} away from itself in {STEPS} steps, so that no "
            "trajectory of Adam is to be expected of GaLore, even at full rank."
        ],
    )


@jax.jit
@jax.vmap
def _later_gradient(first, second):
    """Full-rank projections of a gradient and of the next to the basis of the first, and the basis: for the short side,
    the long one, and optax.contrib."""

    def kept(tx, basis):
        once, state = tx.update(first, tx.init(first))
        return once, tx.update(second, state)[0], getattr(state, basis)

    rank, plain = min(first.shape), optax.identity()
    ours = lambda side: gl.scale_by_galore(plain, rank, NEVER, side=side, projector=gl.exact_svd())
    theirs = optax.contrib.scale_by_galore(rank, NEVER, 1.0, plain)
    return kept(ours("short"), "right"), kept(ours("long"), "left"), kept(theirs, "projector")


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
    later, found = gradients[1], jax.tree.map(np.asarray, _later_gradient(*map(jnp.asarray, gradients)))
    norm = lambda x: np.linalg.norm(x, axis=(-2, -1))
    errors = [norm(np.stack(kept) - gradients) / norm(gradients) for *kept, _ in found]
    (short_first, short), (_, long), (theirs_first, theirs) = errors
    ranks, per_k, per_o = np.arange(1, k), {"r/k": np.arange(1, k) / k}, {"r/o": np.arange(1, k) / o}

    def share(name: str, basis: np.ndarray, g: np.ndarray, law: dict, wrong: dict) -> Evidence:
        along = (np.einsum("dkr,dko->dro", basis, g) ** 2).sum(2)  # of each direction, best first
        kept = (np.cumsum(along, axis=1) / (g**2).sum((1, 2))[:, None]).mean(0)[: k - 1]
        # For normal G the share is of a beta distribution of this mean: 5 standard errors of the mean of draws.
        spread = lambda mean: np.sqrt(mean * (1 - mean) / (o * k / 2 + 1) / draws)
        measure = lambda seen, mean: (seen - mean) / spread(mean)
        name = f"share of a later gradient, {name} side (standard errors)"
        return agrees(name, ("rank r", ranks), kept, law, wrong, within=5, measure=measure, y="‖P Pᵀ G‖²/‖G‖²")

    wrong = {"side='long', least": long.min(), "optax.contrib, least": theirs.min()}
    return evidence(
        vanishes("error of the later gradient, short side, r = k", short, wrong, within=rounding(40)),
        vanishes("error of the first gradient, short side, r = k", short_first, within=rounding(40)),
        share("short", found[0][2], later.swapaxes(1, 2), per_k, per_o),
        share("long", found[1][2], later, per_o, per_k),
        remarks=[
            f"At full rank the layout of optax.contrib has an error of {theirs_first.max():.1g} on the gradient that "
            f"the basis is made of, and of {theirs.mean():.3f} on the next: √(1 − k/o) = {np.sqrt(1 - k / o):.3f}."
        ],
    )
