"""What the commands that compute share: how JAX is set up and started."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jax

from .others import brief

CHEAP: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 1}
CHEAPEST: dict[str, Any] = CHEAP | {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}


def keep_compiled() -> None:
    """Compilation is what a short run waits for, so what was compiled is kept in the user's cache, unless they have
    said where (JAX_COMPILATION_CACHE_DIR) or that it should not be (JAX_ENABLE_COMPILATION_CACHE=false)."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not home.startswith("~"):  # else there is no home
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "traindyn" / "jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if "JAX_LOGGING_LEVEL" not in os.environ:  # else XLA warns, falsely, of each program it finds (jax issue 38445)
        jax.config.update("jax_logging_level", "CRITICAL")


def backend() -> str:
    """Starts JAX."""
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        raise click.UsageError(f"JAX finds no device (JAX_PLATFORMS={wanted}): {brief(error)}") from error


@contextlib.contextmanager
def cheaply_compiling(*, short: bool) -> Iterator[None]:
    """On a CPU the processes started within compile each on one thread. If what they run is `short`, they also compile
    with XLA's older code generator and fewer optimisations.

    A claim at the smoke scale compiles for longer than it runs. Long training pays for it: `composing.trained` at the
    laptop scale took 1.3 times the CPU time. An option that XLA does not know would end a process that has it in
    XLA_FLAGS, so XLA is asked first.
    """
    given, options = os.environ.get("XLA_FLAGS"), CHEAPEST if short else CHEAP
    if backend() == "cpu" and _knows(options):
        new = [f"--{name}={str(value).lower()}" for name, value in options.items() if name not in (given or "")]
        os.environ["XLA_FLAGS"] = " ".join([*new, given or ""]).strip()
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("XLA_FLAGS", None)
        else:
            os.environ["XLA_FLAGS"] = given


def _knows(options: dict[str, Any]) -> bool:
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return False
    return True
