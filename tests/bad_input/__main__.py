"""`python -m bad_input [dynamics] [nets] [validate] [command_line]`, in the folder `tests`: counts, and each case that
did not end well. With `--all`, every case."""

import collections
import importlib
import os
import sys
import tempfile

from .allowed import ALLOWED
from .cases import CASES, Outcome, run

TABLES = ("dynamics", "nets", "validate", "command_line")


def outcomes(table: str) -> list[Outcome]:
    """Runs one table in a folder of its own. Without the shape checks that only tests have, as users do."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            CASES.clear()
            module = importlib.import_module(f"bad_input.of_{table}")
            return getattr(module, "OUTCOMES", None) or [run(case, ALLOWED) for case in CASES]
        finally:
            os.chdir(here)


def main(arguments: list[str]) -> int:
    total: collections.Counter[str] = collections.Counter()
    for table in [name for name in TABLES if name in arguments] or TABLES:
        found = outcomes(table)
        for one in found:
            if one.ending != "good" or "--all" in arguments:
                print(f"{one.ending:5} {table} | {one.name} | {one.text[:300]} | {one.seconds} s")
        count = collections.Counter(one.ending for one in found)
        total += count
        print(table, len(found), dict(count), flush=True)
    print("all", sum(total.values()), dict(total))
    return 0 if total["fatal"] == total["bad"] == 0 and total["poor"] < 0.05 * sum(total.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
