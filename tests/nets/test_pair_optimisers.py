"""Adam, SGD and Muon on the two-layer network, as the code of its papers has them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets import pair_optimisers, pairs


def _model(order, nodes=5, *, seed=1):
    return pairs.TwoLayer(*np.random.default_rng(seed).uniform(-0.4, 0.4, (3, order, nodes)), 0.7)


def test_muon_makes_both_halves_orthogonal_as_one_matrix():
    rate, decay, model, gradient = 0.1, 0.3, _model(5, nodes=8), _model(5, nodes=8, seed=2)
    optimiser = pair_optimisers.muon(jnp.asarray(rate), jnp.asarray(decay))
    step = lambda o, g, m: jax.jit(lambda g, m: o.update(g, o.init(m), m)[0])(g, m)
    with jax.numpy_dtype_promotion("standard"):
        update = step(optimiser, gradient, model)
        of_c = step(pair_optimisers.coupled_adam(rate, decay), gradient.c, model.c)
        alone = [step(optax.contrib.muon(rate), g, m) for g, m in ((gradient.a, model.a), (gradient.b, model.b))]
    stacked = lambda m: np.concatenate([m.a, m.b])
    moved = -stacked(update) / rate - decay * stacked(model)  # less the decoupled decay
    left, size, right = np.linalg.svd(moved, full_matrices=False)
    assert 0.6 < size.min() < size.max() < 1.3  # five steps of Newton and Schulz
    polar = lambda g: np.linalg.svd(g, full_matrices=False)[0] @ np.linalg.svd(g, full_matrices=False)[2]
    assert np.abs(left @ right - polar(stacked(gradient))).max() < 1e-6
    apart = np.linalg.svd(np.concatenate(alone) / rate, compute_uv=False)
    assert apart.max() > 1.3  # the halves are orthogonal, together they are not
    np.testing.assert_allclose(update.c, of_c, rtol=1e-12)


def test_muon_keeps_a_moving_mean_of_gradients():
    rate, model = 0.1, _model(5, nodes=8)
    first, second = (_model(5, nodes=8, seed=seed) for seed in (2, 3))
    optimiser = pair_optimisers.muon(rate, 0.0, beta=0.6)
    move = jax.jit(optimiser.update)
    with jax.numpy_dtype_promotion("standard"):
        begin = optimiser.init(model)
        _, state = move(first, begin, model)
        update, _ = move(second, state, model)
        mean = jax.tree.map(lambda x, y: 0.6 * 0.4 * x + 0.4 * y, first, second)
        expected, _ = move(mean, begin, model)
    np.testing.assert_allclose(np.stack([update.a, update.b]), np.stack([expected.a, expected.b]), atol=1e-9)
    with pytest.raises(ValueError, match="params must be given"):
        optimiser.update(first, state)


def test_decay_goes_through_the_momentum_of_sgd():
    # By hand, as torch.optim.SGD(momentum=0.9, weight_decay=0.5) takes two steps.
    w, gradient, rate, decay, m = 2.0, 0.3, 0.1, 0.5, 0.0
    optimiser, x = pair_optimisers.coupled_sgd(jnp.asarray(rate), jnp.asarray(decay)), jnp.asarray(w)
    state = optimiser.init(x)
    for _ in range(2):
        m = 0.9 * m + gradient + decay * w
        w -= rate * m
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimiser.update(jnp.asarray(gradient), state, x)
            x = optax.apply_updates(x, update)
        assert float(x) == pytest.approx(w, rel=1e-12)


def test_decay_goes_through_the_moments_of_adam():
    # By hand, two steps at decay 0.5, as torch.optim.Adam(weight_decay=0.5) takes them.
    w, gradient, rate, decay, m, v = 2.0, 0.3, 0.1, 0.5, 0.0, 0.0
    optimiser = pair_optimisers.coupled_adam(jnp.asarray(rate), jnp.asarray(decay))
    x = jnp.asarray(w)
    state = optimiser.init(x)
    for step in (1, 2):
        g = gradient + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= rate * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimiser.update(jnp.asarray(gradient), state, x)
            x = optax.apply_updates(x, update)
        assert float(x) == pytest.approx(w, rel=1e-12)


@pytest.mark.usefixtures("as_users")
def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="params must have the fields a, b, c"):
        pair_optimisers.muon(0.1, 0.1).init({"w": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match="weight_decay must be at least 0, got nan"):
        pair_optimisers.coupled_adam(0.1, float("nan"))
