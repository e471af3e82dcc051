"""Enlarge an image, or all images of a folder, with a quantized network.

  python tools/predict.py --model out/fused.safetensors photo.png enlarged/

Large images: --tile 256 bounds the memory; tiles overlap and are blended, so that no seam shows.
"""
from pathlib import Path

from ppsr2q.workflow import cli


def main() -> None:
    parser = cli.make_parser(__doc__, needs_config=False)
    parser.add_argument("--model", metavar="FILE", help="a fused model; without it -c names the run whose model is taken")
    parser.add_argument("--tile", type=int, metavar="N",
                        help="side of a tile in low-resolution pixels, 0: whole images (default: eval.tile)")
    parser.add_argument("--overlap", type=int, metavar="N", help="pixels that tiles share (default: eval.overlap)")
    parser.add_argument("input", type=Path, help="image file or folder")
    parser.add_argument("output", type=Path, help="folder for the results, same file names")
    arguments = parser.parse_args()
    config = cli.configure(arguments)
    from ppsr2q.workflow.evaluating import load_upscaler, predict
    upscale, scale = load_upscaler(config, arguments.config, arguments.model, None)
    tile = config.eval.tile if arguments.tile is None else arguments.tile
    overlap = config.eval.overlap if arguments.overlap is None else arguments.overlap
    written = predict(upscale, scale, arguments.input, arguments.output, tile, overlap)
    print(f"{len(written)} image(s) written to {arguments.output}")


if __name__ == "__main__":
    cli.run(main)
