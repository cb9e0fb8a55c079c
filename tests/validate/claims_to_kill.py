"""Claims that take a while and compile nothing, for tests that end processes. Each leaves its number in a file."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from traindyn.validate import Evidence, Setting, claim, identity


def _make(name: str, seconds: float):
    @claim("s", source="eq. 1", assumptions=(), name=f"slow.{name}")
    def check(setting: Setting) -> Evidence:
        time.sleep(seconds)
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "exits":
            raise SystemExit(0)
        if name == "interrupts":
            raise KeyboardInterrupt
        if name == "exits_hard":
            os._exit(0)
        if name == "leaves" and (child := os.fork()) == 0:  # a child that outlives it
            time.sleep(600.0)
        if name == "leaves":
            Path("child").write_text(str(child))
        if name == "large":
            np.ones(2**27)  # 1.1 GB
        if name in ("large", "after", "small"):
            Path(f"pid of {name}").write_text(str(os.getpid()))
        if name == "forked" and os.fork() == 0:  # a child that has its pipe, and holds it when it is killed
            time.sleep(600.0)
        if name == "forked":
            os.kill(os.getpid(), signal.SIGKILL)
        return Evidence({"row": identity(setting.rng.normal(), 9.0)}, {"wrong": identity(50.0, 9.0)})

    check.check.__qualname__ = name  # as which another process finds it
    return check


one, two, three, four = (_make(name, 0.3) for name in ("one", "two", "three", "four"))
killed, exits, endless = _make("killed", 0.0), _make("exits", 0.0), _make("endless", 600.0)
interrupts, exits_hard, leaves, forked = (_make(name, 0.0) for name in ("interrupts", "exits_hard", "leaves", "forked"))
small, large, after = (_make(name, 0.0) for name in ("small", "large", "after"))
CLAIMS = (one, two, three, four)
