"""What every step of the method brings (the rows of Table 2a), on one short schedule.

  python benchmarks/ablation.py --weights W.pdparams --data DATA --json ablation.json
  python benchmarks/ablation.py --render

One seed, the same crops and iterations for all rows; everything a run wrote under --output is used again, so that an
interrupted one goes on. DATA holds train/ and Set5/. Full precision is measured with both routings.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import runs  # noqa: E402
from ppsr2q.core.config import Config, load_config  # noqa: E402
from ppsr2q.core.errors import UserError  # noqa: E402
from ppsr2q.core.files import atomic_path  # noqa: E402
from ppsr2q.evaluation.evaluator import Upscaler  # noqa: E402
from ppsr2q.evaluation.records import Cell, fingerprint_of, read_records, render_table, write_record  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402

RESULTS = Path(__file__).parent / "results"
CONFIG = "configs/mambairv2_light_x2_w4a4.yml"
SCHEDULE = ["calib.lr_patch=32", "train.iterations=60", "train.batch=4", "train.lr_patch=32", "route_calib.iterations=30",
            "route_calib.batch=4", "train.validate_every=30",
            "train.validation_crops=4", "train.save_every=20"]
GENTLE = ["quant.parametrization=relative", "train.lr_bounds=1e-3", "train.lr_rectifier=2e-3", "train.warmup=10"]
#: title, output folder, further options, stage, the paper's Set5 PSNR (Table 2a, 12,000 + 500 iterations of batch 8)
ROWS = [
    ("bicubic", "bounds", [], "bicubic", 33.66),
    ("full precision, argmax routing", "bounds", [], "fp", None),
    ("full precision, gumbel routing", "bounds", ["model.routing=gumbel"], "fp", 38.26),
    ("searched bounds, dobi_mode: paper", "paper", ["calib.dobi_mode=paper", "rectifier.enabled=false"], "searched", None),
    ("searched bounds, dobi_mode: code", "bounds", ["rectifier.enabled=false"], "searched", None),
    ("trained bounds", "bounds", ["rectifier.enabled=false"], "bounds", 37.20),
    ("+ RGT (dynamic gate, mean weights)", "rgt", [], "rgt", 37.60),
    ("+ RGT + OSRC", "rgt", [], "osrc", 37.72),
    ("+ RGT, relative bounds, gentler rates", "gentle", GENTLE, "rgt", None),
]


def _prepare(config: Config, stage: str) -> None:
    """Run what the stage needs and is not there yet."""
    from ppsr2q.workflow.paths import paths
    from ppsr2q.workflow.starting import search_only
    from ppsr2q.workflow.training import calibrate_routing, train
    where = paths(config)
    if stage == "searched" and not where["bounds"].exists():
        search_only(config)
    if stage in ("bounds", "rgt", "osrc") and not where["rectifiers"].exists():
        train(config, resume=True)
    if stage == "osrc" and not where["table"].exists():
        calibrate_routing(config, CONFIG, resume=True)


def _upscaler(config: Config, stage: str) -> "tuple[Upscaler, int]":
    from ppsr2q.workflow.evaluating import load_upscaler
    return load_upscaler(config, CONFIG, None, stage)


def run(weights: str, data: Path, sets: list, output: Path, json_path: Path) -> None:
    """Measure all rows and write the record."""
    from ppsr2q.workflow.evaluating import measure
    runs.expect_sets(data, sets, 2)
    started, results = time.monotonic(), {}
    for title, folder, options, stage, _ in ROWS:
        config = load_config(CONFIG, [f"model.weights={weights}", f"data.train={data / 'train'}", f"data.root={data}",
                                      f"output_dir={output / folder}", *SCHEDULE, *options])
        _prepare(config, stage)
        measured = measure(config, *_upscaler(config, stage), sets)
        results[title] = {name: {key: measured[name][key] for key in ("psnr_y", "ssim_y")} for name in sets}
        print(f"{title:<36}", "  ".join(f"{name} {results[title][name]['psnr_y']:.2f}" for name in sets), flush=True)
    write_record(json_path, "ablation W4A4 x2", results, how="benchmarks/ablation.py", seconds=time.monotonic() - started,
                 seed=config.seed, schedule={"config": CONFIG, "all rows": SCHEDULE,
                                             **{title: options for title, _, options, _, _ in ROWS if options}},
                 protocol=measured["protocol"], fingerprint=fingerprint_of(schedule=SCHEDULE, config=CONFIG))


def render(json_path: Path) -> str:
    """The table from a record, the paper's numbers in brackets."""
    name = json_path.stem
    rows = [(title, [Cell(name, (title, "Set5", "psnr_y"), paper), Cell(name, (title, "Set5", "ssim_y"), digits=4)])
            for title, _, _, _, paper in ROWS]
    return render_table(["MambaIRv2-light x2, 4 bits", "Set5 PSNR-Y/dB (paper)", "SSIM-Y"], rows,
                        read_records(json_path.parent))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="full-precision x2 checkpoint")
    parser.add_argument("--data", type=Path, help="folder with train/ and the test sets")
    parser.add_argument("--sets", default="Set5", help="test sets (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output/ablation"), help="default: %(default)s")
    parser.add_argument("--json", type=Path, default=RESULTS / "ablation.json", help="default: %(default)s")
    parser.add_argument("--render", action="store_true", help="write the table (.md) beside the record (.json)")
    arguments = parser.parse_args()
    if not arguments.render:
        if arguments.weights is None or arguments.data is None:
            raise UserError("give --weights FILE and --data FOLDER, or --render")
        cli.prepare(load_config(CONFIG))
        run(arguments.weights, arguments.data, arguments.sets.split(","), arguments.output, arguments.json)
    text = render(arguments.json)
    with atomic_path(arguments.json.with_suffix(".md")) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    cli.run(main)
