"""What the benchmarks need of PyTorch: its tensors beside ours, on the same kind of device."""

from typing import Any

import jax
import numpy as np
import torch

DEVICE = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def one_thread() -> None:
    """For small tensors. Threads that wait for each other at each operation lose to one: on two busy cores PyTorch's
    default, a thread a core, was 5 to 100 times slower in the sweeps than this."""
    torch.set_num_threads(1)


def tensor(array: Any) -> torch.Tensor:
    """A copy of an array, of the same type."""
    return torch.tensor(np.asarray(array), device=DEVICE)


def finished(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    """The values on the host, once the device is done."""
    return tuple(x.detach().cpu().numpy() for x in tensors)
