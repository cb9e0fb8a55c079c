"""The validity maps: each error vanishes with the learning rate where the assumption holds, and does not where it
fails; and the integration that they share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics.joma import NonlinearActivation
from traindyn.validate import built_in, cheap, joma, scan_snap
from traindyn.validate.joma import validity as joma_validity
from traindyn.validate.scan_snap import validity as scan_snap_validity

PAPERS = {"joma": (joma, joma_validity), "scan_snap": (scan_snap, scan_snap_validity)}
SEEDS = 2


@pytest.fixture(scope="module", params=PAPERS)
def paper(request):
    return request.param


@pytest.fixture(scope="module")
def errors(paper):
    """By entry, shape `(seeds, lanes)`: at the least learning rate of the map and at twice it with the assumption,
    and at the least rate without."""
    subject = PAPERS[paper][1].VALIDITY
    least = float(np.min(subject.axes["learning_rate"]))
    rates, strengths = jnp.array([least, 2 * least, least]), jnp.array([0.0, 0.0, 1.0])

    def lane(seed, rate, strength):
        return subject.fn(dict(subject.defaults) | {"seed": seed, "learning_rate": rate, "strength": strength})

    over_lanes = jax.vmap(jax.vmap(lane, (None, 0, 0)), (0, None, None))
    return jax.tree.map(np.asarray, jax.jit(over_lanes)(jnp.arange(SEEDS), rates, strengths))


def test_errors_are_of_first_order_where_the_assumption_holds(errors):
    for name, error in errors.items():
        order = error[:, 1] / error[:, 0]
        assert np.all(((order > 1.9) & (order < 2.1)) | (error[:, 1] < 1e-5)), (name, order, error)
        assert np.all(error[:, 0] < 0.005), (name, error)


def test_errors_grow_when_the_assumption_is_given_up(paper, errors):
    bounds = PAPERS[paper][1].VALIDITY.bounds
    for name, error in errors.items():
        assert np.all((error[:, 2] > 10 * error[:, 0]) & (error[:, 2] > 0.1 * bounds[name])), (name, error)


def test_the_map_says_what_it_shows(paper, errors):
    subject = PAPERS[paper][1].VALIDITY
    assert set(subject.labels) == set(subject.bounds) == set(errors)
    assert all(len(label) <= 60 for label in subject.labels.values())


def test_each_claim_is_mapped_or_has_a_reason(paper):
    _, module = PAPERS[paper]
    covered = {name for names in module.CLAIMS_COVERED.values() for name in names}
    assert set(module.CLAIMS_COVERED) == set(module.LABELS)
    assert not covered & set(module.NOT_COVERED)
    assert covered | set(module.NOT_COVERED) == {claim.name for claim in built_in(paper)}
    assert all(module.NOT_COVERED.values())


def test_end_of_is_of_fifth_order():
    flow, zero = NonlinearActivation(jnp.array([1.0, 2.0])), jnp.zeros(2)
    exact = flow.exact(zero, 1.0)
    coarse, fine = (jnp.max(jnp.abs(cheap.end_of(flow, zero, 1.0, steps) - exact)) for steps in (16, 32))
    assert fine < 1e-7
    assert coarse / fine > 24


def test_uniforms(key):
    draw = cheap.uniforms(key, a=(), b=(20, 30), c=(5,))
    assert {name: x.shape for name, x in draw.items()} == {"a": (), "b": (20, 30), "c": (5,)}
    assert -1 <= draw["b"].min() < -0.9
    assert 0.9 < draw["b"].max() < 1
