"""Scan and Snap (Tian et al., NeurIPS 2023, arXiv 2305.16380): how a one-layer transformer learns where to look.

| equation | class |
|---|---|
| joint flow of Y and Z, tiers A, B, C | `ScanSnap` |
| decoder, attention standing still (Lemmas 5 to 9) | `Decoder`, `logit_gap` |
| back-propagated gradient (Theorem 1) | `backprop_coefficients`; tiers B and C: `SymmetricDecoder` |
| attention, decoder in closed form (Lemma 4) | `SlowAttention` |
| the same for symmetric data, tiers A and B | `SymmetricAttention` |
| phase transition (Theorem 4) | `PhaseTransition` |
"""

from ..gap import logit_gap as logit_gap
from .attention import PhaseTransition as PhaseTransition
from .attention import SlowAttention as SlowAttention
from .attention import SymmetricAttention as SymmetricAttention
from .decoder import Decoder as Decoder
from .flow import YZ as YZ
from .flow import ScanSnap as ScanSnap
from .frozen import SymmetricDecoder as SymmetricDecoder
from .frozen import SymmetricLogits as SymmetricLogits
from .frozen import backprop_coefficients as backprop_coefficients
