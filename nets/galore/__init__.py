"""GaLore (Zhao et al., ICML 2024, arXiv 2403.03507): optimisers on gradients projected to a low rank."""

from .clip import clip_by_previous_norm as clip_by_previous_norm
from .layout import GaLoreDimensionNumbers as GaLoreDimensionNumbers
from .memory import GaLoreSummary as GaLoreSummary
from .memory import LeafSummary as LeafSummary
from .memory import StateBytes as StateBytes
from .memory import galore_labels as galore_labels
from .memory import galore_state_bytes as galore_state_bytes
from .memory import galore_summary as galore_summary
from .projectors import exact_svd as exact_svd
from .projectors import gram_eigh as gram_eigh
from .projectors import random_orthonormal as random_orthonormal
from .projectors import randomized_range as randomized_range
from .projectors import subspace_iteration as subspace_iteration
from .refresh import GaLoreState as GaLoreState
from .refresh import galore_refresh as galore_refresh
from .refresh import galore_reset as galore_reset
from .transform import galore as galore
from .transform import scale_by_galore as scale_by_galore
