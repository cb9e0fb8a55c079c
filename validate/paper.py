"""Papers: what a claim is about, and how it is cited."""

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .._checks import describe


@dataclasses.dataclass(frozen=True)
class Paper:
    """The paper whose claims a module, or a package, checks: put it there as `PAPER`.

    `name`: a short one, "JoMA"; `citation`: authors, venue and year in short; `bibtex`: the entry that `traindyn cite`
    prints. `predicts`: what it predicts, in a sentence. The number at arXiv is read from the entry.

    **Raises** `ValueError` for what is no text, a name or a citation that is empty, and BibTeX that is no entry with
    author, title and year.
    """

    name: str
    citation: str
    bibtex: str
    predicts: str = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if not isinstance(given, str) or (not given.strip() and field.name != "predicts"):
                raise ValueError(f"{field.name} must be a text, got {describe(given)}.")
        missing = [one for one in ("author", "title", "year") if not re.search(rf"\b{one}\s*=", self.bibtex)]
        if not re.fullmatch(r"@\w+\{.*\}\s*", self.bibtex, re.DOTALL) or missing:
            wanted = "an entry @…{…} with author, title and year"
            raise ValueError(f"bibtex must be {wanted}, got {describe(self.bibtex)}.")

    @property
    def arxiv(self) -> str:
        """Its number, or nothing."""
        found = re.search(r"\b\d{4}\.\d{4,5}\b", self.bibtex)
        return found.group() if found else ""

    def __str__(self) -> str:
        return f"{self.name} ({self.citation}{f', arXiv {self.arxiv}' if self.arxiv else ''})"


def paper_of(check: Callable[..., Any]) -> tuple[str, Paper | str]:
    """The first part of a claim's name, and its paper: of the module or package that has a `PAPER`, else the module's
    own name twice."""
    module = check.__module__
    for name in (module, module.rpartition(".")[0]):
        paper = getattr(sys.modules.get(name), "PAPER", None)
        if isinstance(paper, Paper):
            return _last(name), paper
    return _last(module), _last(module)


def _last(module: str) -> str:
    """Of a dotted name; a script's is that of its file."""
    if module in ("__main__", "__mp_main__"):  # the second is what a process that a script has started calls it
        stem = Path(getattr(sys.modules[module], "__file__", "") or "notebook").stem
        return stem if stem.isidentifier() else "script"
    return module.rpartition(".")[2]
