"""Table 4 of the paper: size, multiply-accumulates and speed-up of MambaIRv2-light x4 at LR 180x320.

  python benchmarks/table4.py --render

Sizes and multiply-accumulates are counted from the plan as the paper counts them (a b-bit weight is b/32 of a float, a
multiply-accumulate of b-bit factors b/32 of one; MiB). The paper's speed-up is the ratio of these counts: nothing was
timed. Ours beside it was: it is the ratio of seconds in the record of ``speed_inference.py``.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any, Mapping, Optional, Tuple

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import runs  # noqa: E402
from benchmarks.inference_plan import CASES, FULL_PRECISION, LARGEST  # noqa: E402
from benchmarks.inference_report import fastest_foreign, seconds_of  # noqa: E402
from ppsr2q.core.config import load_config  # noqa: E402
from ppsr2q.core.errors import UserError  # noqa: E402
from ppsr2q.core.files import write_text  # noqa: E402
from ppsr2q.evaluation.records import read_records  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402

RESULTS = Path(__file__).parent / "results"
CONFIG = str(runs.CONFIGS / "mambairv2_light_x4_fp.yml")
HEIGHT, WIDTH = CASES[LARGEST]
RECORD = "speed_inference"
#: bits (32: full precision) -> size/MiB, FLOPs/G, speed-up of the paper's Table 4
PAPER = {32: (3.01, 75.6, None), 4: (1.20, 22.0, 3.44), 2: (1.07, 18.2, 4.15)}
OURS = {4: "runtime_w4a4", 2: "runtime_w2a2"}


def counted(bits: int, overrides: Mapping[str, Optional[int]] = MappingProxyType({})):
    """The ``quant.cost.Cost`` of a bit width (32: full precision) and exceptions from the plan."""
    from ppsr2q.quant import PLAN_ENTRIES, Plan
    from ppsr2q.quant.cost import count, parameter_sizes
    from ppsr2q.workflow.networks import build_network
    network = build_network(load_config(CONFIG), with_weights=False)
    tensors = [] if bits == 32 else Plan(PLAN_ENTRIES["mambairv2_light"], bits, overrides).resolve(network)
    return count(parameter_sizes(network), network.operations(HEIGHT, WIDTH), tensors)


def measured_speedup(record: Optional[Mapping[str, Any]], bits: int) -> Optional[Tuple[float, str, float]]:
    """(seconds of the fastest full-precision engine that is not ours / seconds of our runtime, that engine's name, the
    same over our own full-precision runtime); None where one of them was not measured."""
    seconds = {} if record is None else seconds_of(record, LARGEST)
    fastest = None if record is None else fastest_foreign(record, LARGEST, full_precision=True)
    if fastest is None or OURS[bits] not in seconds or FULL_PRECISION not in seconds:
        return None
    return seconds[fastest] / seconds[OURS[bits]], fastest, seconds[FULL_PRECISION] / seconds[OURS[bits]]


def _cells(value: str, paper: Optional[float], digits: int) -> str:
    return value if paper is None else f"{value} ({paper:.{digits}f})"


def render(record: Optional[Mapping[str, Any]]) -> str:
    """The table as Markdown.

    Args:
        record: of ``speed_inference.py``, or None.
    """
    full, notes = counted(32), set()
    lines = [f"MambaIRv2-light x4, LR {HEIGHT}x{WIDTH}; the paper's numbers in brackets. Counted: from the plan, as the paper "
             "counts. Measured: seconds of the fastest full-precision engine that is not ours / seconds of our integer "
             "runtime; in square brackets over our own full-precision runtime.", "",
             "| bits | size/MiB | GMACs, weighted by bits/32 | share of low-bit MACs | counted ratio | measured ratio |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for bits, (size, flops, speedup) in PAPER.items():
        for text, overrides in _variants(bits).items():
            cost, timed, ratio = counted(bits, overrides), "", ""
            if bits != 32:
                ratio = _cells(f"{full.weighted_macs / cost.weighted_macs:.2f}", speedup, 2)
                found = None if overrides else measured_speedup(record, bits)
                timed = "" if overrides else "not measured"
                if found is not None:
                    timed = f"{found[0]:.2f} [{found[2]:.2f}]"
                    notes.add(f"Fastest full-precision engine that is not ours: {found[1]}; {record['machine']['cpu']}, "
                              f"{record['protocol']['threads']} threads, commit {record['commit']}.")
            lines.append(f"| {text} | {_cells(f'{cost.size_mib:.2f}', size, 2)} | "
                         f"{_cells(f'{cost.weighted_macs / 1e9:.1f}', flops, 1)} | "
                         f"{cost.quantized_macs / cost.macs:.1%} | {ratio} | {timed} |")
    return "\n".join([*lines, *("\n" + note for note in sorted(notes))]) + "\n"


def _variants(bits: int) -> Mapping[str, Mapping[str, Optional[int]]]:
    """Rows of a bit width: our plan, and the one that the paper's counts fit, which leaves the CPE convolution out."""
    if bits == 32:
        return {"32": {}}
    return {str(bits): {}, f"{bits}, CPE in full precision": {"**.CPE.0.*": None}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="write <results>/table4.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"folder of {RECORD}.json (default: %(default)s)")
    arguments = parser.parse_args()
    if not arguments.render:
        raise UserError("give --render (speed_inference.py measures)")
    cli.prepare(load_config())
    text = render(read_records(arguments.results).get(RECORD))
    write_text(arguments.results / "table4.md", text)
    print(text)


if __name__ == "__main__":
    cli.run(main)
