"""The claims of the reversal curse: what is learned from A to B, and what is not from B to A, in three models."""

from .closed_forms import chain_of_thought, one_layer
from .gpt import diagonal_score as diagonal_score
from .gpt import transformer, transformer_chain
from .separation import bilinear, bilinear_flow

CLAIMS = (one_layer, chain_of_thought, bilinear_flow, bilinear, transformer, transformer_chain)
