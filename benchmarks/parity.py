"""How near the integer runtime comes to the network that Paddle simulates: PSNR and pixels of whole test sets.

  python benchmarks/parity.py --model MODEL.safetensors --data DATA --json parity.json [--sets Set5,B100]

Layer by layer the two give the same codes but for values within float rounding of a threshold
(tests/deploy/test_runtime.py). End to end such a code can send a pixel to another class of the routing, which moves all
pixels after it in the scan: hence a distribution of differences instead of one bound. Writes the record, and beside it a
Markdown table (.md).
"""
from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))

from ppsr2q import deploy  # noqa: E402
from ppsr2q.core.config import load_config  # noqa: E402
from ppsr2q.core.files import write_text  # noqa: E402
from ppsr2q.data.datasets import TestSet  # noqa: E402
from ppsr2q.evaluation.evaluator import PROTOCOL, Upscaler, evaluate  # noqa: E402
from ppsr2q.evaluation.records import circumstances, write_record  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402
from ppsr2q.workflow.progress import Progress  # noqa: E402

#: set -> dB that the mean PSNR may differ by
LIMITS = {"Set5": 0.02, "B100": 0.01}
#: label -> the least and the largest difference it counts, in 8-bit levels
CLASSES = {"0": (0, 0), "1": (1, 1), "2 to 3": (2, 3), "4 to 7": (4, 7), "8 or more": (8, 255)}


def histogram(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int64 (256,): how many values of two uint8 images of one shape differ by 0, 1, ... 255."""
    return np.bincount(np.abs(first.astype(np.int16) - second).ravel(), minlength=256)


def shares(counts: np.ndarray) -> Dict[str, float]:
    """Label of CLASSES -> share of a :func:`histogram`."""
    return {label: float(counts[least:largest + 1].sum() / counts.sum()) for label, (least, largest) in CLASSES.items()}


def compare(runtime: Upscaler, paddle: Upscaler, test_set: TestSet) -> Dict[str, Any]:
    """Figures of one test set."""
    progress, outputs, counts = Progress(test_set.name, 2 * len(test_set)), {}, np.zeros(256, np.int64)

    def keep(_, pair, output, scores):
        outputs[pair.name] = output
        progress.advance()

    def count(_, pair, output, scores):
        counts[:] += histogram(output, outputs[pair.name])
        progress.advance()

    found = evaluate(runtime, [test_set], keep)
    ours = found[test_set.name]
    simulated = evaluate(paddle, [test_set], count)[test_set.name]
    progress.close()
    apart = [scores["psnr_y"] - simulated["images"][key]["psnr_y"] for key, scores in ours["images"].items()]
    return {"lr": found["protocol"]["lr"], "runtime": ours["psnr_y"], "paddle": simulated["psnr_y"],
            "difference": ours["psnr_y"] - simulated["psnr_y"],
            "images": {"number": len(apart), "lowest": min(apart), "highest": max(apart)},
            "shares": shares(counts), "largest": int(np.flatnonzero(counts).max())}


def markdown(record: Mapping[str, Any]) -> str:
    """The report of a record."""
    lines = [f"{record['what']}; {record['machine']['cpu']}, commit {record['commit']}. Single images: the lowest and the "
             "highest difference. Values: share of the 8-bit RGB values of all images that differ by so many levels.", "",
             "| set | runtime, PSNR-Y/dB | Paddle | difference | allowed | single images | " + " | ".join(CLASSES)
             + " | largest |", "|---|" + "---:|" * (6 + len(CLASSES))]
    for name, row in record["results"].items():
        limit = LIMITS.get(name)
        allowed = "" if limit is None else f"±{limit} {'met' if abs(row['difference']) <= limit else 'missed'}"
        found = " | ".join(f"{row['shares'][label]:.3%}" for label in CLASSES)
        lines.append(f"| {name} | {row['runtime']:.3f} | {row['paddle']:.3f} | {row['difference']:+.4f} | {allowed} | "
                     f"{row['images']['lowest']:+.3f} … {row['images']['highest']:+.3f} | {found} | {row['largest']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FILE", help="packed model")
    parser.add_argument("--data", type=Path, required=True, help="folder with the test sets")
    parser.add_argument("--sets", default=",".join(LIMITS), help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="of the runtime (default: all processors)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="record to write (.json)")
    arguments = parser.parse_args()
    cli.expect_report(arguments.json)
    cli.prepare(load_config())
    runtime = deploy.load(arguments.model, arguments.threads)
    test_sets = [TestSet(arguments.data, name, runtime.scale) for name in arguments.sets.split(",")]
    from ppsr2q.workflow.networks import load_packed, upscaler
    paddle = upscaler(load_packed(arguments.model))
    started, when = time.monotonic(), circumstances()
    results = {test_set.name: compare(runtime.upscale, paddle, test_set) for test_set in test_sets}
    record = write_record(arguments.json, f"{Path(arguments.model).name}: integer runtime against Paddle", results,
                          how=f"python benchmarks/parity.py --model MODEL --data DATA --sets {arguments.sets}",
                          seconds=time.monotonic() - started, measured=when,
                          protocol={**{key: value for key, value in PROTOCOL.items() if key != "lr"}, "scale": runtime.scale},
                          fingerprint=hashlib.sha256(Path(arguments.model).read_bytes()).hexdigest())
    text = markdown(record)
    write_text(arguments.json.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    cli.run(main)
