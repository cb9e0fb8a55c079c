"""The eviction policy against sorting by hand."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from traindyn.nets.eviction import keep


@hypothesis.given(
    scores=st.lists(st.integers(0, 3), min_size=6, max_size=6), budget=st.integers(1, 8), recent=st.integers(0, 8)
)
def test_keeps_the_last_ones_and_then_the_highest(scores, budget, recent):
    recent = min(recent, budget)
    kept = set(np.flatnonzero(keep(jnp.asarray(scores, float), budget, recent=recent)).tolist())
    last = set(range(max(6 - recent, 0), 6))
    rest = sorted(set(range(6)) - last, key=lambda i: (-scores[i], i))
    assert kept == last | set(rest[: max(budget - len(last), 0)])


def test_works_on_batches_under_jit_and_on_infinite_scores():
    scores = jnp.array([[jnp.inf, 0.0, -jnp.inf], [0.0, 1.0, 2.0]])
    kept = jax.jit(lambda s: keep(s, 2))(scores)
    np.testing.assert_array_equal(kept, [[True, True, False], [False, True, True]])


def test_bad_budgets_are_refused():
    with pytest.raises(ValueError, match="budget must be an integer of at least 1"):
        keep(jnp.ones(3), 0)
    with pytest.raises(ValueError, match="recent must lie between 0 and budget = 2"):
        keep(jnp.ones(3), 2, recent=3)


@pytest.mark.parametrize(
    ("scores", "kept"),
    (
        (jnp.array([0, 5, 3], jnp.uint8), [False, True, False]),
        (jnp.array([-128, 5, 3], jnp.int8), [False, True, False]),
        (jnp.array([False, True, True]), [False, True, False]),
        (jnp.array([jnp.nan, -jnp.inf]), [False, True]),
    ),
)
def test_scores_of_any_type_have_their_order(scores, kept):
    np.testing.assert_array_equal(jax.jit(lambda s: keep(s, 1))(scores), kept)
