"""Descent on the real one-layer transformer beside the flows: tiers, finite sequences, when attention snaps and how
sparse it ends, and the paper's Figures 4 and 6."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...dynamics import solve
from ...dynamics.scan_snap import YZ, ScanSnap
from ...nets import scan_snap as nets
from ...nets import train
from ...nets.descent import halving_rates
from ..checks import absolute, agrees, at_least, at_most, evidence, mean, relative, scales, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..comparing import compare
from ..comparison import Comparison
from ..metrics import entropy
from ..panels import heatmap, panel
from ._shared import ALIKE, ASSUMED, CLASSES, FLOW, OWN, TIME, logits, reference, scan_flow
from .assumptions import CLASSES_ALIKE, TIER_B


def _optimiser(flow: ScanSnap, data: nets.Contexts, eta_z: float, momentum: float | None = None):
    """Of a tier, by its learning rate; with momentum β at (1 − β) times the rate: the same flow time."""

    def optimiser(rate):
        step = rate if momentum is None else (1 - momentum) * rate
        plain = nets.sgd(step, eta_z=eta_z, momentum=momentum)
        return optax.chain(nets.precondition(data), plain) if flow.preconditioned else plain

    return optimiser


def _compared(tier: str, eta_z: float, rates: np.ndarray, end: float, momentum: float | None = None) -> Comparison:
    """The attention logits of one class's tokens in the real network of a tier against its flow. The wrong flow has
    the decoder's preconditioning where this one has none, and none where it has."""
    flow, data = scan_flow(tier, eta_z=eta_z), reference().expected()
    wrong = ScanSnap(flow.probability, outputs=flow.outputs, preconditioned=not flow.preconditioned, eta_z=eta_z)
    own = lambda state: state.z[0, OWN]
    return compare(
        flow,
        flow.zero(),
        reference().network(outputs=flow.outputs),
        nets.cross_entropy,
        data,
        learning_rates=rates,
        time=end,
        points=4,
        observe=own,
        image=own,
        optimiser=_optimiser(flow, data, eta_z, momentum),
        within=0.01,
        wrong={"wrong preconditioning": wrong},
    )


def _at_rate_one(tier: str, eta_z: float, steps: int, every: int) -> np.ndarray:
    """The same logits at learning rate 1, at every so many steps."""
    flow, data = scan_flow(tier, eta_z=eta_z), reference().expected()
    model, optimiser = reference().network(outputs=flow.outputs), _optimiser(flow, data, eta_z)(1.0)
    options = {"observe": lambda m: m.z[0, OWN], "every": every}
    return np.asarray(train(model, nets.cross_entropy, data, optimiser, steps, **options).observed)


@claim(
    "Gradient descent approaches each tier's own flow at first order in the learning rate. The real network "
    "is tier C, over the K next tokens tier B. Only a preconditioned decoder is the paper's tier A.",
    source="Lemma 1 and the preconditioning that Lemma 3 amounts to; tiers B and C are derived here",
    assumptions=(*ALIKE, "η_Z = 0.1 η_Y; heavy ball at (1 − β) times the rate"),
    tex=r"\| z_\eta(t) - z(t) \| = O(\eta)",
    flow=ScanSnap,
)
def three_tiers(setting: Setting) -> Evidence:
    eta_z, rates = 0.1, halving_rates(0.125, 5)  # up to 2
    end = setting.pick(smoke=200, laptop=2000, paper=20_000)
    found = [_compared(tier, eta_z, rates, float(end)).evidence(f"z, tier {tier}", order=1) for tier in "ABC"]
    if setting.scale == "smoke":
        return evidence(*found)
    # Heavy ball forgets its start within ten steps, which must be short.
    ball = _compared("B", eta_z, rates / 4, end / 4, 0.9).evidence("z, tier B by heavy ball 0.9", order=1)
    every, at = end // 200, np.unique(np.geomspace(1, 200, 41).round().astype(int))
    ts = every * at
    flows = np.stack([-logits(scan_flow(tier, eta_z=eta_z), ts)[:, 0] for tier in "ABC"], axis=1)
    descent = np.stack([-_at_rate_one(tier, eta_z, end, every)[at, 0] for tier in "ABC"], axis=1)
    title = "the common token at learning rate 1, tiers A, B, C (dark to light)"
    seen, theory = {"descent": descent}, {"flow": flows}
    each = "; ".join(f"{x} {law:.3f}, {gd:.3f}" for x, law, gd in zip("ABC", flows[-1], descent[-1], strict=True))
    return evidence(
        *found,
        ball,
        panels=[panel(title, (TIME, ts), y="−z_common", observed=seen, predicted=theory, log="xy")],
        remarks=[f"−z_common at t = {ts[-1]:g}, flow and descent at learning rate 1: {each}."],
    )


@claim(
    "Sequences of finite length T separate tokens more than the limit T → ∞ does, by a bias of order 1/T.",
    source="Lemma 2 takes the limit; Lemma 18 bounds its fluctuations by 1/√T, its bias is measured here",
    assumptions=(
        ASSUMED,
        CLASSES_ALIKE,
        TIER_B.said("tier B, batches of 128 sampled sequences, η_Z = 0.1 η_Y, t = 200"),
    ),
    tex=r"E[z_T] / z_\infty - 1 = O(1/T)",
    flow=ScanSnap,
)
def finite_length(setting: Setting) -> Evidence:
    lengths = setting.pick(smoke=(33, 65, 129, 257), laptop=(33, 65, 129, 257), paper=(33, 65, 129, 257, 513, 1025))
    seeds, steps, optimiser = setting.pick(smoke=16, laptop=16, paper=64), 200, nets.sgd(1.0, eta_z=0.1)

    @jax.jit
    def run(data, keys):
        model, observe = data.network(outputs=CLASSES), lambda m: m.z[0]

        def descend(source, key=None):
            return train(model, nets.cross_entropy, source, optimiser, steps, key=key, observe=observe).observed[-1]

        sampled = [jax.vmap(lambda key, n=n: descend(data.contexts(128, n), key))(keys) for n in lengths]
        return descend(data.expected()), jnp.stack(sampled)

    exact, sampled = map(np.asarray, run(reference(), jax.random.split(setting.key, seeds)))
    keys, top = np.array(lengths) - 1, slice(OWN[-1], None, OWN[-1])  # one a class
    excess = {
        "common token": sampled[..., 0].mean(axis=1) / exact[0] - 1,
        "most frequent distinct token": sampled[..., top].mean(axis=(1, 2)) / exact[top].mean() - 1,
    }
    # Lemma 18's fluctuations, of order ½: over all tokens, else too few samples tell the two orders apart.
    spread = np.sqrt(np.mean((sampled.std(axis=1, ddof=1) / exact) ** 2, axis=1))
    axis, wrong, options = ("1/(T − 1)", 1 / keys), {"spread over seeds": spread}, {"order": 1, "tolerance": 0.15}
    columns = zip(keys, *excess.values(), strict=True)
    each = "; ".join(f"{common:+.1%}, {distinct:+.1%} at {n} tokens" for n, common, distinct in columns)
    return evidence(
        scales("bias of z", axis, excess, wrong, y=f"relative bias, {seeds} seeds", **options),
        remarks=[f"Excess of z_common and of the most frequent distinct token: {each}."],
    )


def _peak_time(ts, values):
    """When a curve is largest: the top of the parabola in ln t through its three highest neighbours."""
    middle = jnp.clip(jnp.argmax(values), 1, values.shape[0] - 2)
    x = jax.lax.dynamic_slice(jnp.log(ts), (middle - 1,), (3,))
    y = jax.lax.dynamic_slice(values, (middle - 1,), (3,))
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curvature = (right - left) / (x[2] - x[0])
    top = (x[0] + x[1]) / 2 - left / jnp.where(curvature < 0, 2 * curvature, -1)
    return jnp.exp(jnp.where(curvature < 0, jnp.clip(top, x[0], x[2]), x[1]))


def _diagram(data: nets.SequenceClasses, eta_y, eta_z, steps: int):
    """For every pair of learning rates, by theory and by descent, each of shape `(2, η_Y, η_Z)`: when the gradient
    that reaches attention is largest, when attention moves fastest, and the final entropy."""
    ts = jnp.asarray(np.geomspace(0.02, steps, 120), data.table.dtype)

    def cell(eta_y, eta_z):
        flow = ScanSnap(data.table, outputs=data.probability.shape[1], eta_y=eta_y, eta_z=eta_z)
        gradient = lambda y: jnp.linalg.norm(flow.residual(y) @ y.y.T)
        end = lambda z: jnp.mean(entropy(flow.attention(z[-1])))
        ys = solve(flow, flow.zero(), ts, rtol=1e-5, atol=1e-7, throw=False).ys
        assert isinstance(ys, YZ)
        speed = jax.vmap(lambda y: jnp.linalg.norm(flow(0.0, y).z))(ys)
        theory = _peak_time(ts, jax.vmap(gradient)(ys)), _peak_time(ts, speed), end(ys.z)

        optimiser, expected = nets.sgd(1.0, eta_y=eta_y, eta_z=eta_z), data.expected()
        observe = lambda m: (m.z, gradient(YZ(m.y, m.z)))
        run = train(data.network(), nets.cross_entropy, expected, optimiser, steps, observe=observe, every=1)
        (z, size), at = run.observed, jnp.arange(1, steps + 1, dtype=ts.dtype)
        moved = jnp.linalg.norm(jnp.diff(z, axis=0).reshape(steps, -1), axis=1)
        practice = _peak_time(at, size[1:]), _peak_time(at - 0.5, moved), end(z)
        return [jnp.stack(both) for both in zip(theory, practice, strict=True)]

    return jax.vmap(jax.vmap(cell, (None, 0), 1), (0, None), 1)(eta_y, eta_z)


@claim(
    "Attention snaps when the gradient that reaches it is largest. The time of this is set by η_Y: it goes as η_Y^−1 "
    "and η_Z^0 over two decades of each, in theory and in descent alike.",
    source="Theorem 4's t₀ = 2K ln M/η_Y, for tier C, which has no closed form; the diagram is measured here",
    assumptions=(*FLOW, "five classes, ten common and ten distinct tokens each", "descent at learning rate 1"),
    tex=r"t_{\mathrm{snap}} \propto \eta_Y^{-1} \eta_Z^0",
    flow=ScanSnap,
)
def phase_diagram(setting: Setting) -> Evidence:
    number, steps = setting.pick(smoke=(4, 300), laptop=(9, 1000), paper=(25, 10_000))
    rates = np.geomspace(setting.pick(smoke=0.3, laptop=0.1, paper=0.1), 10.0, number)
    data = reference() if setting.scale == "smoke" else nets.distinct_and_common(CLASSES, dtype=setting.dtype)
    found = jax.jit(lambda data, grid: _diagram(data, grid, grid, steps))(data, jnp.asarray(rates))
    snap, fastest, dense = (np.asarray(x, float) for x in found)
    slow, of_z = rates <= 1.01, ("η_Z", rates)  # slow: where descent is close to its flow
    # The exponents of times in η_Y and in η_Z, by least squares over the grid.
    design = np.stack([np.ones(number**2), np.repeat(np.log(rates), number), np.tile(np.log(rates), number)], axis=1)
    of_times = lambda times: np.linalg.lstsq(design, np.log(times).reshape(2, -1).T, rcond=None)[0][1:].T
    by_snap, by_speed = of_times(snap), of_times(fastest)
    name, wrong = "exponents of the snap time in η_Y, η_Z, from −1, 0", "attention's fastest moment"
    off: dict[str, Any] = dict(zip(("theory", "descent"), by_snap - [-1, 0], strict=True))
    wrongly: dict[str, Any] = dict(zip((f"theory: {wrong}", f"descent: {wrong}"), by_speed - [-1, 0], strict=True))
    clock = lambda times: (rates[:, None] * times)[slow].T
    scaled = "η_Y × snap time, theory and descent, η_Y ≤ 1"
    options = {"within": 0.05, "measure": relative, "y": "η_Y t, a line for each η_Y", "log": "xy"}
    words, span = [f"{rate:.3g}" for rate in rates], lambda values: f"{values.min():.3g} … {values.max():.3g}"
    axes, (snaps, moves) = (("η_Z", words), ("η_Y", words)), (by_snap[0][1], by_speed[0][1])
    printed, corrected = "larger η_Z leads to a faster phase transition", "η_Y sets its time; η_Z sets its height"
    measure = "error of the exponent of η_Z: 0, and that of attention's fastest moment"
    return evidence(
        vanishes(name, off, wrongly, within=0.1),
        agrees(scaled, of_z, clock(snap[1]), clock(snap[0]), {wrong: clock(fastest[0])}, **options),
        agrees("final entropy, η_Y ≤ 1 (nats)", None, dense[1][slow], dense[0][slow], within=0.01, measure=absolute),
        panels=[
            heatmap("descent: time of snapping", *axes, snap[1], z_label=TIME, log="z"),
            heatmap("descent: final entropy", *axes, dense[1], z_label="nats"),
        ],
        remarks=[
            f"η_Y × snap time lies in {span(snap[0] * rates[:, None])} over the whole grid in theory, η_Y × "
            f"attention's fastest moment in {span(fastest[0] * rates[:, None])} (exponent in η_Z {moves:.2f}): for a "
            "large η_Z attention has done most of its moving before the snap.",
            f"Descent at η_Y = {rates[-1]:g} snaps at {span((snap[1] / snap[0])[-1])} of the flow's time. The "
            f"largest η_Y leaves the entropy {dense[0, -1, 0] - dense[0, 0, 0]:.3f} higher at η_Z = {rates[0]:g}.",
            f"The snap time goes as η_Z^{snaps:.2f}. The slides' statement is true of attention's fastest moment only, "
            f"η_Z^{moves:.2f}.",
        ],
        errata=[Erratum("slides", printed, corrected, float(abs(snaps)), float(abs(moves - snaps)), measure)],
    )


LOSSES = {0: 3.526, 2: 2.368, 4: 0.733, 10: 0.0130}  # of the authors' log, η_Y = 1, one seed


@claim(
    "On Syn-Small the losses of the authors' log are met within 0.02. Attention among distinct tokens becomes monotone "
    "in P(l|n), and a larger η_Y leaves it denser.",
    source="Fig. 4 and the authors' log: K = 2, two queries, M = 34, batch 128 of 128 tokens, heavy ball 0.9, η_Z = 1",
    assumptions=("the released command's setting: the text says M = 30 and until convergence",),
    tex=r"H(\eta_Y = 10) > H(\eta_Y = 1)",
)
def figure_4(setting: Setting) -> Evidence:
    seeds = setting.pick(smoke=4, laptop=10, paper=100)
    keys, etas = jax.random.split(setting.key, seeds), jnp.asarray([[1, 1], [10, 1], [10, 10]], jnp.float32)
    data = nets.distinct_and_common(2, 2, dtype=jnp.float32)  # as the authors' runs
    steps, sampler, expected, model = 100, data.contexts(128, 128), data.expected(), data.network()

    def run(eta, key):
        """Attention of each class and loss at every other step."""
        test = sampler(jax.random.fold_in(key, steps))
        observe = lambda m: (jax.vmap(m.attend)(expected.x, expected.query), nets.cross_entropy(m, test))
        optimiser = nets.sgd(1.0, eta_y=eta[0], eta_z=eta[1], momentum=0.9)
        return train(model, nets.cross_entropy, sampler, optimiser, steps, key=key, observe=observe, every=2).observed

    runs = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    attention, loss = (np.asarray(x, float) for x in runs(etas, keys))
    at, published = map(np.array, zip(*LOSSES.items(), strict=True))
    ours, faster, _ = loss.mean(axis=1)[:, at // 2]
    first, distinct = attention[:2, :, -1, 0, 10:20].mean(axis=1), attention[..., 10:]  # first: of class 0, at the end
    dense = np.asarray(entropy(distinct / distinct.sum(axis=-1, keepdims=True))).mean(axis=-1)
    final, start = dense[:, :, -1], dense[0, :, 0].mean()
    name, wrong = "entropy at η_Y = 10 less that at η_Y = 1", {"η_Z = 10 as well": final[2] - final[0]}
    title = f"attention of class 0, mean of {seeds} seeds"
    token, iteration = "token: common, then distinct by frequency", ("iteration", np.arange(0, 25, 2))
    maps = [
        heatmap(f"{title}, η_Y = {eta}", (token, np.arange(20)), iteration, z, z_label="c", limits=(0, 0.19))
        for eta, z in zip((1, 10), attention[:2, :, :13, 0, :20].mean(axis=1), strict=True)
    ]
    axis, right, fast = ("iteration", at), {"ours, η_Y = 1": ours}, {"ours, η_Y = 10": faster}
    printed = "η_Z and η_Y large → B large (sparser)", "at a fixed ratio only; at fixed η_Z a larger η_Y is denser"
    against = float(np.mean(final[1] <= final[0]))
    return evidence(
        agrees("authors' losses, nats", axis, published, right, fast, within=0.02, measure=absolute, log="y"),
        at_least("steps of the final attention to more frequent tokens", np.diff(first), 0.0),
        mean(name, final[1] - final[0], wrong, at_least=0),
        panels=maps,
        remarks=[
            f"Entropy over distinct tokens: {start:.3f} at the start; at the end {final[0].mean():.3f} (η_Y = 1) and "
            f"{final[1].mean():.3f} (η_Y = 10), with a spread over seeds of {final[0].std():.3f} and "
            f"{final[1].std():.3f}. Loss at iteration 20 and 98: {loss[0, :, 10].mean():.2g}, "
            f"{loss[0, :, 49].mean():.2g} (log, one seed: 2.05e-4, 2.2e-5)."
        ],
        errata=[Erratum("slides", *printed, against, 1 - against, "share of seeds against it")],
    )


ETAS, FACTORS = (0.5, 1.0, 2.0, 3.0), (1.0, 2.0, 5.0, 10.0)
FIGURE_6 = {  # the authors' table by number of queries, entropy over distinct tokens: for each η_Z, all η_Y/η_Z
    1: "1.971 2.007 2.066 2.092 1.871 1.937 2.022 2.053 1.699 1.810 1.934 1.900 1.551 1.708 1.786 1.825",
    3: "2.019 1.988 2.031 2.063 1.963 1.920 1.982 2.024 1.842 1.809 1.899 1.955 1.737 1.715 1.821 1.839",
    5: "2.026 1.994 2.020 2.055 1.995 1.931 1.971 2.014 1.906 1.816 1.884 1.926 1.817 1.718 1.802 1.831",
    10: "2.033 2.012 2.018 2.051 2.027 1.975 1.976 2.015 1.990 1.888 1.899 1.947 1.940 1.805 1.829 1.875",
}


def figure_6_task(queries: int) -> nets.SequenceClasses:
    """Syn-Medium: two next tokens a query, in float32 as the authors' runs."""
    return nets.distinct_and_common(2 * queries, queries, dtype=jnp.float32)


def figure_6_cells(tasks, keys) -> list:
    """The final entropy over distinct tokens, shape `(seeds, η_Z, η_Y/η_Z)` for each task, all cells and seeds in one
    call. Cells of one seed share their batches, as the authors' did."""
    etas, factors = (jnp.asarray(x, jnp.float32) for x in (ETAS, FACTORS))

    def cell(data, key, eta_z, factor):
        start, draw = jax.random.split(key)
        model = data.network(init_scale=data.probability.shape[1] ** -0.5, key=start)
        expected, sampler = data.expected(), data.contexts(128, 128)

        def observe(m):
            p = jax.vmap(m.attend)(expected.x, expected.query)[:, 10:]
            return jnp.mean(entropy(p / jnp.sum(p, axis=1, keepdims=True)))

        optimiser = nets.sgd(1.0, eta_y=eta_z * factor, eta_z=eta_z, momentum=0.9)
        return train(model, nets.cross_entropy, sampler, optimiser, 100, key=draw, observe=observe).observed[-1]

    over_etas = jax.vmap(jax.vmap(cell, (None, None, None, 0)), (None, None, 0, None))
    return [jax.vmap(over_etas, (None, 0, None, None))(data, keys, etas, factors) for data in tasks]


@claim(
    "Each cell of Fig. 6's entropy table is met within 0.02 and three standard errors where seeds agree (standard "
    "deviation below 0.05). Other cells are met within two standard deviations. Entropy falls with η_Z, and rises with "
    "η_Y beyond η_Y/η_Z = 2.",
    source="Fig. 6 and the data file behind it; entropy over renormalised distinct tokens is our reading of it",
    assumptions=(
        "Syn-Medium, uniform initial values, heavy ball 0.9, 100 steps, float32",
        "10 seeds, other than theirs",
    ),
    tex=r"\partial H / \partial \eta_Z < 0,\quad H(\eta_Y = 10\, \eta_Z) > H(\eta_Y = 2\, \eta_Z)",
)
def figure_6(setting: Setting) -> Evidence:
    numbers = setting.pick(smoke=(5,), laptop=(1, 3, 5, 10), paper=(1, 3, 5, 10))
    seeds = setting.pick(smoke=4, laptop=10, paper=40)
    cells = jax.jit(figure_6_cells)([figure_6_task(n) for n in numbers], jax.random.split(setting.key, seeds))
    ours = np.asarray(cells, float)
    published = np.array([FIGURE_6[n].split() for n in numbers], float).reshape(-1, 4, 4)
    middle, std = ours.mean(axis=1), ours.std(axis=1, ddof=1)
    close, gap, several = std < 0.05, np.abs(middle - published), middle[np.array(numbers) >= 3]
    # The last is that of the difference: the published means are of ten seeds.
    tight = lambda table: (np.abs(middle - table) / (0.02 + 3 * std * np.sqrt(1 / seeds + 1 / 10)))[close]
    wide = np.append(0, (gap / (2 * std))[~close])
    by_factor, y = ("η_Y/η_Z", np.array(FACTORS)), "nats; η_Z = 0.5, 1, 2, 3 from the top"
    titles, label = [f"queries: {n}; entropy over distinct tokens" for n in numbers], f"ours, {seeds} seeds"
    panels = [
        panel(title, by_factor, y=y, observed={label: a.T}, predicted={"published": b.T}, log="x")
        for title, a, b in zip(titles, middle, published, strict=True)
    ]
    tightly = f"{close.sum()} cells of std < 0.05: |ours − published| over 0.02 + 3 standard errors"
    exchanged = {"table with its axes exchanged": tight(published.swapaxes(1, 2))}
    by_eta, by_ratio = np.diff(middle, axis=1), {"to a larger η_Y/η_Z": np.diff(middle, axis=2)}
    growth, wrong = middle[:, :, 3] - middle[:, :, 1], {"η_Z = 1 to 3": middle[:, 3] - middle[:, 1]}
    fall = several[:, :, 0] - several[:, :, 1]
    return evidence(
        at_most(tightly, tight(published), 1.0, exchanged),
        at_most(f"{(~close).sum()} other cells: |ours − published| over 2 std", wide, 1.0),
        at_most("steps of entropy to a larger η_Z", by_eta, 0.0, by_ratio),
        at_least("rise of entropy, η_Y/η_Z = 2 to 10", growth, 0.0, wrong),
        at_least("fall of entropy from η_Y/η_Z = 1 to 2, three queries or more", fall, 0.0),
        panels=panels,
        remarks=[
            f"{np.sum(gap <= 0.02)} of {gap.size} cells lie within 0.02 of the published mean; the largest difference "
            f"is {gap.max():.3f}, at a spread over seeds of {std.flat[gap.argmax()]:.3f}."
        ],
    )
