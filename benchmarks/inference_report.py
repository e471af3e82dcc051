"""Table and plot of a record of ``speed_inference.py``; every figure comes from the record."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from benchmarks.inference_plan import ENGINES, GROWING, LARGEST, PART_BITS, PARTS, RUNTIME, part_network
from benchmarks.speed_report import FLATNESS, flatness, met_or_missed

Record = Mapping[str, Any]
MIB = 2**20
SMALL_LOSS = 0.05  # dB: what an engine may lose to count as one of those to be beaten
PEAK_MIB = 300
#: (slower engine, faster engine, wanted ratio of their seconds)
OWN_RATIOS = [("runtime_fp32", "runtime_w4a4", 1.5), ("runtime_w8a8", "runtime_w4a4", 1.1)]


def seconds_of(record: Record, case: str) -> Dict[str, float]:
    """Engine -> median seconds, of those that ran."""
    return {name: figures["seconds"] for name, figures in record["results"]["cases"][case].items() if "seconds" in figures}


def fastest_foreign(record: Record, case: str, full_precision: bool) -> Optional[str]:
    """The fastest engine that is not ours: of the full-precision ones, or of all that lose at most SMALL_LOSS."""
    def counts(name):
        if full_precision:
            return ENGINES[name].full_precision
        loss = record["results"]["cases"][case][name]["psnr_loss"]
        return loss is not None and loss <= SMALL_LOSS

    seconds = seconds_of(record, case)
    names = [name for name in seconds if not ENGINES[name].ours and counts(name)]
    return min(names, key=seconds.__getitem__, default=None)


def _cell(figures: Mapping[str, Any]) -> str:
    if "skipped" in figures:
        return f"skipped: {figures['skipped']}"
    return f"{figures['seconds']:.3g} s, {figures['peak_bytes'] / MIB:.0f} MiB"


def _loss(figures: Mapping[str, Any]) -> str:
    return "" if figures.get("psnr_loss") is None else f"{figures['psnr_y']:.2f} ({-figures['psnr_loss']:+.2f})"


def _ratio_line(text: str, seconds: Mapping[str, float], slow: Optional[str], fast: str, target: float,
                stretch: str = "") -> str:
    if slow not in seconds or fast not in seconds:
        return f"| {text} | not run | {target}× | {stretch} | |"
    found = seconds[slow] / seconds[fast]
    return f"| {text} ({slow}) | {found:.2f}× | {target}× | {stretch} | {met_or_missed(found >= target)} |"


def _parts(seconds: Mapping[str, Any]) -> List[str]:
    """What quantizing one part of the network alone saves, and what all of it."""
    if "skipped" in seconds:
        return ["", f"What quantizing each part saves: skipped: {seconds['skipped']}"]
    rows = {part: [part_network(part, bits) for bits in PART_BITS] for part in PARTS}
    rows["all of the plan"] = [f"w{bits}a{bits}" for bits in PART_BITS]
    lines = ["", f"| quantized, our runtime, {LARGEST} | " + " | ".join(f"{bits} bits" for bits in PART_BITS) + " |",
             "|---|" + "---:|" * len(PART_BITS), "| nothing | " + " | ".join([f"{seconds['fp32']:.3f} s"] * len(PART_BITS))
             + " |"]
    return lines + [f"| {text} | " + " | ".join(f"{seconds[name] - seconds['fp32']:+.3f} s" for name in names) + " |"
                    for text, names in rows.items()]


def _targets(record: Record) -> List[str]:
    seconds = seconds_of(record, LARGEST)
    lines = [f"| target, {LARGEST} | measured | target | stretch | |", "|---|---:|---:|---:|---|",
             _ratio_line("W4A4 over the fastest full-precision engine that is not ours", seconds,
                         fastest_foreign(record, LARGEST, True), "runtime_w4a4", 2.5, "3.44×")]
    lossy = fastest_foreign(record, LARGEST, False)
    if lossy is not None and "runtime_w4a4" in seconds:
        lines.append(f"| W4A4 over the fastest that loses at most {SMALL_LOSS} dB ({lossy}) | "
                     f"{seconds[lossy] / seconds['runtime_w4a4']:.2f}× | | | |")
    lines += [_ratio_line("W4A4 over our own", seconds, slow, fast, target) for slow, fast, target in OWN_RATIOS]
    if {"runtime_w2a2", "runtime_w4a4"} <= set(seconds):
        found = seconds["runtime_w2a2"] / seconds["runtime_w4a4"]
        lines.append(f"| time of W2A2 / time of W4A4 | {found:.2f} | ≤ 1.05 | | {met_or_missed(found <= 1.05)} |")
    peak = record["results"]["cases"][LARGEST]["runtime_w4a4"].get("peak_bytes")
    if peak is not None:
        lines.append(f"| peak memory of W4A4 | {peak / MIB:.0f} MiB | ≤ {PEAK_MIB} MiB | | "
                     f"{met_or_missed(peak <= PEAK_MIB * MIB)} |")
    growth = record["results"]["growth"]
    if "skipped" not in growth:
        low, high = flatness(record)
        sides = list(growth)
        lines.append(f"| time per pixel, {sides[0]}² to {sides[-1]}² | {low:+.0%} … {high:+.0%} | ±{FLATNESS:.0%} | "
                     f"| {met_or_missed(high <= FLATNESS)} |")
    return lines


def markdown(record: Record) -> str:
    """The whole report."""
    machine, protocol, results = record["machine"], record["protocol"], record["results"]
    cases = results["cases"]
    lines = ["# Speed of inference", "",
             f"{machine['cpu']}, {protocol['threads']} threads, {machine['cores']} cores; commit {record['commit']}; "
             f"{record['date']}. {protocol['network']}; {protocol['weights']}. Seconds: {protocol['seconds']}. Memory: "
             f"peak {protocol['peak_bytes']}. PSNR: {protocol['psnr']}."]
    if protocol["quick"]:
        lines += ["", "A quick run: small images, one round, bounds from a coarse search."]
    lines += ["", f"| engine | {' | '.join(cases)} | PSNR/dB (difference) | what runs |",
              "|---|" + "---:|" * (len(cases) + 1) + "---|"]
    for name, text in protocol["engines"].items():
        figures = next((case[name] for case in cases.values() if "psnr_y" in case[name]), {})
        lines.append(f"| {name} | {' | '.join(_cell(case[name]) for case in cases.values())} | {_loss(figures)} | {text} |")
    lines += ["", *_targets(record), "", "| network | packed file | made how |", "|---|---:|---|"]
    lines += [f"| {name} | {network['bytes']:,} B | {network['origin']} |" for name, network in results["networks"].items()]
    lines += _parts(results.get("parts", {"skipped": "not measured"}))
    growth = results["growth"]
    if "skipped" in growth:
        lines += ["", f"Growth with pixels, {GROWING}: skipped: {growth['skipped']}"]
    else:
        lines += ["", f"| square image, {GROWING} | seconds | µs a pixel |", "|---|---:|---:|"]
        lines += [f"| {side} x {side} | {figures['seconds']:.3g} | {figures['seconds_per_pixel'] * 1e6:.2f} |"
                  for side, figures in growth.items()]
    return "\n".join(lines) + "\n"


def _points(record: Record) -> Tuple[str, List[Tuple[str, float, float, float]]]:
    """The largest case that ran, and its (engine, milliseconds, bytes of the packed network, PSNR)."""
    names = list(record["results"]["cases"])
    case = next((name for name in reversed(names) if seconds_of(record, name)), names[0])
    networks = record["results"]["networks"]
    return case, [(name, 1e3 * figures["seconds"], networks[ENGINES[name].network]["bytes"], figures["psnr_y"])
                  for name, figures in record["results"]["cases"][case].items() if "seconds" in figures]


def plot(record: Record, path: Path) -> None:
    """PSNR against milliseconds (left) and against bytes of the packed network (right)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    case, points = _points(record)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    time, size = figure.subplots(1, 2, width_ratios=(3, 2))
    for name, milliseconds, _, psnr in points:
        color = "#1b7837" if ENGINES[name].ours else "#8c6bb1"
        time.plot(milliseconds, psnr, "o", color=color)
        time.annotate(name, (milliseconds, psnr), xytext=(2, 4), textcoords="offset points", fontsize=7, rotation=40)
    for name, _, count, psnr in points:
        if name in RUNTIME:
            size.plot(count / 1e6, psnr, "o", color="#1b7837")
            size.annotate(ENGINES[name].network, (count / 1e6, psnr), xytext=(4, 4), textcoords="offset points",
                          fontsize=8)
    time.set(xscale="log", xlabel=f"milliseconds, {case} (log scale)", ylabel="PSNR-Y/dB")
    size.set(xlabel="MB of the packed network", ylabel="PSNR-Y/dB")
    for axes in (time, size):
        axes.margins(0.15)
    figure.savefig(path, dpi=130)
