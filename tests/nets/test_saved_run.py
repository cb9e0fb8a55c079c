"""Runs of `train` that are watched by a callback or kept in a folder: broken off, and called again."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn._files import locked
from traindyn.nets import train

DATA = (jnp.array([[1.0, 2.0], [0.5, -1.0], [-0.3, 0.7]]), jnp.array([1.0, 0.0, -1.0]))


def _loss(model, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ model["w"]) + model["b"] - y) ** 2)


def _model(shift=0.0):
    return {"w": jnp.array([0.3, -0.2]) + shift, "b": jnp.array(0.1), "name": "a"}


def _draw(key):
    x = jax.random.normal(key, (4, 2))
    return x, jnp.sin(x[:, 0])


def _watch(model):
    return {"w": model["w"], "n": jnp.round(10 * model["b"]).astype(int), "none": jnp.zeros((0, 2))}


def _optimiser(rate=0.02):
    return optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(1)), optax.adam(rate))


OPTIMISER = _optimiser()
OPTIONS = {"key": jax.random.key(0), "observe": _watch, "every": 3}


def _run(steps=14, *, model=None, loss=_loss, data=_draw, optimiser=OPTIMISER, **options):
    return train(_model() if model is None else model, loss, data, optimiser, steps, **(OPTIONS | options))


def _same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True):
        if eqx.is_array(x):
            assert x.dtype == y.dtype and type(x) is type(y)
            x, y = (jax.random.key_data(z) if jnp.issubdtype(z.dtype, jax.dtypes.prng_key) else z for z in (x, y))
        np.testing.assert_array_equal(x, y)


class _Killed(BaseException):
    """What no `except Exception` stops."""


def _killed_at(step):
    def callback(at, observed):
        if at == step:
            raise _Killed

    return callback


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return _run(out=tmp_path_factory.mktemp("whole"))


@pytest.fixture
def broken(tmp_path):
    """A folder with a run of 14 steps that was killed at step 9."""
    with pytest.raises(_Killed):
        _run(out=tmp_path, callback=_killed_at(9))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "9"]
    return tmp_path


# Callbacks


def test_a_callback_sees_every_record_on_the_host_and_changes_nothing(whole):
    seen = []
    run = _run(callback=lambda step, observed: seen.append((step, observed)))
    _same_bits(run, whole)
    assert [step for step, _ in seen] == [0, 3, 6, 9, 12] and all(type(step) is int for step, _ in seen)
    for i, (_, observed) in enumerate(seen):
        assert {type(x) for x in observed.values()} == {np.ndarray}
        _same_bits(jax.tree.map(jnp.asarray, observed), jax.tree.map(lambda x, i=i: x[i], run.observed))
    plain = _run()
    for x, y in zip(*map(jax.tree.leaves, (run.observed, plain.observed)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


def test_a_callback_counts_on_from_a_state():
    seen = []
    first = train(_model(), _loss, DATA, optax.sgd(0.1), 4)
    train(None, _loss, DATA, optax.sgd(0.1), 4, every=2, state=first.state, callback=lambda n, _: seen.append(n))
    assert seen == [4, 6, 8]


# Folders


def test_a_killed_run_goes_on_to_the_bit_and_is_told_only_what_is_new(broken, whole):
    seen = []
    _same_bits(_run(out=broken, callback=lambda step, _: seen.append(step)), whole)
    assert seen == [12]


def test_a_finished_run_returns_at_once(tmp_path, whole):
    _run(out=tmp_path)
    never = _run(out=tmp_path, callback=_killed_at(0), progress=True)
    _same_bits(never, whole)


def test_more_steps_prolong_a_run_and_fewer_are_refused(broken, whole):
    _run(11, out=broken)  # ends between two records, from where nothing longer can go on
    _same_bits(_run(out=broken), whole)
    with pytest.raises(ValueError, match="steps must be at least 14, which the run in out has taken, got 9"):
        _run(9, out=broken)


def test_states_are_saved_every_save_every_steps_and_at_the_end(tmp_path, whole):
    with pytest.raises(_Killed):
        _run(out=tmp_path, save_every=6, callback=_killed_at(9))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["6"]
    _same_bits(_run(out=tmp_path, save_every=6), whole)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "14"]


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_set_aside(broken, whole, damaged):
    for step in ("9", "6")[:damaged]:
        for path in (broken / "checkpoints" / step).rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="The checkpoint of step 9 can't be used: it can't be read") as told:
        _same_bits(_run(out=broken), whole)
    assert len([one for one in told if "can't be used" in str(one.message)]) == damaged
    assert (broken / "damaged-checkpoint-9").is_dir()


def test_a_checkpoint_that_was_put_there_from_another_run_is_set_aside(broken, whole, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    _run(12, key=jax.random.key(1), out=other)
    (other / "checkpoints" / "12").rename(broken / "checkpoints" / "12")
    with pytest.warns(RuntimeWarning, match="The checkpoint of step 12 can't be used: it is of a run with other"):
        _same_bits(_run(out=broken), whole)


def test_a_run_from_a_state_is_kept_too(tmp_path):
    optimiser, options = optax.adam(0.02), {"observe": _watch, "every": 2}
    first = train(_model(), _loss, DATA, optimiser, 4, **options)
    more = lambda **watched: train(None, _loss, DATA, optimiser, 6, state=first.state, **options, **watched)
    with pytest.raises(_Killed):
        more(out=tmp_path, callback=_killed_at(8))
    _same_bits(more(out=tmp_path), more(callback=lambda *_: None))


def test_a_divergence_is_told_again(tmp_path):
    run = lambda: train(
        jnp.array(1.0), lambda w, _: jnp.where(w > 3, jnp.inf, -(w**2) / 2), None, optax.sgd(1.0), 4, every=1,
        observe=lambda w: w, out=tmp_path,
    )  # fmt: skip
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="non-finite at step 2 of 4"):
            np.testing.assert_array_equal(run().observed, [1, 2, 4, np.nan, np.nan])


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"every": 1}, r"every must be as in the run that .* holds, int64\[\] 3, got int64\[\] 1: name another folder"),
        ({"model": _model(0.1)}, "model must be as in the run that .* holds"),
        ({"model": _model() | {"b": jnp.ones(1)}}, r"model must .*\['b'\] float64\[\] 0.1.*, got .*float64\[1\]"),
        ({"key": jax.random.key(1)}, "key must be as in the run"),
        ({"data": DATA, "key": None}, "data must be as in the run that .* holds, none, got"),
        ({"optimiser": optax.sgd(0.02, momentum=0.9)}, "optimiser must be as in the run"),
        ({"optimiser": _optimiser(0.03)}, "loss, data, optimiser and observe must be as in"),
        ({"loss": lambda m, b: 2 * _loss(m, b)}, "loss, data, optimiser and observe must be as in"),
        ({"observe": lambda m: m["w"]}, "loss, data, optimiser and observe must be as in .*, got others"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_a_folder_of_another_run_is_refused(whole_folder, changes, message):
    before = sorted(path.name for path in whole_folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        _run(out=whole_folder, **changes)
    assert sorted(path.name for path in whole_folder.rglob("*")) == before


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder")
    _run(3, out=folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"out": 3}, "out must be the path of a folder, got 3"),
        ({"save_every": 3}, "save_every would be ignored: out names no folder, got 3"),
        ({"out": "folder", "save_every": 4}, "save_every must be a multiple of every = 3, got 4"),
        ({"out": "folder", "save_every": 0}, "save_every must be an integer of at least 1, got 0"),
        ({"callback": 3}, "callback must be callable, got 3"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_bad_options_are_refused(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        _run(**changes)
    assert not list(tmp_path.iterdir())


def test_folders_that_are_no_runs_are_refused(tmp_path, broken):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out must be a folder that can be written, got .*file"):
        _run(out=tmp_path / "file")
    with locked(tmp_path / "busy"), pytest.raises(ValueError, match="is in use by another process"):
        _run(out=tmp_path / "busy")
    (broken / "run.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="out must hold a run of train or none, got checkpoints without"):
        _run(out=broken)
    assert (broken / "checkpoints" / "9").is_dir()


@pytest.mark.parametrize("name", ("out", "callback"))
def test_nothing_is_watched_under_jit_and_vmap(tmp_path, name):
    watched = {"out": tmp_path / "out"} if name == "out" else {"callback": lambda *_: None}
    message = f"{name} must be None under jit and vmap"
    run = lambda rate, model: train(model, _loss, DATA, optax.sgd(rate), 2, **watched).model["w"]
    numbers = {"w": jnp.zeros(2), "b": jnp.zeros(())}
    for call in (
        lambda: jax.jit(run)(0.1, numbers),
        lambda: jax.vmap(lambda rate: run(rate, numbers))(jnp.ones(2)),
        lambda: jax.vmap(lambda b: run(0.1, numbers | {"b": b}))(jnp.ones(2)),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "out" / "checkpoints").exists()
