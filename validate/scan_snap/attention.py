"""Attention in Scan and Snap: Lemma 4, tier B's own law, and Theorems 2 to 4, along the full flows."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from ...dynamics import solve
from ...dynamics.scan_snap import Decoder, PhaseTransition, ScanSnap, SlowAttention, SymmetricAttention
from ...nets import scan_snap as nets
from ..checks import absolute, agrees, at_least, at_most, converges, evidence, relative, rounding, solver
from ..claim import Erratum, Evidence, Setting, claim
from ..panels import panel
from ._shared import ALIKE, CLASSES, COMMON, DISTINCT, FLOW, OUTPUTS, OWN, TIME, log_times, logits, reference, scan_flow
from .assumptions import DISTINCT_OR_COMMON, SLOW, TIER_A, TIER_B

RATIOS = np.array([2.5e-4, 5e-4, 1e-3, 2e-3, 1e-2, 0.1, 1.0])  # η_Z/η_Y
START = CLASSES * np.log(OUTPUTS)  # t₀' of `Decoder.linear_until`, for M = 100
RHO = COMMON**2 / (COMMON**2 + np.sum(np.square(DISTINCT)))  # ρ₀ of the reference data


def _slow(eta_z: float, ts: np.ndarray) -> np.ndarray:
    """Lemma 4's attention logits of one class's tokens."""
    flow = scan_flow("A", eta_z=eta_z)
    return np.asarray(solve(SlowAttention(flow), flow.zero().z, ts).ys)[:, 0, OWN]


@claim(
    "Tier A's attention follows Lemma 4's equation, up to an error of first order in η_Z/η_Y. At η_Z/η_Y = 1e-3 the "
    "error stays below 1 % up to t = 1000 t₀'.",
    source="Lemma 4, with the factor 1/K",
    assumptions=(*ALIKE, DISTINCT_OR_COMMON, SLOW, TIER_A.said("tier A, M = 100")),
    tex=r"\dot z = \frac{\eta_Z}{K} \gamma \sum_n f_n \circ \sum_{n' \neq n} \beta_{n n'} (f_n f_n^\top - I) f_{n'}",
    flow=SlowAttention,
)
def lemma_4(setting: Setting) -> Evidence:
    ts, small, wrong = log_times(1, 1000 * START), RATIOS[:4], "as printed, without 1/K"
    full = np.stack([logits(scan_flow("A", eta_z=ratio), ts) for ratio in RATIOS])
    law = np.stack([_slow(ratio, ts) for ratio in RATIOS])
    printed = np.stack([_slow(CLASSES * ratio, ts) for ratio in small])
    checks = []
    for name, token in {"common token": 0, "most frequent distinct token": -1}.items():
        z, path, end = f"z of the {name}", np.s_[2, :, token], np.s_[:4, -1, token]  # RATIOS[2] is 1e-3
        label, one, options = f"{z}, η_Z/η_Y = 1e-3", {wrong: printed[path]}, {"measure": relative, "log": "x"}
        checks += [
            agrees(label, (TIME, ts), full[path], law[path], one, within=0.01, y="z", **options),
            converges(z, ("η_Z/η_Y", small), full[end], law[end], {wrong: printed[end]}, order=1),
        ]
    ends = zip(RATIOS[4:], np.abs(law / full - 1)[4:, -1], strict=True)
    each = "; ".join(f"{e[0]:.0%}, {e[-1]:.0%} at η_Z/η_Y = {ratio:g}" for ratio, e in ends)
    off = (float(np.abs(z[2, :, 0] / full[2, :, 0] - 1).max()) for z in (law, printed))
    measure, memory = "relative error of z_common", "The decoder keeps a memory of the attention it was trained under."
    return evidence(
        *checks,
        remarks=[f"Error of z_common and of the most frequent distinct token: {each}. {memory}"],
        errata=[Erratum("paper, Lemma 4", "ż_m = η_Z γ Σ_n …", "ż_m = (η_Z/K) γ Σ_n …", *off, measure=measure)],
    )


@claim(
    "In tier B (plain gradient flow, softmax over the K next tokens) attention follows "
    "−z_c = ½ ln(1 + (η_Z/η_Y) K²(K−1) h² ρ₀/(1−ρ₀)) over six decades of time.",
    source="derived here; the exponent is e^{2z}, not Theorem 4's e^{4z}",
    assumptions=(*ALIKE, DISTINCT_OR_COMMON, SLOW, TIER_B, "ρ₀ = 0.021 (K = 10) and 0.143 (K = 5)"),
    tex=r"-z_c = \frac{1}{2} \ln\left( 1 + \frac{\eta_Z}{\eta_Y} K^2 (K-1) h^2 \frac{\rho_0}{1-\rho_0} \right)",
    flow=SymmetricAttention,
)
def law(setting: Setting) -> Evidence:
    # By K: the common token's weight; up to which ratio, to which error. The law neglects terms of relative order ρ₀.
    cases = {10: (0.216, 2, 0.007), 5: (COMMON, 3, 0.04)}
    return evidence(*(_law_of(k, *cases[k]) for k in setting.pick(smoke=(5,), laptop=(10, 5), paper=(10, 5))))


def _law_of(k: int, common: float, upto: int, bound: float) -> Evidence:
    """The law, and the scalar equation that it approximates, for one number of classes."""
    ratios, ts = np.array([1e-3, 1e-2, 0.1, 1.0]), log_times(k * 1e-2, k * 1e4)
    rho = common**2 / (common**2 + np.sum(np.square(DISTINCT)))
    table, zero, stack = reference(common, k).table, jnp.zeros(len(OWN)), lambda paths: np.stack([*paths], axis=1)
    flows = [SymmetricAttention(jnp.asarray([common]), jnp.asarray(DISTINCT), k, eta_z=ratio) for ratio in ratios]
    real = stack(logits(ScanSnap(table, eta_z=ratio), ts) for ratio in ratios)
    scalar = stack(solve(flow, zero, ts).ys for flow in flows)
    law_of = jax.jit(lambda flow, ts: jax.vmap(flow.law)(ts))
    formula = stack(law_of(flow, ts) for flow in flows)
    decoder, c0 = Decoder(k, k, 1 - rho), 1 / (k * rho**2)
    theorem_4 = stack(-PhaseTransition(decoder, ratio, c0).exact(0.0, ts) for ratio in ratios)
    name, y = f"K = {k}, ρ₀ = {rho:.3f}", f"−z_c; η_Z/η_Y = {', '.join(f'{ratio:g}' for ratio in ratios)}"

    def check(what, which, within, x=None):
        seen, law, wrong = -real[:, which, 0], formula[:, which], {"Theorem 4": theorem_4[:, which]}
        return agrees(what, x, seen, law, wrong, within=within, measure=relative, y=y, log="xy")

    seen, law, top = real[:, 0], scalar[:, 0], "scalar equation, top distinct token"
    off = np.abs(scalar / real - 1).max(axis=0)
    each = (f"{e[0]:.2%} (z_c) and {e[-1]:.1%} (top distinct) at {r:g}" for r, e in zip(ratios, off, strict=True))
    return evidence(
        *(check(f"law, {name}, η_Z/η_Y = {ratios[i]:g}", slice(i, i + 1), bound) for i in range(upto)),
        check(f"law within ρ₀, {name}, η_Z/η_Y up to 1", slice(None), rho, (TIME, ts)),
        agrees(f"scalar equation, z_c, {name}, 1e-3", None, seen[:, 0], law[:, 0], within=0.005, measure=relative),
        agrees(f"{top}, {name}, 1e-3", None, seen[:, -1], law[:, -1], within=0.01, measure=relative),
        remarks=[f"{name}: the scalar equation is off by {', '.join(each)}."],
    )


@claim(
    "Distinct tokens always gain attention and a single common token always loses it. This holds in all three tiers, "
    "at η_Z/η_Y from 1e-3 to 1.",
    source="Theorem 2 and Corollary 2",
    assumptions=(
        *FLOW,
        DISTINCT_OR_COMMON.said("one common token, or several of equal P(l|n) under one query and a zero start"),
    ),
    tex=r"\dot z_l > 0 \ \mathrm{(distinct)},\quad \dot z_c < 0 \ \mathrm{(common)}",
    flow=ScanSnap,
)
def fates(setting: Setting) -> Evidence:
    ts, ratios = log_times(0.1, 1e4 * CLASSES), (1.0, 0.1, 0.01, 1e-3)
    speeds = jax.jit(jax.vmap(lambda flow, y: flow(0.0, y).z, (None, 0)))
    velocity = lambda flow: np.asarray(speeds(flow, solve(flow, flow.zero(), ts).ys))  # (times, queries, tokens)
    along = {tier: [velocity(scan_flow(tier, eta_z=ratio)) for ratio in ratios] for tier in "ABC"}
    # Syn-Small: ten common tokens of equal frequency, K = 2, M = 30, and one query.
    syn_small = nets.distinct_and_common(2).table
    several = [velocity(ScanSnap(syn_small, outputs=30, eta_z=ratio)) for ratio in ratios]

    at_start = lambda table: SlowAttention(ScanSnap(table, outputs=OUTPUTS))(1.0, jnp.zeros((1, 15)))[0]
    # Three classes with three common tokens, of other frequency in each class, and four distinct ones.
    instances, rng = setting.pick(smoke=200, laptop=200, paper=1000), setting.rng
    common, own = 0.1 * rng.lognormal(0, 1.5, (instances, 3, 3)), rng.uniform(0.5, 1, (3, instances, 4))
    distinct = np.einsum("nm,nij->inmj", np.eye(3), own).reshape(instances, 3, 12)
    tables = np.concatenate([common, distinct], axis=2)
    uneven = np.asarray(jax.jit(jax.vmap(at_start))(jnp.asarray(tables / tables.sum(axis=2, keepdims=True))))
    # How often a common token, of which there are k, does not fall, or a distinct one does not rise.
    wrong_signs = lambda v, k: int(np.sum(v[..., :k] >= 0) + np.sum(v[..., k:] <= 0))
    wrong = {f"three common tokens of unequal P(l|n), {instances} tables": wrong_signs(uneven, 3)}
    counts = {f"tier {tier}, four ratios": wrong_signs(np.stack(found), 1) for tier, found in along.items()}
    counts["Syn-Small, ten common tokens"] = wrong_signs(np.stack(several), 10)
    rising = (uneven[:, :3] > 0).any(axis=1)
    shares = float(np.mean(np.array(list(counts.values())) > 0)), float(rising.mean())
    speed, title = along["C"][0][:, 0, OWN], "tier C (the real network), η_Z = η_Y: speed of attention"
    observed = {"distinct tokens, ż": speed[:, 1:], "common token, −ż": -speed[:, 0]}
    where, measure = "for a single one, or under Corollary 2's symmetry", "share of tables with a wrong sign"
    return evidence(
        at_most("wrong signs of ż", counts, 0, wrong),
        panels=[panel(title, (TIME, ts), y="|ż|", observed=observed, log="xy")],
        remarks=[
            f"With three common tokens of unequal frequency some common token rises at the start in "
            f"{rising.sum()} of {instances} random three-class tables of tier A."
        ],
        errata=[Erratum("slides", "ż < 0 for common tokens", where, *shares, measure=measure)],
    )


@claim(
    "Among distinct tokens r = f_l²/f_l'² − 1 grows as r(0) e^{2(z_l − z_l(0))}: frequent ones dwarf rare ones. "
    "The factor lies between e^{2f²(0)B} and e^{2B}, B = (η_Z/K)∫ξ.",
    source="Theorem 3, with the factor 1/K in B",
    assumptions=(
        *ALIKE,
        DISTINCT_OR_COMMON,
        SLOW.said("Lemma 4's equation; on the full flows to the order of η_Z/η_Y"),
    ),
    tex=r"r = r(0) e^{2 z_l},\quad 2 f_l^2(0) B \leq 2 z_l \leq 2B,\quad B = \frac{\eta_Z}{K} \int \xi \, dt",
    flow=SlowAttention,
)
def relative_gain(setting: Setting) -> Evidence:
    ts, late, ratios = log_times(1, 1000 * START), log_times(0.1, 1e4 * CLASSES), np.array([0.1, 0.01])
    z = _slow(1.0, ts)
    c = np.array([COMMON, *DISTINCT]) * np.exp(np.concatenate([np.zeros((1, len(OWN))), z]))
    f_top = (c / np.linalg.norm(c, axis=1, keepdims=True))[:, -1]  # of the most frequent token, from t = 0
    (gain, law), top = _gain(z), z[:, -1]
    # Simpson's rule in z, two steps to a record, carries B to rounding: dB = dz_l/f_l².
    b = np.asarray(scipy.integrate.cumulative_simpson(1 / f_top**2, x=np.append(0, top), initial=0))[1:]
    lower, as_printed = (f_top[0] ** 2 * x / top for x in (b, CLASSES * b))

    def departure(flow):
        """|r/(r(0)χ) − 1| over ln χ at the last time, for each token compared with."""
        z = logits(flow, late)
        gain, law = _gain(z)
        return np.abs(gain[-1] / law[-1] - 1) / (2 * z[-1, -1])

    over = np.array([[departure(scan_flow(tier, eta_z=r)) / r for r in ratios] for tier in "ABC"])
    # B's quadrature errs by up to 1e-6, and in float32 as the solve does.
    slack, wrong = 1 + setting.bound(1e-6, 1e-3), {"B as printed, without 1/K": as_printed}
    both = (float(max(x.max() - 1, 0)) for x in (lower, as_printed))
    full, measure = {f"tier {x}": over[i, :, 0] for i, x in enumerate("ABC")}, "excess of the lower bound over ln χ"
    corrected = "B_n = (η_Z/K) ∫ξ_n, when t counts steps"
    return evidence(
        agrees("r under Lemma 4", (TIME, ts), gain, law, within=solver(10), measure=relative, y="r", log="x"),
        at_most("2 f²(0) B over ln χ", lower, slack, wrong, x=(TIME, ts), log="x"),
        at_most("ln χ over 2 B", top / b, slack),
        at_least("growth of f of the dominant token", np.diff(f_top), -rounding(8)),
        at_most("|r/(r(0)χ) − 1| over (η_Z/η_Y) ln χ, most and least frequent", full, 3.0),
        remarks=[
            f"On the full flows r of the two most frequent tokens, {(1 / DISTINCT[-2]) ** 2 - 1:.2f} at the start, "
            f"departs by up to {over[:, 1, 2].max():.1f} (η_Z/η_Y) ln χ at η_Z/η_Y = {ratios[1]:g}.",
            f"The lower bound with the printed B is exceeded at all t, by {as_printed.min() - 1:.2g} or more of ln χ.",
        ],
        errata=[Erratum("paper, Theorem 3", "B_n = η_Z ∫ξ_n", corrected, *both, measure=measure)],
    )


def _gain(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r of the most frequent distinct token against the others, and `r(0) e^{2z}`, shapes `(times, others)`."""
    p = np.array(DISTINCT)
    ratio = (p[-1] / p[:-1]) ** 2
    r = ratio * np.exp(2 * (z[:, -1:] - z[:, 1:-1])) - 1
    return r, (ratio - 1) * np.exp(2 * z[:, -1:])


@claim(
    "Under Theorem 4's premise ż = −(η_Z/C₀) γ e^{4z}, B = −z is ¼ ln(1 + 4Γ/C₀): ln t while scanning, "
    "ln ln t after snapping.",
    source="Theorem 4, with the offset −¼ ln C₀ that eq. 14 lacks",
    assumptions=("the premise, which is heuristic: see the remark", "M = 1000, K = 10"),
    tex=r"B = \frac{1}{4} \ln\left( 1 + \frac{4 \Gamma}{C_0} \right)",
    flow=PhaseTransition,
)
def phase_transition(setting: Setting) -> Evidence:
    c0, ts = 50.0, log_times(1e-1, 1e7)
    flow = PhaseTransition(Decoder(1000, 10, 0.5), 0.5, c0)
    b = -np.asarray(solve(flow, jnp.zeros(()), ts).ys)
    curves = jax.jit(lambda ts: (-flow.exact(0.0, ts), jax.vmap(flow.early)(ts), jax.vmap(flow.late)(ts)))
    exact, early, late = (np.asarray(x) for x in curves(jnp.asarray(ts)))
    first, last = ts <= float(flow.decoder.linear_until()), ts >= float(flow.decoder.logarithmic_from())
    eq_14, slides = np.log(c0) / 4 + exact, np.log(c0) + 4 * exact
    printed = {"eq. 14, without the offset": eq_14, "slides, without ¼ and offset": slides}
    # B(5) at η_Z = 0.5 and ν = 10: with ν = η_Y/η_Z, and with ν = η_Z/η_Y.
    at_5 = lambda eta_y: -float(PhaseTransition(Decoder(100, 1, eta_y), 0.5, 1.0).exact(0.0, 5.0))
    drawn, caption = at_5(5.0), at_5(0.05)
    picture, remarks = _beside_lemma_4()
    within = lambda bound: {"within": bound, "measure": absolute}
    off = lambda *laws: [float(np.abs(law - b).max()) for law in laws]
    of_b, of_drawn = "absolute error of B", "difference of B(5) from that of η_Y/η_Z = 10, which is drawn, relative"
    corrected, offset = "¼ of it with (M−1)²/M², minus ¼ ln C₀", "¼ ln(C₀ + 4Γ) − ¼ ln C₀"
    slides_form = "B ~ ln(C₀ + 2K(η_Z/η_Y) ln²(Mη_Y t/K))"
    nu, as_drawn, differ = "ν = η_Z/η_Y", "ν = η_Y/η_Z, as in the text", (0.0, abs(caption / drawn - 1))
    return evidence(
        agrees("B", (TIME, ts), b, exact, printed, y="B", log="x", **within(solver(100))),
        agrees("early form, t ≤ t₀'", None, b[first], early[first], **within(0.05)),
        agrees("late form, t ≥ t₀", None, b[last], late[last], **within(0.07)),
        panels=[picture],
        remarks=[
            *remarks,
            f"Fig. 9 at η_Z = 0.5, ν = 10, M = 100, K = C₀ = 1: B(5) = {drawn:.3f} with ν = η_Y/η_Z, as drawn; "
            f"{caption:.3f} with ν = η_Z/η_Y, as its caption says.",
        ],
        errata=[
            Erratum("slides, Theorem 4", slides_form, corrected, *off(exact, slides), measure=of_b),
            Erratum("paper, eq. 14 and 124", "B = ¼ ln(C₀ + 4Γ)", offset, *off(exact, eq_14), measure=of_b),
            Erratum("paper, Fig. 9's caption", nu, as_drawn, *differ, measure=of_drawn),
        ],
    )


def _beside_lemma_4():
    """Theorem 4 beside Lemma 4's own flow, and the exponent p in ż ∝ γ e^{pz} of the latter: no bound, a finding."""
    ts, rates, decoder = log_times(1, 1e4 * START), (1.0, 10.0), Decoder(OUTPUTS, CLASSES, 1.0)
    real = np.stack([-_slow(rate, ts)[:, 0] for rate in rates])
    theory = np.stack([-PhaseTransition(decoder, rate, 1 / (CLASSES * RHO**2)).exact(0.0, ts) for rate in rates])
    speed, moved = np.gradient(real, np.log(ts), axis=1) / (ts * np.asarray(decoder.gamma(ts))), real > 0.2
    exponents = [-np.polyfit(b[far], np.log(v[far]), 1)[0] for b, v, far in zip(real, speed, moved, strict=True)]
    remarks = [
        f"Lemma 4's own flow at η_Z/η_Y = {rate:g} and t = 10⁴ t₀' has −z_c = {b[-1]:.3f} where Theorem 4 "
        f"says {law[-1]:.3f}; its exponent is {exponent:.1f}, not 4."
        for rate, b, law, exponent in zip(rates, real, theory, exponents, strict=True)
    ]
    title, predicted = "the theorem against Lemma 4, η_Z/η_Y = 1 and 10", {"Theorem 4": theory.T}
    return panel(title, (TIME, ts), y="−z_c", observed={"Lemma 4": real.T}, predicted=predicted, log="x"), remarks
