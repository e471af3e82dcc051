"""The command line and the files that ``speed_training.py`` and ``speed_inference.py`` share."""
from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Callable, Dict, Sequence

from benchmarks import speed_report
from benchmarks.speed_report import Record
from ppsr2q.core.environment import usable_processors
from ppsr2q.core.errors import UserError
from ppsr2q.evaluation.records import write_record
from ppsr2q.workflow import cli


def make_parser(description: str, quick: str, limit: float, limited: str) -> argparse.ArgumentParser:
    """A parser with ``--json``, ``--quick``, ``--threads`` and ``--limit``.

    Args:
        quick: what ``--quick`` means.
        limit: default in seconds of what ``limited`` names.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="record to write (.json)")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--threads", type=int, default=min(2, usable_processors()),
                        help="of everything that is timed (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=limit, metavar="SECONDS",
                        help=f"of {limited}; what takes longer is skipped (default: %(default)s)")
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Find mistakes, and files that cannot be written, before anything is measured.

    Raises:
        UserError: naming the option or the file.
    """
    if arguments.threads < 1:
        raise UserError(f"--threads {arguments.threads}: expected at least 1")
    cli.expect_report(arguments.json)


def measure(arguments: argparse.Namespace, run: Callable[[], Dict[str, Any]], what: str, script: str,
            flags: Sequence[str], seed: int, protocol: Dict[str, Any],
            markdown: Callable[[Record], str] = speed_report.markdown,
            plot: Callable[[Record, Path], None] = speed_report.plot) -> None:
    """Measure, write record, table and plot, and print the table.

    Args:
        run: gives the record's results, ``cases`` among them.
        script: of the command that the record names, with those of ``flags`` that it was given.
    """
    started = time.monotonic()
    results = run()
    given = [flag for flag in flags if getattr(arguments, flag.split()[0].lstrip("-"))]
    record = write_record(arguments.json, what, results, how=" ".join([f"python benchmarks/{script} --json FILE", *given]),
                          seconds=time.monotonic() - started, seed=seed, protocol=protocol)
    speed_report.write(arguments.json, record, markdown, plot)
    print(f"\n{arguments.json.with_suffix('.md').read_text(encoding='utf-8')}")
