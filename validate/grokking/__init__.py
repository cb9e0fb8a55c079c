"""The claims of Li2: three stages of feature learning on group tasks, theory and training."""

from .ascent import ascent, partial_data
from .coupons import coupons
from .energy import curvature, energy, maxima
from .interaction import reconstruction, repulsion, top_down
from .lazy import first_gradient, regimes, ridge_gradient, wide_limit
from .memorisation import memorisation
from .muon import muon
from .scaling import figure_7, learning_rate, scaling
from .training import three_stages, trained_repulsion, weight_decay

CLAIMS = (
    ridge_gradient,
    first_gradient,
    wide_limit,
    regimes,
    energy,
    maxima,
    curvature,
    ascent,
    partial_data,
    reconstruction,
    memorisation,
    repulsion,
    top_down,
    coupons,
    muon,
    three_stages,
    weight_decay,
    trained_repulsion,
    scaling,
    learning_rate,
    figure_7,
)
