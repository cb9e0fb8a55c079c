"""Theorem 5 of Li2: the activations that it covers, what a node with one target climbs, and where the maximum lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics.grokking.energy import ScaledAscent, SphereAscent
from traindyn.dynamics.grokking.memorisation import ACTIVATIONS, SingleTarget
from traindyn.dynamics.groups import cyclic, symmetric

P = np.array([0.1, 0.3, 0.05, 0.255, 0.16, 0.135])
GROUP, TARGET = symmetric(3), 4
each = pytest.mark.parametrize("name", ACTIVATIONS)


def _problem(name: str, p=P) -> SingleTarget:
    return SingleTarget(GROUP, TARGET, jnp.asarray(p), name)


@jax.jit
def _relu_and_log_cosh(p):
    return _problem("relu", p).profile(), _problem("log_cosh", p).profile()


@each
def test_slopes_and_phi_are_those_of_the_activations(name):
    sigma = ACTIVATIONS[name]
    x = jnp.linspace(0.01, 4, 200)
    slope = sigma.slope(x)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(sigma.function))(x), rtol=1e-11)
    assert jnp.all(slope > 0)
    change = jnp.diff(sigma.phi(x))
    assert jnp.all(change > -1e-14) if sigma.focused else jnp.all(change < 0)
    near = float(sigma.phi(jnp.asarray(1e-7)))
    assert near > 1e6 if sigma.limit == np.inf else near == pytest.approx(sigma.limit, abs=1e-6)


def test_what_the_node_climbs_is_the_mean_over_its_pairs():
    w = np.random.default_rng(0).normal(size=(2, 6))
    pairs = [(g, k) for g in range(6) for k in range(6) if GROUP.table[g, k] == TARGET]
    assert len(pairs) == 6
    target = _problem("cube")
    assert float(target(jnp.asarray(w))) == pytest.approx(sum(P[g] * (w[0, g] + w[1, k]) ** 3 for g, k in pairs))
    s = target.sums(jnp.asarray(w))
    np.testing.assert_allclose(s, [w[0, g] + w[1, k] for g, k in pairs], rtol=1e-15)
    back = target.node(s)
    np.testing.assert_allclose(target.sums(back), s, rtol=1e-15)
    assert float(jnp.sum(back**2)) == pytest.approx(float(jnp.sum(s**2)) / 2, rel=1e-14) and np.sum(w**2) > np.sum(
        np.asarray(back) ** 2
    )


@pytest.mark.parametrize("name", ("square", "cube"))
def test_focused_nodes_hold_the_most_probable_pair_alone(name):
    target = _problem(name)
    w = np.zeros((2, 6))
    w[0, 1] = w[1, GROUP.table[GROUP.inverse[1], TARGET]] = np.sqrt(0.5)
    np.testing.assert_allclose(target.node(target.profile()), w, rtol=1e-15)


def test_spreading_profiles_that_are_known():
    relu, log_cosh = map(np.asarray, _relu_and_log_cosh(jnp.asarray(P)))
    np.testing.assert_allclose(relu, np.sqrt(2) * P / np.linalg.norm(P), rtol=1e-14)
    # log cosh: p tanh(s)/s is one number where s > 0, and p is below it elsewhere. Here two pairs live.
    live = log_cosh > 0
    assert sorted(P[live]) == [0.255, 0.3]
    multiplier = P[live] * np.tanh(log_cosh[live]) / log_cosh[live]
    assert multiplier[0] == pytest.approx(multiplier[1], rel=1e-13) and P[~live].max() < multiplier.min()
    assert np.sum(log_cosh**2) == pytest.approx(2, rel=1e-13)
    for each in _relu_and_log_cosh(jnp.full(6, 1 / 6)):
        np.testing.assert_allclose(each, np.sqrt(1 / 3), rtol=1e-14)
    relu, log_cosh = _relu_and_log_cosh(jnp.array([0.0, 0.4, 0.1, 0.3, 0.2, 0.0]))  # a pair that never comes
    assert relu[0] == log_cosh[0] == 0
    assert float(relu[1] / relu[2]) == pytest.approx(4, rel=1e-14)


@each
def test_the_profile_is_a_maximum(name):
    target = _problem(name)

    @jax.jit
    def at_profile():
        w = target.node(target.profile())
        return w, SphereAscent(target)(0.0, w), ScaledAscent(target)(0.0, w)

    w, along_sphere, scaled = at_profile()
    assert float(jnp.sum(w**2)) == pytest.approx(1, rel=1e-13)
    assert jnp.max(jnp.abs(along_sphere)) < 1e-14 and jnp.max(jnp.abs(scaled)) < 1e-13
    others = np.random.default_rng(1).normal(size=(500, 2, 6))
    others[::2] = np.abs(others[::2])
    others /= np.linalg.norm(others, axis=(1, 2), keepdims=True)
    others[1::5] = 0.99 * np.asarray(w) + 0.01 * others[1::5]  # near it too
    others /= np.linalg.norm(others, axis=(1, 2), keepdims=True)
    assert float(target(w)) > jnp.max(jax.vmap(target)(jnp.asarray(others)))


def test_every_pair_is_a_local_maximum_of_the_cube_and_one_of_the_square():
    rng = np.random.default_rng(3)
    for name in ("cube", "square"):
        target = _problem(name)
        value = jax.jit(jax.vmap(target))
        pairs = np.asarray(jax.vmap(target.node)(np.sqrt(2) * jnp.eye(6)))
        ways = np.concatenate([pairs, -pairs, rng.normal(size=(200, 2, 6)) / 4])
        near = pairs[:, None] + 0.05 * ways[None]
        near /= np.linalg.norm(near, axis=(2, 3), keepdims=True)
        gain = np.asarray(value(near.reshape(-1, 2, 6))).reshape(6, -1) - np.asarray(value(pairs))[:, None]
        highest = np.max(gain, axis=1)  # a step along the pair itself leads nowhere
        np.testing.assert_array_equal(highest < 1e-15, np.ones(6, bool) if name == "cube" else P == P.max())


def test_gradients_are_those_of_the_maximum():
    p = jnp.asarray(P)
    unit = P / np.linalg.norm(P)
    closed = np.sqrt(2) * (np.eye(6) - np.outer(unit, unit)) / np.linalg.norm(P)  # of √2 p/‖p‖
    of_relu, of_log_cosh = jax.jit(jax.jacrev(_relu_and_log_cosh))(p)
    np.testing.assert_allclose(of_relu, closed, atol=1e-13)
    v = jnp.array([1.0, 2.0, -1.0, 3.0, 0.5, -5.5])
    up, down = (_relu_and_log_cosh(p + h * v)[1] for h in (1e-7, -1e-7))
    np.testing.assert_allclose(of_log_cosh @ v, (up - down) / 2e-7, atol=1e-7)
    assert np.abs(of_log_cosh @ v).max() > 1


def test_batches_and_float32():
    several = jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(6), 3))
    for together, alone in zip(jax.vmap(_relu_and_log_cosh)(several), _relu_and_log_cosh(several[1]), strict=True):
        np.testing.assert_allclose(together[1], alone, rtol=1e-13)
    for narrow, wide in zip(_relu_and_log_cosh(P.astype(np.float32)), _relu_and_log_cosh(P), strict=True):
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, wide, atol=1e-6)
    single = _problem("silu", P.astype(np.float32))
    w = single.node(jnp.ones(6, jnp.float32))
    assert w.dtype == single(w).dtype == jnp.float32


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: _problem("gelu"), r"activation must be one of square, cube, .*, got 'gelu': .*monotone for x > 0"),
        (lambda: SingleTarget(cyclic(2), 0, jnp.array([0.4, 0.6]), "relu"), "order 3 or more, got Z2"),
        (
            lambda: SingleTarget(GROUP, 6, jnp.asarray(P), "relu"),
            "target must be an integer of at least 0 and at most 5, got 6",
        ),
        (
            lambda: SingleTarget(GROUP, -1, jnp.asarray(P), "relu"),
            "target must be an integer of at least 0 and at most 5, got -1",
        ),
        (lambda: _problem("relu", P[:5]), r"probabilities must have shape \(6,\), got \(5,\)"),
        (lambda: _problem("relu", P + 0.1), "p must sum to one"),
        (lambda: _problem("relu", P - 0.1 * np.eye(6)[2] + 0.1 * np.eye(6)[0]), "p must not be negative"),
        (lambda: _problem("cube", [0.1, 0.3, 0.3, 0.1, 0.1, 0.1]), "one largest entry for cube, got .*0.3 twice"),
        (lambda: _problem("relu")(jnp.ones((2, 5))), r"w must have shape \(2, 6\), got \(2, 5\)"),
        (lambda: _problem("relu").node(jnp.ones(5)), r"s must have shape \(6,\), got \(5,\)"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
