"""The gradient of reversible networks against autodiff and descent by hand, and the bounds its docstrings state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics.galore import ReversibleGradient, Split, stable_rank_bound

RNG = np.random.default_rng(0)


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def _psd(samples, size, rank=None):
    x = _normal(samples, size, rank or size)
    return x @ x.swapaxes(1, 2)


def _flow(rows=3, columns=4, samples=5, rank=None):
    return ReversibleGradient(_normal(samples, rows, columns), _psd(samples, rows, rank), _psd(samples, columns, rank))


def _descend(flow, w, rate, steps):
    gradients = []
    for _ in range(steps):
        gradients.append(np.mean(flow.a - np.einsum("sij,jk,skl->sil", flow.b, w, flow.c), axis=0))
        w = w + rate * gradients[-1]
    return w, np.stack(gradients)


@jax.jit
def _exact_and_slope(flow, t, w):
    return jax.jvp(lambda t: flow.exact(w, t), (t,), (jnp.ones_like(t),))


def _rank(g):
    singular = np.linalg.svd(g, compute_uv=False)
    return np.sum(singular**2) / singular[0] ** 2


def test_is_the_descent_of_a_deep_linear_network():
    upper, w, x, y = _normal(2, 3), _normal(3, 4), _normal(6, 4), _normal(6, 2)
    loss = lambda w: jnp.sum((y - x @ w.T @ upper.T) ** 2) / (2 * len(x))
    a = jnp.einsum("so,oi,sj->sij", y, upper, x)
    flow = ReversibleGradient(a, jnp.tile(upper.T @ upper, (6, 1, 1)), x[:, :, None] * x[:, None, :])
    np.testing.assert_allclose(flow(0.0, w), -jax.grad(loss)(w), rtol=1e-12, atol=1e-13)


def test_operator_acts_on_the_rows_of_a_gradient_and_its_modes_diagonalise_it():
    flow, g = _flow(), _normal(3, 4)
    by_hand = np.mean([b @ g @ c for b, c in zip(flow.b, flow.c, strict=True)], axis=0)
    np.testing.assert_allclose(flow.operator() @ g.ravel(), by_hand.ravel(), rtol=1e-12)
    values, modes = flow.modes()
    assert np.all(np.diff(values) > 0)
    np.testing.assert_allclose(np.einsum("kij,lij->kl", modes, modes), np.eye(12), atol=1e-13)
    scaled = np.mean([b @ modes @ c for b, c in zip(flow.b, flow.c, strict=True)], axis=0)
    np.testing.assert_allclose(scaled, values[:, None, None] * modes, atol=1e-12)


@pytest.mark.parametrize("rank", (None, 1))
def test_closed_form_obeys_its_equation(rank):
    flow, w = _flow(rank=rank), _normal(3, 4)
    for t in (0.0, 0.1, 3.0):
        reached, slope = _exact_and_slope(flow, jnp.asarray(t), w)
        np.testing.assert_allclose(slope, flow(t, reached), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(_exact_and_slope(flow, jnp.zeros(()), w)[0], w)


def test_closed_form_has_gradients_where_eigenvalues_coincide():
    eye = jnp.eye(2)[None]
    number = lambda b: jnp.sum(ReversibleGradient(jnp.ones((1, 2, 2)), b, eye).exact(jnp.zeros((2, 2)), 1.0))
    gradient = jax.jit(jax.grad(number))(eye)[0]
    # W(t) = B⁻¹ (1 − exp(−Bt)) A; on the diagonal the derivative of (1 − e^{−b})/b at b = 1, for each of two columns
    np.testing.assert_allclose(np.diag(gradient), 2 * (2 / np.e - 1) * np.ones(2), rtol=1e-12)


def test_tends_to_the_minimum_far_from_the_start():
    flow = ReversibleGradient(_normal(1, 3, 4), _psd(1, 3) + jnp.eye(3)[None], _psd(1, 4) + jnp.eye(4)[None])
    minimum = jnp.linalg.inv(flow.b[0]) @ flow.a[0] @ jnp.linalg.inv(flow.c[0])
    np.testing.assert_allclose(_exact_and_slope(flow, jnp.asarray(1e4), jnp.zeros((3, 4)))[0], minimum, rtol=1e-9)


def test_split_separates_the_smallest_eigenvalue():
    b, c = jnp.diag(jnp.array([1.0, 2.0]))[None], jnp.diag(jnp.array([1.0, 1.0, 3.0]))[None]
    g = _normal(2, 3)
    split = ReversibleGradient(jnp.zeros((1, 2, 3)), b, c).split(g)
    np.testing.assert_allclose(split.parallel, g * jnp.array([[1, 1, 0], [0, 0, 0.0]]), atol=1e-14)
    np.testing.assert_allclose(split.rest, g * jnp.array([[0, 0, 1], [1, 1, 1.0]]), atol=1e-14)
    assert [float(x) for x in split[2:]] == pytest.approx([1, 2, 6])
    assert float(split.ratio(0.1)) == pytest.approx(0.8 / 0.9)
    alone = ReversibleGradient(jnp.zeros((1, 2, 2)), jnp.eye(2)[None], jnp.eye(2)[None]).split(jnp.eye(2))
    assert float(alone.second) == np.inf and float(alone.ratio(0.5)) == 0
    np.testing.assert_allclose(alone.parallel, jnp.eye(2), atol=1e-15)


def test_split_has_first_derivatives_where_eigenvalues_coincide():
    # S has the eigenvalues 1, 1, 2, 2, 3, 6: of one slow eigenspace and a fast one, in which they stay together as C
    # changes; central differences, and a change of B that parts no slow modes.
    b, c, g = jnp.diag(jnp.array([1.0, 2.0])), jnp.diag(jnp.array([1.0, 1.0, 3.0])), _normal(2, 3)
    turn = jnp.array([[0.0, 0.7], [0.7, 0.0]])
    part = lambda s: ReversibleGradient(jnp.zeros((1, 2, 3)), (b + s * turn)[None], c[None]).split(g, 1e-6).parallel
    slope = jax.jit(jax.jacfwd(part))(0.0)
    numeric = (part(1e-5) - part(-1e-5)) / 2e-5
    assert jnp.max(jnp.abs(slope)) > 0.1
    np.testing.assert_allclose(slope, numeric, rtol=1e-8, atol=1e-9)
    by_b = jax.grad(lambda b: ReversibleGradient(jnp.zeros((1, 2, 3)), b[None], c[None]).split(g).parallel.sum())(b)
    np.testing.assert_allclose(jnp.sum(by_b * turn), slope.sum(), rtol=1e-12)


def test_integers_are_the_numbers_they_mean():
    eye = np.eye(2, dtype=int)[None]
    moved = ReversibleGradient(np.ones((1, 2, 2), int), eye, eye).exact(np.zeros((2, 2), int), 1)
    np.testing.assert_allclose(moved, 1 - 1 / np.e, rtol=1e-14)


def test_descent_shrinks_each_mode_by_its_own_factor():
    flow, w = _flow(), _normal(3, 4)
    values, modes = flow.modes()
    rate = float(0.9 / values[-1])
    _, gradients = _descend(flow, w, rate, 8)
    inside = np.einsum("kij,tij->tk", modes, gradients)
    factors = (1 - rate * np.asarray(values)) ** np.arange(8)[:, None]
    np.testing.assert_allclose(inside, factors * inside[0], atol=1e-11)


def test_stable_rank_bound_is_the_formula_and_holds_where_the_printed_one_fails():
    e, start = jnp.diag(jnp.array([1.0, 0.0]))[None], jnp.array([[-0.3, 1.0], [1.0, 1.0]])
    flow = ReversibleGradient(start[None], e, e)
    split = flow.split(start)
    bound = stable_rank_bound(split, 0.5, jnp.arange(3.0))
    top = (1 + np.sqrt(5)) / 2  # ‖[[0, 1], [1, 1]]‖₂
    np.testing.assert_allclose(bound[0], 3.09 / (top - 0.3) ** 2, rtol=1e-12)
    np.testing.assert_allclose(bound[1], (3 + 0.09 / 4) / (top - 0.15) ** 2, rtol=1e-12)
    _, gradients = _descend(flow, np.zeros((2, 2)), 0.5, 3)
    ranks = [_rank(g) for g in gradients]
    assert np.all(np.array(ranks) <= bound)
    assert ranks[0] == pytest.approx(1.298, abs=1e-3) and ranks[0] > 3 / top**2 + 0.09 / top**2


def test_stable_rank_bound_is_infinite_where_it_says_nothing():
    split = Split(jnp.eye(2) * 0.1, jnp.eye(2), jnp.array(1.0), jnp.array(2.0), jnp.array(2.0))
    bound = stable_rank_bound(split, 0.1, jnp.array([0.0, 100.0]))
    assert bound[0] == np.inf and float(bound[1]) == pytest.approx(2.0, rel=1e-3)


def test_within_the_projections_it_is_the_projected_descent():
    flow, w, rate = _flow(4, 5), _normal(4, 5), 1e-3
    p, q = (jnp.linalg.qr(_normal(size, 2))[0] for size in (4, 5))
    inside, x, whole = flow.within(p, q, w), jnp.zeros((2, 2)), w
    for _ in range(4):
        r = p.T @ flow(0.0, whole) @ q
        np.testing.assert_allclose(inside(0.0, x), r, rtol=1e-10, atol=1e-11)
        x, whole = x + rate * inside(0.0, x), whole + rate * p @ r @ q.T


def test_contraction_is_the_mean_product_of_least_eigenvalues():
    b, c = np.stack([np.diag([1.0, 4.0]), np.diag([2.0, 3.0])]), np.stack([np.diag([5.0, 6.0]), np.diag([7.0, 0.5])])
    flow = ReversibleGradient(np.zeros((2, 2, 2)), b, c)
    assert float(flow.contraction()) == pytest.approx((1 * 5 + 2 * 0.5) / 2)


def test_works_under_vmap_and_jit_over_everything_and_keeps_float32():
    flows, w = [_flow() for _ in range(2)], _normal(2, 3, 4)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *flows)

    @jax.jit
    @jax.vmap
    def run(flow, w):
        split = flow.split(flow(0.0, w))
        return flow.exact(w, 0.1), split.parallel, stable_rank_bound(split, 1e-3, jnp.arange(2.0, dtype=w.dtype))

    for i, flow in enumerate(flows):
        split = flow.split(flow(0.0, w[i]))
        alone = (
            _exact_and_slope(flow, jnp.asarray(0.1), w[i])[0],
            split.parallel,
            stable_rank_bound(split, 1e-3, jnp.arange(2.0)),
        )
        for a, b in zip(run(stacked, w), alone, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-10)
    small = jax.tree.map(lambda x: x.astype(jnp.float32), (stacked, w))
    assert {x.dtype for x in run(*small)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("a", "b", "c", "message"),
    (
        (np.ones((2, 3)), np.ones((2, 3, 3)), np.ones((2, 4, 4)), r"a must have shape \(samples, rows, columns\)"),
        (np.ones((2, 3, 4)), np.ones((2, 4, 4)), np.ones((2, 4, 4)), r"b must have shape \(2, 3, 3\), got \(2, 4, 4\)"),
        (np.ones((2, 3, 4)), np.ones((2, 3, 3)), np.ones((1, 4, 4)), r"c must have shape \(2, 4, 4\), got \(1, 4, 4\)"),
        (np.ones((1, 2, 2)), np.array([[[1.0, 2], [0, 1]]]), np.ones((1, 2, 2)), "b must hold symmetric matrices"),
    ),
)
def test_bad_input_is_named(as_users, a, b, c, message):
    with pytest.raises(ValueError, match=message):
        ReversibleGradient(a, b, c)


ONE = np.ones((1, 1, 1))
SPLIT = Split(jnp.eye(2), jnp.eye(2), jnp.array(1.0), jnp.array(2.0), jnp.array(2.0))


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (lambda: ReversibleGradient(ONE, -ONE, ONE), "b must be positive semidefinite, got an eigenvalue of -1"),
        (lambda: ReversibleGradient(ONE, ONE, ONE * np.nan), "c must be finite, got nan"),
        (lambda: ReversibleGradient(ONE[:0], ONE[:0], ONE[:0]), "a must have at least one sample"),
        (lambda: ReversibleGradient(ONE, ONE, ONE).exact(jnp.zeros((1, 1)), 1e30), "ts must be at most 4.295e"),
        (lambda: ReversibleGradient(ONE, ONE, ONE).exact(jnp.zeros((1, 1)), np.inf), "ts must be finite, got inf"),
        (lambda: ReversibleGradient(ONE, ONE, ONE).split(jnp.zeros((1, 1)), -1.0), "tolerance must be at least 0"),
        (
            lambda: ReversibleGradient(ONE, ONE, ONE).within(2 * ONE[0], ONE[0], jnp.zeros((1, 1))),
            "p must have orthonormal columns, got pᵀp that is 3 off the identity",
        ),
        (lambda: stable_rank_bound(SPLIT, 0.5, jnp.arange(2.0)), "learning_rate must be below 1/λ_max = 0.5"),
        (lambda: stable_rank_bound(SPLIT, -0.1, jnp.arange(2.0)), "learning_rate must be at least 0, got -0.1"),
        (lambda: stable_rank_bound(SPLIT, 0.1, -jnp.ones(2)), "steps must be at least 0, got -1.0"),
    ),
)
@pytest.mark.usefixtures("as_users")
def test_what_lies_outside_the_domain_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
