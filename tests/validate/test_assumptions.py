"""Assumptions: sentences with a measure, exact on inputs made by hand; and curves that are what the maps measure."""

import copy
import math
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.nets import joma, pairs, reversal, scan_snap
from traindyn.nets.grokking import features
from traindyn.validate import Assumption, Network, built_in, pair_networks
from traindyn.validate.assumptions import WITHIN, Seen, relative
from traindyn.validate.curves import CURVES
from traindyn.validate.joma import assumptions as of_joma
from traindyn.validate.joma import validity as joma_map
from traindyn.validate.reversal import assumptions as of_reversal
from traindyn.validate.scan_snap import assumptions as of_scan_snap
from traindyn.validate.scan_snap import validity as scan_snap_map

NETWORK = Network(float, lambda model, data: jnp.asarray(model), "a number")
LIBRARY = {one.name: one for claim in built_in() for one in claim.assumptions if isinstance(one, Assumption)}


def made(**options):
    options = {"name": "half", "network": NETWORK, "measure": lambda seen: seen.last} | options
    return Assumption("half of it", **options)


def test_an_assumption_is_its_sentence():
    one = made()
    assert one == "half of it" and isinstance(one, str) and f"{one}; so" == "half of it; so"
    again = one.said("the other half")
    assert (again, again.name, again.measure) == ("the other half", "half", one.measure)
    assert copy.deepcopy(one) is one


def test_it_travels_as_its_sentence():
    """As the records of results do, between the processes of `verify`."""
    for one in LIBRARY.values():
        travelled = pickle.loads(pickle.dumps(one))
        assert type(travelled) is str and travelled == one


def test_without_a_curve_the_number_is_the_error():
    assert made().error(0.07) == 0.07
    assert made().tolerance == pytest.approx(WITHIN)


def test_the_tolerance_is_where_the_first_theorem_is_ten_percent_off():
    one = made(curves={"a.b": ((0.0, 0.0), (1.0, 0.2)), "a.c": ((0.0, 0.0), (1.0, 0.05), (2.0, 0.1))})
    assert one.tolerance == pytest.approx(0.5)
    assert (one.error(0.5, "a.b"), one.error(0.5, "a.c"), one.error(0.5)) == pytest.approx((0.1, 0.025, 0.1))
    assert one.error(4.0, "a.c") == pytest.approx(0.2)  # in proportion beyond the end
    assert one.said("again").tolerance == pytest.approx(0.5)


@pytest.mark.parametrize(
    "bad",
    [
        {"name": 3},
        {"network": float},
        {"measure": 3},
        {"over_time": 1},
        {"regime": "slow"},
        {"regime": ("slow", 1)},
        {"curves": [(0.0, 1.0)]},
        {"curves": {"a.b": ((0.0, 0.0),)}},
        {"curves": {"a.b": ((0.0, 0.2), (1.0, 0.1))}},
        {"curves": {"a.b": ((1.0, 0.1), (0.0, 0.2))}},
        {"curves": {"a.b": ((-1.0, 0.1), (0.0, 0.2))}},
        {"curves": {"a.b": ((0.0, math.nan), (1.0, 0.2))}},
    ],
)
def test_what_is_no_assumption_is_refused(as_users, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}.* must "):
        made(**bad)


def test_a_network_is_a_class_and_a_loss(as_users):
    for bad in ({"model": 3}, {"loss": 3}, {"noun": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            Network(**({"model": float, "loss": abs, "noun": "a number"} | bad))


def test_changes_are_relative_to_the_start():
    seen = Seen((np.array([3.0, 4.0]), np.array([3.0, 5.0]), np.array([3.0, 4.5])), None)
    assert seen.change(lambda x: x) == pytest.approx(0.2)
    assert (relative(0.0, 0.0), relative(1.0, 0.0), relative([3.0, 4.0], 10.0)) == (0.0, math.inf, 0.5)


def test_every_assumption_of_the_library_is_of_one_mind_and_has_a_tolerance():
    names = [
        (one.name, one.measure) for claim in built_in() for one in claim.assumptions if isinstance(one, Assumption)
    ]
    assert len({name for name, _ in names}) == len(set(names)) == len(LIBRARY) >= 20
    assert all(0 < one.tolerance <= 1 for one in LIBRARY.values())
    assert {claim for one in LIBRARY.values() for claim in one.curves} <= {one.name for one in built_in()}
    assert len(CURVES) == sum(bool(one.curves) for one in LIBRARY.values())


# JoMA


def contexts(x, label=None, query=None):
    x = jnp.asarray(x, float)
    label, query = (jnp.asarray([0] * len(x) if one is None else one) for one in (label, query))
    return joma.Contexts(x, label, query)


def block(**options):
    return joma.JomaBlock(**({"tokens": 3, "nodes": 2, "key": jax.random.key(0)} | options))


def test_queries_beside_the_most_frequent_are_counted():
    data = contexts(np.eye(3)[[0, 1, 2, 0]], query=[0, 1, 0, 0])
    assert of_joma.other_queries(Seen((block(queries=2),), data)) == 0.25
    assert of_joma.other_queries(Seen((block(),), (data.x, jnp.ones((4, 2))))) == 0


def test_embeddings_are_orthonormal_or_off_by_their_gram_matrix():
    assert of_joma.off_orthonormal(block()) < 1e-14
    assert of_joma.off_orthonormal(block(embeddings="identity")) == 0
    doubled = jnp.eye(4).at[0, 0].set(2**0.5)  # one of four squared norms is off by 1
    assert of_joma.off_orthonormal(block(embeddings=doubled)) == pytest.approx(0.5)


def test_the_gradient_that_comes_back_is_that_of_the_hidden_nodes():
    data, model = contexts(np.eye(3), label=[0, 1, 1]), block(classes=2, init_scale=0.5)
    h = jax.vmap(model.hidden)(data.x)
    loss = lambda h: -jnp.sum(jax.nn.log_softmax(h @ model.decoder, axis=1)[jnp.arange(3), data.label])
    np.testing.assert_allclose(of_joma.back_propagated(model, data), -jax.grad(loss)(h), rtol=1e-12)
    np.testing.assert_allclose(of_joma.drive(model, data), -data.x.T @ jax.grad(loss)(h) / 3, rtol=1e-12)
    assert of_joma.back_propagated(model, (data.x, jnp.ones((3, 2)))).tolist() == np.ones((3, 2)).tolist()


def test_mean_attention_of_zero_logits_is_the_mean_frequency():
    model = eqx.tree_at(lambda m: m.z, block(attention="softmax"), replace_fn=jnp.zeros_like)
    found = of_joma.mean_attention(model, contexts([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]))
    np.testing.assert_allclose(found, [0.25, 0.5, 0.25])


def test_samples_that_are_one_are_alike_and_two_apart_are_not():
    g = jnp.ones((2, 1))
    assert of_joma.unlike(g, jnp.asarray([[0.5, 0.5], [0.5, 0.5]])) < 1e-15
    # E[b bᵀ] = I/2 and b̄ E[b]ᵀ is ¼ everywhere: the difference is ±¼, of norm ½, over 1/√2
    assert of_joma.unlike(g, jnp.eye(2)) == pytest.approx(0.5**0.5)


def test_an_activation_is_bent_by_what_it_adds():
    assert of_joma.bent(jnp.asarray([3.0, 4.0]), jnp.asarray([3.0, 5.0])) == pytest.approx(0.2)
    data = contexts(np.eye(3))
    measure = lambda activation: of_joma.LINEAR.measure(Seen((block(activation=activation),), data))
    assert measure("identity") == 0
    assert measure(lambda h: 1.5 * h) == pytest.approx(0.5)


def test_kinds_of_attention_are_other_theorems():
    seen = Seen((block(attention="exp"),), contexts(np.eye(3)))
    assert of_joma.EXPONENTIAL.measure(seen) == 0 and of_joma.UNNORMALISED.measure(seen) == 0
    others = (of_joma.SOFTMAX, of_joma.LINEAR_ATTENTION, of_joma.CONSTANT_B, of_joma.ALIKE, of_joma.ONE_NODE_EXP)
    assert [one.measure(seen) for one in others] == [None] * 5
    linear = eqx.tree_at(lambda m: m.z, block(attention="linear", nodes=1), jnp.ones((1, 3)))
    moved = eqx.tree_at(lambda m: m.z, linear, jnp.ones((1, 3)) * 1.1)
    assert of_joma.UNIFORM.measure(Seen((linear,), None)) == 0 and of_joma.UNIFORM.measure(seen) is None
    assert of_joma.AT_REST.measure(Seen((linear, moved), None)) == pytest.approx(0.1)
    assert of_joma.AT_REST.measure(seen) is None


# Scan and Snap

COMMON = [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]
PART = [[0.5, 0.4, 0.1], [0.5, 0.0, 0.5]]


def test_tokens_are_distinct_common_or_between():
    common, part = contexts(COMMON, [4, 7]), contexts(PART, [4, 7])
    assert of_scan_snap.overlaps(common).tolist() == [1, 0, 0] and of_scan_snap.between(common) == 0
    np.testing.assert_allclose(of_scan_snap.overlaps(part), [1, 0, 0.2])
    assert of_scan_snap.between(part) == pytest.approx(0.2)
    np.testing.assert_allclose(
        of_scan_snap.table(contexts([[2, 0], [0, 2], [1, 3]], [1, 1, 0])), [[0.25, 0.75], [0.5, 0.5]]
    )


def test_length_is_read_off_how_contexts_of_a_class_differ(key):
    assert of_scan_snap.inverse_length(contexts(COMMON, [0, 1])) == 0
    single = contexts(np.eye(2)[[0, 1, 0, 1]])  # one token each, whose P is ½
    assert of_scan_snap.inverse_length(single) == pytest.approx(1, rel=1e-12)
    drawn = scan_snap.distinct_and_common(4).contexts(4000, 11)(key)
    assert of_scan_snap.inverse_length(drawn) == pytest.approx(0.1, rel=0.02)


def test_classes_are_alike_by_their_products_and_frequencies():
    gram, even = jnp.asarray([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.2, 0.2, 1]]), jnp.ones(3) / 3
    assert of_scan_snap.unlike(gram, even) < 1e-15
    assert of_scan_snap.unlike(gram.at[0, 1].set(0.5).at[1, 0].set(0.5), even) == pytest.approx(0.2)
    assert of_scan_snap.unlike(gram, jnp.asarray([0.5, 0.25, 0.25])) == pytest.approx(0.5)
    seen = lambda x, query=None: Seen((None,), contexts(x, [0, 1], query))
    assert of_scan_snap.CLASSES_ALIKE.measure(seen(COMMON)) < 1e-15
    assert of_scan_snap.CLASSES_ALIKE.measure(seen(COMMON, [0, 1])) == 0.5  # half of the contexts have another query
    assert of_scan_snap.CLASSES_ALIKE.measure(seen(np.eye(2))) is None
    assert of_scan_snap.NO_COMMON.measure(seen(COMMON)) is None and of_scan_snap.NO_COMMON.measure(seen(np.eye(2))) == 0
    assert of_scan_snap.NO_COMMON.measure(seen([[0.8, 0.2], [0.0, 1.0]])) == pytest.approx(0.2 / 0.68**0.5)


# Reversal


def test_contexts_of_one_token_are_sentences():
    measure = lambda x: of_reversal.SENTENCE.measure(Seen((None,), contexts(x)))
    assert measure(np.eye(3)) == 0
    assert measure([[0.9, 0.1, 0], [0, 1, 0]]) == pytest.approx(0.1)
    assert measure(COMMON) is None


def test_tokens_are_coherent_by_their_cosines():
    model = lambda v: reversal.Bilinear(jnp.asarray(v, float))
    assert of_reversal.coherence(model([[2, 0], [0, 1]])) == 0
    assert of_reversal.coherence(model([[1, 0], [1, 1]])) == pytest.approx(0.5**0.5)
    assert of_reversal.coherence(model([[1, 0]])) == 0
    free = [of_reversal.FREE.measure(Seen((reversal.Bilinear(jnp.eye(2), symmetric=s),), None)) for s in (False, True)]
    assert free == [0, 1]


# Pairs

TABLE = np.add.outer(np.arange(3), np.arange(3)) % 3


def two_layer(a=1.0, b=1.0, c=1.0, activation=jnp.square):
    ones = np.ones((3, 2))
    return pairs.TwoLayer(a * ones, b * ones, c * ones, activation=activation)


def test_held_out_pairs_are_counted():
    used = np.ones((3, 3), bool)
    used[0] = False
    assert pair_networks.held_out(Seen((None,), pairs.pairs(TABLE))) == 0
    some = pairs.pairs(TABLE, used)
    assert pair_networks.held_out(Seen((None,), some)) == pytest.approx(1 / 3)
    padded = pairs.stacked([some, pairs.pairs(TABLE)])
    first = jax.tree.map(lambda x: x[0], padded)
    assert pair_networks.held_out(Seen((None,), first)) == pytest.approx(1 / 3)
    assert pair_networks.not_commuting(Seen((None,), some)) == 0
    assert pair_networks.not_commuting(Seen((None,), pairs.pairs(TABLE[[0, 2, 1]]))) is None


def test_balance_is_the_excess_of_the_norm():
    assert pair_networks.balance(two_layer()) == pytest.approx(0, abs=1e-15)
    assert pair_networks.balance(two_layer(c=8.0)) == pytest.approx((1 + 1 + 64) / (3 * 4) - 1)
    assert pair_networks.balance(two_layer(0.0, 0.0, 0.0)) == 0
    assert pair_networks.balance(two_layer(c=0.0)) == math.inf


def test_an_activation_is_square_or_off():
    seen = lambda activation: Seen((two_layer(activation=activation),), pairs.pairs(TABLE))
    assert pair_networks.not_square(seen(jnp.square)) == 0
    assert pair_networks.not_square(seen(lambda u: 1.5 * u**2)) == pytest.approx(0.5)


def test_a_gradient_is_along_the_labels_or_off_by_a_sine(key):
    data = pairs.pairs(TABLE)
    model = pairs.initial(3, 4, key=key)
    angle = lambda c: pair_networks.not_along(Seen((eqx.tree_at(lambda m: m.c, model, c),), data))
    y = np.eye(3)[data.label] - 1 / 3
    along = jnp.asarray(y.T @ np.asarray(features(model, data)))
    assert angle(1e-9 * along) < 1e-4
    assert angle(-1e-9 * along) == 1
    assert angle(0 * along) is None
    assert pair_networks.WIDE.measure(Seen((model,), data)) == 0.25


# Curves


def decoder(point):
    draw = scan_snap_map.uniforms(jax.random.key(point["seed"]), common=(), distinct=(2,))
    return scan_snap_map.orthogonal_decoder(point, draw["common"], jnp.linspace(0.5, 1.0, 2) + 0.1 * draw["distinct"])


MAPS = {
    "theorem_2": (joma_map, joma_map.one_node, "joma.erf_law", "joma: stationary gradient"),
    "linear_attention": (joma_map, joma_map.linear_attention, "joma.linear_attention", "joma: identity activation"),
    "decoder": (scan_snap_map, decoder, "scan_snap.decoder_law", "scan_snap: no common token"),
}


@pytest.mark.parametrize("entry", MAPS)
def test_curves_are_what_the_maps_measure(entry):
    """At a strength of 0.2, the median of 5 seeds."""
    module, theorem, claim, name = MAPS[entry]
    point = {name: jnp.asarray(x) for name, x in (dict(module.VALIDITY.defaults) | {"strength": 0.2}).items()}
    found = jax.jit(jax.vmap(lambda seed: theorem(point | {"seed": seed})[entry]))(jnp.arange(5))
    error, measured = (float(np.median(x)) for x in found)
    assert min(abs(x - measured) / measured + abs(y - error) / error for x, y in CURVES[name][claim]) < 0.01
