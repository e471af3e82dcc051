"""Table and plot of a record of ``speed_training.py``; every measured figure comes from the record."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, List, Mapping, Optional, Tuple

import numpy as np

from benchmarks.speed_plan import PEER, PEER_KEPT
from ppsr2q.core.files import atomic_path, write_text

Record = Mapping[str, Any]
GIGABYTE = 1e9
#: case, variant that is divided by ``fused``, target, stretch: ratios of medians
RATIOS = [("fp_forward_64", "scan", 12, 20), ("fp_forward_180x320", PEER, 5, 8),
          ("stage1_32", "scan", 10, 20)]
MEMORY = ("stage1_64", 5, 3)  # case, target and stretch in GB
FLATNESS = 0.15  # time per pixel, either side of the middle
_COLORS = {"reference": "#b0b0b0", "scan": "#8c6bb1", PEER: "#e08214", PEER_KEPT: "#fdb863", "fused": "#1b7837"}


def ratio(record: Record, case: str, variant: str) -> Optional[float]:
    """How many times slower than ``fused`` a variant is; None where one of them was not measured."""
    pair = [record["results"]["cases"][case][name].get("seconds") for name in (variant, "fused")]
    return None if None in pair else pair[0] / pair[1]


def flatness(record: Record) -> Tuple[float, float]:
    """Lowest and highest time per pixel relative to the middle of the two, e.g. (-0.08, 0.08)."""
    values = [figures["seconds_per_pixel"] for figures in record["results"]["growth"].values()]
    middle = (min(values) + max(values)) / 2
    return min(values) / middle - 1, max(values) / middle - 1


def fixed_and_per_pixel(record: Record) -> Tuple[float, float]:
    """Seconds that every call of the forward takes and seconds a pixel: the line through the growth with the least
    relative errors."""
    growth = record["results"]["growth"]
    pixels, seconds = [int(side)**2 for side in growth], [figures["seconds"] for figures in growth.values()]
    per_pixel, fixed = np.polyfit(pixels, seconds, 1, w=1 / np.array(seconds))
    return float(fixed), float(per_pixel)


def _figures(figures: Mapping[str, Any], fused: Mapping[str, Any]) -> str:
    if "skipped" in figures:
        return f"skipped: {figures['skipped']}"
    text = f"{figures['seconds']:.3g} s, {figures['peak_bytes'] / GIGABYTE:.2f} GB"
    if figures is not fused and "seconds" in fused:
        text += f" ({figures['seconds'] / fused['seconds']:.1f}×)"
    return text


def met_or_missed(met: bool) -> str:
    """What a report says of a target."""
    return "met" if met else "missed"


def _targets(record: Record) -> List[str]:
    lines = ["| target | measured | target | stretch | |", "|---|---:|---:|---:|---|"]
    for case, variant, target, stretch in RATIOS:
        found = ratio(record, case, variant)
        measured, verdict = ("not run", "") if found is None else \
            (f"{found:.1f}×", met_or_missed(found >= target))
        lines.append(f"| {case}, {variant} / fused | {measured} | {target}× | {stretch}× | {verdict} |")
    case, target, stretch = MEMORY
    peak = record["results"]["cases"][case]["fused"].get("peak_bytes")
    measured, verdict = ("not run", "") if peak is None else \
        (f"{peak / GIGABYTE:.2f} GB", met_or_missed(peak <= target * GIGABYTE))
    lines.append(f"| {case}, peak memory of fused | {measured} | ≤ {target} GB | ≤ {stretch} GB "
                 f"| {verdict} |")
    low, high = flatness(record)
    sides = list(record["results"]["growth"])
    lines.append(f"| time per pixel, {sides[0]}² to {sides[-1]}² | {low:+.0%} … {high:+.0%} "
                 f"| ±{FLATNESS:.0%} | | {met_or_missed(high <= FLATNESS)} |")
    return lines


def markdown(record: Record) -> str:
    """The whole report."""
    machine, protocol, results = record["machine"], record["protocol"], record["results"]
    cases = results["cases"]
    variants = list(dict.fromkeys(variant for case in cases.values() for variant in case))
    lines = ["# Speed of training and of the full-precision network", "",
             f"{machine['cpu']}, {protocol['threads']} threads, {machine['cores']} cores; "
             f"commit {record['commit']}; "
             f"{record['date']}. {protocol['network']}; {protocol['weights']}. Steps: {protocol['steps']}. "
             f"Seconds: {protocol['seconds']}; in brackets: times slower than fused. "
             f"Memory: peak {protocol['peak_bytes']}."]
    if protocol["quick"]:
        lines += ["", "A quick run: few rounds, the slowest variants left out."]
    lines += ["", f"| case | {' | '.join(variants)} |", "|---|" + "---:|" * len(variants)]
    for name, case in cases.items():
        cells = [_figures(case[variant], case["fused"]) if variant in case else "" for variant in variants]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", *_targets(record), "", "| variant | what runs |", "|---|---|"]
    lines += [f"| {name} | {text} |" for name, text in protocol["variants"].items()]
    if results["peer_difference"] is not None:
        lines += ["", f"Outputs of {PEER} equal ours to {results['peer_difference']:.1e} (same routes)."]
    lines += ["", "| square image, fused forward | seconds | µs a pixel |", "|---|---:|---:|"]
    lines += [f"| {side} x {side} | {figures['seconds']:.3g} | {figures['seconds_per_pixel'] * 1e6:.2f} |"
              for side, figures in results["growth"].items()]
    fixed, per_pixel = fixed_and_per_pixel(record)
    lines += ["", f"Fit: {fixed:.3f} s a call + {per_pixel * 1e6:.1f} µs a pixel. The first term is Python calling operators one by "
              "one; it is what keeps the 64 x 64 forward from the time per pixel of larger images."]
    lines += ["", "| threads | fp_forward_180x320, fused |", "|---|---:|"]
    lines += [f"| {threads} | {seconds:.3g} s |" for threads, seconds in results["threads"].items()]
    lines += ["", "| MKL_DEBUG_CPU_TYPE | Paddle's product of 1024 x 1024 matrices |", "|---|---:|"]
    lines += [f"| {name} | {speed:.0f} GFLOP/s |" for name, speed in results["matmul_gflops"].items()]
    return "\n".join(lines) + "\n"


def plot(record: Record, path: Path) -> None:
    """Left: seconds of every case and variant; right: time per pixel over image size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bars, growth = figure.subplots(1, 2, width_ratios=(3, 2))
    height = 0.8 / len(_COLORS)
    for i, (variant, color) in enumerate(_COLORS.items()):
        points = [(row + i * height, case[variant]["seconds"])
                  for row, case in enumerate(record["results"]["cases"].values()) if "seconds" in case.get(variant, {})]
        drawn = bars.barh([y for y, _ in points], [x for _, x in points], height, color=color, label=variant)
        bars.bar_label(drawn, [f"{x:.3g} s" for _, x in points], padding=3, fontsize=8)
    bars.set(xscale="log", xlabel="seconds (log scale)",
             yticks=[row + (len(_COLORS) - 1) / 2 * height for row in range(len(record["results"]["cases"]))],
             yticklabels=list(record["results"]["cases"]))
    bars.margins(x=0.15)
    bars.invert_yaxis()
    bars.legend(fontsize=8, loc="lower right")
    sides = record["results"]["growth"]
    growth.plot([int(side)**2 for side in sides], [f["seconds_per_pixel"] * 1e6 for f in sides.values()],
                "o-", color=_COLORS["fused"])
    growth.set(xscale="log", xlabel="pixels of the low-resolution image", ylabel="µs a pixel, fused forward",
               ylim=(0, None), xticks=[int(side)**2 for side in sides],
               xticklabels=[f"{side}²" for side in sides])
    growth.minorticks_off()
    figure.savefig(path, dpi=130)


def write(json_path: Path, record: Record, markdown: Callable[[Record], str] = markdown,
          plot: Callable[[Record, Path], None] = plot) -> None:
    """Write table and plot of a record beside it."""
    write_text(json_path.with_suffix(".md"), markdown(record))
    with atomic_path(json_path.with_suffix(".png")) as temporary:
        plot(record, temporary)
