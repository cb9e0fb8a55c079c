"""Optimisers of the two-layer network on pairs of group elements, as the code of its papers has them."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from .._checked import checked
from .._checks import real
from ._arguments import check_fields, check_rates

Rate = float | Float[Array, ""]


@checked
def coupled_adam(learning_rate: Rate, weight_decay: Rate) -> optax.GradientTransformation:
    """Adam on the gradient of loss plus `weight_decay/2 ‖w‖²`, as `torch.optim.Adam(weight_decay=…)` has it: the decay
    goes through the moments. Not AdamW. Both numbers may be traced."""
    check_rates(learning_rate, weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.scale_by_adam(), optax.scale_by_learning_rate(learning_rate)
    )


@checked
def coupled_sgd(learning_rate: Rate, weight_decay: Rate, *, momentum: float = 0.9) -> optax.GradientTransformation:
    """Gradient descent on loss plus `weight_decay/2 ‖w‖²`, as `torch.optim.SGD(momentum=…, weight_decay=…)` has it,
    with the momentum of the authors' code. Both rates may be traced."""
    check_rates(learning_rate, weight_decay)
    real("momentum", momentum, (), least=0, below=1)
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.trace(momentum), optax.scale_by_learning_rate(learning_rate)
    )


@checked
def muon(learning_rate: Rate, weight_decay: Rate, *, beta: float = 0.99) -> optax.GradientTransformation:
    """Muon on the one matrix `W = [a; b]`, and `coupled_adam` on c, for the parameters of a `TwoLayer`.

    a and b apart would be another optimiser: a matrix is made orthogonal as a whole. It is `optax.contrib.muon` without
    the shape factor and without Nesterov, as in the authors' code, with a decoupled decay of W. Their momentum is 0.99:
    their 0.9 applies only to Nesterov. Both rates may be traced.
    """
    check_rates(learning_rate, weight_decay)
    real("beta", beta, (), least=0, below=1)
    of_w = optax.chain(
        optax.contrib.scale_by_muon(
            beta=beta, nesterov=False, weight_dimension_numbers=optax.contrib.MuonDimensionNumbers()
        ),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    of_c = coupled_adam(learning_rate, weight_decay)
    joined = lambda model: jnp.concatenate([model.a, model.b])

    def init(params):
        check_fields(params, ("a", "b", "c"), "a TwoLayer")
        return of_w.init(joined(params)), of_c.init(params.c)

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params must be given: muon decays them.")
        w, state_w = of_w.update(joined(updates), state[0], joined(params))
        c, state_c = of_c.update(updates.c, state[1], params.c)
        a, b = jnp.split(jnp.asarray(w), 2)
        return eqx.tree_at(lambda m: (m.a, m.b, m.c), updates, (a, b, c)), (state_w, state_c)

    return optax.GradientTransformation(init, update)


Optimiser = Callable[[Rate, Rate], optax.GradientTransformation]
OPTIMISERS: dict[str, Optimiser] = {"adam": coupled_adam, "sgd": coupled_sgd, "muon": muon}
