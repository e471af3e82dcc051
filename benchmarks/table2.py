"""Table 2a of the paper: what every step of the method brings, with two controls that the paper lacks.

  python benchmarks/table2.py --run --weights W.pdparams --data DATA --schedule short --rows searched,trained --bits 4
  python benchmarks/table2.py --render

One schedule, one seed and the same crops for all rows; RGT, OSRC and full rank are run with three seeds at 4 bits. DATA
holds train/ and the test sets. A run goes on from whatever it has left under --output, bit for bit, whenever it was
stopped; --budget MINUTES stops it cleanly. Every finished row writes its record at once. Records of another plan,
schedule, protocol or other weights than those asked for are listed as stale and enter no cell. Without --weights and
--data the environment variables PPSR2Q_WEIGHTS and PPSR2Q_DATA are read.
"""
from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import runs  # noqa: E402
from ppsr2q.core.config import (Config, config_to_dict, default_values, flatten, is_reporting,  # noqa: E402
                                load_config, without_folders)
from ppsr2q.core.errors import UserError  # noqa: E402
from ppsr2q.core.files import write_text  # noqa: E402
from ppsr2q.evaluation.evaluator import PROTOCOL  # noqa: E402
from ppsr2q.evaluation.records import (Cell, circumstances, fingerprint_of, read_records,  # noqa: E402
                                       render_table, write_record)
from ppsr2q.workflow import cli  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "table2"
SETS = ("Set5", "Set14", "B20", "Urban20")
SEEDS = (10, 11, 12)
#: schedule -> config
SCHEDULES = {"short": str(runs.CONFIGS / "mambairv2_light_x2_w{bits}a{bits}_short.yml"),
             "paper": str(runs.CONFIGS / "mambairv2_light_x2_w{bits}a{bits}.yml")}


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        stage: what is measured (``stages.network_of_stage``).
        options: on top of config and schedule.
        folder: of the run; rows of one folder share what it trained.
        seeded: run with all of SEEDS at 4 bits.
        further: key of the row whose run is trained on, for as many iterations as OSRC has.
        paper: {(bits, set): dB} of the paper (12,000 + 500 iterations at LR 64x64, DF2K).
    """

    title: str
    stage: str
    options: Tuple[str, ...] = ()
    folder: str = ""
    seeded: bool = False
    further: Optional[str] = None
    paper: Mapping[Tuple[int, str], float] = field(default_factory=dict)

    @property
    def stages(self) -> Tuple[str, ...]:
        """The stages that train it."""
        return {"fp": (), "searched": (), "osrc": ("rgt", "osrc")}.get(self.stage, ("rgt",))


ROWS: Dict[str, Row] = {
    "fp": Row("full precision, argmax routing", "fp", folder="fp"),
    "one_sided": Row("searched bounds, one-sided after a softmax (2DQuant's paper)", "searched",
                     ("rectifier.enabled=false", "calib.dobi_mode=paper"), "one_sided"),
    "searched": Row("searched bounds (2DQuant's code)", "searched", ("rectifier.enabled=false",), "searched"),
    "fitted": Row("searched bounds, then fitted by least squares (ours)", "searched",
                  ("rectifier.enabled=false", "calib.dobi_mode=fit"), "fitted"),
    "trained": Row("trained bounds", "bounds", ("rectifier.enabled=false",), "trained",
                   paper={(4, "Set5"): 37.20, (4, "Urban100"): 30.69}),
    "pqfr": Row("PQFR (N = 1, no gate)", "rgt", ("rectifier.number=1",), "pqfr",
                paper={(4, "Set5"): 37.44, (4, "Urban100"): 31.25}),
    "static": Row("RGT, static gate", "rgt", ("rectifier.gate=static",), "static"),
    "rgt": Row("RGT, dynamic gate", "rgt", (), "rgt", seeded=True,
               paper={(4, "Set5"): 37.60, (4, "Urban100"): 31.24}),
    "osrc": Row("RGT + OSRC", "osrc", (), "rgt", seeded=True,
                paper={(4, "Set5"): 37.72, (4, "Urban100"): 31.53, (2, "Set5"): 35.97, (2, "Urban100"): 28.55}),
    "ours": Row("RGT + OSRC, bounds fitted, features relative to the teacher's (ours)", "osrc",
                ("calib.dobi_mode=fit", "loss.feature_norm=teacher", "loss.feature_weight=0.02"), "ours"),
    "further": Row("control: RGT, as many further iterations as OSRC", "rgt", (), "further", further="rgt"),
    "full_rank": Row("control: full-rank ΔW (no group, no gate)", "bounds",
                     ("rectifier.form=full_rank", "rectifier.number=1"), "full_rank", seeded=True),
}
#: (row, the row it is compared with)
COMPARISONS = (("rgt", "trained"), ("pqfr", "rgt"), ("static", "rgt"), ("osrc", "rgt"), ("osrc", "further"),
               ("full_rank", "rgt"), ("full_rank", "osrc"), ("ours", "osrc"))


def row_config(row: Row, bits: int, seed: int, schedule: str, weights: Optional[str] = None,
               data: Optional[Path] = None, output: Path = Path("output/table2")) -> Config:
    """The config of one run; without weights and data it still tells plan and schedule."""
    folder = output / schedule / f"w{bits}"
    path = SCHEDULES[schedule].format(bits=bits)
    options = [*row.options, f"seed={seed}", f"output_dir={folder / f'{row.folder}-s{seed}'}"]
    if row.further:
        start = folder / f"{ROWS[row.further].folder}-s{seed}" / "rectifiers.safetensors"
        iterations = load_config(path).route_calib.iterations
        options += [f"train.start_from={start}", f"train.iterations={iterations}"]
    if weights is not None:
        options += [f"model.weights={weights}", f"data.train={data / 'train'}", f"data.root={data}"]
    return load_config(path, options)


def fingerprint(row: Row, bits: int, seed: int, schedule: str, weights_sha256: str) -> str:
    """Of everything whose change makes a record stale: plan, options, weights and protocol; not where files lie, nor
    how often a run reports. Options at their defaults are left out, so that a new one makes no record stale."""
    from ppsr2q.workflow.networks import build_plan
    config = row_config(row, bits, seed, schedule)
    options = config_to_dict(config)
    read = {name: options[name] for name in ("seed", "quant", "calib", "rectifier", "loss", "train", "route_calib")}
    defaults = default_values()
    kept = {key: value for key, value in flatten(read).items()
            if value != defaults.get(key) and key != "train.start_from" and not is_reporting(key)}
    parent = fingerprint(ROWS[row.further], bits, seed, schedule, weights_sha256) if row.further else None
    return fingerprint_of(plan=build_plan(config).describe(), options=kept, weights=weights_sha256, stage=row.stage,
                          parent=parent, protocol=PROTOCOL, mode=config.eval.mode,
                          routing=[config.model.routing, config.model.routing_seed])


def record_name(key: str, bits: int, seed: int, schedule: str) -> str:
    return f"{schedule}_w{bits}_{key}_s{seed}"


def seeds_of(row: Row, bits: int, seeds: int) -> Sequence[int]:
    return SEEDS[:seeds] if row.seeded and bits == 4 else SEEDS[:1]


def _prepare(config: Config, row: Row, config_path: str) -> None:
    """Train what the row needs. A finished run resumes to its result in seconds, and one of other options is refused."""
    from ppsr2q.workflow.starting import search_only
    from ppsr2q.workflow.training import calibrate_routing, train
    if row.stage == "searched":
        search_only(config)
    elif row.stages:
        train(config, resume=True)
    if row.stage == "osrc":
        calibrate_routing(config, config_path, resume=True)


def run_row(key: str, bits: int, seed: int, schedule: str, weights: str, data: Path, sets: Sequence[str],
            output: Path, results: Path) -> None:
    """Train and measure one row; sets that its current record already holds are not measured again."""
    from ppsr2q.workflow.evaluating import load_upscaler, measure
    row, name = ROWS[key], record_name(key, bits, seed, schedule)
    config = row_config(row, bits, seed, schedule, weights, data, output)
    mark = fingerprint(row, bits, seed, schedule, runs.weights_hash(config))
    known = read_records(results).get(name)
    if known and known["fingerprint"] != mark:
        known = None
    measured = known["results"] if known else {}
    missing = [name for name in sets if name not in measured]
    if not missing:
        return
    runs.expect_sets(data, missing, config.model.scale)
    when = circumstances()
    config_path = SCHEDULES[schedule].format(bits=bits)
    if row.further:
        parent = ROWS[row.further]
        _prepare(row_config(parent, bits, seed, schedule, weights, data, output), parent, config_path)
    _prepare(config, row, config_path)
    found = measure(config, *load_upscaler(config, config_path, None, row.stage), missing)
    measured = {**measured, **runs.scores(found, missing, when)}
    options = without_folders(config_to_dict(config))
    write_record(results / f"{name}.json", f"Table 2a, {row.title}, x2, {bits} bits", measured,
                 how=f"benchmarks/table2.py --run --schedule {schedule} --rows {key} --bits {bits} --weights W --data DATA",
                 seconds=runs.trained_seconds(config, row.stages), seed=seed, protocol=runs.protocol_of(found), fingerprint=mark,
                 schedule={"name": schedule, **{k: options[k] for k in ("calib", "train", "route_calib")}},
                 measured={key: known[key] for key in when} if known else when)
    print(f"{name}: " + "  ".join(f"{s} {v['psnr_y']:.2f}" for s, v in measured.items()), flush=True)


def comparisons(bits: int, schedule: str, records: Mapping[str, Mapping[str, Any]], sets: Sequence[str]) -> str:
    """A Markdown table of COMPARISONS: mean difference at equal seeds ± its spread, and the number of seeds. Empty where no
    two rows were run."""
    lines = []
    for first, second in COMPARISONS:
        cells = [_difference(*(_by_seed(key, bits, schedule, records, test_set) for key in (first, second)))
                 for test_set in sets]
        if any(cells):
            lines.append(f"| {ROWS[first].title} against {ROWS[second].title} | {' | '.join(cells)} |")
    head = [f"| {bits} bits, difference | {' | '.join(sets)} |", "| --- |" + " ---: |" * len(sets)]
    return "\n".join([*head, *lines]) + "\n" if lines else ""


def _difference(a: Mapping[int, float], b: Mapping[int, float]) -> str:
    """Of two rows by seed. The spread is the standard deviation of the differences, or with one seed in common that of
    either row; a difference below twice its spread is none."""
    differences = [a[seed] - b[seed] for seed in SEEDS if seed in a and seed in b]
    if not differences:
        return ""
    compared = [differences] if len(differences) > 1 else [list(a.values()), list(b.values())]
    spread = max((statistics.stdev(values) for values in compared if len(values) > 1), default=None)
    difference = statistics.fmean(differences)
    none = "none: " if spread is not None and abs(difference) < 2 * spread else ""
    return f"{none}{difference:+.2f} ± {'?' if spread is None else format(spread, '.2f')} ({len(differences)})"


def _by_seed(key: str, bits: int, schedule: str, records: Mapping[str, Mapping[str, Any]],
             test_set: str) -> Dict[int, float]:
    found = {seed: records.get(record_name(key, bits, seed, schedule), {"results": {}})["results"] for seed in SEEDS}
    return {seed: results[test_set]["psnr_y"] for seed, results in found.items() if test_set in results}


def split_records(records: Mapping[str, Mapping[str, Any]], schedule: str,
                  weights_sha256: str) -> Tuple[Dict[str, Mapping[str, Any]], List[str]]:
    """(the records of this schedule that belong to the current plan, weights and protocol, names of the others)."""
    wanted = {record_name(key, bits, seed, schedule): (row, bits, seed)
              for key, row in ROWS.items() for bits in (4, 2) for seed in SEEDS}
    current, stale = {}, []
    for name, record in records.items():
        if not name.startswith(f"{schedule}_"):
            continue
        known = wanted.get(name)
        if known and record["fingerprint"] == fingerprint(*known, schedule, weights_sha256):
            current[name] = record
        else:
            stale.append(name)
    return current, stale


def render(schedule: str, weights_sha256: str, results: Path = RESULTS) -> str:
    """The tables of a schedule as Markdown, from records alone: SETS, and whatever further sets these hold."""
    records, stale = split_records(read_records(results), schedule, weights_sha256)
    sets = list(dict.fromkeys([*SETS, *(name for record in records.values() for name in record["results"])]))
    steps = load_config(SCHEDULES[schedule].format(bits=4))
    train = steps.train
    lines = [f"MambaIRv2-light x2, PSNR-Y/dB (SSIM-Y in the records), ours (the paper's). Schedule `{schedule}`: "
             f"{train.iterations} iterations of batch {train.batch} at LR {train.lr_patch}x{train.lr_patch}, "
             f"{steps.route_calib.iterations} of OSRC; learning rates of bounds ({steps.quant.parametrization}), "
             f"rectifiers and gates {train.lr_bounds:g}, {train.lr_rectifier:g} and {train.lr_gate:g}. The paper's is "
             "12,000 and 500 at LR 64x64 on DF2K, 1e-2 (absolute). B20 and Urban20 are every fifth image of B100 and "
             "Urban100. ± is the standard deviation over the seeds that were run, where there are several. Differences are "
             "means over the seeds that both rows have (their number in brackets) ± the standard deviation of the differences, "
             "or with one such seed that of a row's own seeds; one below twice that is none.",
             ""]
    for bits in (4, 2):
        rows = []
        for key, row in ROWS.items():
            cells = []
            for test_set in sets:
                names = [record_name(key, bits, seed, schedule)
                         for seed in _by_seed(key, bits, schedule, records, test_set)]
                cells.append(Cell(names, (test_set, "psnr_y"), row.paper.get((bits, test_set))))
            urban = row.paper.get((bits, "Urban100"))
            rows.append((row.title + (f"; the paper on Urban100: {urban:.2f}" if urban else ""), cells))
        lines.append(render_table([f"{bits} bits", *sets], rows, records))
        lines.append(comparisons(bits, schedule, records, sets))
    if stale:
        lines += [f"Stale, of another plan, weights, schedule or protocol, to be run again: {', '.join(stale)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="train and measure")
    parser.add_argument("--render", action="store_true", help="write <results>/<schedule>.md from the records")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="short", help="default: %(default)s")
    parser.add_argument("--rows", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--bits", default="4,2", help="default: %(default)s")
    parser.add_argument("--sets", default=",".join(SETS), help="of --run: test sets under DATA (default: %(default)s)")
    parser.add_argument("--seeds", type=int, choices=(1, 2, 3), default=3, help="of the seeded rows at 4 bits")
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="stop cleanly after that time")
    parser.add_argument("--weights", default=os.environ.get("PPSR2Q_WEIGHTS"), help="full-precision x2 checkpoint")
    parser.add_argument("--data", type=Path, default=os.environ.get("PPSR2Q_DATA"),
                        help="folder with train/ and the test sets")
    parser.add_argument("--output", type=Path, default=Path("output/table2"), help="of runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of records (default: %(default)s)")
    arguments = parser.parse_args()
    rows = runs.choose(arguments.rows, list(ROWS), "rows")
    bits = [int(n) for n in runs.choose(arguments.bits, ["4", "2"], "bits")]
    sets = arguments.sets.split(",")
    if not (arguments.run or arguments.render):
        raise UserError("give --run, --render or both")
    if arguments.run:
        if arguments.weights is None or arguments.data is None:
            raise UserError("--run needs --weights FILE and --data FOLDER (or PPSR2Q_WEIGHTS and PPSR2Q_DATA)")
        runs.stop_after(arguments.budget)
        cli.prepare(load_config())
        started = time.monotonic()
        for number, key, seed in [(n, k, s) for n in bits for k in rows
                                  for s in seeds_of(ROWS[k], n, arguments.seeds)]:
            run_row(key, number, seed, arguments.schedule, arguments.weights, arguments.data,
                    sets, arguments.output, arguments.results)
        print(f"done in {(time.monotonic() - started) / 60:.0f} min", flush=True)
    text = render(arguments.schedule, _weights_hash(arguments.weights), arguments.results)
    if arguments.render:
        write_text(arguments.results / f"{arguments.schedule}.md", text)
    print(text)


def _weights_hash(weights: Optional[str]) -> str:
    """Of a checkpoint's tensors; of the official one's when none is given."""
    if weights is None:
        return runs.OFFICIAL_WEIGHTS[2]
    return runs.weights_hash(load_config(SCHEDULES["paper"].format(bits=4), [f"model.weights={weights}"]))


if __name__ == "__main__":
    cli.run(main, "Run the same command again to go on")
