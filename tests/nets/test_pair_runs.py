"""Many runs in one program beside single ones, and the compaction of dead nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn import nets
from traindyn.nets import grokking, pair_optimisers, pair_runs, pairs


def _cyclic(order):
    return np.add.outer(np.arange(order), np.arange(order)) % order


def _projectors(order):
    """Those of the real irreps of Z_order, order odd."""
    gap = np.subtract.outer(np.arange(order), np.arange(order))
    each = [2 * np.cos(2 * np.pi * k * gap / order) / order for k in range(1, order // 2 + 1)]
    return np.stack([np.full((order, order), 1 / order), *each])


_OPTIONS = {
    "fractions": (0.5, 0.8),
    "seeds": (1, 2),
    "learning_rates": (1e-2, 3e-3),
    "weight_decays": (1e-4, 1e-2, 1e-1),
    "nodes": 8,
    "steps": 15,
    "every": 5,
}


def _total(model, sample):
    return jnp.sum(model.a), jnp.sum(sample.used)


def _run(table=None, **options):
    return pair_runs.train_pairs(_cyclic(5) if table is None else table, **(_OPTIONS | options))


@pytest.mark.parametrize(
    ("optimiser", "batch_size", "lane"),
    ((pair_optimisers.muon, 1, (0, 1, 0, 1)), ("sgd", 6, (1, 0, 2, 0))),
)
def test_lanes_are_single_runs(optimiser, batch_size, lane):
    runs = _run(optimiser=optimiser, batch_size=batch_size, dtype=jnp.float64, observe=_total)
    np.testing.assert_array_equal(runs.steps, [0, 5, 10, 15])
    assert runs.train_loss.shape == (2, 2, 3, 2, 4) and (np.asarray(runs.diverged_at) == -1).all()
    names = ("fractions", "learning_rates", "weight_decays", "seeds")
    fraction, rate, decay, seed = (_OPTIONS[name][i] for name, i in zip(names, lane, strict=True))
    trained, rest = pairs.split_pairs(_cyclic(5), fraction=fraction, seed=seed)
    model = pairs.initial(5, 8, key=jax.random.key(seed))
    scores = lambda m: [f(m, s) for f in (pairs.loss, pairs.accuracy) for s in (trained, rest)]
    watch = lambda m: [*scores(m), *_total(m, trained)]
    make = (pair_optimisers.coupled_sgd if optimiser == "sgd" else optimiser)(rate, decay)
    kept = model.trainable()
    one = nets.train(model, pairs.loss, trained, make, 15, trainable=kept, observe=watch, every=5)
    mine = jax.tree.map(lambda x: x[lane], runs._replace(steps=None))
    for name in ("a", "b", "c", "scale"):
        np.testing.assert_allclose(getattr(mine.model, name), getattr(one.model, name), rtol=1e-8, atol=1e-11)
    seen = (mine.train_loss, mine.test_loss, mine.train_accuracy, mine.test_accuracy, *mine.observed)
    for x, y in zip(seen, one.observed, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-8)


def test_a_run_that_diverges_says_when_and_leaves_the_others_alone():
    runs = _run(learning_rates=(1e-2, 1e300), optimiser="sgd", batch_size=6, dtype=jnp.float64, observe=_total)
    at = np.asarray(runs.diverged_at)
    assert (at[:, 0] == -1).all() and (at[:, 1] >= 0).all()
    assert np.isfinite(runs.train_loss[:, 0]).all() and np.isnan(runs.train_loss[:, 1, ..., -1]).all()


def test_the_output_layer_may_start_at_zero_and_the_activation_is_the_one_given():
    runs = _run(steps=0, every=None, output_scale=0.0, activation=jax.nn.relu)
    assert not np.any(runs.model.c) and runs.model.activation is jax.nn.relu
    np.testing.assert_allclose(runs.train_loss, 0.8, rtol=1e-6)


def test_held_out_pairs_are_learned_later_and_other_rates_and_seeds_compile_nothing():
    traces = []

    def observe(model, sample):
        traces.append(1)
        return grokking.stages(_projectors(11))(model, sample)

    train = lambda seeds, rate, decay, **options: pair_runs.train_pairs(
        _cyclic(11), fractions=(0.7,), seeds=seeds, learning_rates=(rate,), weight_decays=(decay,), nodes=96,
        fan_in=22, steps=600, every=5, observe=observe, **options,
    )  # fmt: skip
    runs = train((1, 2), 5e-3, 1e-3)
    first = lambda curve: np.asarray(runs.steps)[np.argmax(np.asarray(curve)[0, 0, 0] > 0.99, axis=1)]
    assert (np.asarray(runs.test_accuracy)[..., -1] > 0.99).all()
    assert (first(runs.test_accuracy) > 2 * first(runs.train_accuracy)).all() and (first(runs.train_accuracy) > 0).all()
    assert pair_optimisers.OPTIMISERS["adam"] is pair_optimisers.coupled_adam  # the default
    assert {x.dtype for x in jax.tree.leaves((runs.model, runs[2:6], runs.observed))} == {jnp.dtype("float32")}
    assert runs.observed.gradient_norm.shape == (1, 1, 1, 2, 121)
    assert runs.observed.content.shape == (1, 1, 1, 2, 121, 96, 6)
    before = len(traces)
    train((3, 4), 1e-3, 0.0, output_scale=0.5)
    assert before == len(traces) > 0


# Compaction


_FEW = {"fractions": (0.9,), "learning_rates": (0.01,), "weight_decays": (1e-4,)}


def test_compaction_without_dead_nodes_changes_nothing():
    # Nothing is below a threshold of zero, and 40 nodes are no more than two multiples of 32.
    plain, pieces = (
        _run(**_FEW, nodes=40, steps=1010, every=1010, dtype=jnp.float64, compact=c, threshold=0.0 if c else None)
        for c in (False, True)
    )
    assert pieces.model.a.shape == (1, 1, 1, 2, 5, 40)
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


def test_compaction_keeps_the_live_nodes_and_their_moments_to_the_bit():
    order, nodes = 5, 100
    rng = np.random.default_rng(0)
    live = np.stack([np.sort(rng.permutation(nodes)[:40]), np.sort(rng.permutation(nodes)[:10])[[*range(10)] * 4]])
    w = np.full((2, 3, order, nodes), 1e-4)
    for lane in range(2):
        w[lane, :, :, live[lane]] = 0.5 + rng.random((len(live[lane]), 3, order))
    params = jax.vmap(lambda w: pairs.TwoLayer(w[0], w[1], w[2]))(jnp.asarray(w))
    optimiser = pair_optimisers.coupled_adam(0.1, 0.1)
    state = jax.vmap(lambda model: nets.init(model, optimiser, trainable=model.trainable()))(params)
    numbers = lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)
    carry = state._replace(optimiser_state=jax.tree.map(numbers, state.optimiser_state))
    found = pair_runs._compacted(carry, 0.02)
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


def test_dead_nodes_are_dropped_and_what_the_rest_computes_stays():
    # A decay of 1 kills all nodes: 32 of 40 are left, and the outputs are those of no node.
    options = _FEW | {"weight_decays": (1.0,), "nodes": 40, "steps": 1100, "every": 550, "compact": True}
    runs = _run(**options, observe=lambda model, sample: jnp.sum(model.a) * 0 + model.nodes)
    assert runs.model.a.shape == (1, 1, 1, 2, 5, 32)
    np.testing.assert_array_equal(runs.steps, [0, 550, 1100])
    np.testing.assert_array_equal(runs.observed[0, 0, 0], [[40, 40, 32]] * 2)
    np.testing.assert_allclose(runs.test_loss[0, 0, 0, :, -1], 0.8, rtol=1e-5)
    assert (np.asarray(runs.diverged_at) == -1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"fractions": (0.5, 1.0)}, "fractions must be above 0 and below 1, got 1.0"),
        ({"fractions": (0.0,)}, "fractions must be above 0 and below 1, got 0.0"),
        ({"fractions": 0.5}, "fractions must have shape"),
        ({"fractions": (0.01,)}, "fraction must leave one of 25 pairs at least on each side, got 0.01"),
        ({"fractions": (1 - 1e-12,)}, "fraction must leave one of 25 pairs at least on each side"),
        ({"seeds": ()}, "seeds must be a sequence of at least one integer"),
        ({"seeds": 3}, "seeds must be a sequence of at least one integer, got 3"),
        ({"seeds": (-1,)}, "seeds must be an integer of at least 0 and at most 4294967295, got -1"),
        ({"seeds": (2**40,)}, "seeds must be an integer of at least 0 and at most 4294967295"),
        ({"seeds": (1.5,)}, "seeds must be an integer .*, got 1.5"),
        ({"learning_rates": 1e-3}, "learning_rates must have shape"),
        ({"learning_rates": (float("nan"),)}, "learning_rates must be finite, got nan"),
        ({"weight_decays": ()}, "weight_decays must be a sequence of at least one entry"),
        ({"weight_decays": (-1.0,)}, "weight_decays must be at least 0, got -1.0"),
        ({"activation": "relu"}, "activation must be callable, got 'relu'"),
        ({"activation": jnp.sum}, "activation must keep the shape"),
        ({"fan_in": 0}, "fan_in must be an integer of at least 1, got 0"),
        ({"observe": "x"}, "observe must be callable, got 'x'"),
        ({"nodes": 0}, "nodes must be an integer of at least 1, got 0"),
        ({"steps": -1}, "steps must be an integer of at least 0, got -1"),
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"optimiser": "lion"}, "optimiser must be one of 'adam', 'sgd', 'muon', got 'lion'"),
        ({"threshold": -1.0, "compact": True}, "threshold must be at least 0, got -1.0"),
        ({"threshold": float("nan"), "compact": True}, "threshold must be at least 0, got nan"),
        ({"threshold": 0.02}, "threshold would be ignored: no node is dropped without compact"),
        ({"dtype": int}, "dtype must be a floating-point dtype"),
        ({"dtype": jnp.float16}, "dtype must have the range of float32"),
        ({"table": _cyclic(2)}, "table must be that of at least 3 elements, got 2"),
        ({"table": _cyclic(5) + 1}, "table must lie from 0 to 4, got 5"),
        ({"table": _cyclic(5) / 2}, "table must be integers, got"),
    ),
)
def test_bad_arguments_are_named(as_users, changes, message):
    with pytest.raises(ValueError, match=message):
        _run(**changes)
