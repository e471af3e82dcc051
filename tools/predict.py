"""Enlarge an image, all images of a folder, or a video, with a quantized network.

  python tools/predict.py --model out/fused.safetensors photo.png enlarged/
  python tools/predict.py --engine runtime --threads 2 --model out/model.safetensors photos/ enlarged/

Large images: --tile 256 bounds the memory; tiles overlap and are blended, so that no seam shows.
"""
from pathlib import Path

from ppsr2q.core.errors import UserError
from ppsr2q.workflow import cli


def main() -> None:
    parser = cli.make_parser(__doc__, needs_config=False)
    parser.add_argument("--model", metavar="FILE", help="a fused or packed model; without it -c names the run whose model is taken")
    cli.add_engine(parser)
    parser.add_argument("--tile", type=int, default=0, metavar="N",
                        help="side of a tile in low-resolution pixels, 0: whole images (default: %(default)s)")
    parser.add_argument("--overlap", type=int, metavar="N", help="pixels that tiles share (default: 16, or half of a smaller tile)")
    parser.add_argument("input", type=Path, help="image file, folder of images, or video")
    parser.add_argument("output", type=Path, help="folder for the results, same file names (of a video: .mp4)")
    arguments = parser.parse_args()
    if arguments.overlap is not None and not arguments.tile:
        raise UserError(f"--overlap {arguments.overlap} is of --tile N, which is not given")
    config = cli.configure(arguments, needs_paddle=arguments.engine == "paddle")
    from ppsr2q.workflow.evaluating import load_upscaler
    from ppsr2q.workflow.predicting import predict
    upscale, scale = load_upscaler(config, arguments.config, arguments.model, None, arguments.engine,
                                    arguments.threads)
    written = predict(upscale, scale, arguments.input, arguments.output, arguments.tile,
                      min(16, arguments.tile // 2) if arguments.overlap is None else arguments.overlap)
    print(f"{len(written)} file(s) written to {arguments.output}")


if __name__ == "__main__":
    cli.run(main)
