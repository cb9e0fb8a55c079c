"""Facts of Scan and Snap, which the common tests do not know."""

from decimal import Decimal, localcontext

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import special

from traindyn.dynamics import scan_snap

EPS = np.finfo(float).eps


@hypothesis.given(k=st.floats(-200, 300), others=st.floats(-3, 8), sign=st.sampled_from((1, -1)))
def test_logit_gap_is_the_root_for_any_size(k, others, sign):
    k, others = sign * 10.0**k, 10.0**others
    x = float(scan_snap.logit_gap(jnp.asarray(k), jnp.asarray(others)))
    # The residual that one rounding of x leaves, on either side of the equation.
    scale = max(abs(k), abs(np.expm1(x)), abs(others * x))
    assert abs(np.expm1(x) + others * x - k) <= 8 * EPS * max(1.0, x) * scale


def test_logit_gap_agrees_with_lamberts_w_and_goes_on_where_that_overflows():
    a, c = 9.0, np.geomspace(2, 5000, 30)
    lambert = np.real(c / a - special.lambertw(np.exp(c / a) / a))
    np.testing.assert_allclose(scan_snap.logit_gap(jnp.asarray(c - 1), a), lambert, rtol=1e-13)
    assert np.isfinite(float(scan_snap.logit_gap(jnp.asarray(1e9), a)))


def _exact_gap(k, others):
    """The root by bisection with 60 digits, to 25."""
    k, others = Decimal(float(k)), Decimal(float(others))
    lower, upper = (Decimal(0), (k + 1).ln()) if k > 0 else (Decimal(-1), Decimal(0))
    while k < 0 and lower.exp() - 1 + others * lower > k:
        lower *= 2
    while upper - lower > Decimal(10) ** -25 * abs(upper - 2 * lower):
        middle = (lower + upper) / 2
        lower, upper = (lower, middle) if middle.exp() - 1 + others * middle > k else (middle, upper)
    return float((lower + upper) / 2)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_logit_gap_has_its_digits_for_few_others_and_any_k(dtype):
    # At k = −1 Newton's method from the tangent was 12.4 off for few others.
    some = np.array([*10.0 ** np.arange(-9, 4, 2), 0.5, 0.9, 1.0, 1.1])
    k, others = np.meshgrid([*some, *-some], 10.0 ** np.arange(-14, 10, 2), indexing="ij")
    k, others = jnp.asarray(k.ravel(), dtype), jnp.asarray(others.ravel(), dtype)
    assert len(k) == 264
    with localcontext() as context:
        context.prec = 60
        exact = np.array([_exact_gap(*point) for point in zip(k, others, strict=True)])
    got = np.asarray(scan_snap.logit_gap(k, others), float)
    # The root moves by this much as k is rounded.
    rounding = np.abs(k) / (np.exp(np.maximum(exact, -700)) + np.asarray(others)) / np.abs(exact)
    assert np.max(np.abs(got / exact - 1) / np.maximum(1, rounding)) < 8 * float(jnp.finfo(dtype).eps)
    assert float(scan_snap.logit_gap(-1, 1e-12)) == pytest.approx(-24.435, abs=5e-4)


def test_logit_gap_at_the_ends():
    np.testing.assert_array_equal(
        scan_snap.logit_gap(jnp.array([0.0, jnp.inf, -jnp.inf, jnp.nan]), 2), [0, np.inf, -np.inf, np.nan]
    )
    for others in (0.0, -2.0):
        with pytest.raises(ValueError, match="others must be above 0"):
            scan_snap.logit_gap(1.0, others)
        assert jnp.isnan(jax.jit(scan_snap.logit_gap)(-2.0, others))


def test_logit_gap_has_second_derivatives():
    x = float(scan_snap.logit_gap(1.0, 2.0))
    second = jax.grad(jax.grad(scan_snap.logit_gap))(1.0, 2.0)
    np.testing.assert_allclose(second, -np.exp(x) / (np.exp(x) + 2) ** 3, rtol=1e-13)


def test_decoder_goes_on_from_a_state_whose_exponential_overflows():
    decoder = scan_snap.Decoder(10.0)
    for start in (-200.0, 0.3, 7.0, 100.0):  # M h = 1000
        np.testing.assert_allclose(decoder.exact(start, 0.0), start, rtol=1e-15)
        assert float(jax.grad(decoder.exact)(start, 0.0)) == pytest.approx(1.0, rel=1e-13)
        np.testing.assert_allclose(jax.grad(decoder.exact, 1)(start, 0.0), decoder(0.0, jnp.asarray(start)), rtol=1e-12)
    ahead = decoder.exact(0.3, 3.0)
    np.testing.assert_allclose(decoder.exact(ahead, 2.0), decoder.exact(0.3, 5.0), rtol=1e-14)


def test_logit_gap_has_the_derivatives_of_the_root():
    k, a = 7.0, 3.0
    x = float(scan_snap.logit_gap(jnp.asarray(k), jnp.asarray(a)))
    by_k, by_a = jax.grad(scan_snap.logit_gap, (0, 1))(jnp.asarray(k), jnp.asarray(a))
    np.testing.assert_allclose((by_k, by_a), (1 / (np.exp(x) + a), -x / (np.exp(x) + a)), rtol=1e-13)


@pytest.mark.parametrize("m", (2.0, 10.0, 1000.0))
def test_decoder_peak_integral_and_recursion(m):
    decoder = scan_snap.Decoder(m, 3.0, 0.7)
    t, largest = decoder.peak()
    around = decoder.gamma(t)
    assert float(around) == pytest.approx(float(largest), rel=1e-12)
    assert all(decoder.gamma(t * f) < largest for f in (0.99, 1.01))
    ts = np.linspace(0, 50, 20001)
    quadrature = np.trapezoid(jax.vmap(decoder.gamma)(jnp.asarray(ts)), ts)
    assert float(decoder.gamma_integral(50.0)) == pytest.approx(quadrature, rel=1e-6)
    discrete = decoder.visits(300)
    smooth = decoder.exact(0.0, 3.0 * jnp.arange(301.0))  # t = K s
    assert jnp.all(discrete >= smooth - EPS) and jnp.all(discrete - smooth <= 2 * 0.7 / m)
    assert float(discrete[1]) == pytest.approx(0.7 / m)


def test_peak_has_the_values_of_the_paper_s_scale():
    decoder = scan_snap.Decoder(1000.0)
    t, largest = decoder.peak()
    assert float(largest) == pytest.approx(4.416, abs=5e-4)
    assert float(t / decoder.linear_until()) == pytest.approx(0.816, abs=5e-4)
    assert float(decoder.logarithmic_from()) == pytest.approx(2 * np.log(1000), rel=1e-12)


def _random_flow(**options):
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.dirichlet(np.ones(6), size=4)).at[:, 5].set(0.0)
    table = table / table.sum(axis=1, keepdims=True)
    flow = scan_snap.ScanSnap(table, jnp.array([0, 1, 1, 0]), outputs=7, eta_y=0.8, eta_z=0.3, **options)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape))
    return flow, scan_snap.YZ(normal(6, 7), normal(2, 6))


@pytest.mark.parametrize("normalise", (True, False))
def test_plain_flow_descends_its_loss_at_its_rates(normalise):
    flow, y = _random_flow(normalise=normalise)
    slope, dy = jax.grad(flow.loss)(y), flow(0.0, y)
    np.testing.assert_allclose(dy.y, -0.8 * slope.y, atol=1e-14)
    np.testing.assert_allclose(dy.z, -0.3 * slope.z, atol=1e-14)
    # A token that never occurs is not attended to and does not move.
    assert jnp.all(dy.z[:, 5] == 0) and jnp.all(flow.attention(y.z)[:, 5] == 0)
    np.testing.assert_allclose(dy.y.sum(axis=1), 0, atol=1e-14)
    np.testing.assert_allclose(dy.z.sum(axis=1), 0, atol=1e-14)


def test_preconditioned_decoder_moves_each_class_alone():
    flow, y = _random_flow(preconditioned=True)
    f, residual = flow.features(y.z), flow.residual(y)
    np.testing.assert_allclose(f @ flow(0.0, y).y, 0.8 / 4 * residual, atol=1e-14)


def test_residual_keeps_its_digits_in_float32():
    flow = scan_snap.ScanSnap(jnp.eye(2, dtype=jnp.float32), outputs=2)
    logits = jnp.array([[20.0, 0.0], [0.0, 20.0]], jnp.float32)
    residual = flow.residual(scan_snap.YZ(logits, flow.zero().z))
    np.testing.assert_allclose(residual[0, 0], np.exp(-20) / (1 + np.exp(-20)), rtol=1e-6)


def test_symmetric_attention_is_lemma_4_on_symmetric_data():
    k, m, common, distinct = 4, 50, 0.6, np.array([0.4, 0.7, 1.0])
    table = np.zeros((k, 1 + 3 * k))
    table[:, 0] = common
    for n in range(k):
        table[n, 1 + 3 * n : 4 + 3 * n] = distinct
    table /= table.sum(axis=1, keepdims=True)
    slow = scan_snap.SlowAttention(scan_snap.ScanSnap(table, outputs=m, eta_z=0.4))
    small = scan_snap.SymmetricAttention(jnp.array([common]), jnp.asarray(distinct), k, m, eta_z=0.4)
    z = jnp.array([-0.5, 0.1, 0.2, 0.3])
    full = jnp.concatenate([z[:1], jnp.tile(z[1:], k)])[None]
    np.testing.assert_allclose(small(30.0, z), slow(30.0, full)[0, :4], rtol=1e-12)
    # ξ is what moves distinct tokens: ż_l = (η_Z/K) f_l² ξ.
    f = slow.scan.features(full)[0, 1:4]
    np.testing.assert_allclose(small(30.0, z)[1:], 0.4 / k * f**2 * slow.xi(30.0, full)[0], rtol=1e-12)


def test_two_scalars_are_the_full_decoder_in_tiers_b_and_c():
    k, rho = 3, 0.25
    f = jnp.eye(k, k + 1) * np.sqrt(1 - rho)
    f = f.at[:, k].set(np.sqrt(rho))
    for outputs in (k, 8):
        small = scan_snap.SymmetricDecoder(rho, k, outputs, 0.9)
        y = scan_snap.SymmetricLogits(jnp.array(0.8), jnp.array(-0.3))
        if outputs == k:
            y = y._replace(other=-y.own / (k - 1))  # rows of Y keep their sum of zero
        rest = -(y.own + (k - 1) * y.other) / max(outputs - k, 1)
        a = jnp.full((k, outputs), rest).at[:, :k].set(y.other)
        a = jnp.where(jnp.eye(k, outputs, dtype=bool), y.own, a)
        residual = jnp.eye(k, outputs) - jax.nn.softmax(f @ (f.T @ a), axis=1)
        dy = small(0.0, y)
        np.testing.assert_allclose((dy.own, dy.other), 0.9 / k * residual[0, :2], rtol=1e-12)
        # γβ is what g_1 = Y(e_1 − α_1) = Σ_n f_n (a_n·(e_1 − α_1)) has against the other classes.
        np.testing.assert_allclose(small.separation(y), -a[1] @ residual[0], rtol=1e-12)


def test_phase_transition_needs_both_the_quarter_and_the_offset():
    flow = scan_snap.PhaseTransition(scan_snap.Decoder(1000.0, 10.0, 0.5), 0.5, 50.0)
    b = -float(flow.exact(0.0, 1e5))
    assert b == pytest.approx(1.141, abs=5e-4)  # the slides' form gives 8.48, the paper's 2.12
    assert float(flow.exact(0.0, 0.0)) == 0
    assert float(flow.late(1e5)) == pytest.approx(b, abs=0.01)
    assert float(flow.early(1.0)) == pytest.approx(-float(flow.exact(0.0, 1.0)), rel=1e-2)


BAD_TABLES = {
    "must not be negative": np.array([[1.2, -0.2], [0.5, 0.5]]),
    "sum to one": np.array([[0.5, 0.4], [0.5, 0.5]]),
    "shape": np.ones(3) / 3,
    "none of them zero": np.ones((0, 3)),
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_bad_tables_are_refused(message, as_users):
    with pytest.raises(ValueError, match=message):
        scan_snap.ScanSnap(BAD_TABLES[message])


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"outputs": 1}, "outputs must be at least 2 and the number of classes, 2, got 1"),
        ({"query": [0, 2], "queries": 2}, "query must be below queries = 2"),
        ({"query": [0, -1]}, "not negative"),
        ({"query": [0]}, r"query must have shape \(2,\)"),
    ),
)
def test_bad_maps_and_widths_are_refused(options, message, as_users):
    options = {k: np.array(v) if k == "query" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=message):
        scan_snap.ScanSnap(np.full((2, 4), 0.25), **options)


def test_a_token_without_weight_does_not_take_the_attention_of_others():
    z = jnp.array([0.0, 0.0, 800.0])
    small = scan_snap.SymmetricAttention(jnp.ones(1), jnp.array([1.0, 0.0]), 3)
    np.testing.assert_allclose(small.features(z), [np.sqrt(0.5), np.sqrt(0.5), 0])
    assert jnp.all(jnp.isfinite(jax.grad(lambda z: small(1.0, z)[0])(z)))


def test_symmetric_attention_goes_on_where_distinct_tokens_have_all_but_lost():
    # 1 − ρ = 2e-35, which a subtraction from one makes zero; tier B is a function of (1−ρ)² there.
    small = scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(2), 3)
    slope = small(1.0, jnp.array([40.0, 0.0, 0.0]))
    apart = 2 * np.exp(-80.0)
    gamma = 4 * (apart / 9) / 3  # (M−1)² h/(M − 1 + 1), h = ηt/(KM)
    beta = 3 / (4 * apart)
    np.testing.assert_allclose(slope[0], -apart * gamma * beta * 2, rtol=1e-10)
    np.testing.assert_allclose(slope[1:], 1 / 3 * gamma * beta * 2 * apart / 2, rtol=1e-10)


TABLE = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
SAME = jnp.full((2, 3), 1 / 3)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: scan_snap.Decoder(10, 0), "classes must be at least 1, got 0"),
        (lambda: scan_snap.Decoder(10, -2), "classes must be at least 1, got -2"),
        (lambda: scan_snap.Decoder(10, 1, -1.0), "eta must be above 0, got -1.0"),
        (lambda: scan_snap.Decoder(3 + 1j), "outputs must be real"),
        (lambda: scan_snap.Decoder("ten"), "outputs must be a number"),
        (lambda: scan_snap.Decoder(10).visits(-1), "number must be an integer of at least 0, got -1"),
        (lambda: scan_snap.Decoder(jnp.array([10.0, 20.0])).visits(2), r"outputs must have shape \(\), got \(2,\)"),
        (lambda: scan_snap.SymmetricDecoder(1.0, 3, 3), "rho must be above -0.5 and below 1, got 1.0"),
        (lambda: scan_snap.SymmetricDecoder(2.0, 3, 3), "rho must be above -0.5 and below 1, got 2.0"),
        (lambda: scan_snap.SymmetricDecoder(-1.0, 3, 3), "rho must be above -0.5 and below 1, got -1.0"),
        (lambda: scan_snap.SymmetricAttention(-jnp.ones(1), jnp.ones(2), 3), "common must be at least 0, got -1.0"),
        (lambda: scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(0), 3), "distinct must have a weight above 0"),
        (
            lambda: scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(2), 3)(1.0, jnp.zeros(5)),
            r"z must have shape \(3,\), got \(5,\)",
        ),
        (lambda: scan_snap.PhaseTransition(scan_snap.Decoder(10), 0.1, 0.0), "c0 must be above 0, got 0.0"),
        (lambda: scan_snap.PhaseTransition(scan_snap.Decoder(10), 0.1, -1.0), "c0 must be above 0, got -1.0"),
        (lambda: scan_snap.PhaseTransition(scan_snap.Decoder(10), 0.1, 1.0).late(0.0), "t must be at least K/"),
        (lambda: scan_snap.backprop_coefficients(jnp.eye(2), 1), "outputs must be an integer of at least 2, got 1"),
        (lambda: scan_snap.backprop_coefficients(jnp.eye(3), 2), "outputs must be an integer of at least 3, got 2"),
        (lambda: scan_snap.Decoder(jnp.inf), "outputs must be at least 2 and finite, got inf"),
        (lambda: scan_snap.logit_gap(jnp.ones(2), jnp.ones(3)), r"k, others must have shapes that .* \(2,\), \(3,\)"),
        (lambda: scan_snap.Decoder(jnp.full(2, 5.0), jnp.ones(3)), "outputs, classes, eta must have shapes that broad"),
        (
            lambda: scan_snap.Decoder(jnp.full(2, 5.0)).exact(jnp.ones(3), 0.0),
            "y0, .* must have shapes that broadcast",
        ),
        (lambda: scan_snap.Decoder(jnp.full(2, 5.0))(0.0, jnp.ones(3)), "y, .* must have shapes that broadcast"),
        (lambda: scan_snap.backprop_coefficients(SAME, 5), "f must have linearly independent rows .* 2 of rank 1"),
        (lambda: scan_snap.ScanSnap(SAME, preconditioned=True), "probability must have linearly independent rows"),
        (lambda: scan_snap.SlowAttention(scan_snap.ScanSnap(SAME)), "probability must have linearly independent rows"),
        (lambda: scan_snap.ScanSnap(TABLE, eta_y=-1.0), "eta_y must be at least 0"),
        (lambda: scan_snap.ScanSnap(TABLE, jnp.array([0.0, 1.0])), "query must be integers"),
        (
            lambda: scan_snap.ScanSnap(TABLE)(0.0, scan_snap.YZ(jnp.zeros((3, 5)), jnp.zeros((1, 3)))),
            r"y.y must have shape \(3, 2\), got \(3, 5\)",
        ),
        (
            lambda: scan_snap.ScanSnap(TABLE, jnp.array([0, 1]))(
                0.0, scan_snap.YZ(jnp.zeros((3, 2)), jnp.zeros((1, 3)))
            ),
            r"z must have shape \(2, 3\), got \(1, 3\)",
        ),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_what_lies_outside_the_domain_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_bad_sizes_are_refused(as_users):
    with pytest.raises(ValueError, match="outputs must be at least 2"):
        scan_snap.Decoder(1)
    with pytest.raises(ValueError, match="outputs must be an integer of at least 4, got 3"):
        scan_snap.SymmetricDecoder(0.1, 4, 3)
    with pytest.raises(ValueError, match="tier B"):
        scan_snap.SymmetricDecoder(0.1, 3, 4).from_zero(1.0)
    with pytest.raises(ValueError, match="must exceed classes"):
        scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(2), 4, 4)
    with pytest.raises(ValueError, match="classes must be an integer of at least 2, got 1"):
        scan_snap.SymmetricAttention(jnp.ones(1), jnp.ones(2), 1)
    for common, outputs in ((1, 9), (2, None)):
        with pytest.raises(ValueError, match="law needs outputs=None and one common token"):
            scan_snap.SymmetricAttention(jnp.ones(common), jnp.ones(2), 4, outputs).law(1.0)


@pytest.mark.parametrize(
    ("dtype", "k", "others", "root"),
    (
        (jnp.float64, -1.0, 1e-15, -31.101519711594776),
        (jnp.float64, -1.0, 1e-18, -37.81385607558876),
        (jnp.float64, -1.0, 1e-30, -64.90463377004612),
        (jnp.float32, -1.0, 1e-8, -15.668997),
        (jnp.float64, -0.5, 1e-3, -0.6917646075),
        (jnp.float64, -1e100, 1e-300, -np.inf),
        (jnp.float32, -1e20, 1e-30, -np.inf),
    ),
)
def test_logit_gap_keeps_its_digits_below_zero(dtype, k, others, root):
    k, others = jnp.array(k, dtype), jnp.array(others, dtype)
    found = scan_snap.logit_gap(k, others)
    assert found.dtype == dtype
    if np.isinf(root):
        assert found == root
        return
    with localcontext() as context:
        context.prec = 40
        x = Decimal(float(found))
        residual = x.exp() - 1 + Decimal(float(others)) * x - Decimal(float(k))
        off = residual / ((x.exp() + Decimal(float(others))) * x)  # relative, of x
    assert abs(float(off)) < 2 * np.finfo(dtype).eps
    assert float(found) == pytest.approx(root, rel=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(scan_snap.logit_gap)))(k[None], others[None])
    np.testing.assert_allclose(slope, 1 / (np.exp(found) + others)[None], rtol=1e-6)


def test_peak_of_many_outputs_is_finite():
    for m in (jnp.array(1e20, jnp.float32), jnp.array(1e300), jnp.array(50.0)):
        t, size = scan_snap.Decoder(m).peak()
        u, left = special.lambertw((float(m) - 1) / np.e).real, 1 - 1 / float(m)
        np.testing.assert_allclose([t, size], [left * (1 / u + 1 + u) - 1 / float(m), left * u], rtol=1e-6)
        assert t.dtype == size.dtype == m.dtype


@pytest.mark.parametrize(("dtype", "start"), ((jnp.float64, 200.0), (jnp.float32, 25.0), (jnp.float32, 200.0)))
def test_phase_transition_from_a_high_start_is_that_from_infinity(dtype, start):
    flow = scan_snap.PhaseTransition(scan_snap.Decoder(jnp.array(5.0, dtype)), jnp.ones((), dtype), jnp.ones((), dtype))
    found = flow.exact(jnp.array(start, dtype), jnp.ones((), dtype))
    np.testing.assert_allclose(found, -0.0038730595563, rtol=1e-11 if dtype == jnp.float64 else 1e-5)
    assert flow.exact(jnp.array(start, dtype), jnp.zeros((), dtype)) == start

    def end(t, y0, rate):
        return scan_snap.PhaseTransition(flow.decoder, rate, flow.c0).exact(y0, t)

    starts, one = jnp.array([-3.0, 0.0, 0.1, start], dtype), jnp.ones((), dtype)
    for time in (0 * one, one):
        slopes = jax.jit(jax.vmap(jax.grad(end, (0, 1, 2)), (None, 0, None)))(time, starts, one)
        assert all(np.all(np.isfinite(x)) for x in slopes)
    grown = 4 * flow.decoder.gamma_integral(one) * np.exp(4 * starts[:3])
    np.testing.assert_allclose(slopes[1], [*(1 / (1 + grown)), 0], atol=1e-6)
    np.testing.assert_allclose(slopes[2][:3], -grown / (1 + grown) / 4, rtol=2e-5)


@pytest.mark.parametrize("outputs", (None, 9))
def test_attention_on_the_common_token_alone_has_its_limit(outputs):
    flow = scan_snap.SymmetricAttention(jnp.array([0.5]), jnp.array([0.25, 0.25]), 4, outputs)
    far, near = (flow(1.0, jnp.array([z, 0.0, 0.1])) for z in (800.0, 30.0))
    np.testing.assert_allclose(far, near, rtol=1e-12, atol=1e-26)  # tier B has come to rest
    slopes = jax.jit(jax.jacobian(lambda z: flow(1.0, z)))(jnp.array([800.0, 0.0, 0.1]))
    assert np.all(np.isfinite(slopes))
