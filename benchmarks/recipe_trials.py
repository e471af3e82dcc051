"""Trials that the ``best`` preset was chosen by: Y PSNR on validation crops of the training folder, never a test set.

  python benchmarks/recipe_trials.py --run --weights W.pdparams --train DATA/train [--trials "relative;latent"]
  python benchmarks/recipe_trials.py --render

All trials share seed, crops and iterations and differ in the options named; each goes on where it was stopped and
writes its record as soon as it is finished.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Dict, List

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import runs  # noqa: E402
from ppsr2q.core.config import config_to_dict, load_config  # noqa: E402
from ppsr2q.core.errors import UserError  # noqa: E402
from ppsr2q.core.files import atomic_path  # noqa: E402
from ppsr2q.evaluation.records import fingerprint_of, read_records, write_record  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "recipe_trials"
CONFIG = "configs/mambairv2_light_x2_w4a4.yml"
COMMON = ["calib.images=8", "calib.lr_patch=32", "train.batch=4", "train.lr_patch=32", "train.validation_crops=24",
          "train.save_every=20", "train.warmup=10"]
_RELATIVE = ["quant.parametrization=relative", "train.lr_bounds=1e-3", "train.lr_rectifier=2e-3"]
_LATENT = [*_RELATIVE, "train.finetune=latent"]
_ALL = [*_RELATIVE, "train.finetune=all"]
_ALL_X4 = [*_ALL, "train.lr_latent=8e-4", "train.lr_float=4e-4"]
_LESS_FEATURES = [*_ALL_X4, "loss.feature_weight=0.1"]
_TEACHERS_NORM = ["loss.feature_norm=teacher", "loss.feature_weight=0.02"]
TRIALS: Dict[str, List[str]] = {
    "paper": ["train.warmup=0"],
    "relative": _RELATIVE,
    "relative, bounds x3": [*_RELATIVE, "train.lr_bounds=3e-3"],
    "relative, rectifiers x3": [*_RELATIVE, "train.lr_rectifier=6e-3"],
    "latent": _LATENT,
    "latent x4": [*_LATENT, "train.lr_latent=8e-4"],
    "all": _ALL,
    "all x4": _ALL_X4,
    "all x8": [*_ALL, "train.lr_latent=1.6e-3", "train.lr_float=8e-4"],
    "all x4, features x0.1": [*_ALL_X4, "loss.feature_weight=0.5"],
    "all x4, features x0.02": _LESS_FEATURES,
    "all x4, features x0.02, gates x0.1": [*_LESS_FEATURES, "train.lr_gate=1e-3"],
    "all x4, features x0.02, full rank": [*_LESS_FEATURES, "rectifier.form=full_rank", "rectifier.number=1"],
    "all x4, features x0.02, ground truth throughout": [
        *_LESS_FEATURES, "loss.truth_weight=0.5", "train.final_share=1", "train.final_lr_patch=32", "train.final_batch=4"],
    "all x4, no features": [*_ALL_X4, "loss.feature_weight=0"],
    "all x4, teacher's norm x0.004": [*_ALL_X4, *_TEACHERS_NORM],
    "all x4, features x0.1, equalized, closed form": [*_ALL_X4, "loss.feature_weight=0.5", "quant.equalize=true",
                                                      "rectifier.start=closed_form"],
    "all x4, equalized": [*_ALL_X4, "quant.equalize=true"],
    "all x4, equalized, closed form": [*_ALL_X4, "quant.equalize=true", "rectifier.start=closed_form"],
    "all, route": [*_ALL, "loss.route_weight=1e-2"],
    "all, teacher's order for a third": [*_ALL, "train.teacher_routing=0.33"],
    "all, mean of the last tenth": [*_ALL, "train.average_last=6"],
}


def run(name: str, iterations: int, weights: str, train_folder: str, output: Path, results: Path) -> None:
    """Train one trial, if its record is not there yet, and write its record."""
    from ppsr2q.workflow.training import train
    file = results / f"{name.replace(' ', '_').replace(',', '')}_{iterations}.json"
    options = [*COMMON, f"train.iterations={iterations}", f"train.validate_every={iterations}", *TRIALS[name]]
    config = load_config(CONFIG, [*options, f"model.weights={weights}", f"data.train={train_folder}",
                                  f"output_dir={output / file.stem}"])
    mark = fingerprint_of(options=options, weights=runs.weights_hash(config))
    known = read_records(results).get(file.stem)
    if known and known["fingerprint"] == mark:
        return
    result = train(config, resume=True)
    figures = {"psnr_y": next(entry["validation/psnr_y"] for entry in reversed(result.history)
                              if "validation/psnr_y" in entry),
               **{key: result.last_losses[key] for key in ("pixel", "feature", "flipped")}}
    write_record(file, name, {"iterations": iterations, "options": TRIALS[name], **figures}, seconds=result.seconds,
                 how=f"benchmarks/recipe_trials.py --run --trials '{name}' --iterations {iterations}", seed=config.seed,
                 schedule=config_to_dict(config)["train"], fingerprint=mark)


def render(results: Path = RESULTS) -> str:
    """The trials as a Markdown table, best first."""
    records = sorted(read_records(results).values(), key=lambda r: (-r["results"]["iterations"],
                                                                   -r["results"]["psnr_y"]))
    lines = ["| trial (x2, 4 bits, batch 4, LR 32x32) | options | iterations | validation PSNR-Y/dB | tokens routed "
             "otherwise | minutes |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for record in records:
        found = record["results"]
        lines.append(f"| {record['what']} | {' '.join(found['options'])} | {found['iterations']} | "
                     f"{found['psnr_y']:.2f} | {100 * found['flipped']:.0f}% | {record['seconds'] / 60:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train")
    parser.add_argument("--render", action="store_true", help="write <results>/trials.md from the records")
    parser.add_argument("--trials", help="names, separated by semicolons (default: all)")
    parser.add_argument("--iterations", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--weights", help="full-precision x2 checkpoint")
    parser.add_argument("--train", help="folder of training images")
    parser.add_argument("--output", type=Path, default=Path("output/recipe_trials"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of records (default: %(default)s)")
    arguments = parser.parse_args()
    names = arguments.trials.split(";") if arguments.trials else list(TRIALS)
    odd = [name for name in names if name not in TRIALS]
    if odd:
        raise UserError(f"--trials: unknown {odd[0]!r}; known: {'; '.join(TRIALS)}")
    if not (arguments.run or arguments.render):
        raise UserError("give --run, --render or both")
    if arguments.run:
        if arguments.weights is None or arguments.train is None:
            raise UserError("--run needs --weights FILE and --train FOLDER")
        cli.prepare(load_config())
        for name in names:
            run(name, arguments.iterations, arguments.weights, arguments.train, arguments.output, arguments.results)
    if arguments.render:
        with atomic_path(arguments.results / "trials.md") as temporary:
            temporary.write_text(render(arguments.results), encoding="utf-8")
    print(render(arguments.results))


if __name__ == "__main__":
    cli.run(main)
