"""Practice: networks, data, optimisers and the training loop. Knows no theory."""

from . import eviction as eviction
from . import joma as joma
from . import llama as llama
from . import pretrain as pretrain
from . import reversal as reversal
from . import scan_snap as scan_snap
from . import text as text
from . import transformer as transformer
from .train import Run as Run
from .train import train as train
