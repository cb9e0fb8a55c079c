"""Properties of the installed JAX and of the package as a whole that everything else rests on."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.mark.parametrize(("dtype", "rows", "rtol"), ((jnp.float64, 16_400, 1e-13), (jnp.float32, 32_800, 1e-5)))
def test_jit_and_eager_agree_on_a_long_batch_of_products_that_are_reduced(key, dtype, rows, rtol):
    # jax 0.10.2 on the CPU returns wrong numbers past row 16384 (float32: 32768) for a vmapped product of a small
    # matrix and a vector that is then reduced (jax issue 39103): the loss of a batched network. This test was seen to
    # fail there. The terms are positive: nothing cancels, and the tolerance is some tens of roundings.
    matrix = jnp.arange(1, 10, dtype=dtype).reshape(3, 3)
    x = jax.random.uniform(key, (rows, 3), dtype)
    batched = jax.vmap(lambda x: jnp.sum((matrix @ x) ** 2))
    np.testing.assert_allclose(jax.jit(batched)(x), batched(x), rtol=rtol)


def test_importing_the_package_changes_no_global_setting():
    code = (
        "import jax; before = dict(jax.config.values)\n"
        "import traindyn.dynamics, traindyn.nets\n"
        "assert {name: jax.config.values[name] for name in before} == before, 'settings of jax changed'\n"
        "assert not jax.config.jax_enable_x64\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
