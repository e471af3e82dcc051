"""Fuse rectifiers and weight quantizers into the weights (stage 3), check parity, write the Paddle inference model.

  python tools/export.py -c configs/mambairv2_light_x2_w4a4.yml (and the -o options that train.py had)

Leaves with exit code 3 when a written model answers differently from the calibrated student.
"""
from ppsr2q.workflow import cli


def main() -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--no-inference-model", action="store_true", help="write fused.safetensors only")
    arguments = parser.parse_args()
    config = cli.configure(arguments)
    from ppsr2q.workflow.exporting import export
    exported = export(config, arguments.config, not arguments.no_inference_model)
    print(f"{exported.fused}: {exported.fused.stat().st_size:,} bytes, differs from the calibrated student by "
          f"{exported.fused_difference:.2g}")
    if exported.inference_difference is not None:
        print(f"{exported.inference}: Paddle inference model, any height and width, differs by "
              f"{exported.inference_difference:.2g} (root mean square)")


if __name__ == "__main__":
    cli.run(main)
