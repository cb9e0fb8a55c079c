"""A process in a long compiled step ends soon after a signal."""

import signal
import subprocess
import sys
import time

import pytest

LONG = """
import signal
import jax
from traindyn._signals import ends_promptly

def terminate(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, terminate)
run = jax.jit(lambda x: jax.lax.fori_loop(0, 2_000_000_000, lambda _, x: jax.numpy.cos(x), x))
with ends_promptly("Go on."):
    print("begun", flush=True)
    run(1.0).block_until_ready()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_long_step_does_not_keep_a_process(number):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", LONG], text=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    time.sleep(1.0)
    process.send_signal(number)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 5
    assert process.returncode == 128 + number and errors.endswith("Go on.\n")


def test_an_interrupt_while_a_command_starts_ends_it_at_once():
    """Before the command has begun, an exception could vanish in a callback of the garbage collector."""
    command = [sys.executable, "-m", "traindyn", "verify", "nothing"]
    for after in (0.4, 0.6, 0.8):
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=3)
        assert process.returncode == -signal.SIGINT and not told
