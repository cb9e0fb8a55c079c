"""The decoder of Scan and Snap under attention that stands still: Lemmas 5 to 9, Theorem 1, and the other two tiers."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from ...dynamics import solve
from ...dynamics.scan_snap import Decoder, ScanSnap, SymmetricDecoder, SymmetricLogits, backprop_coefficients
from ...nets import joma, train
from ...nets import scan_snap as nets
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ..rows import identity
from ._shared import ASSUMED, CLASSES, LONG, OUTPUTS, TIME, follow, log_times, reference, scan_flow


# CONTROL: the continuous h in place of the discrete h*
@claim(
    "Under stochastic gradient descent with one sample a step, the decoder of a class after s visits is "
    "w_n = (M−1) h*(s) ζ_n, with h* from its recursion.",
    source="Lemmas 5 and 6",
    assumptions=(ASSUMED, LONG, "classes share no token, FᵀF = I"),
)
def decoder_sgd(setting: Setting) -> Evidence:
    steps, every, eta = setting.pick(smoke=500, laptop=2000, paper=20_000), 25, 0.5
    data = nets.distinct_and_common(CLASSES, distinct=np.asarray([0.4, 0.6, 0.8, 1.0]), common=np.zeros(0))
    decoder = Decoder(OUTPUTS, 1, jnp.asarray(eta, setting.dtype))

    @jax.jit
    def run(model, data, key):
        sampler = joma.minibatch(data, 1)
        logits = lambda m: jax.vmap(m)(data.x, data.query)
        descent = nets.sgd(eta, eta_z=eta)
        result = train(model, joma.cross_entropy, sampler, descent, steps, key=key, observe=logits, every=every)
        labels = jax.vmap(lambda n: sampler(jax.random.fold_in(key, n)).label[0])(jnp.arange(steps))
        h = decoder.visits(steps)
        return (
            result.observed,
            result.steps,
            labels,
            h,
            jax.vmap(decoder.exact)(jnp.arange(steps + 1.0)),
            result.model.z,
        )

    w, at, labels, h, smooth, z = map(np.asarray, run(data.network(outputs=OUTPUTS), data.expected(), setting.key))
    visits = np.array([[np.sum(labels[:n] == c) for c in range(CLASSES)] for n in at])
    zeta = OUTPUTS / (OUTPUTS - 1) * (np.eye(CLASSES, OUTPUTS) - 1 / OUTPUTS)
    law = lambda h: (OUTPUTS - 1) * h[visits][:, :, None] * zeta
    own = lambda w: w[:, np.arange(CLASSES), np.arange(CLASSES)]
    exact = setting.bound(1e-11, 1e-4)
    return Evidence(
        rows={
            f"w_n − (M−1) h*(N_n) ζ_n, {steps} steps, η = {eta}": identity(w - law(h), exact),
            "attention logits, which must not move": identity(z, exact),
        },
        control={"w_n − (M−1) h(N_n) ζ_n": identity(w - law(smooth), exact)},
        panels=[
            panel(
                "logit of the right next token, five classes",
                ("step", at),
                y="w_nn",
                observed={"network, one sample a step": own(w)},
                predicted={"(M−1) h*(N_n) q₁": own(law(h))},
            ),
            panel(
                "h* and h",
                ("visits s", np.arange(1, steps + 1)),
                y="M h",
                predicted={"M h* (recursion)": OUTPUTS * h[1:]},
                control={"M h (closed form)": OUTPUTS * smooth[1:]},
                log="x",
            ),
        ],
    )


# CONTROL: the factor M − 1 left out of the implicit law; the late γ as printed in Theorem 1(b), with ln(ηt/K)
@claim(
    "h obeys e^{Mh} + (M−1)Mh = Mηt/K + 1; 0 ≤ h* − h ≤ 2η/M; γ grows like ηt/K, peaks, and falls like "
    "K ln(Mηt/K)/(ηt).",
    source="Lemmas 7 to 9; the peak in closed form is derived here",
    assumptions=("attention standing still", "M = 10, 100, 1000, 10 000"),
)
def decoder_law(setting: Setting) -> Evidence:
    widths = np.array([10.0, 100.0, 1000.0, 10000.0])
    decoder = Decoder(jnp.asarray(widths, setting.dtype), 1, 1.0)
    ts = log_times(1e-2, 1e5)
    flow = np.asarray(solve(decoder, jnp.zeros(4, setting.dtype), ts).ys)
    exact, gamma, peak, smooth, discrete = jax.jit(_decoder_curves)(decoder, jnp.asarray(ts, setting.dtype))
    exact, gamma, discrete, smooth = (np.asarray(x, float) for x in (exact, gamma, discrete, smooth))

    def implicit(factor):
        x = widths * flow
        return np.abs((np.exp(x) + factor * x - 1) / (widths * ts[:, None]) - 1)

    # Lambert's form, where it does not overflow.
    c = (widths * ts[:, None] + 1) / (widths - 1)
    lambert = np.where(c < 600, c - np.real(special.lambertw(np.exp(np.minimum(c, 600)) / (widths - 1))), np.nan)
    newton = np.nanmax(np.abs(lambert - widths * exact) / np.maximum(c, 1))
    start = np.log(widths)  # t₀'
    wide = 2  # M = 1000
    late = lambda t, factor=widths[wide]: np.log(factor * t) / t
    at = np.array([2, 20, 200]) * start[wide]  # t₀, 10 t₀, 100 t₀
    gamma_at = np.asarray(jax.jit(jax.vmap(decoder.gamma))(jnp.asarray(at, setting.dtype)), float)[:, wide]
    ratio, printed = gamma_at / late(at), gamma_at[2] / late(at[2], 1.0)
    bound = setting.bound
    early = ts[:, None] <= 0.1 * start
    fine = np.linspace(0.5, 1.5, 20001)[:, None] * np.asarray(peak[0], float)
    curve = np.asarray(jax.jit(jax.vmap(decoder.gamma))(jnp.asarray(fine, setting.dtype)))
    number = np.arange(discrete.shape[0])
    slack = np.minimum(discrete - smooth, 2 * 1.0 / widths - (discrete - smooth))
    return Evidence(
        rows={
            "solve against the implicit law, relative": identity(implicit(widths - 1), bound(1e-6, 1e-3)),
            "Newton against Lambert's W": identity(newton, bound(1e-12, 1e-4)),
            "violation of 0 ≤ h* − h ≤ 2η/M": identity(np.maximum(-slack, 0), bound(1e-15, 1e-6)),
            "M (h* − h) after 20 000 visits, M = 100": identity(100 * (discrete - smooth)[-1, 1], 1e-3),
            "γ/(ηt/K) − 1 up to t = t₀'/10, M ≥ 1000": identity(
                np.where(early, gamma / ts[:, None] - 1, 0)[:, wide:], 0.01
            ),
            "γ over its late law − 1 at t = 100 t₀, M = 1000": identity(ratio[2] - 1, 0.01),
            "γ at its peak against the closed form": identity(curve.max(axis=0) / np.asarray(peak[1]) - 1, 1e-4),
        },
        control={
            "implicit law with M for M − 1": identity(implicit(widths), bound(1e-6, 1e-3)),
            "late γ as printed, at t = 100 t₀": identity(printed - 1, 0.01),
        },
        panels=[
            panel(
                "logits and their closed form, M = 10 … 10 000",
                (TIME + " (K = 1)", ts),
                y="M h",
                observed={"solve": widths * flow},
                predicted={"closed form": widths * exact},
                log="xy",
            ),
            panel(
                "what reaches attention",
                (TIME + " (K = 1)", ts),
                y="γ/M",
                predicted={"γ/M": gamma / widths},
                control={"late law, M = 1000": np.where(ts > start[wide], late(ts) / 1000, np.nan)},
                log="xy",
            ),
            panel(
                "h* − h",
                ("visits s", number[1:]),
                y="M (h* − h)/η, bound 2",
                observed={"M = 10 … 10 000": (widths * (discrete - smooth))[1:]},
                log="x",
            ),
        ],
        remarks=[
            f"γ over its late law at t₀, 10 t₀, 100 t₀ (M = 1000): {ratio[0]:.3f}, {ratio[1]:.3f}, {ratio[2]:.3f}. "
            f"Its peak is {float(peak[1][wide]):.3f} at {float(peak[0][wide]) / start[wide]:.3f} t₀'."
        ],
        errata=[
            Erratum(
                "paper, Theorem 1(b)",
                "late γ with ln(ηt/K)",
                "ln(Mηt/K), as in its Lemma 9",
                f"{abs(ratio[2] - 1):.1g}",
                f"{abs(printed - 1):.2g} relative, at t = 100 t₀",
            )
        ],
    )


def _decoder_curves(decoder: Decoder, ts):
    visits = 20_000
    each = lambda m: Decoder(m, 1, 1.0).visits(visits)
    discrete = jax.vmap(each, out_axes=1)(decoder.outputs)
    smooth = jax.vmap(decoder.exact)(jnp.arange(visits + 1, dtype=ts.dtype))
    return jax.vmap(decoder.exact)(ts), jax.vmap(decoder.gamma)(ts), decoder.peak(), smooth, discrete


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


# CONTROL: β as printed in eq. 88, with + q₀(1 + ΣE')
@claim(
    "Under tier A's preconditioned decoder the gradient that reaches attention is g_n = γ(ι_n f_n − Σ β_nn' f_n').",
    source="Theorem 1, with the sign of eq. 88 corrected",
    assumptions=(ASSUMED, LONG, "attention standing still", "tier A"),
)
def backprop(setting: Setting) -> Evidence:
    ts = log_times(0.1, 1e4)
    decoder = Decoder(OUTPUTS, CLASSES, jnp.ones((), setting.dtype))
    q0 = -OUTPUTS / (OUTPUTS - 1) ** 2

    @jax.jit
    def both(flow: ScanSnap, ys):
        f = flow.features(flow.zero().z)
        iota, beta = backprop_coefficients(f, OUTPUTS)
        e = jnp.eye(CLASSES, dtype=f.dtype) - jnp.linalg.inv(f @ f.T)
        off = 1 - jnp.eye(CLASSES, dtype=f.dtype)
        column = jnp.sum(e, axis=0)[None, :] - e  # over k ≠ n, for each n'
        printed = (beta + q0 * (1 - column) + q0 * (1 + column)) * off
        real = jax.vmap(lambda y: flow.residual(y) @ y.y.T)(ys)
        gamma = jax.vmap(decoder.gamma)(jnp.asarray(ts, f.dtype))[:, None, None]
        law = lambda beta: gamma * (iota[:, None] * f - beta @ f)
        size = jnp.linalg.norm(real, axis=2)
        error = lambda beta: jnp.max(jnp.linalg.norm(real - law(beta), axis=2) / size, axis=1)
        flipped = (-OUTPUTS / (OUTPUTS - 1) * e - q0 * (1 + column)) * off
        return error(beta), error(printed), error(flipped), size[:, 0]

    results = {}
    for name, table in _tables(setting.rng).items():
        flow = scan_flow("A", eta_z=0.0, table=jnp.asarray(table, setting.dtype))
        results[name] = [np.asarray(x) for x in both(flow, solve(flow, flow.zero(), ts).ys)]
    exact = setting.bound(1e-6, 1e-2)
    right, wrong, flipped = (np.stack([r[i] for r in results.values()], axis=1) for i in (0, 1, 2))
    return Evidence(
        rows={f"g_n, relative, {name}": identity(r[0], exact) for name, r in results.items()},
        control={f"β as printed, {name}": identity(r[1], exact) for name, r in results.items()},
        panels=[
            panel(
                "error of the back-propagated gradient, four tables",
                (TIME, ts),
                y="relative error, worst class",
                observed={"corrected": np.maximum(right, 1e-17)},
                control={"as printed": wrong},
                log="xy",
            ),
            panel(
                "its size",
                (TIME, ts),
                y="‖g_1‖",
                observed={"tier A": np.stack([r[3] for r in results.values()], axis=1)},
                log="xy",
            ),
        ],
        errata=[
            Erratum(
                "paper, eq. 88",
                "β = q₁E' + q₀(1 + ΣE')",
                "β = q₁E' − q₀(1 − ΣE')",
                f"{right.max():.1g}",
                f"{wrong.max(axis=0).min():.2g} to {wrong.max():.2g} relative error of g_n",
            ),
            Erratum(
                "paper, App. D.1",
                "E' := (I+E)⁻¹ − I",
                "E' = I − (I+E)⁻¹, as its eq. 28 and 70 use it",
                f"{right.max():.1g}",
                f"{flipped.max(axis=0).min():.2g} to {flipped.max():.2g}",
            ),
        ],
    )


# CONTROL: the rate η in place of (1−ρ)η; tier B's closed form for tier C
@claim(
    "On symmetric data the decoder under plain gradient flow is two scalars; with the softmax over the K "
    "next tokens they have a closed form, a_n = (K−1) h_ρ/(1−ρ) ζ_n.",
    source="derived here for tiers B and C; the effective rate (1−ρ)η is the paper's Remark 1, true for M = K only",
    assumptions=(ASSUMED, LONG, "symmetric data, attention standing still"),
)
def symmetric_decoder(setting: Setting) -> Evidence:
    ts = log_times(0.1, 1e4)
    full = {tier: follow(scan_flow(tier, eta_z=0.0), ts) for tier in "BC"}
    rho = float(np.sum(np.asarray(scan_flow("B").features(scan_flow("B").zero().z))[:2, 0].prod()))
    zero = SymmetricLogits(jnp.zeros((), setting.dtype), jnp.zeros((), setting.dtype))
    small = {tier: SymmetricDecoder(rho, CLASSES, outputs) for tier, outputs in (("B", CLASSES), ("C", OUTPUTS))}
    scalars = solve(small["C"], zero, ts).ys
    closed = jax.jit(lambda d, ts: jax.vmap(d.from_zero)(ts))
    times = jnp.asarray(ts, setting.dtype)
    b = closed(small["B"], times)
    plain_rate = closed(SymmetricDecoder(0.0, CLASSES, CLASSES), times)
    u_c = np.asarray(scalars.own)
    u_b, u_rate = np.asarray(b.own), np.asarray(plain_rate.own) / (1 - rho)
    # Y = Σ f_n a_nᵀ: a distinct token of class 1 shows a_1 alone.
    f = np.asarray(scan_flow("B").features(scan_flow("B").zero().z))[0, 1]
    own = {tier: full[tier].y[:, 1, 0] / f for tier in "BC"}
    other = {tier: full[tier].y[:, 1, 1] / f for tier in "BC"}
    beta = np.asarray(jax.jit(jax.vmap(small["C"].separation))(scalars))
    gamma = np.asarray(jax.jit(jax.vmap(Decoder(OUTPUTS, CLASSES, jnp.ones((), setting.dtype)).gamma))(times))
    e = rho / ((1 - rho) * (1 + (CLASSES - 1) * rho))
    over_e = beta / gamma / e
    relative = lambda law, real: np.abs(law - real) / np.abs(real)
    exact = setting.bound(1e-8, 1e-3)
    return Evidence(
        rows={
            "tier B, closed form against the full flow, relative": identity(relative(u_b, own["B"]), exact),
            "tier C, two scalars against the full flow: own": identity(relative(u_c, own["C"]), exact),
            "tier C: other": identity(relative(np.asarray(scalars.other), other["C"]), setting.bound(1e-7, 1e-2)),
        },
        control={
            "tier B with the rate η": identity(relative(u_rate, own["B"]), exact),
            "tier B's closed form for tier C": identity(relative(u_b, own["C"]), exact),
        },
        panels=[
            panel(
                "what a class adds to its own logit",
                (TIME, ts),
                y="u",
                observed={"tier B, full flow": own["B"], "tier C, full flow": own["C"]},
                predicted={"closed form (B)": u_b, "two scalars (C)": u_c},
                control={"rate η in place of (1−ρ)η": u_rate},
                log="x",
            ),
            panel(
                "how strongly classes are told apart, M = 100",
                (TIME, ts),
                y="β over the paper's E'",
                observed={"tier C (plain network)": over_e},
                predicted={"tier A (paper)": np.ones(len(ts))},
                log="xy",
            ),
        ],
        remarks=[
            f"Tier C's β over E' (M = {OUTPUTS}, K = {CLASSES}, ρ = {rho:.3f}) goes from {over_e[0]:.3f} at "
            f"t = {ts[0]:g} to {over_e[-1]:.2f} at t = {ts[-1]:g}: the signs are the paper's, the size is not."
        ],
        errata=[
            Erratum(
                "paper, Remark 1",
                "Σ_{n∈[K]} ζ_n = 0, for any M",
                "only if K = M_out (tier B)",
                f"{relative(u_b, own['B']).max():.1g}",
                f"{relative(u_b, own['C']).max():.2g} relative error of u, tier C",
            )
        ],
    )
