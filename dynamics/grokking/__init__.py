"""Li2 (Tian, arXiv 2509.21519): three stages of feature learning on group tasks, from memorising to generalising."""

from .energy import Energy as Energy
from .energy import ScaledAscent as ScaledAscent
from .energy import SphereAscent as SphereAscent
from .energy import Task as Task
from .energy import convolution as convolution
from .energy import convolution_energy as convolution_energy
from .energy import plancherel_energy as plancherel_energy
from .energy import task as task
from .interaction import inverse_gram as inverse_gram
from .interaction import missing as missing
from .interaction import remaining_energy as remaining_energy
from .interaction import repulsion as repulsion
from .lazy import OutputLayer as OutputLayer
from .lazy import centred as centred
from .lazy import wide_kernel as wide_kernel
from .maxima import Content as Content
from .maxima import Spectrum as Spectrum
from .maxima import complex_nodes as complex_nodes
from .maxima import content as content
from .maxima import curvatures as curvatures
from .maxima import left_over as left_over
from .maxima import maximum as maximum
from .maxima import peak as peak
from .maxima import real_nodes as real_nodes
from .maxima import residual as residual
from .maxima import spectrum as spectrum
