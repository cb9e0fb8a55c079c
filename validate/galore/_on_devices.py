"""A program of its own, for the number of devices is fixed when JAX starts: descends on one and on all devices, and
prints what it saw as JSON. Arguments: seed, dtype, rows, columns, and 1 for all cases."""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from traindyn.nets.galore import exact_svd, galore


def main(seed: int, dtype: str, shape: tuple[int, int], every: bool) -> None:
    jax.config.update("jax_enable_x64", dtype == "float64")
    rng = np.random.default_rng(seed)
    grads = jnp.asarray(rng.standard_normal((4, *shape)), dtype)

    def descend(tx, put):
        params = put(jnp.zeros(shape, dtype))
        state = start = tx.init(params)

        @jax.jit
        def step(g, state, params):
            updates, state = tx.update(g, state, params)
            return optax.apply_updates(params, updates), state

        compiled, trail = step.lower(put(grads[0]), state, params).compile(), []
        for g in grads:
            params, state = compiled(put(g), state, params)
            trail.append(np.asarray(params))
        return np.stack(trail), start, state, compiled.as_text()

    def gathered(text):
        """The largest array that is gathered, in entries."""
        shapes = [re.search(r"\[([0-9,]*)\]", line) for line in text.splitlines() if " all-gather(" in line]
        return max((math.prod(int(x) for x in s.group(1).split(",")) for s in shapes if s and s.group(1)), default=0)

    options = {"subspace iteration": {}, "exact_svd": {"projector": exact_svd()}}
    rows, columns = PartitionSpec("x", None), PartitionSpec(None, "x")
    more = [("Auto", columns), ("Explicit", rows)] if every else []
    cases = [(*case, "subspace iteration") for case in (("Auto", rows), ("Explicit", columns), *more)]
    results, alone = [], {}
    for kind, spec, name in [*cases, ("Auto", rows, "exact_svd")]:
        tx = galore(0.1, 8, 2, **options[name])
        if name not in alone:
            alone[name] = descend(tx, lambda x: x)[0]
        mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(getattr(AxisType, kind),))
        with jax.set_mesh(mesh):
            place = NamedSharding(mesh, spec)
            trail, start, end, text = descend(tx, lambda x, place=place: jax.device_put(x, place))
            same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), start, end)
        error, moved = np.abs(trail - alone[name]).max((1, 2)), sum(not x for x in jax.tree.leaves(same))
        results.append([f"{kind}, {spec}", name, error.tolist(), gathered(text), moved])
    print(json.dumps(results))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], (int(sys.argv[3]), int(sys.argv[4])), sys.argv[5] == "1")
