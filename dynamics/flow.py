"""What a flow is, what it may offer beside its vector field, and the gradient flow of any loss.

Time is `t = learning_rate × step` everywhere in this library, and a state `y0` is the state at `t = 0`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, Real

from .._checked import checked
from .._checks import as_array, as_float, check_precision, check_range, concrete, describe
from ._state import extreme

Times = Real[ArrayLike, ""] | Real[ArrayLike, " times"]
if TYPE_CHECKING:
    Number = Any  # what converters of fields take, of which a type checker knows nothing
else:
    Number = Real[ArrayLike, ""]
Example = tuple[Any, PyTree, Float[Array, " times"]]


class Flow(eqx.Module):
    """An ordinary differential equation whose parameters are PyTree leaves.

    Calling a flow is its vector field in Diffrax's signature, so `diffrax.ODETerm(flow)` works as it is. What a flow
    offers beside that its type says: `ClosedForm`, `Conserving`, `BlowsUp`. All take the state first, then times.

    A flow holds arrays and has no hash, and so have its methods: `jax.jit(flow.exact)` fails. Write
    `equinox.filter_jit(flow.exact)`, or `jax.jit(lambda flow, y0, ts: flow.exact(y0, ts))`, which new parameters do not
    compile anew.

    `stiff = True` makes `solve` choose an implicit method.
    """

    stiff: ClassVar[bool] = False

    def __check_init__(self):
        for field in dataclasses.fields(self):
            check_precision(field.name, getattr(self, field.name, None))

    @abc.abstractmethod
    def __call__(self, t: ArrayLike, y: PyTree, args: Any) -> PyTree:
        """The time derivative of the state `y`, a PyTree of the same structure."""

    @classmethod
    def example(cls, key: Key[Array, ""], **parameters: Any) -> Example:
        """Values that work: a flow, a start and nine times from zero to `time`, drawn with `key`. So
        `solve(*flow.example(key))` runs.

        `traindyn sweep` varies the keyword arguments, `time` and others, numbers with a default. **Raises**
        `NotImplementedError` for a flow without example; every flow of the library has one.
        """
        raise NotImplementedError(f"{cls.__name__} must define the classmethod example(key) -> (flow, y0, ts).")


class ClosedForm(Flow):
    """A flow whose solution is known."""

    @abc.abstractmethod
    def exact(self, y0: PyTree, ts: Times) -> PyTree:
        """The states at the times `ts` from `y0` at time zero, as `solve(flow, y0, ts).ys`; at one time, one state."""


class Conserving(Flow):
    """A flow with quantities that do not change along its solutions."""

    @abc.abstractmethod
    def invariants(self, y: PyTree) -> PyTree:
        """What is conserved, at the state `y`."""


class BlowsUp(Flow):
    """A flow whose solutions may leave every bound in finite time."""

    @abc.abstractmethod
    def blow_up_time(self, y0: PyTree) -> PyTree:
        """When each component of `y0`, or each of its rows, becomes infinite; infinite where that never happens."""


def at_each(ts: Times, state: Callable[[Array], PyTree]) -> PyTree:
    """`state(t)` at one time, or at each of many, stacked along a leading axis."""
    ts = jnp.asarray(ts)
    return jax.vmap(state)(ts) if ts.ndim else state(ts)


def check_blow_up(flow: Any, y0: PyTree, t: ArrayLike) -> None:
    """Raises `ValueError` if `t` lies past the flow's `blow_up_time`, where it `BlowsUp` and the values are known. Zero
    never does, even where that time is too short for a number."""
    if not isinstance(flow, BlowsUp):
        return
    times = flow.blow_up_time(y0)
    if concrete((times, t)):
        name, when = extreme(jax.tree.map(jnp.negative, times))
        if float(np.max(t)) >= -when and np.max(t) > 0:
            raise ValueError(
                f"t = {float(np.max(t)):.6g} lies past the blow-up: component {name} becomes infinite at "
                f"t = {-when:.10g}. Ask for earlier times (`solve` with throw=False stops there)."
            )


def _as_rates(rates: PyTree) -> PyTree:
    def rate(path: Any, x: Any) -> Float[Array, "..."]:
        name = f"rates{jax.tree_util.keystr(path)}"
        x = as_float(x, name)
        if concrete(x):
            check_range(name, x)
        return x

    return jax.tree_util.tree_map_with_path(rate, rates)


@checked
class GradientFlow(Flow):
    """`ẏ = −rates ∘ ∇loss(y)`: gradient descent on any scalar loss, as the learning rate goes to zero.

    `y` is any PyTree of parameters, an Equinox module among them: leaves that are not floating-point arrays (sizes,
    activation functions, tokens) stay as they are. A complex parameter moves as its two real numbers do, along
    `−(∂/∂x + i ∂/∂y) loss`. `rates` multiplies the learning rate leaf by leaf; it is a scalar or any tree prefix of the
    parameters, with scalars or arrays that broadcast against the leaves (`None` is 1).

    Data that change between calls should travel as leaves, `GradientFlow(jax.tree_util.Partial(loss, data))`, so that
    new data do not compile anew. A loss written in the call, `GradientFlow(lambda w: …)`, is a new function every time
    and costs seconds of compilation every time.
    """

    loss: Callable[[Any], Float[Array, ""]]
    rates: PyTree = eqx.field(converter=_as_rates, default=1.0)

    @classmethod
    @checked
    def example(cls, key: Key[Array, ""], *, time: Number = 3.0) -> Example:
        """`½ Σ c y²` with two leaves, whose rates differ."""
        first, second = jax.random.split(key)
        curvature = {"a": jnp.array([1.0, 2.0, 0.5]), "b": jnp.array([1.5, 0.7])}
        y0 = {"a": jax.random.normal(first, (3,)), "b": jax.random.normal(second, (2,))}
        rates = {"a": 1.0, "b": jnp.array([0.3, 2.0])}
        return cls(jax.tree_util.Partial(_quadratic, curvature), rates), y0, jnp.linspace(0.0, time, 9)

    @checked
    def __call__(self, t: Float[ArrayLike, ""], y: PyTree, args: Any = None) -> PyTree:
        if not any(eqx.is_inexact_array(x) for x in jax.tree.leaves(y)):
            raise ValueError(f"y must hold floating-point parameters, got {describe(y)}.")
        grads = eqx.filter_grad(self._real_loss)(y)
        try:
            rates = jax.tree.broadcast(self.rates, grads, is_leaf=lambda x: x is None)
        except ValueError as error:
            raise ValueError(
                f"rates must be a scalar or a tree prefix of the parameters, {jax.tree.structure(grads)}, "
                f"got {jax.tree.structure(self.rates)}."
            ) from error
        return jax.tree.map(_descent, grads, rates)

    def _real_loss(self, y: PyTree) -> Float[Array, ""]:
        loss = as_array("the value of loss", self.loss(y))
        if loss.ndim or not jnp.issubdtype(loss.dtype, jnp.floating):
            raise ValueError(f"loss must return one real number, got {loss.dtype}{list(loss.shape)}.")
        return loss


def _quadratic(curvature: PyTree, y: PyTree) -> Float[Array, ""]:
    return jnp.stack(jax.tree.leaves(jax.tree.map(lambda c, x: jnp.sum(c * x**2) / 2, curvature, y))).sum()


def _descent(grad: Array, rate: Array | None) -> Array:
    step = -jnp.conj(grad)  # JAX's gradient is ∂/∂x − i ∂/∂y
    if rate is None:
        return step
    if not _broadcasts(rate.shape, grad.shape):
        raise ValueError(f"rates must broadcast against a parameter of shape {grad.shape}, got {rate.shape}.")
    return jnp.asarray(rate, grad.dtype) * step


def _broadcasts(shape: tuple[int, ...], against: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, against) == against
    except ValueError:
        return False
