import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics import joma, map_lanes, solve

MU = jnp.linspace(0.5, 3.0, 11)


def cubes(x):
    return {"cube": x**3, "three": 3.0, "name": "cubes"}


@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 100, None])
def test_map_lanes_is_vmap(batch_size):
    found = map_lanes(cubes, MU, batch_size=batch_size)
    np.testing.assert_array_equal(found["cube"], MU**3)
    np.testing.assert_array_equal(found["three"], np.full(11, 3.0))
    assert found["name"] == "cubes"


def test_lanes_may_be_trees_keys_and_traced():
    keys = jax.random.split(jax.random.key(0), 11)
    fn = lambda lane: lane["mu"] * jax.random.uniform(lane["key"])
    lanes = {"mu": MU, "key": keys}
    expected = jax.vmap(fn)(lanes)
    np.testing.assert_array_equal(map_lanes(fn, lanes, batch_size=4), expected)
    np.testing.assert_array_equal(jax.jit(lambda x: map_lanes(fn, x, batch_size=4))(lanes), expected)
    nested = jax.vmap(lambda scale: map_lanes(lambda x: scale * x, MU, batch_size=4))(jnp.arange(3.0))
    np.testing.assert_allclose(nested, jnp.arange(3.0)[:, None] * MU[None], rtol=1e-15)


def test_gradients_pass():
    loss = lambda scale: jnp.sum(map_lanes(lambda x: (scale * x) ** 2, MU, batch_size=4))
    np.testing.assert_allclose(jax.grad(loss)(3.0), 6 * jnp.sum(MU**2), rtol=1e-14)


def test_a_mesh_changes_nothing():
    mesh = jax.make_mesh((1,), ("lanes",))
    flow = lambda mu: solve(joma.LogGap(mu * jnp.ones(2)), jnp.zeros(2), jnp.array([0.5, 1.0]), throw=False).ys
    alone = map_lanes(flow, MU, batch_size=4)
    np.testing.assert_array_equal(map_lanes(flow, MU, batch_size=4, mesh=mesh), alone)


def test_memory_does_not_grow_with_the_lanes():
    def lane(x):
        return jnp.sum(jnp.linalg.matrix_power(x * jnp.ones((32, 32)), 5))

    def temporary(number):
        compiled = jax.jit(lambda x: map_lanes(lane, x, batch_size=100)).lower(jnp.ones(number)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one_chunk = temporary(100)
    assert one_chunk > 100 * 32 * 32 * 8 / 2
    assert temporary(100_000) < 2 * one_chunk


def test_one_compilation_for_all_values():
    traced = eqx.debug.assert_max_traces(lambda x: x**2, max_traces=1)
    for scale in (1.0, 2.0, 3.0):
        map_lanes(traced, scale * MU, batch_size=4)


@pytest.mark.parametrize(
    "lanes, batch_size, message",
    [
        (jnp.ones(0), None, "at least one lane"),
        ({"a": jnp.ones(2), "b": jnp.ones(3)}, None, "common leading axis"),
        (jnp.ones(()), None, "common leading axis"),
        ({}, None, "common leading axis"),
        (MU, 0, "batch_size must be an integer of at least 1, got 0"),
        (MU, 1.5, "batch_size must be an integer"),
        (np.array(["a"]), None, "lanes must be a number or an array of numbers, got <U1"),
        ([1.0, 2.0], None, r"lanes\[0\] must be an array, got 1.0"),
        (["a", "b"], None, r"lanes\[0\] must be an array, got 'a'"),
    ],
)
@pytest.mark.usefixtures("as_users")
def test_bad_lanes(lanes, batch_size, message):
    with pytest.raises(ValueError, match=message):
        map_lanes(cubes, lanes, batch_size=batch_size)


@pytest.mark.parametrize(
    "options, message",
    [({"fn": None}, "fn must be callable, got None"), ({"mesh": "2x1"}, "mesh must be a jax.sharding.Mesh, got '2x1'")],
)
@pytest.mark.usefixtures("as_users")
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        map_lanes(**({"fn": cubes, "lanes": MU} | options))
