"""Claims that take a while and compile nothing, for tests that end processes. Each leaves its number in a file."""

import os
import signal
import time

from traindyn.validate import Evidence, Setting, claim, identity


def _make(name: str, seconds: float):
    header = dict(paper="A paper", kind="identity", statement="s", source="eq. 1", assumptions=(), control="c")

    @claim(f"slow.{name}", **header)
    def check(setting: Setting) -> Evidence:
        time.sleep(seconds)
        if name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "exits":
            raise SystemExit(0)
        return Evidence({"row": identity(setting.rng.normal(), 9.0)}, {"wrong": identity(50.0, 9.0)})

    check.check.__qualname__ = name  # as which another process finds it
    return check


one, two, three, four = (_make(name, 0.3) for name in ("one", "two", "three", "four"))
killed, exits, endless = _make("killed", 0.0), _make("exits", 0.0), _make("endless", 600.0)
CLAIMS = (one, two, three, four)
