"""One step of pre-training against optax by hand, the optimisers by name, the schedule, and the rule for devices."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from traindyn.nets import init
from traindyn.nets.pretrain import OPTIMISERS, Step, make_mesh, make_optimiser, shardings, shardings_of, warmup_cosine


class Toy(eqx.Module):
    """A model that is not all arrays."""

    weight: jax.Array
    offset: jax.Array
    steps: jax.Array
    name: str = "toy"


def _loss(model, batch):
    x, y = batch
    return jnp.mean((x @ model.weight.T + model.offset[None] - y) ** 2)


def _data(dtype=float):
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    return Toy(make(3, 4), make(3), jnp.asarray(7)), (make(8, 4), jnp.asarray(rng.normal(size=(8, 3)), dtype))


def test_a_step_is_that_of_optax_and_compiles_once():
    model, batch = _data()
    optimiser, calls = optax.adam(0.1), []

    def loss(model, batch):
        calls.append(1)
        return _loss(model, batch)

    step = Step(loss, optimiser, gradient_norm=True)
    params = [np.asarray(model.weight), np.asarray(model.offset)]
    moments = [[np.zeros_like(p), np.zeros_like(p)] for p in params]
    state, (x, y) = init(model, optimiser), map(np.asarray, batch)
    for n in range(1, 4):
        state, metrics = step(state, batch)
        error = x @ params[0].T + params[1] - y
        grads = 2 * error.T @ x / error.size, 2 * error.sum(0) / error.size
        np.testing.assert_allclose(metrics["loss"], (error**2).mean(), rtol=1e-12)
        np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(sum((g**2).sum() for g in grads)), rtol=1e-12)
        for i, g in enumerate(grads):
            m, v = moments[i]
            moments[i] = [0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2]
            m, v = moments[i][0] / (1 - 0.9**n), moments[i][1] / (1 - 0.999**n)
            params[i] = params[i] - 0.1 * m / (np.sqrt(v) + 1e-8)
        np.testing.assert_allclose(state.model.weight, params[0], rtol=1e-9)
        np.testing.assert_allclose(state.model.offset, params[1], rtol=1e-9)
    assert state.model.steps == 7 and state.model.name == "toy" and state.step == 3
    assert len(calls) == 1
    assert set(Step(_loss, optimiser)(state, batch)[1]) == {"loss"}


def test_a_step_uses_up_what_it_is_given():
    model, batch = _data()
    optimiser = optax.sgd(0.1)
    state = init(model, optimiser)
    Step(_loss, optimiser)(state, batch)
    assert model.weight.is_deleted() and not batch[0].is_deleted()
    with pytest.raises(ValueError, match="state must be what the last step returned"):
        Step(_loss, optimiser)(state, batch)


# Optimisers by name


def _params(dtype=float):
    rng = np.random.default_rng(1)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    block = lambda: {"query": make(6, 8), "attention_norm": make(2, 8)}
    return {"embedding": make(10, 8), "blocks": [block(), block()], "last_norm": make(8)}


def _updates(optimiser, params, *gradients):
    """What each gradient leads to, and the last state."""
    update, state, out = jax.jit(optimiser.update), optimiser.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for g in gradients:
            new, state = update(g, state, params)
            out.append(new)
    return out, state


def _rank(name):
    return {"rank": 2} if name == "galore" else {}


def _like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)


def test_galore_projects_the_matrices_of_the_layers_and_leaves_the_rest_to_adam():
    params, gradient = _params(), _like(_params(), 2)
    (ours,), _ = _updates(make_optimiser("galore", 0.01, rank=2, gap=5, scale=0.5), params, gradient)
    (adam,), _ = _updates(optax.adam(0.01), params, gradient)
    for i, block in enumerate(ours["blocks"]):
        np.testing.assert_allclose(block["attention_norm"], adam["blocks"][i]["attention_norm"], rtol=1e-12)
        assert np.linalg.matrix_rank(block["query"], tol=1e-9) == 2
        # At the first step Adam's entries are ±1, so that |update| = learning rate × scale × √(r · o).
        np.testing.assert_allclose(np.linalg.norm(block["query"]), 0.01 * 0.5 * np.sqrt(2 * 8), rtol=1e-6)
    for name in ("embedding", "last_norm"):
        np.testing.assert_allclose(ours[name], adam[name], rtol=1e-12)


@pytest.mark.parametrize("name", ("adam", "galore", "sgd"))
def test_accumulated_gradients_lead_to_the_update_of_their_mean(name):
    params = _params()
    first = _like(params, 2)
    last = jax.tree.map(lambda g: 3.0 * g, first)  # the mean spans what the first does, so that GaLore's basis agrees
    schedule = warmup_cosine(0.1, 4, 0)
    make = lambda **options: make_optimiser(name, schedule, **_rank(name), **options)
    (none, both, *_), _ = _updates(make(accumulate=2), params, first, last)
    (mean,), _ = _updates(make(), params, jax.tree.map(lambda g: 2.0 * g, first))
    assert all(not jnp.any(x) for x in jax.tree.leaves(none))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12), both, mean)


@pytest.mark.parametrize("name", ("adamw", "galore"))
def test_weight_decay_is_of_matrices_and_norms_have_none(name):
    params = _params()
    zero = jax.tree.map(jnp.zeros_like, params)
    (update,), _ = _updates(make_optimiser(name, 0.1, **_rank(name), weight_decay=0.5), params, zero)
    decayed = lambda x: -0.1 * 0.5 * x
    for i, block in enumerate(update["blocks"]):
        np.testing.assert_allclose(block["query"], decayed(params["blocks"][i]["query"]), rtol=1e-12)
        np.testing.assert_array_equal(block["attention_norm"], 0)
    np.testing.assert_allclose(update["embedding"], decayed(params["embedding"]), rtol=1e-12)
    np.testing.assert_array_equal(update["last_norm"], 0)


def test_moments_of_bfloat16_parameters_are_in_float32_and_decay():
    params = _params(jnp.bfloat16)
    ones, zeros = jax.tree.map(jnp.ones_like, params), jax.tree.map(jnp.zeros_like, params)
    for name in ("adam", "galore"):
        optimiser = make_optimiser(name, 0.1, **_rank(name))
        _, state = _updates(optimiser, params, ones, *[zeros] * 20)
        floating = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating) and x.size > 2]
        assert {x.dtype for x in floating} <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}  # bases in bfloat16
        nu = next(s for s in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(s)).nu
        np.testing.assert_allclose(jax.tree.leaves(nu)[0], 1e-3 * 0.999**20, rtol=1e-5)


def _is_adam(x):
    return isinstance(x, optax.ScaleByAdamState)


def test_clip_is_by_the_norm_of_the_step_before():
    params = _params()
    gradient = jax.tree.map(lambda x: 10.0 * x, _like(params, 3))
    updates, _ = _updates(make_optimiser("sgd", 1.0, clip=1.0), params, gradient, gradient)
    np.testing.assert_allclose(optax.tree.norm(updates[1]), 1, rtol=1e-12)


def test_the_schedule_rises_to_its_peak_and_falls_to_a_tenth():
    schedule = warmup_cosine(0.4, 100, 20)
    values = [float(schedule(n)) for n in (0, 10, 20, 60, 100)]
    np.testing.assert_allclose(values, [0, 0.2, 0.4, 0.4 * (0.1 + 0.9 * 0.5), 0.04], rtol=1e-6)
    np.testing.assert_allclose(float(warmup_cosine(0.4, 10, 0)(0)), 0.4)


# Devices


def test_matrices_are_split_along_their_longer_side_where_that_divides():
    mesh = AbstractMesh((2, 4), ("data", "model"))
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    rules = {
        (8, 12): (None, "model"),
        (12, 8): ("model", None),
        (8, 8): ("model", None),
        (8, 10): (None, None),
        (3, 16, 8): (None, "model", None),
        (16,): (None,),
        (): (),
    }
    placed = shardings({sizes: shape(*sizes) for sizes in rules}, mesh)
    whole = shardings_of({"w": np.ones(3)}, make_mesh(1, 1))["w"]  # on no mesh
    assert whole.spec == PartitionSpec() and whole.mesh.size == 1
    assert {sizes: x.spec for sizes, x in placed.items()} == {k: PartitionSpec(*v) for k, v in rules.items()}


@pytest.mark.parametrize(
    "optimiser",
    (
        optax.lbfgs(),
        optax.polyak_sgd(),
        optax.chain(optax.adam(0.05), optax.contrib.reduce_on_plateau()),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20)),
    ),
    ids=("lbfgs", "polyak_sgd", "reduce_on_plateau", "backtracking"),
)
def test_optimisers_that_need_more_than_gradients_train(optimiser):
    model, batch = _data()
    first, state = _loss(model, batch), init(model, optimiser)
    step = Step(_loss, optimiser)
    for _ in range(40):
        state, _ = step(state, batch)
    best = np.linalg.lstsq(np.column_stack([batch[0], np.ones(8)]), np.asarray(batch[1]))[1].sum() / batch[1].size
    assert _loss(state.model, batch) - best < 0.15 * (first - best)


def test_complex_parameters_descend_and_their_gradient_has_a_norm():
    step = Step(lambda z, _: jnp.sum(jnp.abs(z - 2j) ** 2) / 2, optax.sgd(0.5), gradient_norm=True)
    end, metrics = step(init(jnp.zeros(3, complex), step.optimiser), None)
    np.testing.assert_allclose(end.model, 1j * np.ones(3), rtol=1e-15)
    assert metrics["gradient_norm"] == pytest.approx(2 * 3**0.5, rel=1e-12)


def test_norm_of_float16_gradients_does_not_overflow():
    step, w = Step(lambda w, _: jnp.sum(w * jnp.float16(6e4)), optax.sgd(0.0), gradient_norm=True), jnp.zeros(4)
    w = w.astype(jnp.float16)
    _, metrics = step(init(w, step.optimiser), None)
    assert metrics["gradient_norm"].dtype == jnp.float32
    assert float(metrics["gradient_norm"]) == pytest.approx(2 * 6e4, rel=1e-3)


def test_loss_that_is_not_finite_leaves_the_state_as_it_was():
    step = Step(lambda w, batch: jnp.sum(w) * batch, optax.sgd(0.5))
    state, metrics = step(init(jnp.ones(2), step.optimiser), jnp.nan)
    assert np.isnan(metrics["loss"]) and state.diverged_at == 0
    np.testing.assert_array_equal(state.model, 1)


@pytest.mark.usefixtures("as_users")
def test_what_does_not_fit_a_step_is_named():
    model, batch = _data()
    with pytest.raises(ValueError, match=r"optimiser must be a GradientTransformation, got 0\.1"):
        Step(_loss, 0.1)
    with pytest.raises(ValueError, match="shardings must be a pair of trees of shardings, or None, got 'x'"):
        Step(_loss, optax.sgd(0.1), shardings="x")
    with pytest.raises(ValueError, match="state must be what init gives for this optimiser and model"):
        Step(_loss, optax.adam(0.1))(init(model, optax.sgd(0.1)), batch)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: make_optimiser("lion", 0.1), f"name must be one of {', '.join(map(repr, OPTIMISERS))}, got 'lion'."),
        (
            lambda: make_optimiser("adam", 0.1, weight_decay=0.5),
            "weight_decay is for adamw, galore and galore8bit, got 0.5 for adam.",
        ),
        *(
            (
                lambda option=option: make_optimiser("adam", 0.1, **{option: 3}),
                f"{option} would be ignored: it is for galore and galore8bit, got 3 for adam.",
            )
            for option in ("rank", "gap", "scale")
        ),
        (
            lambda: _updates(make_optimiser("adam", lambda count: jnp.ones(4)), _params(), _params()),
            "learning_rate must be a number or a schedule that returns one, got float64[4].",
        ),
        (lambda: shardings({"w": 1}, make_mesh(1, 1)), "tree must hold arrays or their shapes, got 1."),
        (lambda: make_optimiser("adamw", 0.1, weight_decay=-0.1), "weight_decay must be at least 0, got -0.1."),
        (lambda: make_optimiser("adam", 0.1, accumulate=0), "accumulate must be an integer of at least 1, got 0."),
        (lambda: make_optimiser("adam", 0.1, clip=-1.0), "clip must be above 0, got -1.0."),
        (lambda: make_optimiser("adam", float("nan")), "learning_rate must be finite, got nan."),
        (lambda: warmup_cosine(float("nan"), 5, 1), "learning_rate must be at least 0, got nan."),
        (lambda: make_mesh(0, 1), "data must be an integer of at least 1, got 0."),
        (lambda: make_mesh(1.0, 1), "data must be an integer, got 1.0."),
        (
            lambda: shardings({}, 3),
            "mesh must be a mesh of devices with the axis 'model', as make_mesh gives it, got 3.",
        ),
        (lambda: warmup_cosine(0.1, 5, 5), "warmup must be at least 0 and below steps = 5, got 5."),
        (
            lambda: make_mesh(3, 5),
            f"data × model must be at most {jax.device_count()}, the number of devices, got 3 × 5.",
        ),
    ),
)
def test_bad_arguments_are_named(call, message, as_users):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message
