"""Checks claims and keeps what each one found, so that an interrupted run loses nothing."""

import contextlib
import dataclasses
import json
import os
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path

import jax
import matplotlib
import numpy as np

from .. import _files, _processes
from .._checked import checked
from .._checks import describe, integer, real
from .._code import digest_of
from . import _records, report
from ._records import Record
from .claim import Claim, Evidence, Setting
from .results import Result, Results, tree_of
from .rows import Row, Verdict

LONGEST_FAILURE = 20_000  # characters
FILES = ("evidence.nc", "figure.png")  # of each claim


@checked
def verify(
    claims: Iterable[Claim],
    setting: Setting = Setting(),  # noqa: B008 (frozen)
    *,
    out: Path | str | None = None,
    resume: bool = False,
    jobs: int = 1,
    time_limit: float | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> Results:
    """Checks each claim and returns one record each, a dictionary ready for JSON (see `record_of`) that prints itself.

    A claim whose check raises, calls `sys.exit`, returns something else than `Evidence`, crashes its process or
    exceeds its time is *undecided*, with the reason, and the others go on.

    - `out`: a folder. It gets `results.json`, rewritten as each claim ends, `NAME/figure.png` and `NAME/evidence.nc`
      for each, and at the end, also of an interrupted run, `report.html`. Records of other claims and settings that
      the folder has stay there; the report has all those of this setting.
    - `resume`: takes a claim from `results.json` if it was checked at this scale, seed, precision and corpus, by the
      same code, versions and settings of JAX, and if its files are as they were. The rest is checked again, and so are
      claims made by a function or in a notebook; a warning names claims whose code or versions have changed.
    - `jobs`: claims checked at a time, each in a process of its own. With 1 they are checked in this process, which a
      claim that crashes ends. A claim that another process can't be given (one made by a function, say) is checked
      here after the others. Figures agree between processes to rounding: XLA's number of threads may change the 13th
      digit.
    - `time_limit`: seconds for each claim. It needs a process for each, even with one job.
    - `on_record`: called with each record as it is found.

    **Raises** `ValueError` before any check for a folder that can't be written, a damaged `results.json` (with
    `resume`; otherwise it is renamed, with a warning), two claims of one name, or claims that can't have a time limit.
    """
    claims = _all_claims(claims)
    integer("jobs", jobs, least=1)
    if time_limit is not None:
        real("time_limit", time_limit, above=0)
    if resume and out is None:
        raise ValueError("resume would be ignored: out is not given.")
    folder = None if out is None else _files.folder("out", out)
    keys = {claim.name: _records.key_of(claim, setting) for claim in claims}
    done = {} if folder is None else _finished(folder, keys, setting, resume)
    records: dict[str, Result] = {}

    def found(record: Record) -> None:
        records[record["name"]] = record if isinstance(record, Result) else Result(record)
        on_record(records[record["name"]])

    try:
        for claim in claims:
            if claim.name in done:
                found(done[claim.name])
        places = dict.fromkeys(claim.name for claim in claims)
        if folder is not None:
            places = _records.places(folder, [claim for claim in claims if claim.name not in done], setting)
        tasks = [(claim, setting, keys[claim.name], places[claim.name]) for claim in claims if claim.name not in done]
        with contextlib.closing(_checked_records(tasks, jobs, time_limit)) as checked_records:
            for record in checked_records:
                if folder is not None:
                    _keep(folder, record, records)
                found(record)
    finally:
        if folder is not None and records:
            _files.write(folder / "report.html", report.html(_of_setting(folder, setting), folder))
    return Results(records[claim.name] for claim in claims)


def _all_claims(claims: Iterable[Claim]) -> list[Claim]:
    if not isinstance(claims, Iterable):
        raise ValueError(f"claims must be a sequence of claims, got {describe(claims)}.")
    claims = list(claims)
    for claim in claims:
        if not isinstance(claim, Claim):
            raise ValueError(f"claims must be made by `claim`, got {describe(claim)}.")
    names = [claim.name for claim in claims]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"claims must have names of their own, got two of {', '.join(twice)}.")
    return claims


def _keep(folder: Path, record: Record, before: Mapping[str, Record]) -> None:
    """On disk. Somebody may have spoiled `results.json` meanwhile; what this call has found is written all the same."""
    try:
        _records.merge(folder, [record])
    except ValueError:
        warnings.warn(f"results.json can't be read; it is now {_records.set_aside(folder)}.", stacklevel=4)
        _records.merge(folder, [*before.values(), record])


def _finished(folder: Path, keys: dict[str, str], setting: Setting, resume: bool) -> dict[str, Record]:
    """The records that need no check, by name. Makes sure that the folder can be written and read."""
    _files.check_writable(folder, "results.json", "report.html")
    try:
        kept = _records.read(folder)
    except ValueError:
        if resume:
            raise
        warnings.warn(f"results.json can't be read; it is now {_records.set_aside(folder)}.", stacklevel=3)
        return {}
    if not resume:
        return {}
    mine = {record["name"]: record for record in kept if _same_setting(record, setting) and record["name"] in keys}
    done = {name: record for name, record in mine.items() if not record["failure"]}
    changed = sorted(name for name, record in done.items() if record["key"] != keys[name])
    if changed:
        warnings.warn(
            "checked again because their code, the library, versions, JAX's settings or the device have changed, or "
            f"can't be told: {', '.join(changed)}",
            stacklevel=3,
        )
    whole = lambda record: all(digest_of(folder / record["folder"] / f) == d for f, d in record["files"].items())
    return {n: record for n, record in done.items() if keys[n] and record["key"] == keys[n] and whole(record)}


def _same_setting(record: Record, setting: Setting) -> bool:
    wanted = _identity(setting)
    return all(record[name] == value for name, value in wanted.items())


def _identity(setting: Setting) -> Record:
    """What tells this setting from others in one folder."""
    return {
        "scale": setting.scale,
        "seed": setting.seed,
        "dtype": str(setting.dtype),
        "corpus": setting.corpus_name,
        "corpus_digest": setting.corpus_digest,
    }


def _of_setting(folder: Path, setting: Setting) -> list[Record]:
    return [record for record in _records.read(folder) if _same_setting(record, setting)]


def _checked_records(
    tasks: list[tuple[Claim, Setting, str, Path | None]], jobs: int, time_limit: float | None
) -> Generator[Record, None, None]:
    """Each record as it is found."""
    apart = [task for task in tasks if (jobs > 1 or time_limit is not None) and _processes.can_be_sent(task[0])]
    here = [task for task in tasks if not any(task is other for other in apart)]
    if here and time_limit is not None:
        raise ValueError(
            f"claims must stand at the top level of a module, under their own name, to have a time limit: "
            f"{', '.join(claim.name for claim, *_ in here)} can't be given to another process."
        )
    running = _processes.run_apart(_check, apart, jobs=min(jobs, len(apart)), time_limit=time_limit)
    with contextlib.closing(running):
        for number, record in running:
            if isinstance(record, _processes.Lost):
                claim, setting, *_ = apart[number]
                record = record_of(claim, Evidence({}, {}), setting, record.seconds, record.reason)
            yield record
    for task in here:
        yield _check(*task)
        if len(here) > 1:
            jax.clear_caches()  # else memory grows by what each claim compiled


def _check(claim: Claim, setting: Setting, key: str, place: Path | None) -> Record:
    """Whatever a claim does wrong is in its record; only an interrupt goes on. `key` is from before the check: if the
    code has changed since, nothing tells which was run, and the record has none."""
    start = time.perf_counter()
    if place is not None:
        for name in FILES:  # of an earlier check, which a failure would otherwise show
            (place / name).unlink(missing_ok=True)
    try:
        evidence = _measured(claim, setting)
        same = key and key == _records.key_of(claim, setting)
        record = record_of(claim, evidence, setting, time.perf_counter() - start, key=key if same else "")
        json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
            content = bytes(tree_of(evidence.panels).to_netcdf(engine="h5netcdf"))  # pyright: ignore[reportArgumentType]
            _files.write(place / "evidence.nc", content)
            picture = report.figure(evidence.panels, claim.name)
            _files.write(place / "figure.png", lambda f: picture.savefig(f, dpi=100, format="png"))
            kept = {"folder": place.relative_to(_out_of(place, claim)).as_posix()}
            kept |= {"files": {name: digest_of(place / name) for name in FILES}}
            record = _records.seal(record | kept)
        result = Result(record)
        result.panels = evidence.panels
        return result
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit among them
        if isinstance(error, OSError) and place is not None and _concerns(error, place):
            raise  # a full disk is not the claim's fault
        notes = "".join(f"{note}\n" for note in getattr(error, "__notes__", ()))  # JAX's, on hidden frames
        summary = "".join(traceback.format_exception_only(error)).removesuffix(notes)
        failure = f"{summary}{traceback.format_exc()}"
        return record_of(claim, Evidence({}, {}), setting, time.perf_counter() - start, failure)


def _measured(claim: Claim, setting: Setting) -> Evidence:
    """The settings that a claim changes are its own: the record, and the claims after it, have those of before."""
    before = {name: getattr(jax.config, name) for name in _processes.DECISIVE}
    folder = Path.cwd()
    try:
        with np.errstate(), warnings.catch_warnings(), matplotlib.rc_context():
            evidence = claim.check(setting)
    finally:
        os.chdir(folder)
        for name in [one for one, value in before.items() if getattr(jax.config, one) != value]:
            jax.config.update(name, before[name])
    if not isinstance(evidence, Evidence):
        raise TypeError(f"a check must return Evidence(rows=..., control=...), got {describe(evidence)}.")
    return evidence


def _out_of(place: Path, claim: Claim) -> Path:
    return place.parent if place.name == claim.name else place.parents[1]


def _concerns(error: OSError, place: Path) -> bool:
    return isinstance(error.filename, str) and Path(error.filename).is_relative_to(place)


def record_of(
    claim: Claim, evidence: Evidence, setting: Setting, seconds: float, failure: str = "", key: str = ""
) -> Record:
    """Everything that table and report say of one claim.

    `passed` is true when every row holds and every row of the control is refuted: a check whose control is not
    rejected proves nothing. `measured` and `bound` are those of the decisive row (`Evidence.decisive`), null where
    nothing was measured.
    """
    decisive = evidence.decisive if evidence.rows else None
    record = {
        "format": _records.FORMAT,
        "name": claim.name,
        "paper": claim.paper,
        "statement": claim.statement,
        "kind": decisive.kind if decisive else "",
        "measured": _number(decisive.measured) if decisive else None,
        "bound": _number(decisive.bound) if decisive else None,
        "passed": evidence.verdict is Verdict.HOLDS and evidence.control_rejected,
        "control_rejected": evidence.control_rejected,
        "seconds": round(seconds, 3),
        "scale": setting.scale,
        "seed": setting.seed,
        "dtype": str(setting.dtype),
        "device": jax.devices()[0].device_kind,
        "versions": _records.versions(),
        "verdict": str(evidence.verdict),
        "measured_text": decisive.measured_text if decisive else "–",
        "bound_text": decisive.bound_text if decisive else "–",
        "rows": [_row(name, row) for name, row in evidence.rows.items()],
        "control_rows": [_row(name, row) for name, row in evidence.control.items()],
        "source": claim.source,
        "tex": claim.tex,
        "assumptions": list(claim.assumptions),
        "remarks": list(evidence.remarks),
        "errata": [dataclasses.asdict(erratum) for erratum in evidence.errata],
        "corpus": setting.corpus_name,
        "corpus_digest": setting.corpus_digest,
        "folder": "",
        "files": {},
        "key": key,
        "failure": failure.encode("utf-8", "replace").decode()[:LONGEST_FAILURE],
    }
    return _records.seal(record)


def _row(name: str, row: Row) -> Record:
    fields = {key: value for key, value in dataclasses.asdict(row).items() if key not in ("interval", "allowed")}
    fields |= {"interval": [_number(x) for x in row.interval], "verdict": str(row.verdict)}
    return {"name": name} | fields | {"measured": _number(row.measured), "bound": _number(row.bound)}


def _number(x: float) -> float | str:
    """JSON has no NaN or infinity."""
    return x if np.isfinite(x) else str(x)
