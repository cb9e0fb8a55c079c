"""Text as the data of one block: windows of words whose last word is the query and whose next word is the label."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from .._checked import checked
from .._checks import indices, integer, strings
from ._arguments import check_sizes
from .contexts import Contexts

UNKNOWN = "<unk>"
_JOINERS = "\u200c\u200d"  # zero-width, inside words of Persian and the scripts of India
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}  # ﬀ to ﬆ


class Tokens(NamedTuple):
    """A tokenised text. `ids`, shape `(length,)`; `vocabulary`: the most frequent words, then `<unk>` for the rest."""

    ids: Int[np.ndarray, " length"]
    vocabulary: tuple[str, ...]


@checked
def tokenise(text: str, size: int) -> Tokens:
    """Words in lower case: the `size − 1` most frequent ones (ties in alphabetical order) and `<unk>` for the rest.

    **A word** is a run of letters and digits with their combining marks, in which single apostrophes (`'` or `’`) may
    stand: `don't`. All else separates, hyphens, points and commas too. Letters are composed (Unicode's NFC), and the
    ligatures ﬀ to ﬆ are spelled out.

    WikiText's marks are undone: `@-@`, `@,@` and `@.@` are the hyphen, comma and point that they stand for. Where a
    text has them or `<unk>`, ` 's`, ` n't` and the like join the word before. Its `<unk>` is never a word, but the
    `<unk>` returned.

    **Raises** `ValueError` if `size` is below 2 or the text has no words.
    """
    integer("size", size, least=2)  # one word and <unk>
    words = _words(text)
    ranked = sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))
    vocabulary = tuple(word for word, _ in ranked if word != UNKNOWN)[: size - 1]
    if not vocabulary:
        raise ValueError("text must contain words, got none.")
    number = {word: i for i, word in enumerate(vocabulary)}
    return Tokens(np.array([number.get(word, len(vocabulary)) for word in words]), (*vocabulary, UNKNOWN))


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFC", text.lower().translate(_LIGATURES)).replace("’", "'")
    if re.search(rf"@[-,.]@|{UNKNOWN}", text):
        text = re.sub(r"\s*@([-,.])@\s*", r"\1", text)
        text = re.sub(r"(?<=\w) (?=(?:'(?:s|d|m|re|ve|ll)|n't)\b(?!'))", "", text)
    found = sorted(set(text))
    marks = "".join(c for c in found if unicodedata.category(c).startswith("M"))
    joiners = "".join(c for c in found if c in _JOINERS)
    return _word(marks, joiners).findall(text)


@functools.lru_cache(maxsize=8)
def _word(marks: str, joiners: str) -> re.Pattern[str]:
    """A word, or `<unk>`. Python's classes of letters leave out what the text has of marks and joiners."""
    run = r"[^\W_]+"
    inner = [f"[{re.escape(marks)}]"] * bool(marks) + [rf"[{joiners}](?=[^\W_])"] * bool(joiners)
    if inner:
        run = rf"{run}(?:(?:{'|'.join(inner)})+[^\W_]*)*"
    return re.compile(f"{UNKNOWN}|{run}(?:'{run})*")


@checked
def frequent_queries(tokens: Tokens, number: int) -> tuple[str, ...]:
    """The `number` most frequent words, `<unk>` not among them; all there are, if they are fewer."""
    check_sizes(number=number)
    return tuple(word for word in tokens.vocabulary if word != UNKNOWN)[:number]


@checked
def contexts(tokens: Tokens, queries: str | Sequence[str], *, length: int = 16, least: int = 64) -> Contexts:
    """All windows of `length` words that end in one of `queries`, as frequencies of the words before the query.

    Windows whose next word is `<unk>` are kept, as class `<unk>`. Queries are numbered as given; one string is one.

    **Raises** `ValueError` for a word that is not in the vocabulary, a word that comes twice in it or in `queries`, and
    a query with fewer than `least` windows.
    """
    integer("length", length, least=2), integer("least", least, least=0)  # length: a context and the query
    indices("tokens.ids", tokens.ids, len(tokens.vocabulary))
    queries = strings("queries", queries)
    for name, words in {"queries": queries, "tokens.vocabulary": tokens.vocabulary}.items():
        if len(set(words)) < len(words):
            raise ValueError(f"{name} must hold each word once, got {Counter(words).most_common(1)[0][0]!r} twice.")
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
                f"queries must each end at least {least} windows of {length} words, got {len(ends)} for {word!r}."
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
