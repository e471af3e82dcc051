"""Table 1 of the paper: the quality of every scale and bit width, ours by the ``best`` recipe (``configs/*_best.yml``).

  python benchmarks/table1.py --run --scale 2 --bits 4,2,1 --weights W.pdparams --data DATA [--schedule reduced]
  python benchmarks/table1.py --measure --scale 2 --bits 4,2,1 --sets Urban100 --data DATA
  python benchmarks/table1.py --render

4 bits begin with searched bounds, 2 and 1 bit with the result of the next higher width, or, as a further piece of
training, with what --from names (give another --output, and --schedule further for gentler rates and larger crops). A
run goes on from whatever it has left under --output whenever it was stopped (--budget MINUTES stops it cleanly). What
it ends with is a packed model and a record beside each other under --results; the PSNR is that of the packed model in
the integer runtime, which --measure adds further test sets to, without training anything, and which anyone can check:

  python tools/evaluate.py --engine runtime --model benchmarks/results/table1/x2_w4a4_fine-tuned.safetensors \\
      -o data.root=DATA --sets Set5

DATA holds train/ and the test sets.
"""
from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import runs  # noqa: E402
from ppsr2q.core.config import (Config, config_to_dict, default_values, flatten, is_reporting,  # noqa: E402
                                load_config)
from ppsr2q.core.errors import UserError  # noqa: E402
from ppsr2q.core.files import atomic_path, load_artifact, tensors_sha256, write_text  # noqa: E402
from ppsr2q.evaluation.evaluator import PROTOCOL  # noqa: E402
from ppsr2q.evaluation.records import (Cell, circumstances, fingerprint_of, read_records,  # noqa: E402
                                       render_table, write_record)
from ppsr2q.workflow import cli  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "table1"
CONFIG = str(runs.CONFIGS / "mambairv2_light_x{scale}_w{bits}a{bits}_best.yml")
SCALES, BITS = (2, 4), (4, 2, 1)
STARTS = {2: 4, 1: 2}  # width -> the one whose result it begins with
SETS = ("Set5", "Set14", "B100", "Urban100")
#: what learns beside bounds and rectifiers; the paper's method is the first
RECIPES = {"rectifiers-only": ["train.finetune=none"], "fine-tuned": []}
#: of stage 1, in options; ``reduced`` has an eighth of the updates, of half as many and smaller crops;
#: ``further`` is for a second piece, on larger crops at half the rates
SCHEDULES = {
    "full": [],
    "reduced": ["train.iterations=1500", "train.batch=4", "train.final_lr_patch=48"],
    "further": ["train.iterations=1200", "train.batch=4", "train.lr_patch=48", "train.warmup=0",
                "train.lr_bounds=5.0e-4", "train.lr_rectifier=1.0e-3", "train.lr_gate=5.0e-4",
                "train.lr_latent=4.0e-4", "train.lr_float=2.0e-4"],
}
#: PSNR-Y/dB on SETS. The paper's: SPR²Q by scale and bits
PAPER = {
    2: {4: (37.72, 33.27, 31.94, 31.53), 2: (35.97, 31.98, 30.95, 28.55), 1: (34.82, 31.27, 30.41, 27.76)},
    4: {4: (31.60, 28.27, 27.33, 25.64), 2: (29.37, 26.73, 26.42, 23.69), 1: (28.84, 26.41, 26.21, 23.41)},
}
#: what to compare with: full precision as published (MambaIRv2-light with Gumbel routing), bicubic as tools/evaluate.py
#: measures it
REFERENCES = {
    2: {"MambaIRv2-light, full precision, as published": (38.26, 34.09, 32.36, 33.26),
        "CARN, full precision, as published": (37.76, 33.52, 32.09, 31.92),
        "FSRCNN, full precision, as published": (37.00, 32.63, 31.53, 29.88),
        "bicubic": (33.67, 30.32, 29.56, 26.88)},
    4: {"MambaIRv2-light, full precision, as published": (32.51, 28.84, 27.75, 26.82),
        "CARN, full precision, as published": (32.13, 28.60, 27.58, 26.07),
        "FSRCNN, full precision, as published": (30.71, 27.59, 26.98, 24.62),
        "bicubic": (28.43, 26.09, 25.96, 23.14)},
}


def run_name(scale: int, bits: int, recipe: str) -> str:
    return f"x{scale}_w{bits}a{bits}_{recipe}"


def run_config(scale: int, bits: int, recipe: str, schedule: Sequence[str] = (), weights: str = "",
               data: Path = Path(), output: Path = Path("output/table1"), start: Optional[Path] = None) -> Config:
    """The config of one run; without weights and data it still tells the plan.

    Args:
        schedule: options on top of the config's.
        start: ``rectifiers.safetensors`` to begin with; by default that of the next higher width under ``output``.
    """
    options = [*schedule, *RECIPES[recipe], f"output_dir={output / run_name(scale, bits, recipe)}"]
    if start is None and bits in STARTS:
        start = output / run_name(scale, STARTS[bits], recipe) / "rectifiers.safetensors"
    if start is not None:
        options.append(f"train.start_from={start}")
    if weights:
        options += [f"model.weights={weights}", f"data.train={data / 'train'}", f"data.root={data}"]
    return load_config(CONFIG.format(scale=scale, bits=bits), options)


def fingerprint(scale: int, bits: int, weights_sha256: str) -> str:
    """Of plan, weights and protocol; what was trained, and for how long, stands in the table itself."""
    from ppsr2q.workflow.networks import build_plan
    config = run_config(scale, bits, "fine-tuned")
    return fingerprint_of(plan=build_plan(config).describe(), weights=weights_sha256, protocol=PROTOCOL,
                          mode=config.eval.mode, routing=config.model.routing)


def run(scale: int, bits: int, recipe: str, schedule: Sequence[str], weights: str, data: Path, sets: Sequence[str],
        output: Path, results: Path, start: Optional[Path] = None, *, how: str) -> None:
    """Train, export and measure one network; of one whose record is current, :func:`measure` what is missing.

    A record of another schedule, plan or other weights is replaced, its model too.

    Args:
        start: as for :func:`run_config`.
        how: the command that repeats it.
    """
    runs.expect_sets(data, sets, scale)
    config = run_config(scale, bits, recipe, schedule, weights, data, output, start)
    name = run_name(scale, bits, recipe)
    model, mark = results / f"{name}.safetensors", fingerprint(scale, bits, runs.weights_hash(config))
    steps = _steps(config)
    begun = Path(config.train.start_from or "")
    steps["start_sha256"] = tensors_sha256(load_artifact(begun).tensors) if begun.is_file() else None
    known = read_records(results).get(name)
    if not (known is not None and known["fingerprint"] == mark and model.exists()
            and _same(known["schedule"], steps)):
        when = circumstances()
        packed, origin = _make(config, CONFIG.format(scale=scale, bits=bits))
        steps.update(start_sha256=origin.get("start_sha256"), earlier=origin.get("earlier", []))
        with atomic_path(model) as temporary:
            shutil.copyfile(packed, temporary)
        write_record(results / f"{name}.json", f"MambaIRv2-light x{scale}, {bits} bits, best ({recipe})",
                     {"bytes": model.stat().st_size}, how=how, seconds=runs.trained_seconds(config, ("rgt", "osrc")),
                     seed=config.seed, fingerprint=mark, schedule=steps, measured=when)
    measure(name, data, sets, results)


def measure(name: str, data: Path, sets: Sequence[str], results: Path) -> None:
    """Measure the packed model of a record on the sets that the record lacks, and add them to it."""
    from ppsr2q.workflow import evaluating
    model, record = results / f"{name}.safetensors", read_records(results)[name]
    missing = [key for key in sets if key not in record["results"]]
    if not missing:
        return
    when, config = circumstances(), load_config(None, [f"data.root={data}"])
    found = evaluating.measure(config, *evaluating.load_upscaler(config, None, str(model), None, "runtime"), missing)
    write_record(results / f"{name}.json", record["what"],
                 {**record["results"], **runs.scores(found, missing, when)}, protocol=runs.protocol_of(found),
                 measured={key: record[key] for key in when},
                 **{key: record[key] for key in ("how", "seconds", "seed", "fingerprint", "schedule")})
    print(f"{name}: " + "  ".join(f"{key} {found[key]['psnr_y']:.2f}" for key in missing), flush=True)


def _steps(config: Config) -> Dict[str, Any]:
    """The options that say what is trained, as a record holds them."""
    options = config_to_dict(config)
    steps = json.loads(json.dumps({key: options[key] for key in ("seed", "quant", "calib", "rectifier", "loss", "train",
                                                                 "route_calib")}))
    del steps["train"]["start_from"]
    return steps


def _same(known: Mapping[str, Any], steps: Mapping[str, Any]) -> bool:
    """Whether a record's schedule is the one asked for; where it began counts only where ``steps`` knows it (what it began
    with may be gone). What a record does not name was not there yet when it was written."""
    if steps["start_sha256"] not in (None, known.get("start_sha256")):
        return False
    return not _changed(known, steps)


def _changed(known: Mapping[str, Any], steps: Mapping[str, Any]) -> Dict[str, Tuple[Any, Any]]:
    """Options that are others in a record's schedule than in ``steps``: (there, here)."""
    before, now = ({key: value for key, value in flatten({**schedule, "earlier": None, "start_sha256": None}).items()
                    if not is_reporting(key)} for schedule in (known, steps))
    defaults = default_values()
    before = {**{key: defaults[key] for key in now if key in defaults}, **before}
    return {key: (before.get(key), now.get(key)) for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


def _make(config: Config, config_path: str) -> Tuple[Path, Mapping[str, Any]]:
    """Stages 1 to 3: (the packed model, what stage 1 says of how it came about)."""
    from ppsr2q.workflow.exporting import export
    from ppsr2q.workflow.paths import paths
    from ppsr2q.workflow.training import calibrate_routing, train
    train(config, resume=True)
    calibrate_routing(config, config_path, resume=True)
    packed = export(config, config_path, ["packed"], rest="float16")["packed"]
    return packed.path, load_artifact(paths(config)["rectifiers"]).metadata


def _label(bits: int, recipe: str, record: Optional[Mapping[str, Any]]) -> str:
    label = f"W{bits}A{bits}, best ({recipe})"
    if record is None:
        return label
    steps = record["schedule"]
    earlier = steps.get("earlier", [])
    before = [piece for piece in earlier if piece["bits"] == bits]
    start = ""
    if len(before) < len(earlier):
        width = [piece["bits"] for piece in earlier if piece["bits"] != bits][-1]
        length = sum(piece["iterations"] for piece in earlier if piece["bits"] == width)
        start = f" from W{width}A{width} of {length:,} iterations"
    alike = itertools.groupby([*before, steps["train"]], key=_crops)
    trained = " + ".join(f"{' + '.join(format(piece['iterations'], ',') for piece in group)} iterations of {crops}"
                         for crops, group in alike)
    return f"{label}{start}, {trained}, {record['results']['bytes'] / 1e6:.2f} MB"


def _crops(piece: Mapping[str, Any]) -> str:
    """What a piece of training (options PIECE) saw in every iteration."""
    text = f"batch {piece['batch']} at LR {piece['lr_patch']}x{piece['lr_patch']}"
    if not piece["final_share"]:
        return text
    return (f"{text} (the last {piece['final_share']:.0%} of batch {piece['final_batch']} at "
            f"{piece['final_lr_patch']}x{piece['final_lr_patch']})")


def _otherwise(scale: int, bits: int, recipe: str, record: Mapping[str, Any]) -> List[str]:
    """A line on what a record was trained with that is neither in its label nor the recipe as it is now."""
    from ppsr2q.workflow.starting import PIECE
    labelled = {f"train.{key}" for key in PIECE}
    changed = _changed(record["schedule"], _steps(run_config(scale, bits, recipe)))
    told = [f"{key} {then} (now {now})" for key, (then, now) in sorted(changed.items()) if key not in labelled]
    return [f"x{scale} W{bits}A{bits}, best ({recipe}), was trained with other options than the recipe has now: "
            + ", ".join(told)] if told else []


def render(results: Path = RESULTS) -> str:
    """The tables of both scales as Markdown, from records alone."""
    records = read_records(results)
    lines = ["MambaIRv2-light, PSNR-Y/dB of the packed models beside the records, ours (the paper's SPR²Q: 12,000 "
             "iterations of batch 8 at LR 64x64 on DF2K). Only `rectifiers-only` trains what the paper trains.", ""]
    for scale in SCALES:
        rows, notes = [], []
        for bits in BITS:
            mark, papers = fingerprint(scale, bits, runs.OFFICIAL_WEIGHTS[scale]), dict(zip(SETS, PAPER[scale][bits]))
            for recipe in RECIPES:
                name = run_name(scale, bits, recipe)
                measured = ()
                if name in records:
                    measured = records[name]["results"]
                    notes += _otherwise(scale, bits, recipe, records[name])
                rows.append((_label(bits, recipe, records.get(name)),
                             [Cell(name if key in measured else "", (key, "psnr_y"), papers.get(key), mark)
                              for key in SETS]))
        lines.append(render_table([f"x{scale}", *SETS], [*rows, *REFERENCES[scale].items()], records))
        lines += [line for note in notes for line in (note, "")]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train, export and measure")
    parser.add_argument("--measure", action="store_true", help="measure --sets with the models under --results")
    parser.add_argument("--render", action="store_true", help="write <results>/table1.md from the records")
    parser.add_argument("--scale", type=int, choices=SCALES, default=2, help="default: %(default)s")
    parser.add_argument("--bits", default="4,2,1", help="in the order to be run (default: %(default)s)")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="fine-tuned", help="default: %(default)s")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="full", help="default: %(default)s")
    parser.add_argument("--iterations", type=int, help="of stage 1, instead of the schedule's")
    parser.add_argument("--from", dest="start", type=Path, metavar="RECTIFIERS",
                        help="rectifiers.safetensors of another run to begin with; --bits must then name one width")
    parser.add_argument("--sets", default=",".join(SETS), help="test sets under DATA (default: %(default)s)")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop cleanly after that time")
    parser.add_argument("--weights", help="full-precision checkpoint of the scale")
    parser.add_argument("--data", type=Path, help="folder with train/ and the test sets")
    parser.add_argument("--output", type=Path, default=Path("output/table1"), help="of runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of records (default: %(default)s)")
    arguments = parser.parse_args()
    bits = [int(n) for n in runs.choose(arguments.bits, list(map(str, BITS)), "bits")]
    sets = runs.choose(arguments.sets, SETS, "sets")
    if not (arguments.run or arguments.measure or arguments.render):
        raise UserError("give --run, --measure or --render")
    if arguments.measure and arguments.data is None:
        raise UserError("--measure needs --data FOLDER")
    if arguments.start and len(bits) > 1:
        raise UserError(f"--from begins one run, but --bits {arguments.bits} asks for {len(bits)}")
    cli.prepare(load_config())
    if arguments.run:
        if arguments.weights is None or arguments.data is None:
            raise UserError("--run needs --weights FILE and --data FOLDER")
        runs.stop_after(arguments.budget)
        started = time.monotonic()
        schedule = list(SCHEDULES[arguments.schedule])
        if arguments.iterations is not None:
            schedule.append(f"train.iterations={arguments.iterations}")
        for width in bits:
            run(arguments.scale, width, arguments.recipe, schedule, arguments.weights, arguments.data, sets,
                arguments.output, arguments.results, arguments.start, how=_command(arguments, width))
        print(f"done in {(time.monotonic() - started) / 60:.0f} min", flush=True)
    if arguments.measure:
        names = [run_name(arguments.scale, width, arguments.recipe) for width in bits]
        for name in names:
            if not (arguments.results / f"{name}.json").is_file():
                raise UserError(f"{arguments.results}: no record {name}.json; --run makes it, --bits leaves it out")
        for name in names:
            measure(name, arguments.data, sets, arguments.results)
    text = render(arguments.results)
    if arguments.render:
        write_text(arguments.results / "table1.md", text)
    print(text)


def _command(arguments: argparse.Namespace, bits: int) -> str:
    """What repeats one of the runs that were asked for, without the places of files."""
    parts = [f"benchmarks/table1.py --run --scale {arguments.scale} --bits {bits} --recipe {arguments.recipe}",
             f"--schedule {arguments.schedule}"]
    parts += [f"--iterations {arguments.iterations}"] * (arguments.iterations is not None)
    parts += ["--from RECTIFIERS"] * (arguments.start is not None)
    return " ".join([*parts, "--weights W --data DATA"])


if __name__ == "__main__":
    cli.run(main, "Run the same command again to go on")
