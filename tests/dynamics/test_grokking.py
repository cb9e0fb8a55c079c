"""The theory of Li2 against definitions written out in numpy, and what is refused."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.dynamics import grokking as gk
from traindyn.dynamics import groups, solve
from traindyn.dynamics.representations import irreps

RNG = np.random.default_rng(0)
Z5, Z6, S3, Q8 = groups.cyclic(5), groups.cyclic(6), groups.symmetric(3), groups.dicyclic(2)


def _normal(*shape):
    return jnp.asarray(RNG.normal(size=shape))


def _half(group):
    return np.random.default_rng(1).random((group.order,) * 2) < 0.5


def _design(group, used):
    """X, Y of the pairs used, labels centred."""
    g1, g2 = np.nonzero(used)
    eye = np.eye(group.order)
    y = eye[group.table[g1, g2]]
    return np.concatenate([eye[g1], eye[g2]], axis=1), y - y.mean(axis=0)


ACTIVATIONS = {"square": (jnp.square, np.square), "relu": (jax.nn.relu, lambda x: np.maximum(x, 0))}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("part", (False, True))
@pytest.mark.parametrize("group", (Z5, S3), ids=lambda g: g.name)
def test_energy_is_that_of_the_definition(group, part, name):
    ours, value = ACTIVATIONS[name]
    used = _half(group) if part else np.ones((group.order,) * 2, bool)
    x, y = _design(group, used)
    w = _normal(2, group.order)
    expected = 0.5 * np.sum((y.T @ value(x @ np.asarray(w).ravel())) ** 2)
    energy = gk.Energy(group, used, activation=ours)
    np.testing.assert_allclose(eqx.filter_jit(energy)(w), expected, rtol=1e-12)
    single = [value(x[:, half] @ np.asarray(w)[i]) for i, half in enumerate(np.split(np.arange(2 * group.order), 2))]
    both = value(x @ np.asarray(w).ravel()) - single[0] - single[1]
    interaction = gk.Energy(group, used, activation=ours, interaction=True)
    np.testing.assert_allclose(eqx.filter_jit(interaction)(w), 0.5 * np.sum((y.T @ both) ** 2), rtol=1e-12)


def test_square_on_all_pairs_needs_the_interaction_only_and_closed_forms_agree():
    w, over_r, over_c = _normal(2, 8), irreps(Q8), irreps(Q8, over="complex")
    forms = jax.jit(
        lambda w: (
            gk.Energy(Q8)(w),
            gk.Energy(Q8, interaction=True)(w),
            gk.convolution_energy(w, Q8),
            gk.plancherel_energy(w, over_r),
            gk.plancherel_energy(w, over_c),
        )
    )(w)
    np.testing.assert_allclose(forms, forms[0], rtol=1e-12)


def test_scaled_ascent_has_the_paths_of_the_sphere():
    # Its field, less what changes the norm, is that of the sphere, and both climb.
    energy, w = gk.Energy(S3), _normal(2, 6)
    w = w / jnp.linalg.norm(w)
    scaled, sphere = (flow(0.0, w) for flow in (gk.ScaledAscent(energy), gk.SphereAscent(energy)))
    np.testing.assert_allclose(scaled * 4 * energy(w), sphere, rtol=1e-10)
    assert abs(float(jnp.vdot(sphere, w))) < 1e-12
    assert float(jnp.vdot(sphere, jax.grad(energy)(w))) > 0


def test_ascent_ends_at_a_maximum_of_one_representation():
    energy, all_ = gk.Energy(S3), irreps(S3)
    end = solve(gk.ScaledAscent(energy), _normal(2, 6), [60.0], rtol=1e-6, atol=1e-8).ys[-1]
    found = gk.content(end, all_)
    winner = int(jnp.argmax(found.fraction))
    np.testing.assert_allclose(found.fraction.sum(), 1, rtol=1e-9)
    assert float(found.fraction[winner]) > 1 - 1e-9 and float(found.rank[winner].max()) < 1e-4
    np.testing.assert_allclose(energy(end / jnp.linalg.norm(end)), gk.peak(all_[winner]), rtol=1e-8)
    np.testing.assert_allclose(jnp.linalg.norm(end), 1, rtol=1e-5)  # the tolerance of a step


@pytest.mark.parametrize("group", (Z6, S3, Q8, groups.alternating(4)), ids=lambda g: g.name)
def test_maxima_have_their_value_their_flat_directions_and_rank_one(group):
    hessian = jax.jit(gk.curvatures)
    for r in irreps(group)[1:]:
        w, energy = gk.maximum(r, *_normal(3, r.dim)), gk.Energy(group)
        np.testing.assert_allclose(np.linalg.norm(w, axis=1), np.sqrt(0.5), rtol=1e-12)
        np.testing.assert_allclose(energy(w), group.order / (2 * r.dim), rtol=1e-12)
        s = gk.spectrum(r)
        expected = np.repeat([-8.0, -4.0, 0.0], [s.steep, s.middle, s.flat]) * gk.peak(r)
        np.testing.assert_allclose(hessian(energy, w), expected, atol=1e-11)
    kinds = {r.kind: gk.spectrum(r).flat for r in irreps(group)[1:] if r.dim > 1}
    assert kinds == {"Z6": {"complex": 2}, "S3": {"real": 3}, "Q8": {"quaternionic": 6}, "A4": kinds}[group.name]


def test_content_tells_rank_one_from_rank_two():
    all_ = irreps(S3)
    two = all_[2]
    generic = jnp.asarray(RNG.normal(size=(2, 6)) @ two.projector)
    assert float(gk.content(generic, all_).rank[2].max()) > 1e-3
    assert float(gk.content(gk.maximum(two, *_normal(3, 2)), all_).rank[2].max()) < 1e-12


@pytest.mark.parametrize("group", (Z5, Q8, groups.dicyclic(3), groups.alternating(4)), ids=lambda g: g.name)
def test_nodes_reconstruct_all_labels_and_are_as_many_as_counted(group):
    all_, over_c = irreps(group), irreps(group, over="complex")
    real, complex_ = gk.real_nodes(all_), gk.complex_nodes(over_c)
    assert real.shape[2] == sum(2 * r.multiplicity * r.dim**2 for r in all_[1:])
    assert complex_.shape[2] == sum(2 * r.dim**4 for r in over_c[1:])
    assert gk.residual(real, group) < 1e-24 and gk.residual(complex_, group) < 1e-22
    assert gk.residual(real[:, :, : real.shape[2] // 2], group) > 0.05
    # Each is at a maximum: the pair of halves of a single representation, of rank one.
    w = real[:, :, -1] / np.linalg.norm(real[:, :, -1], axis=1, keepdims=True) / np.sqrt(2)
    np.testing.assert_allclose(gk.Energy(group)(jnp.asarray(w)), gk.peak(all_[-1]), rtol=1e-12)


def test_what_is_left_over_is_the_projector_on_what_is_missing():
    all_ = irreps(S3)
    left = gk.left_over(gk.real_nodes(all_[:2]), S3)
    projector = gk.missing(all_, [1])
    np.testing.assert_allclose(left, projector[gk.pairs(S3.table).label], atol=1e-13)
    np.testing.assert_allclose(projector, all_[2].projector, atol=1e-13)
    w = _normal(2, 6)
    z = 2 * gk.convolution(w[0], w[1], S3)
    np.testing.assert_allclose(gk.remaining_energy(w, all_, [1]), jnp.sum((projector @ z) ** 2) / 2, rtol=1e-12)


# Stage I


def _layer(decay=0.3, nodes=4, group=Z5):
    pairs = gk.pairs(group.table)
    w = _normal(2, group.order, nodes)
    return gk.OutputLayer((w[0][pairs.first] + w[1][pairs.second]) ** 2, jnp.eye(group.order)[pairs.label], decay)


def test_output_layer_descends_the_ridge_loss_and_sends_back_its_gradient():
    flow, v = _layer(), _normal(4, 5)

    def loss(v, features):
        return jnp.sum((flow.labels - features @ v) ** 2) / 2

    decayed = lambda v: loss(v, flow.features) + 0.15 * jnp.sum(v**2)
    np.testing.assert_allclose(flow(0.0, v), -jax.grad(decayed)(v), rtol=1e-10)
    np.testing.assert_allclose(flow.backpropagated(v), -jax.grad(loss, 1)(v, flow.features), rtol=1e-10)
    np.testing.assert_allclose(flow(0.0, flow.limit()), 0, atol=1e-10)
    np.testing.assert_allclose(np.mean(flow.features, axis=0), 0, atol=1e-13)


def test_limit_gradient_is_that_at_the_ridge_solution():
    flow = _layer()
    kernel = np.linalg.inv(flow.features @ flow.features.T + 0.3 * np.eye(25))
    by_kernel = 0.3 * kernel @ flow.labels @ flow.labels.T @ kernel @ flow.features
    np.testing.assert_allclose(flow.limit_gradient(), flow.backpropagated(flow.limit()), atol=1e-12)
    np.testing.assert_allclose(flow.limit_gradient(), by_kernel, atol=1e-12)


def test_closed_form_without_decay_and_with_directions_that_no_feature_sees():
    flow, start = _layer(decay=0.0, nodes=30), _normal(30, 5)  # 24 dimensions for 30 nodes
    exact = jax.jit(lambda t, v: flow.exact(v, t))
    slope = (exact(1e-6, start) - exact(0.0, start)) / 1e-6
    np.testing.assert_allclose(slope, flow(0.0, start), rtol=1e-2, atol=1e-2 * float(jnp.abs(slope).max()))
    late = exact(1e6, start)
    np.testing.assert_allclose(flow.features @ late, flow.features @ flow.limit(), atol=1e-7)
    unseen = jnp.eye(30) - jnp.linalg.pinv(flow.features) @ flow.features
    np.testing.assert_allclose(unseen @ late, unseen @ start, atol=1e-6)


def test_no_feature_at_all_leaves_the_decay_at_any_time():
    flow = gk.OutputLayer(jnp.ones((6, 2)), jnp.ones((6, 3)), 0.1)  # nothing is left once centred
    for t in (-1e3, 0.0, 1e3, np.inf):
        np.testing.assert_allclose(flow.exact(jnp.ones((2, 3)), t), np.exp(-0.1 * t) * np.ones((2, 3)), rtol=1e-12)
    slope = jax.jacfwd(flow.exact, 1)(jnp.ones((2, 3)), -10.0)
    np.testing.assert_allclose(slope, -0.1 * np.e * np.ones((2, 3)), rtol=1e-12)


def test_small_features_count_where_there_is_a_decay():
    # Below what float32 tells from zero beside the others, but well above the decay: V = f̃ᵀỸ/(f̃² + η).
    big, small = np.random.default_rng(3).normal(size=(2, 12))
    features = jnp.asarray(np.stack([1e3 * big, 1e-3 * small], axis=1), jnp.float32)
    flow = gk.OutputLayer(features, jnp.asarray(np.eye(3)[np.arange(12) % 3], jnp.float32), 1e-8)
    gram = np.asarray(flow.features, float).T @ np.asarray(flow.features, float) + 1e-8 * np.eye(2)
    ridge = np.linalg.solve(gram, np.asarray(flow.features, float).T @ np.asarray(flow.labels, float))
    np.testing.assert_allclose(flow.limit(), ridge, rtol=1e-2, atol=1e-2 * np.abs(ridge).max())
    assert np.abs(ridge[1]).max() > 10


def _differences(fn, x, h=1e-6):
    """The gradient of fn at the array x by central differences."""
    x, slope = np.asarray(x), np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        slope[i] = (fn(x + step) - fn(x - step)) / (2 * h)
    return slope


def test_gradient_of_the_closed_form_at_equal_eigenvalues():
    # Three nodes, features of rank one: by the derivative of eigh it is −.1789.
    features, labels = jnp.array([[1, 2, 0.5], [-1, -2, -0.5]]), jnp.array([[1.0], [-1.0]])
    start, weights = jnp.array([[0.3], [0.1], [-0.2]]), jnp.sin(jnp.arange(3.0))[:, None]
    value = lambda f: jnp.sum(weights * gk.OutputLayer(f, labels, 0.1).exact(start, 0.3))
    np.testing.assert_allclose(jax.grad(value)(features)[0, 0], -0.0948480, atol=5e-8)


ALIKE = RNG.normal(size=(7, 2))[:, [0, 1, 0, 0]]
STIFF = RNG.normal(size=(7, 3)) * np.array([1e2, 1.0, 1e-2])


@pytest.mark.parametrize(
    ("features", "decay", "t", "h"),
    (
        (ALIKE, 0.1, 0.3, 1e-6),
        (ALIKE, 1e-3, np.inf, 1e-6),
        (ALIKE, 0.01, 1e6, 1e-6),
        (ALIKE, 0.0, 2.0, 1e-6),
        (ALIKE, 0.2, -0.5, 1e-6),
        (np.linalg.qr(RNG.normal(size=(7, 3)))[0], 0.3, 0.7, 1e-6),
        (RNG.normal(size=(7, 3)), 0.0, np.inf, 1e-6),
        (RNG.normal(size=(4, 9)), 0.0, 3.0, 1e-6),
        (STIFF, 1e-6, 1e4, 1e-7),
        (STIFF, 1e-6, np.inf, 1e-7),
    ),
)
def test_gradients_of_the_closed_form_and_of_its_limit(features, decay, t, h):
    labels, start = _normal(len(features), 2), _normal(features.shape[1], 2)
    weights = _normal(*start.shape)
    layer = lambda f, d: gk.OutputLayer(f, labels, d)
    exact = jax.jit(lambda f, d, t, v: jnp.sum(weights * layer(f, d).exact(v, t)))
    args = jnp.asarray(features), jnp.asarray(decay), jnp.asarray(t), start
    slopes = jax.jit(jax.grad(exact, (0, 1, 2, 3)))(*args)
    found = [_differences(lambda x: exact(x, *args[1:]), features, h)]
    if decay:
        found.append(_differences(lambda x: exact(features, x, *args[2:]), decay, 1e-6 * decay))
    for slope, expected in zip(slopes, found, strict=False):
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())
    velocity = 0.0 if np.isinf(t) else jnp.sum(weights * layer(*args[:2])(0.0, layer(*args[:2]).exact(start, t)))
    np.testing.assert_allclose(slopes[2], velocity, rtol=1e-8, atol=1e-9)
    seen = jnp.sum(slopes[3] * start) + exact(*args[:3], 0 * start)  # linear in V(0)
    np.testing.assert_allclose(seen, exact(*args), rtol=1e-9)
    if decay or features.shape[1] == 3:  # else the rank changes, and with it the solution of smallest norm
        limit = jax.jit(lambda f: jnp.sum(weights * layer(f, decay).limit()))
        expected = _differences(limit, features, h)
        np.testing.assert_allclose(jax.grad(limit)(args[0]), expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


def test_values_of_the_closed_form_at_the_ends():
    flow, start = _layer(decay=0.0, nodes=30), _normal(30, 5)  # 24 dimensions for 30 nodes
    end = flow.exact(start, np.inf)
    np.testing.assert_allclose(flow.exact(start, 1e12), end, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(flow.features @ end, flow.labels, atol=1e-12)
    unseen = jnp.eye(30) - jnp.linalg.pinv(flow.features) @ flow.features
    np.testing.assert_allclose(unseen @ end, unseen @ start, atol=1e-12)
    np.testing.assert_allclose(flow.limit_gradient(), 0, atol=1e-12)
    few = _layer(decay=0.0)  # and here the labels do not lie in the span of the features
    np.testing.assert_allclose(few.limit_gradient(), few.backpropagated(few.limit()), atol=1e-12)
    assert float(jnp.abs(few.limit_gradient()).max()) > 1e-2
    np.testing.assert_allclose(few.exact(start[:4], np.inf), few.limit(), atol=1e-12)
    decaying = _layer(decay=0.3)
    np.testing.assert_allclose(decaying.exact(start[:4], np.inf), decaying.limit(), atol=1e-12)


@pytest.mark.parametrize("decay", (1e-3, 1e-14, 0.0))
def test_alike_nodes_in_float32(decay):
    # Their difference is rounding; where the decay is smaller than that, it was read as a feature, 460 times too large.
    features = np.random.default_rng(4).normal(size=(25, 3)).astype(np.float32)[:, [0, 1, 2, 0, 0, 1]]
    labels, decay = np.eye(5, dtype=np.float32)[np.arange(25) % 5], np.float32(decay)
    narrow = gk.OutputLayer(jnp.asarray(features), jnp.asarray(labels), decay)
    wide = gk.OutputLayer(jnp.asarray(features, float), jnp.asarray(labels, float), float(decay))
    for found, right in ((narrow.limit(), wide.limit()), (narrow.limit_gradient(), wide.limit_gradient())):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, right, atol=2e-6 * float(jnp.abs(right).max()))


def test_second_derivatives_by_singular_vectors_are_refused():
    labels = _normal(6, 2)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        jax.hessian(lambda f: jnp.sum(gk.OutputLayer(f, labels, 0.1).limit()))(_normal(6, 3))


def test_integers_are_the_numbers_that_they_stand_for():
    features, labels, start = np.arange(12).reshape(6, 2) ** 2 % 7, np.eye(6, dtype=int), np.ones((2, 6), int)
    whole = gk.OutputLayer(jnp.asarray(features), jnp.asarray(labels), 0.5)
    real = gk.OutputLayer(jnp.asarray(1.0 * features), jnp.asarray(1.0 * labels), 0.5)
    assert float(whole.decay) == 0.5
    np.testing.assert_array_equal(whole.limit(), real.limit())
    np.testing.assert_array_equal(whole.exact(jnp.asarray(start), 0.5), real.exact(jnp.asarray(1.0 * start), 0.5))
    w = np.arange(10).reshape(2, 5)
    np.testing.assert_array_equal(gk.Energy(Z5)(jnp.asarray(w)), gk.Energy(Z5)(jnp.asarray(1.0 * w)))
    whole_rows, rows = (
        jnp.asarray(np.arange(12).reshape(4, 3) % 5),
        jnp.asarray(1.0 * (np.arange(12).reshape(4, 3) % 5)),
    )
    np.testing.assert_array_equal(gk.repulsion(whole_rows, 0.5, 0, 1), gk.repulsion(rows, 0.5, 0, 1))
    np.testing.assert_allclose(gk.inverse_gram(jnp.eye(3, dtype=int), 0.5), np.eye(3) / 1.5, rtol=1e-15)
    two, ones = irreps(S3)[2], jnp.array([1, 0])
    np.testing.assert_array_equal(gk.maximum(two, ones, ones, ones), gk.maximum(two, *(jnp.array([1.0, 0.0]),) * 3))


def test_wide_kernel_is_the_mean_over_normal_weights():
    pairs = gk.pairs(S3.table, _half(S3))
    w = np.random.default_rng(2).normal(size=(2, 6, 200_000))
    features = (w[0][pairs.first] + w[1][pairs.second]) ** 2
    sampled, law = features @ features.T / w.shape[2], gk.wide_kernel(pairs)
    assert np.abs(sampled - law).max() < 0.3 and law[0, 0] == 12  # E (√2 Z)⁴
    wide = _layer(decay=2.0, nodes=50_000)
    found, limit = wide.limit_gradient(), wide.wide_gradient()
    assert float(jnp.vdot(found, limit) / jnp.linalg.norm(found) / jnp.linalg.norm(limit)) > 0.999
    np.testing.assert_allclose(jnp.linalg.norm(found) / jnp.linalg.norm(limit), 1, atol=0.03)  # 50 000 draws


# Stage III


def test_repulsion_is_the_entry_of_the_inverse():
    features = gk.centred(_normal(20, 6))
    inverse = gk.inverse_gram(features, 0.4)
    rule = jax.jit(functools.partial(gk.repulsion, features, 0.4))
    for j, k in ((0, 1), (4, 2)):
        np.testing.assert_allclose(rule(j, k), inverse[j, k], rtol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    (
        (lambda: gk.Energy(groups.cyclic(2)), "order 3 or more for its labels to differ, got Z2"),
        (lambda: gk.pairs(Z5.table, np.ones((3, 3), bool)), r"used must have shape \(5, 5\), got \(3, 3\)"),
        (lambda: gk.pairs(Z5.table, np.zeros((5, 5), bool)), "used must leave at least one pair"),
        (lambda: gk.Energy(Z5)(jnp.ones((2, 4))), r"w must have shape \(2, 5\), got \(2, 4\)"),
        (lambda: gk.maximum(irreps(Z5)[1], *jnp.ones((3, 3))), r"a must have shape \(2,\), got \(3,\)"),
        (lambda: gk.OutputLayer(jnp.ones((4, 2)), jnp.ones((3, 5)), 1.0), r"labels must have shape \(4, classes\)"),
        (lambda: gk.OutputLayer(jnp.ones((4, 2)), jnp.ones((4, 5)), -1.0), "decay must be at least 0, got -1.0"),
        (lambda: gk.repulsion(jnp.ones((4, 3)), 1.0, 1, 1), "j and k must be two nodes, got 1 for both"),
        (lambda: gk.missing(irreps(S3), [3]), "learned must be an integer of at least 0 and at most 2, got 3"),
    ),
)
def test_bad_arguments_are_named(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_alike_nodes_and_no_decay_have_an_inverse_and_a_repulsion():
    f = gk.centred(_normal(6, 3))
    alike = f.at[:, 2].set(f[:, 0])
    np.testing.assert_allclose(gk.repulsion(f, 0.0, 0, 2), gk.inverse_gram(f, 0.0)[0, 2], rtol=1e-12)
    for decay in (1e-17, 1e-9, 0.1):
        found = [gk.repulsion(alike, decay, 0, 2), gk.inverse_gram(alike, decay)[0, 2]]
        np.testing.assert_allclose(found[0], found[1], rtol=1e-9)
    np.testing.assert_allclose(gk.repulsion(alike, 1e-17, 0, 2), -5e16, rtol=1e-12)
    for dtype, decay in ((jnp.float64, 1e-17), (jnp.float32, 1e-10)):
        found = gk.inverse_gram(jnp.ones((4, 3), dtype), jnp.array(decay, dtype))
        np.testing.assert_allclose(found * decay, np.eye(3) - 1 / 3, rtol=1e-6)
    assert np.all(np.isnan(jax.jit(gk.inverse_gram)(alike, 0.0)))


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
@pytest.mark.parametrize("alike", (True, False))
def test_inverse_and_repulsion_have_first_derivatives(dtype, alike):
    f = gk.centred(_normal(6, 3)).astype(dtype)
    f, decay = f.at[:, 2].set(f[:, 0]) if alike else f, jnp.array(0.3, dtype)
    plain = lambda f, decay: jnp.linalg.inv(f.T @ f + decay * jnp.eye(3, dtype=dtype))
    for found, wanted in (
        (lambda f, decay: jnp.sum(jnp.sin(gk.inverse_gram(f, decay))), lambda *x: jnp.sum(jnp.sin(plain(*x)))),
        (lambda f, decay: gk.repulsion(f, decay, 0, 2), lambda *x: plain(*x)[0, 2]),
    ):
        slopes = jax.jit(jax.vmap(jax.grad(found, (0, 1)), (0, None)))(f[None], decay)
        for x, y in zip(slopes, jax.grad(wanted, (0, 1))(f, decay), strict=True):
            np.testing.assert_allclose(x[0], y, atol=1000 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("size", (1e-200, 1.0, 1e170))
def test_output_layer_of_any_size_has_its_limit(size):
    f, y = _normal(6, 3), _normal(6, 2)
    limit = gk.OutputLayer(f, y, 0.0).limit()
    layer = gk.OutputLayer(f * size, y, 0.0)
    np.testing.assert_allclose(layer.limit() * size, limit, rtol=1e-11)
    np.testing.assert_allclose(layer.exact(0 * limit, jnp.inf) * size, limit, rtol=1e-11)
    np.testing.assert_array_equal(layer.exact(0 * limit, 0.0), 0 * limit)
    slope = lambda size: jax.jit(jax.grad(lambda y: jnp.sum(gk.OutputLayer(f * size, y, 0.0).limit())))(y)
    np.testing.assert_allclose(slope(size) * size, slope(1.0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "size"), ((jnp.float64, 1e-200), (jnp.float32, 1e-20), (jnp.float64, 1e200)))
def test_maximum_and_content_know_no_size(dtype, size):
    _, _, irrep = irreps(S3)
    a, x, b = (jnp.array(v, dtype) for v in ([1.0, 1.0], [0.5, -1.0], [0.3, 0.2]))
    node = gk.maximum(irrep, a, x, b)
    rtol = 50 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(gk.maximum(irrep, size * a, size * x, size * b), node, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(gk.content(size * node, [irrep]).fraction, [1.0], rtol=rtol)
    entry = lambda a: gk.maximum(irrep, a, x, b)[0, 1]
    slope, step = jax.jit(jax.vmap(jax.grad(entry)))(a[None])[0], jnp.array([1e-3, 0], dtype)
    np.testing.assert_allclose(slope[0], (entry(a + step) - entry(a - step)) / 2e-3, rtol=1e-3)


def test_rounding_of_a_representation_has_no_rank():
    fraction, rank = gk.content(jnp.ones((2, 6)), irreps(S3))
    np.testing.assert_allclose(fraction, [1, 0, 0], atol=1e-15)
    np.testing.assert_array_equal(rank, [[0, 0], [np.nan, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize(
    "call",
    (
        lambda r, w: gk.missing([r[0], r[1], r[1]], []),
        lambda r, w: gk.remaining_energy(w, [r[0], r[1], r[1]], [0]),
        lambda r, w: gk.plancherel_energy(w, [r[1], irreps(Z5, over="complex")[1]]),  # a part of it
        lambda r, w: gk.content(w, [r[1], r[2], r[1]]),
    ),
)
def test_a_representation_given_twice_is_refused(call, as_users):
    with pytest.raises(ValueError, match="irreps must hold each representation once, got the same at"):
        call(irreps(Z5), jnp.ones((2, 5)))


def test_an_activation_that_reduces_is_refused(as_users):
    with pytest.raises(ValueError, match=r"the value of activation must have shape \(5, 5\), got \(\)"):
        gk.Energy(Z5, activation=jnp.sum)(jnp.ones((2, 5)))
