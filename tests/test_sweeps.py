import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from click.testing import CliRunner
from jax.experimental import io_callback
from jax.tree_util import Partial

import traindyn
from traindyn.__main__ import main
from traindyn._files import locked
from traindyn.dynamics import joma, solve
from traindyn.nets import joma as nets
from traindyn.nets import train
from traindyn.sweeps import Subject, SweepError, sweep
from traindyn.sweeps import named as named_sweep
from traindyn.sweeps.flows import subjects

RATES = jnp.array([0.1, 0.2, 0.4])
HERE = Path(__file__).parent


def square(point):
    return {"square": point["rate"] ** 2 * jnp.ones(2), "draw": jax.random.uniform(point["seed"])}


def solved(point):
    """Blows up in finite time once delta is large."""
    flow = joma.LinearActivation(point["delta"] * jnp.array([1.0, 0.5]))
    return solve(flow, jnp.zeros(2), jnp.array([0.5, 1.0]), throw=False)


def test_the_grid_is_labelled():
    keys = jax.random.split(jax.random.key(0), 4)
    found = traindyn.sweep(square, {"rate": RATES, "seed": keys}, batch_size=5, dims={"square": ["pair"]})
    assert found["square"].dims == ("rate", "seed", "pair") and found["draw"].dims == ("rate", "seed")
    np.testing.assert_array_equal(found["rate"], RATES)
    np.testing.assert_array_equal(found["seed"], range(4))
    np.testing.assert_allclose(found["square"].sel(rate=0.2, seed=3), 0.04, rtol=1e-15)
    for i in range(4):
        np.testing.assert_array_equal(found["draw"].sel(seed=i), np.full(3, jax.random.uniform(keys[i])))
    assert (found["status"] == 0).all() and found["status"].dtype == np.int8


def test_axes_move_together_and_hold_trees():
    trees = {"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}
    axes = {("rate", "decay"): (RATES, [3.0, 2.0, 1.0]), "tree": trees}
    found = sweep(lambda p: p["rate"] * p["decay"] + p["tree"]["a"] * p["tree"]["b"][1], axes)
    np.testing.assert_allclose(found["value"], (RATES * jnp.array([3, 2, 1.0]))[:, None] + jnp.arange(3.0)[None])
    assert found["decay"].dims == ("rate",) and found["value"].dims == ("rate", "tree")


def test_solutions_and_runs_bring_their_times():
    data = nets.class_tokens("gaussian", key=jax.random.key(0))
    model = nets.JomaBlock(20, 20, attention="exp", key=jax.random.key(1))

    def both(point):
        run = train(model, nets.cross_entropy, data, optax.sgd(point["rate"]), 4, observe=lambda m: m.z, every=2)
        flow = joma.LinearActivation(jnp.array([1.0, 0.5]))
        return {"sgd": run, "theory": solve(flow, jnp.zeros(2), jnp.array([0.1, 0.2]), throw=False)}

    found = sweep(both, {"rate": RATES}, dims={"theory": ["theory.time", "token"]})
    np.testing.assert_array_equal(found["sgd.step"], [0, 2, 4])
    np.testing.assert_array_equal(found["theory.time"], [0.1, 0.2])
    assert found["theory"].dims == ("rate", "theory.time", "token")
    assert found["sgd"].dims[:2] == ("rate", "sgd.step")
    single = train(model, nets.cross_entropy, data, optax.sgd(0.2), 4, observe=lambda m: m.z, every=2)
    np.testing.assert_allclose(found["sgd"].sel(rate=0.2), single.observed, rtol=1e-13)
    np.testing.assert_allclose(found["sgd.model.w"].sel(rate=0.2), single.model.w, rtol=1e-13)


def test_a_lane_that_fails_is_marked_and_costs_the_others_nothing():
    axes = {"delta": np.array([0.5, 1.0, 2.0, 3.0])}
    found = sweep(solved, axes, batch_size=3)
    np.testing.assert_array_equal(found["status"], [0, 0, 2, 2])
    np.testing.assert_array_equal(found["time"], [0.5, 1.0])  # though the lanes that failed did not reach the last
    well = sweep(solved, {"delta": axes["delta"][[0, 1, 0, 1]]}, batch_size=3)
    np.testing.assert_array_equal(found["y"][:2], well["y"][:2])
    np.testing.assert_array_equal(found["num_steps"][:2], well["num_steps"][:2])
    assert 0 < well.attrs["lane_efficiency"] <= 1

    def raises(point):  # inside the sweep the values are not known, so that this is an error at run time
        flow = joma.LinearActivation(point["delta"] * jnp.array([1.0, 0.5]))
        return solve(flow, jnp.zeros(2), jnp.array([0.5, 1.0])).ys

    marked = sweep(raises, axes, batch_size=3)
    np.testing.assert_array_equal(marked["status"], [0, 0, 4, 4])
    np.testing.assert_allclose(marked["value"][:2], well["y"][:2], rtol=1e-12)
    assert np.isnan(marked["value"][2:]).all()
    with pytest.raises(SweepError, match="blows up"):
        sweep(raises, {"delta": 4 + axes["delta"]}, batch_size=3)


def test_training_that_diverges_is_marked():
    def run(point):
        return train(jnp.ones(()), lambda m, _: m**4, (), optax.sgd(point["rate"]), 30, observe=lambda m: m, every=10)

    found = sweep(run, {"rate": [1e-3, 1e3]})
    np.testing.assert_array_equal(found["status"], [0, 3])
    assert np.isfinite(found["observed"][0]).all() and found["diverged_at"][1] > 0
    not_finite = sweep(lambda p: {"log": jnp.log(p["x"]), "x2": p["x"] * 2}, {"x": [-1.0, 1.0]})
    np.testing.assert_array_equal(not_finite["status"], [1, 0])


def test_cost_reorders_the_work_and_nothing_else():
    def lane(point):
        flow = joma.LogGap(point["mu"] * jnp.ones(2))
        return solve(flow, jnp.zeros(2), jnp.array([1.0, 2.0]), rtol=1e-8, atol=1e-10, throw=False)

    mu = np.random.default_rng(0).permutation(np.linspace(0.1, 4.0, 24))
    plain, sorted_ = (sweep(lane, {"mu": mu}, batch_size=4, cost=cost) for cost in (None, lambda p: p["mu"]))
    xr.testing.assert_allclose(plain, sorted_, rtol=1e-13)
    np.testing.assert_array_equal(plain["num_steps"], sorted_["num_steps"])
    assert sorted_.attrs["lane_efficiency"] > 0.8 > plain.attrs["lane_efficiency"]


def test_a_killed_sweep_goes_on(tmp_path):
    out = tmp_path / "sweep"
    same = str(int(jax.config.read("jax_disable_most_optimizations")))  # the same program, to the last digit
    as_here = {"JAX_DISABLE_MOST_OPTIMIZATIONS": same}
    process = subprocess.Popen([sys.executable, HERE / "_slow_sweep.py", str(out)], env=os.environ | as_here)
    chunks = lambda: sorted(out.glob("chunk-*.npz"))
    end = time.time() + 120
    while len(chunks()) < 4 and process.poll() is None and time.time() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in chunks()}
    assert 4 <= len(before) < 20, "killed half-way"

    sys.path.insert(0, str(HERE))
    try:
        import _slow_sweep
    finally:
        sys.path.pop(0)
    resumed = sweep(_slow_sweep.slow, _slow_sweep.AXES, batch_size=7, out=out)
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    lanes = np.concatenate([np.load(path)["lanes"] for path in chunks()])
    np.testing.assert_array_equal(np.sort(lanes), np.arange(60))  # each lane once: no chunk ran twice
    again = sweep(_slow_sweep.slow, _slow_sweep.AXES, out=out)
    xr.testing.assert_identical(again, resumed)
    xr.testing.assert_allclose(resumed, sweep(_slow_sweep.slow, _slow_sweep.AXES, batch_size=3), rtol=1e-15)


def test_out_refuses_another_sweep(tmp_path):
    axes = {"rate": RATES, "seed": jax.random.split(jax.random.key(0), 2)}
    first = sweep(square, axes, out=tmp_path)
    xr.testing.assert_identical(sweep(square, axes, out=tmp_path), first)
    with pytest.raises(ValueError, match=r"another sweep: axis rate differs"):
        sweep(square, axes | {"rate": 2 * RATES}, out=tmp_path)
    with pytest.raises(ValueError, match=r"another sweep: axis seed differs"):
        sweep(square, axes | {"seed": jax.random.split(jax.random.key(1), 2)}, out=tmp_path)
    with pytest.raises(ValueError, match=r"another sweep: fn differs"):
        sweep(lambda p: {"square": p["rate"] ** 3, "draw": jax.random.uniform(p["seed"])}, axes, out=tmp_path)


def test_an_error_keeps_what_was_computed(tmp_path, monkeypatch):
    module, calls = sys.modules["traindyn.sweeps.engine"], []
    real = module._run

    def fails_at_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError("full")
        return real(*args)

    monkeypatch.setattr(module, "_run", fails_at_third)
    with pytest.raises(SweepError, match="after 2 of 3 lanes: full") as caught:
        sweep(lambda p: p["rate"] ** 2, {"rate": RATES}, batch_size=1, out=tmp_path)
    np.testing.assert_array_equal(caught.value.dataset["status"], [0, 0, -1])
    np.testing.assert_allclose(caught.value.dataset["value"][:2], RATES[:2] ** 2)


@pytest.mark.parametrize(
    "axes, options, message",
    [
        ({}, {}, "at least one axis"),
        ({"rate": 0.1}, {}, "rate must be arrays with a common leading axis"),
        ({"rate": []}, {}, "rate must have at least one value"),
        ({"status": RATES}, {}, "not 'status'"),
        ({("a", "b"): (RATES, [1, 2])}, {}, "move together"),
        ({("a", "b"): (RATES,)}, {}, "one set of values each, got"),
        ({"value": RATES}, {}, "'value', which is the name of an axis"),
        ({"rate": RATES}, {"batch_size": 0}, "batch_size must be an integer of at least 1"),
        ({"rate": RATES}, {"dims": {"value": ["a"]}}, "dims must name the 0 axes of value"),
        ({"rate": RATES}, {"dims": {"velue": ["a"]}}, r"dims must name variables that fn returns .value., got 'velue'"),
        ({"rate": RATES}, {"cost": lambda p: jnp.ones(2)}, "cost must return one real number .* got float64.2."),
        (
            {"rate": RATES},
            {"cost": lambda p: jax.lax.complex(p["rate"], p["rate"])},
            "cost must return one real number .* got complex128",
        ),
        ({"rate": RATES}, {"cost": lambda p: None}, "cost must be a number or an array of numbers, got None"),
        ({"rate": RATES}, {"cost": lambda p: "x"}, "cost must be a number or an array of numbers, got 'x'"),
        ({"rate": RATES}, {"out": b"x"}, "out must be a path, got b'x'"),
        ({"rate": RATES}, {"out": 3}, "out must be a path, got 3"),
        ({"rate": RATES}, {"out": "a\0b"}, "out must be a path without null characters"),
    ],
)
def test_bad_arguments(axes, options, message, as_users):
    with pytest.raises(ValueError, match=message):
        sweep(lambda p: jnp.asarray(next(iter(p.values()))), axes, **options)


def test_a_function_without_arrays():
    with pytest.raises(ValueError, match="at least one array"):
        sweep(lambda p: None, {"rate": RATES})


def test_the_dataset_can_be_saved(tmp_path):
    found = sweep(solved, {"delta": [0.5, 2.0]})
    found.to_netcdf(tmp_path / "sweep.nc")
    with xr.open_dataset(tmp_path / "sweep.nc") as read:
        xr.testing.assert_equal(read, found)


@pytest.mark.parametrize(
    "text, values",
    [
        ("rate=1e-3:1:4:log", [1e-3, 1e-2, 1e-1, 1]),
        ("rate=0:1:3", [0, 0.5, 1]),
        ("rate=2:5", [2, 3, 4]),
        ("rate=0.5,2", [0.5, 2]),
        ("rate=7", [7]),
    ],
)
def test_axes_as_text(text, values):
    name, found = named_sweep.parse_axis(text)
    assert name == "rate"
    np.testing.assert_allclose(found, values, rtol=1e-12)


@pytest.mark.parametrize(
    "text",
    "rate =1:2 rate= rate=1:2:3:lag rate=0:1:3:log rate=5:2 rate=a,b rate=1:2:0 rate=nan rate=inf,1 rate=nan:1:3 "
    "rate=0:inf:3 rate=1e400:1:3 rate=99999999999999999999:1:x =1,2 a:b=1 rate=1:2:3:log:4 "
    "rate=-1.7e308:1.7e308:3".split(),
)
def test_bad_axes_as_text(text):
    with pytest.raises(ValueError, match="needs NAME=FIRST:LAST:NUMBER"):
        named_sweep.parse_axis(text)


class Weighted(eqx.Module):
    w: jax.Array

    def __call__(self, point):
        return jnp.sum(self.w) * point["a"]


def _closed(w):
    return lambda point: jnp.sum(w) * point["a"]


def _closed_inside(w):
    inner = jax.jit(lambda x: jnp.sum(w) * x)
    return lambda point: inner(point["a"])


MAKERS = {
    "partial": lambda w: Partial(lambda w, point: jnp.sum(w) * point["a"], w),
    "module": Weighted,
    "closure": _closed,
    "closure inside jit": _closed_inside,
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("size", [3, 4000])
def test_a_folder_is_that_of_the_arrays_in_fn(tmp_path, make, size):
    first, other = jnp.ones(size), jnp.ones(size).at[size // 2].set(4.0)
    found = sweep(make(first), {"a": [1.0]}, out=tmp_path)
    assert sweep(make(first + 0), {"a": [1.0]}, out=tmp_path).equals(found)
    with pytest.raises(ValueError, match=r"holds another sweep: .*fn differs"):
        sweep(make(other), {"a": [1.0]}, out=tmp_path)
    assert sweep(make(other), {"a": [1.0]}).value.item() == size + 3


def _doubled(point):
    return {"y": 2 * point["a"], "z": jnp.ones(3) * point["a"]}


EIGHT = {"a": np.arange(1.0, 9.0)}


def _flipped(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


SPOILED = {
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "nothing of ours": lambda path: np.savez(path, lanes=np.array([99])),
    "an object": lambda path: np.savez(path, lanes=np.array([{}]), allow_pickle=True),
    "no archive": lambda path: path.write_bytes(b"\x93NUMPY"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_damaged_chunk_is_computed_again(tmp_path, spoil):
    found = sweep(_doubled, EIGHT, out=tmp_path, batch_size=2)
    spoil(tmp_path / "chunk-000001.npz")
    with pytest.warns(UserWarning, match=r"chunk-000001.npz is damaged \(.*\): its lanes are computed again"):
        again = sweep(_doubled, EIGHT, out=tmp_path, batch_size=2)
    assert again.equals(found)
    assert sweep(_doubled, EIGHT, out=tmp_path, batch_size=2).equals(found)


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_no_flipped_bit_changes_a_result(tmp_path):
    found = sweep(_doubled, EIGHT, out=tmp_path, batch_size=8)
    (path,) = tmp_path.glob("chunk-*.npz")
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 40).tolist():
        for chunk in tmp_path.glob("chunk-*.npz"):
            chunk.unlink()
        path.write_bytes(whole)
        _flipped(path, bit)
        assert sweep(_doubled, EIGHT, out=tmp_path, batch_size=8).equals(found), bit


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000, '{"same": {}}', '{"same": 3, "jax": 1}'])
def test_a_damaged_index_is_written_again(tmp_path, content):
    found = sweep(_doubled, EIGHT, out=tmp_path, batch_size=2)
    (tmp_path / "sweep.json").write_text(content)
    with pytest.warns(UserWarning, match="sweep.json is damaged"):
        assert sweep(_doubled, EIGHT, out=tmp_path, batch_size=2).equals(found)
    assert len([*tmp_path.glob("chunk-*.npz")]) == 4


def _host(x):
    return np.asarray(2 * x)


NUMBER = jax.ShapeDtypeStruct((), jnp.float64)
CALLBACKS = {
    "pure": lambda x: jax.pure_callback(_host, NUMBER, x, vmap_method="sequential"),
    "partial": lambda x: jax.pure_callback(Partial(_host), NUMBER, x, vmap_method="sequential"),
    "inside jit": jax.jit(lambda x: jax.pure_callback(_host, NUMBER, x, vmap_method="sequential")),
    "inside cond": lambda x: jax.lax.cond(x > 1, lambda: io_callback(_host, NUMBER, x), lambda: x),
}


@pytest.mark.parametrize("call", CALLBACKS.values(), ids=CALLBACKS)
def test_a_folder_is_for_programs_without_callbacks(tmp_path, call):
    with pytest.raises(ValueError, match="out must be None for a fn that calls back to Python, as it does with"):
        sweep(lambda point: call(point["a"]), EIGHT, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_errors_and_prints_are_no_callbacks_that_matter(tmp_path):
    def fn(point):
        jax.debug.callback(lambda x: None, point["a"])
        return eqx.error_if(point["a"], point["a"] > 9, "too large")

    np.testing.assert_array_equal(sweep(fn, EIGHT, out=tmp_path).value, EIGHT["a"])


def test_another_version_of_jax_is_another_sweep(tmp_path, monkeypatch):
    sweep(_doubled, EIGHT, out=tmp_path)
    monkeypatch.setattr(jax, "__version__", "0.0.0")
    with pytest.raises(ValueError, match="holds another sweep: version of jax differs"):
        sweep(_doubled, EIGHT, out=tmp_path)


def test_chunks_without_an_index_are_those_of_their_sweep(tmp_path):
    found = sweep(_doubled, EIGHT, out=tmp_path, batch_size=2)
    (tmp_path / "sweep.json").unlink()
    with pytest.raises(ValueError, match=r"holds another sweep: chunk-000000.npz is of one"):
        sweep(lambda point: point["a"], EIGHT, out=tmp_path)
    assert sweep(_doubled, EIGHT, out=tmp_path).equals(found)
    assert len([*tmp_path.glob("chunk-*.npz")]) == 4


def test_one_process_at_a_time_fills_a_folder(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another process"):
        sweep(_doubled, EIGHT, out=tmp_path)


def test_a_full_disk_keeps_the_chunks_before(tmp_path, monkeypatch):
    savez, calls = np.savez, []

    def full(*args, **arrays):
        calls.append(0)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(*args, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(SweepError, match=r"stopped after 6 of 8 lanes: .*No space left on device.*chunk-000002.npz"):
        sweep(_doubled, EIGHT, out=tmp_path, batch_size=2)
    found = sweep(_doubled, EIGHT, out=tmp_path, batch_size=2)
    assert len(calls) == 5  # the first two chunks were kept
    assert found.equals(sweep(_doubled, EIGHT))


@pytest.mark.parametrize(
    ("fn", "options", "message"),
    [
        (lambda p: {"x.y": p["a"], "x": {"y": p["a"]}}, {}, "one variable of a name, got two: 'x.y'"),
        (lambda p: {"status": p["a"]}, {}, "returns 'status'"),
        (lambda p: p["a"], {"coords": {"zz": [1.0]}}, r"coords must name axes of what fn returns \(none\), got 'zz'"),
        (lambda p: p["a"], {"coords": {"a": [9.0]}}, "coords must name axes .* got 'a'"),
        (
            _doubled,
            {"dims": {"z": ["t"]}, "coords": {"t": [1.0, 2.0]}},
            r"coords\['t'\] must have shape \(3,\), got \(2,\)",
        ),
        (_doubled, {"dims": {"z": ["t"]}, "coords": {"t": [[1], [2, 3]]}}, r"coords\['t'\] must be an array of values"),
        (_doubled, {"dims": {"z": ["t"]}, "coords": {"t": ("t", [1, 2])}}, r"coords\['t'\] must be an array of values"),
        (lambda p: {1: p["a"], "x": p["a"]}, {}, "fn must return dictionaries with keys of one type"),
        (_doubled, {"dims": {"z": ["status"]}}, "axes with names of their own, got 'status'"),
        (_doubled, {"dims": {"z": ["a"]}}, "axes with names of their own, got 'a'"),
        (_doubled, {"dims": {"z": ["y"]}}, "axes with names of their own, got 'y'"),
        (_doubled, {"dims": {"y": ["t"]}}, "dims must name the 0 axes of y"),
        (_doubled, {"cost": 3}, "cost must be callable"),
        (3, {}, "fn must be callable"),
    ],
)
def test_names_that_clash_are_found_before_work(fn, options, message, as_users):
    with pytest.raises(ValueError, match=message):
        sweep(fn, {"a": [1.0, 2.0]}, **options)


def test_one_string_is_one_name():
    assert sweep(_doubled, EIGHT, dims={"z": "time"}).z.dims == ("a", "time")


def test_values_that_the_precision_cannot_hold():
    with jax.enable_x64(False):
        for values in ([2**31, 1], np.array([2**40]), [1e300, 1.0]):
            with pytest.raises(ValueError, match=r"axes: a must (fit float32|hold integers of at most 32 bits)"):
                sweep(lambda p: p["a"], {"a": values})


@pytest.mark.parametrize(
    "dtype",
    [jnp.complex128, jnp.float16, jnp.bfloat16, jnp.float8_e5m2, jnp.float8_e4m3fn, jnp.uint32, jnp.int64, jnp.int4],
)
def test_results_of_every_type_are_written(tmp_path, dtype):
    fn = lambda point: (3 * point["a"]).astype(dtype)
    found = sweep(fn, {"a": [1.0, 2.0]}, out=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # none of a damaged chunk
        assert found.equals(sweep(fn, {"a": [1.0, 2.0]}, out=tmp_path))
    found.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as read:
        assert read.equals(found) and read.value.values.tolist() == [3, 6]


@pytest.mark.parametrize("text", ["rate=1:2:1000000000", "rate=0:10000000000", "rate=1:2:1000000000:log"])
def test_an_axis_has_at_most_a_million_values(text):
    with pytest.raises(ValueError, match="at most 1,000,000 values"):
        named_sweep.parse_axis(text)


def test_a_large_seed_is_not_rounded():
    name, found = named_sweep.parse_axis("seed=9007199254740993,4611686018427387905")
    assert name == "seed" and found.tolist() == [9007199254740993, 4611686018427387905]


def test_command_line(tmp_path):
    invoke = lambda *words: CliRunner().invoke(main, ["sweep", *words, "--out", str(tmp_path)])
    axes = ("--axis", "learning_rate=1e-3:1e-1:3:log", "--axis", "seed=0:2")
    result = invoke("joma.LinearAttention", *axes)
    assert result.exit_code == 0, result.output
    assert "6 of 6 lanes are well" in result.output
    with xr.open_dataset(tmp_path / "sweep.nc") as found:
        error = found["error"].values
        assert found["error"].dims == ("learning_rate", "seed")
    np.testing.assert_allclose(error[1] / error[0], 10, rtol=0.1)  # first order in the rate
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    for words, message in (
        (("joma.nothing",), "nothing is named"),
        (("joma.LinearAttention", "--axis", "mu=1,2"), "has no parameter 'mu': it must be one of learning_rate"),
        (("joma.LinearAttention", "--axis", "mu=1:"), "needs NAME="),
        (("joma.no_attention",), "one axis: --axis seed=0:8"),
        (("joma.LinearAttention", "--process", "0"), "needs --coordinator"),
        (("joma.LinearAttention", "--axis", "z0=0.1,0.2"), "another sweep"),
        (("joma.LinearAttention", "--axis", "z0=1", "--axis", "z0=2"), "each axis must be given once, got z0 twice"),
        (("joma.LinearAttention", "--axis", "time=-1,1"), "time must be above 0, got -1 at [0]"),
        (("joma.LinearAttention", "--axis", "seed=0.5,1.5"), "seed must be integers, got 0.5"),
        (("joma.LinearAttention", "--axis", "seed=0:1000000", "--axis", "time=1:2:11"), "at most 10,000,000 points"),
        (("composing.occam_norm", "--axis", "seed=0.5,1.5"), "seed must be integers, got 0.5"),
        (("composing.occam_norm", "--axis", "seed=-2:0"), "seed must be at least 0, got -2"),
    ):
        result = invoke(*words)
        assert result.exit_code == 2 and message in result.output, result.output
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["sweep", "joma.LinearAttention", "--out", str(tmp_path / "file" / "below")])
    assert result.exit_code == 2 and "out must be a folder that can be written" in result.output, result.output


def test_seeds_beyond_32_bits():
    seeds = np.array([2**31, 5])
    with jax.enable_x64(False), pytest.raises(ValueError, match="seed must be at most 2147483647"):
        next(subject for subject in subjects() if subject.name == "joma.LogGap").values("seed", seeds)
    assert subjects()[0].values("seed", seeds.astype(float)).tolist() == [2**31, 5]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": {"b": [1.0]}}, "axes must be among the parameters a, got 'b'"),
        ({"domains": {"b": {"least": 0}}}, "domains must be among the parameters a, got 'b'"),
        ({"domains": {"a": {"lest": 0}}}, "must have above, least, below or most"),
        ({"domains": {"a": {"least": 2}}}, "a must be at least 2, got 1.0"),
        ({"defaults": {"a": float("nan")}}, "a must be finite, got nan"),
        ({"axes": {"a": np.ones((1, 2))}}, r"a must have shape \(values,\), got \(1, 2\)"),
    ],
)
def test_bad_subjects(fields, message):
    given = {"name": "x", "statement": "", "fn": lambda p: p["a"], "defaults": {"a": 1.0}, "axes": {}} | fields
    with pytest.raises(ValueError, match=message):
        Subject(**given)


def test_claims_over_seeds(tmp_path):
    words = ["sweep", "galore.memory_table", "--axis", "seed=0:2", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    with xr.open_dataset(tmp_path / "sweep.nc") as found:
        assert found["passed"].values.all() and found["measured"].dims == ("row", "seed")
    assert json.loads((tmp_path / "seed-1" / "results.json").read_text())[0]["seed"] == 1


CLAIM_THAT_RAISES = """
from traindyn.validate import claim
@claim("s", source="", assumptions=(), name="bad.raises")
def raises(setting):
    raise RuntimeError("no")
"""


def test_a_folder_is_of_one_subject_or_claim(tmp_path):
    (tmp_path / "claims_that_raise.py").write_text(CLAIM_THAT_RAISES)
    more = ("--claims", str(tmp_path / "claims_that_raise.py"))
    invoke = lambda name, out, *words: CliRunner().invoke(main, ["sweep", name, *words, "--out", str(tmp_path / out)])
    seeds, flat = ("--axis", "seed=0:2"), ("--axis", "time=0.1,0.2", "--axis", "seed=0,0,0,0")
    result = invoke("bad.raises", "claim", *more, *seeds)  # no row at all
    assert result.exit_code == 0 and "0 of 2 lanes are well" in result.output, result.output
    result = invoke("joma.LinearAttention", "subject", *flat)  # an axis of zeros
    assert result.exit_code == 0 and "8 of 8 lanes are well" in result.output, result.output
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    for name, out, *words in (
        ("galore.memory_table", "claim", *seeds),
        ("galore.memory_table", "subject", *seeds),
        ("joma.LinearAttention", "claim", *flat),
    ):
        result = invoke(name, out, *words)
        assert result.exit_code == 2 and "holds another sweep" in result.output, result.output
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "claim" / "sweep.json").write_text("[" * 100_000)
    assert invoke("bad.raises", "claim", *more, "--axis", "seed=0:1").exit_code == 0


@pytest.mark.parametrize("axes", [["x"], ["x", "y"]])
def test_what_nearly_overflows_is_left_blank(axes, tmp_path):
    values = np.arange(4.0).reshape((4, 1)[: len(axes)]) * 5e307
    numbers = {name: np.arange(n) for name, n in zip(axes, values.shape, strict=True)}
    status = np.zeros(values.shape, np.int8)
    found = xr.Dataset({"value": (axes, values), "status": (axes, status)}, numbers)
    named_sweep.save(found, named_sweep.figure(found, axes), tmp_path)
    assert (tmp_path / "figure.png").exists()


def test_two_processes_compute_what_one_does(tmp_path):
    """Two processes with two devices each, lanes over the mesh of all four, by the documented command."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    sweep_it = [sys.executable, "-m", "traindyn", "sweep", "joma.LinearAttention", "--devices", "2"]
    sweep_it += ["--axis", "learning_rate=1e-2:1e-1:3:log", "--axis", "seed=0:3", "--batch-size", "2"]
    both = ["--coordinator", address, "--processes", "2", "--out", str(tmp_path / "two")]
    cheap = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # they compile for longer than they run
    running = [subprocess.Popen([*sweep_it, *both, "--process", str(i)], env=cheap) for i in range(2)]
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    assert len(list((tmp_path / "two").glob("chunk-*.npz"))) == 2  # nine lanes, eight at a time
    subprocess.run([*sweep_it, "--out", str(tmp_path / "one")], check=True, env=cheap)
    with xr.open_dataset(tmp_path / "two/sweep.nc") as two, xr.open_dataset(tmp_path / "one/sweep.nc") as one:
        xr.testing.assert_identical(two, one)


def test_descent_on_a_flow_that_depends_on_time_follows_it():
    subject = next(one for one in subjects() if one.name == "scan_snap.PhaseTransition")
    rates = [0.2, 0.1]
    errors = [float(subject.fn({**subject.defaults, "learning_rate": rate, "time": 4.0})["error"]) for rate in rates]
    assert errors[0] < 0.1 and errors[0] / errors[1] == pytest.approx(2, rel=0.1)
