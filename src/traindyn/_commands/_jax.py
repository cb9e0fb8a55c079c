"""What the commands that compute share: how JAX is set up and started."""

import os
from pathlib import Path

import click
import jax

from .others import brief


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
