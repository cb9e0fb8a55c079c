"""Runs claims one after another and keeps what each one found, so that an interrupted run loses nothing."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from . import report
from .claim import Claim, Evidence, Row, Setting, Verdict

Record = dict[str, Any]
_SETTINGS = (
    "jax_enable_x64",
    "jax_platforms",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_logging_level",
)


def verify(
    claims: Iterable[Claim],
    setting: Setting = Setting(),  # noqa: B008 (frozen)
    *,
    out: Path | str | None = None,
    resume: bool = False,
    jobs: int = 1,
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Checks each claim and returns one record each, a dictionary ready for JSON (see `record_of`).

    With `out`, the folder gets `results.json`, rewritten after every claim, `NAME/figure.png` and `NAME/evidence.npz`
    for each, and at the end (also when interrupted) `report.html`. With `resume`, claims that `results.json` already
    has at this scale, seed, precision and corpus are taken from there. A claim whose check raises is *undecided*, and
    the others go on. `jobs` claims are checked at a time, each in a process of its own; such claims must stand at the
    top level of a module that can be imported.
    """
    folder = None if out is None else Path(out)
    finished = _read(folder, setting) if resume and folder is not None else {}
    records, claims = [], list(claims)
    open_claims = [claim for claim in claims if claim.name not in finished]
    try:
        with _workers(jobs) as apply:
            checked = apply(_check, open_claims, itertools.repeat(setting), itertools.repeat(folder))
            for claim in claims:
                if claim.name in finished:
                    records.append(finished[claim.name])
                else:
                    records.append(next(checked))
                    if folder is not None:
                        done = {record["name"] for record in records}
                        kept = [record for name, record in finished.items() if name not in done]
                        _write(folder / "results.json", records + kept)
                on_record(records[-1])
    finally:
        if folder is not None and records:
            (folder / "report.html").write_text(report.html(records, folder), encoding="utf-8")
    return records


@contextlib.contextmanager
def _workers(jobs: int) -> Iterator[Callable[..., Iterator]]:
    """`map`, over that many processes; their results come in order."""
    if jobs == 1:
        yield map
        return
    options = {name: getattr(jax.config, name) for name in _SETTINGS}
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker, (options,))
    try:
        yield pool.map
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(options: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # an interrupt is the parent's to report
    for name, value in options.items():
        jax.config.update(name, value)


def _check(claim: Claim, setting: Setting, folder: Path | None) -> Record:
    start = time.perf_counter()
    try:
        evidence, failure = claim.check(setting), ""
    except Exception as error:
        evidence = Evidence({}, {})
        failure = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
    record = record_of(claim, evidence, setting, time.perf_counter() - start, failure)
    if folder is not None:
        place = folder / claim.name
        place.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place / "evidence.npz", allow_pickle=False, **arrays_of(evidence.panels))
        report.figure(evidence.panels, claim.name).savefig(place / "figure.png", dpi=100)
    return record


def record_of(claim: Claim, evidence: Evidence, setting: Setting, seconds: float, failure: str = "") -> Record:
    """Everything that table and report say of one claim.

    `passed` is true when every row holds and every row of the control is refuted: a check whose control is not
    rejected proves nothing. `measured` and `bound` are those of the decisive row (`Evidence.decisive`), null where
    nothing was measured.
    """
    decisive = evidence.decisive if evidence.rows else None
    return {
        "name": claim.name,
        "paper": claim.paper,
        "statement": claim.statement,
        "kind": claim.kind,
        "measured": _number(decisive.measured) if decisive else None,
        "bound": _number(decisive.bound) if decisive else None,
        "passed": evidence.verdict is Verdict.HOLDS and evidence.control_rejected,
        "control_rejected": evidence.control_rejected,
        "seconds": round(seconds, 3),
        "scale": setting.scale,
        "seed": setting.seed,
        "dtype": str(setting.dtype),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "verdict": str(evidence.verdict),
        "measured_text": decisive.measured_text if decisive else "–",
        "bound_text": decisive.bound_text if decisive else "–",
        "rows": [_row(name, row) for name, row in evidence.rows.items()],
        "control_rows": [_row(name, row) for name, row in evidence.control.items()],
        "control": claim.control,
        "source": claim.source,
        "assumptions": list(claim.assumptions),
        "remarks": list(evidence.remarks),
        "errata": [dataclasses.asdict(erratum) for erratum in evidence.errata],
        "corpus": setting.corpus_name,
        "failure": failure,
    }


def arrays_of(panels: Iterable[xr.Dataset]) -> dict[str, np.ndarray]:
    """The arrays behind the pictures, named `panel number/role: label`, and their axes `panel number/x: label`."""
    arrays = {}
    for number, data in enumerate(panels):
        arrays |= {f"{number}/x: {name}": coordinate.values for name, coordinate in data.coords.items()}
        arrays |= {f"{number}/{name}": curve.values for name, curve in data.data_vars.items()}
    return arrays


def versions() -> dict[str, str]:
    """The versions that produced a result."""
    packages = ("traindyn", "jax", "jaxlib", "diffrax", "equinox", "optax", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _row(name: str, row: Row) -> Record:
    fields = {key: value for key, value in dataclasses.asdict(row).items() if key not in ("interval", "allowed")}
    fields |= {"interval": [_number(x) for x in row.interval], "verdict": str(row.verdict)}
    return {"name": name} | fields | {"measured": _number(row.measured), "bound": _number(row.bound)}


def _number(x: float) -> float | str:
    """JSON has no NaN or infinity."""
    return x if np.isfinite(x) else str(x)


def _read(folder: Path, setting: Setting) -> Mapping[str, Record]:
    path = folder / "results.json"
    if not path.exists():
        return {}
    wanted = {"scale": setting.scale, "seed": setting.seed, "dtype": str(setting.dtype), "corpus": setting.corpus_name}
    records = json.loads(path.read_text(encoding="utf-8"))
    records = [{"errata": []} | r for r in records]  # which earlier versions did not write
    return {r["name"]: r for r in records if all(r.get(k) == v for k, v in wanted.items()) and not r["failure"]}


def _write(path: Path, records: list[Record]) -> None:
    """By renaming, so that a run killed here leaves the file of the claim before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    new.replace(path)
