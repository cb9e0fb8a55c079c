"""Calls of claims, their evidence, and `verify` that work, and what they rightly accept."""

import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from traindyn import validate
from traindyn.nets.joma import JomaBlock, cross_entropy

from .kinds import Call

PARAMETER = jnp.array([0.8, 0.4, 0.2, 0.1])
PAIR = [1.0, 2.0]
MEASURED = {"observed": "*", "law": "*"}  # arrays that a check has made
ROW = validate.identity(0.5, 1.0)
BIBTEX = "@misc{me, author = {Me}, title = {Mine}, year = {2026}}"
AXIS = ("t", [0.0, 1.0])
SCALES = ("smoke", "laptop", "paper")
HEADER = {"paper": "A paper", "statement": "s", "source": "eq. 1", "assumptions": ("a",), "tex": "x = y"}


def check(setting: validate.Setting) -> validate.Evidence:
    return validate.Evidence({"row": ROW}, {"wrong": validate.identity(2.0, 1.0)})


CLAIM = validate.claim(name="x.y", **HEADER)(check)
# Any text is a text.
TEXTS = {name: "text" for name in ("paper", "statement", "source", "tex")}


def decorate(**header):
    return validate.claim(**header)(check)


def joined(remarks):
    return validate.evidence(validate.at_most("a", 1.0, 2.0, {"w": 3.0}), remarks=remarks)


def decay(t, y, args):
    return -y


def half_square(w, factor):
    return (1.0 if factor is None else factor) * jnp.sum(w**2) / 2


NETWORK = validate.Network(type(PARAMETER), lambda model, data: jnp.sum(model * data), "a row of numbers")
MEASURE = {"name": "small", "network": NETWORK, "measure": lambda seen: float(jnp.max(jnp.abs(seen.last)))}
ASSUMPTION = validate.Assumption("small numbers", **MEASURE)


def diagnosed(trained, data, claims):
    return validate.diagnose(trained, data, claims=claims).in_reach


FOLDER = Path(tempfile.mkdtemp())
(RESULT,) = validate.verify([CLAIM], validate.Setting("smoke"), out=FOLDER)
CALLS = {
    "validate.compare": Call(
        validate.compare,
        {"flow": decay, "y0": PARAMETER, "model": PARAMETER, "loss": half_square, "data": jnp.asarray(1.0)}
        | {"learning_rates": [0.1, 0.05, 0.025], "time": 0.4, "seeds": 1, "points": 2, "within": 0.02}
        | {"wrong": {}, "size_order": 1.0, "trainable": True, "rtol": 1e-8, "atol": 1e-10},
        accepts={"data": "nothing"},
        bad={"time": [0.0, -1.0], "within": [0.0], "points": [0, 1000], "seeds": [0, 2], "rtol": [0.0, 1.0]}
        | {"learning_rates": [[0.1, 0.05], [0.1, 0.1, 0.05], [0.1, 0.05, 0.0]], "wrong": [{"w": 3}, [decay]]}
        | {"y0": [jnp.zeros(4), jnp.ones(3)], "model": [jnp.ones(3)], "sizes": [{}, {1: (1.0, 1.0)}]},
    ),
    "validate.Claim": Call(
        validate.Claim,
        {"name": "x.y", **HEADER, "check": check},
        accepts={**TEXTS, "assumptions": "text"},  # one text is one assumption
        bad={"name": ["x", "../x.y", "x.y.z", "x.1"], "statement": ["\udc80"], "flow": ["Flow", 3]},
    ),
    "validate.claim": Call(
        decorate,
        {"name": "x.y", **HEADER},
        accepts={**TEXTS, "assumptions": "text", "name": "nothing", "paper": ("text", "nothing")},  # the module's
        bad={"name": ["x", "../x.y"], "flow": ["Flow"]},
    ),
    "validate.Network": Call(
        validate.Network,
        {"model": JomaBlock, "loss": cross_entropy, "noun": "a JoMA block"},
        accepts={"noun": "text"},
        bad={"model": [3], "noun": ["\udc80"]},
    ),
    "validate.Assumption": Call(
        validate.Assumption,
        {"sentence": "small numbers", **MEASURE, "over_time": False, "regime": ("small", "large")},
        accepts={"sentence": "text", "name": "text"},
        bad={"curves": [{"a.b": ((0.0, 0.0),)}, {"a.b": ((0.0, 0.2), (1.0, 0.1))}], "regime": ["ab", ("a",)]},
        positional=("sentence",),
    ),
    "validate.Assumption.said": Call(ASSUMPTION.said, {"sentence": "few"}, accepts={"sentence": "text"}),
    # Any text may be a claim: one without a curve gets the worst error.
    "validate.Assumption.error": Call(
        ASSUMPTION.error, {"measured": 0.1, "claim": "x.y"}, accepts={"claim": "text"}, bad={"claim": ["\udc80"]}
    ),
    # A model may be NaN: its assumption is not fulfilled, and no theorem in reach.
    "validate.diagnose": Call(
        diagnosed,
        {
            "trained": PARAMETER,
            "data": PARAMETER,
            "claims": [validate.claim(name="x.y", **HEADER | {"assumptions": ASSUMPTION})(check)],
        },
        accepts={
            "trained": ("NaN", "complex", "integers"),
            "data": ("NaN", "complex", "integers"),
            "claims": "nothing",
        },
        bad={"claims": [[], [3], "joma"], "trained": [[], [PARAMETER, PARAMETER[:2]]]},
    ),
    "validate.Evidence": Call(
        validate.Evidence,
        {"rows": {"row": ROW}, "control": {"wrong": ROW}, "remarks": ("a remark",)},
        accepts={"remarks": "text"},  # one text is one remark
        bad={"rows": [{"row": 1.0}, {1: ROW}, ROW]},
    ),
    "validate.Row": Call(
        validate.Row,
        {"measured": 1.0, "interval": (0.5, 1.5), "bound": 2.0, "allowed": (0.0, 2.0)}
        | {"measured_text": "1", "bound_text": "≤ 2"},
        accepts={"measured": "NaN", "bound": "NaN", "measured_text": "text", "bound_text": "text"},
        bad={"interval": [(1.5, 0.5), (1.0,), 1.0, "01", ("0", "1")], "allowed": [(2.0, 0.0), (0.0, 1.0, 2.0)]},
    ),
    "validate.Erratum": Call(
        validate.Erratum,
        {"where": "eq. 1", "printed": "p", "corrected": "c", "error_corrected": 1e-9, "error_printed": 0.5},
        accepts={"where": "text", "printed": "text", "corrected": "text"},
        bad={"where": ["\udc80"]},
    ),
    "validate.Setting": Call(
        validate.Setting,
        {"scale": "smoke", "seed": 0, "corpus": "text", "corpus_name": "name"},
        accepts={"corpus": "text", "corpus_name": "text"},
        bad={"seed": [2**70]},
    ),
    "validate.Paper": Call(
        validate.Paper,
        {"name": "Mine", "citation": "Me, 2026", "bibtex": BIBTEX, "predicts": "growth"},
        accepts={"name": "text", "citation": "text", "predicts": "text"},
        bad={"name": ["", " "], "citation": [""], "bibtex": ["", "@misc{x}", BIBTEX.replace("year", "when")]},
    ),
    "validate.claims_in": Call(
        validate.claims_in, {"module": "traindyn.validate.reversal"}, bad={"module": ["", "json.nothing"]}
    ),
    "validate.built_in": Call(lambda paper: validate.built_in(paper), {"paper": "reversal"}),
    # Whatever a claim likes to choose from.
    "validate.Setting.pick": Call(
        validate.Setting("smoke").pick, {"smoke": 1, "laptop": 2, "paper": 3}, accepts=dict.fromkeys(SCALES, "*")
    ),
    "validate.Setting.bound": Call(
        validate.Setting().bound, {"float64": 1e-9, "float32": 1e-4}, accepts={"float64": "*", "float32": "*"}
    ),
    # What is measured may be NaN: the row is undecided. A bound may not. Any law that broadcasts fits.
    "validate.agrees": Call(
        validate.agrees,
        {"name": "v", "x": AXIS, "observed": PAIR, "law": PAIR, "wrong": {"w": [3.0, 4.0]}, "within": 0.1}
        | {"measure": validate.relative, "y": "v", "log": "y"},
        accepts={"name": "text", "x": "nothing", "observed": ("NaN", "complex"), "law": ("NaN", "complex", "shape")}
        | {"y": "text"},
        bad={"wrong": [{"w": [1.0] * 3}, {1: PAIR}, PAIR], "log": ["z"], "within": [-1.0]},
    ),
    "validate.vanishes": Call(
        validate.vanishes,
        {"name": "v", "residual": PAIR, "wrong": {"w": [30.0, 4.0]}, "within": 3.0, "x": AXIS},
        accepts={"name": "text", "x": "nothing", "residual": ("NaN", "complex")},
        bad={"wrong": [{1: PAIR}, PAIR], "within": [-1.0], "residual": [jnp.zeros(0)]},
    ),
    "validate.converges": Call(
        validate.converges,
        {"name": "v", "x": ("h", PARAMETER), "observed": 1 + PARAMETER, "law": 1.0, "wrong": {"w": 2.0}}
        | {"order": 1.0, "tolerance": 0.1, "measure": validate.relative},
        accepts={"name": "text", "observed": ("NaN", "complex"), "law": ("NaN", "complex", "shape")},
        bad={"wrong": [{"w": [1.0] * 3}, PAIR], "x": [AXIS, PARAMETER]},
    ),
    "validate.scales": Call(
        validate.scales,
        {"name": "v", "x": ("h", PARAMETER), "values": PARAMETER, "wrong": {"w": (PARAMETER**2).tolist()}}
        | {"order": 1.0, "tolerance": 0.1, "y": "v"},
        accepts={"name": "text", "values": "NaN", "y": "text"},
        bad={"wrong": [{"w": [1.0] * 3}, PAIR], "x": [AXIS, PARAMETER]},
    ),
    **{
        f"validate.{fn.__name__}": Call(
            fn,
            {"name": "v", "values": PAIR, "bound": 1.0, "wrong": {"w": [3.0, 4.0]}, "x": AXIS, "y": "v", "log": "y"},
            accepts={"name": "text", "x": "nothing", "values": "NaN", "y": "text"},
            bad={"wrong": [{1: PAIR}, PAIR], "values": [jnp.zeros(0)], "bound": [float("inf")], "log": ["z"]},
        )
        for fn in (validate.at_most, validate.at_least)
    },
    "validate.mean": Call(
        validate.mean,
        {"name": "v", "samples": PARAMETER, "wrong": {"w": PARAMETER.tolist()}, "at_least": 0.0},
        accepts={"name": "text", "samples": "NaN"},
        bad={"samples": [jnp.ones(2)], "at_least": [float("nan")], "wrong": [PAIR]},
    ),
    "validate.quantile": Call(
        validate.quantile,
        {"name": "v", "samples": PARAMETER, "q": 0.5, "wrong": {"w": PARAMETER.tolist()}, "at_least": 0.0},
        accepts={"name": "text", "samples": "NaN"},
        bad={"samples": [jnp.ones(2)], "q": [0.0, 1.0], "wrong": [PAIR]},
    ),
    "validate.count": Call(
        validate.count,
        {"name": "v", "hits": np.array([True, False, True]), "wrong": {"w": np.zeros(3, bool)}, "at_least": 0.1},
        accepts={"name": "text"},
        bad={"hits": [[0.5, 1.0]], "at_least": [-0.1, 1.1], "wrong": [PAIR]},
    ),
    "validate.evidence": Call(joined, {"remarks": ("a remark",)}, accepts={"remarks": "text"}),
    "validate.rounding": Call(validate.rounding, {"n": 8.0}, bad={"n": [0.0, -1.0]}),
    "validate.solver": Call(validate.solver, {"k": 8.0}, bad={"k": [0.0, -1.0]}),
    **{
        f"validate.{fn.__name__}": Call(fn, {"observed": np.ones((2, 3)), "law": np.ones((2, 3))}, accepts=MEASURED)
        for fn in (validate.scaled, validate.relative, validate.absolute, validate.norms)
    },
    # What is measured may be NaN: the row is undecided. A bound may not.
    "validate.identity": Call(
        validate.identity,
        {"error": jnp.array([0.1, -0.2]), "at_most": 1.0},
        accepts={"error": ("NaN", "complex")},  # the absolute value counts
        bad={"error": [jnp.zeros(0)], "at_most": [-1.0, float("nan")]},
    ),
    "validate.limit": Call(
        validate.limit,
        {"parameter": PARAMETER, "error": PARAMETER, "order": 1.0, "tolerance": 0.1},
        accepts={"error": "NaN"},
    ),
    "validate.statistic": Call(
        validate.statistic,
        {"samples": PARAMETER, "at_least": 0.0, "quantile": 0.5},
        accepts={"samples": "NaN"},
        bad={"samples": [jnp.ones(2)], "at_least": [float("nan")], "quantile": [0.0, 1.0, -1.0]},
    ),
    "validate.panel": Call(
        validate.panel,
        {"title": "t", "x": AXIS, "observed": {"o": [1.0, 2.0]}, "log": "x"},
        accepts={"title": "text"},
        bad={"observed": [{"o": [1.0]}, {"o": ["a", "b"]}], "x": [("t", []), [0.0, 1.0]], "log": ["z"]},
    ),
    "validate.heatmap": Call(
        validate.heatmap,
        {"title": "t", "x": AXIS, "y": ("key", ["a", "b"]), "z": [[1.0, 2.0], [3.0, 4.0]], "log": "z"},
        accepts={"title": "text"},
        bad={"z": [[[1.0]], [["a", "b"], ["c", "d"]]], "y": [AXIS], "log": ["x"]},
    ),
    # Records that verify has made.
    "validate.difference": Call(
        validate.difference, {"before": [RESULT], "after": [RESULT]}, accepts={"before": "*", "after": "*"}
    ),
    "validate.read": Call(
        lambda folder: len(validate.read(folder)), {"folder": str(FOLDER)}, bad={"folder": ["", "nowhere"]}
    ),
    "validate.verify": Call(
        validate.verify,
        {"claims": [CLAIM], "setting": validate.Setting("smoke"), "jobs": 1},
        bad={"claims": [[CLAIM, CLAIM], [check]], "jobs": [0]},
    ),
}
