"""What a pre-training run is to do: its options, their defaults, and which of them don't go together."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from .corpus import read_corpus
from .llama import CONFIGS, LlamaConfig
from .text import tokenise

SIZES = {"tiny": LlamaConfig(vocabulary=256, width=64, hidden=172, layers=2, heads=4, length=64), **CONFIGS}
LEARNING_RATES = {"galore": 0.01, "galore8bit": 0.01, "sgd": 0.1}  # the paper's, and 0.001 for the others
MOST_STEPS = 2**31 - 1  # counted in 32 bits


class BadOption(ValueError):
    """An option of a run that can't be as it was given: `option` is its name, `reason` what it must be and was."""

    def __init__(self, option: str, reason: str):
        super().__init__(f"{option} {reason}")
        self.option, self.reason = option, reason


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that decides the numbers of a run; `config.json` is made of it. `corpus` is a name, `text` a hash."""

    config: str
    corpus: str
    text: str
    tokens: str
    vocabulary: int
    optimiser: str
    learning_rate: float
    rank: int | None
    gap: int | None
    scale: float | None
    weight_decay: float
    batch: int
    length: int
    steps: int
    warmup: int
    eval_every: int
    checkpoint_every: int
    clip: float | None
    accumulate: int
    dtype: str
    stacked: bool
    remat: bool
    mesh: tuple[int, int] | None
    seed: int


def plan_of(corpus: Path | None, given: dict[str, Any]) -> tuple[Plan, Int[np.ndarray, " tokens"]]:
    """The plan of a run on a text, and the text as numbers. **Raises** `BadOption`."""
    try:
        text, name = read_corpus(corpus)
    except ValueError as error:
        raise BadOption("corpus", str(error)) from error
    ids, vocabulary = _tokens(text, given["config"], given["tokens"], given["vocabulary"])
    plan = _filled({**given, "corpus": name, "text": _digest(text), "vocabulary": vocabulary})
    held = len(ids) // 10
    for part, number in (("", len(ids) - held), ("held-out tenth of the ", held)):
        if number <= plan.length:
            needed = f"--length {plan.length} needs {plan.length + 1}"
            raise BadOption("corpus", f"the {part}text has {number} tokens; {needed}.")
    _check_memory(plan)
    return plan, ids


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tokens(text: str, config: str, kind: str, size: int | None) -> tuple[Int[np.ndarray, " tokens"], int]:
    """The whole text as numbers, and how many different ones there may be."""
    if kind == "bytes":
        if size is not None:
            raise BadOption("vocabulary", f"is for --tokens words, got {size} with bytes, of which there are 256.")
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32), 256
    try:
        words = tokenise(text, SIZES[config].vocabulary if size is None else size)
    except ValueError as error:
        raise BadOption("vocabulary" if "size" in str(error) else "corpus", str(error)) from error
    return words.ids.astype(np.int32), len(words.vocabulary)


def _filled(given: dict[str, Any]) -> Plan:
    """Options with their defaults filled in. An option that would have no effect is an error."""
    name, sizes = given["optimiser"], SIZES[given["config"]]
    projects, decays = name.startswith("galore"), name.startswith("galore") or name == "adamw"
    for option in ("rank", "gap", "scale"):
        if given[option] is not None and not projects:
            raise BadOption(option, f"is for the optimisers galore and galore8bit, got {given[option]} with {name}.")
    if given["weight_decay"] is not None and not decays:
        raise BadOption(
            "weight_decay", f"is for adamw, galore and galore8bit, got {given['weight_decay']} with {name}."
        )
    defaults = {
        "learning_rate": LEARNING_RATES.get(name, 1e-3),
        "rank": sizes.width // 4 if projects else None,
        "gap": 200 if projects else None,
        "scale": 0.25 if projects else None,
        "weight_decay": 0.1 if name == "adamw" else 0.0,
        "length": sizes.length,
        "warmup": given["steps"] // 10,
        "mesh": (jax.device_count(), 1) if jax.device_count() > 1 else None,
    }
    filled: dict[str, Any] = {k: defaults.get(k) if value is None else value for k, value in given.items()}
    plan = Plan(**filled)
    _check_numbers(plan)
    shortest = min(sizes.width, sizes.hidden)
    if plan.rank is not None and plan.rank > shortest:
        raise BadOption("rank", f"must be at most {shortest}, the shorter side of the matrices, got {plan.rank}.")
    if plan.warmup >= plan.steps:
        raise BadOption("warmup", f"must be below --steps {plan.steps}, got {plan.warmup}.")
    if plan.mesh is not None:
        data, model = plan.mesh
        if data * model > jax.device_count():
            raise BadOption(
                "mesh", f"needs at most {jax.device_count()} devices, those that are here, got {data}x{model}."
            )
        if plan.batch % data:
            raise BadOption("batch", f"must be a multiple of {data}, the data axis of --mesh, got {plan.batch}.")
    return plan


def _check_numbers(plan: Plan) -> None:
    """Counts fit into those of JAX, and rates into the dtype."""
    for option in ("steps", "gap", "accumulate"):
        if (getattr(plan, option) or 0) > MOST_STEPS:
            raise BadOption(option, f"must be at most {MOST_STEPS}, got {getattr(plan, option)}.")
    if plan.steps * plan.accumulate > 2 * MOST_STEPS:
        most = 2 * MOST_STEPS // plan.steps
        raise BadOption("accumulate", f"must be at most {most} with {plan.steps} steps, got {plan.accumulate}.")
    kept = jnp.finfo(plan.dtype)
    least, largest = float(kept.tiny), float(kept.max)
    for option in ("learning_rate", "scale", "weight_decay", "clip"):
        number = getattr(plan, option)
        if number and not least <= number <= largest:
            raise BadOption(option, f"must be from {least:.3g} to {largest:.3g} in {plan.dtype}, got {number}.")


def _check_memory(plan: Plan) -> None:
    """XLA ends the process where there is not enough."""
    a_window, memory = plan.length * plan.vocabulary * jnp.finfo(plan.dtype).bits // 8, _memory()
    if memory is not None and plan.batch * a_window > memory:
        most = f"at most {memory // a_window} for its logits to fit into {memory / 2**30:.0f} GiB"
        raise BadOption("batch", f"must be {most}, got {plan.batch}.")


def _memory() -> int | None:
    """Bytes of all devices, or of this machine if they are its CPU, where somebody says."""
    try:
        if jax.default_backend() == "cpu":
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return sum((device.memory_stats() or {})["bytes_limit"] for device in jax.local_devices()) * jax.process_count()
    except (AttributeError, KeyError, ValueError, OSError):
        return None
