"""Check theory of how neural networks learn against how they really learn.

- `traindyn.dynamics`: the differential equations that theorems predict, and `solve`.
- `traindyn.nets`: the real networks, their data, and `train`.
- `traindyn.validate`: claims, which hold the one against the other.
"""

from importlib.metadata import version as _version

__version__ = _version("traindyn")
