"""The end of a command: its status, and its end on SIGINT or SIGTERM, in seconds, whatever it is at."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import click

CRASHED = 3
GRACE = 2.0  # seconds


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is dealt with as an interrupt from the keyboard is."""

    status = 128 + signal.SIGTERM


def catch_termination() -> None:
    """From here on SIGTERM raises `Terminated`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(*_: object) -> None:
    raise Terminated


def stopped(error: KeyboardInterrupt, advice: str) -> NoReturn:
    """Ends the program after an interrupt with the status that shells expect."""
    click.echo(f"{'Terminated' if isinstance(error, Terminated) else 'Interrupted'}. {advice}", err=True)
    sys.exit(getattr(error, "status", 130))


@contextlib.contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """For work that keeps all that is finished, whatever ends it."""
    try:
        with ends_promptly(advice):
            yield
    except KeyboardInterrupt as error:
        stopped(error, advice)


@contextlib.contextmanager
def ends_promptly(advice: str) -> Iterator[None]:
    """Within this context a signal that has a Python handler ends the process after `GRACE` seconds at the latest.

    The handler runs between two steps of Python, and a compilation or a compiled loop is one step that may take
    minutes. So a thread, woken by the signal itself, ends the process if the main thread has not left the context by
    then. For work that loses nothing when it is killed; `advice` is printed.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the business of that one
        yield
        return
    ours, woken = socket.socketpair()
    ours.setblocking(False)
    left = threading.Event()

    def watch() -> None:
        with woken:
            while received := woken.recv(1):  # empty when the other end is closed
                number = received[0]
                if number in (signal.SIGINT, signal.SIGTERM) and not left.wait(GRACE):
                    word = "Terminated" if number == signal.SIGTERM else "Interrupted"
                    os.write(2, f"{word}. {advice}\n".encode())
                    os._exit(128 + number)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    before = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        ours.close()
