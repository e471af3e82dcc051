"""Measure PSNR and SSIM on test sets.

  python tools/evaluate.py --model out/fused.safetensors -o data.root=FOLDER --sets Set5,Set14 --json results.json
  python tools/evaluate.py --engine runtime --threads 2 --model out/model.safetensors -o data.root=FOLDER --sets Set5
  python tools/evaluate.py -c configs/mambairv2_light_x2_fp.yml -o model.weights=FILE -o data.root=FOLDER

FOLDER holds Set5/HR/*, … (tools/prepare_data.py checks it). Missing low-resolution images are made in memory.
"""
from pathlib import Path

from ppsr2q.workflow import cli


def main() -> None:
    parser = cli.make_parser(__doc__, needs_config=False)
    parser.add_argument("--model", metavar="FILE",
                        help="a fused or packed model; carries its architecture and plan, -c is then optional")
    cli.add_engine(parser)
    parser.add_argument("--stage", choices=("bicubic", "fp", "searched", "bounds", "rgt", "osrc", "fused"),
                        help="with -c: which state to measure (default: fused, or fp with quant.bits: null)")
    parser.add_argument("--sets", metavar="A,B", help="test sets (default: data.sets of the config)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results, image by image")
    arguments = parser.parse_args()
    config = cli.configure(arguments, needs_paddle=arguments.engine == "paddle")
    from ppsr2q.core.files import write_text
    from ppsr2q.evaluation.evaluator import format_results
    from ppsr2q.workflow.evaluating import as_json, described, find_sets, load_upscaler, measure, scale_of
    if arguments.json:
        cli.expect_report(arguments.json)
    sets = arguments.sets.split(",") if arguments.sets else config.data.sets
    find_sets(config, scale_of(config, arguments.model), sets)
    upscale, scale = load_upscaler(config, arguments.config, arguments.model, arguments.stage, arguments.engine,
                                    arguments.threads)
    if arguments.json:  # before hours in which the file may change
        measured = described(config, arguments.config, arguments.model, arguments.stage, arguments.engine)
    results = measure(config, upscale, scale, sets)
    print(format_results(results))
    if arguments.json:
        write_text(arguments.json, as_json({**results, "measured": measured}))


if __name__ == "__main__":
    cli.run(main)
