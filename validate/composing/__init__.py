"""The claims of composing global optimisers: the algebra, the solutions built by hand, what training finds."""

from .algebra import loss_decomposition, semi_ring, transform
from .flows import infinite_width, potential_flow
from .paths import occam_norm, occam_path, optimum_path
from .solutions import norms, polynomial, solutions
from .training import generalisation, trained

CLAIMS = (
    loss_decomposition,
    transform,
    semi_ring,
    solutions,
    polynomial,
    norms,
    occam_path,
    occam_norm,
    optimum_path,
    potential_flow,
    infinite_width,
    generalisation,
    trained,
)
