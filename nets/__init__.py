"""Practice: networks, data, optimisers and the training loop. Knows no theory."""

from . import contexts as contexts
from . import eviction as eviction
from . import galore as galore
from . import grokking as grokking
from . import joma as joma
from . import llama as llama
from . import low_rank as low_rank
from . import pair_optimisers as pair_optimisers
from . import pair_runs as pair_runs
from . import pairs as pairs
from . import pretrain as pretrain
from . import quantise as quantise
from . import reversal as reversal
from . import scan_snap as scan_snap
from . import text as text
from . import transformer as transformer
from .corpus import read_corpus as read_corpus
from .engine import Measured as Measured
from .engine import State as State
from .engine import init as init
from .engine import measured_step as measured_step
from .engine import step as step
from .recorder import Recorder as Recorder
from .train import Run as Run
from .train import train as train
