"""Text as the data of one block: windows of words whose last word is the query and whose next word is the label."""

import re
from collections import Counter
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from .joma import Contexts

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class Tokens(NamedTuple):
    """A tokenised text. `ids`, shape `(length,)`; `vocabulary`: the most frequent words, then `<unk>` for the rest."""

    ids: Int[np.ndarray, " length"]
    vocabulary: tuple[str, ...]


def tokenise(text: str, size: int) -> Tokens:
    """Words in lower case: the `size − 1` most frequent ones (ties in alphabetical order) and `<unk>` for the rest.

    **Raises** `ValueError` if `size` is below 2 or the text has no words.
    """
    if size < 2:
        raise ValueError(f"size must be at least 2 (one word and <unk>), got {size}.")
    words = _WORD.findall(text.lower())
    if not words:
        raise ValueError("text must contain words, got none.")
    ranked = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
    vocabulary = tuple(word for word, _ in ranked[: size - 1])
    number = {word: i for i, word in enumerate(vocabulary)}
    return Tokens(np.array([number.get(word, len(vocabulary)) for word in words]), (*vocabulary, "<unk>"))


def frequent_queries(tokens: Tokens, number: int) -> tuple[str, ...]:
    """The `number` most frequent words, `<unk>` not among them."""
    return tokens.vocabulary[:-1][:number]


def contexts(tokens: Tokens, queries: tuple[str, ...], *, length: int = 16, least: int = 64) -> Contexts:
    """All windows of `length` words that end in one of `queries`, as frequencies of the words before the query.

    Windows whose next word is `<unk>` are kept, as class `<unk>`. Queries are numbered as given.

    **Raises** `ValueError` for a word that is not in the vocabulary and for a query with fewer than `least` windows.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2 (a context and the query), got {length}.")
    if not queries:
        raise ValueError("queries must hold at least one word, got none.")
    size, xs, labels, numbers = len(tokens.vocabulary), [], [], []
    for number, word in enumerate(queries):
        if word not in tokens.vocabulary:
            raise ValueError(f"queries must be words of the vocabulary, got {word!r}.")
        ends = np.flatnonzero(tokens.ids[:-1] == tokens.vocabulary.index(word))
        ends = ends[ends >= length - 1]
        if len(ends) < least:
            raise ValueError(
                f"the text has {len(ends)} windows of {length} words ending in {word!r}; at least {least} are needed."
            )
        words = tokens.ids[ends[:, None] - np.arange(length - 1, 0, -1)]
        x = np.zeros((len(ends), size))
        np.add.at(x, (np.arange(len(ends))[:, None], words), 1 / (length - 1))
        xs.append(x)
        labels.append(tokens.ids[ends + 1])
        numbers.append(np.full(len(ends), number))
    as_float = lambda x: jnp.asarray(x, jnp.result_type(float))
    return Contexts(
        as_float(np.concatenate(xs)),
        jnp.asarray(np.concatenate(labels)),
        jnp.asarray(np.concatenate(numbers)),
    )
