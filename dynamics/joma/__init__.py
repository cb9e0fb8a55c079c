"""JoMA (Tian et al., ICLR 2024, arXiv 2310.00535): joint dynamics of attention and the hidden layer above it.

| equation | class |
|---|---|
| Theorem 1, joint flow and invariants | `Joint`, `invariants`, `predicted_logits` |
| Theorem 2, `v̇ = Δ∘exp(v²/2)/A` | `LinearActivation`, `RegularisedClock` |
| the same for several nodes | `ManyNodes` |
| the same for linear attention | `LinearAttention` |
| Theorem 3, mixture of clusters | `Mixture` |
| Theorem 4, `v̇ = (μ−v)∘exp(v²/2)` | `NonlinearActivation`, `LogGap` |
"""

from .joint import Attention as Attention
from .joint import Joint as Joint
from .joint import JointState as JointState
from .joint import invariants as invariants
from .joint import predicted_logits as predicted_logits
from .linear import ClockState as ClockState
from .linear import LinearActivation as LinearActivation
from .linear import LinearAttention as LinearAttention
from .linear import LinearAttentionState as LinearAttentionState
from .linear import ManyNodes as ManyNodes
from .linear import RegularisedClock as RegularisedClock
from .mixture import Mixture as Mixture
from .mixture import MixtureState as MixtureState
from .nonlinear import LogGap as LogGap
from .nonlinear import NonlinearActivation as NonlinearActivation
