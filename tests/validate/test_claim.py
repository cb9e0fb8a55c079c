import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from traindyn.validate import (
    Erratum,
    Evidence,
    Row,
    Setting,
    Verdict,
    claim,
    heatmap,
    identity,
    limit,
    panel,
    statistic,
)

H = 0.1 * 2.0 ** -np.arange(5)
GOOD, BAD = identity(0.5, 1.0), identity(2.0, 1.0)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (0.9, "holds"),
        ([-0.2, 1.1], "refuted"),
        (math.inf, "refuted"),
        ([0.1, math.nan], "undecided"),
        (complex(math.inf, math.nan), "undecided"),
        ([complex(math.inf, 1), 0], "refuted"),
    ],
)
def test_identity(error, verdict):
    assert identity(np.asarray(error), 1.0).verdict == verdict


def test_an_infinite_error_is_refuted_by_an_infinite_bound_too():
    assert identity(math.inf, math.inf).verdict is Verdict.REFUTED
    assert identity(1e308, math.inf).verdict is Verdict.HOLDS


def test_a_row_whose_measured_number_is_nan_is_undecided():
    assert Row(math.nan, (0.0, 0.0), 1.0, (0.0, 1.0), "", "").verdict is Verdict.UNDECIDED


def test_limit_takes_the_order_and_its_uncertainty():
    assert limit(H, 2 * H, 1.0).verdict is Verdict.HOLDS
    assert limit(H, 2 * H**0.5, 1.0).verdict is Verdict.REFUTED
    assert limit(H, 2 * H**1.15, 1.0).verdict is Verdict.REFUTED
    noisy = H**1.08 * np.exp([0.1, -0.1, 0.1, -0.1, 0.1])
    assert limit(H, noisy, 1.0).verdict is Verdict.UNDECIDED
    assert limit(H, np.zeros(5), 1.0).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("points", [4, 5, 8])
def test_limit_has_an_interval_that_covers_95_percent(points):
    """The slope of errors with normal scatter: two standard errors would cover 82 % at 4 points, 86 % at 5."""
    rng, h = np.random.default_rng(points), 2.0 ** -np.arange(points)
    rows = [limit(h, h * np.exp(0.1 * rng.normal(size=points)), 1.0) for _ in range(2000)]
    covered = np.mean([row.interval[0] <= 1 <= row.interval[1] for row in rows])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard deviations of a proportion


def test_limit_needs_four_values():
    with pytest.raises(ValueError, match="at least four values"):
        limit(H[:3], H[:3], 1.0)


def test_statistic_holds_only_with_its_whole_interval():
    samples = np.array([0.9, 1.0, 1.1, 1.0])  # mean 1, Student's 95 % half width 3.182 · 0.0816/2 = 0.130
    assert statistic(samples, at_least=0.86).verdict is Verdict.HOLDS
    assert statistic(samples, at_least=0.88).verdict is Verdict.UNDECIDED
    assert statistic(samples, at_least=1.14).verdict is Verdict.REFUTED
    assert statistic(samples, at_most=1.14).verdict is Verdict.HOLDS


def test_statistic_of_a_quantile_ignores_outliers():
    samples = np.concatenate([np.linspace(1, 2, 30), [1e6]])
    row = statistic(samples, at_most=2.0, quantile=0.5)
    assert row.verdict is Verdict.HOLDS and row.measured == pytest.approx(np.median(samples))
    assert statistic(samples, at_most=2.0).verdict is not Verdict.HOLDS


@pytest.mark.parametrize(
    ("samples", "quantile", "side", "measured", "verdict"),
    [
        ([math.inf] * 200, 0.5, {"at_least": 0}, math.inf, "holds"),
        ([math.inf] * 200, 0.5, {"at_most": 9}, math.inf, "refuted"),
        ([1] * 25 + [math.inf] * 25, 0.5, {"at_most": 1e9}, 1, "undecided"),
        ([1] * 25 + [math.inf] * 25, 0.51, {"at_most": 1e9}, math.inf, "undecided"),
        ([-math.inf] * 25 + [1] * 25, 0.5, {"at_least": 0}, -math.inf, "undecided"),
    ],
)
def test_a_quantile_of_infinite_samples_is_one_of_them(samples, quantile, side, measured, verdict):
    row = statistic(samples, quantile=quantile, **side)
    assert (row.measured, row.verdict) == (measured, verdict)


@pytest.mark.parametrize("bad", [dict(), dict(at_least=0.0, at_most=1.0)])
def test_statistic_needs_one_side(bad):
    with pytest.raises(ValueError, match="exactly one"):
        statistic(np.ones(4), **bad)


def test_statistic_needs_three_samples():
    with pytest.raises(ValueError, match="at least three"):
        statistic(np.ones(2), at_least=0.0)


def test_evidence_holds_if_all_rows_do_and_names_the_first_that_does_not():
    assert Evidence({"a": GOOD, "b": GOOD}, {}).verdict is Verdict.HOLDS
    evidence = Evidence({"a": GOOD, "b": BAD}, {})
    assert evidence.verdict is Verdict.REFUTED and evidence.decisive is BAD
    assert Evidence({"a": GOOD, "b": identity(math.nan, 1.0)}, {}).verdict is Verdict.UNDECIDED
    assert Evidence({}, {}).verdict is Verdict.UNDECIDED


def test_a_control_is_rejected_only_if_every_row_is_refuted():
    assert Evidence({"a": GOOD}, {"c": BAD}).control_rejected
    assert not Evidence({"a": GOOD}, {"c": BAD, "d": GOOD}).control_rejected
    assert not Evidence({"a": GOOD}, {"c": identity(math.nan, 1.0)}).control_rejected
    assert not Evidence({"a": GOOD}, {}).control_rejected, "a claim without a control proves nothing"


def test_panel_keeps_curves_with_their_roles_and_axes():
    data = panel(
        "title", ("t", np.arange(2.0)), y="v", observed={"sgd": np.ones((2, 3))}, predicted={"law": np.ones(2)}
    )
    assert data["predicted: law"].dims == ("t",) and data["observed: sgd"].shape == (2, 3)
    assert {curve.attrs["role"] for curve in data.data_vars.values()} == {"observed", "predicted"}
    with pytest.raises(ValueError, match=r"must have shape \(2,\) or"):
        panel("title", ("t", np.arange(2.0)), observed={"sgd": np.ones(3)})


def test_a_generator_of_pictures_is_looked_at_once(as_users):
    panels = (panel(f"{i}", ("x", [0, 1]), observed={"o": [1, 2]}) for i in range(2))
    evidence = Evidence({}, {}, panels, errata=map(lambda where: Erratum(where, "", "", 0.0, 1.0), "ab"))
    assert [data.attrs["title"] for data in evidence.panels] == ["0", "1"]
    assert [erratum.where for erratum in evidence.errata] == ["a", "b"]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float8_e5m2, jnp.float8_e4m3fn])
def test_narrow_curves_become_what_files_know(dtype):
    data = panel("t", ("x", jnp.arange(2.0).astype(dtype)), observed={"o": jnp.ones(2, dtype)})
    assert data["observed: o"].dtype == data["x"].dtype == np.float32


MASKED = np.ma.array([1, 1e9, 1, 1], mask=[0, 1, 0, 0])
CURVE = {"o": [1, 2]}
CELLS = (("x", [0, 1]), ("y", ["a", "b"]), [[1, 2], [3, 4]])


@pytest.mark.parametrize("name", ["joma", "../x.y", "x.y.z", 3])
def test_claim_checks_its_name(name, as_users):
    with pytest.raises(ValueError, match=r"name must read paper\.claim"):
        claim("", source="", assumptions=(), name=name)(lambda setting: None)


def test_one_assumption_is_one():
    made = claim("", source="", assumptions="gradient flow", name="a.b")(abs)
    assert made.assumptions == ("gradient flow",)


@pytest.mark.parametrize("make", [np.float32, np.float64, np.int64, jnp.float32])
def test_numbers_of_any_kind_become_floats(make):
    rows = [identity([0.0], make(1)), limit(H, H, make(1)), statistic([1, 2, 3], at_least=make(0))]
    assert all(type(row.bound) is float and type(row.measured) is float for row in rows)


def test_a_nan_is_undecided_in_every_kind():
    nan = [1.0, math.nan, 1.0, 1.0]
    rows = [identity(nan, 9.0), limit(H[:4], nan, 1.0), statistic(nan, at_least=0.0)]
    rows.append(statistic([*nan, 1.0, 1.0], at_least=0.0, quantile=0.5))
    assert [row.verdict for row in rows] == ["undecided"] * 4


def test_rows_are_of_the_numbers_given_in_float32_too():
    with jax.enable_x64(False):
        assert identity(np.array([2**40]), 1.0).measured == 2**40
        assert identity(np.array([1e300]), 1.0).measured == 1e300
        assert statistic(np.array([2**40, 2**40 + 1, 2**40 + 2]), at_least=0).measured == 2**40 + 1
        assert panel("t", ("x", np.array([2**40])), observed={"o": np.array([1 / 3])})["observed: o"] == 1 / 3


def test_the_smallest_integer_has_an_absolute_value():
    assert identity(np.array([np.iinfo(np.int64).min]), 1e30).measured == 2.0**63


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: identity([], 1.0), "error must have at least one entry"),
        (lambda: identity(0.0, math.nan), "at_most must be at least 0, got nan"),
        (lambda: limit(-H, H, 1.0), "parameter must be above 0"),
        (lambda: limit(H, H, 1.0, -0.1), "tolerance must be above 0"),
        (lambda: statistic([1, 2, 3], at_least=math.nan), "at_least must be not NaN"),
        (lambda: Evidence({"r": 1.0}, {}), "rows must map names to rows made by the checks .*, got 1.0"),
        (lambda: Evidence({}, {}, errata=[{"where": "x"}]), "errata must be a sequence of Erratum"),
        (lambda: Evidence({}, {}, panel("t", ("x", [0]), observed={"o": [1]})), "panels must be a sequence of Dataset"),
        (lambda: panel("t", ("x", [0, 1])), "must have at least one curve, got none"),
        (
            lambda: panel("t", ("x", [0, 1]), observed={"o": np.array([None, 1], object)}),
            "must be real numbers, got object",
        ),
        (lambda: Erratum("eq. 1", "p", "c", 0.5, 0.5), "error_corrected must be at least 0 and below error_printed"),
        (lambda: Erratum("eq. 1", "p", "c", "small", 0.5), "error_corrected must be real numbers"),
        (lambda: Evidence({}, {}, None), "panels must be a sequence of Dataset, got None"),
        (lambda: Evidence({}, {}, errata=3), "errata must be a sequence of Erratum, got 3"),
        (lambda: Evidence({}, {}, [xr.Dataset({"a": 1})]), r"panels must be made by panel or heatmap, got .*'a'"),
        (lambda: Evidence({}, {}, [xr.Dataset()]), "panels must be made by panel or heatmap"),
        (lambda: Row(99.0, (0.0, 0.0), 1.0, (0.0, 1.0), "", ""), r"measured must lie in its interval \[0.0, 0.0\]"),
        (lambda: identity(MASKED, 2), "error must have no mask"),
        (lambda: statistic(MASKED, at_least=0), "samples must have no mask"),
        (lambda: panel("t", ("x", MASKED[:2]), observed=CURVE), "x must have no mask"),
        (lambda: heatmap("t", ("x", np.ma.array(["a", "b"], mask=[0, 1])), *CELLS[1:]), "x must have no mask"),
        (lambda: panel("t", ("x", [0, 1]), observed={1: [1, 2]}), "labels of observed must be a string"),
        (
            lambda: panel("t", ("x", [0, 1]), observed={"a\0b": [1, 2]}),
            "labels of observed must hold no null character",
        ),
        (lambda: panel("t", ("x\0", [0, 1]), observed=CURVE), "label of x must hold no null character"),
        (lambda: panel("t", ("\udc80", [0, 1]), observed=CURVE), "label of x must be a string without lone surrogates"),
        (lambda: panel("t", ("x", [0, 1]), observed={"\udc80": [1, 2]}), "labels of observed must be a string without"),
        (lambda: panel("t", ("x", [0, 1]), y=3, observed=CURVE), "y must be a string"),
        (lambda: panel("t", ("x", [0, 1]), observed={"o": np.ones((2, 0))}), r"must have shape .*, got \(2, 0\)"),
        (lambda: panel("t", ("observed o line", [0, 1]), observed={"o": np.ones((2, 2))}), "x must have another label"),
        (lambda: panel("t", ("observed: o", [0, 1]), observed=CURVE), "x must have another label"),
        (lambda: panel("t", ("x", [0, 1]), observed=CURVE, marks=[1, 2]), "marks must map words to places"),
        (lambda: panel("t", ("x", [0, 1]), observed=CURVE, marks={"w": "abc"}), r"marks\['w'\] must be real numbers"),
        (lambda: panel("t", ("x", [0, 1]), observed=CURVE, marks={3: 1}), "words of marks must be a string"),
        (lambda: heatmap("t", ("map: c", [0, 1]), *CELLS[1:], z_label="c"), "other labels than the map"),
        (lambda: heatmap("t", *CELLS, z_label=3), "z_label must be a string"),
        (lambda: heatmap("t", ("x", ["a", "\udc80"]), *CELLS[1:]), "words of x must be a string without lone"),
        (lambda: heatmap("t", ("x", [[1], [2, 3]]), *CELLS[1:]), "x must be a number or an array of numbers"),
        (lambda: heatmap("t", *CELLS, limits="ab"), "limits must be real numbers"),
        (lambda: heatmap("t", *CELLS, limits=(0, 1, 2)), "limits must be two finite numbers in order, got"),
        (lambda: heatmap("t", *CELLS, limits=(1, 0)), "limits must be two finite numbers in order, got"),
        (lambda: heatmap("t", *CELLS, limits=(0, 1), log="z"), "limits must be .* above 0 for a logarithmic scale"),
        (lambda: Setting("huge"), "scale must be one of 'smoke', 'laptop', 'paper', got 'huge'"),
        (lambda: Setting(seed=2**70), "seed must be an integer of at least 0"),
        (lambda: Setting(corpus_name="\udcff"), "corpus_name must be a string without lone surrogates"),
    ],
)
def test_bad_evidence_is_refused_where_it_is_made(make, message, as_users):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.usefixtures("as_users")
def test_a_seed_of_numpy_is_pythons_own_in_the_record():
    assert type(Setting(seed=np.int64(3)).seed) is int


def test_setting_draws_the_same_for_the_same_seed():
    assert Setting(seed=3).rng.random() == Setting(seed=3).rng.random() != Setting(seed=4).rng.random()
    assert Setting("paper").pick(smoke=1, laptop=2, paper=3) == 3
    assert Setting().bound(1e-10, 1e-4) == 1e-10  # the tests run in float64


def test_heatmap_keeps_its_axes_words_and_limits():
    data = heatmap("m", ("key", ["a", "b", "c"]), ("η", [0.1, 1.0]), np.arange(6.0).reshape(2, 3), limits=(0.0, 9.0))
    (cells,) = data.data_vars.values()
    assert cells.dims == ("η", "key") and cells.sel({"key": "c", "η": 1.0}) == 5
    assert cells.attrs["role"] == "map" and data.attrs["limits"] == (0.0, 9.0)
