"""The main job on an embedded default: python -m ppsr2q.workflow.quickstart (called by tools/quickstart.sh).

Quantizes the small MambaIRv2-light x2 that ships with ppsr2q to 4 and 2 bits in every way the paper's ablation names, on
images that ship with scikit-image, and shows what each step brings. Nothing is downloaded.
"""
from __future__ import annotations

import argparse
import os
import shlex
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from ppsr2q.core.config import Config, config_to_dict, load_config, without_folders
from ppsr2q.core.errors import UserError
from ppsr2q.core.progress import format_duration
from ppsr2q.data.datasets import TestSet
from ppsr2q.data.embedded import TEST_SET, write_embedded
from ppsr2q.evaluation.evaluator import evaluate
from ppsr2q.evaluation.panel import side_by_side
from ppsr2q.evaluation.records import write_record
from ppsr2q.workflow import cli
from ppsr2q.workflow.evaluating import load_upscaler
from ppsr2q.workflow.exporting import Written, export
from ppsr2q.workflow.training import calibrate_routing, has_routing, train

CONFIG = "configs/quickstart.yml"
BITS = (4, 2)
CROP = (slice(96, 192), slice(176, 272))  # the eyes of scikit-image's cat
PICTURE = "chelsea"


#: options that the quickstart sets
OWN = ("quant.bits", "output_dir", "data.root", "data.train", "data.sets", "rectifier.enabled", "eval.mode")


def _configs(bits: int, output: Path, overrides: List[str]) -> Tuple[Config, Config]:
    """Of the whole method, and of bounds alone."""
    own = [*overrides, f"quant.bits={bits}"]
    return (load_config(CONFIG, [*own, f"output_dir={output / f'w{bits}'}"]),
            load_config(CONFIG, [*own, "rectifier.enabled=false", f"output_dir={output / f'w{bits}_bounds'}"]))


def _quantize(bits: int, config: Config, bounds_only: Config, resume: bool) -> Written:
    """Every stage at one bit width; the packed network."""
    print(f"{bits} bits, 1/3: bounds alone, searched and trained for {config.train.iterations} iterations")
    train(bounds_only, resume)
    print(f"{bits} bits, 2/3: rectifiers, gates and bounds (RGT)")
    train(config, resume)
    print(f"{bits} bits, 3/3: static routing (OSRC), fusing, packing")
    calibrate_routing(config, CONFIG, resume)
    return export(config, CONFIG, ("fused", "packed"))["packed"]


def _rows(bits: int, config: Config, bounds_only: Config) -> List[Tuple[str, Config, str]]:
    """(title, config, stage) of a bit width's rows of the table."""
    return [(f"{bits} bits: searched bounds", config, "searched"),
            (f"{bits} bits: trained bounds", bounds_only, "bounds"),
            (f"{bits} bits: + RGT", config, "rgt"), (f"{bits} bits: + RGT + OSRC", config, "fused")]


def run(output: Path, given: List[str], resume: bool = False) -> Dict[str, Any]:
    """Everything; returns the table's figures by row title.

    Args:
        given: options, ``key=value``, on top of configs/quickstart.yml.
        resume: go on where an earlier run was stopped.
    """
    started = time.monotonic()
    data = write_embedded(output / "data")
    overrides = [f"data.root={data}", f"data.train={data / 'train'}", *given]
    packed, rows = [], []
    for bits in BITS:
        config, bounds_only = _configs(bits, output, overrides)
        if not has_routing(config):
            raise UserError("the quickstart shows what routing brings: rectifier.number must be above 1")
        packed.append(_quantize(bits, config, bounds_only, resume))
        rows += _rows(bits, config, bounds_only)
    print("measuring")
    test_set, crops, table = TestSet(data, TEST_SET, config.model.scale), [], {}
    for title, row_config, stage in [("bicubic", config, "bicubic"), ("full precision", config, "fp"), *rows]:
        upscale, scale = load_upscaler(row_config, CONFIG, None, stage)
        outputs: Dict[str, np.ndarray] = {}
        results = evaluate(upscale, [test_set], lambda _, pair, out, scores: outputs.update({pair.name: out}))
        table[title] = results[TEST_SET]
        scores = results[TEST_SET]["images"][PICTURE]
        crops.append((f"{title}\n{scores['psnr_y']:.2f} dB / {scores['ssim_y']:.4f}", outputs[PICTURE][CROP]))
        print(f"  {title:<24} {table[title]['psnr_y']:.2f} dB  {table[title]['ssim_y']:.4f}", flush=True)
    truth = next(pair.hr for pair in test_set if pair.name == PICTURE)
    side_by_side([("ground truth\n", truth[CROP]), *crops], output / "side_by_side.png")
    seconds = time.monotonic() - started
    write_record(output / "results.json", "quickstart", table, seconds=seconds, seed=config.seed,
                 how=" ".join(["bash tools/quickstart.sh", *(f"-o {shlex.quote(option)}" for option in given)]),
                 schedule=without_folders(config_to_dict(config)), protocol=results["protocol"])
    print(_summary(config, table, output, packed, seconds))
    return table


def _summary(config: Config, table: Dict[str, Any], output: Path, packed: List[Written], seconds: float) -> str:
    lines = [f"\nMambaIRv2-light x{config.model.scale}, a reduced schedule ({config.train.iterations} + "
             f"{config.route_calib.iterations} iterations of batch {config.train.batch}), {format_duration(seconds)}:",
             f"{'':<26}{'PSNR-Y/dB':>10}{'SSIM-Y':>9}"]
    lines += [f"{title:<26}{row['psnr_y']:>10.2f}{row['ssim_y']:>9.4f}" for title, row in table.items()]
    return "\n".join(lines + [
        "", f"look at      {output / 'side_by_side.png'}",
        f"watch        visualdl --logdir {output}",
        *(f"to ship      {model.path}, {model.size:,} bytes" for model in packed), "", "go on with", *_activation(),
        f"  python tools/predict.py --engine runtime --model {packed[0].path} YOUR_IMAGES enlarged/",
        f"  python tools/evaluate.py --engine runtime --model {packed[0].path} -o data.root={output / 'data'} "
        f"--sets {TEST_SET}",
        "  python tools/train.py -c configs/mambairv2_light_x2_w4a4_short.yml -o model.weights=embedded "
        "-o data.train=YOUR_TRAINING_IMAGES"])


def _activation() -> List[str]:
    """tools/quickstart.sh activates its environment for itself only."""
    venv = os.environ.get("VIRTUAL_ENV")
    return [f"  source {os.path.relpath(venv)}/bin/activate"] if venv else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("quickstart"),
                        help="folder, from the checkout's (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run was stopped")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="KEY=VALUE",
                        help="change an option of configs/quickstart.yml")
    arguments = parser.parse_args()
    for override in arguments.override:
        if override.split("=")[0] in OWN:
            raise UserError(f"-o {override}: the quickstart sets {', '.join(OWN)} itself; use tools/train.py for others")
    cli.prepare(load_config(CONFIG, arguments.override))
    run(arguments.output, arguments.override, arguments.resume)


if __name__ == "__main__":
    cli.run(main, "Run the same command with --resume to go on")
