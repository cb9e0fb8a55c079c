"""Tasks in processes of their own, each of which may fail alone.

A process that crashes, is killed or takes too long costs its own task; another one takes its place. The processes end
with their parent, however that ends, and leave an interrupt from the keyboard to it. What a task itself has started
ends with its process, unless it has made a session of its own.
"""

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import jax

from . import _start

DECISIVE = (  # JAX's settings that decide a number, or whether there is one
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_threefry_partitionable",
    "jax_disable_jit",
    "jax_debug_nans",
    "jax_debug_infs",
)
SETTINGS = (  # what a process takes over from its parent
    *DECISIVE,
    "jax_platforms",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_logging_level",
)
BEGUN = "begun"
GRACE = 2.0  # seconds that a process without tasks has to end by itself
LOOKS_EVERY = 1.0  # second
LARGE = 1e9  # bytes that a process has needed: it gets no other task, for compiled programs leave holes in its memory


@dataclasses.dataclass(frozen=True)
class Lost:
    """Why a task has no result, and how long it ran."""

    reason: str
    seconds: float = 0.0


def can_be_sent(named: Any) -> bool:
    """Whether another process finds this very object under the name by which it is pickled."""
    try:
        function, arguments = named.__reduce__()
        if function(*arguments) is not named:  # two objects of one name: the other one would be found
            return False
        module, *_ = arguments
    except Exception:
        return False
    script = getattr(sys.modules["__main__"], "__file__", None)
    return module != "__main__" or (script is not None and Path(script).is_file())  # no notebook, no standard input


def run_apart(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], *, jobs: int, time_limit: float | None = None
) -> Generator[tuple[int, Any], None, None]:
    """Calls `function(*task)` for each task in one of `jobs` processes: the number of the task and its result, or a
    `Lost`, in the order in which they end.

    The processes have this one's JAX settings. `time_limit`, in seconds, is that of one task, the start of a process
    not counted. Closing the iterator, or an exception in whoever iterates, ends all processes.
    """
    open_tasks = collections.deque(enumerate(tasks))
    workers: list[_Worker] = []
    try:
        while True:
            for worker in [one for one in workers if one.idle and not open_tasks]:
                workers.remove(worker)
                worker.end()
            while open_tasks and (len(workers) < jobs or any(worker.idle for worker in workers)):
                free = next((worker for worker in workers if worker.idle), None)
                if free is None:
                    with _signals_held_back():  # else a process could be started and not be known
                        workers.append(free := _Worker(function, time_limit))
                free.give(*open_tasks.popleft())
            if not workers:
                return
            for worker in _that_have_news(workers):
                task = worker.task
                answer = worker.answer()
                if isinstance(answer, Lost) or worker.leaves:
                    workers.remove(worker)
                    worker.end()
                if answer != BEGUN:
                    yield task, answer
    finally:
        with _signals_held_back():
            for worker in workers:
                worker.kill()
            for worker in workers:
                worker.end()


def _that_have_news(workers: list["_Worker"]) -> list["_Worker"]:
    """Waits for an answer, a death, or a time limit; without processes there is nothing to wait for."""
    if not workers:
        return []
    rest = min(worker.deadline for worker in workers) - time.monotonic()
    ready = wait([worker.pipe for worker in workers], min(max(0.0, rest), LOOKS_EVERY))
    # A death does not show in the pipe if a child that the task has started holds the other end.
    has_news = lambda one: one.pipe in ready or one.deadline <= time.monotonic() or not one.process.is_alive()
    return [worker for worker in workers if has_news(worker)]


class _Worker:
    """A process and the task that it has."""

    def __init__(self, function: Callable[..., Any], time_limit: float | None):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        options = {name: getattr(jax.config, name) for name in SETTINGS}
        # A daemon can't have children.
        self.process = context.Process(target=_serve, args=(theirs, function, options), name=_start.WORKER)
        self.process.start()
        theirs.close()
        self.time_limit, self.task, self.begun, self.deadline = time_limit, -1, time.monotonic(), float("inf")
        self.leaves = False  # after the task it has

    @property
    def idle(self) -> bool:
        return self.task < 0

    def give(self, number: int, task: tuple[Any, ...]) -> None:
        self.task = number
        with contextlib.suppress(OSError):  # the process is dead: `answer` says why
            self.pipe.send(task)

    def answer(self) -> Any:
        """The result, a `Lost`, or `BEGUN`. Raises what the function raised."""
        seconds = time.monotonic() - self.begun
        try:
            if self.pipe.poll():
                result, error, self.leaves = self.pipe.recv()
            elif self.deadline <= time.monotonic():
                self.kill()
                return Lost(f"it took longer than the time limit of {self.time_limit:g} s", seconds)
            else:
                raise EOFError
        except (EOFError, OSError):
            self.kill()  # what it has started
            self.process.join()
            return Lost(_how_it_ended(self.process.exitcode or 0), seconds)
        if error is not None:
            raise error
        if result == BEGUN:
            self.begun = time.monotonic()
            self.deadline = self.begun + self.time_limit if self.time_limit else float("inf")
        else:
            self.task, self.deadline = -1, float("inf")
        return result

    def kill(self) -> None:
        """At once, with all that it has started."""
        assert self.process.pid, "0 would be our own group"
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (AttributeError, OSError):  # Windows, or it has not got as far as to lead a group
            self.process.kill()

    def end(self) -> None:
        self.pipe.close()
        self.process.join(GRACE)
        self.kill()  # itself, if it has not ended, and what it has started
        self.process.join()


def _how_it_ended(exitcode: int) -> str:
    if exitcode < 0:
        return f"its process was killed by signal {-exitcode} ({signal.strsignal(-exitcode) or 'unknown'})"
    return f"its process ended with exit status {exitcode}"


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the end of the block; processes that are started inside never see a SIGINT.

    The signal mask holds for those processes. It is not enough here, where another thread may take the signal.
    """
    came: list[int] = []
    in_main = threading.current_thread() is threading.main_thread()
    held = [one for one in (signal.SIGINT, signal.SIGTERM) if in_main and signal.getsignal(one) is not None]
    if os.name != "nt":
        resource_tracker.ensure_running()  # its start ends with SIGINT unblocked
    before = [signal.signal(one, lambda number, _: came.append(number)) for one in held]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for one, handler in zip(held, before, strict=True):
            signal.signal(one, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _serve(pipe: Connection, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """What a process does: one task after another, until its parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where there is no mask to inherit
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    if (parent := multiprocessing.parent_process()) is not None:
        _start.ends_after(parent.join)
    for name, value in options.items():
        jax.config.update(name, value)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # a module that can't be imported here, say
            pipe.send((Lost(f"its process can't be given it: {type(error).__name__}: {error}"), None, True))
            return
        pipe.send((BEGUN, None, False))
        try:
            answer = function(*task), None
        except KeyboardInterrupt:  # the task's own: this process sees none from the keyboard
            answer = Lost("it raised KeyboardInterrupt"), None
        except Exception as error:
            answer = None, error
        jax.clear_caches()  # else a process grows by what each of its tasks compiled
        leaves = _most_memory() > LARGE
        pipe.send((*answer, leaves))
        if leaves:
            return


def _most_memory() -> float:
    """Bytes that this process has needed at most, where the system says so (not on Windows)."""
    with contextlib.suppress(OSError, StopIteration):  # Linux, where `getrusage` counts what the parent had needed
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * float(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
