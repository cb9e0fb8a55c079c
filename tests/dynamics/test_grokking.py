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
    winner = int(jnp.argmax(found.share))
    np.testing.assert_allclose(found.share.sum(), 1, rtol=1e-9)
    assert float(found.share[winner]) > 1 - 1e-9 and float(found.rank[winner].max()) < 1e-4
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
    np.testing.assert_allclose(left, projector[gk.task(S3).label], atol=1e-13)
    np.testing.assert_allclose(projector, all_[2].projector, atol=1e-13)
    w = _normal(2, 6)
    z = 2 * gk.convolution(w[0], w[1], S3)
    np.testing.assert_allclose(gk.remaining_energy(w, all_, [1]), jnp.sum((projector @ z) ** 2) / 2, rtol=1e-12)


# Stage I


def _layer(decay=0.3, nodes=4, group=Z5):
    pairs = gk.task(group)
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
    np.testing.assert_allclose(flow.limit_gradient(), flow.backpropagated(flow.limit()), atol=1e-12)


def test_closed_form_without_decay_and_with_directions_that_no_feature_sees():
    flow, start = _layer(decay=0.0, nodes=30), _normal(30, 5)  # 24 dimensions for 30 nodes
    exact = jax.jit(lambda t, v: flow.exact(t, v))
    slope = (exact(1e-6, start) - exact(0.0, start)) / 1e-6
    np.testing.assert_allclose(slope, flow(0.0, start), rtol=1e-2, atol=1e-2 * float(jnp.abs(slope).max()))
    late = exact(1e6, start)
    np.testing.assert_allclose(flow.features @ late, flow.features @ flow.limit(), atol=1e-7)
    unseen = jnp.eye(30) - jnp.linalg.pinv(flow.features) @ flow.features
    np.testing.assert_allclose(unseen @ late, unseen @ start, atol=1e-6)


def test_small_features_count_where_there_is_a_decay():
    # Below what float32 tells from zero beside the others, but well above the decay: V = f̃ᵀỸ/(f̃² + η).
    big, small = np.random.default_rng(3).normal(size=(2, 12))
    features = jnp.asarray(np.stack([1e3 * big, 1e-3 * small], axis=1), jnp.float32)
    flow = gk.OutputLayer(features, jnp.asarray(np.eye(3)[np.arange(12) % 3], jnp.float32), 1e-8)
    gram = np.asarray(flow.features, float).T @ np.asarray(flow.features, float) + 1e-8 * np.eye(2)
    ridge = np.linalg.solve(gram, np.asarray(flow.features, float).T @ np.asarray(flow.labels, float))
    np.testing.assert_allclose(flow.limit(), ridge, rtol=1e-2, atol=1e-2 * np.abs(ridge).max())
    assert np.abs(ridge[1]).max() > 10


def test_wide_kernel_is_the_mean_over_normal_weights():
    pairs = gk.task(S3, _half(S3))
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
        (lambda: gk.task(Z5, np.ones((3, 3), bool)), r"used must have shape \(5, 5\) for Z5, got \(3, 3\)"),
        (lambda: gk.task(Z5, np.zeros((5, 5), bool)), "used must leave at least one pair"),
        (lambda: gk.Energy(Z5)(jnp.ones((2, 4))), r"w must have shape \(2, 5\), got \(2, 4\)"),
        (lambda: gk.maximum(irreps(Z5)[1], *jnp.ones((3, 3))), r"a must have shape \(2,\), got \(3,\)"),
        (lambda: gk.OutputLayer(jnp.ones((4, 2)), jnp.ones((3, 5)), 1.0), r"labels must have shape \(4, classes\)"),
        (lambda: gk.OutputLayer(jnp.ones((4, 2)), jnp.ones((4, 5)), -1.0), "decay must not be negative, got -1.0"),
        (lambda: gk.repulsion(jnp.ones((4, 3)), 1.0, 1, 1), "j and k must be two nodes, got 1 for both"),
        (lambda: gk.missing(irreps(S3), [3]), "numbers from 0 to 2, got 3"),
    ),
)
def test_bad_arguments_are_named(as_users, call, message):
    with pytest.raises(ValueError, match=message):
        call()
