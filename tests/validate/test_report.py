import io

import numpy as np
import pytest

from traindyn.validate import heatmap, panel, report

END = [1.0, 1e9, -1.7e308, 1.7e308]
PICTURES = {
    "curve": lambda: panel("t", ("x", np.arange(4)), observed={"o": END}),
    "logarithmic curve": lambda: panel("t", ("x", np.arange(4)), predicted={"o": np.stack([END, END], 1)}, log="y"),
    "axis": lambda: panel("t", ("x", END), observed={"o": np.arange(4)}, marks={"here": 1.7e308, "nowhere": np.nan}),
    "small integers": lambda: panel("t", ("x", np.arange(4)), observed={"o": np.array([-128, 0, 1, 127], np.int8)}),
    "half precision": lambda: panel("t", ("x", np.arange(4)), observed={"o": np.ones(4, np.float16)}),
    "map": lambda: heatmap("t", ("x", np.arange(4)), ("y", END), [END] * 4),
    "logarithmic map": lambda: heatmap("t", ("x", np.arange(4)), ("y", ["a"]), [END], log="z"),
    "map of nothing else": lambda: heatmap("t", ("x", np.arange(2)), ("y", ["a"]), [END[2:]], log="z"),
}


@pytest.mark.parametrize("make", PICTURES.values(), ids=PICTURES)
def test_what_diverges_is_drawn_up_to_there(make):
    picture, file = report.figure([make()]), io.BytesIO()
    picture.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    for line in picture.axes[0].lines:
        drawn = np.asarray(line.get_ydata(), float)
        assert np.isfinite(drawn).any() and not (np.abs(drawn) > 1e300).any()


def test_observations_are_points_laws_lines_and_wrong_laws_dotted():
    curves = {"observed": {"seen": np.arange(4.0)}, "predicted": {"law": np.ones(4)}, "control": {"wrong": np.zeros(4)}}
    (axis,) = report.figure([panel("a title", ("time", np.arange(4)), y="v", **curves)], "x.claim").axes
    drawn = {line.get_label(): (line.get_linestyle(), line.get_marker(), line.get_color()) for line in axis.lines}
    assert drawn == {
        "seen": ("None", "o", "tab:blue"),
        "law": ("-", "None", "black"),
        "wrong": (":", "None", "tab:red"),
    }
    for line, values in zip(axis.lines, (np.ones(4), np.arange(4), np.zeros(4)), strict=True):
        np.testing.assert_array_equal(np.asarray(line.get_ydata()), values)
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("a title", "time", "v")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["law", "seen", "wrong"]
