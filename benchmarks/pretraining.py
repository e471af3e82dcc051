"""How a full-precision training went: its curve, and its weights on the test sets.

  python tools/pretrain.py -c configs/mambairv2_light_x2_fp.yml -o data.train=DIR -o output_dir=OUT
  python benchmarks/pretraining.py --run OUT --data DATA --sets Set5,Set14 --json benchmarks/results/pretraining.json

OUT is what tools/pretrain.py wrote. The plot lies beside the record.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks import runs  # noqa: E402
from ppsr2q.core.config import load_config  # noqa: E402
from ppsr2q.core.files import atomic_path, load_artifact  # noqa: E402
from ppsr2q.core.resume import KIND as RESUME_KIND  # noqa: E402
from ppsr2q.evaluation.records import circumstances, write_record  # noqa: E402
from ppsr2q.models.checkpoint import KIND  # noqa: E402
from ppsr2q.workflow import cli  # noqa: E402

WEIGHTS, CHECKPOINT = "weights.safetensors", "resume/pretrain.safetensors"  # in what tools/pretrain.py writes
CURVES = {"loss": "loss", "psnr_y": "validation/psnr_y"}


def curves(checkpoint: Path) -> Dict[str, List[Tuple[int, float]]]:
    """(iteration, value) of the loss and of the validation crops' PSNR-Y, whatever parts a run was made in."""
    history = load_artifact(checkpoint, RESUME_KIND).metadata["state"]["history"]
    return {name: [(entry["iteration"], entry[key]) for entry in history if key in entry] for name, key in CURVES.items()}


def record(run: Path, data: Path, sets: Sequence[str], path: Path) -> Mapping[str, Any]:
    """Write the record of a finished run.

    Raises:
        UserError: it has left no weights or no checkpoint, or a test set is missing.
    """
    from ppsr2q.workflow.evaluating import measure
    from ppsr2q.workflow.networks import build_network, upscaler
    weights = run / WEIGHTS
    metadata = load_artifact(weights, KIND).metadata
    model, settings = metadata["config"]["model"], metadata["config"]["pretrain"]
    config = load_config(None, [f"model.name={model['name']}", f"model.scale={model['scale']}", f"model.weights={weights}",
                                f"data.root={data}"])
    network = build_network(config)
    when = circumstances()
    found = measure(config, upscaler(network), network.scale, list(sets))
    start = "" if model["weights"] is None else " -o model.weights=START"
    return write_record(path, f"{model['name']} x{model['scale']} in full precision",
                        {**runs.scores(found, sets, when), "curves": curves(run / CHECKPOINT)}, seconds=metadata["seconds"],
                        how=f"tools/pretrain.py{start}, benchmarks/pretraining.py --run OUT --data DATA",
                        seed=metadata["seed"], schedule=settings, protocol=runs.protocol_of(found), measured=when,
                        fingerprint=metadata["weights_sha256"])


def plot(content: Mapping[str, Any], path: Path) -> None:
    """Loss and PSNR of the validation crops over iterations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name, label in zip(figure.subplots(1, 2), CURVES, ("loss (mean absolute difference)", "validation PSNR-Y/dB")):
        axes.plot(*zip(*content["results"]["curves"][name]), "-" if name == "loss" else "o-", color="#1b7837", linewidth=1)
        axes.set(xlabel="iterations", ylabel=label)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, metavar="OUT", required=True, help="output_dir of tools/pretrain.py")
    parser.add_argument("--data", type=Path, required=True, help="folder with the test sets")
    parser.add_argument("--sets", default="Set5,Set14", help="test sets under DATA (default: %(default)s)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="record to write; the plot beside it")
    arguments = parser.parse_args()
    cli.expect_report(arguments.json)
    cli.prepare(load_config())
    sets = arguments.sets.split(",")
    runs.expect_sets(arguments.data, sets, load_artifact(arguments.run / WEIGHTS, KIND).metadata["architecture"]["scale"])
    content = record(arguments.run, arguments.data, sets, arguments.json)
    plot(content, arguments.json.with_suffix(".png"))
    print("  ".join(f"{name} {content['results'][name]['psnr_y']:.2f}" for name in sets))


if __name__ == "__main__":
    cli.run(main)
