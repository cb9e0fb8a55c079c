"""The first seconds of a command: until it has begun, an interrupt ends the process at once.

Python raises `KeyboardInterrupt` wherever it is, and libraries that are being imported swallow one in ten: the callback
that JAX gives to the garbage collector is such a place. The command would then run on as if nothing had been pressed.
Nothing is lost by an end at once, for nothing has begun.

A process that checks claims for another one ends with it from here on, not only once all is imported.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

WORKER = "traindyn worker"  # the name of a process that ends with its parent, however that ends


def importing() -> None:
    """Where this process is the command line: the system's own handling of SIGINT, until `begun`."""
    if multiprocessing.current_process().name == WORKER:
        ends_after(_orphaned)
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def begun() -> None:
    """Python's handling again."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Not a worker of one, nor a program that uses the library."""
    if multiprocessing.parent_process() is not None or threading.current_thread() is not threading.main_thread():
        return False
    as_module = sys.argv[:1] == ["-m"] and ("-m", "traindyn") in pairwise(sys.orig_argv)
    return as_module or Path(sys.argv[0] if sys.argv else "").name in ("traindyn", "traindyn.exe")


def ends_after(wait: Callable[[], object]) -> None:
    """Ends this process, with what it has started if it leads a group, once `wait` returns."""

    def watch() -> None:
        wait()
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _orphaned() -> None:
    """Returns when the parent is gone, where the system says so (not on Windows). What `multiprocessing` knows of the
    parent it knows only once all is imported."""
    first = os.getppid()
    while os.getppid() == first:
        time.sleep(0.2)


importing()
