"""Records of loops written by hand, beside those of `train`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from traindyn import nets
from traindyn.nets import Recorder

DATA = (jnp.array([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.7]]), jnp.array([1.0, 0.0, -1.0]))
STEPS, EVERY = 8, 3


def _loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x)[:, 0] - y) ** 2)


def _mlp():
    return eqx.nn.MLP(2, 1, 4, 1, jnp.tanh, key=jax.random.key(0))


def _watch(model):
    return {"w": model.layers[0].weight, "b": [layer.bias for layer in model.layers]}


def _same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def _same(a, b):
    """To rounding: XLA joins a loop's operations in an order of its own."""
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13, atol=1e-15)


def _stacked(models):
    return jax.tree.map(lambda *x: np.stack(x), *models)


@pytest.fixture(scope="module")
def run():
    return nets.train(_mlp(), _loss, DATA, optax.adam(0.05), STEPS, observe=_watch, every=EVERY)


def test_a_loop_of_steps_has_the_record_of_train(run):
    optimiser, recorder = optax.adam(0.05), Recorder(_watch, EVERY)
    one = eqx.filter_jit(lambda state: nets.step(state, _loss, DATA, optimiser))
    state = nets.init(_mlp(), optimiser)
    for step in range(STEPS):
        recorder(step, state)
        state = one(state)
    recorder(STEPS, state)  # between two records, which is nothing
    _same_bits((recorder.steps, recorder.observed), (run.steps, run.observed))


def test_a_loop_by_optax_has_the_record_of_train_though_its_buffers_are_donated(run):
    optimiser, recorder = optax.adam(0.05), Recorder(_watch, EVERY)
    params, static = eqx.partition(_mlp(), eqx.is_inexact_array)

    def update(params, state):
        slope = jax.grad(lambda p: _loss(eqx.combine(p, static), DATA))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimiser.update(slope, state, params)
            return optax.apply_updates(params, updates), state

    update, state = jax.jit(update, donate_argnums=0), optimiser.init(params)
    models = []
    for step in range(STEPS + 1):
        models.append(jax.tree.map(np.array, _watch(eqx.combine(params, static))))
        recorder(step, eqx.combine(params, static))
        params, state = update(params, state)
    _same_bits(recorder.observed, _stacked(models[::EVERY]))
    _same((recorder.steps, recorder.observed), (run.steps, run.observed))


def test_a_loop_by_flax_has_the_record_of_train():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        model = nnx.Linear(2, 1, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
        loss = lambda model, batch: jnp.mean((model(batch[0])[:, 0] - batch[1]) ** 2)
        graph, params = nnx.split(model)
        watch = lambda params: nnx.to_pure_dict(params)
        pure = lambda params, batch: loss(nnx.merge(graph, params), batch)
        run = nets.train(params, pure, DATA, optax.adam(0.05), STEPS, observe=watch, every=EVERY)

        optimizer = nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)
        recorder = Recorder(lambda model: watch(nnx.state(model, nnx.Param)), EVERY)

        @nnx.jit
        def update(model, optimizer):
            optimizer.update(model, nnx.grad(lambda model: loss(model, DATA))(model))

        models = []
        for step in range(STEPS + 1):
            models.append(jax.tree.map(np.array, watch(nnx.state(model, nnx.Param))))
            recorder(step, model)
            update(model, optimizer)
    _same_bits(recorder.observed, _stacked(models[::EVERY]))
    _same((recorder.steps, recorder.observed), (run.steps, run.observed))


def test_a_loop_that_goes_on_starts_its_record_there(run):
    first = nets.train(_mlp(), _loss, DATA, optax.adam(0.05), 3)
    recorder, state = Recorder(_watch, EVERY, start=3), first.state
    for step in (3, 6):
        recorder(step, state)
        state = nets.train(None, _loss, DATA, optax.adam(0.05), 3, state=state).state
    _same_bits((recorder.steps, recorder.observed), (run.steps[1:], jax.tree.map(lambda x: x[1:], run.observed)))


def test_a_state_that_diverged_is_recorded_as_nan():
    optimiser, recorder = optax.sgd(1.0), Recorder(lambda m: (m, m.astype(int)), 1)
    state = nets.init(jnp.array(1.0), optimiser)
    for step in range(4):
        recorder(step, state)
        state = nets.step(state, lambda w, _: jnp.where(w > 3, jnp.inf, -(w**2) / 2), None, optimiser)
    np.testing.assert_array_equal(recorder.observed[0], [1.0, 2.0, 4.0, np.nan])
    np.testing.assert_array_equal(recorder.observed[1], [1, 2, 4, 0])


def test_one_made_inside_works_under_jit_vmap_and_grad():
    def halved(w):
        recorder = Recorder(lambda w: w, 2)
        for step in range(5):
            recorder(step, w)
            w = w / 2
        return recorder.observed

    np.testing.assert_array_equal(jax.jit(jax.vmap(halved))(jnp.array([1.0, 16.0])), [[1, 0.25, 0.0625], [16, 4, 1]])
    np.testing.assert_array_equal(jax.jacobian(halved)(3.0), [1, 0.25, 0.0625])


def test_datasets_are_labelled(run):
    data = run.dataset()
    np.testing.assert_array_equal(data["w"].sel(step=6), run.observed["w"][2])
    assert data["w"].dims == ("step", "w_1", "w_2") and set(data) == {"w", "b.0", "b.1"}
    recorder = Recorder(lambda w: w, 2)
    recorder(0, 1.5)
    assert recorder.dataset()["observed"].sel(step=0) == 1.5
    lanes = jax.vmap(lambda w: nets.train(w, lambda w, _: w**2, None, optax.sgd(0.1), 2))(jnp.ones(2))
    with pytest.raises(ValueError, match=r"steps must have shape \(records,\), got \(2, 2\): take one run"):
        lanes.dataset()
    with pytest.raises(ValueError, match="observed must be known, to be labelled: call this outside jit"):
        jax.jit(lambda w: nets.train(w, lambda w, _: w**2, None, optax.sgd(0.1), 2).dataset())(1.0)
    recorder = Recorder(lambda w: {"step": w}, 1)
    recorder(0, 1.5)
    with pytest.raises(ValueError, match="none named step, got 'step'"):
        recorder.dataset()


@pytest.mark.parametrize(
    ("calls", "message"),
    (
        ([(0, 1.0), (0, 1.0)], "step must be above 0, the last one that the recorder saw, got 0"),
        ([(0, 1.0), (2, 1.0), (1, 1.0)], "step must be above 2, the last one that the recorder saw, got 1"),
        ([(0, 1.0), (4, 1.0)], "step must be at most 3, the step of the next record, got 4: it was skipped"),
        ([(1, 1.0)], "step must be at most 0, the step of the next record, got 1"),
        ([(-1, 1.0)], "step must be an integer of at least 0, got -1"),
        ([(0.5, 1.0)], "step must be an integer, got 0.5"),
        ([(0, "x")], "observe must return arrays, got 'x'"),
        ([(0, 1.0), (3, (1.0,))], r"structure, shapes and dtypes of the first record, .*\*.*, got .*\(\*,\)"),
        ([(0, 1.0), (3, jnp.ones(2))], r"first record, float64\[\], got float64\[2\]"),
        ([(0, {"a": 1.0}), (3, {"a": 1})], r"first record, float64\[\] at \['a'\], got int64"),
        ([(0, nets.init(jnp.ones(2), optax.sgd(0.1))._replace(step=jnp.array(1)))], "that of the state, 1, got 0"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_calls_are_refused(calls, message):
    recorder = Recorder(lambda x: x, 3)
    with pytest.raises(ValueError, match=message):
        for call in calls:
            recorder(*call)


@pytest.mark.usefixtures("as_users")
def test_bad_recorders_are_refused():
    for arguments, message in (
        ((None, 3), "observe must be callable, got None"),
        ((_watch, 0), "every must be an integer of at least 1, got 0"),
        ((_watch, 1.5), "every must be an integer, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            Recorder(*arguments)
    with pytest.raises(ValueError, match="recorder must be called at step 0 before its record is read"):
        _ = Recorder(_watch, 3).observed
    with pytest.raises(ValueError, match="known outside jit and vmap"):
        jax.jit(lambda step: Recorder(lambda x: x, 3)(step, 1.0))(0)
