"""The checks of arguments themselves: what passes, what comes out, and what is said of what does not pass."""

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Int, Key, Real, UInt32

from traindyn import _checks as checks
from traindyn._checked import checked
from traindyn._checks import as_array, real
from traindyn.dynamics import Flow


class State(NamedTuple):
    v: Float[Array, " tokens"]
    t: Float[Array, ""]


@checked
class Module(eqx.Module):
    delta: Float[Array, " tokens"]
    nodes: int = 3

    @checked
    def at(self, t: Float[ArrayLike, ""], y: Float[Array, " tokens"], state: State | None = None) -> Any:
        return t, y, state


@checked
def call(
    index: Int[ArrayLike, " n"] = np.zeros(2, int),  # noqa: B008
    batch: Float[Array, "*batch n"] | None = None,
    keep: Bool[ArrayLike, " n"] | None = None,
    z: Complex[Array, " n"] | None = None,
    any_real: Real[ArrayLike, "..."] | None = None,
    host: Float[np.ndarray, " n"] | None = None,
    how: Literal["one", "two"] = "one",
    key: Key[Array, ""] | None = None,
    rate: float = 1.0,
    name: str = "",
    flag: bool = False,
    flow: Flow | None = None,
) -> dict[str, Any]:
    return dict(locals())


MODULE = Module(jnp.ones(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": [0.5, 1.0]}, r"index must be integers, got \[0.5, 1.0\]"),
        ({"index": [[0, 1]]}, r"index must have shape \(n,\), got \(1, 2\)"),
        (
            {"index": [0, 1], "batch": jnp.ones((4, 3))},
            r"batch must have shape \(\*batch, 2\), got \(4, 3\)",
        ),
        ({"batch": "x"}, "batch must be a number or an array of numbers, got 'x'"),
        ({"batch": jnp.ones(2, complex)}, "batch must be real, got complex128"),
        ({"keep": [0, 2]}, r"keep must be boolean, or 0 and 1, got int64\[2\] \[0 2\]"),
        ({"any_real": 1j}, "any_real must be real, got 1j"),
        ({"how": "on"}, "how must be one of 'one', 'two', got 'on'. Did you mean 'one'?"),
        ({"key": 0}, r"key must be one key, as jax.random.key\(0\), got 0"),
        ({"rate": "fast"}, "rate must be a real number, got 'fast'"),
        ({"rate": True}, "rate must be a real number, got True"),
        ({"name": 3}, "name must be a string, got 3"),
        ({"flag": 1}, "flag must be True or False, got 1"),
        ({"flow": 3}, "flow must be a Flow, got 3"),
    ],
)
def test_what_an_annotation_forbids_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_numbers_that_mean_the_same_are_converted():
    found = call(batch=[[1, 2]], keep=[0, 1], z=[1.0, 2.0], host=[1, 2], rate=2, any_real=np.int32(3))
    assert found["batch"].dtype == jnp.float64 and isinstance(found["batch"], jax.Array)
    assert found["keep"].dtype == jnp.bool_ and found["z"].dtype == jnp.complex128
    assert isinstance(found["host"], np.ndarray) and found["host"].dtype == np.float64
    assert found["any_real"] == 3
    assert call(batch=jnp.ones(2, jnp.float32))["batch"].dtype == jnp.float32  # the caller's precision


def test_a_module_checks_its_constructor_and_lends_its_sizes_to_its_methods():
    assert Module([1, 2]).delta.dtype == jnp.float64
    with pytest.raises(ValueError, match=r"delta must have shape \(tokens,\), got \(1, 2\)"):
        Module([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"nodes must be an integer, got 2\.5"):
        Module(jnp.ones(3), 2.5)
    with pytest.raises(ValueError, match=r"y must have shape \(3,\), got \(4,\)"):
        MODULE.at(0.0, jnp.ones(4))
    with pytest.raises(ValueError, match=r"state.v must have shape \(3,\), got \(2,\)"):
        MODULE.at(0.0, jnp.ones(3), State(jnp.ones(2), jnp.zeros(())))
    with pytest.raises(ValueError, match="state must be a State, got 3"):
        MODULE.at(0.0, jnp.ones(3), 3)
    assert MODULE.at(0.5, jnp.ones(3), State([1, 2, 3], 0))[2].v.dtype == jnp.float64


def test_python_numbers_stay_weakly_typed():
    t, *_ = MODULE.at(0.5, jnp.ones(3))
    assert isinstance(t, float)  # an array of float64 would widen what it meets


def test_checks_work_on_traced_values():
    assert jax.jit(lambda y: MODULE.at(0.5, y)[1])(jnp.ones(3)).shape == (3,)
    assert jax.vmap(lambda y: MODULE.at(0.5, y)[1])(jnp.ones((2, 3))).shape == (2, 3)
    assert jax.grad(lambda y: MODULE.at(0.5, y)[1].sum())(jnp.ones(3)).shape == (3,)
    with pytest.raises(ValueError, match=r"y must have shape \(3,\)"):
        jax.jit(lambda y: MODULE.at(0.5, y)[1])(jnp.ones(4))
    with pytest.raises(ValueError, match="keep must be boolean"):
        jax.jit(lambda keep: call(keep=keep)["keep"])(jnp.ones(2, int))


def test_a_missing_or_unknown_argument_is_pythons_error():
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        MODULE.at()
    with pytest.raises(TypeError, match="unexpected keyword argument 'indes'"):
        call(indes=[0, 1])


@pytest.mark.parametrize(
    ("x", "bounds", "message"),
    [
        ([1.0, -2.0], {"above": 0}, r"x must be above 0, got -2.0 at \[1\]"),
        (0.0, {"above": 0}, "x must be above 0, got 0.0"),
        (-1.0, {"least": 0}, "x must be at least 0, got -1.0"),
        (1.0, {"below": 1}, "x must be below 1, got 1.0"),
        (1.5, {"least": 0, "most": 1}, "x must be at least 0 and at most 1, got 1.5"),
        (np.nan, {"above": 0}, "x must be above 0, got nan"),
        (np.inf, {}, "x must be finite, got inf"),
        (np.nan, {"finite": False}, "x must be not NaN, got nan"),
        ([1.0, 2.0], {"shape": (3,)}, r"x must have shape \(3,\), got \(2,\)"),
    ],
)
def test_real_numbers_have_a_range(x, bounds, message):
    with pytest.raises(ValueError, match=message):
        checks.real("x", x, **bounds)


def test_real_numbers_within_their_range_come_back_as_floats():
    assert checks.real("x", 3, least=3, most=3).dtype == jnp.float64
    assert checks.real("x", np.inf, finite=False) == np.inf
    assert jax.jit(lambda x: checks.real("x", x, above=0))(-1.0) == -1.0  # a traced value is not looked at


@pytest.mark.parametrize("x", [2.0, True, "2", None, np.array([2]), 0, 7])
def test_integers_are_integers_of_their_range(x):
    with pytest.raises(ValueError, match="n must be an integer of at least 1 and at most 6, got"):
        checks.integer("n", x, least=1, most=6)


def test_integers_of_numpy_and_jax_become_pythons():
    assert [type(checks.integer("n", x)) for x in (2, np.int8(2), np.array(2), jnp.array(2))] == [int] * 4
    with pytest.raises(ValueError, match="known outside jit and vmap"):
        jax.jit(lambda n: checks.integer("n", n))(2)


def test_indices_lie_within_their_size():
    assert checks.indices("i", [0, 2], 3).tolist() == [0, 2]
    for wrong, said in (([0, 3], "got 3"), ([-1, 0], "got -1"), ([0.5], "must be integers")):
        with pytest.raises(ValueError, match=said):
            checks.indices("i", wrong, 3)


def test_one_string_is_one_name():
    assert checks.strings("names", "query") == ("query",)
    assert checks.strings("names", ["query", "key"]) == ("query", "key")
    for wrong in (3, ["query", 3]):
        with pytest.raises(ValueError, match="names must be a string or strings, got 3"):
            checks.strings("names", wrong)


def test_what_is_called_must_be_an_instance():
    with pytest.raises(ValueError, match="flow must be an instance, got the class Module: call it"):
        checks.check_callable("flow", Module)
    with pytest.raises(ValueError, match="flow must be callable, got 3"):
        checks.check_callable("flow", 3)
    checks.check_callable("flow", abs)


def test_a_value_is_described_in_a_line():
    assert checks.describe(jnp.zeros((3, 2))) == "float64[3, 2]"
    assert checks.describe(np.arange(2)) == "int64[2] [0 1]"
    assert checks.describe("x" * 200) == "'" + "x" * 76 + "..."


def test_floating_point_has_at_least_32_bits():
    for narrow in (jnp.float16, jnp.bfloat16):
        with pytest.raises(ValueError, match=r"x must be float32 or float64, got \w+\[2\] .*: cast it"):
            checks.check_precision("x", jnp.ones(2, narrow))
    checks.check_precision("x", jnp.ones(2, jnp.complex64))
    checks.check_precision("x", None)


def test_integers_that_do_not_fit_are_refused_rather_than_wrapped():
    big = np.array([0, 2**33 + 1])
    with jax.enable_x64(False):
        for given in (big, big.tolist(), 2**33, np.uint64(2**40)):
            with pytest.raises(ValueError, match=r"x must hold integers of at most 32 bits, got"):
                as_array("x", given)
        assert as_array("x", np.array([7])).dtype == jnp.int32
    assert as_array("x", big)[1] == 2**33 + 1


def test_an_infinite_number_is_told_that_it_must_be_finite():
    with pytest.raises(ValueError, match="rate must be finite and above 0, got inf"):
        real("rate", np.inf, above=0)
    with pytest.raises(ValueError, match=r"rate must be above 0, got -1.0"):
        real("rate", -1.0, above=0)


@pytest.mark.parametrize("truth", [True, np.bool_(False)])
def test_a_truth_value_is_no_number(truth):
    with pytest.raises(ValueError, match="rate must be a number"):
        real("rate", truth)


@checked
def _drawn(key: Key[Array, ""] | UInt32[Array, "2"], keys: Key[Array, " n"] | None = None) -> None: ...


@pytest.mark.parametrize(
    ("key", "keys", "ok"),
    [
        (lambda: jax.random.key(0), None, True),
        (lambda: jax.random.PRNGKey(0), None, True),
        (lambda: jax.random.key(0), lambda: jax.random.split(jax.random.key(0), 3), True),
        (lambda: jnp.zeros(3, jnp.uint32), None, False),
        (lambda: jax.random.split(jax.random.key(0), 2), None, False),
        (lambda: jax.random.key(0), lambda: jax.random.key(0), False),
    ],
)
def test_keys_are_one_or_several(key, keys, ok):
    call = lambda: _drawn(key(), keys and keys())
    if ok:
        return call()
    with pytest.raises(ValueError, match=r"must be (one key|keys), as jax.random"):
        call()
