"""Every notebook runs from its script, and its rendered form beside it is of that script.

The default run has the short ones only; in the others `pyright` sees a name or an argument that is gone.
"""

import tomllib
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "notebooks").glob("*.py"))
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
SHORT = {Path(name).stem for name in TOOLS["pyright"]["ignore"]}
RUN = [pytest.param(path, marks=() if path.stem in SHORT else pytest.mark.slow, id=path.stem) for path in SCRIPTS]


@pytest.mark.parametrize("script", RUN)
def test_notebook_runs(script, tmp_path):
    NotebookClient(jupytext.read(script), timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_rendered_notebook_has_the_same_cells_and_all_outputs(script):
    source, rendered = jupytext.read(script), jupytext.read(script.with_suffix(".ipynb"))
    assert [cell.source for cell in source.cells] == [cell.source for cell in rendered.cells]
    assert all(cell.execution_count for cell in rendered.cells if cell.cell_type == "code")
