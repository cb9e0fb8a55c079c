"""Checks: what holds, what is refuted, what is undecided, in numbers that were worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from traindyn.validate import (
    Erratum,
    absolute,
    agrees,
    at_least,
    at_most,
    converges,
    count,
    evidence,
    mean,
    norms,
    panel,
    quantile,
    relative,
    rounding,
    scaled,
    scales,
    solver,
    vanishes,
)

T = np.arange(4.0)
LAW = np.array([1.0, 2.0, 4.0, 8.0])
H = 0.1 * 2.0 ** -np.arange(5)
NOISE = np.array([0.9, 1.0, 1.1, 1.0])  # mean 1, Student's 95 % half width 3.182 · 0.0816/2 = 0.130
HALF = np.arange(20) < 10  # Clopper and Pearson: 0.272 to 0.728
INF, NAN = math.inf, math.nan


def rows(check):
    """What each row says, and each row of the control."""
    return [*(str(row.verdict) for row in check.rows.values())], [*(str(row.verdict) for row in check.control.values())]


OFF = LAW * [1, 1, 1, 1.1]  # a tenth of the largest entry, and of its own
LOW = LAW * [0.5, 1, 1, 1]  # half of its own entry, a sixteenth of the largest


@pytest.mark.parametrize(
    ("check", "held", "controlled"),
    [
        (agrees("a", None, OFF, LAW, {"w": 2 * LAW}, within=0.11), ["holds"], ["refuted"]),
        (agrees("a", None, OFF, LAW, {"w": LAW}, within=0.09), ["refuted"], ["refuted"]),
        (agrees("a", None, LOW, LAW, within=0.1), ["holds"], []),
        (agrees("a", None, LOW, LAW, within=0.49, measure=relative), ["refuted"], []),
        (agrees("a", None, LOW, LAW, within=0.51, measure=relative), ["holds"], []),
        (agrees("a", None, LOW, LAW, within=0.49, measure=absolute), ["refuted"], []),
        (agrees("a", None, LAW + 1j, LAW, within=0.5, measure=absolute), ["refuted"], []),
        (agrees("a", None, LAW, {"l": LAW, "m": OFF}, {"w": 3}, within=0.01), ["holds", "refuted"], ["refuted"]),
        (agrees("a", None, [1, NAN], [1.0, 1.0], {"w": [2.0, NAN]}, within=1.0), ["undecided"], ["undecided"]),
        (agrees("a", None, [1, INF], [1.0, 1.0], within=1.0), ["refuted"], []),
        (agrees("a", None, [1, INF], [1.0, INF], within=1.0), ["undecided"], []),
        (agrees("a", None, [0, 0], [0.0, 0.0], within=1.0), ["undecided"], []),
        (vanishes("a", [-5.0, 0.0], {"w": [0.1]}, within=1.0), ["refuted"], ["holds"]),
        (vanishes("a", [0.5], {"w": [-2.0]}, within=1.0), ["holds"], ["refuted"]),
        (vanishes("a", {"l": 0.5, "m": 2}, within=1.0), ["holds", "refuted"], []),
        (vanishes("a", [1j], {"w": 1e-9j}, within=1e-3), ["refuted"], ["holds"]),
        (converges("a", ("h", H), 1 + H, 1.0, {"w": 1.3}), ["holds"], ["refuted"]),
        (converges("a", ("h", H), 1 + H**2, 1.0, {"w": 1 + H**2 - H}, order=2), ["holds"], ["refuted"]),
        (converges("a", ("h", H), np.stack([1 - H, 1 + 0 * H], 1), [1.0, 1.0]), ["holds"], []),
        (converges("a", ("h", H), np.ones(5), 1.0), ["undecided"], []),
        (scales("a", ("h", H), 3 * H**0.5, {"w": H}, order=0.5), ["holds"], ["refuted"]),
        (scales("a", ("h", H), 3 * H**0.8, order=1, tolerance=0.3), ["holds"], []),
        (scales("a", ("h", H), 3 * H**0.8, order=1), ["refuted"], []),
        (scales("a", ("h", H), {"l": H, "m": H**2}, order=1), ["holds", "refuted"], []),
        (at_most("a", [-5.0, 1.0], 2.0, {"w": [0.0, 2.1]}), ["holds"], ["refuted"]),
        (at_most("a", [3.0, NAN], 2.0, {"w": NAN}), ["undecided"], ["undecided"]),
        (at_most("a", -INF, 2.0, {"w": INF}), ["undecided"], ["refuted"]),
        (at_least("a", [5.0, 2.0], 2.0, {"w": [9.0, 1.9]}), ["holds"], ["refuted"]),
        (at_least("a", [1, 5], 2.0), ["refuted"], []),
        (at_least("a", INF, 2.0, {"w": -INF}), ["undecided"], ["refuted"]),
        (mean("a", NOISE, {"w": NOISE - 0.3}, at_least=0.86), ["holds"], ["refuted"]),
        (mean("a", NOISE, {"w": NOISE - 0.1}, at_least=0.88), ["undecided"], ["undecided"]),
        (mean("a", NOISE, {"w": NOISE + 0.3}, at_most=1.14), ["holds"], ["refuted"]),
        (mean("a", [1, 1, NAN, 1], at_most=2), ["undecided"], []),
        (quantile("a", [*range(20), 1e9], 0.5, {"w": 30 + T.repeat(5)}, at_most=16), ["holds"], ["refuted"]),
        (count("a", HALF, {"w": np.zeros(20, bool)}, at_least=0.27), ["holds"], ["refuted"]),
        (count("a", HALF, {"w": np.ones(20, bool)}, at_most=0.73), ["holds"], ["refuted"]),
        (count("a", HALF, at_most=0.72), ["undecided"], []),
        (count("a", HALF, at_least=0.74), ["refuted"], []),
        (count("a", np.ones(20, bool), at_least=0.83), ["holds"], []),  # 0.025^(1/20) = 0.8316
        (count("a", np.ones(20, bool), at_least=0.84), ["undecided"], []),
    ],
)
def test_what_each_check_says(check, held, controlled):
    assert rows(check) == (held, controlled)


def test_rows_say_what_they_are_and_by_what_they_are_decided():
    checks = [
        (agrees("e", None, LAW, LAW, {"v/2": 2 * LAW}, within=0.1), "identity", "0", "≤ 0.1"),
        (agrees("e", None, LAW, 2 * LAW, {"v/2": LAW}, within=0.1), "identity", "0.5", "≤ 0.1"),
        (vanishes("e", -0.25, {"v/2": 1}, within=0.5), "identity", "0.25", "≤ 0.5"),
        (converges("e", ("h", H), 1 + H, 1.0, {"v/2": 2}), "limit", "order 1.000 ± 0.000", "order 1 ± 0.1"),
        (scales("e", ("h", H), H, {"v/2": H**2}, order=1), "limit", "order 1.000 ± 0.000", "order 1 ± 0.1"),
        (at_most("e", [-3, 1], 2, {"v/2": 3}), "bound", "1", "≤ 2"),
        (at_least("e", [-3, 1], 2, {"v/2": 3}), "bound", "-3", "≥ 2"),
        (mean("e", NOISE, {"v/2": 2 * NOISE}, at_most=1.5), "statistic", "1 [0.87, 1.13]", "≤ 1.5"),
        (count("e", HALF, {"v/2": HALF}, at_most=0.8), "statistic", "10/20 [0.272, 0.728]", "≤ 0.8"),
    ]
    for check, kind, measured, bound in checks:
        (name,), (wrong,) = check.rows, check.control
        row = check.rows[name]
        assert name.startswith("e") and wrong == f"{name}: v/2"
        assert (row.kind, row.measured_text, row.bound_text) == (kind, measured, bound)
        assert check.control[wrong].bound_text == bound, "one bound for both"


def test_norms_are_taken_over_all_but_the_first_axis():
    law = np.array([[3.0, 4.0], [6.0, 8.0]])
    np.testing.assert_allclose(norms(law + np.array([[0, 0.5], [0, 0]]), law), [0.1, 0])
    np.testing.assert_allclose(norms(np.array([2.0, -2.0]), np.array([1.0, -1.0])), [1, 1])
    np.testing.assert_allclose(scaled(law, law / 2), [[0.375, 0.5], [0.75, 1]])


def test_pictures_show_law_wrong_law_and_what_was_seen():
    (data,) = agrees("v", ("t", T), OFF, LAW, {"printed": 2 * LAW}, within=1, y="v/v₀", log="y").panels
    assert data.attrs == {"title": "v", "x": "t", "y": "v/v₀", "log": "y", "marks": {}}
    np.testing.assert_array_equal(data["observed: observed"], OFF)
    np.testing.assert_array_equal(data["predicted: theory"], LAW)
    np.testing.assert_array_equal(data["control: printed"], 2 * LAW)
    (data,) = converges("v", ("h", H), 1 + 2 * H, 1.0, {"printed": 1.5}).panels
    np.testing.assert_allclose(data["observed: observed"], 2 * H)
    np.testing.assert_allclose(data["predicted: order 1"], 2 * H)
    np.testing.assert_allclose(data["control: printed"], np.abs(2 * H - 0.5) / 1.5)
    assert data.attrs["log"] == "xy"
    (data,) = at_least("v", LAW, 1.0, {"w": -LAW[::-1]}, x=("t", T)).panels
    np.testing.assert_array_equal(data["predicted: at least 1"], np.ones(4))
    (data,) = vanishes("v", -LAW, {"w": LAW}, within=9, x=("t", T)).panels
    np.testing.assert_array_equal(data["observed: residual"], LAW)
    many = np.ones((4, 2, 3))
    (data,) = agrees("v", ("t", T), many, many, within=1).panels
    assert data["observed: observed"].shape == (4, 6)
    assert not agrees("v", None, OFF, LAW, within=1).panels and not at_most("v", 1, 2).panels


def test_tolerances_are_in_units_of_the_precision():
    assert rounding(2) == 2 * 2.0**-52 and solver(3) == pytest.approx(3e-10)
    with jax.enable_x64(False):
        assert rounding(2) == 2 * 2.0**-23 and solver(3) == pytest.approx(3e-5)


def test_evidence_joins_checks_in_their_order():
    picture = panel("more", ("t", T), observed={"o": T})
    erratum = Erratum("eq. 1", "printed", "corrected", 1e-9, 0.5)
    a = agrees("a", ("t", T), LAW, LAW, {"w": OFF}, within=0.01)
    joined = evidence(a, at_most("b", 1, 2), panels=[picture], remarks=["said"], errata=[erratum])
    assert [*joined.rows] == ["a", "b"] and [*joined.control] == ["a: w"]
    assert [data.attrs["title"] for data in joined.panels] == ["a", "more"]
    assert joined.remarks == ("said",) and joined.errata == (erratum,)
    assert joined.verdict == "holds" and joined.control_rejected
    assert evidence(joined, at_least("c", 1, 2)).verdict == "refuted"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: evidence(at_most("a", 1, 2)), "a check must have a wrong law: a claim without a control"),
        (lambda: evidence(), "a check must have a law"),
        (lambda: evidence(at_most("a", 1, 2, {"w": 3}), at_least("a", 1, 0)), "names of their own, got two of 'a'"),
        (lambda: evidence({"a": 1}), r"parts must be checks, such as agrees\(…\)"),
        (lambda: agrees("a", None, T, LAW[:3], within=1), r"law must fit observed of shape \(4,\), got \(3,\)"),
        (lambda: agrees("a", None, T, LAW, {"w": LAW[:3]}, within=1), "wrong w must fit observed"),
        (lambda: agrees("a", None, T, LAW, LAW, within=1), "wrong must map labels to predictions, got"),
        (lambda: agrees("a", None, T, LAW, within=-1), "within must be at least 0"),
        (lambda: agrees("a", None, T, LAW, within=NAN), "within must be"),
        (lambda: agrees("a", None, T, "law", within=1), "law must be numbers"),
        (lambda: agrees("a", [0, 1], T, LAW, within=1), "x must be a label and values"),
        (lambda: agrees("a", None, T, LAW, within=1, measure="norm"), "measure must be"),
        (lambda: agrees(3, None, T, LAW, within=1), "name must be a string"),
        (lambda: converges("a", ("h", H[:3]), H[:3], 0.0), "at least four values"),
        (lambda: converges("a", ("h", H), H[:4], 0.0), r"observed must have shape \(5, …\), one entry a h, got \(4,\)"),
        (lambda: at_most("a", [], 1), "values must have at least one entry"),
        (lambda: at_most("a", 1, INF), "bound must be finite"),
        (lambda: at_most("a", 1, 2, [3]), "wrong must map labels to values"),
        (lambda: mean("a", [1, 2], at_most=3), "at least three samples"),
        (lambda: mean("a", [1, 2, 3]), "exactly one of at_least and at_most"),
        (lambda: count("a", [0.5, 1.0], at_most=0.5), "hits must be"),
        (lambda: count("a", HALF, at_most=1.5), "at_most must be"),
        (lambda: rounding(0), "n must be above 0"),
        (lambda: solver(NAN), "k must be above 0"),
    ],
)
def test_bad_checks_are_refused(make, message, as_users):
    with pytest.raises(ValueError, match=message):
        make()


IMPLIED = {
    "the negative": (at_least, [1.0, 2.0], 0.5, {"w": [-1.0, -2.0]}),
    "the inverse": (at_most, [0.3, 0.4], 0.5, {"w": [1 / 0.3, 2.5]}),
    "the complement": (at_least, 0.9, 0.5, {"w": 1 - 0.9}),
}


@pytest.mark.parametrize("word", IMPLIED)
def test_a_control_that_the_row_implies_is_no_control(word):
    check, *arguments = IMPLIED[word]
    with pytest.raises(ValueError, match=f"a: w is {word} of what must hold"):
        check("a", *arguments)
    with pytest.raises(ValueError, match="a: w is the complement"):
        count("a", HALF, {"w": ~HALF}, at_least=0.1)


@pytest.mark.parametrize(
    "check",
    [
        lambda right, wrong: agrees("a", None, right, 0.0, {"w": right - wrong}, within=1, measure=absolute),
        lambda right, wrong: vanishes("a", right, {"w": wrong}, within=1),
        lambda right, wrong: at_most("a", right, 1, {"w": wrong}),
        lambda right, wrong: at_least("a", right, -1, {"w": wrong}),
        lambda right, wrong: mean("a", right, {"w": wrong}, at_most=1),
        lambda right, wrong: quantile("a", right, 0.5, {"w": wrong}, at_most=1),
        lambda right, wrong: count("a", right < 2, {"w": wrong < 2}, at_least=0.2),
    ],
)
def test_no_check_implies_its_control(check):
    """On random data on which the row holds, the control may hold too, and may be refuted."""
    rng = np.random.default_rng(0)
    right = rng.uniform(-0.9, 0.9, 30)
    same, other = check(right, right[::-1]), check(right, np.ones(30))
    assert same.verdict == other.verdict == "holds"
    assert not same.control_rejected
    far = check(right, right + 5) if not other.control_rejected else other
    far = check(right, right - 5) if not far.control_rejected else far
    assert far.control_rejected


def test_narrow_and_traced_numbers_are_taken_as_they_are():
    found = agrees("a", ("t", T), jnp.asarray(LAW, jnp.bfloat16), LAW, {"w": 2}, within=0.01)
    assert found.verdict == "holds"
    with pytest.raises(jax.errors.TracerArrayConversionError):
        jax.jit(lambda x: at_most("a", x, 1.0))(1.0)
