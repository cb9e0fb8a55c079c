"""Practice: networks, data, optimisers and the training loop. Knows no theory."""

from . import joma as joma
from . import scan_snap as scan_snap
from . import text as text
from .train import Run as Run
from .train import train as train
