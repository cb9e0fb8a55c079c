"""Runs of many seeds, with and without the compaction of dead nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn import nets
from traindyn.nets import composing


def _cyclic(order):
    return np.add.outer(np.arange(order), np.arange(order)) % order


def _train(**options):
    options = {"nodes": 8, "weight_decay": 1e-4, "steps": 30, "every": 10, "seeds": (1, 2)} | options
    return composing.train_seeds(_cyclic(5), **options)


def test_train_seeds_is_train_seed_by_seed_and_leaves_the_scale_alone():
    runs = _train(dtype=jnp.float64, observe=lambda model: jnp.sum(model.a))
    np.testing.assert_array_equal(runs.steps, [0, 10, 20, 30])
    for i, seed in ((1, 2),):  # the second lane
        mask = composing.split(5, seed=seed)
        data, rest = (composing.pairs(_cyclic(5), m) for m in (mask, ~mask))
        model = composing.initial(5, 8, key=jax.random.key(seed))
        watch = lambda m, data=data, rest=rest: [
            f(m, p) for f in (composing.masked_loss, composing.accuracy) for p in (data, rest)
        ]
        optimiser, kept = composing.coupled_adam(0.01, 1e-4), model.trainable()
        one = nets.train(model, composing.masked_loss, data, optimiser, 30, trainable=kept, observe=watch, every=10)
        mine = jax.tree.map(lambda x, i=i: x[i], runs)
        for name in ("a", "b", "c"):
            np.testing.assert_allclose(getattr(mine.model, name), getattr(one.model, name), rtol=1e-9, atol=1e-12)
        seen = (mine.train_loss, mine.test_loss, mine.train_accuracy, mine.test_accuracy)
        for x, y in zip(seen, one.observed, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-9)
        assert float(mine.model.scale) == 1
        assert float(mine.observed[-1]) == pytest.approx(float(jnp.sum(mine.model.a)), rel=1e-12)
    assert (np.asarray(runs.diverged_at) == -1).all()


def test_rates_compile_nothing_and_training_is_float32():
    traces = []
    first = _train(seeds=(1,), observe=(observe := lambda model: traces.append(1)))
    assert first.model.a.dtype == first.train_loss.dtype == jnp.float32
    before = len(traces)
    _train(seeds=(3,), weight_decay=1e-2, learning_rate=0.02, observe=observe)
    assert before == len(traces) > 0


# Compaction


def test_compaction_without_dead_nodes_changes_nothing():
    # Nothing is below a threshold of zero, and 40 nodes are no more than two multiples of 32.
    plain, pieces = (
        _train(steps=1010, every=1010, seeds=(1,), nodes=40, dtype=jnp.float64, compact=c, threshold=0.0 if c else None)
        for c in (False, True)
    )
    assert pieces.model.a.shape == (1, 5, 40)
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


def test_compaction_keeps_the_live_nodes_and_their_moments_to_the_bit():
    order, nodes = 5, 100
    rng = np.random.default_rng(0)
    live = np.stack([np.sort(rng.permutation(nodes)[:40]), np.sort(rng.permutation(nodes)[:10])[[*range(10)] * 4]])
    w = np.full((2, 3, order, nodes), 1e-4)
    for lane in range(2):
        w[lane, :, :, live[lane]] = 0.5 + rng.random((len(live[lane]), 3, order))
    params = jax.vmap(lambda w: composing.TwoLayer(w[0], w[1], w[2]))(jnp.asarray(w))
    optimiser = composing.coupled_adam(0.1, 0.1)
    state = jax.vmap(lambda model: nets.init(model, optimiser, trainable=model.trainable()))(params)
    numbers = lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
    carry = state._replace(optimiser_state=jax.tree.map(numbers, state.optimiser_state))
    found = composing._compacted(carry, 0.02)
    assert found.params.a.shape == (2, order, 64)  # 40 alive in one of the lanes, rounded up to a multiple of 32
    moments = lambda c: [x for x in jax.tree.leaves(c.optimiser_state) if x.ndim == 3]
    assert len(moments(found)) == 6
    for lane in range(2):
        kept = [int(np.flatnonzero((w[lane, 0] == column[:, None]).all(0))[0]) for column in
                np.asarray(found.params.a[lane]).T if column[0] > 0.1]  # fmt: skip
        assert kept == sorted(set(live[lane].tolist()))
        for old, new in zip(moments(carry), moments(found), strict=True):
            columns = {tuple(c) for c in np.asarray(new[lane]).T}
            assert {tuple(c) for c in np.asarray(old[lane])[:, kept].T} <= columns


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: _train(seeds=()), "seeds must be a sequence of at least one integer"),
        (lambda: _train(every=0), "every must be an integer of at least 1, got 0"),
        (lambda: _train(steps=-1), "steps must be an integer of at least 0"),
        (lambda: _train(nodes=0), "nodes must be an integer of at least 1, got 0"),
        (lambda: _train(train=1.5), "train must be above 0 and below 1, got 1.5"),
        (lambda: _train(threshold=-1.0, compact=True), "threshold must be at least 0, got -1.0"),
        (lambda: _train(threshold=float("nan"), compact=True), "threshold must be at least 0, got nan"),
        (lambda: _train(threshold=0.02), "threshold would be ignored: no node is dropped without compact"),
        (lambda: _train(seeds=(-1,)), "seeds must be an integer of at least 0 and at most 4294967295, got -1"),
        (lambda: _train(seeds=(2**40,)), "seeds must be an integer of at least 0 and at most 4294967295"),
        (lambda: _train(seeds=3), "seeds must be a sequence of at least one integer, got 3"),
        (lambda: _train(learning_rate=[0.1, 0.2]), "learning_rate must have shape"),
        (lambda: _train(weight_decay=-1.0), "weight_decay must be at least 0, got -1.0"),
        (lambda: _train(dtype=int), "dtype must be a floating-point dtype"),
        (lambda: _train(dtype=jnp.float16), "dtype must have the range of float32"),
    ),
)
def test_bad_arguments_are_named(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()
