"""Theory against practice: claims, their evidence, metrics, and the report. Calls the other two rooms."""

from . import _start  # noqa: F401 (before the others, whose import takes seconds)
from . import composing as composing
from . import galore as galore
from . import grokking as grokking
from . import joma as joma
from . import metrics as metrics
from . import reversal as reversal
from . import scan_snap as scan_snap
from .claim import Claim as Claim
from .claim import Erratum as Erratum
from .claim import Evidence as Evidence
from .claim import Row as Row
from .claim import Setting as Setting
from .claim import Verdict as Verdict
from .claim import claim as claim
from .claim import heatmap as heatmap
from .claim import identity as identity
from .claim import limit as limit
from .claim import panel as panel
from .claim import statistic as statistic
from .corpus import read_corpus as read_corpus
from .subject import Subject as Subject
from .sweep import SweepError as SweepError
from .sweep import sweep as sweep
from .verify import verify as verify
