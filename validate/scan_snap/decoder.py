"""The decoder of Scan and Snap under attention that stands still: Lemmas 5 to 9, Theorem 1, and the other two tiers."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ...dynamics import solve
from ...dynamics.scan_snap import Decoder, ScanSnap, SymmetricDecoder, SymmetricLogits, backprop_coefficients
from ...nets import joma, train
from ...nets import scan_snap as nets
from ..checks import absolute, agrees, at_least, at_most, evidence, relative, rounding, solver, vanishes
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ._shared import ASSUMED, CLASSES, DISTINCT, LONG, OUTPUTS, TIME, follow, log_times, reference, scan_flow


@claim(
    "Under stochastic gradient descent with one sample a step, the decoder of a class after s visits is "
    "w_n = (M−1) h*(s) ζ_n, with h* from its recursion.",
    source="Lemmas 5 and 6",
    assumptions=(ASSUMED, LONG, "classes share no token, FᵀF = I"),
    tex=r"w_n(s) = (M-1)\, h^*(s)\, \zeta_n",
    flow=Decoder,
)
def decoder_sgd(setting: Setting) -> Evidence:
    steps, every, eta = setting.pick(smoke=500, laptop=2000, paper=20_000), 25, 0.5
    data = nets.distinct_and_common(CLASSES, distinct=np.asarray(DISTINCT), common=np.zeros(0))
    decoder = Decoder(OUTPUTS, 1, jnp.asarray(eta, setting.dtype))

    @jax.jit
    def run(model, data, key):
        sampler = joma.minibatch(data, 1)
        logits = lambda m: jax.vmap(m)(data.x, data.query)
        descent = nets.sgd(eta, eta_z=eta)
        result = train(model, joma.cross_entropy, sampler, descent, steps, key=key, observe=logits, every=every)
        labels = jax.vmap(lambda n: sampler(jax.random.fold_in(key, n)).label[0])(jnp.arange(steps))
        curves = decoder.visits(steps), decoder.exact(0.0, jnp.arange(steps + 1.0))
        return result.observed, result.steps, labels, *curves, result.model.z

    w, at, labels, h, smooth, z = map(np.asarray, run(data.network(outputs=OUTPUTS), data.expected(), setting.key))
    visits = np.array([[np.sum(labels[:n] == c) for c in range(CLASSES)] for n in at])
    zeta = OUTPUTS / (OUTPUTS - 1) * (np.eye(CLASSES, OUTPUTS) - 1 / OUTPUTS)
    law = lambda h: (OUTPUTS - 1) * h[visits][:, :, None] * zeta
    wrong, own, exact = {"the continuous h": law(smooth)}, np.arange(CLASSES), rounding(4000)
    right = lambda x: x[:, own, own]
    label, wrongly = "logit w_nn of the right next token, five classes", {"the continuous h": right(law(smooth))}
    return evidence(
        agrees(f"w_n, {steps} steps, η = {eta}", None, w, law(h), wrong, within=exact, measure=absolute),
        agrees(label, ("step", at), right(w), right(law(h)), wrongly, within=exact, measure=absolute, y="w_nn"),
        vanishes("attention logits, which must not move", z, within=exact),
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
    widths = np.array([10.0, 100.0, 1000.0, 10000.0])
    decoder = Decoder(jnp.asarray(widths, setting.dtype), 1, 1.0)
    ts, wide = log_times(1e-2, 1e5), 2  # M = 1000
    flow = np.asarray(solve(decoder, jnp.zeros(4, setting.dtype), ts).ys)
    start = np.log(widths)  # t₀'
    late_ts = np.array([2, 20, 200]) * start[wide]  # t₀, 10 t₀, 100 t₀
    close = np.linspace(0.5, 1.5, 20001)
    found = jax.jit(_decoder_curves)(decoder, jnp.asarray(ts), jnp.asarray(late_ts), jnp.asarray(close))
    exact, gamma, late_gamma, (top, height), highest, smooth, discrete = jax.tree.map(np.asarray, found)

    def implicit(factor):
        x = widths * flow
        return (np.exp(x) + factor * x - 1) / (widths * ts[:, None]) - 1

    late, reached = (lambda t, factor: np.log(factor * t) / t), late_gamma[:, wide]
    law, printed = (late(late_ts, factor) for factor in (1000.0, 1.0))  # with ln(Mηt/K), and with ln(ηt/K)
    ratio, error = reached / law, lambda law: float(abs(reached / law - 1)[2])
    early = (gamma / ts[:, None])[:, wide:][ts[:, None] <= 0.1 * start[wide:]]
    gap = (discrete - smooth)[1:]
    wrong = {"M in place of M − 1": implicit(widths)}
    after = lambda values: np.where(ts > start[wide], values, np.nan)
    picture = panel(
        "what reaches attention, M = 1000",
        (TIME + " (K = 1)", ts),
        y="γ",
        observed={"γ": gamma[:, wide]},
        predicted={"early, ηt/K": np.where(ts < start[wide], ts, np.nan), "late": after(late(ts, 1000.0))},
        control={"late, as printed": after(late(ts, 1.0))},
        log="xy",
    )
    return evidence(
        vanishes("implicit law, relative error of the solve", implicit(widths - 1), wrong, within=solver(1000)),
        vanishes("Newton against Lambert's W", _off_lambert(widths, ts, exact), within=rounding(4000)),
        at_least("h* − h, all M and visits", gap, -rounding(4)),
        at_most("M (h* − h)/η", widths * gap, 2.0, x=("visits s", np.arange(1, len(gap) + 1)), log="x"),
        vanishes("M (h* − h) after 20 000 visits, M = 100", 100 * gap[-1, 1], within=1e-3),
        agrees("γ over ηt/K up to t₀'/10, M ≥ 1000", None, early, 1.0, within=0.01, measure=relative),
        agrees(
            "late γ at t = 100 t₀, M = 1000",
            None,
            reached[2:],
            law[2:],
            {"as printed, with ln(ηt/K)": printed[2:]},
            within=0.01,
            measure=relative,
        ),
        agrees("γ's peak against the closed form", None, highest, height, within=1e-4, measure=relative),
        panels=[picture],
        remarks=[
            f"γ over its late law at t₀, 10 t₀, 100 t₀ (M = 1000): {ratio[0]:.3f}, {ratio[1]:.3f}, {ratio[2]:.3f}. "
            f"Its peak is {height[wide]:.3f} at {top[wide] / start[wide]:.3f} t₀'."
        ],
        errata=[
            Erratum(
                "paper, Theorem 1(b)", "late γ with ln(ηt/K)", "ln(Mηt/K), as in Lemma 9", error(law), error(printed)
            )
        ],
    )


def _off_lambert(widths: np.ndarray, ts: np.ndarray, h: np.ndarray) -> np.ndarray:
    """`M h` against Lambert's form, relative, where that does not overflow."""
    c = (widths * ts[:, None] + 1) / (widths - 1)
    lambert = c - np.real(special.lambertw(np.exp(np.minimum(c, 600)) / (widths - 1)))
    return ((lambert - widths * h) / np.maximum(c, 1))[c < 600]


def _decoder_curves(decoder: Decoder, ts, late_ts, near):
    """The closed form and γ at `ts`, γ at `late_ts`, the peak as computed and as found, h, and h*."""
    visits = 20_000
    each = lambda m: Decoder(m, 1, 1.0).visits(visits)
    discrete = jax.vmap(each, out_axes=1)(decoder.outputs)
    smooth = decoder.exact(0.0, jnp.arange(visits + 1, dtype=ts.dtype))
    gamma, peak = jax.vmap(decoder.gamma), decoder.peak()
    highest = jnp.max(gamma(near[:, None] * peak[0]), axis=0)
    return decoder.exact(0.0, ts), gamma(ts), gamma(late_ts), peak, highest, smooth, discrete


def _tables(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Tables of the reference shape: weak and strong common tokens, and one without symmetry."""
    p = np.asarray(reference().table)
    uneven = p * rng.uniform(0.3, 1, p.shape) + 0.05 * rng.random(p.shape)
    return {
        "ρ = 0.02": np.asarray(reference(0.2).table),
        "ρ = 0.14": p,
        "ρ = 0.65": np.asarray(reference(2.0).table),
        "no symmetry": uneven / uneven.sum(axis=1, keepdims=True),
    }


@jax.jit
def _back_propagated(flow: ScanSnap, ys, ts):
    """The gradient that reaches attention, and Theorem 1's, with β corrected, as in eq. 88, and with E' negated as in
    App. D.1; shapes `(times, classes, tokens)`."""
    f = flow.features(flow.zero().z)
    iota, beta = backprop_coefficients(f, OUTPUTS)
    q0 = -OUTPUTS / (OUTPUTS - 1) ** 2
    off = 1 - jnp.eye(CLASSES, dtype=f.dtype)
    e = jnp.eye(CLASSES, dtype=f.dtype) - jnp.linalg.inv(f @ f.T)
    column = jnp.sum(e, axis=0)[None, :] - e  # over k ≠ n, for each n'
    printed = (beta + q0 * (1 - column) + q0 * (1 + column)) * off
    flipped = (-OUTPUTS / (OUTPUTS - 1) * e - q0 * (1 + column)) * off
    gamma = jax.vmap(Decoder(OUTPUTS, CLASSES, jnp.ones((), f.dtype)).gamma)(ts)[:, None, None]
    laws = [gamma * (iota[:, None] * f - b @ f) for b in (beta, printed, flipped)]
    return jax.vmap(lambda y: flow.residual(y) @ y.y.T)(ys), *laws


def _worst_class(real: np.ndarray, law: np.ndarray) -> np.ndarray:
    """The relative error of the gradient of each class."""
    return np.linalg.norm(real - law, axis=2) / np.linalg.norm(real, axis=2)


@claim(
    "Under tier A's preconditioned decoder the gradient that reaches attention is g_n = γ(ι_n f_n − Σ β_nn' f_n').",
    source="Theorem 1, with the sign of eq. 88 corrected",
    assumptions=(ASSUMED, LONG, "attention standing still", "tier A"),
    tex=r"g_n = \gamma \left( \iota_n f_n - \sum_{n' \neq n} \beta_{n n'} f_{n'} \right)",
    flow=ScanSnap,
)
def backprop(setting: Setting) -> Evidence:
    ts, checks, errors = log_times(0.1, 1e4), [], []
    flip = "E' := (I+E)⁻¹ − I"
    words = "β as printed, eq. 88", f"{flip}, App. D.1"
    for name, table in _tables(setting.rng).items():
        flow = scan_flow("A", eta_z=0.0, table=jnp.asarray(table, setting.dtype))
        found = _back_propagated(flow, solve(flow, flow.zero(), ts).ys, jnp.asarray(ts))
        real, law, *others = map(np.asarray, found)
        wrong: dict[str, np.ndarray] = dict(zip(words, others, strict=True))
        # Solves of 1e-10 and 1e-5, and an inverse whose condition grows with ρ.
        close = setting.bound(1e-6, 1e-2)
        checks.append(agrees(f"g_n, {name}", None, real, law, wrong, within=close, measure=_worst_class))
        errors.append([_worst_class(real, one).max(axis=1) for one in (law, *others)])
    right, printed, flipped = np.stack(errors, axis=2)
    picture = panel(
        "error of the back-propagated gradient, four tables",
        (TIME, ts),
        y="relative error, worst class",
        observed={"corrected": np.maximum(right, 1e-17)},
        control=dict(zip(words, (printed, flipped), strict=True)),
        log="xy",
    )
    each = lambda x: ", ".join(f"{error:.2g}" for error in x.max(axis=0))
    off, worst = lambda x: (float(right.max()), float(x.max())), "worst relative error of g_n on four tables"
    return evidence(
        *checks,
        panels=[picture],
        remarks=[f"Error of g_n on the four tables: {each(printed)} with eq. 88, {each(flipped)} with App. D.1's E'."],
        errata=[
            Erratum("paper, eq. 88", "β = q₁E' + q₀(1 + ΣE')", "β = q₁E' − q₀(1 − ΣE')", *off(printed), worst),
            Erratum("paper, App. D.1", flip, "E' = I − (I+E)⁻¹, as its eq. 28 and 70 use it", *off(flipped), worst),
        ],
    )


@claim(
    "On symmetric data the decoder under plain gradient flow is two scalars. With the softmax over the K next tokens "
    "they have a closed form, a_n = (K−1) h_ρ/(1−ρ) ζ_n.",
    source="derived here for tiers B and C; the effective rate (1−ρ)η is the paper's Remark 1, true for M = K only",
    assumptions=(ASSUMED, LONG, "symmetric data, attention standing still"),
    tex=r"a_n = \frac{(K-1)\, h_\rho}{1 - \rho}\, \zeta_n",
    flow=SymmetricDecoder,
)
def symmetric_decoder(setting: Setting) -> Evidence:
    ts = log_times(0.1, 1e4)
    times, one = jnp.asarray(ts, setting.dtype), jnp.ones((), setting.dtype)
    features = np.asarray(scan_flow("B").features(scan_flow("B").zero().z))
    rho = float(features[0] @ features[1])
    # Y = Σ f_n a_nᵀ: a distinct token of class 1 shows a_1 alone.
    full = {tier: follow(scan_flow(tier, eta_z=0.0), ts).y[:, 1, :2] / features[0, 1] for tier in "BC"}
    plain = SymmetricDecoder(rho * one, CLASSES, OUTPUTS)
    scalars = solve(plain, SymmetricLogits(0 * one, 0 * one), ts).ys
    closed = jax.jit(lambda rho: jax.vmap(SymmetricDecoder(rho, CLASSES, CLASSES).from_zero)(times).own)
    u_b, u_rate = np.asarray(closed(rho * one)), np.asarray(closed(0 * one)) / (1 - rho)
    decoder = Decoder(OUTPUTS, CLASSES, one)
    over_gamma = jax.jit(lambda s: jax.vmap(plain.separation)(s) / jax.vmap(decoder.gamma)(times))
    over_e = np.asarray(over_gamma(scalars)) / (rho / ((1 - rho) * (1 + (CLASSES - 1) * rho)))
    apart = panel(
        "how strongly classes are told apart, M = 100",
        (TIME, ts),
        y="β over the paper's E'",
        observed={"tier C (plain network)": over_e},
        predicted={"tier A (paper)": np.ones(len(ts))},
        log="xy",
    )

    def check(name, tier, entry, law, wrong, k, x=None):
        observed = full[tier][:, entry]
        return agrees(name, x, observed, law, wrong, within=solver(k), measure=relative, y="u", log="x")

    own, other, axis = np.asarray(scalars.own), np.asarray(scalars.other), (TIME, ts)
    error = lambda tier: float(np.abs(u_b / full[tier][:, 0] - 1).max())
    off = error("B"), error("C")
    return evidence(
        check("tier B's closed form against the full flow", "B", 0, u_b, {"rate η for (1−ρ)η": u_rate}, 100, axis),
        check("tier C, two scalars: own logit", "C", 0, own, {"tier B's closed form": u_b}, 100, axis),
        check("tier C, two scalars: other logits", "C", 1, other, {}, 1000),
        panels=[apart],
        remarks=[
            f"Tier C's β over E' (M = {OUTPUTS}, K = {CLASSES}, ρ = {rho:.3f}) goes from {over_e[0]:.3f} at "
            f"t = {ts[0]:g} to {over_e[-1]:.2f} at t = {ts[-1]:g}: the signs are the paper's, the size is not."
        ],
        errata=[Erratum("paper, Remark 1", "Σ_{n∈[K]} ζ_n = 0, for any M", "only if K = M_out (tier B)", *off)],
    )
