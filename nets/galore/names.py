"""Parameters by name: patterns that choose them, and trees of options that follow them."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from ..._checks import check_callable, describe, strings

Where = Callable[[str, Any], bool] | str | Sequence[str]


def path_name(path: Sequence[Any]) -> str:
    """A parameter's name, as in `blocks.0.query.weight`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator=".")


def plain_name(path: Sequence[Any]) -> str:
    """As `path_name`, without the `.value` at the end that the variables of Flax add."""
    return path_name(path[:-1] if len(path) > 1 and getattr(path[-1], "name", None) == "value" else path)


def is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def chooser(where: Where, names: Sequence[str], kind: str) -> Callable[[str, Any], bool]:
    """The function `(name, value) -> bool` that `where` means, for things of these names and this kind.

    A string is one regular expression, searched in the name; of several strings, one must be found.

    **Raises** `ValueError` for a pattern, or an alternative `a|b` of plain words, that is in no name or in any text.
    """
    if not isinstance(where, str) and callable(where):
        check_callable("where", where)
        return lambda name, value: _chosen(where(name, value), name)
    patterns = strings("where", where)
    if not patterns:
        raise ValueError("where must hold at least one pattern, got none.")
    for pattern in patterns:
        for part in pattern.split("|") if re.fullmatch(r"[\w.|]*", pattern) else [pattern]:
            _check_part(pattern, part, names, kind)
    return lambda name, value: any(re.search(pattern, name) for pattern in patterns)


def _chosen(answer: Any, name: str) -> bool:
    if not isinstance(answer, bool | np.bool_) and getattr(answer, "dtype", None) != jnp.bool_:
        raise ValueError(f"where must return True or False, got {describe(answer)} for {name!r}.")
    return bool(answer)


def nearest(word: str, names: Iterable[str], most: int = 3) -> list[str]:
    """The names with a part that is most like `word`, the best first."""
    alike = lambda part: difflib.SequenceMatcher(None, word.lower(), part.lower()).ratio()
    return sorted(names, key=lambda name: -max(map(alike, (name, *name.split(".")))))[:most]


def matched(option: str, tree: PyTree, params: PyTree, is_leaf: Callable[[Any], bool], missing: Any = None) -> list:
    """The entry of `tree` for each leaf of `params`, by path; `missing` where it has none. Entries for parameters that
    a partition hides have no effect there."""
    given = {plain_name(path): value for path, value in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)}
    everything = jax.tree.leaves_with_path(params, is_leaf=is_masked)
    known = [plain_name(path) for path, _ in everything]
    for name, value in given.items():
        if value is not None and name not in known:
            raise ValueError(
                f"{option} has an entry for {name!r}, but there is no such parameter: it must be one of "
                f"{len(known)}, such as {nearest(name, known)}."
            )
    return [given.get(plain_name(path), missing) for path, leaf in everything if not is_masked(leaf)]


def is_function(x: Any, params: PyTree) -> bool:
    """Whether an option is a function, rather than a tree that follows `params`: that may be a module, which can be
    called too."""
    return callable(x) and (jax.tree_util.treedef_is_leaf(jax.tree.structure(x)) or type(x) is not type(params))


def _check_part(pattern: str, part: str, names: Sequence[str], kind: str) -> None:
    try:
        everywhere, found = re.search(part, ""), any(re.search(part, name) for name in names)
    except re.error as error:
        raise ValueError(f"where must be a name's part or a regular expression, got {part!r}: {error}.") from error
    if everywhere:
        raise ValueError(f"where must not match the empty text, which is in every name, got {pattern!r}.")
    if not found:
        near = f"such as {nearest(part, names)}" if names else "and there is none"
        raise ValueError(f"where names {part!r}, which is in the name of no {kind}: it must be in one, {near}.")
