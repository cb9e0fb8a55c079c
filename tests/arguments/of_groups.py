"""Calls of `traindyn.dynamics.groups` and `representations` that work, and what they rightly accept."""

import jax.numpy as jnp
import numpy as np

from traindyn.dynamics import groups, representations

from .kinds import Call

Z2, S3 = groups.cyclic(2), groups.symmetric(3)
TABLE = np.array(Z2.rows)
TWO = representations.irreps(S3)[2]

CALLS = {
    "dynamics.groups.Group": Call(groups.Group, {"name": "Z2", "rows": TABLE}, accepts={"name": "text"}),  # any name
    "dynamics.groups.Abelian": Call(groups.Abelian, {"factors": (2, 3)}, bad={"factors": [(2, 1), (2.5,), (), "23"]}),
    "dynamics.groups.from_table": Call(
        groups.from_table,
        {"table": TABLE, "name": "Z2"},
        accepts={"name": "text"},  # any name
        bad={"table": [[[0, 1], [1]], [[0, 1], [1, 1]], [["0", "1"], ["1", "0"]], TABLE.astype(bool)]},
    ),
    "dynamics.groups.dihedral": Call(groups.dihedral, {"n": 3}),
    "dynamics.groups.dicyclic": Call(groups.dicyclic, {"n": 2}),
    # −2 = 3 and −1 − 4 = −5 = 0 modulo 5: a negative r is one that acts, or refused for its power
    "dynamics.groups.metacyclic": Call(groups.metacyclic, {"n": 5, "m": 2, "r": 4}, bad={"r": [2, 0]}),
    "dynamics.groups.direct": Call(groups.direct, {"first": Z2, "second": S3}),
    "dynamics.groups.symmetric": Call(groups.symmetric, {"n": 3}, bad={"n": [0, 7]}),
    "dynamics.groups.alternating": Call(groups.alternating, {"n": 3}, bad={"n": [2, 7]}),
    # `by` is a word for the message
    "dynamics.groups.require_abelian": Call(
        groups.require_abelian, {"group": Z2, "by": "f6"}, accepts={"by": "text"}, bad={"group": [S3]}
    ),
    "dynamics.composing.cyclic": Call(groups.cyclic, {"d": 3}, bad={"d": [1, "7", True]}),
    "dynamics.composing.product": Call(
        groups.product, {"first": 2, "second": 3}, bad={"second": [1, 2.7]}, positional=("first", "second")
    ),
    "dynamics.representations.Irrep": Call(
        representations.Irrep,
        {"group": S3, "matrices": TWO.matrices, "multiplicity": 2, "kind": "real"},
        bad={"matrices": [2 * TWO.matrices]},
    ),
    "dynamics.representations.quotients": Call(representations.quotients, {"group": S3}),
    "dynamics.representations.regular": Call(representations.regular, {"group": S3}),
    "dynamics.representations.irreps": Call(representations.irreps, {"group": Z2, "over": "reals"}),
    "dynamics.representations.fourier": Call(
        representations.fourier,
        {"f": jnp.arange(6.0), "irrep": TWO},
        # The transform is linear. Leaves that are exchanged pass by the constructor of an irrep, which checks them.
        accepts={"f": "complex", "irrep": ("leaf 0 complex", "leaf 0 longer")},
        bad={"f": [jnp.ones(5)]},
    ),
}
