"""The gradients of Scan and Snap, and its decoder under attention that stands still: Lemma 1 against autodiff, Lemmas 5
to 9, Theorem 1, and the other two tiers."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from ...dynamics import GradientFlow, solve
from ...dynamics.scan_snap import YZ, Decoder, ScanSnap, SymmetricDecoder, SymmetricLogits, backprop_coefficients
from ...nets import joma, train
from ...nets import scan_snap as nets
from ..checks import absolute, agrees, at_least, at_most, evidence, norms, relative, rounding, solver, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ._shared import CLASSES, FLOW, OUTPUTS, TIME, follow, log_times, reference, scan_flow
from .assumptions import CLASSES_ALIKE, NO_COMMON, SLOW, TIER_A


def _lemma_1(model: nets.OneLayerTransformer, sequence: np.ndarray, label: int):
    """Lemma 1 for one sequence, as printed: the ascent direction of Y, and of Z as it reaches W_Q; and the latter
    without the projection."""
    y, z, u, w_k = map(np.asarray, (*model.yz(), model.u, model.w_k))
    one_hot, query = np.eye(len(y)), sequence[-1]
    x = one_hot[sequence[:-1]]
    b = scipy.special.softmax(x @ z[query])
    norm = np.linalg.norm(x.T @ b)
    f = x.T @ b / norm
    residual = one_hot[label] - scipy.special.softmax(y.T @ f)
    back = y @ residual
    by_z = lambda back: np.outer(one_hot[query], x.T @ np.diag(b) @ x @ back / norm)
    w_q = lambda back: u.T @ by_z(back) @ u @ w_k / len(y) ** 0.5  # dZ = U dW_Q W_Kᵀ Uᵀ/√d
    return np.outer(f, residual), w_q(back - f * (f @ back)), w_q(back)


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
    # A random table without symmetry, with several classes a query; each class draws half of the tokens.
    rng, (vocabulary, contextual, number) = setting.rng, (30, 27, 6)
    table = np.zeros((number, vocabulary))
    table[:, :contextual] = rng.random((number, contextual)) * (rng.random((number, contextual)) < 0.5)
    table[:, 0] += 0.1
    classes = nets.SequenceClasses(table / table.sum(axis=1, keepdims=True), contextual + np.arange(number) % 3)
    rng = setting.rng
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), setting.dtype)
    u = jnp.asarray(np.linalg.qr(rng.standard_normal((vocabulary,) * 2))[0], setting.dtype)
    model = nets.OneLayerTransformer(u, *(normal(vocabulary, vocabulary) for _ in range(3)))
    sequences, labels = jax.jit(lambda key: classes.sequences(8, 12)(key))(setting.key)
    one = lambda model, sequence, label: nets.sequence_loss(model, (sequence[None], label[None]))
    slope = jax.jit(jax.vmap(jax.grad(one), (None, 0, 0)))(model, sequences, labels)
    by_y, w_q = -np.asarray(u) @ np.swapaxes(slope.w_v, 1, 2) @ np.asarray(u).T, -np.asarray(slope.w_q)
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
    error = [float(norms(law, w_q).max()) for law in (law_z, without_root)]

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
        errata=[Erratum("slides", "Z = U W_Q W_Kᵀ Uᵀ", "Z = U W_Q W_Kᵀ Uᵀ/√d", *error, measure="relative error")],
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
        errata=[Erratum(where, "Σ_n without a weight", corrected, *error, measure="absolute error of Z")],
    )


@claim(
    "Under stochastic gradient descent with one sample a step, the decoder of a class after s visits is "
    "w_n = (M−1) h*(s) ζ_n, with h* from its recursion.",
    source="Lemmas 5 and 6",
    assumptions=(*FLOW, NO_COMMON.said("classes share no token, FᵀF = I")),
    tex=r"w_n(s) = (M-1)\, h^*(s)\, \zeta_n",
    flow=Decoder,
)
def decoder_sgd(setting: Setting) -> Evidence:
    steps, every, eta = setting.pick(smoke=500, laptop=2000, paper=20_000), 25, 0.5
    data, decoder = reference(()), Decoder(OUTPUTS, 1, jnp.asarray(eta, setting.dtype))

    @jax.jit
    def run(model, data, key):
        sampler = joma.minibatch(data, 1)
        options = {"observe": lambda m: jax.vmap(m)(data.x, data.query), "every": every}
        result = train(model, joma.cross_entropy, sampler, nets.sgd(eta, eta_z=eta), steps, key=key, **options)
        labels = jax.vmap(lambda n: sampler(jax.random.fold_in(key, n)).label[0])(jnp.arange(steps))
        curves = decoder.visits(steps), decoder.exact(0.0, jnp.arange(steps + 1.0))
        return result.observed, result.steps, labels, *curves, result.model.z

    w, at, labels, h, smooth, z = map(np.asarray, run(data.network(outputs=OUTPUTS), data.expected(), setting.key))
    visits = np.array([[np.sum(labels[:n] == c) for c in range(CLASSES)] for n in at])
    zeta = OUTPUTS / (OUTPUTS - 1) * (np.eye(CLASSES, OUTPUTS) - 1 / OUTPUTS)
    right, continuous = ((OUTPUTS - 1) * x[visits][:, :, None] * zeta for x in (h, smooth))
    own = lambda x: x[:, range(CLASSES), range(CLASSES)]
    label, wrong = "logit w_nn of the right next token, five classes", "the continuous h"
    options = {"within": rounding(4000), "measure": absolute}
    return evidence(
        agrees(f"w_n, {steps} steps, η = {eta}", None, w, right, {wrong: continuous}, **options),
        agrees(label, ("step", at), own(w), own(right), {wrong: own(continuous)}, y="w_nn", **options),
        vanishes("attention logits, which must not move", z, within=rounding(4000)),
    )


@claim(
    "h obeys e^{Mh} + (M−1)Mh = Mηt/K + 1, and 0 ≤ h* − h ≤ 2η/M. γ grows like ηt/K, peaks, and falls like "
    "K ln(Mηt/K)/(ηt).",
    source="Lemmas 7 to 9; the peak in closed form is derived here",
    assumptions=("attention standing still", "M = 10, 100, 1000, 10 000"),
    tex=r"e^{Mh} + (M-1) M h = M \eta t / K + 1,\quad 0 \leq h^* - h \leq 2\eta/M",
    flow=Decoder,
)
def decoder_law(setting: Setting) -> Evidence:
    widths, visits, wide = np.array([10.0, 100.0, 1000.0, 10000.0]), 20_000, 2  # M = 1000
    decoder, ts, start = Decoder(jnp.asarray(widths), 1, 1.0), log_times(1e-2, 1e5), np.log(widths)  # start: t₀'
    late_ts = np.array([2, 20, 200]) * start[wide]  # t₀, 10 t₀, 100 t₀

    @jax.jit
    def curves(decoder, ts, late_ts, near):
        """The closed form, h* − h at all visits, γ at both times, and its peak: by its closed form, as found."""
        discrete = jax.vmap(lambda m: Decoder(m, 1, 1.0).visits(visits), out_axes=1)(decoder.outputs)
        gap = discrete - decoder.exact(0.0, jnp.arange(visits + 1, dtype=ts.dtype))
        gamma, (top, height) = jax.vmap(decoder.gamma), decoder.peak()
        highest = jnp.max(gamma(near[:, None] * top), axis=0)
        return decoder.exact(0.0, ts), gap[1:], gamma(ts), gamma(late_ts), top, height, highest

    found = curves(decoder, *map(jnp.asarray, (ts, late_ts, np.linspace(0.5, 1.5, 20001))))
    exact, gap, gamma, late_gamma, top, height, highest = map(np.asarray, found)
    scaled, t = widths * np.asarray(solve(decoder, jnp.zeros(4), ts).ys), ts[:, None]
    implicit = lambda factor: (np.exp(scaled) + factor * scaled - 1) / (widths * t) - 1
    c = (widths * t + 1) / (widths - 1)  # Lambert's form of M h, where that does not overflow
    lambert = c - np.real(scipy.special.lambertw(np.exp(np.minimum(c, 600)) / (widths - 1)))
    off_lambert = ((lambert - widths * exact) / np.maximum(c, 1))[c < 600]
    late, printed = (lambda t, factor=factor: np.log(factor * t) / t for factor in (1000.0, 1.0))  # ln(Mηt/K), ln(ηt/K)
    ratio, end = late_gamma[:, wide] / late(late_ts), late_ts[2:]
    error = [float(abs(late_gamma[2, wide] / law(late_ts[2]) - 1)) for law in (late, printed)]
    before, after = (np.where(where, 1.0, np.nan) for where in (ts < start[wide], ts > start[wide]))
    title, axis, seen = "what reaches attention, M = 1000", (TIME + " (K = 1)", ts), {"γ": gamma[:, wide]}
    laws, control = {"early, ηt/K": before * ts, "late": after * late(ts)}, {"late, as printed": after * printed(ts)}
    wrong, wrongly = {"M in place of M − 1": implicit(widths)}, {"as printed, with ln(ηt/K)": printed(end)}
    early, options = (gamma / t)[:, wide:][t <= 0.1 * start[wide:]], {"within": 0.01, "measure": relative}
    by_visit, at_end = ("visits s", np.arange(1, visits + 1)), "late γ at t = 100 t₀, M = 1000"
    return evidence(
        vanishes("implicit law, relative error of the solve", implicit(widths - 1), wrong, within=solver(1000)),
        vanishes("Newton against Lambert's W", off_lambert, within=rounding(4000)),
        at_least("h* − h, all M and visits", gap, -rounding(4)),
        at_most("M (h* − h)/η", widths * gap, 2.0, x=by_visit, log="x"),
        vanishes("M (h* − h) after 20 000 visits, M = 100", 100 * gap[-1, 1], within=1e-3),
        agrees("γ over ηt/K up to t₀'/10, M ≥ 1000", None, early, 1.0, **options),
        agrees(at_end, None, late_gamma[2:, wide], late(end), wrongly, **options),
        agrees("γ's peak against the closed form", None, highest, height, within=1e-4, measure=relative),
        panels=[panel(title, axis, y="γ", observed=seen, predicted=laws, control=control, log="xy")],
        remarks=[
            f"γ over its late law at t₀, 10 t₀, 100 t₀ (M = 1000): {ratio[0]:.3f}, {ratio[1]:.3f}, {ratio[2]:.3f}. "
            f"Its peak is {height[wide]:.3f} at {top[wide] / start[wide]:.3f} t₀'."
        ],
        errata=[Erratum("paper, Theorem 1(b)", "late γ with ln(ηt/K)", "ln(Mηt/K), as in Lemma 9", error[0], error[1])],
    )


@jax.jit
def _back_propagated(flow: ScanSnap, ys, ts):
    """The gradient that reaches attention, and Theorem 1's, with β corrected, as in eq. 88, and with E' negated as in
    App. D.1; shapes `(times, classes, tokens)`."""
    f = flow.features(flow.zero().z)
    iota, beta = backprop_coefficients(f, OUTPUTS)
    q0, eye = -OUTPUTS / (OUTPUTS - 1) ** 2, jnp.eye(CLASSES, dtype=f.dtype)
    e = eye - jnp.linalg.inv(f @ f.T)
    column = jnp.sum(e, axis=0)[None, :] - e  # over k ≠ n, for each n'
    printed = (beta + q0 * (1 - column) + q0 * (1 + column)) * (1 - eye)
    flipped = (-OUTPUTS / (OUTPUTS - 1) * e - q0 * (1 + column)) * (1 - eye)
    gamma = jax.vmap(Decoder(OUTPUTS, CLASSES, jnp.ones((), f.dtype)).gamma)(ts)[:, None, None]
    laws = [gamma * (iota[:, None] * f - b @ f) for b in (beta, printed, flipped)]
    return jax.vmap(lambda y: flow.residual(y) @ y.y.T)(ys), *laws


@claim(
    "Under tier A's preconditioned decoder the gradient that reaches attention is g_n = γ(ι_n f_n − Σ β_nn' f_n').",
    source="Theorem 1, with the sign of eq. 88 corrected",
    assumptions=(*FLOW, SLOW.said("attention standing still"), TIER_A),
    tex=r"g_n = \gamma \left( \iota_n f_n - \sum_{n' \neq n} \beta_{n n'} f_{n'} \right)",
    flow=ScanSnap,
)
def backprop(setting: Setting) -> Evidence:
    ts, p, rng = log_times(0.1, 1e4), np.asarray(reference().table), setting.rng
    weak, strong, uneven = reference(0.2).table, reference(2.0).table, p * rng.uniform(0.3, 1, p.shape)
    uneven = uneven + 0.05 * rng.random(p.shape)
    uneven = uneven / uneven.sum(axis=1, keepdims=True)
    tables = {"ρ = 0.02": weak, "ρ = 0.14": p, "ρ = 0.65": strong, "no symmetry": uneven}
    flip, size = "E' := (I+E)⁻¹ − I", lambda x: np.linalg.norm(x, axis=2)
    of_class = lambda real, law: size(real - law) / size(real)  # the relative error of each class's gradient
    words, checks, errors = ("β as printed, eq. 88", f"{flip}, App. D.1"), [], []
    for name, table in tables.items():
        flow = scan_flow("A", eta_z=0.0, table=jnp.asarray(table, setting.dtype))
        found = _back_propagated(flow, solve(flow, flow.zero(), ts).ys, jnp.asarray(ts))
        real, law, *others = map(np.asarray, found)
        # Solves of 1e-10 and 1e-5, and an inverse whose condition grows with ρ.
        options = {"within": setting.bound(1e-6, 1e-2), "measure": of_class}
        checks.append(agrees(f"g_n, {name}", None, real, law, dict(zip(words, others, strict=True)), **options))
        errors.append([of_class(real, one).max(axis=1) for one in (law, *others)])
    right, printed, flipped = np.stack(errors, axis=2)
    title, y = "error of the back-propagated gradient, four tables", "relative error, worst class"
    seen, control = {"corrected": np.maximum(right, 1e-17)}, dict(zip(words, (printed, flipped), strict=True))
    off = lambda x: (float(right.max()), float(x.max()), "worst relative error of g_n on four tables")
    corrected = "E' = I − (I+E)⁻¹, as its eq. 28 and 70 use it"
    return evidence(
        *checks,
        panels=[panel(title, (TIME, ts), y=y, observed=seen, control=control, log="xy")],
        errata=[
            Erratum("paper, eq. 88", "β = q₁E' + q₀(1 + ΣE')", "β = q₁E' − q₀(1 − ΣE')", *off(printed)),
            Erratum("paper, App. D.1", flip, corrected, *off(flipped)),
        ],
    )


@claim(
    "On symmetric data the decoder under plain gradient flow is two scalars. With the softmax over the K next tokens "
    "they have a closed form, a_n = (K−1) h_ρ/(1−ρ) ζ_n.",
    source="derived here for tiers B and C; the effective rate (1−ρ)η is the paper's Remark 1, true for M = K only",
    assumptions=(*FLOW, CLASSES_ALIKE.said("symmetric data, attention standing still"), SLOW),
    tex=r"a_n = \frac{(K-1)\, h_\rho}{1 - \rho}\, \zeta_n",
    flow=SymmetricDecoder,
)
def symmetric_decoder(setting: Setting) -> Evidence:
    ts, one = log_times(0.1, 1e4), jnp.ones((), setting.dtype)
    times, axis, features = jnp.asarray(ts), (TIME, ts), np.asarray(scan_flow("B").features(scan_flow("B").zero().z))
    rho = float(features[0] @ features[1])
    # Y = Σ f_n a_nᵀ: a distinct token of class 1 shows a_1 alone.
    full = {tier: follow(scan_flow(tier, eta_z=0.0), ts).y[:, 1, :2] / features[0, 1] for tier in "BC"}
    plain, decoder = SymmetricDecoder(rho * one, CLASSES, OUTPUTS), Decoder(OUTPUTS, CLASSES, one)
    scalars = solve(plain, SymmetricLogits(0 * one, 0 * one), ts).ys
    closed = jax.jit(lambda rho: jax.vmap(SymmetricDecoder(rho, CLASSES, CLASSES).from_zero)(times).own)
    u_b, u_rate = np.asarray(closed(rho * one)), np.asarray(closed(0 * one)) / (1 - rho)
    over_gamma = jax.jit(lambda s: jax.vmap(plain.separation)(s) / jax.vmap(decoder.gamma)(times))
    over_e = np.asarray(over_gamma(scalars)) / (rho / ((1 - rho) * (1 + (CLASSES - 1) * rho)))
    title, y = "how strongly classes are told apart, M = 100", "β over the paper's E'"
    apart, paper = {"tier C (plain network)": over_e}, {"tier A (paper)": np.ones(len(ts))}

    def check(name, tier, entry, law, wrong, k, x=None):
        observed = full[tier][:, entry]
        return agrees(name, x, observed, law, wrong, within=solver(k), measure=relative, y="u", log="x")

    b, c = (float(np.abs(u_b / full[tier][:, 0] - 1).max()) for tier in "BC")
    return evidence(
        check("tier B's closed form against the full flow", "B", 0, u_b, {"rate η for (1−ρ)η": u_rate}, 100, axis),
        check("tier C, two scalars: own logit", "C", 0, scalars.own, {"tier B's closed form": u_b}, 100, axis),
        check("tier C, two scalars: other logits", "C", 1, scalars.other, {}, 1000),
        panels=[panel(title, axis, y=y, observed=apart, predicted=paper, log="xy")],
        remarks=[
            f"Tier C's β over E' (M = {OUTPUTS}, K = {CLASSES}, ρ = {rho:.3f}) goes from {over_e[0]:.3f} at "
            f"t = {ts[0]:g} to {over_e[-1]:.2f} at t = {ts[-1]:g}: the signs are the paper's, the size is not."
        ],
        errata=[Erratum("paper, Remark 1", "Σ_{n∈[K]} ζ_n = 0, for any M", "only if K = M_out (tier B)", b, c)],
    )
