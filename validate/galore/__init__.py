"""The claims of GaLore: the form of the gradient, how its rank falls, what the transform does, and what it saves."""

from .composition import compilation, compose, resume
from .devices import sharding
from .exactness import adam_basis, full_rank, momentum_transport, side
from .low_rank import low_rank_joma, low_rank_llama
from .memory import memory_table, state_bytes
from .projectors import guards, projectors, update
from .reversible import gradient_form, theorem_3_8
from .robustness import precision, quantised, trees
from .text import text_perplexity
from .theory import corollary_3_4, lemma_3_3

CLAIMS = (
    gradient_form,
    lemma_3_3,
    corollary_3_4,
    theorem_3_8,
    low_rank_joma,
    low_rank_llama,
    text_perplexity,
    full_rank,
    momentum_transport,
    adam_basis,
    side,
    projectors,
    update,
    guards,
    trees,
    precision,
    quantised,
    compilation,
    compose,
    sharding,
    resume,
    memory_table,
    state_bytes,
)
