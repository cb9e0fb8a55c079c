"""What checking the claims costs beside another version: `python benchmarks/claims.py CHECKOUT [--scale smoke]`.

CPU seconds of `traindyn verify` on each paper, of this version and of the one in CHECKOUT, one after the other in fresh
processes without a compilation cache. Only claims that both have are run.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
MAIN = "from traindyn.{}__main__ import main; main()"


def command(checkout: Path, *words: str) -> str:
    """What the command line of a checkout prints. Raises `CalledProcessError` if it fails."""
    place = "" if (checkout / "src/traindyn/__main__.py").exists() else "validate."  # before version 0.2
    environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    call = [sys.executable, "-c", MAIN.format(place), *words]
    return subprocess.run(call, cwd=checkout, env=environment, capture_output=True, text=True, check=True).stdout


def seconds(checkout: Path, claims: list[str], scale: str, out: str) -> float:
    """CPU seconds, those of all its processes."""
    used = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    before = used()
    told = command(checkout, "verify", *claims, "--scale", scale, "--out", out)
    assert f"{len(claims)} of {len(claims)} claims hold" in told, told
    return used() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="a checkout of the other version")
    parser.add_argument("--scale", default="smoke", choices=("smoke", "laptop"))
    parser.add_argument("--out", help="a folder that keeps what this version found")
    options = parser.parse_args()
    other = options.checkout.resolve()
    ours, theirs = (command(checkout, "list").splitlines() for checkout in (HERE, other))
    both = [name for name in (line.split()[0] for line in ours) if any(line.startswith(name) for line in theirs)]
    print(f"CPU seconds at the {options.scale} scale\n{'':12}{'claims':>8}{'other':>9}{'this':>9}{'ratio':>8}")
    sums = [0.0, 0.0]
    for paper in sorted({name.split(".")[0] for name in both}):
        claims = [name for name in both if name.startswith(f"{paper}.")]
        with tempfile.TemporaryDirectory() as scratch:
            outs = ((other, f"{scratch}/other"), (HERE, options.out or f"{scratch}/this"))
            found = [seconds(checkout, claims, options.scale, str(Path(out).resolve())) for checkout, out in outs]
        sums = [total + one for total, one in zip(sums, found, strict=True)]
        print(f"{paper:12}{len(claims):8}{found[0]:9.1f}{found[1]:9.1f}{found[1] / found[0]:8.2f}", flush=True)
    print(f"{'all':12}{len(both):8}{sums[0]:9.1f}{sums[1]:9.1f}{sums[1] / sums[0]:8.2f}")


if __name__ == "__main__":
    main()
