"""Train a full-precision network from scratch, or train one further.

  python tools/pretrain.py -c configs/mambairv2_light_x2_fp.yml -o data.train=FOLDER -o model.init=bilinear
"""
from ppsr2q.workflow import cli


def main() -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint under output_dir")
    arguments = parser.parse_args()
    config = cli.configure(arguments)
    from ppsr2q.workflow.pretraining import pretrain
    pretrain(config, arguments.resume)


if __name__ == "__main__":
    cli.run(main, "Run the same command with --resume to go on")
