"""What training finds: the orders, factors and weight of the solutions of modular addition, and the way there."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from ...dynamics import composing
from ...dynamics.groups import Abelian, cyclic
from ...nets.pair_runs import PairRuns, train_pairs
from ..checks import agrees, at_least, at_most, evidence, mean, relative
from ..claim import Evidence, Setting, claim
from ..pair_networks import BALANCED, SQUARE
from ..panels import heatmap, panel
from . import factorise

RECIPE = "full batches of 90 % of the pairs, Adam with coupled L2, learning rate 0.01, float32"
PUBLISHED = {  # Table 2: other orders, unfactored 4 and 6, errors of 4 and 6 ×100, ν=i·ξ, ν=i·syn,αβ, ν·syn, others
    23: "0.0, 0.00, 5.71±5.71, 0.05±0.01, 4.80±0.96; 47.07±1.88, 11.31±1.76, 39.80±2.11, 1.82±1.82",
    71: "0.0, 0.00, 0.00, 0.03±0.00, 5.02±0.25; 72.57±0.70, 4.00±1.14, 21.14±2.14, 2.29±1.07",
    127: "0.0, 1.50±0.92, 0.00, 0.26±0.14, 0.93±0.18; 82.96±0.39, 2.25±0.64, 14.13±0.87, 0.66±0.66",
}
SHARE = {23: (38.0, 54.0), 71: (66.0, 81.0), 127: (76.0, 91.0)}  # of order 4, in per cent
COLUMNS = "% of other orders, % unfactored of 4 and 6, misfit × 100 of 4 and 6; % ν=i·ξ, ν=i·syn,αβ, ν·syn, others"


class Trained(NamedTuple):
    """All seeds at one weight decay: `z`, `(seeds, 3, order, nodes)` in the code's scale, and a table each."""

    run: PairRuns
    z: np.ndarray
    tables: list[factorise.Table]


@functools.cache  # one function a group, so that what records it is compiled once
def _watch(group: Abelian):
    """Potentials of each frequency while it trains; nothing has the nodes as an axis."""
    k, minus = np.array(group.frequencies), group.inverse[np.array(group.frequencies)]
    shifted = group.table[1, group.inverse[k]]  # 1 − k

    def watch(model, _):
        paper = (2 * group.order) ** (1 / 3)  # the paper's scale
        a, _, c = z = paper * composing.from_weights(model.a, model.b, model.c, group).z
        r, diagonal = jnp.einsum("ij,kj,lj->ikl", *z[:, 1:]), np.arange(group.order - 1)
        targets = jnp.sum(r[diagonal, diagonal, diagonal].real)
        return {
            "target": jnp.abs(jnp.sum(jnp.prod(z[:, k], axis=0), axis=1)),
            "left": jnp.abs(jnp.sum(a[k] * a[minus] * c[k], axis=1)),
            "crossed": jnp.abs(jnp.sum(a[k] * a[shifted] * c[k], axis=1)),
            "sum of targets": targets,
            "sum of others": jnp.sum(r.real) - targets,
        }

    return watch


def _run(group: Abelian, decay: float, **options: Any) -> PairRuns:
    """All seeds, by the paper's recipe; its axes of fractions and rates have one entry, and are dropped."""
    rates = {"learning_rates": [0.01], "weight_decays": [decay]}
    run = train_pairs(group.table, fractions=[0.9], **rates, observe=_watch(group), **options)
    dropped = jax.tree.map(lambda x: np.asarray(x)[0, 0, 0], run._replace(steps=None))
    return dropped._replace(steps=np.asarray(run.steps))


def _train(group: Abelian, decay: float, **options: Any) -> Trained:
    run, phi = _run(group, decay, compact=True, **options), group.characters / group.order
    z = np.stack([phi.conj() @ run.model.a, phi.conj() @ run.model.b, phi @ run.model.c], axis=1)
    return Trained(run, z, [factorise.table(one, group) for one in z])


def _norms(runs: list[Trained], group: Abelian) -> np.ndarray:
    """`(3, runs)`, lightest last: ‖z‖² in the paper's scale, that of theory for as many frequencies of orders 4 and 6,
    and this without its last term. Runs that have other orders are left out."""
    found, n = [], len(group.frequencies)
    for z, t in ((z, t) for run in runs for z, t in zip(run.z, run.tables, strict=True)):
        if t.count[4] + t.count[6] == n and t.count[6] > 0:
            law = composing.least_norm(t.count[4], t.count[6])
            weight = (2 * group.order) ** (2 / 3) * np.sum(np.abs(z) ** 2)
            found.append((weight, law, law - np.cbrt(6) * t.count[4] / t.count[6]))
    return np.array(sorted(found, key=lambda x: x[1])).T


@claim(
    "Trained networks end in the solutions built by hand. Every frequency has order 4 or 6, and nearly all are ν=i·ξ, "
    "ν=i·syn,αβ or ν·syn. Their weight is N(n4, n6) within 1 %, and more decay means more of order 4.",
    source="Table 2 and Fig. 4; N(n4, n6) is derived here",
    assumptions=(
        RECIPE,
        SQUARE,
        BALANCED,
        "512 nodes, 10 000 steps, weight decay 5e-5 to 2e-4",
        "the smoke scale: Z_11, 128 nodes",
    ),
    tex=r"\|z\|^2 \approx 6 \cdot 6^{1/3} n_6 + 6 \cdot 4^{1/3} n_4 + 6^{1/3} \frac{n_4}{n_6}",
)
def trained(setting: Setting) -> Evidence:
    orders = setting.pick(smoke=(11,), laptop=(23,), paper=(71, 127))
    return evidence(*(_trained(setting, d, f"Z{d}: " if len(orders) > 1 else "") for d in orders))


def _trained(setting: Setting, d: int, named: str) -> Evidence:
    group, weak, strong = cyclic(d), 1e-5, 5e-4
    few, nodes, steps = setting.pick(smoke=(6, 128, 4000), laptop=(5, 512, 10_000), paper=(5, 512, 10_000))
    seeds = [few * setting.seed + s for s in range(1, few + 1)]  # the paper's are 1 to 5
    options = {"seeds": seeds, "nodes": nodes, "steps": steps, "every": 500}
    settled = setting.pick(smoke=(2e-4, 5e-4), laptop=(5e-5, 1e-4, 2e-4), paper=(5e-5, 1e-4, 2e-4))
    runs = {decay: _train(group, decay, **options) for decay in sorted({weak, *settled, strong})}
    main, rng = [runs[decay] for decay in settled], setting.rng
    tables = [run.tables for run in main]
    over = lambda f, of=tables: np.nanmean([[f(t) for t in one] for one in of], axis=0)  # one number a seed
    turned = lambda z: factorise.table(np.abs(z) * np.exp(2j * np.pi * rng.random(z.shape)), group)
    random = {"random phases": over(lambda t: t.in_families, [[turned(z) for z in run.z] for run in main])}
    accuracy = np.array([(one.run.train_accuracy[:, -1], one.run.test_accuracy[:, -1]) for one in main])
    least, most = setting.pick(smoke=(50, 10.0), laptop=(75, 0.0), paper=(75, 5.0))
    others = lambda t: t.other_order + t.dead
    other, unsettled = np.mean(over(others)), {f"decay {weak:g}": np.mean(over(others, [runs[weak].tables]))}
    weight, law, without = _norms(main, group)
    axis, lighter = ("run, by N", np.arange(len(law))), {"N without its last term": without}
    found = [
        mean(f"{named}% of frequencies in the three families", over(lambda t: t.in_families), random, at_least=least),
        at_least(f"{named}accuracy, trained and held-out pairs", accuracy, 1 - 1e-6),
        at_most(f"{named}% of frequencies not of order 4 or 6", other, most, unsettled),
        mean(f"{named}misfit of order 6 × 100", over(lambda t: t.error[1]), at_most=12),
        agrees(f"{named}‖z‖² against N(n4, n6)", axis, weight, law, lighter, within=0.01, measure=relative, y="‖z‖²"),
    ]
    if setting.scale != "smoke":  # statistics of Z_23 and more
        of_order_4, word = lambda t: t.order_4, f"at {strong:g} less that at {settled[0]:g}"
        rise, share = over(of_order_4, [runs[strong].tables]) - over(of_order_4, tables[:1]), over(of_order_4)
        found += [
            mean(f"{named}% of order 4, at least", share, at_least=SHARE[d][0]),
            mean(f"{named}% of order 4, at most", share, at_most=SHARE[d][1]),
            mean(f"{named}misfit of order 4 × 100", over(lambda t: t.error[0]), at_most=0.3),
            mean(f"{named}% of order 4 {word}", rise, at_least=0),
        ]
    return evidence(*found, panels=_panels(runs, settled, group), remarks=_remarks(runs, settled, group))


def _panels(runs: dict[float, Trained], settled: tuple[float, ...], group: Abelian) -> list[xr.Dataset]:
    decays, main, middle = np.array(list(runs)), [runs[decay] for decay in settled], settled[len(settled) // 2]
    z, seen = runs[middle].z[0], {name: x[0] for name, x in runs[middle].run.observed.items()}
    order = np.array([c.shape[1] for c in factorise.nodes_by_frequency(z, group).values()])
    of_order = {f"r_{{a,k,−k,k}}, order {n}": seen["left"][:, order == n] for n in (4, 6) if n in order}
    all_of = {"r_kkk": seen["target"], "r_{a,k,1−k,k}": seen["crossed"]}
    potentials = {name: x.mean(axis=1) for name, x in (all_of | of_order).items()}
    lines = {"r_kkk = 1": 1.0, "order 4: 1/√2": np.sqrt(0.5)}
    theory = {name: np.full(len(seen["target"]), value) for name, value in lines.items()}
    edges = np.linspace(-1, 1, 25)
    found = lambda name: np.angle([p for run in main for t in run.tables for p in t.parameters[name]]) / np.pi
    angles = {name: np.histogram(found(name), edges)[0] for name in "ξν"}
    counts = [np.concatenate([factorise.orders(z, group) for z in run.z]) for run in runs.values()]
    pooled = np.stack([np.bincount(np.minimum(c, 10), minlength=11) for c in counts], axis=1)
    axes = ("weight decay", [f"{decay:g}" for decay in decays]), ("nodes of a frequency", np.arange(11))
    shares = {"seeds": np.array([[t.order_4 for t in run.tables] for run in runs.values()])}
    title = f"potentials over training, {middle:g}, first seed"
    size = np.abs(z[:, :, np.max(np.abs(z[0]), axis=0) > factorise.LIVE])  # of the nodes alive, as on the slides
    size = size[:, :, np.argsort(np.argmax(size[0, : group.order // 2 + 1], axis=0), kind="stable")]
    nodes = ("node, by frequency", np.arange(size.shape[2])), ("k", np.arange(group.order))
    return [
        heatmap("orders", *axes, pooled, z_label="frequencies, all seeds"),
        panel(title, ("step", runs[middle].run.steps), y="modulus, mean over k", observed=potentials, predicted=theory),
        panel("angles", ("angle / π", (edges[1:] + edges[:-1]) / 2), y="frequencies", observed=angles),
        panel("order 4 by weight decay", ("weight decay", decays), y="% of orders 4 and 6", observed=shares, log="x"),
        *(heatmap(f"|z_{p}|, first seed", *nodes, x, z_label="modulus") for p, x in zip("abc", size, strict=True)),
    ]


def _row(tables: list[factorise.Table]) -> str:
    """One row of the paper's table, with dead frequencies apart: means and standard errors over seeds."""

    def cell(values: np.ndarray) -> str:
        values = values[np.isfinite(values)]
        error = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
        return f"{values.mean():.2f}±{error:.2f}" if values.size else "–"

    columns = np.array([(t.other_order, *t.unfactored, *t.error, *t.families, t.dead) for t in tables], float).T
    *cells, dead = map(cell, columns)
    return f"{', '.join(cells[:5])}; {', '.join(cells[5:])}; dead {dead}"


def _remarks(runs: dict[float, Trained], settled: tuple[float, ...], group: Abelian) -> list[str]:
    main, d = [runs[decay] for decay in settled], group.order
    agree, number = sum(t.agree for run in main for t in run.tables), sum(len(run.z) for run in main) * (d // 2)
    losses = np.array([(one.run.train_loss[:, -1], one.run.test_loss[:, -1]) for one in main])
    return [
        f"Columns: {COLUMNS}.",
        *([f"Published, d = {d}, decay 5e-5: {PUBLISHED[d]}."] if d in PUBLISHED else []),
        *(f"Z{d}, decay {decay:g}: {_row(run.tables)}." for decay, run in runs.items()),
        f"The test by potentials alone finds the order that counting nodes finds at {agree / number:.1%} of "
        f"{number} frequencies. Final losses {losses.min():.1g} to {losses.max():.1g}.",
    ]


@claim(
    "Pairs trained on are learned within 30 steps, held-out pairs after more than twice as many. By then r_kkk of all "
    "frequencies has risen together to one.",
    source="Fig. 3 and the authors' log: 17 and 47 steps, Σ r_kkk = 22.4 at step 31 where the target is 22",
    assumptions=(RECIPE, "Z_23, 512 nodes, weight decay 1e-4, 400 steps", "the smoke scale: 100 steps"),
    tex=r"\sum_k r_{kkk} \to d - 1 \ \mathrm{before\ held-out\ pairs\ are\ learned}",
)
def generalisation(setting: Setting) -> Evidence:
    group, seeds = cyclic(23), [5 * setting.seed + s for s in range(1, 6)]
    steps = setting.pick(smoke=100, laptop=400, paper=400)
    run = _run(group, 1e-4, nodes=512, steps=steps, seeds=seeds, every=2)
    at, train, test = run.steps, run.train_accuracy, run.test_accuracy
    seen = {name: x.astype(float) for name, x in run.observed.items()}
    when = lambda curve: np.argmax(curve > 1 - 1e-6, axis=1)
    first = lambda curve: np.where(curve.max(axis=1) > 1 - 1e-6, at[when(curve)], np.nan)
    memory, general = first(train), first(test)
    early, every = at <= 100, np.arange(len(seeds))
    peak_at = seen["sum of targets"][:, early].argmax(axis=1)
    peak, others = (seen[f"sum of {which}"][:, early].max(axis=1) for which in ("targets", "others"))
    off = lambda record: np.abs(seen["target"][every, record] - 1).max(axis=1)
    learned = {"when pairs trained on are learned": off(when(train))}
    of_others, earlier = {"of the others": np.abs(others - 22)}, {"of trained pairs": memory - at[peak_at]}
    sums = {"Σ r_kkk": seen["sum of targets"].T, "Σ of the others": seen["sum of others"].T}
    accuracy, axis = {"trained on": train[0], "held out": test[0]}, ("step", at)
    return evidence(
        mean("steps to accuracy 1, held-out pairs over trained ones", general / memory, at_least=2),
        mean("step of accuracy 1, pairs trained on", memory, {"held-out pairs": general}, at_most=30),
        mean("peak of Σ r_kkk within 100 steps, off 22", np.abs(peak - 22), of_others, at_most=1.5),
        mean("r_kkk at the peak, the farthest from 1", off(peak_at), learned, at_most=0.2),
        mean("steps from the peak to accuracy 1 of held-out pairs", general - at[peak_at], earlier, at_least=0),
        panels=[
            panel("accuracy, first seed", axis, y="accuracy", observed=accuracy),
            panel("potentials, all seeds", axis, y="sum", observed=sums, predicted={"22": np.full(len(at), 22.0)}),
            panel("each frequency, first seed", axis, y="|r_kkk|", observed={"k = 1 … 11": seen["target"][0]}),
        ],
        remarks=[
            f"Steps of accuracy 1: trained on {memory.tolist()}, held out {general.tolist()}; Σ r_kkk peaks at "
            f"{np.round(peak, 1).tolist()} in steps {at[peak_at].tolist()}."
        ],
    )
