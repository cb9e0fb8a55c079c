"""The networks that assumptions are measured on: their classes, and the loss that each trains on."""

from typing import Any

import jax
from jaxtyping import Array, Float

from ..nets.contexts import Contexts, cross_entropy
from ..nets.joma import JomaBlock, stationary_loss
from ..nets.pairs import TwoLayer
from ..nets.pairs import loss as loss_on_pairs
from ..nets.reversal import Bilinear, pair_loss
from ..nets.scan_snap import YZTransformer
from .assumptions import Network


def joma_loss(model: JomaBlock, data: Any) -> Float[Array, ""]:
    """The cross-entropy on `Contexts`, or the loss of a stationary gradient on pairs `(x, g)`."""
    return cross_entropy(model, data) if isinstance(data, Contexts) else stationary_loss(model, data)


def token_loss(model: Bilinear, data: Any) -> Float[Array, ""]:
    """The cross-entropy on pairs of tokens, shape `(pairs, 2)`."""
    if not isinstance(data, jax.Array):
        raise ValueError(f"pairs must be an array of integers, got {type(data).__name__}.")
    return pair_loss(model, data)


JOMA = Network(JomaBlock, joma_loss, "a JoMA block")
SCAN_SNAP = Network(YZTransformer, cross_entropy, "a YZTransformer")
PAIRS = Network(TwoLayer, loss_on_pairs, "a two-layer network on pairs")
TOKENS = Network(Bilinear, token_loss, "a bilinear model of tokens")
