"""Tasks in processes of their own, each of which may fail alone.

A process that crashes, is killed or takes too long costs its own task; another one takes its place. The processes end
with their parent, however that ends, and leave an interrupt from the keyboard to it.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import jax

SETTINGS = (
    "jax_enable_x64",
    "jax_platforms",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_logging_level",
)
BEGUN = "begun"
GRACE = 2.0  # seconds between asking a process to end and ending it


@dataclasses.dataclass(frozen=True)
class Lost:
    """Why a task has no result."""

    reason: str


def can_be_sent(*things: Any) -> bool:
    """Whether another process can be given these."""
    try:
        pickle.loads(pickle.dumps(things))
    except Exception:
        return False
    return True


def run_apart(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, jobs: int, time_limit: float | None = None
) -> Iterator[tuple[int, Any]]:
    """Calls `function(*task)` for each task in one of `jobs` processes: the number of the task and its result, or a
    `Lost`, in the order in which they end.

    The processes have this one's JAX settings. `time_limit`, in seconds, is that of one task, the start of a process
    not counted. Closing the iterator, or an exception in whoever iterates, ends all processes.
    """
    open_tasks = collections.deque(enumerate(tasks))
    workers: list[_Worker] = []
    try:
        while open_tasks or workers:
            while open_tasks and len(workers) < jobs:
                workers.append(_Worker(function, time_limit))
            for worker in workers:
                if worker.idle and open_tasks:
                    worker.give(*open_tasks.popleft())
            for worker in [one for one in workers if one.idle]:  # nothing is left for it
                workers.remove(worker)
                worker.end()
            for worker in _that_have_news(workers):
                task = worker.task
                answer = worker.answer()
                if isinstance(answer, Lost):
                    workers.remove(worker)
                    worker.end()
                if answer != BEGUN:
                    yield task, answer
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.end()


def _that_have_news(workers: list["_Worker"]) -> list["_Worker"]:
    """Waits for an answer, a death, or a time limit; without processes there is nothing to wait for."""
    if not workers:
        return []
    deadline = min((worker.deadline for worker in workers), default=float("inf"))
    rest = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    ready = wait([worker.pipe for worker in workers], rest)
    return [worker for worker in workers if worker.pipe in ready or worker.deadline <= time.monotonic()]


class _Worker:
    """A process and the task that it has."""

    def __init__(self, function: Callable[..., Any], time_limit: float | None):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        options = {name: getattr(jax.config, name) for name in SETTINGS}
        self.process = context.Process(target=_serve, args=(theirs, function, options), daemon=True)
        with _interrupts_held_back():  # the process inherits that, and never sees one
            self.process.start()
        theirs.close()
        self.time_limit, self.task, self.deadline = time_limit, -1, float("inf")

    @property
    def idle(self) -> bool:
        return self.task < 0

    def give(self, number: int, task: tuple[Any, ...]) -> None:
        self.task = number
        with contextlib.suppress(OSError):  # the process is dead: `answer` says why
            self.pipe.send(task)

    def answer(self) -> Any:
        """The result, a `Lost`, or `BEGUN`. Raises what the function raised."""
        if not self.pipe.poll():
            self.process.kill()
            return Lost(f"it took longer than the time limit of {self.time_limit:g} s")
        try:
            result, error = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            return Lost(_how_it_ended(self.process.exitcode or 0))
        if error is not None:
            raise error
        if result == BEGUN:
            self.deadline = time.monotonic() + self.time_limit if self.time_limit else float("inf")
        else:
            self.task, self.deadline = -1, float("inf")
        return result

    def end(self) -> None:
        self.pipe.close()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _how_it_ended(exitcode: int) -> str:
    if exitcode < 0:
        return f"its process was killed by signal {-exitcode} ({signal.strsignal(-exitcode) or 'unknown'})"
    return f"its process ended with exit status {exitcode}"


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """SIGINT waits until the end of the block, and is blocked in processes that are started inside."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """What a process does: one task after another, until its parent closes the pipe or is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name, value in options.items():
        jax.config.update(name, value)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send((BEGUN, None))
        try:
            answer = function(*task), None
        except Exception as error:
            answer = None, error
        jax.clear_caches()  # else a process grows by what each of its tasks compiled
        pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
