"""The claims of JoMA."""

from .invariants import (
    exp_invariant,
    gd_invariant,
    linear_invariant,
    query_sum,
    softmax_half,
    softmax_law,
    softmax_sum,
)
from .linear import blow_up, erf_law, linear_attention, low_rank, many_nodes, sgd_erf_law
from .mixture import mixture_training, theta
from .nonlinear import entropy_bounce, entropy_bounce_ce, implicit_law, lag_law, no_attention
from .training import adam_breaks, gd_to_flow, text_invariant
from .validity import VALIDITY as VALIDITY

CLAIMS = (
    linear_invariant,
    exp_invariant,
    gd_invariant,
    query_sum,
    softmax_sum,
    softmax_half,
    softmax_law,
    gd_to_flow,
    adam_breaks,
    text_invariant,
    erf_law,
    blow_up,
    many_nodes,
    sgd_erf_law,
    low_rank,
    linear_attention,
    theta,
    mixture_training,
    implicit_law,
    lag_law,
    no_attention,
    entropy_bounce,
    entropy_bounce_ce,
)
