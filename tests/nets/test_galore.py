"""The GaLore transform: exact where it must be, and the ways in which others fail."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets.galore import (
    GaLoreDimensionNumbers,
    GaLoreState,
    clip_by_previous_norm,
    exact_svd,
    galore,
    galore_labels,
    galore_refresh,
    galore_reset,
    galore_state_bytes,
    gram_eigh,
    random_orthonormal,
    randomized_range,
    scale_by_galore,
    subspace_iteration,
)
from traindyn.nets.quantise import dequantise, quantize_state

PROJECTORS = {
    "exact_svd": exact_svd(),
    "gram_eigh": gram_eigh(),
    "randomized_range": randomized_range(),
    "subspace_iteration": subspace_iteration(),
    "random_orthonormal": random_orthonormal(),
}
SGD = optax.identity()


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def _gradients(shape, steps=12, seed=0, dtype=float):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(steps, *shape)), dtype)


def _descend(tx, params, grads):
    """The parameters after updates from given gradients, and the state; one compiled scan."""

    @jax.jit
    def run(params, grads):
        def step(carry, g):
            updates, state = tx.update(g, carry[1], carry[0])
            return (optax.apply_updates(carry[0], updates), state), updates

        return jax.lax.scan(step, (params, tx.init(params)), grads)

    (params, state), updates = run(params, grads)
    return params, state, updates


def _tolerance(dtype):
    return {"float32": 2e-6, "float64": 1e-14}[np.dtype(dtype).name]


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in PROJECTORS), ("subspace_iteration", "float32")]
)
def test_at_full_rank_a_linear_optimiser_is_unchanged(name, dtype):
    """Gradient descent at any gap; heavy ball too, if the momentum is turned into the new basis."""
    shapes = {"wide": (6, 10), "tall": (10, 6), "square": (6, 6)}
    grads = {name: _gradients(shape, dtype=dtype) for name, shape in shapes.items()}
    start = jax.tree.map(lambda g: jnp.zeros_like(g[0]), grads)
    for inner in (SGD, optax.trace(0.9)):
        plain = _descend(optax.chain(inner, optax.scale(-0.1)), start, grads)[0]
        projected = _descend(galore(0.1, 6, 5, 1.0, inner, projector=PROJECTORS[name]), start, grads)[0]
        for shape in shapes:
            error = jnp.linalg.norm(projected[shape] - plain[shape]) / jnp.linalg.norm(plain[shape])
            assert projected[shape].dtype == dtype and error < _tolerance(dtype)


def test_momentum_that_is_kept_is_wrong_after_a_switch():
    grads, start = _gradients((6, 10)), jnp.zeros((6, 10))
    plain = _descend(optax.chain(optax.trace(0.9), optax.scale(-0.1)), start, grads)[0]
    kept = _descend(galore(0.1, 6, 5, 1.0, optax.trace(0.9), transport="keep", projector=exact_svd()), start, grads)[0]
    never = _descend(galore(0.1, 6, 100, 1.0, optax.trace(0.9), transport="keep"), start, grads)[0]
    assert jnp.linalg.norm(kept - plain) > 0.1 * jnp.linalg.norm(plain)
    np.testing.assert_allclose(never, plain, rtol=1e-12, atol=1e-13)


def test_adam_sees_the_basis():
    """Adam commutes with signed permutations, and is plain Adam on `V = Qᵀ W` for an orthogonal `Q`."""
    grads, start, rng = _gradients((6, 10)), jnp.zeros((6, 10)), np.random.default_rng(1)
    signed = jnp.asarray(np.eye(6)[rng.permutation(6)] * rng.choice([-1.0, 1.0], 6))
    orthogonal = jnp.asarray(np.linalg.qr(rng.normal(size=(6, 6)))[0])
    fixed = lambda basis: galore(0.1, 6, 5, projector=lambda g, previous, key, r: basis)
    plain, turned = (_descend(optax.adam(0.1), start, g)[0] for g in (grads, orthogonal.T[None] @ grads))
    np.testing.assert_allclose(_descend(fixed(signed), start, grads)[0], plain, rtol=1e-13, atol=1e-14)
    other = _descend(fixed(orthogonal), start, grads)[0]
    np.testing.assert_allclose(orthogonal.T @ other, turned, rtol=1e-12, atol=1e-14)
    assert jnp.linalg.norm(other - plain) > 0.1 * jnp.linalg.norm(plain)


def test_steps_are_the_algorithm_written_out():
    """Algorithm 2 in NumPy with Adam, SVDs at the gap, moments kept, for a tall and a wide matrix and a vector."""
    shapes, gap, rank, rate, scale = {"tall": (9, 5), "wide": (5, 9), "vector": (4,)}, 3, 2, 0.1, 0.25
    grads = {name: _gradients(shape, 8, seed) for seed, (name, shape) in enumerate(shapes.items())}
    start = jax.tree.map(lambda g: jnp.zeros(g.shape[1:]), grads)
    tx = galore(rate, rank, gap, scale, transport="keep", stagger=False, projector=exact_svd())
    ours = _descend(tx, start, grads)[0]
    for name, g in grads.items():
        g = np.asarray(g)
        g = np.swapaxes(g, 1, 2) if name == "tall" else g
        w, m, v = np.zeros(g.shape[1:]), 0.0, 0.0
        for t, each in enumerate(g):
            if name != "vector":
                if t % gap == 0:
                    p, theirs = np.linalg.svd(each)[0][:, :rank], exact_svd()(jnp.asarray(each), None, None, rank)
                    p = p * np.sign(np.sum(p * np.asarray(theirs), axis=0))  # signs of singular vectors are arbitrary
                each = p.T @ each
            m, v = 0.9 * m + 0.1 * each, 0.999 * v + 0.001 * each**2
            n = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
            w = w - rate * (n if name == "vector" else scale * p @ n)
        expected = w.T if name == "tall" else w
        np.testing.assert_allclose(ours[name], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("side", "left", "right"), [
    ("short", 6, None), ("long", None, 10), ("left", 6, None), ("right", None, 10), ("both", 6, 10),
])  # fmt: skip
def test_sides(side, left, right):
    """Which axis each side projects, and what a switch does to the moments there."""
    shape, grads = (6, 10), _gradients((6, 10))
    state = scale_by_galore(rank=3, side=side).init(jnp.zeros(shape))
    assert isinstance(state, GaLoreState)
    for basis, size in ((state.left, left), (state.right, right)):
        assert isinstance(basis, optax.MaskedNode) if size is None else basis.shape == (size, 3)
    assert state.inner_state.mu.shape == (3 if left else 6, 3 if right else 10)
    plain = _descend(optax.chain(optax.trace(0.9), optax.scale(-0.1)), jnp.zeros(shape), grads)[0]
    ours = _descend(galore(0.1, 6, 4, 1.0, optax.trace(0.9), side=side), jnp.zeros(shape), grads)[0]
    exact = side in ("short", "left")  # the others keep 6 of 10 columns' directions
    assert (jnp.linalg.norm(ours - plain) < 1e-13 * jnp.linalg.norm(plain)) == exact


def test_update_has_the_rank_and_the_size():
    """`scale × P N`, of rank `r`, for `N` what Adam makes of `Pᵀ G`; `PᵀP = I`, so back and forth is the identity."""
    grads = _gradients((12, 20), 2)
    tx, adam = scale_by_galore(rank=3, update_proj_gap=100, scale=0.25), optax.scale_by_adam()
    update, adam_update = jax.jit(tx.update), jax.jit(adam.update)
    state, low_state = tx.init(grads[0]), adam.init(jnp.zeros((3, 20)))
    for g in grads:
        full, state = update(g, state)
        low, low_state = adam_update(state.left.T @ g, low_state)
        np.testing.assert_allclose(full, 0.25 * state.left @ low, rtol=1e-10, atol=1e-13)
        assert np.linalg.matrix_rank(full) == 3
        np.testing.assert_allclose(state.left.T @ state.left, np.eye(3), atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captured_energy(dtype):
    """The exact projector captures the leading singular values' energy; bases are orthonormal."""
    k, o, r = 64, 256, 8
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, k)))[0] for n in (k, o))
    singular = np.arange(1, k + 1) ** -0.5
    g = jnp.asarray(u * singular @ v.T, dtype)
    best = np.sum(singular[:r] ** 2) / np.sum(singular**2)
    least = {"exact_svd": 1, "gram_eigh": 1, "randomized_range": 0.95, "subspace_iteration": 0.9}
    for name, projector in PROJECTORS.items():
        tx = scale_by_galore(rank=r, projector=projector)
        state = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g))[1])(g)
        basis = state.left.astype(jnp.float32)
        assert jnp.max(jnp.abs(basis.T @ basis - jnp.eye(r, dtype=jnp.float32))) < (
            5e-6 if dtype == "float32" else 2e-2
        )
        if name in least:
            assert least[name] - 2e-3 <= state.captured / best < 1 + 2e-3, name


def test_merged_axes_are_a_matrix():
    grads = _gradients((3, 6, 10))
    options = {"update_proj_gap": 4, "projector": exact_svd()}
    spec = GaLoreDimensionNumbers(1, (0, 2))
    merged = _descend(galore(0.1, 2, **options, weight_dimension_numbers=spec), jnp.zeros((3, 6, 10)), grads)[0]
    flat = jnp.moveaxis(grads, 2, 1).reshape(-1, 6, 30)
    by_hand = _descend(galore(0.1, 2, **options), jnp.zeros((6, 30)), flat)[0]
    np.testing.assert_allclose(jnp.moveaxis(merged, 1, 0).reshape(6, 30), by_hand, rtol=1e-12, atol=1e-14)


def test_trees(key):
    """An Equinox model's arrays with `None`, scalars, an empty tree, a mixed spec, partial ranks."""
    params = eqx.filter(eqx.nn.MLP(8, 4, 16, 2, key=key), eqx.is_array)
    tx = scale_by_galore(rank=4)
    updates, state = jax.jit(lambda p: tx.update(jax.tree.map(jnp.ones_like, p), tx.init(p)))(params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert state.left.layers[1].weight.shape == (16, 4) and state.right.layers[0].weight.shape == (8, 4)
    assert isinstance(state.left.layers[0].bias, optax.MaskedNode)
    assert tx.init({}).left == {} and tx.update({}, tx.init({}))[0] == {}
    assert tx.init({"scalar": jnp.zeros(())}).inner_state.mu["scalar"].shape == ()


def test_options_for_each_leaf():
    shapes = {"a": (4, 6), "b": (4, 2, 6), "c": (2, 4, 6), "d": (6, 6)}
    params = {name: jax.ShapeDtypeStruct(shape, float) for name, shape in shapes.items()}
    init = lambda **options: jax.eval_shape(scale_by_galore(**options).init, params)
    dims = {"b": GaLoreDimensionNumbers(0, (1, 2)), "d": None}
    state = init(rank=2, weight_dimension_numbers=dims)
    assert [state.left[x].shape for x in "abc"] == [(4, 2), (4, 2), (2, 4, 2)]
    assert state.inner_state.mu["d"].shape == (6, 6) and state.inner_state.mu["b"].shape == (2, 12)
    state = init(rank={"a": 3, "b": None, "c": 0.5})
    assert state.left["a"].shape == (4, 3) and state.left["c"].shape == (2, 4, 2)
    assert state.inner_state.mu["b"].shape == (4, 2, 6) and state.inner_state.mu["d"].shape == (6, 6)
    state = init(rank=lambda name, shape: 2 if name != "d" else None)
    assert state.left["b"].shape == (4, 2, 2) and isinstance(state.left["d"], optax.MaskedNode)
    state = init(rank=3)  # above the short side of "b", which is left whole
    assert isinstance(state.left["b"], optax.MaskedNode) and state.left["c"].shape == (2, 4, 3)


def test_zero_and_nan_gradients_do_not_make_a_basis():
    grads = _gradients((6, 10), 4)
    tx = scale_by_galore(SGD, 2, 100, projector=exact_svd())
    update = jax.jit(tx.update)
    for bad in (jnp.zeros((6, 10)), jnp.full((6, 10), jnp.nan)):
        state = update(bad, tx.init(bad))[1]
        assert state.last_refresh == -1 and not jnp.any(state.left)
        shown, _ = update(bad, update(grads[0], state)[1])  # and the gradient itself is not hidden
        np.testing.assert_array_equal(jnp.isnan(shown), jnp.isnan(bad))
        state = update(grads[0], state)[1]
        assert state.last_refresh == 1
        best = jnp.sum(jnp.linalg.svd(grads[0])[1][:2] ** 2) / jnp.sum(grads[0] ** 2)
        np.testing.assert_allclose(state.captured, best, rtol=1e-12)
        again = update(bad, galore_reset(state))[1]
        np.testing.assert_array_equal(again.left, state.left)


def test_narrow_moments_keep_small_rows():
    """Only rounding noise is dropped, whatever the dtype of the moments: not what is small beside the largest row."""
    g = jnp.diag(jnp.array([1.0, 0.05, 0.01, 0.001])).astype(jnp.bfloat16)
    tx = scale_by_galore(SGD, 4, accumulator_dtype=jnp.bfloat16, projector=exact_svd())
    update, _ = jax.jit(lambda g: tx.update(g, tx.init(g)))(g)
    np.testing.assert_allclose(update.astype(float), g.astype(float), rtol=0.02)


def _second_moments(tx, steps, ones):
    """The first entry of ν after each step, in float64: of gradients of one, `ones` of them, and then of zeros."""
    params = jnp.ones((4, 8), jnp.bfloat16)

    @jax.jit
    def run():
        def step(state, t):
            updates, state = tx.update(jnp.where(t < ones, params, 0 * params), state)
            assert updates.dtype == jnp.bfloat16
            return state, optax.tree.get(state, "nu").ravel()[0].astype(float)

        return jax.lax.scan(step, tx.init(params), jnp.arange(steps))[1]

    return run()


def test_bfloat16_keeps_its_moments_in_float32():
    """They decay and grow as exact ones; in bfloat16, as those of `optax.scale_by_adam`, 0.999 is 1."""
    steps, basis = 1001, lambda g, p, key, r: jnp.eye(4, 2, dtype=g.dtype)
    ours, adam = scale_by_galore(rank=2, side="left", projector=basis), optax.scale_by_adam()
    t = np.arange(1, steps + 1)
    for ones, exact in ((1, 1e-3 * 0.999 ** (t - 1)), (steps, 1 - 0.999**t)):
        np.testing.assert_allclose(_second_moments(ours, steps, ones), exact, rtol=0.02)
        assert abs(_second_moments(adam, steps, ones)[-1] / exact[-1] - 1) > 0.1
    ones = jnp.ones((4, 8), jnp.bfloat16)
    assert ours.init(ones).left.dtype == jnp.bfloat16
    everything = scale_by_galore(rank=2, accumulator_dtype=jnp.bfloat16).init(ones)
    assert everything.inner_state.nu.dtype == jnp.bfloat16


def test_jit_and_scan_agree_to_the_bit():
    """Donated or not, for matrices. Operation by operation, the compiler fuses less, and the last bit may differ; as it
    does of `optax.adam` between a loop and a scan, and so of leaves that are not projected."""
    grads = {"wide": _gradients((6, 10), 7), "tall": _gradients((10, 6), 7, 1)}
    of_step = lambda t: jax.tree.map(lambda g: g[t], grads)
    tx, start = galore(0.1, 3, 3), jax.tree.map(jnp.zeros_like, of_step(0))
    scanned = _descend(tx, start, grads)[2]
    for update in (jax.jit(tx.update), jax.jit(tx.update, donate_argnums=1)):
        state = tx.init(start)
        for t in range(7):
            updates, state = update(of_step(t), state)
            for name in grads:
                np.testing.assert_array_equal(updates[name], scanned[name][t])
    first, state = tx.update(of_step(0), tx.init(start))
    for t, updates in enumerate((first, tx.update(of_step(1), state)[0])):
        for name in grads:
            np.testing.assert_allclose(updates[name], scanned[name][t], rtol=1e-10, atol=1e-14)
    other = grads | {"wide": grads["wide"] * (1 + 2**-52)}  # a last bit shows
    assert np.any(_descend(tx, start, other)[2]["wide"] != scanned["wide"])


def test_under_vmap_the_basis_is_still_conditional():
    """Also over states, whose counts are then batched; and each lane gets what it gets alone."""
    grads = jnp.moveaxis(_gradients((3, 6, 10), 7), 1, 0)
    tx = scale_by_galore(rank=2, update_proj_gap=3)
    states, update = jax.vmap(tx.init)(grads[:, 0]), jax.jit(jax.vmap(tx.update))
    total = 0.0
    for t in range(7):
        updates, states = update(grads[:, t], states)
        total += updates
    for lane in range(3):
        alone = _descend(tx, jnp.zeros((6, 10)), grads[lane])[0]
        np.testing.assert_allclose(total[lane], alone, rtol=0, atol=1e-12)
    late = states._replace(last_refresh=jnp.array([0, -1, 0]))  # a lane that is due does not touch the others
    new = update(grads[:, 0], late)[1]
    np.testing.assert_array_equal(new.left[::2], states.left[::2])
    assert jnp.any(new.left[1] != states.left[1])


def test_derivative_through_training():
    """A hypergradient: of the last loss with respect to the scale."""
    grads = _gradients((4, 6), 5)

    def last(scale):
        tx = scale_by_galore(SGD, 2, 2, scale, projector=exact_svd())
        run = lambda state, g: tx.update(g, state)[::-1]
        return jnp.sum(jax.lax.scan(run, tx.init(grads[0]), grads)[1] ** 2)

    np.testing.assert_allclose(jax.grad(last)(0.5), 2 * last(0.5) / 0.5, rtol=1e-10)


def test_refreshes_are_staggered_retried_and_scheduled():
    params = {name: jnp.zeros((4, 6)) for name in "abcd"}
    grads = jax.tree.map(lambda g: _gradients((4, 6), 9), params)
    last = lambda **options: jax.tree.map(
        int, _descend(scale_by_galore(rank=2, **options), params, grads)[1].last_refresh
    )
    assert last(update_proj_gap=8, stagger=False) == dict.fromkeys("abcd", 8)
    assert last(update_proj_gap=8) == {"a": 8, "b": 6, "c": 4, "d": 2}
    assert last(update_proj_gap=lambda n: n == 3, stagger=False) == dict.fromkeys("abcd", 3)
    assert last(update_proj_gap="external") == dict.fromkeys("abcd", -1)


def test_external_refresh_finds_the_state_anywhere():
    params = {"a": jnp.zeros((6, 10)), "b": jnp.zeros((6, 10)), "c": jnp.zeros(3)}
    grads = jax.tree.map(lambda p: _gradients(p.shape, 1)[0], params)
    options = {"projector": exact_svd(), "transport": "momentum"}
    label = lambda tree: galore_labels(tree, ["a"])
    tx = optax.partition({"galore": galore(0.1, 2, "external", **options), "full": optax.adam(0.1)}, label)
    state = tx.init(params)
    with pytest.raises(ValueError, match="state must be renewed by galore_refresh"):
        tx.update(grads, state, params)
    assert not jnp.any(jax.jit(tx.update)(grads, state, params)[0]["a"])  # there last_refresh says it
    assert "svd" not in str(jax.make_jaxpr(tx.update)(grads, state, params))
    state = jax.jit(lambda s, g: galore_refresh(s, g, **options))(state, grads)
    inner = scale_by_galore(rank=2, projector=exact_svd())
    expected = inner.update({"a": grads["a"]}, inner.init({"a": grads["a"]}))[0]["a"]
    np.testing.assert_allclose(tx.update(grads, state, params)[0]["a"], -0.1 * expected, rtol=1e-12, atol=1e-15)
    with pytest.raises(ValueError, match="got none for 'a'"):
        galore_refresh(state, {"b": grads["b"]})


def test_accumulation_is_one_update_of_the_mean():
    """In the small space, with decay and schedule once an update."""
    grads = _gradients((6, 10), 12)
    options = {"projector": random_orthonormal(), "weight_decay": 0.1, "stagger": False}
    schedule = lambda n: 0.1 / (1.0 + n)
    start = _gradients((6, 10), 1, 3)[0]
    basis = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(6, 2)))[0])
    options["projector"] = lambda g, previous, key, r: basis
    accumulated, state, updates = _descend(galore(schedule, 2, 2, accumulate=3, **options), start, grads)
    plain = _descend(galore(schedule, 2, 2, **options), start, grads.reshape(4, 3, 6, 10).mean(1))[0]
    np.testing.assert_allclose(accumulated, plain, rtol=1e-6)  # MultiSteps divides in float32
    assert not jnp.any(updates[jnp.array([0, 1, 3, 4])]) and jnp.all(jnp.any(updates[2::3] != 0, axis=(1, 2)))
    assert state[0].inner_state.acc_grads.shape == (2, 10) and state[0].last_refresh == 6


@pytest.mark.parametrize("transport", ["keep", "reset", "momentum", "full"])
def test_transports_through_wrappers(transport):
    """The moments are found inside a chain, in 8 bits, and under MultiSteps."""
    grads = _gradients((8, 40), 2)
    options = {"transport": transport, "projector": exact_svd()}

    def renewed(base):
        tx = scale_by_galore(base, 4, 1, **options)
        run = lambda g, h: (tx.update(g, tx.init(g))[1], galore_refresh(tx.update(g, tx.init(g))[1], h, **options))
        return jax.jit(run)(*grads)

    before, after = renewed(optax.scale_by_adam())
    mu, nu = before.inner_state.mu, before.inner_state.nu
    c = after.left.T @ before.left
    turned = (c**2) @ (nu / 1e-3 - (mu / 0.1) ** 2) + (c @ mu / 0.1) ** 2
    expected = {
        "keep": (mu, nu), "reset": (0 * mu, 0 * nu), "momentum": (c @ mu, nu), "full": (c @ mu, 1e-3 * jnp.abs(turned))
    }[transport]  # fmt: skip
    np.testing.assert_allclose(after.inner_state.mu, expected[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(after.inner_state.nu, expected[1], rtol=1e-9, atol=1e-12)
    wrapped = optax.chain(optax.identity(), quantize_state(optax.scale_by_adam(), 16, min_size=1))
    inner = renewed(wrapped)[1].inner_state[1].inner_state
    assert inner.mu.codes.dtype == jnp.uint16
    for moment, value in zip((inner.mu, inner.nu), expected, strict=True):
        np.testing.assert_allclose(dequantise(moment), value, rtol=1e-3, atol=1e-3 * jnp.max(jnp.abs(value)))


def test_state_bytes_are_counted_exactly():
    params = {"a": jax.ShapeDtypeStruct((64, 256), jnp.bfloat16), "b": jax.ShapeDtypeStruct((3, 96, 32), jnp.bfloat16)}
    params["c"] = jax.ShapeDtypeStruct((100,), jnp.bfloat16)
    size = galore_state_bytes(params, 16)
    assert size.bases == 2 * 16 * (64 + 3 * 32)
    assert size.inner == 4 * 2 * (16 * (256 + 3 * 96) + 100)
    assert size.counters == 4 + 4 + 2 * 4 * (1 + 3) and size.total == sum(size)
    narrow = galore_state_bytes(params, 16, accumulator_dtype=jnp.bfloat16, side="long")
    assert narrow.inner == 2 * 2 * (16 * (64 + 3 * 32) + 100) and narrow.bases == 2 * 16 * (256 + 3 * 96)


def test_clip_by_the_norm_before():
    grads = {"a": jnp.full((2, 2), 3.0), "b": jnp.full((4,), 4.0)}
    tx = clip_by_previous_norm(2.0)
    tx = optax.GradientTransformation(tx.init, jax.jit(tx.update))
    first, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose([jnp.linalg.norm(x) for x in jax.tree.leaves(first)], np.sqrt(2.0), rtol=1e-12)
    second, state = tx.update(jax.tree.map(lambda g: g / 100, grads), state)
    np.testing.assert_allclose(second["a"], 0.03 * 2 / 10, rtol=1e-12)
    third, state = tx.update(grads, state)
    np.testing.assert_allclose(third["a"], grads["a"])
    assert jnp.isfinite(tx.update(jax.tree.map(lambda g: g * jnp.nan, grads), state)[1].norm)


def test_clip_of_large_gradients_does_not_overflow():
    grads = {"a": jnp.full(4, 1e25, jnp.float32), "b": jnp.full(5, -1e25, jnp.float32)}
    tx = clip_by_previous_norm(2.0)
    first, state = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose([jnp.linalg.norm(x) for x in jax.tree.leaves(first)], np.sqrt(2.0), rtol=1e-6)
    assert float(state.norm) == pytest.approx(3e25, rel=1e-6)


def test_bad_input(as_users):
    params = {"w": jnp.zeros((4, 6)), "b": jnp.zeros(4)}
    init = lambda **options: scale_by_galore(**options).init(params)
    cases = {
        "rank must be at least 1, got 0": {"rank": 0},
        "rank must be at most the short side of some matrix, 4 at the most, got 5": {"rank": 5},
        "rank must, as a fraction of the short side, be above 0 and at most 1, got 1.5": {"rank": 1.5},
        "rank for 'w' must be at most 4": {"rank": {"w": 5}},
        "rank for 'b' must be None, since it is no matrix": {"rank": {"w": 2, "b": 2}},
        "rank has an entry for 'v', but there is no such parameter": {"rank": {"v": 2}},
        "rank must be an int, a fraction of the short side, a function or a tree, got True": {"rank": True},
        "update_proj_gap must be an integer of at least 1, got -3": {"rank": 2, "update_proj_gap": -3},
        "update_proj_gap must be a number": {"rank": 2, "update_proj_gap": "never"},
        "side must be one of 'short', 'long'": {"rank": 2, "side": "top"},
        "transport must be one of 'keep'": {"rank": 2, "transport": "move"},
        "accumulate must be an integer of at least 1, got 0": {"rank": 2, "accumulate": 0},
        "min_dim must be an integer of at least 2, got 1": {"rank": 2, "min_dim": 1},
        "must name each axis once": {"rank": 2, "weight_dimension_numbers": {"w": GaLoreDimensionNumbers(0, (0, 1))}},
        "name axis 2, but its shape": {"rank": 2, "weight_dimension_numbers": {"w": GaLoreDimensionNumbers(0, 2)}},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message.replace("(", r"\(")):
            init(**options)
    injected = optax.inject_hyperparams(galore)(learning_rate=0.1, rank=2)
    with pytest.raises(ValueError, match="rank must be known when compiling"):
        jax.jit(injected.init)(params)
    with pytest.raises(ValueError, match="'attn', which is in the name of no matrix"):
        galore_labels(params, ["attn"])
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        clip_by_previous_norm(0.0)
    for make in (lambda: subspace_iteration(0), lambda: randomized_range(-1)):
        with pytest.raises(ValueError, match="must be an integer of at least"):
            make()


@pytest.mark.parametrize("base", [optax.adamw(0.1), optax.adafactor(0.1)])
def test_a_base_that_needs_parameters_says_what_to_do(base):
    params = jnp.ones((4, 6))
    tx = scale_by_galore(base, 2)
    with pytest.raises(ValueError, match=r"adamw and adafactor do.*weight_decay of galore; or project_params=True"):
        tx.update(params, tx.init(params), params)
    tx = scale_by_galore(base, 2, project_params=True, transport="keep")
    assert jnp.all(jnp.isfinite(tx.update(params, tx.init(params), params)[0]))


@pytest.mark.parametrize(
    "base",
    (
        optax.sgd(0.1),
        optax.adamw(0.1),
        optax.polyak_sgd(),
        optax.adam(optax.linear_schedule(0.0, 0.1, 10)),
        optax.contrib.muon(0.1),
    ),
    ids=("sgd", "adamw", "polyak_sgd", "adam that warms up", "muon"),
)
def test_a_base_that_descends_by_itself_is_refused(base, as_users):
    for options in ({}, {"project_params": True, "accumulate": 2}):
        with pytest.raises(ValueError, match="base_optimizer must leave the sign and the learning rate to galore"):
            galore(0.1, 2, base_optimizer=base, **options)


def test_advice_for_a_base_that_descends_by_itself_is_right():
    params = jnp.ones((4, 6))
    for tx in (
        galore(0.1, 2, base_optimizer=optax.trace(0.9)),
        galore(0.1, 2, base_optimizer=optax.scale_by_adam(), weight_decay=0.1),
        scale_by_galore(optax.sgd(0.1), 2),
        scale_by_galore(optax.adamw(0.1), 2, project_params=True),
    ):
        assert jnp.all(tx.update(params, tx.init(params), params)[0] < 0)


def test_unknown_moments_are_warned_about():
    with pytest.warns(UserWarning, match="of which it is not known whether it is a moment"):
        scale_by_galore(optax.scale_by_lbfgs(), 2).init({"w": jnp.zeros((4, 6))})


def test_one_string_is_one_pattern(as_users):
    """Searched as a regular expression; an alternative that is in no name is an error with the nearest."""
    names = ("attn.query", "attn.out", "mlp.up", "embedding")
    params = {name: jnp.zeros((4, 6)) for name in names} | {"attn.gain": jnp.zeros(4)}
    chosen = lambda where: {name for name, label in galore_labels(params, where).items() if label == "galore"}
    for where, expected in (
        ("query", {"attn.query"}),
        ("attn|mlp", {"attn.query", "attn.out", "mlp.up"}),
        (["query", "mlp"], {"attn.query", "mlp.up"}),
        (r"^(attn|mlp)\.\w+t$", {"attn.out"}),
        (lambda name, leaf: name == "embedding", {"embedding"}),
    ):
        assert chosen(where) == expected, where
    for where, message in (
        ("qury", r"where names 'qury', which is in the name of no matrix.*such as \['attn.query'"),
        ("attn|nope", "where names 'nope'"),
        (["attn", "gain"], "where names 'gain'"),
        ("", "where must not match the empty text"),
        ("x?", "where must not match the empty text"),
        ([], "where must hold at least one pattern"),
        ("attn|", "where must not match the empty text"),
        ("(attn", "where must be a name's part or a regular expression"),
        (3, "where must be a string or strings"),
        (["attn", 3], "where must be a string or strings, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            galore_labels(params, where)


def test_trees_of_options_may_be_callable(key):
    """An Equinox model can be called, but as a tree of options it is one."""
    params = eqx.filter(eqx.nn.MLP(8, 4, 16, 2, key=key), eqx.is_array)
    where = lambda model: model.layers[1].weight
    nothing = jax.tree.map(lambda _: None, params)
    rank = eqx.tree_at(where, nothing, 3, is_leaf=lambda x: x is None)
    assert callable(rank)
    state = scale_by_galore(rank=rank).init(params)
    assert state.left.layers[1].weight.shape == (16, 3)
    assert isinstance(state.left.layers[0].weight, optax.MaskedNode)
    assert galore_state_bytes(params, rank).bases == 8 * 16 * 3
    dims = eqx.tree_at(where, nothing, GaLoreDimensionNumbers(1, 0), is_leaf=lambda x: x is None)
    state = scale_by_galore(rank=2, weight_dimension_numbers=dims).init(params)
    assert state.left.layers[1].weight.shape == (16, 2) and state.inner_state.mu.layers[0].weight.shape == (16, 8)
    mask = jax.tree.map(lambda x: x.ndim > 1, params)
    tx = galore(0.1, 4, weight_decay=0.5, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates.layers[1].weight, -0.05 * params.layers[1].weight, rtol=1e-12)
    assert not np.any(updates.layers[1].bias)


def test_clip_leaves_integers_alone():
    grads = {"count": jnp.array([3, 4]), "w": jnp.full((4,), 3.0), "narrow": jnp.zeros(2, jnp.float16)}
    tx = clip_by_previous_norm(2.0)
    state = tx.init(grads)
    assert state.norm.dtype == jnp.float64
    clipped, state = tx.update(grads, state)
    assert clipped["count"] is grads["count"]
    np.testing.assert_allclose(clipped["w"], 3 * np.sqrt(2.0) / 6, rtol=1e-12)  # one of two leaves
    np.testing.assert_allclose(state.norm, 6.0, rtol=1e-12)


def test_large_gradients_in_float16():
    """6e4, near the largest: norms, products and bases are in float32."""
    g = jnp.full((32, 64), 6e4, jnp.float16).at[0].set(-3e4)
    tx = clip_by_previous_norm(1.0)
    clipped, state = tx.update(g, tx.init(g))
    norm = np.linalg.norm(np.asarray(g, np.float64))
    np.testing.assert_allclose(state.norm, norm, rtol=1e-5)
    np.testing.assert_allclose(clipped.astype(float), g.astype(float) / norm, rtol=2e-3)
    for side in ("short", "long", "both"):
        for base, expected in ((SGD, g), (optax.scale_by_sign(), None), (optax.scale_by_adam(), None)):
            tx = scale_by_galore(base, 2, side=side, projector=exact_svd(), accumulator_dtype="float32")
            update, state = jax.jit(lambda g, tx=tx: tx.update(g, tx.init(g)))(g)
            assert update.dtype == jnp.float16 and jnp.all(jnp.isfinite(update)) and state.captured > 0.99
            if expected is not None:
                np.testing.assert_allclose(update.astype(float), g.astype(float), rtol=4e-3)


def test_more_bad_input(as_users):
    params = {"w": jnp.zeros((4, 6)), "b": jnp.zeros(4)}
    cases = {
        "learning_rate must be at least 0, got nan": {"learning_rate": np.nan},
        "learning_rate must be at least 0, got -0.1": {"learning_rate": -0.1},
        "learning_rate must be a number": {"learning_rate": "0.1"},
        "weight_decay must be at least 0": {"weight_decay": -1.0},
        "mask would be ignored": {"mask": {"w": True, "b": False}},
        "mask must have the structure": {"mask": {"nope": True}, "weight_decay": 0.1},
        "scale must be finite, got nan": {"scale": np.nan},
        "rank must be an int.*got None": {"rank": None},
        "rank must be an int.*got '4'": {"rank": "4"},
        "rank_tol must be at least 0 and below 1, got nan": {"rank_tol": np.nan},
        "rank_tol must be at least 0 and below 1, got -1.0": {"rank_tol": -1.0},
        "projector_dtype must be a floating-point dtype, got int": {"projector_dtype": int},
        "accumulator_dtype must be a floating-point dtype, got complex64": {"accumulator_dtype": "complex64"},
        "accumulator_dtype must be a floating-point dtype, got 'float1000'": {"accumulator_dtype": "float1000"},
        "seed must be an integer": {"seed": 1.5},
        "update_proj_gap must be an integer": {"update_proj_gap": 1.5},
        "projector must be callable": {"projector": "svd"},
        r"projector must be a function \(g, previous, key, r\)": {"projector": exact_svd},
        "base_optimizer must be a GradientTransformation": {"base_optimizer": optax.scale_by_adam},
        "seed must be an integer of at least": {"seed": 2**70},
        "transport must return every moment in its shape, got None for 'mu'": {"transport": lambda m, rotate, n: {}},
        "update_proj_gap must return True or False, got 'a'": {"update_proj_gap": lambda n: "a"},
        r"update_proj_gap must return True or False, got bool\[2\]": {"update_proj_gap": lambda n: jnp.ones(2, bool)},
        "learning_rate must be a number or a schedule that returns one": {"learning_rate": lambda n: jnp.ones(6)},
        "must be integers or tuples of them, got 0.0": {"weight_dimension_numbers": GaLoreDimensionNumbers(0.0, 1.0)},
        "weight_dimension_numbers would be ignored": {"weight_dimension_numbers": GaLoreDimensionNumbers(0, 5)},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            tx = galore(**{"learning_rate": 0.1, "rank": 2} | options)
            tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="where must return True or False, got 'full' for 'w'"):
        galore_labels(params, lambda name, leaf: "full")
    with pytest.raises(ValueError, match=r"update must be given what base_optimizer needs by name.*'value'"):
        tx = scale_by_galore(optax.polyak_sgd(), 2)
        tx.update(params, tx.init(params), params)
    for leaf, message in (("w", "updates must be real, as parameters are"), ("b", "must be real for real parameters")):
        with pytest.raises(ValueError, match=message):
            tx = galore(0.1, 2)
            tx.update(params | {leaf: 1j * params[leaf]}, tx.init(params), params)
    init = scale_by_galore(rank=2).init
    for wrong in (jnp.ones((6, 4), int), jax.nn.relu, "text", 1.0, jax.random.key(0)):
        with pytest.raises(ValueError, match=r"params must hold floating-point arrays alone, got .* at 'w'"):
            init({"w": wrong})
    with pytest.raises(ValueError, match="params must hold floating-point arrays alone, got 'x' at 'w'"):
        galore_state_bytes({"w": "x"}, 2)
    complex_params = {"w": jnp.zeros((4, 6), complex)}
    with pytest.raises(ValueError, match="projector_dtype must be complex for complex parameters"):
        scale_by_galore(rank=2, projector_dtype="float32").init(complex_params)
    projector = lambda g, previous, key, r: jnp.eye(g.shape[0], r + 1)
    with pytest.raises(ValueError, match=r"projector must return a basis of shape \(4, 2\)"):
        tx = scale_by_galore(rank=2, projector=projector)
        tx.update(params, tx.init(params))


def test_states_of_other_models_are_refused():
    params = {"w": jnp.zeros((4, 6)), "b": jnp.zeros(4)}
    tx = galore(0.1, 2)
    state = tx.init(params)
    for other, message in (
        ({"v": jnp.ones((4, 6))}, "updates must have the structure of the parameters"),
        ({"w": jnp.ones((5, 6)), "b": jnp.ones(4)}, "updates must have the shapes of the parameters at init.*bases"),
        ({"w": jnp.ones((4, 8)), "b": jnp.ones(4)}, "updates must have the shapes of the parameters at init"),
        ({"w": jnp.ones((4, 6)), "b": jnp.ones(1)}, "updates must have the shapes of the parameters at init"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(other, state)
    for nothing in ({"x": 1}, optax.adam(0.1).init(params), None):
        with pytest.raises(ValueError, match="state must hold a GaLoreState"):
            galore_refresh(nothing, params)
        with pytest.raises(ValueError, match="state must hold a GaLoreState"):
            galore_reset(nothing)
    with pytest.raises(ValueError, match="state must be a GaLoreState"):
        scale_by_galore(rank=2).update(params, {"x": 1})
    with pytest.raises(ValueError, match="params must be given to update, since project_params is True"):
        projected = scale_by_galore(rank=2, project_params=True)
        projected.update(params, projected.init(params))


def test_stacked_biases_are_no_matrices():
    params = {"weight": jnp.zeros((8, 16, 16)), "bias": jnp.zeros((8, 16))}
    left = scale_by_galore(rank=0.25).init(params).left
    assert left["weight"].shape == (8, 16, 4) and isinstance(left["bias"], optax.MaskedNode)
    named = {"bias": GaLoreDimensionNumbers(0, 1)}
    assert scale_by_galore(rank=2, weight_dimension_numbers=named).init(params).left["bias"].shape == (8, 2)
