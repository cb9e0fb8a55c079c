"""Descent to a common time: by a number of steps that may be traced."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from traindyn.nets import descent, train
from traindyn.nets import joma as nets


@pytest.fixture
def task(key):
    x = jax.random.uniform(key, (4, 3))
    data = nets.Contexts(x, jnp.arange(4) % 2, jnp.zeros(4, int))
    return nets.JomaBlock(3, 2, classes=2, init_scale=0.5, key=key), data


def test_descend_is_train_with_a_traced_number_of_steps(task):
    model, data = task
    optimiser = lambda rate: optax.sgd(rate, momentum=0.5)

    @jax.jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def run(rate, steps):
        return descent.descend(model, nets.cross_entropy, data, optimiser(rate), steps)

    for rate, steps in ((0.1, 7), (0.3, 0)):
        other = train(model, nets.cross_entropy, data, optimiser(rate), steps).model
        np.testing.assert_allclose(run(rate, steps).w, other.w, rtol=1e-12)


def test_descent_that_diverges_ends_there_with_nan(task):
    model, data = task
    blow_up = lambda model, data: -jnp.sum(model.w**4)
    end = jax.jit(lambda steps: descent.descend(model, blow_up, data, optax.sgd(10.0), steps))(10**12)
    assert jnp.all(jnp.isnan(end.w))


@pytest.mark.parametrize(("time", "rate", "steps"), [(2.0, 0.01, 200), (2.0, 0.3, 7), (1.0, 5.0, 1)])
def test_steps_to(time, rate, steps):
    number, reached = descent.steps_to(time, rate)
    assert number == steps
    np.testing.assert_allclose(reached, steps * rate)
