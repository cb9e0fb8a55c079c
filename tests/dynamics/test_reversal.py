"""The flows of the reversal curse against autodiff and descent by hand, and the facts that their docstrings state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics.reversal import Bilinear, OneLayer, separation_exponent

PAIRS = jnp.array([[0, 1], [1, 0], [2, 3]])


def _bilinear(width, symmetric=False, seed=0):
    """Vectors, Θ₀ and the flow, for six tokens; and a state that its solutions may reach."""
    rng = np.random.default_rng(seed)
    vectors, theta, c = (jnp.asarray(rng.normal(size=shape)) for shape in ((6, width), (width, width), (6, 6)))
    theta, c = ((theta + theta.T) / 2, (c + c.T) / 2) if symmetric else (theta, c)
    return vectors, theta, Bilinear.of(vectors, PAIRS, theta, symmetric=symmetric), c


def _loss(theta, vectors, pairs=PAIRS):
    """The mean cross-entropy of the pairs, in the weights Θ themselves."""
    log_p = jax.nn.log_softmax(vectors @ theta @ vectors.T)
    return -jnp.mean(log_p[pairs[:, 0], pairs[:, 1]])


@pytest.mark.parametrize("symmetric", (False, True))
@pytest.mark.parametrize("width", (3, 8))  # fewer dimensions than tokens, and more
def test_reduction_is_gradient_flow_of_theta(width, symmetric):
    vectors, theta, flow, c = _bilinear(width, symmetric)
    now = theta + vectors.T @ c @ vectors
    slope = -jax.grad(_loss)(now, vectors)
    slope = (slope + slope.T) / 2 if symmetric else slope
    np.testing.assert_allclose(vectors.T @ flow(0.0, c) @ vectors, slope, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(flow.logits(c), vectors @ now @ vectors.T, rtol=1e-12, atol=1e-12)
    test = jnp.array([[3, 2]])
    np.testing.assert_allclose(flow.loss(c), _loss(now, vectors), rtol=1e-12)
    np.testing.assert_allclose(flow.loss(c, test), _loss(now, vectors, test), rtol=1e-12)


def test_symmetric_flow_symmetrises_a_start_that_is_not_symmetric():
    vectors = jnp.eye(6)
    theta = jnp.arange(36.0).reshape(6, 6)
    flow = Bilinear.of(vectors, PAIRS, theta, symmetric=True)
    np.testing.assert_allclose(flow.logits(jnp.zeros((6, 6))), (theta + theta.T) / 2)


def test_on_orthonormal_tokens_rows_are_those_of_the_one_layer_transformer():
    flow, row, gap = Bilinear(jnp.eye(6), PAIRS), OneLayer(6, 3), 0.7
    c = jnp.zeros((6, 6)).at[PAIRS[:, 0], PAIRS[:, 1]].set(gap)
    slope = flow(0.0, c)
    for x, y in PAIRS.tolist():
        others = np.delete(slope[x], y)
        np.testing.assert_allclose(slope[x, y] - others, row(0.0, jnp.asarray(gap)), rtol=1e-14)
    np.testing.assert_array_equal(slope[3:], 0)  # the reversal of (2, 3) stays uniform
    assert float(flow.loss(c, jnp.array([[3, 2]]))) == pytest.approx(np.log(6), rel=1e-15)


def test_loss_keeps_its_digits_as_p_goes_to_one():
    flow = Bilinear(jnp.eye(6, dtype=jnp.float32), PAIRS)
    c = jnp.zeros((6, 6), jnp.float32).at[PAIRS[:, 0], PAIRS[:, 1]].set(30.0)
    assert float(flow.loss(c)) == pytest.approx(5 * np.exp(-30), rel=1e-5)
    slope = flow(0.0, c)[0]
    assert float(slope[1]) == pytest.approx(5 / 3 * np.exp(-30), rel=1e-5)  # 1 − p, which is zero by subtraction
    assert slope.dtype == jnp.float32


def test_flow_works_under_vmap_and_jit_over_everything():
    vectors, _, _, c = _bilinear(3)
    grams = jnp.stack([vectors @ vectors.T, jnp.eye(6)])
    run = jax.jit(jax.vmap(lambda gram, s, pairs: Bilinear(gram, pairs, symmetric=s)(0.0, c), (0, 0, None)))
    slopes = run(grams, jnp.array([False, True]), PAIRS)
    np.testing.assert_allclose(slopes[0], Bilinear(grams[0], PAIRS)(0.0, c), rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(slopes[1], slopes[1].T)
    assert jnp.max(jnp.abs(slopes[0] - slopes[0].T)) > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((jnp.eye(6)[:5], PAIRS), r"gram must have shape \(tokens, tokens\), got \(5, 6\)"),
        ((jnp.eye(6), PAIRS[:, :1]), r"pairs must have shape \(pairs, 2\)"),
        ((jnp.eye(6), PAIRS[:0]), "at least one pair"),
        ((jnp.eye(3), PAIRS), "pairs must lie from 0 to 2, got 3"),
        ((jnp.eye(6), PAIRS - 1), "pairs must lie from 0 to 5, got -1"),
        ((jnp.eye(6), PAIRS, jnp.eye(5)), r"start must have shape \(6, 6\)"),
        ((jnp.ones(()), PAIRS), r"gram must have shape \(tokens, tokens\), got \(\)"),
        ((jnp.eye(6), PAIRS.astype(float)), "pairs must be integers"),
        ((jnp.eye(6).at[0, 1].set(1.0), PAIRS), "gram must hold symmetric matrices"),
        ((-jnp.eye(6), PAIRS), "gram must be positive semidefinite, got an eigenvalue of -1"),
        ((jnp.eye(6) * jnp.nan, PAIRS), "gram must be finite"),
        ((jnp.eye(6), PAIRS, jnp.eye(6) * jnp.nan), "start must be finite"),
    ),
)
def test_bad_input_is_named(as_users, arguments, message):
    with pytest.raises(ValueError, match=message):
        Bilinear(*arguments)


@pytest.mark.parametrize("targets", (1, 2, 3))
def test_one_layer_is_gradient_flow_of_a_row(targets):
    # Of N sentences, `targets` begin with this entity, and end each in its own token.
    outputs, sentences, eta, gap = 9, 5.0, 0.7, 1.3
    row = OneLayer(outputs, sentences, eta, targets=targets)
    y = jnp.zeros(outputs).at[:targets].set(gap)
    slope = -jax.grad(lambda y: -jnp.sum(jax.nn.log_softmax(y)[:targets]) * eta / sentences)(y)
    np.testing.assert_allclose(slope[:targets] - slope[-1], row(0.0, jnp.asarray(gap)), rtol=1e-13)
    p = jax.nn.softmax(y)
    np.testing.assert_allclose(p[:targets], row.seen(gap), rtol=1e-14)
    np.testing.assert_allclose(p[targets:], row.unseen(gap), rtol=1e-14)


@pytest.mark.parametrize("targets", (1, 2))
def test_closed_form_obeys_its_equation_from_zero_and_goes_on_from_any_state(targets):
    row, ts = OneLayer(50, 7, 0.4, targets=targets), jnp.array([0.01, 3.0, 100.0, 1e4])
    slope = jax.vmap(jax.grad(lambda t: row.exact(0.0, t)))(ts)
    np.testing.assert_allclose(slope, row(0.0, row.exact(0.0, ts)), rtol=1e-10)
    np.testing.assert_allclose(row.exact(0.0, 0.0), 0.0)
    np.testing.assert_allclose(row.exact(row.exact(0.0, ts), 20.0), row.exact(0.0, ts + 20.0), rtol=1e-12)


def test_probabilities_at_the_ends():
    one, two = OneLayer(50, 7), OneLayer(50, 7, targets=2)
    assert float(one.seen(0.0)) == float(one.unseen(0.0)) == pytest.approx(1 / 50)
    late = 1e6
    # 1 − p → (M − 1) N/(M η t), and no more than ½ each for two targets
    assert float(49 * one.unseen(one.exact(0.0, late))) == pytest.approx(49 * 7 / (50 * late), rel=0.02)
    assert 0.4999 < float(two.seen(two.exact(0.0, late))) < 0.5
    gap = OneLayer(jnp.float32(50), jnp.float32(7)).exact(0.0, jnp.float32(1e30))  # e^x fits no float32
    assert gap.dtype == jnp.float32 and float(gap) == pytest.approx(np.log(50 * 1e30 / 7), rel=1e-6)


def test_visits_are_stochastic_gradient_descent():
    y, gaps = np.zeros(12), [0.0]
    for _ in range(40):
        p = np.exp(y) / np.exp(y).sum()
        y = y + 0.8 * (np.eye(12)[3] - p)
        gaps.append(y[3] - y[0])
    np.testing.assert_allclose(OneLayer(12, 1, 0.8).visits(40), gaps, rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: OneLayer(3, 5, targets=3), "outputs must be above 3, got 3.0"),
        (lambda: OneLayer(3, 5, targets=0), "targets must be an integer of at least 1, got 0"),
        (lambda: OneLayer(10, 0), "sentences must be above 0, got 0.0"),
        (lambda: OneLayer(10, -1), "sentences must be above 0, got -1.0"),
        (lambda: OneLayer(9, 5, targets=2).visits(3), "targets must be 1 for visits, got 2"),
        (lambda: OneLayer(9, 5).visits(-3), "number must be an integer of at least 0, got -3"),
        (
            lambda: Bilinear(jnp.eye(6), PAIRS).loss(jnp.eye(6), jnp.array([[5, 7]])),
            "pairs must lie from 0 to 5, got 7",
        ),
        (lambda: Bilinear(jnp.eye(6), PAIRS).loss(jnp.eye(6), jnp.zeros((0, 2), int)), "pairs must hold at least one"),
        (
            lambda: OneLayer(jnp.full(2, 5.0), jnp.full(3, 3.0)),
            "outputs, sentences, eta must have shapes",
        ),
        (lambda: OneLayer(jnp.full(2, 5.0), 3).seen(jnp.ones(3)), "gap, outputs, .* must have shapes that broadcast"),
        (lambda: separation_exponent(jnp.zeros(0), jnp.zeros(0)), "loss must hold at least one time, got none"),
        (lambda: separation_exponent(jnp.array([jnp.inf, 1]), jnp.ones(2)), "first loss must be finite and above 0"),
        (lambda: Bilinear(jnp.eye(6), PAIRS)(0.0, jnp.eye(2)), r"y must have shape \(6, 6\), got \(2, 2\)"),
        (lambda: Bilinear.of(jnp.ones((3, 4)), [[0, 1]], jnp.eye(3)), r"theta must have shape \(4, 4\), got \(3, 3\)"),
        (lambda: separation_exponent(jnp.array([1.0, -2]), jnp.ones(2)), "loss must be at least 0, got -2.0"),
        (lambda: separation_exponent(jnp.array([0.0, 1]), jnp.ones(2)), "first loss must be above 0, got 0.0"),
        (lambda: separation_exponent(jnp.ones(2), jnp.array([0.0, 1])), "first reversal_loss must be above 0, got 0.0"),
        (lambda: separation_exponent(jnp.array([1.0, 2]), jnp.array([1.0, 0.5])), "loss must not rise above its start"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_methods_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_run_that_diverged_has_no_exponent():
    loss = jnp.array([1.0, 0.5, jnp.nan])
    for pair in ((loss, jnp.ones(3)), (jnp.ones(3), loss)):
        assert jnp.isnan(separation_exponent(*pair)) and jnp.isnan(jax.jit(separation_exponent)(*pair))
    assert float(separation_exponent(jnp.array([1.0, 0.5, 0.0]), jnp.ones(3))) == 0  # learned to the last digit
    for loss in ([1.0, -0.5], [1.0, 1.5]):
        assert jnp.isnan(jax.jit(separation_exponent)(jnp.array(loss), jnp.ones(2)))


def test_fields_of_one_layer_broadcast():
    gaps = OneLayer(jnp.array([10.0, 50.0]), 3).exact(0.0, 2.0)
    np.testing.assert_allclose(gaps, [OneLayer(m, 3).exact(0.0, 2) for m in (10, 50)], rtol=1e-14)


def test_integers_are_the_numbers_they_mean():
    flow = Bilinear.of(np.eye(6, dtype=int), PAIRS)
    np.testing.assert_array_equal(flow(0, np.eye(6, dtype=int)), Bilinear(jnp.eye(6), PAIRS)(0.0, jnp.eye(6)))


def test_separation_exponent_is_the_power_that_holds():
    loss = jnp.geomspace(2.0, 1e-3, 20)
    law = lambda power: 4 * (loss / 2) ** power
    curves = jnp.stack([law(0.3), jnp.full(20, 4.0), law(-0.2), jnp.minimum(law(0.3), law(0.1))], axis=1)
    exponent = separation_exponent(jnp.stack([loss] * 4, axis=1), curves)
    np.testing.assert_allclose(exponent, [0.3, 0, 0, 0.3], rtol=1e-12, atol=1e-15)
    # the least at which the inequality holds at all times, for a curve that dips and recovers
    dip = 4 * jnp.ones(20).at[7].set(0.9)
    exponent = separation_exponent(loss, dip)
    assert jnp.all(dip / 4 >= (loss / 2) ** exponent * (1 - 1e-12))
    assert not jnp.all(dip / 4 >= (loss / 2) ** (0.99 * exponent))


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_probabilities_at_any_gap(dtype):
    flow = OneLayer(jnp.array(5.0, dtype), jnp.array(3.0, dtype))
    gap = jnp.array([-jnp.inf, -800.0, -89.0, 0.0, 1.0, 800.0, jnp.inf], dtype)
    total = 4 + np.e
    for of, values, slopes in (
        (flow.unseen, [0.25, 0.25, 0.25, 0.2, 1 / total, 0, 0], [0, 0, -1 / 25, -np.e / total**2, 0]),
        (flow.seen, [0, 0, 0, 0.2, np.e / total, 1, 1], [0, 0, 4 / 25, 4 * np.e / total**2, 0]),
    ):
        np.testing.assert_allclose(of(gap), values, rtol=1e-6, atol=1e-30)
        found = jax.jit(jax.vmap(jax.grad(of)))(gap[1:-1])
        np.testing.assert_allclose(found, slopes, rtol=1e-6, atol=1e-30)
        assert of(gap).dtype == dtype
