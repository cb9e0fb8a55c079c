"""The wheel, built from the sdist, holds all three rooms: packing the links as links loses them without a word."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_from_the_sdist_works_outside_the_checkout(tmp_path):
    run = lambda *command, **kwargs: subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=True, **kwargs
    )
    run("-m", "build", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    rooms = [
        path.relative_to(ROOT) for room in ("dynamics", "nets", "validate") for path in (ROOT / room).rglob("*.py")
    ]
    assert len(rooms) > 15 and {f"traindyn/{path.as_posix()}" for path in rooms} <= names
    assert not {name.split("/")[0] for name in names} & {"dynamics", "nets", "validate", "tests"}

    site = tmp_path / "site"
    run("-m", "pip", "install", "--no-deps", "--target", site, wheel)
    code = "import traindyn.dynamics.joma, traindyn.nets, traindyn.validate as v; print(v.__file__)"
    out = run("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"})
    assert Path(out.stdout.strip()).is_relative_to(site)
    listed = run("-m", "traindyn", "list", cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"})
    assert "joma.exp_invariant" in listed.stdout


def test_importing_starts_no_backend():
    """So that `jax.distributed.initialize` and the caller's settings can still come after the import."""
    code = "import traindyn.__main__, jax; "
    code += "jax.config.update('jax_num_cpu_devices', 3); assert jax.device_count() == 3"
    subprocess.run([sys.executable, "-c", code], check=True)
