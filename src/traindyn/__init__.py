"""Check theory of how neural networks learn against how they really learn.

- `traindyn.dynamics`: the differential equations that theorems predict, and `solve`.
- `traindyn.nets`: the real networks, their data, and `train`.
- `traindyn.validate`: claims, which hold the one against the other.
- `traindyn.sweep`: any of it at many points at once.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from .validate.sweep import sweep as sweep

__version__ = _version("traindyn")


def __getattr__(name: str) -> _Any:
    if name == "sweep":  # on demand: the rooms import without each other
        from .validate.sweep import sweep

        return sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
