"""Facts of Theorem 1 of JoMA, which the common tests do not know."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from traindyn.dynamics import GradientFlow, joma, solve

TOKENS, NODES, QUERIES, SAMPLES, CLASSES = 5, 3, 2, 8, 4
STATE = joma.JointState(jnp.ones((TOKENS, NODES)), jnp.ones((QUERIES, TOKENS)), jnp.ones((QUERIES, NODES)))


def _task(seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.dirichlet(np.ones(TOKENS), size=SAMPLES))
    query = jnp.asarray(rng.integers(QUERIES, size=SAMPLES)).at[:2].set(jnp.array([0, 1]))
    label = jnp.asarray(rng.integers(CLASSES, size=SAMPLES))
    head = 2 * jnp.asarray(rng.normal(size=(NODES, CLASSES)))
    state = joma.JointState(
        jnp.asarray(rng.normal(size=(TOKENS, NODES))),
        1 + 0.5 * jnp.asarray(rng.normal(size=(QUERIES, TOKENS))),
        jnp.asarray(rng.normal(size=(QUERIES, NODES))),
    )
    return x, query, label, head, state


def _network_loss(attention, activation, x, query, label, head, y):
    """The network's mean cross-entropy, written from the paper's equations and not with the library."""
    z = y.z[query]
    if attention == "linear":
        b = z * x
    elif attention == "exp":
        b = jnp.exp(z / 0.8) * x / 1.3
    else:
        b = x * jnp.exp(z / 0.8) / jnp.sum(x * jnp.exp(z / 0.8), axis=1, keepdims=True)
    logits = activation(b @ y.v + y.beta[query]) @ head
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))


@pytest.mark.parametrize("attention", ("linear", "exp", "softmax"))
@pytest.mark.parametrize("activation", (jnp.tanh, jnp.square))
def test_joint_flow_is_the_gradient_flow_of_the_network(attention, activation):
    x, query, label, head, y = _task()
    push = lambda h: (jax.nn.one_hot(label, CLASSES) - jax.nn.softmax(h @ head)) @ head.T
    options = {"attention": attention, "activation": activation, "temperature": 0.8, "normaliser": 1.3}
    joint = joma.Joint(x, push, query=query, eta_w=0.7, eta_z=1.6, **options)
    loss = Partial(_network_loss, attention, activation, x, query, label, head)
    gradient = GradientFlow(loss, joma.JointState(0.7, 1.6, 0.7))
    field, limit = jax.jit(lambda y: (joint(0.0, y, None), gradient(0.0, y, None)))(y)
    for got, wanted in zip(field, limit, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-14)
    # The invariants do not move along it: their slope is zero to rounding.
    _, slope = jax.jvp(joint.invariants, (y,), (field,))
    scale = max(float(jnp.max(jnp.abs(d))) for d in field)
    np.testing.assert_allclose(slope / scale, 0, atol=1e-13)


def test_a_single_query_of_several_does_not_obey_the_law_that_their_sum_obeys():
    x, query, _, _, y = _task()
    joint = joma.Joint(x, jnp.ones((SAMPLES, NODES)), query=query)
    dy = joint(0.0, y, None)
    growth = jnp.sum(y.v * dy.v, axis=1)  # d/dt ½ Σ_k v_k²
    np.testing.assert_allclose(jnp.sum(dy.z, axis=0), growth, rtol=1e-12)
    assert jnp.max(jnp.abs(dy.z[0] - growth)) > 0.1 * jnp.max(jnp.abs(growth))


def test_a_stationary_gradient_stays_as_it_is():
    x, query, _, _, y = _task()
    g = jnp.asarray(np.random.default_rng(1).normal(size=(SAMPLES, NODES)))
    given, returned = joma.Joint(x, g, query=query), joma.Joint(x, lambda h: g, query=query)
    for a, b in zip(given(0.0, y, None), returned(0.0, y, None), strict=True):
        np.testing.assert_array_equal(a, b)


def test_softmax_attention_sums_to_one_and_survives_large_logits():
    x, query, _, _, y = _task()
    joint = joma.Joint(x, jnp.ones((SAMPLES, NODES)), query=query, attention="softmax")
    for shift in (0.0, 1e4):  # exp(1e4) overflows
        b = joint.attend(y.z + shift)
        np.testing.assert_allclose(jnp.sum(b, axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(joint.attend(y.z + 1e4), joint.attend(y.z), rtol=1e-11)  # 1e4 eps


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
@pytest.mark.parametrize("attention", ("softmax", "exp"))
def test_absent_tokens_and_empty_samples_take_and_get_no_attention(attention, dtype):
    # An absent token whose logit is so large that its exponential overflows; a sample without tokens.
    x, z = (
        jnp.array([[0.5, 0.5, 0], [0, 0, 0]], dtype),
        jnp.array([[0.0, 0, 120 if dtype == jnp.float32 else 800]], dtype),
    )
    attend = lambda x, z: joma.Joint(x, jnp.ones((2, 1), dtype), attention=attention).attend(z)
    np.testing.assert_array_equal(attend(x, z), [[0.5, 0.5, 0], [0, 0, 0]])
    loss = lambda x, z: jnp.sum(attend(x, z) @ jnp.array([1.0, 2.0, 3.0], dtype))
    by_x, by_z = jax.jit(jax.grad(loss, (0, 1)))(x, z)
    np.testing.assert_allclose(by_z, [[-0.25, 0.25, 0] if attention == "softmax" else [0.5, 1, 0]], rtol=1e-6)
    assert jnp.all(jnp.isfinite(by_x))
    field = joma.Joint(x, jnp.ones((2, 1), dtype), attention=attention)
    state = joma.JointState(jnp.ones((3, 1), dtype), z, jnp.zeros((1, 1), dtype))
    assert all(jnp.all(jnp.isfinite(slope)) for slope in field(0.0, state))


def test_softmax_has_the_slope_in_the_frequency_of_an_absent_token():
    x, z = jnp.array([[0.5, 0.5, 0.0]]), jnp.array([[0.0, 0.0, 1.0]])
    attend = lambda x: joma.Joint(x, jnp.ones((1, 1)), attention="softmax").attend(z)[0, 2]
    np.testing.assert_allclose(jax.grad(attend)(x)[0], [0, 0, np.e], rtol=1e-15)


def test_integers_are_the_numbers_they_mean():
    v, z = jnp.array([[1, 2], [0, 3]]), jnp.array([[2, 5]])
    np.testing.assert_allclose(joma.invariants("exp", v, z, rate_ratio=0.5), [2 - 0.25 * 5, 5 - 0.25 * 9])
    predicted = joma.predicted_logits("exp", v, v0=jnp.zeros((2, 2), int), z0=jnp.array([1, 1]), rate_ratio=0.5)
    np.testing.assert_allclose(predicted, [1 + 0.25 * 5, 1 + 0.25 * 9])


def test_predicted_linear_logits_are_right_in_size_from_zero_and_refused_where_impossible():
    one, zero = jnp.ones((1, 1)), jnp.zeros(1)
    assert float(joma.predicted_logits("linear", 2 * one, v0=one, z0=zero)[0]) == pytest.approx(np.sqrt(3))
    with pytest.raises(ValueError, match="v must be such that"):
        joma.predicted_logits("linear", one, v0=2 * one, z0=zero)
    assert jnp.isnan(jax.jit(lambda v: joma.predicted_logits("linear", v, v0=2 * one, z0=zero))(one)[0])


def test_reduced_flow_of_many_nodes_is_the_joint_flow_with_the_sum_inside():
    # Theorem 2 for K > 1 from Theorem 1: identity activation, stationary g, exp attention, from zero. ManyNodes is
    # compared in closed form, so that the two have nothing in common.
    x, _, _, _, _ = _task()
    g = jnp.asarray(np.random.default_rng(1).normal(size=(SAMPLES, NODES)))
    reduced = joma.ManyNodes(x.T @ g / SAMPLES, 1.3)
    zero = jnp.zeros((TOKENS, NODES))
    ts = [float(reduced.blow_up_time(zero).min()) * f for f in (0.5, 0.99)]
    start = joma.JointState(zero, jnp.zeros((1, TOKENS)), jnp.zeros((1, NODES)))
    ys = solve(joma.Joint(x, g, normaliser=1.3), start, ts).ys
    for i, t in enumerate(ts):
        np.testing.assert_allclose(ys.v[i], reduced.exact(zero, t), rtol=1e-8, atol=1e-10)
        z = joma.predicted_logits("exp", ys.v[i], v0=zero, z0=jnp.zeros(TOKENS))
        np.testing.assert_allclose(ys.z[i, 0], z, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("attention", ("linear", "exp"))
def test_predicted_logits_are_what_keeps_the_invariants(attention):
    x, _, _, _, y = _task()
    z0 = jnp.array([1.0, -2.0, 0.5, 3.0, -1.5])
    v = jnp.sqrt(jnp.sum(y.v**2, axis=1) + 0.1)[:, None] * jnp.ones((1, NODES))
    options = {"temperature": 0.5} if attention == "exp" else {}
    z = joma.predicted_logits(attention, v, v0=y.v, z0=z0, rate_ratio=1.7, **options)
    joint = joma.Joint(x, jnp.ones((SAMPLES, NODES)), attention=attention, eta_w=0.5, eta_z=0.85, **options)
    before = joint.invariants(joma.JointState(y.v, z0[None], y.beta[:1]))
    after = joint.invariants(joma.JointState(v, z[None], y.beta[:1]))
    np.testing.assert_allclose(after, before, rtol=1e-13, atol=1e-13)
    if attention == "linear":  # the squares leave the sign open
        np.testing.assert_array_equal(jnp.sign(z), jnp.sign(z0))


def test_predicted_logits_of_softmax_obey_the_law_where_its_assumption_holds():
    # With one sample, b̄ = b and E[g b bᵀ] = b̄ E[g b]ᵀ hold, b̄ changing in time: the law holds for the slopes.
    x = jnp.array([[0.1, 0.2, 0.3, 0.4]])
    rng = np.random.default_rng(2)
    v, z = jnp.asarray(rng.normal(size=(4, 3))), jnp.asarray(rng.normal(size=4))
    joint = joma.Joint(x, jnp.asarray(rng.normal(size=(1, 3))), attention="softmax", temperature=0.5, eta_z=1.7)
    y = joma.JointState(v, z[None], jnp.zeros((1, 3)))
    dy, b_bar = joint(0.0, y, None), joint.attend(z[None])[0]
    law = lambda v: joma.predicted_logits("softmax", v, v0=y.v, z0=z, rate_ratio=1.7, temperature=0.5, b_bar=b_bar)
    predicted, slope = jax.jvp(law, (v,), (dy.v,))
    np.testing.assert_array_equal(predicted, z)
    np.testing.assert_allclose(slope, dy.z[0], rtol=1e-12)
    # Shift invariance: Σ z is conserved exactly, for any b̄ that sums to one.
    moved = law(v + 1.0)
    assert float(jnp.sum(moved)) == pytest.approx(float(jnp.sum(z)), abs=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (
            lambda x, g: joma.Joint(x, g, attention="sparse"),
            "attention must be one of 'linear', 'exp', 'softmax', got 'sparse'",
        ),
        (lambda x, g: joma.Joint(x[0], g), r"x must have shape \(samples, tokens\), got \(5,\)"),
        (lambda x, g: joma.Joint(x, g[1:]), r"g must have shape \(8, nodes\), got \(7, 3\)"),
        (lambda x, g: joma.Joint(x, g, query=jnp.zeros(3, int)), r"query must have shape \(8,\), got \(3,\)"),
        (lambda x, g: joma.Joint(x, g, query=jnp.full(8, -1)), "query must lie from 0 to .*, got -1"),
        (lambda x, g: joma.Joint(x, g, query=jnp.full(8, 2), queries=2), "query must lie from 0 to 1, got 2"),
        (lambda x, g: joma.Joint(x, g, query=jnp.zeros(8)), "query must be integers"),
        (lambda x, g: joma.Joint(-x, g), r"x must be at least 0, got -1.0 at \[0, 0\]"),
        (lambda x, g: joma.Joint(x, g, temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda x, g: joma.Joint(x, g, normaliser=0.0), "normaliser must be above 0, got 0.0"),
        (lambda x, g: joma.Joint(x, g, eta_z=-1.0), "eta_z must be at least 0, got -1.0"),
        (lambda x, g: joma.Joint(x, g, eta_w=0.0).invariants(STATE), "eta_w must be above 0 for the invariants"),
        (
            lambda x, g: joma.Joint(x, g, query=jnp.arange(8))(0.0, STATE),
            "z must have a row for each of 8 queries, got 2",
        ),
        (lambda x, g: joma.Joint(x, lambda h: g[1:])(0.0, STATE), r"g must have shape \(8, 3\), got \(7, 3\)"),
        (lambda x, g: joma.Joint(x, g[:, :2])(0.0, STATE), r"g must have shape \(8, 3\), got \(8, 2\)"),
        (lambda x, g: joma.Joint(x, g)(0.0, STATE._replace(z=jnp.ones((2, 1)))), r"y.z must have shape \(queries, 5\)"),
        (lambda x, g: joma.Joint(x, g)(0.0, STATE._replace(beta=jnp.ones((2, 1)))), r"y.beta must have shape \(2, 3\)"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_of_joint_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(jnp.ones((SAMPLES, TOKENS)), jnp.ones((SAMPLES, NODES)))


@pytest.mark.parametrize(
    ("attention", "changes", "message"),
    (
        ("quadratic", {}, "attention must be one of"),
        ("softmax", {}, "b_bar must be given for softmax attention, and for no other"),
        ("exp", {"b_bar": jnp.ones(2)}, "b_bar must be given for softmax attention, and for no other"),
        ("softmax", {"b_bar": jnp.ones(3)}, r"b_bar must have shape \(2,\), got \(3,\)"),
        ("exp", {"v0": jnp.ones((2, 2))}, r"v0 must have shape \(2, 3\), got \(2, 2\)"),
        ("exp", {"z0": jnp.ones((1, 2))}, r"z0 must have shape \(2,\), got \(1, 2\)"),
        ("exp", {"v": jnp.ones(2)}, r"v must have shape \(tokens, nodes\), got \(2,\)"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_of_predicted_logits_are_refused(attention, changes, message):
    arguments = {"v": jnp.ones((2, 3)), "v0": jnp.ones((2, 3)), "z0": jnp.ones(2)} | changes
    with pytest.raises(ValueError, match=message):
        joma.predicted_logits(attention, arguments.pop("v"), **arguments)


@pytest.mark.usefixtures("as_users")
def test_no_samples_and_an_activation_that_reduces_are_refused():
    with pytest.raises(ValueError, match="x must hold at least one sample, got none"):
        joma.Joint(jnp.zeros((0, TOKENS)), jnp.zeros((0, NODES)))
    flow = joma.Joint(jnp.ones((SAMPLES, TOKENS)), jnp.ones((SAMPLES, NODES)), activation=jnp.sum)
    with pytest.raises(ValueError, match=r"the value of activation must have shape \(8, 3\), got \(\)"):
        flow(0.0, STATE)
