"""GaLore on several devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ..claim import Evidence, Setting, claim
from ..panels import panel
from ..rows import identity


# CONTROL: exact_svd in place of subspace iteration, which does gather the gradient
@claim(
    "On eight devices, in meshes with automatic and with explicit axes, and sharded on either axis, GaLore "
    "takes the same steps as on one, keeps its state sharded as it began, and gathers nothing larger than a basis.",
    source="algorithm 2; optax.contrib gathers each gradient, and raises in meshes with explicit axes",
    assumptions=("Adam, rank 8, a gap of 2, subspace iteration", "eight devices simulated on the CPU"),
)
def sharding(setting: Setting) -> Evidence:
    shape = setting.pick(smoke=(48, 96), laptop=(48, 96), paper=(256, 1024))
    every, name = setting.pick(smoke=False, laptop=True, paper=True), jnp.dtype(setting.dtype).name
    program = Path(__file__).with_name("_on_devices.py")
    command = [sys.executable, "-P", program, *map(str, (setting.seed, name, *shape, int(every)))]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if run.returncode:
        raise RuntimeError(f"the process with eight devices failed:\n{run.stderr[-2000:]}")
    results = json.loads(run.stdout.splitlines()[-1])
    ours = [x for x in results if x[1] != "exact_svd"]
    exact = next(x for x in results if x[1] == "exact_svd")
    bound, size, basis = setting.bound(1e-11, 1e-5), int(np.prod(shape)), 8 * shape[0]
    steps = np.arange(1, len(exact[2]) + 1)
    return Evidence(
        rows={f"distance from one device, {where}": identity(error, bound) for where, _, error, _, _ in ours}
        | {
            "largest gathered array over the basis": identity(np.array([x[3] for x in ours]) / basis, 1.0),
            "arrays of the state that are sharded otherwise than at first": identity(np.array([x[4] for x in ours]), 0),
        },
        control={"largest gathered array over the basis, exact_svd": identity(exact[3] / basis, 1.0)},
        panels=[
            panel(
                f"eight devices against one, {shape[0]} × {shape[1]}",
                ("step", steps),
                y="max |W − W_one device|",
                observed={where: np.maximum(error, np.finfo(name).eps / 10) for where, _, error, _, _ in ours},
                predicted={"bound": np.full(len(steps), bound)},
                log="y",
            )
        ],
        remarks=[
            f"Largest array gathered for a gradient of {size} entries: "
            + "; ".join(f"{where}, {method} {entries}" for where, method, _, entries, _ in results)
            + ".",
        ],
    )
