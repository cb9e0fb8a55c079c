"""The recorded training loop against loops written by hand."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets import joma, train

DATA = (jnp.array([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.7]]), jnp.array([1.0, 0.0, -1.0]))


def _loss(model, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ model["w"]) + model["b"] - y) ** 2)


def _model(shift=0.0):
    return {"w": jnp.array([0.3, -0.2]) + shift, "b": jnp.array(0.1)}


def _draw(key):
    x = jax.random.normal(key, (4, 2))
    return x, jnp.sin(x[:, 0])


def _by_hand(model, rate, steps, data):
    """Gradient descent, in a Python loop: the models before each step and after the last."""
    seen = [model]
    for n in range(steps):
        slope = jax.grad(_loss)(model, data(n))
        model = jax.tree.map(lambda p, g: p - rate * g, model, slope)
        seen.append(model)
    return seen


def _assert_same(a, b, rtol=1e-13):
    # The same operations in another order: a rounding or two at each of some tens of steps.
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-15)


def test_gradient_descent_is_the_loop_by_hand():
    run = train(_model(), _loss, DATA, optax.sgd(0.1), 7, observe=lambda m: m, every=3)
    expected = _by_hand(_model(), 0.1, 7, lambda n: DATA)
    np.testing.assert_array_equal(run.steps, [0, 3, 6])  # and no others: seven is not a multiple of three
    for i, n in enumerate(run.steps):
        _assert_same(jax.tree.map(lambda x, i=i: x[i], run.observed), expected[n])
    _assert_same(run.model, expected[7])
    assert run.diverged_at == -1


def test_sampler_draws_anew_at_each_step_from_the_folded_key(key):
    run = train(_model(), _loss, _draw, optax.sgd(0.1), 5, key=key)
    _assert_same(run.model, _by_hand(_model(), 0.1, 5, lambda n: _draw(jax.random.fold_in(key, n)))[-1])


def test_optimiser_with_a_state_is_the_loop_by_hand():
    optimiser, model = optax.adam(0.01), _model()
    state = optimiser.init(model)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(5):
            updates, state = optimiser.update(jax.grad(_loss)(model, DATA), state, model)
            model = optax.apply_updates(model, updates)
    _assert_same(train(_model(), _loss, DATA, optimiser, 5).model, model)


@pytest.mark.parametrize(
    ("steps", "every", "recorded"), ((6, 3, [0, 3, 6]), (2, 3, [0]), (0, None, [0]), (4, None, [0, 4]))
)
def test_records_are_at_the_multiples_of_every(steps, every, recorded):
    run = train(_model(), _loss, DATA, optax.sgd(0.1), steps, observe=lambda m: m["b"], every=every)
    np.testing.assert_array_equal(run.steps, recorded)
    assert run.observed.shape == (len(recorded),)
    assert run.observed[0] == 0.1


def test_progress_gives_the_same_run(key, capfd):
    options = {"key": key, "observe": lambda m: m, "every": 3}
    for steps in (8, 2):
        plain = train(_model(), _loss, _draw, optax.sgd(0.1), steps, **options)
        capfd.readouterr()
        shown = train(_model(), _loss, _draw, optax.sgd(0.1), steps, **options, progress=True)
        assert "step" in capfd.readouterr().err
        _assert_same(shown, plain)


@pytest.mark.parametrize("data", (DATA, _draw), ids=("fixed", "sampler"))
def test_batch_of_rates_seeds_and_models_is_as_its_runs_one_by_one(data):
    def run(rate, seed, shift):
        drawn = {"key": seed} if callable(data) else {}
        return train(_model(shift), _loss, data, optax.sgd(rate), 5, observe=lambda m: m["w"], every=2, **drawn)

    rates, shifts = jnp.array([0.3, 0.1, 0.02]), jnp.array([0.0, 0.5, -1.0])
    seeds = jax.random.split(jax.random.key(1), 3)
    together = jax.vmap(run)(rates, seeds, shifts)
    for i in range(3):
        _assert_same(jax.tree.map(lambda x, i=i: x[i], together), run(rates[i], seeds[i], shifts[i]))
    assert len(np.unique(together.observed[:, -1, 0])) == 3


def test_new_learning_rate_compiles_nothing_under_jit():
    run = jax.jit(
        eqx.debug.assert_max_traces(
            lambda rate: train(_model(), _loss, DATA, optax.sgd(rate), 5).model["b"], max_traces=1
        )
    )
    for rate in (0.1, 0.2):
        assert float(run(rate)) == pytest.approx(float(_by_hand(_model(), rate, 5, lambda n: DATA)[-1]["b"]), rel=1e-13)


@pytest.mark.parametrize("progress", (False, True))
def test_callers_model_and_records_stay_valid(progress):
    model = _model()
    before = jax.tree.map(np.array, model)
    runs = [train(model, _loss, DATA, optax.sgd(0.1), 4, observe=lambda m: m, every=2, progress=progress) for _ in "ab"]
    _assert_same(model, before, rtol=0)
    _assert_same(runs[0], runs[1], rtol=0)
    assert jnp.isfinite(_loss(model, DATA))


def test_what_is_not_floating_point_is_left_alone():
    model = {**_model(), "table": jnp.arange(3), "name": "a"}
    end = train(model, _loss, DATA, optax.sgd(0.1), 3).model
    np.testing.assert_array_equal(end["table"], [0, 1, 2])
    assert end["name"] == "a"
    _assert_same(end["w"], _by_hand(_model(), 0.1, 3, lambda n: DATA)[-1]["w"])


# Divergence. w doubles at each step, 1, 2, 4, …, and the loss is not finite once w > 20: at step 5, where w is 32.


def _doubling(model, batch):
    w = model["w"]
    return jnp.where(w > 20, jnp.inf, -jnp.sum(w**2) / 2)


def _watch(model):
    return {"w": model["w"], "rounded": jnp.round(model["w"]).astype(int)}


@pytest.mark.parametrize("progress", (False, True))
@pytest.mark.parametrize("every", (1, 2))
def test_divergence_is_reported_with_its_step_and_what_came_before_is_kept(every, progress):
    with pytest.warns(RuntimeWarning, match="non-finite at step 5 of 9"):
        run = train(
            {"w": jnp.array(1.0)},
            _doubling,
            None,
            optax.sgd(1.0),
            9,
            observe=_watch,
            every=every,
            progress=progress,
        )
    assert run.diverged_at == 5
    assert run.model["w"] == 32  # the model that gave this loss
    steps = np.arange(0, 10, every)
    np.testing.assert_array_equal(run.steps, steps)
    before, after = steps < 5, steps > 5
    np.testing.assert_array_equal(run.observed["w"][before], 2.0 ** steps[before])
    np.testing.assert_array_equal(run.observed["rounded"][before], 2 ** steps[before])
    assert jnp.all(jnp.isnan(run.observed["w"][after]))
    assert jnp.all(run.observed["rounded"][after] == 0)


def test_divergence_in_the_last_update_is_reported():
    # w = 1e300 squares to infinity only in the update: the loss of step 0 is still finite.
    loss = lambda m, _: -jnp.sum(m["w"])
    with pytest.warns(RuntimeWarning, match="non-finite at step 1 of 1"):
        run = train({"w": jnp.array(1e308)}, loss, None, optax.sgd(1.79e308), 1)
    assert run.diverged_at == 1


def test_divergence_of_one_lane_leaves_the_others_alone():
    run = jax.vmap(lambda w: train({"w": w}, _doubling, None, optax.sgd(1.0), 6, observe=_watch, every=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # under vmap there is nothing to warn of yet
        got = run(jnp.array([1.0, 0.1]))
    np.testing.assert_array_equal(got.diverged_at, [5, -1])
    np.testing.assert_allclose(got.observed["w"][1], 0.1 * 2.0 ** np.arange(7), rtol=1e-15)


# Weight decay


@pytest.mark.parametrize("train_decoder", (False, True))
def test_weight_decay_with_the_mask_reaches_what_is_trained_and_nothing_else(key, train_decoder):
    block = joma.JomaBlock(4, 3, classes=5, key=key, init_scale=0.5, temperature=0.7, train_decoder=train_decoder)
    data = joma.class_tokens("random", 4, 5, key=key)
    decay = optax.chain(optax.add_decayed_weights(0.1, mask=block.trainable()), optax.sgd(0.5))
    end = train(block, joma.cross_entropy, data, decay, 3).model
    expected = block
    for _ in range(3):
        slope = eqx.filter_grad(joma.cross_entropy)(expected, data)
        names = ("w", "z") + (("decoder",) if train_decoder else ())
        for name in names:
            p, g = getattr(expected, name), getattr(slope, name)
            expected = eqx.tree_at(lambda m, name=name: getattr(m, name), expected, p - 0.5 * (g + 0.1 * p))
    _assert_same(jax.tree.leaves(end), jax.tree.leaves(expected))
    for name in ("u_c", "u_q", "temperature", "normaliser") + (() if train_decoder else ("decoder",)):
        np.testing.assert_array_equal(getattr(end, name), getattr(block, name))


# Trained leaves


def test_leaves_that_are_not_trainable_have_no_state_and_stay_under_any_decay(key):
    block = joma.JomaBlock(4, 3, classes=5, key=key, init_scale=0.5)
    data, decay = joma.class_tokens("random", 4, 5, key=key), optax.adamw(0.1, weight_decay=0.1)
    seen = []

    def init(params):
        seen.append(len(jax.tree.leaves(params)))
        return decay.init(params)

    end = train(
        block, joma.cross_entropy, data, decay._replace(init=init), 5, trainable=block.trainable(),
        observe=lambda m: m.u_c,
    )  # fmt: skip
    masked = train(block, joma.cross_entropy, data, optax.adamw(0.1, weight_decay=0.1, mask=block.trainable()), 5)
    assert seen == [2]
    _assert_same(jax.tree.leaves(end.model), jax.tree.leaves(masked.model))
    assert end.observed.shape == (2, *block.u_c.shape)


def test_trainable_may_be_a_tree_prefix():
    model = {"still": {"a": jnp.ones(2), "n": 3}, "moving": jnp.ones(2)}
    loss = lambda m, _: jnp.sum(m["moving"] ** 2) + jnp.sum(m["still"]["a"] ** 2)
    end = train(model, loss, None, optax.sgd(0.25), 1, trainable={"still": False, "moving": True}).model
    np.testing.assert_array_equal(end["still"]["a"], 1.0)
    np.testing.assert_array_equal(end["moving"], 0.5)
    assert end["still"]["n"] == 3


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"steps": -1}, "steps must be an integer of at least 0, got -1"),
        ({"steps": 2.5}, "steps must be an integer, got 2.5"),
        ({"every": 0}, "every must be an integer of at least 1, got 0"),
        ({"every": 1.5}, "every must be an integer, got 1.5"),
        ({"data": _draw}, "key must be given: data is a sampler"),
        ({"key": jax.random.key(0)}, "key would be ignored: data is fixed"),
        ({"data": _draw, "key": 0}, "key must be one key"),
        ({"data": _draw, "key": jax.random.split(jax.random.key(0))}, "key must be one key"),
        ({"observe": lambda m: "x"}, "observe must return arrays, got 'x'"),
        ({"optimiser": 0.1}, "optimiser must be a GradientTransformation, got 0.1"),
        ({"optimiser": optax.sgd}, "optimiser must be a GradientTransformation, got <function sgd"),
        ({"loss": lambda m, b: m["w"]}, "loss must return one real number"),
        ({"loss": lambda m, b: None}, "loss must return one real number, got None"),
        ({"loss": lambda m, b: jnp.sum(m["w"].astype(complex))}, "loss must return one real number"),
        ({"trainable": "yes"}, "trainable must be True, False or a tree of them, got 'yes'"),
        ({"trainable": {"v": True}}, "trainable must be a tree prefix of model"),
        ({"trainable": False}, "model must hold at least one"),
        ({"data": np.array([None, 1])}, r"data must be an array of numbers, got object\[2\]"),
        ({"data": np.ones(2, np.longdouble)}, r"data must be an array of numbers, got float128\[2\]"),
        ({"optimiser": optax.sgd(0.1j)}, "optimiser must return real updates for real parameters, got complex128"),
        ({"optimiser": optax.lookahead(optax.sgd(0.1), 2, 0.5)}, "optimiser must take parameters and gradients"),
        ({"data": {"x": "word"}}, r"data\['x'\] must be an array, got 'word'"),
        ({"model": {"n": jnp.arange(3)}}, "model must hold at least one floating-point array"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_arguments_are_refused(changes, message):
    arguments = {"model": _model(), "loss": _loss, "data": DATA, "optimiser": optax.sgd(0.1), "steps": 3} | changes
    with pytest.raises(ValueError, match=message):
        train(**arguments)


def test_loss_that_is_never_finite_stops_at_step_zero():
    with pytest.warns(RuntimeWarning, match="non-finite at step 0 of 3"):
        run = train(_model(), lambda m, _: jnp.sum(m["w"]) * jnp.nan, None, optax.sgd(0.1), 3)
    assert run.diverged_at == 0
    _assert_same(run.model, _model(), rtol=0)


# Labels


@pytest.mark.parametrize("label", (9, -1))
@pytest.mark.usefixtures("as_users")
def test_labels_that_the_model_does_not_have_are_refused_at_the_door_and_named_after_a_sampler(key, label):
    block = joma.JomaBlock(4, 3, classes=3, key=key)
    data = joma.Contexts(jnp.ones((2, 4)) / 4, jnp.array([0, label]), jnp.zeros(2, int))
    with pytest.raises(ValueError, match=f"label must lie from 0 to 2, got {label}"):
        train(block, joma.cross_entropy, data, optax.sgd(0.1), 3)
    with pytest.warns(RuntimeWarning, match=f"step 0 of 3.*label must lie from 0 to 2, got {label}"):
        train(block, joma.cross_entropy, joma.minibatch(data, 20), optax.sgd(0.1), 3, key=key)


# Optimisers that need more than gradients, and complex parameters


CURVATURE = jnp.array([1.0, 4.0])


def _bowl(model, _):
    return jnp.sum(CURVATURE * (model - jnp.array([1.0, -2.0])) ** 2) / 2


DEMANDING = {
    "lbfgs": optax.lbfgs(),
    "lbfgs, fixed rate": optax.lbfgs(0.3, linesearch=None),
    "backtracking": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)),
    "backtracking that stores": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20, store_grad=True)
    ),
    "zoom": optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(20)),
    "polyak_sgd": optax.polyak_sgd(),
    "reduce_on_plateau": optax.chain(optax.adam(0.2), optax.contrib.reduce_on_plateau(patience=20)),
    "momo": optax.contrib.momo(0.2),
    "momo_adam": optax.contrib.momo_adam(0.2),
    "sophia": optax.contrib.sophia(0.2),
    "sam": optax.contrib.sam(optax.sgd(0.2), optax.sgd(0.01), sync_period=2),
    "opaque sam": optax.contrib.sam(optax.sgd(0.2), optax.sgd(0.01), sync_period=2, opaque_mode=True),
    "partition": optax.partition({"a": optax.polyak_sgd()}, "a"),
    "inject_hyperparams": optax.inject_hyperparams(optax.polyak_sgd)(max_learning_rate=0.4),
    "MultiSteps": optax.MultiSteps(optax.polyak_sgd(), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", DEMANDING)
def test_optimisers_that_need_more_than_gradients_train(name):
    run = train(jnp.zeros(2), _bowl, None, DEMANDING[name], 100)
    assert run.diverged_at == -1
    assert _bowl(run.model, None) < 0.1 * _bowl(jnp.zeros(2), None)


def test_optimiser_that_asks_for_no_more_costs_no_more():
    def forward_passes(optimiser):
        program = jax.jit(lambda m: train(m, lambda m, _: jnp.sum(jnp.tanh(m)), None, optimiser, 5).model)
        return program.lower(jnp.ones(3)).compile().as_text().count(" tanh(")

    assert forward_passes(optax.sgd(0.1)) == forward_passes(optax.adam(0.1)) == 1
    assert forward_passes(optax.lbfgs()) > 1


def test_complex_parameters_descend_as_their_two_real_numbers():
    target = jnp.array([1.0 + 2.0j, -0.5j])
    loss = lambda m, _: jnp.sum(jnp.abs(m["z"] - target) ** 2) + (m["x"] - 3) ** 2
    of_reals = lambda m, _: loss({"z": jax.lax.complex(m["re"], m["im"]), "x": m["x"]}, None)
    start, zero = {"z": jnp.zeros(2, complex), "x": jnp.array(0.0)}, jnp.zeros(2)
    for optimiser in (optax.sgd(0.1), optax.sgd(0.05, momentum=0.9), optax.lbfgs()):
        end = train(start, loss, None, optimiser, 7).model
        real = train({"re": zero, "im": zero, "x": jnp.array(0.0)}, of_reals, None, optimiser, 7).model
        np.testing.assert_allclose(
            end["z"], np.asarray(real["re"]) + 1j * np.asarray(real["im"]), rtol=1e-12, atol=1e-14
        )
        assert end["x"] == pytest.approx(float(real["x"]), rel=1e-12)
    np.testing.assert_allclose(end["z"], target, rtol=1e-8)


def test_complex_number_reaches_its_target():
    run = train(jnp.zeros((), complex), lambda z, _: jnp.abs(z - 2j) ** 2 / 2, None, optax.sgd(0.1), 15)
    np.testing.assert_allclose(run.model, 2j * (1 - 0.9**15), rtol=1e-14)  # 1.588i; uphill it would be −6.4i
