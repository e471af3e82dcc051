"""Trials that the ``best`` preset was chosen by: Y PSNR on validation crops of the training folder, never a test set.

  python benchmarks/recipe_trials.py --run --weights W.pdparams --train DATA/train [--trials "relative;latent"]
  python benchmarks/recipe_trials.py --run … --bits 2 --from RECTIFIERS --iterations 150
  python benchmarks/recipe_trials.py --render

Trials of a bit width with equal iterations share seed and crops and differ in the options named; each goes on where it was
stopped and writes its record as soon as it is finished. At 4 bits they begin with full precision; below, with what a run
at the next higher width has ended with (--from), and with the preset as it is.
"""
from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import runs  # noqa: E402
from ppsr2q.core.config import config_to_dict, load_config, without_folders  # noqa: E402
from ppsr2q.core.errors import UserError  # noqa: E402
from ppsr2q.core.files import load_artifact, tensors_sha256, write_text  # noqa: E402
from ppsr2q.evaluation.records import circumstances, fingerprint_of, read_records, write_record  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "recipe_trials"
CONFIG = str(runs.CONFIGS / "mambairv2_light_x2_w4a4.yml")
LADDER_CONFIG = str(runs.CONFIGS / "mambairv2_light_x2_w{bits}a{bits}_best.yml")
COMMON = ["calib.images=8", "calib.lr_patch=32", "train.batch=4", "train.lr_patch=32", "train.validation_crops=24",
          "train.save_every=20", "train.warmup=10"]
#: as the preset was when the trials began, whatever it has become by them
LADDER_COMMON = [*COMMON, "train.final_share=0", "loss.truth_weight=0", "calib.outliers=0", "train.lr_bounds=1e-3",
                 "train.lr_rectifier=2e-3", "train.lr_gate=1e-3", "train.lr_latent=8e-4", "train.lr_float=4e-4"]
_RELATIVE = ["quant.parametrization=relative", "train.lr_bounds=1e-3", "train.lr_rectifier=2e-3"]
_LATENT = [*_RELATIVE, "train.finetune=latent"]
_ALL = [*_RELATIVE, "train.finetune=all"]
_ALL_X4 = [*_ALL, "train.lr_latent=8e-4", "train.lr_float=4e-4"]
_LESS_FEATURES = [*_ALL_X4, "loss.feature_weight=0.1"]
_TEACHERS_NORM = ["loss.feature_norm=teacher", "loss.feature_weight=0.02"]
#: those of LADDER_COMMON, three times
_RATES_X3 = ["train.lr_bounds=3e-3", "train.lr_rectifier=6e-3", "train.lr_gate=3e-3", "train.lr_latent=2.4e-3",
             "train.lr_float=1.2e-3"]
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
    "all x4, teacher's norm x0.004, fitted search": [*_ALL_X4, *_TEACHERS_NORM, "calib.dobi_mode=fit"],
    "all x12, teacher's norm x0.004, fitted search": [*_ALL, *_TEACHERS_NORM, "calib.dobi_mode=fit", *_RATES_X3],
    "all x4, equalized": [*_ALL_X4, "quant.equalize=true"],
    "all x4, equalized, closed form": [*_ALL_X4, "quant.equalize=true", "rectifier.start=closed_form"],
    "all, route": [*_ALL, "loss.route_weight=1e-2"],
    "all, teacher's order for a third": [*_ALL, "train.teacher_routing=0.33"],
    "all, mean of the last tenth": [*_ALL, "train.average_last=6"],
}

_WITHOUT_TAILS = ["calib.dobi_mode=fit", "calib.outliers=0.1"]
#: at 2 and 1 bits
LADDER: Dict[str, List[str]] = {
    "2DQuant's search": ["calib.dobi_mode=code"],
    "fitted search": ["calib.dobi_mode=fit"],
    "fitted search, progressive": ["calib.dobi_mode=fit", "calib.progressive=true"],
    "fitted search, bounds x3": ["calib.dobi_mode=fit", "train.lr_bounds=3e-3"],
    "fitted search, all rates x3": ["calib.dobi_mode=fit", *_RATES_X3],
    "fitted search, all rates x3, mean of the last third at a tenth": [
        "calib.dobi_mode=fit", *_RATES_X3, "train.min_lr_ratio=0.1", "train.average_last=50"],
    "fitted search without tails": _WITHOUT_TAILS,
    "fitted search without tails, all rates x3": [*_WITHOUT_TAILS, *_RATES_X3],
}


class Family(NamedTuple):
    """The trials of a bit width: options by name, on top of a config and of what they have in common."""

    config: str
    common: List[str]
    trials: Dict[str, List[str]]
    prefix: str = ""  # of the records' names


def family(bits: int) -> Family:
    """At 4 bits from full precision and the paper's config; below, down the ladder with the preset."""
    if bits == 4:
        return Family(CONFIG, COMMON, TRIALS)
    return Family(LADDER_CONFIG.format(bits=bits), LADDER_COMMON, LADDER, f"w{bits}_")


def run(name: str, bits: int, iterations: int, weights: str, train_folder: str, output: Path, results: Path,
        start: Optional[Path] = None) -> None:
    """Train one trial, if its record is not there yet, and write its record.

    Args:
        start: ``rectifiers.safetensors`` to begin with, below 4 bits.
    """
    from ppsr2q.workflow.training import train
    kind = family(bits)
    file = results / f"{kind.prefix}{re.sub(r'[^A-Za-z0-9.]+', '_', name)}_{iterations}.json"
    own = kind.trials[name]
    options = [*kind.common, f"train.iterations={iterations}", f"train.validate_every={iterations}", *own]
    config = load_config(kind.config, [
        *options, f"model.weights={weights}", f"data.train={train_folder}", f"output_dir={output / file.stem}",
        *([f"train.start_from={start}"] if start else [])])
    origin = {"bits": bits, "start": tensors_sha256(load_artifact(start).tensors)} if start else {}
    mark = fingerprint_of(options=options, weights=runs.weights_hash(config), **origin)
    known = read_records(results).get(file.stem)
    if known and known["fingerprint"] == mark:
        return
    when = circumstances()
    result = train(config, resume=True)
    figures = {"psnr_y": next(entry["validation/psnr_y"] for entry in reversed(result.history)
                              if "validation/psnr_y" in entry),
               **{key: result.last_losses[key] for key in ("pixel", "feature", "flipped")}}
    write_record(file, name, {"bits": bits, "iterations": iterations, "options": own, **figures}, seconds=result.seconds,
                 how=f"benchmarks/recipe_trials.py --run --bits {bits} --trials {shlex.quote(name)} --iterations {iterations}"
                     + " --from RECTIFIERS" * (start is not None) + " --weights W --train DATA/train",
                 seed=config.seed, measured=when,
                 schedule=without_folders(config_to_dict(config))["train"], fingerprint=mark)


def render(results: Path = RESULTS) -> str:
    """The trials as a Markdown table, wide bits first, best first."""
    def order(record):
        found = record["results"]
        return -_bits(found), -found["iterations"], -found["psnr_y"]
    lines = ["| trial (x2, batch 4, LR 32x32) | options | bits | iterations | validation PSNR-Y/dB | tokens routed "
             "otherwise | minutes |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for record in sorted(read_records(results).values(), key=order):
        found = record["results"]
        lines.append(f"| {record['what']} | {' '.join(found['options'])} | {_bits(found)} | {found['iterations']} | "
                     f"{found['psnr_y']:.2f} | {100 * found['flipped']:.0f}% | {record['seconds'] / 60:.0f} |")
    return "\n".join(lines) + "\n"


def _bits(found: Mapping[str, Any]) -> int:
    return found.get("bits", 4)  # the first records were all of 4 bits and do not say so


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train")
    parser.add_argument("--render", action="store_true", help="write <results>/trials.md from the records")
    parser.add_argument("--trials", help="names, separated by semicolons (default: all)")
    parser.add_argument("--bits", type=int, choices=(4, 2, 1), default=4, help="default: %(default)s")
    parser.add_argument("--from", dest="start", type=Path, metavar="RECTIFIERS",
                        help="below 4 bits: rectifiers.safetensors of a run at the next higher width")
    parser.add_argument("--iterations", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--weights", help="full-precision x2 checkpoint")
    parser.add_argument("--train", help="folder of training images")
    parser.add_argument("--output", type=Path, default=Path("output/recipe_trials"), help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of records (default: %(default)s)")
    arguments = parser.parse_args()
    known = family(arguments.bits).trials
    names = arguments.trials.split(";") if arguments.trials else list(known)
    odd = [name for name in names if name not in known]
    if odd:
        raise UserError(f"--trials: unknown {odd[0]!r}; known at {arguments.bits} bits: {'; '.join(known)}")
    if arguments.run and (arguments.start is not None) != (arguments.bits < 4):
        raise UserError(f"--bits {arguments.bits}: trials below 4 bits, and only these, begin with a run at the next higher "
                        "width (--from RECTIFIERS)")
    if not (arguments.run or arguments.render):
        raise UserError("give --run, --render or both")
    if arguments.run:
        if arguments.weights is None or arguments.train is None:
            raise UserError("--run needs --weights FILE and --train FOLDER")
        cli.prepare(load_config())
        for name in names:
            run(name, arguments.bits, arguments.iterations, arguments.weights, arguments.train, arguments.output,
                arguments.results, arguments.start)
    text = render(arguments.results)
    if arguments.render:
        write_text(arguments.results / "trials.md", text)
    print(text)


if __name__ == "__main__":
    cli.run(main, "Run the same command again to go on")
