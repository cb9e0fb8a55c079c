"""The claims of Scan and Snap."""

from .attention import fates, law, lemma_4, phase_transition, relative_gain
from .decoder import backprop, decoder_law, decoder_sgd, symmetric_decoder
from .eviction import eviction
from .gradients import gradients, population_flow
from .phase_diagram import phase_diagram
from .text import text_attention
from .training import figure_4, figure_6, finite_length, three_tiers
from .validity import VALIDITY as VALIDITY

CLAIMS = (
    gradients,
    population_flow,
    three_tiers,
    decoder_sgd,
    decoder_law,
    backprop,
    symmetric_decoder,
    lemma_4,
    law,
    fates,
    relative_gain,
    phase_transition,
    phase_diagram,
    finite_length,
    figure_4,
    figure_6,
    eviction,
    text_attention,
)
