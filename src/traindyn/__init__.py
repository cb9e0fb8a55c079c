"""Check theory of how neural networks learn against how they really learn.

- `traindyn.dynamics`: the differential equations that theorems predict, and `solve`.
- `traindyn.nets`: the real networks, their data, and `train`.
- `traindyn.compare`: a theory of your own against training, in one call.
- `traindyn.validate`: claims, which hold the one against the other.
- `traindyn.sweep`: any of it at many points at once.
- `traindyn.diagnose`: which theorems a trained network is in reach of.

Each is imported when it is first asked for.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import _start  # noqa: F401 (before all that takes seconds to import)

if _TYPE_CHECKING:
    from . import dynamics as dynamics
    from . import nets as nets
    from . import sweeps as sweeps
    from . import validate as validate
    from .sweeps import Subject as Subject
    from .sweeps import SweepError as SweepError
    from .sweeps import sweep as sweep
    from .validate import diagnose as diagnose
    from .validate.comparing import compare as compare

__version__ = _version("traindyn")
__all__ = ["Subject", "SweepError", "compare", "diagnose", "dynamics", "nets", "sweep", "sweeps", "validate"]


def __getattr__(name: str) -> _Any:
    if name in ("Subject", "SweepError", "sweep"):
        return getattr(_import_module(".sweeps", __name__), name)
    if name in ("compare", "diagnose"):
        return getattr(_import_module(".validate", __name__), name)
    if name in __all__:
        return _import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
