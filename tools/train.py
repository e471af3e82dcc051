"""Quantize a network: search first bounds (stage 0), then train rectifiers, gates and bounds (stage 1, RGT).

  python tools/train.py -c configs/mambairv2_light_x2_w4a4.yml -o model.weights=FILE -o data.train=FOLDER -o output_dir=out

Afterwards: tools/route_calib.py and tools/export.py with the same options. Several processes share the work with
  python -m paddle.distributed.launch --nproc_per_node 2 tools/train.py …
"""
from ppsr2q.core.errors import UserError
from ppsr2q.workflow import cli


def main() -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint under output_dir")
    parser.add_argument("--show-plan", action="store_true",
                        help="print what is quantized (tensor, bits, rectifier, parameters, MACs, bytes) and exit")
    parser.add_argument("--plan-size", metavar="HxW",
                        help="low-resolution size that --show-plan counts MACs for (default: 180x320)")
    arguments = parser.parse_args()
    if arguments.plan_size and not arguments.show_plan:
        raise UserError(f"--plan-size {arguments.plan_size} is of --show-plan, which is not given")
    config = cli.configure(arguments)
    if arguments.show_plan:
        from ppsr2q.workflow.plans import show_plan
        print(show_plan(config, arguments.plan_size or "180x320"))
        return
    from ppsr2q.workflow.training import train
    train(config, arguments.resume)


if __name__ == "__main__":
    cli.run(main, "Run the same command with --resume to go on")
