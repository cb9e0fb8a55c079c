"""GaLore within other people's code: optax's combinators, checkpoints, and several devices."""

import json
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec

from traindyn.nets.galore import exact_svd, galore, galore_labels, galore_reset, scale_by_galore
from traindyn.nets.quantise import quantize_state

PARAMS = {"a": jnp.zeros((6, 10)), "b": jnp.zeros((10, 6)), "c": jnp.zeros(4)}
STEPS, GAP = 7, 4


@pytest.fixture(autouse=True)
def _optax_mixes_dtypes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _gradients(steps=STEPS):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(steps, *p.shape))), PARAMS)


def _run(tx, params=PARAMS, grads=None, state=None, **extra):
    """The parameters after each step, and the state in the end."""
    grads = _gradients() if grads is None else grads

    @jax.jit
    def run(params, state, grads):
        def step(carry, g):
            updates, state = tx.update(g, carry[1], carry[0], **extra)
            params = optax.apply_updates(carry[0], updates)
            return (params, state), params

        (_, state), trail = jax.lax.scan(step, (params, state), grads)
        return trail, state

    return run(params, tx.init(params) if state is None else state, grads)


def _same(x, y, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), x, y)


@pytest.fixture(scope="module")
def alone():
    return _run(galore(0.1, 3, 3))[0]


def test_partition_and_masked(alone):
    """Each leaf is treated as by itself, whatever the others are."""
    labels = lambda tree: galore_labels(tree, lambda name, leaf: name == "a")
    partition = _run(optax.partition({"galore": galore(0.1, 3, 3), "full": optax.sgd(0.5)}, labels))[0]
    mask = {"a": True, "b": False, "c": False}
    masked = _run(optax.chain(optax.masked(galore(0.1, 3, 3), mask)))[0]
    for mixed in (partition, masked):
        _same(mixed["a"], alone["a"])
    _same(partition["b"], -0.5 * jnp.cumsum(_gradients()["b"], axis=0))
    assert jnp.max(jnp.abs(partition["b"] - alone["b"])) > 0.1


def test_multi_steps_accumulates_outside(alone):
    twice = jax.tree.map(lambda g: jnp.repeat(g, 2, axis=0), _gradients())
    tx = optax.MultiSteps(galore(0.1, 3, 3), 2).gradient_transformation()
    trail = _run(tx, grads=twice)[0]
    _same(jax.tree.map(lambda x: x[1::2], trail), alone, atol=1e-5)  # it averages in float32
    assert jnp.max(jnp.abs(_run(galore(0.1, 3, 3), grads=twice)[0]["a"][1::2] - alone["a"])) > 0.1


def test_apply_if_finite_and_plateau(alone):
    tx = optax.apply_if_finite(galore(0.1, 3, 3), 2)
    _same(_run(tx)[0], alone)
    plateau = optax.chain(galore(0.1, 3, 3), optax.contrib.reduce_on_plateau(patience=2))
    assert optax.tree.get(_run(plateau, value=1.0)[1], "scale") < 1


@pytest.mark.parametrize("static", [(), ("rank", "update_proj_gap")])
def test_inject_hyperparams(alone, static):
    tx = optax.inject_hyperparams(galore, static_args=static)(learning_rate=0.1, rank=3, update_proj_gap=3, scale=1.0)
    params, state = _run(tx)
    _same(params, alone)
    assert "learning_rate" in state.hyperparams


def test_inject_hyperparams_as_nothing_but_numbers():
    """Functions are named in `static_args`; `optax.contrib` refuses a rank that is an array."""
    numbers = {"learning_rate": 0.1, "rank": 3, "update_proj_gap": 3, "scale": 1.0}
    tx = optax.inject_hyperparams(galore, static_args=("projector",))(**numbers, projector=exact_svd())
    _same(_run(tx)[0], _run(galore(0.1, 3, 3, projector=exact_svd()))[0])
    with pytest.raises(TypeError, match="`rank` must be an int"):
        _run(optax.inject_hyperparams(optax.contrib.galore)(**numbers))


def test_extra_arguments_reach_the_base(alone):
    """Which `optax.contrib` does not pass on."""

    def update(updates, state, params=None, *, value):
        return jax.tree.map(lambda g: g * value, updates), state

    base = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    one, two = (_run(galore(0.1, 3, 3, 1.0, base), value=value)[0] for value in (1.0, 2.0))
    _same(jax.tree.map(lambda x: 2 * x, one), two)
    adam = optax.chain(base, optax.scale_by_adam())
    _same(_run(galore(0.1, 3, 3, base_optimizer=adam), value=1.0)[0], alone)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'value'"):
        _run(optax.contrib.galore(0.1, 3, 3, 1.0, adam), value=1.0)


def test_map_params_gives_every_moment_its_spec():
    tx = scale_by_galore(rank=3)
    state = tx.init(PARAMS)
    specs = {"a": PartitionSpec(None, "x"), "b": PartitionSpec("x", None), "c": PartitionSpec()}
    is_leaf = lambda x: isinstance(x, optax.MaskedNode)
    mapped = optax.tree.map_params(tx, lambda leaf, spec: spec, state, specs, is_leaf=is_leaf)
    assert mapped.inner_state.mu == mapped.inner_state.nu == specs
    assert mapped.left == specs and mapped.count is state.count


@pytest.fixture(scope="module")
def unbroken():
    """An optimiser with 8-bit states and a stagger, its compiled step, and parameters and state after each step."""
    tx, grads = galore(0.1, 3, GAP, base_optimizer=quantize_state(optax.scale_by_adam(), min_size=8)), _gradients()
    update = jax.jit(tx.update)

    def go_on(params, state, first):
        trail = []
        for t in range(first, STEPS):
            updates, state = update(jax.tree.map(lambda g, t=t: g[t], grads), state, params)
            params = optax.apply_updates(params, updates)
            trail.append((params, state))
        return trail

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return go_on, tx.init(PARAMS), go_on(PARAMS, tx.init(PARAMS), 0)


@pytest.mark.parametrize("save", ["orbax", "equinox"])
def test_a_saved_state_goes_on_to_the_bit_at_any_phase(tmp_path, unbroken, save):
    go_on, start, trail = unbroken
    for phase in range(1, STEPS):
        saved = trail[phase - 1]
        if save == "orbax":
            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / f"{phase}", saved)
                checkpointer.wait_until_finished()
                loaded = checkpointer.restore(tmp_path / f"{phase}", jax.eval_shape(lambda: (PARAMS, start)))
        else:
            eqx.tree_serialise_leaves(tmp_path / f"{phase}.eqx", saved)
            loaded = eqx.tree_deserialise_leaves(tmp_path / f"{phase}.eqx", (PARAMS, start))
        jax.tree.map(np.testing.assert_array_equal, loaded, saved)
        jax.tree.map(np.testing.assert_array_equal, go_on(*loaded, phase)[-1], trail[-1])


@pytest.mark.parametrize("lost", ["count", "bases", "moments"])
def test_a_state_without_one_of_its_parts_goes_on_otherwise(unbroken, lost):
    """So that each part of what is saved is needed, and the comparison above sees it."""
    go_on, (first, *_), trail = unbroken
    params, (state, *rest) = trail[GAP]
    without = {
        "count": lambda: state._replace(count=first.count),
        "bases": lambda: galore_reset(state._replace(left=first.left, right=first.right)),
        "moments": lambda: state._replace(inner_state=first.inner_state),
    }
    end = go_on(params, (without[lost](), *rest), GAP + 1)[-1][0]
    assert any(np.any(end[name] != trail[-1][0][name]) for name in PARAMS)


def test_no_leaf_of_the_state_is_empty(tmp_path):
    """As those of `optax.contrib` are, which Orbax refuses."""
    assert all(x.size for x in jax.tree.leaves(galore(0.1, 3, 3).init(PARAMS)))
    with ocp.StandardCheckpointer() as checkpointer, pytest.raises(ValueError, match="zero size"):
        checkpointer.save(tmp_path / "state", optax.contrib.galore(0.1, 3, 3).init(PARAMS))
        checkpointer.wait_until_finished()


_SHARDED = """
import json, math, re, sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from traindyn.nets.galore import exact_svd, galore
from traindyn.nets.quantise import quantize_state
jax.config.update("jax_enable_x64", True)
m, n = 48, 96
draws = np.random.default_rng(0).normal(size=(4, m, n))
def descend(tx, dtype, put):
    grads, params = jnp.asarray(draws, dtype), put(jnp.zeros((m, n), dtype))
    state = start = tx.init(params)
    @jax.jit
    def step(g, state, params):
        updates, state = tx.update(g, state, params)
        return optax.apply_updates(params, updates), state
    compiled, trail = step.lower(put(grads[0]), state, params).compile(), []
    for g in grads:
        params, state = compiled(put(g), state, params)
        trail.append(np.asarray(params))
    return np.stack(trail), params.sharding, start, state, compiled.as_text()
def gathered(text):
    sizes = [re.search(r"\\[([0-9,]*)\\]", line).group(1) for line in text.splitlines() if " all-gather(" in line]
    return max((math.prod(int(x) for x in size.split(",")) for size in sizes if size), default=0)
results, alone = [], {}
rows, columns = P("x", None), P(None, "x")
cases = [
    ("Auto", rows, "default", "float64"), ("Auto", columns, "default", "float32"),
    ("Explicit", rows, "default", "float32"), ("Explicit", columns, "default", "float64"),
    ("Auto", rows, "exact_svd", "float32"), ("Explicit", columns, "quantised", "float32"),
]
eight_bits = quantize_state(optax.scale_by_adam(), block=8, min_size=8)
options = {"default": {}, "exact_svd": {"projector": exact_svd()}, "quantised": {"base_optimizer": eight_bits}}
for kind, spec, name, dtype in cases:
    tx = galore(0.1, 8, 2, **options[name])
    if (name, dtype) not in alone:
        alone[name, dtype] = descend(tx, dtype, lambda x: x)[0]
    mesh = jax.make_mesh((8,), ("x",), axis_types=(getattr(AxisType, kind),))
    with jax.set_mesh(mesh):
        trail, at, start, end, text = descend(tx, dtype, lambda x: jax.device_put(x, NamedSharding(mesh, spec)))
        same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), start, end)
        moment = end[0].inner_state.inner_state.mu.codes if name == "quantised" else end[0].inner_state.mu
        moments = moment.sharding.shard_shape((8, n))
        results.append([kind, str(spec), name, dtype, float(np.max(np.abs(alone[name, dtype] - trail))),
                        gathered(text) / (8 * m), bool(jax.tree.all(same)), at.spec == spec, moments])
print(json.dumps(results))
"""


def test_on_eight_devices_no_gradient_is_gathered():
    """Result, shardings and communication of the default, on either axis and in either kind of mesh: nothing larger is
    gathered than a basis. The exact SVD does gather the gradient, so that it is seen to be measured."""
    # cheaper code for each core, which changes nothing of what the devices send each other
    flags = (
        "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
    run = subprocess.run(
        [sys.executable, "-c", _SHARDED],
        capture_output=True,
        text=True,
        check=False,
        env={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": ""},
    )
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    assert len(results) == 6
    for kind, spec, name, dtype, error, gathered, stable, placed, moments in results:
        # a code of 8 bits may fall to either side of a rounding error
        bound = 0.02 if name == "quantised" else {"float32": 1e-5, "float64": 1e-11}[dtype]
        assert error <= bound and stable and placed, (kind, spec, name, error)
        assert (gathered <= 1) == (name != "exact_svd"), (kind, spec, name, gathered)
        assert moments == ([8, 12] if "None, 'x'" in spec else [8, 96])
