"""`diagnose` names the regimes of trained networks of all four kinds, and the one assumption that others break."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import traindyn
from traindyn.nets import joma, pair_optimisers, pairs, reversal, scan_snap, train
from traindyn.nets.grokking import features
from traindyn.validate import Assumption, Network, at_most, claim, diagnose, evidence
from traindyn.validate.assumptions import Seen
from traindyn.validate.diagnosis import Diagnosis
from traindyn.validate.scan_snap.assumptions import speed

record = lambda model: model


def times(run):
    at = lambda i: jax.tree.map(lambda x: x[i] if eqx.is_array(x) else x, run.observed)
    return tuple(map(at, range(len(run.steps))))


# JoMA: 8 tokens, 8 classes, 8 nodes


@functools.cache
def trained_block(steps=100, rate=0.1, queries=1, alike=False, embeddings=None, **options):
    data_key, key, other = jax.random.split(jax.random.key(1), 3)
    data = joma.class_tokens("random", 8, 8, key=data_key)._replace(query=jnp.arange(8) % queries)
    options = {"attention": "exp", "queries": queries, "key": key} | options
    if alike:
        data = data._replace(x=jnp.broadcast_to(data.x[:1], data.x.shape), label=0 * data.label)
    if embeddings == "correlated":
        u = jax.random.normal(other, (9, 9)) + jnp.ones((9, 1))
        options["embeddings"] = u / jnp.linalg.norm(u, axis=0, keepdims=True)
    run = train(
        joma.JomaBlock(8, 8, **options),
        joma.cross_entropy,
        data,
        optax.sgd(rate),
        steps,
        observe=record,
        every=steps // 4,
    )
    return run, data


def quickly_attending():
    """One sample, so that all are alike, and a gradient that stays: b̄ alone moves."""
    model = joma.JomaBlock(8, 8, attention="softmax", init_scale=0.3, key=jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (1, 8))
    data = x, jax.random.normal(jax.random.key(2), (1, 8))
    return train(model, joma.stationary_loss, data, optax.sgd(0.1), 20, observe=record, every=5), data


BLOCKS = {
    "exponential attention, stationary gradient": ((), {}),
    "two queries": (("one query",), {"queries": 2}),
    "correlated embeddings": (("orthonormal embeddings",), {"embeddings": "correlated", "rate": 0.01}),
    "trained for long": (("stationary gradient",), {"steps": 1000, "rate": 0.5}),
    "relu": (("identity activation",), {"activation": "relu", "rate": 0.01}),
    "softmax, samples alike": ((), {"attention": "softmax", "alike": True, "rate": 0.004}),
    "softmax, random samples": (("samples alike",), {"attention": "softmax"}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_joma_block_breaks_what_it_was_made_to_break(name):
    broken, options = BLOCKS[name]
    found = diagnose(*trained_block(**options))
    assert found.broken == broken and not found.unmeasured, found


def test_a_block_whose_attention_moves_has_no_constant_b():
    found = diagnose(*quickly_attending())
    assert found.broken == ("constant b̄",), found
    assert found.regime == "softmax attention, stationary gradient, moving b̄"


def test_theorems_of_a_block_are_in_reach_until_its_gradient_moves():
    early, late = diagnose(*trained_block()), diagnose(*trained_block(steps=1000, rate=0.5))
    assert early.regime == "exponential attention, stationary gradient"
    assert late.regime == "exponential attention, moving gradient"
    assert set(early.in_reach) == {
        f"joma.{x}" for x in ("exp_invariant", "gd_invariant", "query_sum", "many_nodes", "low_rank")
    }
    assert set(late.in_reach) == set(early.in_reach) - {"joma.many_nodes", "joma.low_rank"}


# Scan and Snap: 3 classes, one common and two distinct tokens


UNEVEN = ((0, 0, 1, 1), (1, 2, 3, 4), (0.05, 1.55, 0.8, 0.8))  # weights of the tokens of two of the classes


@functools.cache
def scan(eta_z=0.1, change=None, again=(0, 1, 2), spread=None, preconditioned=False):
    classes = scan_snap.distinct_and_common(3, distinct=[0.6, 1.0], common=[0.6])
    data, x = classes.expected(), 2.2 * classes.table  # the weights
    if change is not None:
        x = x.at[jnp.asarray(change[0]), jnp.asarray(change[1])].set(jnp.asarray(change[2]))
    data = data._replace(x=x / jnp.sum(x, axis=1, keepdims=True))
    data = jax.tree.map(lambda x: x[jnp.asarray(again)], data)
    if spread is not None:  # two contexts a class, whose mean is the class
        moved = spread * jnp.where(data.x > 0, -0.5, 0.0).at[:, 0].set(1.0)
        twice = lambda x: jnp.tile(x, 2)
        data = scan_snap.Contexts(
            jnp.concatenate([data.x + moved, data.x - moved]), twice(data.label), twice(data.query)
        )
    optimiser = scan_snap.sgd(1.0, eta_z=eta_z)
    if preconditioned:
        optimiser = optax.chain(scan_snap.precondition(data), optimiser)
    network = classes.network(outputs=3)
    return train(network, scan_snap.cross_entropy, data, optimiser, 60, observe=record, every=3), data


SCANS = {
    "as assumed": ((), {}),
    "equal rates": (("slow attention",), {"eta_z": 1.0}),
    "a distinct token in another class": (("tokens distinct or common",), {"change": ((0,), (4,), (0.06,))}),
    "a class twice as frequent": (("classes alike",), {"again": (0, 0, 1, 2)}),
    "short sequences": (("long sequences",), {"spread": 0.15}),
}


@pytest.mark.parametrize("name", SCANS)
def test_scan_and_snap_breaks_what_it_was_made_to_break(name):
    broken, options = SCANS[name]
    found = diagnose(*scan(**options))
    assert found.broken == broken and not found.unmeasured, found
    assert found.regime == ("fast attention" if name == "equal rates" else "slow attention")


@pytest.mark.parametrize("eta_z", [0.1, 0.7])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_learning_rates_are_read_off_the_run(eta_z, preconditioned):
    run, data = scan(eta_z, change=UNEVEN, preconditioned=preconditioned)  # alike, both tiers are one
    found = speed(Seen(times(run), data))
    assert found.ratio == pytest.approx(eta_z, rel=0.05)
    assert (found.preconditioned > found.plain) == preconditioned and max(found[1:]) > 0.999


def test_only_a_preconditioned_decoder_is_tier_a():
    plain, turned = (diagnose(*scan(change=UNEVEN, preconditioned=one)) for one in (False, True))
    of = lambda found: {one.claim.name for one in found.theorems} & {"scan_snap.law", "scan_snap.lemma_4"}
    assert (of(plain), of(turned)) == ({"scan_snap.law"}, {"scan_snap.lemma_4"})


# Reversal


def sentences(beside=0.0, eta_z=0.1):
    data = reversal.chain_of_thought(4, 0, vocabulary=20)
    batch = reversal.contexts(data.train, 20)
    x = (1 - beside) * batch.x + beside * jnp.eye(20, dtype=batch.x.dtype)[19:]
    batch = batch._replace(x=x)
    run = train(
        scan_snap.YZTransformer(20, 1, 20),
        scan_snap.cross_entropy,
        batch,
        scan_snap.sgd(0.5, eta_z=eta_z),
        60,
        observe=record,
        every=4,
    )
    return run, batch


def test_sentences_are_of_one_token_before_their_relation():
    right, wrong = diagnose(*sentences()), diagnose(*sentences(0.35))
    assert right.broken == () and right.regime == "sentences of three tokens, slow attention"
    assert {"reversal.one_layer", "reversal.chain_of_thought"} <= set(right.in_reach)
    assert wrong.broken == ("sentences of three tokens",), wrong


@functools.cache
def bilinear(width=400, symmetric=False, rate=0.5):
    vectors = jax.random.normal(jax.random.key(0), (12, width)) / width**0.5
    data = reversal.reversal(4, 3, vocabulary=12).train[:, ::2]
    run = train(
        reversal.Bilinear(vectors, symmetric=symmetric),
        reversal.pair_loss,
        data,
        optax.sgd(rate),
        50,
        observe=record,
        every=25,
    )
    return run, data


def test_a_bilinear_model_is_wide_and_free():
    right, narrow, tied = (diagnose(*bilinear(**x)) for x in ({}, {"width": 16}, {"symmetric": True}))
    assert right.broken == () and right.regime == "nearly orthogonal tokens, reversal curse"
    assert set(right.in_reach) == {"reversal.bilinear", "reversal.bilinear_flow"}
    assert narrow.broken == ("orthogonal tokens",) and narrow.regime == "overlapping tokens, reversal curse"
    assert tied.broken == ("free Θ",) and tied.regime == "nearly orthogonal tokens, no reversal curse"
    run, data = bilinear()
    moved = eqx.tree_at(lambda m: m.vectors, run.model, replace_fn=lambda v: 1.2 * v)
    found = diagnose([run.model, moved], data)
    assert found.broken == ("fixed vectors",) and found.in_reach == {}


# Pairs of Z_5


TABLE = np.add.outer(np.arange(5), np.arange(5)) % 5


def lazy(nodes=200, used=None, activation=jnp.square, output=1.0, random=False, seed=0):
    """Random features of nodes of norm one, and an output layer along its first gradient, of outputs near zero."""
    data, rng = pairs.pairs(TABLE, used), np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 5, nodes))
    a, b = (x / np.linalg.norm(x, axis=0) for x in (a, b))
    model = pairs.TwoLayer(a, b, np.zeros((5, nodes)), scale=1e-3, activation=activation)
    label = np.eye(5)[data.label]
    c = rng.normal(size=(5, nodes)) if random else (label - label.mean(axis=0)).T @ np.asarray(features(model, data))
    c = output * c * np.sqrt(nodes) / np.linalg.norm(c)
    return eqx.tree_at(lambda m: m.c, model, jnp.asarray(c)), data


def used(fraction):
    return pairs.split(5, fraction=fraction, seed=0)


LAZY = {
    "lazy": ((), {}),
    "held out": (("all pairs",), {"used": used(0.6)}),
    "cubes": (("square activation",), {"activation": lambda u: 1.3 * u**2}),
    "unbalanced": (("balanced nodes",), {"output": 0.2}),
    "narrow": (("width",), {"nodes": 40}),
    "random outputs": (("gradient along the labels",), {"random": True}),
}


@pytest.mark.parametrize("name", LAZY)
def test_a_network_on_pairs_breaks_what_it_was_made_to_break(name):
    broken, options = LAZY[name]
    model, data = lazy(**options)
    found = diagnose([model, model], data)
    assert found.broken == broken and not found.unmeasured, found


def test_features_that_move_are_not_held_fixed():
    (first, data), (second, _) = lazy(), lazy(seed=1)
    found = diagnose([first, second], data)
    assert found.broken == ("fixed features",) and found.regime == "feature learning, independent features"
    assert diagnose([first, first], data).regime == "lazy, independent features"


@functools.cache
def grokked():
    data, start = pairs.pairs(TABLE), pairs.initial(5, 160, key=jax.random.key(0))
    optimiser = pair_optimisers.coupled_adam(0.01, 2e-3)
    return train(
        start, pairs.training_loss, data, optimiser, 1200, trainable=start.trainable(), observe=record, every=400
    ), data


def test_a_network_that_has_learned_a_group_is_balanced_and_no_longer_lazy():
    run, data = grokked()
    assert pairs.accuracy(run.model, data) == 1
    found = diagnose(run, data)
    assert found.broken == ("fixed features",) and found.regime == "feature learning, independent features", found
    assert {"composing.norms", "composing.loss_decomposition", "grokking.maxima"} <= set(found.in_reach)
    assert not {"grokking.ridge_gradient", "composing.infinite_width"} & set(found.in_reach)


# What it returns, and what it refuses


def test_one_model_shows_no_change_and_is_never_said_to_fulfil_it():
    run, data = trained_block()
    found = diagnose(run.model, data)
    assert found.unmeasured == ("stationary gradient",) and found.broken == ()
    assert "joma.many_nodes" not in found.in_reach and "joma.exp_invariant" in found.in_reach
    many = next(one for one in found.theorems if one.claim.name == "joma.many_nodes")
    assert not many.in_reach and many.unmeasured == ("stationary gradient",)
    assert "not measured: needs a run" in repr(found) and found.regime == "exponential attention"
    unrecorded = run._replace(observed=None)
    assert repr(diagnose(unrecorded, data)) == repr(found)
    assert repr(diagnose(times(run), data)) == repr(diagnose(run, data)) != repr(found)


def test_it_prints_both_tables():
    found = diagnose(*trained_block())
    assert isinstance(found, Diagnosis) and traindyn.diagnose is diagnose
    lines = repr(found).splitlines()
    assert lines[0] == "a JoMA block: exponential attention, stationary gradient"
    assert any(line.split()[:3] == ["one", "query", "0"] and line.endswith("yes") for line in lines)
    assert any(
        line.startswith("joma.many_nodes") and "in reach" in line and "stationary gradient" in line for line in lines
    )
    html = found._repr_html_()
    assert html.count("<table>") == html.count("</table>") == 2 and "<td>joma.many_nodes</td>" in html
    assert html.count("<tr>") == 2 + len(found.measurements) + len(found.theorems)


class Line(eqx.Module):
    slope: jax.Array


LINE = Network(Line, lambda model, data: jnp.sum(model.slope * data), "a line")
FLAT = Assumption(
    "the line is flat", name="flat", network=LINE, measure=lambda seen: float(seen.last.slope), regime=("flat", "steep")
)


@claim("Flat lines stay.", source="me", assumptions=("a line", FLAT), name="lines.flat", paper="Lines")
def flat(setting):
    return evidence(at_most("a", 1.0, 2.0, {"w": 3.0}))


def test_claims_of_your_own_bring_networks_of_your_own():
    slope = lambda x: Line(jnp.asarray(x))
    found = diagnose(slope(0.05), jnp.ones(2), claims=[flat])
    assert found.regime == "flat" and found.in_reach == {"lines.flat": pytest.approx(0.05)}
    assert found.theorems[0].conditions == ("a line",)
    assert diagnose(slope(0.5), jnp.ones(2), claims=[flat]).broken == ("flat",)
    nan = diagnose(slope(jnp.nan), jnp.ones(2), claims=[flat])
    assert nan.broken == ("flat",) and nan.in_reach == {}


def test_what_does_not_fit_is_refused(as_users):
    run, data = trained_block()
    contexts = scan_snap.distinct_and_common(3).expected()
    lanes = jax.vmap(lambda rate: train(run.model, joma.cross_entropy, data, optax.sgd(rate), 1))(jnp.ones(2))
    bad = {
        "trained must be a model of a class that claims speak of .*JomaBlock": (jnp.ones(3), data),
        "trained must be a model of a class": (eqx.nn.MLP(2, 2, 2, 2, key=jax.random.key(0)), data),
        "trained must be a model, or models of one class": ([run.model, jnp.ones(3)], data),
        "trained must be a model, or models of one": ([], data),
        "trained must be models of one shape": ([run.model, joma.JomaBlock(7, 8, key=jax.random.key(0))], data),
        "trained must be one run": (lanes, data),
        "data must fit a JoMA block, got": (run, contexts),
        "data must fit a JoMA block.*pair": (run, None),
        "data must fit a YZTransformer": (scan_snap.YZTransformer(3, 1, 3), data),
        "data must fit a two-layer network": (pairs.initial(5, 3, key=jax.random.key(0)), data),
        "data must fit a bilinear model": (reversal.Bilinear(jnp.eye(3)), np.ones((2, 2))),
        "data must be fixed data, got a sampler": (run, joma.ClassMixture(jnp.ones((2, 8)))),
    }
    for message, (trained, data_of) in bad.items():
        with pytest.raises(ValueError, match=message):
            diagnose(trained, data_of)
    for claims in ([], [3], "joma", 3):
        with pytest.raises(ValueError, match="claims must be"):
            diagnose(run, data, claims=claims)
