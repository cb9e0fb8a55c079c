"""The semi-ring against networks evaluated by hand, the solutions, the paths, the flows, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics import composing as cg
from traindyn.dynamics import solve
from traindyn.dynamics.groups import dihedral

RNG = np.random.default_rng(0)
Z5, Z6, Z3X3 = cg.cyclic(5), cg.cyclic(6), cg.product(3, 3)
LOSS, PRINTED, DIRECT = (jax.jit(f, static_argnums=1) for f in (cg.loss, cg.printed_loss, cg.direct_loss))
POTENTIALS = jax.jit(cg.potentials)


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def _weights(group, nodes=6):
    return cg.Weights(*(_normal(group.order, nodes) for _ in range(3)))


def _element(group, nodes):
    return cg.from_weights(*_weights(group, nodes), group)


def _network_loss(z):
    """By the definition, in numpy."""
    a, b, c = (np.asarray(w) for w in z.to_weights())
    d = z.group.order
    outputs = ((a[:, None] + b[None]) ** 2) @ c.T / (2 * d) - np.eye(d)[z.group.table]
    outputs = outputs - outputs.mean(axis=2, keepdims=True)
    return np.mean(np.sum(outputs**2, axis=2))


@pytest.mark.parametrize("group", [Z6, Z3X3], ids=lambda g: g.name)
def test_loss_is_that_of_the_network(group):
    z = _element(group, 6)
    np.testing.assert_allclose(LOSS(z.z, group), _network_loss(z), rtol=1e-12)
    np.testing.assert_allclose(DIRECT(z.to_weights(), group), _network_loss(z), rtol=1e-12)


def test_printed_loss_needs_zero_means():
    w = _weights(Z5)
    z = cg.from_weights(*w, Z5)
    assert abs(PRINTED(z.z, Z5) / _network_loss(z) - 1) > 1e-3
    centred = cg.from_weights(w.a - w.a.mean(0, keepdims=True), w.b - w.b.mean(0, keepdims=True), w.c, Z5)
    np.testing.assert_allclose(PRINTED(centred.z, Z5), _network_loss(centred), rtol=1e-12)


def test_transform_and_back():
    w = _weights(Z3X3)
    z = cg.from_weights(*w, Z3X3)
    np.testing.assert_allclose(jnp.stack(z.to_weights()), jnp.stack(w), rtol=0, atol=1e-13)
    np.testing.assert_allclose(9 * z.norm(), jnp.sum(jnp.stack(w) ** 2), rtol=1e-13)


def test_potentials_are_homomorphisms():
    y, z = _element(Z5, 2), _element(Z5, 3)
    for total, product, of_y, of_z in zip(*(POTENTIALS(s.z) for s in (y + z, y * z, y, z)), strict=True):
        np.testing.assert_allclose(total, of_y + of_z, rtol=0, atol=1e-12)
        np.testing.assert_allclose(product, of_y * of_z, rtol=0, atol=1e-12)
    assert (y + z).nodes == 5 and (y * z).nodes == 6
    np.testing.assert_array_equal((cg.one(Z5) * z).z, z.z)
    np.testing.assert_array_equal((cg.zero(Z5) + z).z, z.z)


SOLUTIONS = {
    "f6": cg.f6,
    "f6, free": functools.partial(cg.f6, nus=[1j, np.exp(0.4j)], phases=[(0.3, 1.0), (2.0, -1.0)]),
    "variant": functools.partial(cg.f6_variant, alphas=[1.0, np.exp(1j)], betas=[1j, 1], phases=[(1.0, 0.0)] * 2),
    "f4_6": functools.partial(cg.f4_6, xis=[np.exp(0.7j), -1], phases=[(0.3, 1.0), (2.0, -1.0)]),
    "f4_6, k0": functools.partial(cg.f4_6, k0=2),
    "f4_biased": cg.f4_biased,
    "f9": cg.f9,
    "memorisation": cg.memorisation,
}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_solutions_have_zero_loss(name):
    z = SOLUTIONS[name](Z5)
    assert _network_loss(z) < 1e-24
    assert np.abs(np.sum(np.prod(np.asarray(z.z)[:, 1:], axis=0), axis=1) - 1).max() < 1e-12


@pytest.mark.parametrize("group", [cg.cyclic(2), Z6, cg.product(2, 2)], ids=lambda g: g.name)
def test_self_conjugate_frequencies(group):
    assert _network_loss(cg.f6(group)) < 1e-24 and _network_loss(cg.memorisation(group)) < 1e-24


def test_memorisation_of_a_larger_order_is_accepted():
    assert cg.memorisation(cg.cyclic(23)).nodes == 529


def test_polynomial():
    columns = cg.polynomial(np.exp(1j * np.array([0.7, 1.9, -2.6])))
    assert columns.shape == (3, 9)
    assert _network_loss(cg.from_blocks(Z5, lambda _: columns)) < 1e-24


def test_norms():
    np.testing.assert_allclose(cg.f6(Z5).norm(), cg.least_norm(0, 2), rtol=1e-12)
    np.testing.assert_allclose(cg.f4_6(Z5).norm(), cg.least_norm(1, 1), rtol=1e-12)


def test_occam_path_ends_at_the_pseudo_identity():
    y = cg.one(Z5) * 0.5 + cg.one(Z5) * 0.875 ** (1 / 3)  # r = 1/8 + 7/8
    f6 = cg.f6(Z5)
    for t in (0.0, 0.5, 1.0, 1.7, 2.5, 3.3, 4.0):
        assert _network_loss(cg.occam_path(y, t) * f6) < 1e-24
    np.testing.assert_array_equal(cg.occam_path(y, 0.0).z, y.z)
    np.testing.assert_array_equal(cg.occam_path(y, 4.0).z, cg.pseudo_identity(Z5, 2).z)


def test_optimum_path():
    first, second = cg.f6(Z5), cg.f4_6(Z5)
    assert max(_network_loss(cg.optimum_path(first, second, t)) for t in (0.0, 0.3, 0.9, 1.0)) < 1e-24


def test_truncated_flow_is_the_motion_of_its_potentials():
    flow = cg.TruncatedFlow(5)
    y0 = flow.pack(_element(Z5, 4).z[:, 1:])
    z = flow.unpack(y0)
    velocity = jax.jvp(flow.potentials, (z,), (flow.descent(z),))[1]
    np.testing.assert_allclose(flow.velocity(z), velocity, rtol=0, atol=1e-13)
    target = cg.target(4).astype(z.dtype)
    gap = target - flow.potentials(z)
    np.testing.assert_allclose(2 / 25 * flow.gram(z) @ gap.reshape(-1), velocity.reshape(-1), rtol=0, atol=1e-13)
    end = solve(flow, y0, [1.0]).ys[-1]
    np.testing.assert_allclose(jnp.conj(flow.unpack(end)), flow.unpack(end)[:, ::-1], rtol=0, atol=1e-9)  # Hermitian
    assert jnp.sum(jnp.abs(target - flow.potentials(flow.unpack(end))) ** 2) < jnp.sum(jnp.abs(gap) ** 2)


def test_infinite_width_closed_form():
    flow, r0 = cg.InfiniteWidth.of(5, 64, 0.5), _normal(4, 4, 4)
    np.testing.assert_allclose(flow.rate, 6 * 64 * 0.1**2 / 25)
    np.testing.assert_allclose(flow.exact(r0, 3.0), solve(flow, r0, [3.0]).ys[0], rtol=1e-9)
    slope = jax.jvp(lambda t: flow.exact(r0, t), (0.0,), (1.0,))[1]
    np.testing.assert_allclose(slope, flow(0.0, r0), rtol=1e-12)


def test_works_under_jit_grad_and_vmap():
    z = _element(Z5, 3)
    grads = jax.jit(jax.vmap(jax.grad(lambda w: cg.from_weights(*w, Z5).loss())))(
        jax.tree.map(lambda w: jnp.stack([w, 2 * w]), z.to_weights())
    )
    one = jax.grad(lambda w: cg.direct_loss(w, Z5))(z.to_weights())
    np.testing.assert_allclose(grads.c[0], one.c, rtol=1e-9, atol=1e-12)


def test_float32_stays():
    w = [np.asarray(x, np.float32) for x in _weights(Z5)]
    z = cg.from_weights(*w, Z5)
    assert z.z.dtype == jnp.complex64 and z.to_weights().a.dtype == z.loss().dtype == jnp.float32


def test_refused(as_users):
    z = np.array(_element(Z5, 2).z)
    with pytest.raises(ValueError, match="Hermitian"):
        cg.Solution(z * 1j, Z5)
    with pytest.raises(ValueError, match="shape"):
        cg.Solution(z[:, :4], Z5)
    with pytest.raises(ValueError, match="not supported"):
        cg.f6(dihedral(3))
    for operation in ("__add__", "__mul__"):
        with pytest.raises(ValueError, match="needs one group"):
            getattr(cg.f6(Z5), operation)(cg.f6(Z6))
    with pytest.raises(ValueError, match="k must be an integer of at least 1 and at most 4, got 0"):
        cg.at_frequency(Z5, 0, cg.phase())
    with pytest.raises(ValueError, match="must be real where k is its own conjugate"):
        cg.at_frequency(Z6, 3, cg.phase(0.3))
    with pytest.raises(ValueError, match="k0 must be one of"):
        cg.f4_6(Z5, 4)
    with pytest.raises(ValueError, match=r"each of 2 frequencies, got \[1j\]"):
        cg.f6(Z5, nus=[1j])
    with pytest.raises(ValueError, match="a·b·c = 1"):
        cg.polynomial(np.array([1j, 1, 1]))
    with pytest.raises(ValueError, match="is to vanish"):
        cg.polynomial(np.ones(3))
    with pytest.raises(ValueError, match="at least 2 nodes"):
        cg.occam_path(cg.one(Z5), 0.5)
    with pytest.raises(ValueError, match="y must have a node besides the first with a·b ≠ 0 at every k"):
        cg.occam_path(cg.pseudo_identity(Z5, 2), 1.0)
    with pytest.raises(ValueError, match="order must be an integer of at least 1 and at most 1024, got 100000"):
        cg.target(10**5)
