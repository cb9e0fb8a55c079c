"""float64, and JAX's strict modes, for the whole session: a silent promotion of a dtype or a rank is an error."""

import gc
import os
from collections.abc import Iterator

import hypothesis
import jax
import pytest
from jaxtyping import config as jaxtyping_config

hypothesis.settings.register_profile("compiled", deadline=None)  # the first example of a test compiles
hypothesis.settings.load_profile("compiled")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_enable_compilation_cache", False)  # which the command line switches on, in the user's folder
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
# Tests compile for longer than they run: three quarters of their time. So they compile as `traindyn verify` does at the
# smoke scale, and this process without optimisations. `make test-optimised` runs the same tests without either.
CHEAP = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=1"
)
os.environ.setdefault("XLA_FLAGS", CHEAP)
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
gc.set_threshold(200_000, 20, 50)  # tracing makes and drops objects by the million; their collection took a twelfth
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture
def as_users() -> Iterator[None]:
    """Switches the shape checking of jaxtyping and beartype off, as it is for users.

    The tests run with it on, where a bad argument never reaches the library's own checks and their messages.
    """
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: each file runs on one core, and both are busy to the end."""
    longest = (
        "claims",
        "notebooks",
        "common",
        "training_run",
        "arguments",
        "verify_process",
        "flow",
        "sweeps",
        "verify",
    )
    place = {f"test_{name}.py": i for i, name in enumerate((*longest, "grokking", "galore", "pairs", "galore_compose"))}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
