"""Calls of claims, their evidence, `verify` and `read_corpus` that work, and what they rightly accept."""

from pathlib import Path

import jax.numpy as jnp

from traindyn import validate

from .kinds import Call

PARAMETER = jnp.array([0.8, 0.4, 0.2, 0.1])
ROW = validate.identity(0.5, 1.0)
AXIS = ("t", [0.0, 1.0])
SCALES = ("smoke", "laptop", "paper")
HEADER = {"paper": "A paper", "kind": "identity", "statement": "s", "source": "eq. 1", "assumptions": ("a",)}


def check(setting: validate.Setting) -> validate.Evidence:
    return validate.Evidence({"row": ROW}, {"wrong": validate.identity(2.0, 1.0)})


CLAIM = validate.claim("x.y", **HEADER)(check)
# Any text is a text.
TEXTS = {name: "text" for name in ("paper", "statement", "source", "control")}


def decorate(name, **header):
    return validate.claim(name, **header)(check)


CALLS = {
    "validate.Claim": Call(
        validate.Claim,
        {"name": "x.y", **HEADER, "control": "c", "check": check},
        accepts={**TEXTS, "assumptions": "text"},  # one text is one assumption
        bad={"name": ["x", "../x.y", "x.y.z", "x.1"], "kind": ["proof"], "statement": ["\udc80"]},
    ),
    "validate.claim": Call(
        decorate,
        {"name": "x.y", **HEADER, "control": "c"},
        accepts={**TEXTS, "assumptions": "text"},
        bad={"name": ["x", "../x.y"], "kind": ["proof"]},
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
        dict.fromkeys(("where", "printed", "corrected", "error_corrected", "error_printed"), "text"),
        accepts=dict.fromkeys(("where", "printed", "corrected", "error_corrected", "error_printed"), "text"),
        bad={"where": ["\udc80"]},
    ),
    "validate.Setting": Call(
        validate.Setting,
        {"scale": "smoke", "seed": 0, "corpus": "text", "corpus_name": "name"},
        accepts={"corpus": "text", "corpus_name": "text"},
        bad={"seed": [2**70]},
    ),
    # Whatever a claim likes to choose from.
    "validate.Setting.pick": Call(
        validate.Setting("smoke").pick, {"smoke": 1, "laptop": 2, "paper": 3}, accepts=dict.fromkeys(SCALES, "*")
    ),
    "validate.Setting.bound": Call(
        validate.Setting().bound, {"float64": 1e-9, "float32": 1e-4}, accepts={"float64": "*", "float32": "*"}
    ),
    "validate.read_corpus": Call(
        validate.read_corpus,
        {"path": str(Path(__file__))},
        bad={"path": [str(Path(__file__).parent), b"x", "a\0b", ""]},
    ),
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
    "validate.verify": Call(
        validate.verify,
        {"claims": [CLAIM], "setting": validate.Setting("smoke"), "jobs": 1},
        bad={"claims": [[CLAIM, CLAIM], [check]], "jobs": [0]},
    ),
}
