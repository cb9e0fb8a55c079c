"""Theory: differential equations, closed forms and invariants. Knows no networks, data or optimisers."""

from . import composing as composing
from . import galore as galore
from . import grokking as grokking
from . import groups as groups
from . import joma as joma
from . import representations as representations
from . import reversal as reversal
from . import scan_snap as scan_snap
from ._steps import default_tolerances as default_tolerances
from .crossing import crossing_time as crossing_time
from .crossing import escape_time as escape_time
from .flow import BlowsUp as BlowsUp
from .flow import ClosedForm as ClosedForm
from .flow import Conserving as Conserving
from .flow import Flow as Flow
from .flow import GradientFlow as GradientFlow
from .gallery import flows as flows
from .solving import SolveError as SolveError
from .solving import solve as solve
from .sweep import map_lanes as map_lanes
