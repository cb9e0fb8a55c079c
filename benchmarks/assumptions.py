"""How far theorems are off where an assumption measures something: `python benchmarks/assumptions.py` writes
`validate/curves.py`, from which `traindyn.diagnose` has its tolerances and expected errors.

By assumption and claim, pairs (measured, relative error), medians over 5 seeds. Most are read off the validity maps at
their default learning rate, where each map says what the assumption measures on its own networks. The others are
measured here.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from traindyn.dynamics import solve
from traindyn.dynamics.joma import predicted_logits
from traindyn.dynamics.reversal import Bilinear, OneLayer
from traindyn.nets import reversal, train
from traindyn.nets.joma import JomaBlock, class_tokens, cross_entropy
from traindyn.nets.scan_snap import YZTransformer
from traindyn.validate.composing.flows import at_start
from traindyn.validate.joma import validity as joma
from traindyn.validate.joma.assumptions import off_orthonormal
from traindyn.validate.scan_snap import validity as scan_snap

SEEDS = 5
Points = list[tuple[float, float]]
ENTRIES = {  # by assumption, the entries of the validity map that give it up
    "one query": ("joma", "theorem_1_linear"),
    "stationary gradient": ("joma", "theorem_2", "many_nodes"),
    "constant b̄": ("joma", "theorem_1_b_bar"),
    "samples alike": ("joma", "theorem_1_softmax"),
    "identity activation": ("joma", "linear_attention"),
    "attention at rest": ("joma", "theorem_3"),
    "long sequences": ("scan_snap", "finite_length"),
    "tokens distinct or common": ("scan_snap", "theorem_3"),
    "no common token": ("scan_snap", "decoder"),
    "classes alike": ("scan_snap", "symmetric_decoder"),
    "slow attention": ("scan_snap", "lemma_4", "theorem_4", "law"),
}


def rising(measured: np.ndarray, error: np.ndarray) -> Points:
    """Medians over the first axis, in order; an error never falls, and a number comes once."""
    x, y = np.median(measured, axis=0), np.median(error, axis=0)
    kept = np.isfinite(x) & np.isfinite(y)
    x, y = x[kept], y[kept]
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.maximum.accumulate(y[order])
    new = np.append(True, np.diff(x) > 1e-9)
    return [(float(f"{a:.4g}"), float(f"{b:.3g}")) for a, b in zip(x[new], y[new], strict=True)]


def _up_to_half(measured: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Until the number falls again: a token half as frequent elsewhere is farthest from both distinct and common."""
    rises = np.append(True, np.cumprod(np.diff(np.median(measured, axis=0)) >= 0).astype(bool))
    return measured[:, rises], error[:, rises]


def of_map(module, seeds: int = SEEDS, strengths: np.ndarray | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By entry of a validity map: what is measured, and the error, each `(seeds, strengths)`."""
    subject = module.VALIDITY
    strengths = np.asarray(subject.axes["strength"] if strengths is None else strengths)

    def lane(seed, strength):
        return module.beside_assumptions(dict(subject.defaults) | {"seed": seed, "strength": strength})

    found = jax.jit(jax.vmap(jax.vmap(lane, (None, 0)), (0, None)))(jnp.arange(seeds), jnp.asarray(strengths))
    return {name: (np.asarray(measured), np.asarray(error)) for name, (error, measured) in found.items()}


def embeddings(seed: int, noise: float) -> tuple[float, float]:
    """Theorem 1 under exponential attention, embeddings being orthonormal but for `noise`."""
    keys = jax.random.split(jax.random.key(seed), 3)
    data = class_tokens("random", 8, 8, key=keys[0])
    u = jnp.eye(9) + noise * jax.random.normal(keys[1], (9, 9)) / 3
    options = {"classes": 8, "attention": "exp", "embeddings": u, "init_scale": 0.1, "key": keys[2]}
    start = JomaBlock(8, 8, **options)
    end = train(start, cross_entropy, data, optax.sgd(0.1), 500).model
    law = predicted_logits("exp", end.v, v0=start.v, z0=start.z[0])
    return off_orthonormal(start), float(jnp.linalg.norm(end.z[0] - law) / jnp.linalg.norm(law - start.z[0]))


def second_token(seed: int, share: float) -> tuple[float, float]:
    """The closed forms of 1 − p on sentences whose first entity has this share less than all of the context, another
    token the rest, and of p = 1/M on their reversals: the larger relative error at the end of training."""
    data = reversal.reversal(6, 3, vocabulary=20)
    rate, steps, row = 0.5, 500, OneLayer(20, len(data.train), 1.0)

    def contexts(sentences):
        batch = reversal.contexts(sentences, 20)
        return batch._replace(x=(1 - share) * batch.x + share * jnp.eye(20, dtype=batch.x.dtype)[19:])

    def learned(model, batch):
        p = jax.nn.softmax(jax.vmap(model)(batch.x, batch.query), axis=1)
        return p[jnp.arange(len(batch.label)), batch.label]

    end = train(YZTransformer(20, 2, 20), cross_entropy, contexts(data.train), optax.sgd(rate), steps).model
    law = float(row.seen(row.exact(jnp.zeros(1), jnp.asarray([rate * steps])))[0, 0])
    seen = (1 - learned(end, contexts(data.train))) / (1 - law) - 1
    unseen = 20 * learned(end, contexts(data.test)) - 1
    return share, float(jnp.max(jnp.abs(jnp.concatenate([seen, unseen]))))


def overlapping(seed: int, width: int) -> tuple[float, float]:
    """Along the flow to t = 300 N, how far the loss of the untrained reversals has fallen, relative: by nothing on
    orthogonal tokens. Random vectors of this width."""
    tokens, rng = 40, np.random.default_rng(seed)
    data = reversal.reversal(10, 9, vocabulary=tokens)
    v = rng.standard_normal((tokens, width)) / np.sqrt(width)
    flow = Bilinear(jnp.asarray(v @ v.T), data.train[:, ::2])
    ts = jnp.asarray([0.0, 300.0]) * len(data.train)
    loss = [float(flow.loss(c, data.test[:, ::2])) for c in solve(flow, jnp.zeros((tokens, tokens)), ts).ys]
    unit = v / np.linalg.norm(v, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(tokens, dtype=bool)]
    return float(np.sqrt(np.mean(cosines**2))), abs(loss[1] / loss[0] - 1)


def narrow_start(seed: int, width: int) -> tuple[float, float]:
    """Theorem 6 of composing at the start: the rms of ṙ_kkk over its law − 1."""
    return 1 / width, float(at_start(np.random.default_rng(seed), np.array([width]))[0, 2])


def apart(fn: Callable, values: list) -> Points:
    found = np.array([[fn(seed, value) for value in values] for seed in range(SEEDS)])
    return rising(found[:, :, 0], found[:, :, 1])


def curves() -> Mapping[str, Mapping[str, Points]]:
    modules = {"joma": joma, "scan_snap": scan_snap}
    maps = {name: of_map(module) for name, module in modules.items()}
    found: dict[str, dict[str, Points]] = {}
    for assumption, (paper, *entries) in ENTRIES.items():
        covered = modules[paper].CLAIMS_COVERED
        points = {entry: rising(*_up_to_half(*maps[paper][entry])) for entry in entries}
        found[f"{paper}: {assumption}"] = {claim: points[entry] for entry in entries for claim in covered[entry]}
    noise = [0.0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7]
    found["joma: orthonormal embeddings"] = {"joma.exp_invariant": apart(embeddings, noise)}
    shares = [0.0, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4]
    found["reversal: sentences of three tokens"] = {"reversal.one_layer": apart(second_token, shares)}
    found["reversal: orthogonal tokens"] = {"reversal.bilinear": apart(overlapping, [6400, 1600, 400, 100, 25, 8])}
    found["pairs: width"] = {"composing.infinite_width": apart(narrow_start, [4096, 1024, 256, 64])}
    return found


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    lines = [
        '"""How far theorems are off where an assumption measures something. Written by `benchmarks/assumptions.py`,'
    ]
    lines += ["which says how it was measured: by assumption and claim, pairs (measured, relative error).", '"""', ""]
    lines += ["CURVES: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {"]
    for assumption, claims in curves().items():
        lines += [f'    "{assumption}": {{', *(f'        "{c}": {tuple(p)},' for c, p in claims.items()), "    },"]
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "validate/curves.py"
    path.write_text("\n".join([*lines, "}", ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
