"""Results as JSON records that say how they came about, and tables rendered from nothing but records."""
from __future__ import annotations

import datetime
import hashlib
import json
import platform
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from ppsr2q.core.environment import library_versions, package_version, usable_processors
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike, write_text

# Libraries that decide scores here and are not among those of core.
_MEASURING_PACKAGES = ("opencv-python-headless", "opencv-python", "scikit-image", "pillow")
_FIELDS = (
    "what", "how", "commit", "date", "seed", "schedule", "protocol", "machine", "seconds", "fingerprint",
    "results",
)


def fingerprint_of(**parts: Any) -> str:
    """SHA-256 (hex) of JSON-able ``parts``, such as plan, hash of the weights and protocol."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def write_record(
    path: PathLike,
    what: str,
    results: Mapping[str, Any],
    *,
    how: str,
    seconds: float,
    seed: Optional[int] = None,
    schedule: Optional[Mapping[str, Any]] = None,
    protocol: Optional[Mapping[str, Any]] = None,
    fingerprint: Optional[str] = None,
    measured: Optional[Mapping[str, Any]] = None,
) -> Dict[str, Any]:
    """Write one measurement as JSON, atomically.

    Args:
        path: of the ``.json`` file.
        what: what was measured, in words.
        results: JSON-able numbers, nested as is convenient.
        how: the command that repeats it.
        seconds: wall time of the measurement.
        seed, schedule, protocol: of the run, where it has them.
        fingerprint: of everything whose change makes the record stale; see :func:`fingerprint_of`.
        measured: :func:`circumstances` of the measurement: take them before one of hours, in which the checkout may
            change; default: those of now.

    Returns:
        The record: the arguments, with those circumstances among them.

    Raises:
        UserError: the file cannot be written.
    """
    content = {
        "what": what, "how": how, **(measured or circumstances()), "seed": seed, "schedule": schedule, "protocol": protocol,
        "seconds": seconds, "fingerprint": fingerprint, "results": results,
    }
    record = json.loads(json.dumps(content))
    write_text(path, json.dumps(record, indent=1) + "\n")
    return record


def read_records(folder: PathLike) -> Dict[str, Dict[str, Any]]:
    """{file stem: record} of the ``.json`` files in ``folder``, sorted; empty when there is no such folder.

    Raises:
        UserError: a file that is no record, by name.
    """
    records = {}
    for path in sorted(Path(folder).glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: damaged record, expected JSON ({error})") from error
        missing = [key for key in _FIELDS if not isinstance(record, dict) or key not in record]
        if missing:
            raise UserError(f"{path}: not a record, it lacks {', '.join(missing)}")
        records[path.stem] = record
    return records


def circumstances() -> Dict[str, Any]:
    """By what, when and where something is measured: ``commit`` (None outside a git checkout), ``date`` (UTC, ISO 8601)
    and ``machine``."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"commit": git_commit(), "date": now, "machine": machine()}


def machine() -> Dict[str, Any]:
    """CPU model, usable cores, operating system, Python and library versions."""
    versions = library_versions()
    for name in _MEASURING_PACKAGES:
        version = package_version(name)
        if version is not None:
            versions[name] = version
    return {"cpu": _cpu_model(), "cores": usable_processors(), "system": platform.system(), "versions": versions}


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def git_commit() -> Optional[str]:
    """Hash of the checkout this module lies in, with ``-dirty`` when tracked files differ; None elsewhere."""
    here = Path(__file__).resolve()
    # An installed copy may lie inside somebody else's repository: only one that tracks this file counts.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@dataclass
class Cell:
    """One number of a table.

    Attributes:
        record: name of the record it comes from; several (runs that differ in their seed alone): the cell shows their
            mean ± standard deviation (of a sample).
        keys: where it is in the record's results, e.g. ``("Set5", "psnr_y")``.
        paper: the paper's number, or None.
        fingerprint: what the record's must be to be current; None: not checked.
    """

    record: Union[str, Sequence[str]]
    keys: Tuple[str, ...]
    paper: Optional[float] = None
    fingerprint: Optional[str] = None


def render_table(
    columns: Sequence[str],
    rows: Sequence[Tuple[str, Sequence[Union[Cell, float]]]],
    records: Mapping[str, Mapping[str, Any]],
) -> str:
    """A Markdown table whose cells read ``ours (paper)``; never measured ones read ``not run``.

    Args:
        columns: headings, the first one of the row labels.
        rows: (label, one cell per further column; a number that is quoted, not measured, as it is).
        records: from :func:`read_records`.

    Returns:
        Markdown. Stale cells, measured with another plan, weights or protocol, carry ``†`` and their records
        are listed under the table.

    Raises:
        ValueError: a row of a wrong length.
        UserError: a record that lacks the number a cell asks for.
    """
    lines = [_line(columns), _line(["---"] + ["---:"] * (len(columns) - 1))]
    stale: List[str] = []
    for label, cells in rows:
        if len(cells) != len(columns) - 1:
            raise ValueError(f"row {label!r} has {len(cells)} cells for {len(columns) - 1} columns")
        lines.append(_line([label] + [_render(cell, records, stale) for cell in cells]))
    if stale:
        names = ", ".join(sorted(set(stale)))
        lines += ["", f"† stale, measured with another plan, weights or protocol; to be run again: {names}"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _render(cell: Union[Cell, float], records: Mapping[str, Mapping[str, Any]], stale: List[str]) -> str:
    if not isinstance(cell, Cell):
        return f"{cell:.2f}"
    paper = "" if cell.paper is None else f" ({cell.paper:.2f})"
    names = [cell.record] if isinstance(cell.record, str) else cell.record
    names = [name for name in names if name in records]
    if not names:
        return f"not run{paper}"
    values = [_value(name, records[name], cell.keys) for name in names]
    old = [name for name in names
           if cell.fingerprint is not None and records[name]["fingerprint"] != cell.fingerprint]
    stale += old
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}{'†' if old else ''}{paper}"


def _value(name: str, record: Mapping[str, Any], keys: Sequence[str]) -> float:
    value = record["results"]
    for key in keys:
        if key not in value:
            raise UserError(f"record {name!r} has no result {'/'.join(keys)}")
        value = value[key]
    return value
