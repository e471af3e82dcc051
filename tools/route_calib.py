"""Settle the mixing weights of the rectifiers once and for all (stage 2, OSRC); writes the SPR²Q Table.

  python tools/route_calib.py -c configs/mambairv2_light_x2_w4a4.yml (and the -o options that train.py had)
"""
from ppsr2q.workflow import cli


def main() -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint under output_dir")
    arguments = parser.parse_args()
    config = cli.configure(arguments)
    from ppsr2q.workflow.training import calibrate_routing
    calibrate_routing(config, arguments.config, arguments.resume)


if __name__ == "__main__":
    cli.run(main, "Run the same command with --resume to go on")
