"""What ``speed_inference.py`` measures, as data (neither Paddle nor an engine needed)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

SEED = 10
SIDES = (64, 128, 256, 384, 512)  # of the square images that show growth with pixels
GROWING = "runtime_w4a4"
CASES: Dict[str, Tuple[int, int]] = {"x4_64x64": (64, 64), "x4_180x320": (180, 320)}  # low-resolution height, width
SMALLEST, LARGEST = "x4_64x64", "x4_180x320"
ROUNDS = 3
SLOW = ("paddle_inference", "openvino_fp32_decomposed")  # left out of quick runs: they take long to load


@dataclass(frozen=True)
class Network:
    """A packed model that engines run.

    Attributes:
        bits: of the plan; None: full precision.
        overrides: of the plan.
    """

    bits: Optional[int]
    overrides: Tuple[Tuple[str, Optional[int]], ...] = ()


#: Parts of the network -> the tensors of the plan that belong to them.
LINEAR = "linear layers and 1x1 convolutions"
PARTS: Dict[str, Tuple[str, ...]] = {
    LINEAR: ("**.q.*", "**.k.*", "**.v.*", "**.proj.*", "**.fc1.*", "**.fc2.*", "**.in_proj.0.*", "**.out_proj.*",
             "**.route.*.*"),
    "products of the attention": ("**.win_mhsa.points.*",),
    "depth-wise convolutions": ("**.sg.conv.*", "**.CPE.0.*"),
    "scan and prompts": ("**.selectiveScan.points.*", "**.assm.points.*", "**.points.embeddingA"),
}
PART_BITS = (8, 4)


def part_network(part: str, bits: int) -> str:
    """Key in ``NETWORKS`` of the network in which nothing but a part is quantized."""
    return f"part{list(PARTS).index(part)}_w{bits}a{bits}"


#: File stem -> network. ``int8`` is what other engines turn into integer kernels: linear layers and 1x1 convolutions,
#: nothing else, and weights of 7 bits, because without VNNI instructions products of 8 x 8 bits saturate in OpenVINO.
NETWORKS: Dict[str, Network] = {
    "fp32": Network(None),
    "int8": Network(8, (*((pattern, None) for part in PARTS if part != LINEAR for pattern in PARTS[part]),
                        *((pattern[:-1] + "weight", 7) for pattern in PARTS[LINEAR]))),
    **{f"w{bits}a{bits}": Network(bits) for bits in (8, 4, 2, 1)},
    **{part_network(part, bits): Network(bits, (("**", None), *((pattern, bits) for pattern in patterns)))
       for part, patterns in PARTS.items() for bits in PART_BITS},
}


@dataclass(frozen=True)
class Engine:
    """A row of the table.

    Attributes:
        network: key of ``NETWORKS``.
        text: what runs.
        full_precision: no result of the network is rounded to fewer bits.
        ours: it runs our kernels for every operator.
    """

    network: str
    text: str
    full_precision: bool = False
    ours: bool = False


ENGINES: Dict[str, Engine] = {
    "paddle_eager": Engine("fp32", "the Paddle network with all CPU kernels of ppsr2q", True, ours=True),
    "paddle_inference": Engine("fp32", "Paddle's executor of the inference model that tools/export.py writes", True),
    "onnxruntime_fp32": Engine("fp32", "ONNX Runtime, the scan as blocked Scan operators", True),
    "onnxruntime_int8": Engine("int8", "ONNX Runtime, linear layers as integer products"),
    "openvino_fp32": Engine("fp32", "OpenVINO, the scan as our C++ extension", True),
    "openvino_fp32_decomposed": Engine("fp32", "OpenVINO, the scan as loops of its own operators", True),
    "openvino_bf16": Engine("fp32", "OpenVINO in bfloat16 but for the scan, which is our C++ extension"),
    "openvino_int8": Engine("int8", "OpenVINO, linear layers as integer products, the scan as our C++ extension"),
    "runtime_fp32": Engine("fp32", "our runtime, the same fusion without quantizers", True, ours=True),
    **{f"runtime_w{bits}a{bits}": Engine(f"w{bits}a{bits}", f"our runtime, everything of the plan at {bits} bit", ours=True)
       for bits in (8, 4, 2, 1)},
}
RUNTIME = tuple(name for name in ENGINES if name.startswith("runtime_"))  # the engines that are our integer runtime
FULL_PRECISION = "runtime_fp32"  # what PSNR losses refer to
