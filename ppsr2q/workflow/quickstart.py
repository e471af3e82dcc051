"""The main job on an embedded default: python -m ppsr2q.workflow.quickstart (called by tools/quickstart.sh).

Quantizes the small MambaIRv2-light x2 that ships with ppsr2q to 4 bits in every way the paper's ablation names, on
images that ship with scikit-image, and shows what each step brings. Nothing is downloaded.
"""
from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from ppsr2q.core.config import Config, load_config
from ppsr2q.core.progress import format_duration
from ppsr2q.data.datasets import TestSet
from ppsr2q.data.embedded import TEST_SET, write_embedded
from ppsr2q.evaluation.evaluator import evaluate
from ppsr2q.evaluation.panel import side_by_side
from ppsr2q.evaluation.records import write_record
from ppsr2q.workflow import cli
from ppsr2q.workflow.evaluating import load_upscaler
from ppsr2q.workflow.exporting import export
from ppsr2q.workflow.training import calibrate_routing, train

CONFIG = "configs/quickstart.yml"
CROP = (slice(96, 192), slice(176, 272))  # the eyes of scikit-image's cat
PICTURE = "chelsea"


def _rows(config: Config, bounds_only: Config) -> List[Tuple[str, Config, str]]:
    """(title, config, stage) of every row of the table."""
    return [("bicubic", config, "bicubic"), ("full precision", config, "fp"),
            ("searched bounds", config, "searched"), ("trained bounds", bounds_only, "bounds"),
            ("+ RGT", config, "rgt"), ("+ RGT + OSRC", config, "fused")]


def run(output: Path, overrides: List[str]) -> Dict[str, Any]:
    """Everything; returns the table's figures by row title."""
    started = time.monotonic()
    data = write_embedded(output / "data")
    overrides = [f"data.root={data}", f"data.train={data / 'train'}", f"output_dir={output / 'rgt'}", *overrides]
    config = load_config(CONFIG, overrides)
    without = load_config(CONFIG, [*overrides, "rectifier.enabled=false", f"output_dir={output / 'bounds'}"])
    print(f"1/4 bounds alone, searched and trained for {config.train.iterations} iterations")
    train(without)
    print("2/4 rectifiers, gates and bounds (RGT)")
    train(config)
    print("3/4 static routing (OSRC), fusing, inference model")
    calibrate_routing(config, CONFIG)
    fused = export(config, CONFIG)["fused"].path
    print("4/4 measuring")
    test_set, crops, table = TestSet(data, TEST_SET, config.model.scale), [], {}
    for title, row_config, stage in _rows(config, without):
        upscale, scale = load_upscaler(row_config, CONFIG, None, stage)
        outputs: Dict[str, np.ndarray] = {}
        results = evaluate(upscale, [test_set], lambda _, pair, out, scores: outputs.update({pair.name: out}))
        table[title] = results[TEST_SET]
        scores = results[TEST_SET]["images"][PICTURE]
        crops.append((f"{title}\n{scores['psnr_y']:.2f} dB / {scores['ssim_y']:.4f}", outputs[PICTURE][CROP]))
        print(f"  {title:<16} {table[title]['psnr_y']:.2f} dB  {table[title]['ssim_y']:.4f}", flush=True)
    truth = next(pair.hr for pair in test_set if pair.name == PICTURE)
    side_by_side([("ground truth\n", truth[CROP]), *crops], output / "side_by_side.png")
    seconds = time.monotonic() - started
    write_record(output / "results.json", "quickstart", table, how="tools/quickstart.sh", seconds=seconds,
                 seed=config.seed, schedule=dataclasses.asdict(config.train), protocol=results["protocol"],
                 fingerprint="")
    print(_summary(config, table, output, fused, seconds))
    return table


def _summary(config: Config, table: Dict[str, Any], output: Path, fused: Path, seconds: float) -> str:
    bits = config.quant.bits
    lines = [f"\nMambaIRv2-light x{config.model.scale}, {bits} bits, a reduced schedule ({config.train.iterations} + "
             f"{config.route_calib.iterations} iterations of batch {config.train.batch}), {format_duration(seconds)}:",
             f"{'':<18}{'PSNR-Y/dB':>10}{'SSIM-Y':>9}"]
    lines += [f"{title:<18}{row['psnr_y']:>10.2f}{row['ssim_y']:>9.4f}" for title, row in table.items()]
    return "\n".join(lines + [
        "", f"look at     {output / 'side_by_side.png'}",
        f"watch       visualdl --logdir {output}",
        f"fused model {fused}", "", "go on with",
        f"  python tools/predict.py --model {fused} YOUR_IMAGES enlarged/",
        f"  python tools/evaluate.py --model {fused} -o data.root={output / 'data'} --sets {TEST_SET}",
        "  python tools/train.py -c configs/mambairv2_light_x2_w4a4_short.yml -o model.weights=embedded "
        "-o data.train=YOUR_TRAINING_IMAGES"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("quickstart"), help="folder (default: %(default)s)")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE",
                        help="change an option of configs/quickstart.yml")
    arguments = parser.parse_args()
    cli.prepare(load_config(CONFIG, arguments.override))
    run(arguments.output, arguments.override)


if __name__ == "__main__":
    cli.run(main)
