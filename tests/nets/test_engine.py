"""Training step by step: the public state, one update of it, and runs that go on from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn import nets

DATA = (jnp.array([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.7]]), jnp.array([1.0, 0.0, -1.0]))


def _loss(model, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ model["w"]) + model["b"] - y) ** 2)


def _model(shift=0.0):
    return {"w": jnp.array([0.3, -0.2]) + shift, "b": jnp.array(0.1)}


def _draw(key):
    x = jax.random.normal(key, (4, 2))
    return x, jnp.sin(x[:, 0])


def _same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def _doubling(model, _):
    """Under descent at rate one w doubles: 1, 2, 4, …; the loss is not finite once w > 20, at step 5."""
    return jnp.where(model["w"] > 20, jnp.inf, -jnp.sum(model["w"] ** 2) / 2)


def test_state_before_the_first_step_holds_the_model_and_nothing_moved():
    model = {**_model(), "table": jnp.arange(3), "name": "a"}
    state = nets.init(model, optax.adam(0.1), trainable={"w": True, "b": False, "table": False, "name": False})
    assert [x.shape for x in jax.tree.leaves(state.params)] == [(2,)]
    assert state.model["name"] == "a" and state.model["b"] == 0.1
    np.testing.assert_array_equal(state.model["table"], [0, 1, 2])
    assert (state.step, state.diverged_at) == (0, -1)
    assert {x.shape for x in jax.tree.leaves(state.optimiser_state)} == {(), (2,)}


def test_a_step_is_that_of_gradient_descent_and_measures_the_model_before():
    slope = jax.grad(_loss)(_model(), DATA)
    state, measured = nets.measured_step(nets.init(_model(), optax.sgd(0.1)), _loss, DATA, optax.sgd(0.1))
    assert float(measured.loss) == pytest.approx(float(_loss(_model(), DATA)), rel=1e-14)
    for name in ("w", "b"):
        np.testing.assert_allclose(measured.gradient[name], slope[name], rtol=1e-14)
        np.testing.assert_allclose(state.model[name], _model()[name] - 0.1 * slope[name], rtol=1e-14)
    assert state.step == 1


@pytest.mark.parametrize("optimiser", (optax.adam(0.02), optax.lbfgs()), ids=("adam", "lbfgs"))
def test_a_loop_of_ones_own_is_train(key, optimiser):
    one = jax.jit(lambda state, batch: nets.step(state, _loss, batch, optimiser))
    state = nets.init(_model(), optimiser)
    for n in range(6):
        state = one(state, _draw(jax.random.fold_in(key, n)))
    run = nets.train(_model(), _loss, _draw, optimiser, 6, key=key)
    for x, y in zip(*map(jax.tree.leaves, (state, run.state)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-15)
    assert run.state.step == 6


def test_steps_under_vmap_are_those_one_by_one():
    def end(shift, rate):
        optimiser = optax.sgd(rate, momentum=0.9)
        state = nets.init(_model(shift), optimiser)
        return jax.lax.fori_loop(0, 4, lambda _, s: nets.step(s, _loss, DATA, optimiser), state)

    shifts, rates = jnp.array([0.0, 0.5]), jnp.array([0.1, 0.3])
    together = jax.vmap(end)(shifts, rates)
    for i in range(2):
        alone = end(shifts[i], rates[i])
        for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-13)


def test_gradient_through_two_steps_is_that_of_the_formula():
    # On w²/2 descent multiplies w by 1 − η: after two steps the loss is (1 − η)⁴/2, its slope in η −2(1 − η)³.
    square = lambda model, _: model["w"] ** 2 / 2

    def after(rate):
        optimiser = optax.sgd(rate)
        state = nets.init({"w": jnp.array(1.0)}, optimiser)
        for _ in range(2):
            state = nets.step(state, square, None, optimiser)
        return square(state.model, None)

    assert float(jax.grad(after)(0.3)) == pytest.approx(-2 * 0.7**3, rel=1e-12)


def test_a_loss_that_is_not_finite_is_data():
    optimiser = optax.sgd(1.0)
    state = nets.init({"w": jnp.array(1.0)}, optimiser)
    for _ in range(8):
        state = nets.step(state, _doubling, None, optimiser)
    assert (state.model["w"], state.step, state.diverged_at) == (32, 8, 5)


# Going on


@pytest.mark.parametrize("optimiser", (optax.adam(0.02), optax.sgd(0.1, momentum=0.9)), ids=("adam", "momentum"))
@pytest.mark.parametrize("data", (DATA, _draw), ids=("fixed", "sampler"))
@pytest.mark.parametrize("progress", (False, True))
def test_a_run_that_goes_on_is_the_unbroken_one_to_the_bit(key, optimiser, data, progress):
    options = {"observe": lambda model: model, "every": 3, "progress": progress}
    options |= {"key": key} if callable(data) else {}
    whole = nets.train(_model(), _loss, data, optimiser, 12, **options)
    first = nets.train(_model(), _loss, data, optimiser, 6, **options)
    second = nets.train(None, _loss, data, optimiser, 6, state=first.state, **options)
    _same_bits(second.state, whole.state)
    np.testing.assert_array_equal(second.steps, [6, 9, 12])
    _same_bits(second.observed, jax.tree.map(lambda x: x[2:], whole.observed))
    _same_bits(first.state, nets.train(_model(), _loss, data, optimiser, 6, **options).state)  # not used up


def test_a_loop_of_ones_own_goes_on_by_train_and_back(key):
    optimiser = optax.adam(0.02)
    state = nets.step(nets.init(_model(), optimiser), _loss, _draw(jax.random.fold_in(key, 0)), optimiser)
    run = nets.train(None, _loss, _draw, optimiser, 3, key=key, state=state, every=1)
    np.testing.assert_array_equal(run.steps, [1, 2, 3, 4])
    last = nets.step(run.state, _loss, _draw(jax.random.fold_in(key, 4)), optimiser)
    expected = nets.train(_model(), _loss, _draw, optimiser, 5, key=key).state
    for x, y in zip(*map(jax.tree.leaves, (last, expected)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12)


def test_lanes_go_on_together():
    run = lambda rate: nets.train(_model(), _loss, DATA, optax.sgd(rate), 4)
    more = lambda rate, state: nets.train(None, _loss, DATA, optax.sgd(rate), 3, state=state)
    rates = jnp.array([0.1, 0.3])
    got = jax.vmap(more)(rates, jax.vmap(run)(rates).state)
    np.testing.assert_array_equal(got.steps, [[4, 7], [4, 7]])
    for i, rate in enumerate(rates):
        whole = nets.train(_model(), _loss, DATA, optax.sgd(rate), 7).model
        np.testing.assert_allclose(got.model["w"][i], whole["w"], rtol=1e-13)


def test_what_is_kept_is_kept_by_a_run_that_goes_on():
    model = {**_model(), "name": "a"}
    trainable = {"w": True, "b": False, "name": False}
    first = nets.train(model, _loss, DATA, optax.sgd(0.1), 2, trainable=trainable)
    second = nets.train(None, _loss, DATA, optax.sgd(0.1), 2, state=first.state)
    assert second.model["b"] == 0.1 and second.model["name"] == "a"
    assert not np.array_equal(second.model["w"], first.model["w"])


def test_a_run_that_diverged_does_not_go_on():
    with pytest.warns(RuntimeWarning, match="non-finite at step 5 of 6"):
        first = nets.train({"w": jnp.array(1.0)}, _doubling, None, optax.sgd(1.0), 6)
    with pytest.warns(RuntimeWarning, match="non-finite at step 5 of 9"):
        second = nets.train(None, _doubling, None, optax.sgd(1.0), 3, state=first.state, observe=lambda m: m["w"])
    assert second.diverged_at == 5 and second.model["w"] == 32 and np.isnan(second.observed).all()


def _state(optimiser=None, model=None):
    return nets.init(_model() if model is None else model, optimiser or optax.sgd(0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"state": 3}, "state must be a State, got 3"),
        ({"state": _model()}, "state must be a State, got"),
        ({"state": _state(), "model": _model()}, "model must be None where state is given"),
        ({"state": _state(), "trainable": False}, "trainable would be ignored: state holds what is trained, got False"),
        ({"state": _state(optax.adam(0.1))}, "state must be what init gives for this optimiser and model, got another"),
        (
            {"optimiser": optax.adam(0.1), "state": _state(optax.adam(0.1))._replace(params={"w": jnp.ones(3)})},
            "state must be what init gives for this optimiser and model",
        ),
        (
            {
                "optimiser": optax.adam(0.1),
                "state": _state(optax.adam(0.1))._replace(params={"w": jnp.ones((3, 2)), "b": jnp.ones(())}),
            },
            r"got shape \(2,\) at optimiser_state\[0\]\.mu\['w'\], not \(3, 2\)",
        ),
        ({"state": _state()._replace(params=None)}, "state must hold at least one floating-point array in params"),
        ({"state": jax.tree.map(lambda x: x[None], _state())}, r"state\.step must have shape \(\), got \(1,\)"),
        ({"model": None}, "model must hold at least one floating-point array, got none to train"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_states_that_do_not_fit_are_refused(changes, message):
    arguments = {"model": None, "loss": _loss, "data": DATA, "optimiser": optax.sgd(0.1), "steps": 3} | changes
    with pytest.raises(ValueError, match=message):
        nets.train(**arguments)
