"""How fast training and the full-precision network are, with and without fused operators, and in PyTorch.

  python benchmarks/speed_training.py --json speed.json [--quick] [--peer DIR] [--weights FILE]

Writes the record, and beside it a Markdown table (.md) and a plot (.png). All variants of a case take turns, each in a
process of its own, because how the C library hands out memory decides a good part of the time and differs between them.
Needs no data and no weights.

  reference           plain Paddle
  scan                plain Paddle but for the selective scan kernel
  fused               all kernels
  pytorch_eager       the official network (--peer: a checkout of github.com/csguoh/MambaIR) with our scan kernel
  pytorch_eager_kept  the same in a process that keeps freed memory, as ours does

Use a machine that does nothing else. --quick takes about 3 minutes on 2 cores, everything about 10.
"""
from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Optional, Sequence

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import speed_tool  # noqa: E402
from benchmarks.speed_plan import (CASES, PEER, PEER_KEPT, SCAN_COMMIT, SEED, SIDES, Case,  # noqa: E402
                                   Sources)
from benchmarks.timing import DoesNotFit, Worker, in_child, interleave_workers, time_together  # noqa: E402
from ppsr2q.core.environment import usable_processors  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402

Results = Dict[str, Any]


class Measurement:
    """Runs everything in child processes and prints a line for each.

    Args:
        arguments: of the command line.
        say: takes a line of progress.
    """

    def __init__(self, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
        from benchmarks import speed_cases  # imports Paddle, or says how to get it
        self._run, self._say = speed_cases, say
        self._sources = Sources(arguments.weights, arguments.peer)
        self._quick, self._limit, self._threads = arguments.quick, arguments.limit, arguments.threads

    def run(self) -> Results:
        """``cases``, ``growth``, ``threads``, ``matmul_gflops`` and ``peer_difference`` of the record."""
        difference = None
        if self._sources.peer is not None:
            difference = self._child(self._run.check_peer, self._sources)
            self._say(f"peer: the same outputs to {difference:.1e}")
        return {"peer_difference": difference, "cases": {name: self._case(name) for name in CASES},
                "growth": self._growth(), "threads": self._thread_counts(), "matmul_gflops": self._matmul()}

    def _child(self, function: Callable, *arguments: Any, limit: Optional[float] = None,
               **environment: Optional[str]) -> Any:
        return in_child(function, *arguments, seconds=limit, environment={**self._environment(), **environment})

    def _environment(self, threads: Optional[int] = None) -> Dict[str, str]:
        return {"OMP_NUM_THREADS": str(threads or self._threads)}

    def _case(self, name: str) -> Results:
        case = CASES[name]
        found = {variant: self._peak(case, variant) for variant in case.variants}
        fitting = [variant for variant, figures in found.items() if "skipped" not in figures]
        for variant, figures in time_together(self._workers(case, fitting), self._rounds(case), case.once).items():
            found[variant].update(figures)
        for variant, figures in found.items():
            text = f"skipped: {figures['skipped']}" if "skipped" in figures else \
                f"{figures['seconds']:8.3f} s {figures['peak_bytes'] / 1e9:6.2f} GB"
            self._say(f"{name:<19} {variant:<14} {text}")
        return found

    def _rounds(self, case: Case) -> int:
        return case.quick_rounds if self._quick else case.rounds

    def _peak(self, case: Case, variant: str) -> Results:
        if variant in (PEER, PEER_KEPT) and self._sources.peer is None:
            return {"skipped": "needs --peer"}
        if variant in case.left_out:
            return {"skipped": "left out, minutes a call"}
        if self._quick and variant not in case.quick_variants:
            return {"skipped": "quick"}
        try:
            peak = self._child(self._run.peak_of, case, variant, self._sources, limit=self._limit)
            return {"peak_bytes": peak}
        except DoesNotFit as error:
            return {"skipped": str(error)}

    def _workers(self, case: Case, variants: Sequence[str],
                 threads: Optional[int] = None) -> Dict[str, Callable[[], Worker]]:
        """What starts the process of each variant."""
        environment = self._environment(threads)
        return {variant: partial(Worker, self._run.call_of, case, variant, self._sources, environment=environment)
                for variant in variants}

    def _growth(self) -> Results:
        sides = SIDES[:3] if self._quick else SIDES
        try:
            seconds = self._child(self._run.growth, sides, self._rounds(CASES["fp_forward_180x320"]))
        except DoesNotFit as error:  # most likely the largest; they take turns in one process
            self._say(f"{sides[-1]} x {sides[-1]}: skipped: {error}")
            seconds = self._child(self._run.growth, sides[:-1], self._rounds(CASES["fp_forward_180x320"]))
        found = {side: {"seconds": value, "seconds_per_pixel": value / int(side)**2}
                 for side, value in seconds.items()}
        for side, figures in found.items():
            self._say(f"{side} x {side}: {figures['seconds']:.3f} s, "
                      f"{figures['seconds_per_pixel'] * 1e6:.2f} µs a pixel")
        return found

    def _thread_counts(self) -> Results:
        found = {}
        for threads in sorted({1, min(2, usable_processors()), usable_processors()}):
            case = CASES["fp_forward_180x320"]
            samples = interleave_workers(self._workers(case, ["fused"], threads), self._rounds(case))
            found[str(threads)] = median(samples["fused"])
            self._say(f"{threads} threads: fp_forward_180x320 {found[str(threads)]:.3f} s")
        return found

    def _matmul(self) -> Results:
        found = {}
        for name, value in (("MKL_DEBUG_CPU_TYPE=5", "5"), ("not set", None)):
            found[name] = self._child(self._run.matmul_gflops, MKL_DEBUG_CPU_TYPE=value,
                                      PPSR2Q_NO_MKL_HINT="1")
            self._say(f"Paddle's matmul, {name}: {found[name]:.0f} GFLOP/s")
        return found


def _protocol(arguments: argparse.Namespace) -> Results:
    return {
        "quick": arguments.quick, "threads": arguments.threads, "limit_s": arguments.limit,
        "network": "MambaIRv2-light; x4 for forwards, x2 for steps; argmax routing",
        "weights": f"official initialisation, seed {SEED}"
                   + "; a given x4 checkpoint for forwards" * (arguments.weights is not None),
        "steps": "4 bits, 4 rectifiers of rank 8; stage 1: dynamic gates; teacher forward, student forward "
                 "and backward, per-layer features, Adam; batch 8",
        "variants": {
            "reference": "plain Paddle",
            "scan": f"only the selective scan kernel (it came with commit {SCAN_COMMIT}); every other "
                    "operator in plain Paddle",
            "fused": "all kernels; freed memory is kept in the process, as the tools do",
            PEER: "official repository, eager, noise-free routing, our scan kernel called through ctypes",
            PEER_KEPT: "the same, freed memory kept as ours: what that setting alone would bring a user of PyTorch"},
        "seconds": "median of calls interleaved between one process for each variant (stage1_32, scan: one call)",
        "rounds": {name: case.quick_rounds if arguments.quick else case.rounds for name, case in CASES.items()},
        "peak_bytes": "of a process that makes one call",
    }


def main() -> None:
    parser = speed_tool.make_parser(__doc__, "fewer rounds; the slowest variants are left out", 900, "one call")
    parser.add_argument("--peer", metavar="DIR",
                        help="checkout of the official PyTorch repository (needs torch and einops)")
    parser.add_argument("--weights", metavar="FILE",
                        help="x4 checkpoint for the forwards (speed does not depend on it)")
    arguments = parser.parse_args()
    speed_tool.check(arguments)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    speed_tool.measure(arguments, lambda: Measurement(arguments, lambda line: print(line, flush=True)).run(),
                       "speed of training and of the full-precision network", "speed_training.py",
                       ("--quick", "--peer DIR", "--weights X4"), SEED, _protocol(arguments))


if __name__ == "__main__":
    cli.run(main)
