"""Fuse rectifiers and weight quantizers into the weights (stage 3), and write the network in the formats that ship.

  python tools/export.py -c configs/mambairv2_light_x2_w4a4.yml (and the -o options that train.py had)
  python tools/export.py -c configs/mambairv2_light_x4_w4a4.yml -o output_dir=out --format packed

fused    fused.safetensors: float weights and all bounds
packed   model.safetensors: codes, bounds and the rest; small, runs without Paddle
onnx     model.onnx: one image of any height and width, in the form that --target runs fastest
openvino openvino/: OpenVINO's IR, one image of any height and width; with --optimize the scan is a C++ extension.
         Without VNNI instructions it saturates products of 8-bit codes with 8-bit weights: at 8 bits train with
         -o 'quant.overrides.**.weight=7' for a network that is exact on every processor
torch    torch.safetensors: weights for the official PyTorch network, which ppsr2q/deploy/torch_loader.py quantizes
paddle   inference/: Paddle inference model, one image of any height and width, for Paddle's own tools: its executor runs
         the scan step by step, which took more than 45 s, or more than 16 GB, for 64x64 pixels

Leaves with exit code 3 when a written model answers differently from the calibrated student.
"""
from ppsr2q.workflow import cli


def report(written) -> None:
    print(f"{written.path}: {written.size:,} bytes ({written.size / 2**20:.3f} MiB), {written.measure} to the "
          f"calibrated student {written.difference:.2g}", flush=True)


def main() -> None:
    parser = cli.make_parser(__doc__)
    parser.add_argument("--format", default="fused,packed,paddle", metavar="A,B", help="what to write (default: %(default)s)")
    parser.add_argument("--rest", choices=("float32", "float16"), default="float32",
                        help="type of what is not quantized in a packed model (default: %(default)s)")
    parser.add_argument("--target", default="ort", metavar="ENGINE",
                        help="of the ONNX file: ort (ONNX Runtime), openvino, tensorrt (not run by the authors), or "
                             "float, the quantizers' own arithmetic for any engine (default: %(default)s)")
    parser.add_argument("--optimize", action="store_true",
                        help="OpenVINO: the scans as operators of a library that is built here and put beside the IR "
                             "(load it first: core.add_extension)")
    arguments = parser.parse_args()
    config = cli.configure(arguments)
    from ppsr2q.workflow.exporting import export
    export(config, arguments.config, arguments.format.split(","), arguments.rest, arguments.target, arguments.optimize,
           report)


if __name__ == "__main__":
    cli.run(main)
