"""The first seconds of a command: until it has begun, an interrupt ends the process at once.

Python raises `KeyboardInterrupt` wherever it is, and libraries that are being imported swallow one in ten: the callback
that JAX gives to the garbage collector is such a place. The command would then run on as if nothing had been pressed.
Nothing is lost by an end at once, for nothing has begun.
"""

import multiprocessing
import signal
import sys
import threading
from pathlib import Path


def importing() -> None:
    """Where this process is the command line: the system's own handling of SIGINT, until `begun`."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def begun() -> None:
    """Python's handling again."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    """Not a worker of one, nor a program that uses the library."""
    if multiprocessing.parent_process() is not None or threading.current_thread() is not threading.main_thread():
        return False
    as_module = sys.argv[:1] == ["-m"] and "traindyn.validate" in sys.orig_argv
    return as_module or Path(sys.argv[0] if sys.argv else "").name in ("traindyn", "traindyn.exe")


importing()
