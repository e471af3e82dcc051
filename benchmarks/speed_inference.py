"""How fast, small and good the quantized network is in every engine, measured end to end in one run.

  python benchmarks/speed_inference.py --json speed.json [--quick] [--weights X4] [--models DIR] [--data DATA]

Writes the record, and beside it a Markdown table (.md) and a plot (.png). All engines of a case take turns, each in a
process of its own with the same number of threads; peak memory comes from one more process for each. An engine that
cannot run here is skipped with the reason.

DIR may hold packed x4 models (w8a8.safetensors, w4a4.safetensors, …; int8, fp32), or be Table 1's
(benchmarks/results/table1): what is missing is made here, its bounds searched on embedded images and not trained.
Without --weights (a full-precision x4 checkpoint) the x2 network that ships with ppsr2q stands in: PSNR losses are its
own, and what is timed is the x4 network that doubles its pixels. DATA holds Set5; without it PSNR is of embedded images.

Use a machine that does nothing else. --quick takes a few minutes on 2 cores, everything about 15.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

# The module is imported once more by every child process: what it imports counts in their peak memory.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import inference_engines as engines, inference_report, speed_tool  # noqa: E402
from benchmarks.inference_plan import (CASES, ENGINES, FULL_PRECISION, GROWING, LARGEST, PART_BITS,  # noqa: E402
                                       PARTS, ROUNDS, SEED, SIDES, SLOW, SMALLEST, part_network)
from benchmarks.timing import DoesNotFit, Worker, in_child, time_together  # noqa: E402
from ppsr2q.core.errors import UserError  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402

CROP = 192  # pixels
Results = Dict[str, Any]


class Measurement:
    """Runs everything in child processes and prints a line for each.

    Args:
        arguments: of the command line.
        folder: for the packed models.
        say: takes a line of progress.
    """

    def __init__(self, arguments: argparse.Namespace, folder: Path, say: Callable[[str], None]) -> None:
        self._arguments, self._folder, self._say = arguments, folder, say
        self._threads = arguments.threads

    def run(self) -> Results:
        """``networks``, ``cases``, ``growth`` and ``parts`` of the record."""
        from benchmarks.inference_networks import make_networks
        from ppsr2q.data.embedded import TEST_SET, write_embedded
        images = write_embedded(self._folder / "embedded")
        arguments = self._arguments
        names = list(dict.fromkeys(engine.network for engine in ENGINES.values()))
        alone = [] if arguments.quick else [part_network(part, bits) for part in PARTS for bits in PART_BITS]
        origins = in_child(make_networks, self._folder, names + alone, arguments.weights, arguments.models, images / "train",
                           arguments.quick, environment=self._environment())
        self._say("packed models: " + ", ".join(f"{name} ({origins[name]})" for name in names))
        networks = {name: {"origin": origin, "bytes": (self._folder / f"{name}.safetensors").stat().st_size}
                    for name, origin in origins.items() if name in names}
        test_set = (str(arguments.data), "Set5") if arguments.data else (str(_cropped(images)), TEST_SET)
        first = self._first_looks(*test_set)
        cases = {name: self._case(name, first) for name in CASES}
        return {"networks": networks, "cases": cases, "growth": self._growth(), "parts": self._parts(alone)}

    def _or_skipped(self, function: Callable, *arguments: Any) -> Results:
        """What a child process finds, or why it cannot."""
        try:
            return in_child(function, *arguments, seconds=self._arguments.limit, environment=self._environment())
        except (UserError, DoesNotFit) as error:
            return {"skipped": str(error)}

    def _environment(self) -> Dict[str, str]:
        return {"OMP_NUM_THREADS": str(self._threads)}

    def _first_looks(self, data: str, test_set: str) -> Dict[str, Results]:
        """Of every engine: peak memory and seconds of the smallest case, PSNR and its loss; or why it cannot run."""
        found = {name: self._look(engines.first_look, name, SMALLEST, data, test_set) for name in ENGINES}
        reference = found[FULL_PRECISION].get("psnr_y")
        for name, figures in found.items():
            if "psnr_y" in figures:
                figures["psnr_loss"] = None if reference is None else reference - figures["psnr_y"]
        return found

    def _look(self, function: Callable, engine: str, case: str, *arguments: Any) -> Results:
        if self._arguments.quick and (case == LARGEST or engine in SLOW):
            return {"skipped": "quick"}
        return self._or_skipped(function, engine, self._folder, CASES[case], self._threads, self._arguments.quick,
                                *arguments)

    def _case(self, name: str, first: Dict[str, Results]) -> Results:
        found = {}
        for engine, figures in first.items():
            if name != SMALLEST and "skipped" not in figures:
                quality = {key: figures[key] for key in ("psnr_y", "psnr_loss")}
                figures = self._look(engines.look, engine, name)
                figures = figures if "skipped" in figures else {**figures, **quality}
            found[engine] = dict(figures)
        fitting = [engine for engine, figures in found.items() if "skipped" not in figures]
        if not self._arguments.quick:
            for engine, figures in self._seconds(CASES[name], fitting).items():
                found[engine].update(figures)
        for engine, figures in found.items():
            text = f"skipped: {figures['skipped']}" if "skipped" in figures else \
                f"{figures['seconds']:8.3f} s {figures['peak_bytes'] / 2**20:7.0f} MiB {figures['psnr_y']:6.2f} dB"
            self._say(f"{name:<12} {engine:<26} {text}")
        return found

    def _seconds(self, size: Tuple[int, int], names: List[str]) -> Dict[str, Results]:
        return time_together({name: partial(Worker, engines.call_of, name, self._folder, size, self._threads,
                                            environment=self._environment()) for name in names}, ROUNDS)

    def _parts(self, alone: List[str]) -> Results:
        """Seconds of our runtime where only one part of the network is quantized, and where nothing and all is."""
        if not alone:
            return {"skipped": "quick"}
        whole = [f"w{bits}a{bits}" for bits in PART_BITS]
        return self._or_skipped(engines.parts, self._folder, ["fp32", *alone, *whole], CASES[LARGEST], ROUNDS,
                                self._threads)

    def _growth(self) -> Results:
        sides = SIDES[:3] if self._arguments.quick else SIDES
        rounds = 1 if self._arguments.quick else ROUNDS
        seconds = self._or_skipped(engines.growth, GROWING, self._folder, sides, rounds, self._threads)
        if "skipped" in seconds:
            return seconds
        return {side: {"seconds": value, "seconds_per_pixel": value / int(side)**2} for side, value in seconds.items()}


def _cropped(images: Path) -> Path:
    """Folder with the central 192 x 192 pixels of the embedded test images: slow engines have to enlarge them too."""
    from ppsr2q.data.embedded import TEST_SET
    from ppsr2q.data.image_io import list_images, read_rgb8, write_rgb8
    folder = images / "cropped"
    for path in list_images(images / TEST_SET / "HR"):
        image = read_rgb8(path)
        top, left = ((side - CROP) // 2 for side in image.shape[:2])
        write_rgb8(folder / TEST_SET / "HR" / path.name, image[top:top + CROP, left:left + CROP].copy())
    return folder


def _protocol(arguments: argparse.Namespace) -> Results:
    weights = "a given full-precision x4 checkpoint" if arguments.weights else \
        "the embedded x2 network; PSNR losses are its own, what is timed doubles its pixels"
    return {"quick": arguments.quick, "threads": arguments.threads, "limit_s": arguments.limit,
            "network": "MambaIRv2-light x4, argmax routing", "weights": weights,
            "psnr": f"Y, mean over {'Set5' if arguments.data else 'crops of two embedded photographs'}; loss against "
                    f"{FULL_PRECISION}",
            "seconds": "one call of each engine after an unmeasured one" if arguments.quick else
                       f"median of {ROUNDS} calls interleaved between one process for each engine, after an unmeasured one",
            "memory_handling": "Paddle's processes keep freed memory, as the tools do; other engines run as they come",
            "peak_bytes": "of a process that loads the engine and makes one call",
            "engines": {name: engine.text for name, engine in ENGINES.items()}}


def _run(arguments: argparse.Namespace) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        return Measurement(arguments, Path(folder), lambda line: print(line, flush=True)).run()


def main() -> None:
    parser = speed_tool.make_parser(__doc__, "small images only, one round, a coarse search of bounds", 200,
                                    "one child process")
    parser.add_argument("--weights", metavar="FILE", help="full-precision x4 checkpoint")
    parser.add_argument("--models", type=Path, metavar="DIR", help="folder with packed x4 models")
    parser.add_argument("--data", type=Path, metavar="DATA", help="folder that holds Set5")
    arguments = parser.parse_args()
    if arguments.models is not None and not arguments.weights:
        raise UserError("--models needs --weights: losses refer to the full-precision network that they were made from")
    speed_tool.check(arguments)
    speed_tool.measure(arguments, lambda: _run(arguments), "speed of inference in every engine", "speed_inference.py",
                       ("--quick", "--weights X4", "--models DIR", "--data DATA"), SEED, _protocol(arguments),
                       inference_report.markdown, inference_report.plot)


if __name__ == "__main__":
    cli.run(main)
