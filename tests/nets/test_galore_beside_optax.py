"""Where GaLore must not fail, and `optax.contrib.galore` does: it takes each test too, and has to fail it."""

import functools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core as jax_core

from traindyn.nets.galore import (
    GaLoreDimensionNumbers,
    exact_svd,
    galore,
    gram_eigh,
    randomized_range,
    scale_by_galore,
    subspace_iteration,
)

SGD = optax.identity()
PROJECTORS = {
    "exact_svd": exact_svd(),
    "gram_eigh": gram_eigh(),
    "randomized_range": randomized_range(),
    "subspace_iteration": subspace_iteration(),
}


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


# ---- A matrix in a tree


class _Layer(eqx.Module):
    """Some arrays of an Equinox model: a matrix, a bias, and a bias that is not there."""

    weight: jax.Array
    bias: jax.Array
    none: None = None


HEADS = GaLoreDimensionNumbers(0, (1, 2))
OURS = functools.partial(galore, 0.1, 2, 3, projector=exact_svd(), stagger=False)
THEIRS = functools.partial(optax.contrib.galore, 0.1, 2, 3)
with_heads, without_heads = lambda w: w.reshape(*w.shape[:-1], 2, 5), lambda w: w.reshape(*w.shape[:-2], 10)
# By name: options; from a matrix of 6 × 10 and a stack of three, a tree; from the tree, the matrices again.
TREES = {
    "Equinox layer, None, scalar": (
        {},
        lambda w, stack: {"layer": _Layer(w, w[..., 0]), "scalar": w[..., 0, 0]},
        lambda tree: [tree["layer"].weight],
    ),
    "stacked layers": ({}, lambda w, stack: stack, list),
    "heads as an axis": (
        {"weight_dimension_numbers": HEADS},
        lambda w, stack: with_heads(w),
        lambda tree: [without_heads(tree)],
    ),
    "one spec, mixed axes": (
        {"weight_dimension_numbers": HEADS},
        lambda w, stack: [w, with_heads(w)],
        lambda tree: [tree[0], without_heads(tree[1])],
    ),
}
REFUSED_BY_OPTAX = {"Equinox layer, None, scalar": AttributeError, "one spec, mixed axes": ValueError}


def _end(tx, grads):
    """The parameters after updates from given gradients."""

    @jax.jit
    def run(grads):
        start = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads)

        def step(carry, g):
            updates, state = tx.update(g, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (start, tx.init(start)), grads)[0][0]

    return run(grads)


def _off_by(maker, name, w, stack):
    """How far the matrices of a tree end from the same matrices by themselves, relative to these."""
    options, make, matrices = TREES[name]
    found = matrices(_end(maker(**options), make(w, stack)))
    alone = [stack[:, i] for i in range(3)] if name == "stacked layers" else [w]
    expected = [_end(maker(), g) for g in alone] * (len(found) // len(alone))
    pairs = zip(found, expected, strict=True)
    return max(float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in pairs)


@pytest.mark.parametrize("name", TREES)
def test_a_matrix_in_a_tree_is_treated_as_by_itself(name):
    w, stack = _normal(7, 6, 10), _normal(7, 3, 6, 10, seed=1)
    assert _off_by(OURS, name, w, stack) <= 1e-12
    if name in REFUSED_BY_OPTAX:
        with pytest.raises(REFUSED_BY_OPTAX[name]):
            _off_by(THEIRS, name, w, stack)
    else:  # a stack it leaves whole
        assert (_off_by(THEIRS, name, w, stack) > 0.01) == (name == "stacked layers")


# ---- Gradients that make no basis


@functools.partial(jax.jit, static_argnames="tx")
def _shares(tx, first, grads):
    """The shares of the energy of gradients that are in their updates, after a `first` one."""
    state = tx.update(first, tx.init(first))[1]

    def step(state, g):
        update, state = tx.update(g, state)
        return state, jnp.sum(update**2) / jnp.sum(g**2)

    return jax.lax.scan(step, state, grads)[1]


@pytest.mark.parametrize("bad", (0.0, np.nan), ids=("zero", "NaN"))
def test_the_next_good_gradient_makes_the_basis(bad):
    """For all of the gap, where `optax.contrib` keeps e₁…e_r after zeros, and NaN after NaN."""
    rng, rank = np.random.default_rng(0), 4
    signal = np.linalg.qr(rng.standard_normal((16, rank)))[0] * 3 @ rng.standard_normal((rank, 48))
    grads = signal + rng.standard_normal((40, 16, 48))
    basis = np.linalg.svd(grads[0])[0][:, :rank]
    best = np.sum((basis.T @ grads) ** 2, axis=(1, 2)) / np.sum(grads**2, axis=(1, 2))
    first, ours = jnp.full((16, 48), bad), scale_by_galore(SGD, rank, 200, projector=exact_svd())
    np.testing.assert_allclose(_shares(ours, first, grads), best, rtol=0, atol=1e-12)
    theirs = np.asarray(_shares(optax.contrib.scale_by_galore(rank, 200, 1.0, SGD), first, grads))
    assert np.all(np.isnan(theirs)) if np.isnan(bad) else np.all(theirs < 0.8 * best)


def test_rounding_noise_is_not_blown_up():
    """A rank-one gradient with rank 8: Adam would make the seven empty rows as large as the one that is not."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal(256), rng.standard_normal(512)
    g = jnp.asarray(np.outer(u, v), jnp.float32)

    def stray(tx):
        """The share of the update's energy that is not along the one direction of the gradient's columns."""
        update = np.asarray(jax.jit(lambda g: tx.update(g, tx.init(g))[0])(g), float)
        return 1 - np.sum((u @ update) ** 2) / np.sum(u**2) / np.sum(update**2)

    for projector in PROJECTORS.values():
        assert abs(stray(scale_by_galore(rank=8, projector=projector))) <= 1e-6
    assert stray(scale_by_galore(rank=8, rank_tol=0.0)) > 0.1
    assert stray(optax.contrib.scale_by_galore(8)) > 0.1


def test_complex_gradients_are_projected_as_such():
    """`optax.contrib` decomposes the real part, which for an imaginary gradient is zero."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for shape in ((12, 4), (4, 20)))
    ours, theirs = scale_by_galore(SGD, 4, projector=exact_svd()), optax.contrib.scale_by_galore(4, 200, 1.0, SGD)
    first = jax.jit(lambda tx, g: tx.update(g, tx.init(g)), static_argnums=0)
    for g in (jnp.asarray(a @ b), jnp.asarray(1j * (a.real @ b.real))):
        for each in (g, g.T):
            update, state = first(ours, each)
            np.testing.assert_allclose(update, each, rtol=1e-10, atol=1e-10)
            assert state.captured > 1 - 1e-12
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the imaginary part is discarded, of which JAX warns
            update, _ = first(theirs, g)
        assert jnp.sum(jnp.abs(update) ** 2) < 0.9 * jnp.sum(jnp.abs(g) ** 2)


# ---- Many at once


def _outside(jaxpr):
    """Matrix decompositions and floating-point operations of products in a program, not counting what stands in a
    branch of a conditional."""
    decompositions = flops = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("svd", "eigh", "qr", "geqrf", "householder_product"):
            decompositions += int(np.prod(equation.invars[0].aval.shape[:-2]))
        if name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            flops += 2 * int(np.prod(equation.outvars[0].aval.shape) * inner)
        if name == "cond":
            continue
        for inner in jax_core.jaxprs_in_params(equation.params):
            more = _outside(inner)
            decompositions, flops = decompositions + more[0], flops + more[1]
    return decompositions, flops


def _of_a_step(tx, lanes):
    """What a step of so many optimisers side by side, or of one, computes outside of conditionals, for two matrices."""
    shape = () if lanes is None else (lanes,)
    grads = {name: jax.ShapeDtypeStruct((*shape, *size), float) for name, size in (("a", (6, 10)), ("b", (10, 6)))}
    over = (lambda f: f) if lanes is None else jax.vmap
    return _outside(jax.make_jaxpr(over(tx.update))(grads, jax.eval_shape(over(tx.init), grads)).jaxpr)


@pytest.mark.parametrize("lanes", (1, 4))
def test_off_the_schedule_lanes_compute_no_basis(lanes):
    """And as many products as alone. JAX turns a conditional on a batched number into both of its branches, which
    decomposes every matrix at every step of `optax.contrib`."""
    ours, theirs = scale_by_galore(rank=3, update_proj_gap=3), optax.contrib.scale_by_galore(3, 3)
    (none, products), (bases, many) = _of_a_step(ours, None), _of_a_step(ours, lanes)
    assert none == bases == 0 and many == lanes * products > 0
    assert _of_a_step(theirs, None)[0] == 0 and _of_a_step(theirs, lanes)[0] == 2 * lanes
