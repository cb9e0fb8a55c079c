"""The claims of GaLore: the form of the gradient, how its rank falls, and what projecting it saves.

What the transform itself must do, step by step, is in the tests of `nets.galore`.
"""

from .low_rank import low_rank_joma, low_rank_llama
from .memory import memory_table, state_bytes
from .reversible import gradient_form, theorem_3_8
from .theory import corollary_3_4, lemma_3_3

CLAIMS = (
    gradient_form,
    lemma_3_3,
    corollary_3_4,
    theorem_3_8,
    low_rank_joma,
    low_rank_llama,
    memory_table,
    state_bytes,
)
