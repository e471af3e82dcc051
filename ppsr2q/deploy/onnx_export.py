"""Packed models as ONNX files, and ONNX Runtime as an engine that needs no Paddle."""
from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Optional

import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike, atomic_path
from ppsr2q.deploy.images import upscale_planar
from ppsr2q.deploy.packed import PackedModel
from ppsr2q.deploy.threads import checked_threads

#: Engine -> whether its quantized linear layers are integer products, and the type of activation codes that it takes.
TARGETS = {"ort": (True, np.uint8), "openvino": (True, np.uint8), "tensorrt": (True, np.int8),
           "float": (False, np.uint8)}


def import_package(name: str) -> ModuleType:
    """A package of the extra ``deploy``; UserError where it is missing or does not work."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"this needs the Python package {error.name}: pip install 'ppsr2q[deploy]'") from None
    except ImportError as error:
        raise UserError(f"the Python package {name} is installed but cannot be loaded: {error}") from error


def to_onnx(model: PackedModel, target: str = "ort", scan_operator: bool = False):
    """An ``onnx.ModelProto``: input ``lr`` float32 (1, 3, h, w) in [0, 1], any h and w; output ``sr``, not clamped.

    Args:
        target: a key of :data:`TARGETS`. ``ort``: QuantizeLinear/DequantizeLinear with uint8 activations and symmetric
            int8 weights; ``openvino``: the same (without VNNI instructions OpenVINO saturates products of 8-bit codes
            with 8-bit weights; 7 bits on one side are exact everywhere); ``tensorrt``: the same with int8 activations
            (written for TensorRT, never run on it); ``float``: the arithmetic of the quantizers in float32, for any
            engine.
        scan_operator: scans are ``SelectiveScan`` operators of the domain ``ppsr2q`` (our extension of OpenVINO) instead
            of loops in terms of ONNX.

    Raises:
        UserError: unknown target, or the package onnx is missing.
    """
    if target not in TARGETS:
        raise UserError(f"--target {target}: expected one of {', '.join(TARGETS)}")
    import_package("onnx")
    from ppsr2q.deploy import onnx_mambairv2
    from ppsr2q.deploy.onnx_operators import Form
    return onnx_mambairv2.build(model, Form(*TARGETS[target], scan_operator))


def write_onnx(path: PathLike, model: PackedModel, target: str = "ort") -> None:
    """Write :func:`to_onnx`, atomically."""
    content = to_onnx(model, target).SerializeToString()
    with atomic_path(path) as temporary:
        Path(temporary).write_bytes(content)


class OnnxUpscaler:
    """A packed model, or an exported ONNX file, run by ONNX Runtime on the CPU; see ``ppsr2q.deploy.Upscaler``.

    Args:
        model: the content of an ONNX file.
        scale: of the enlargement.
        threads: of one call; default: all processors that this process may use.

    Raises:
        UserError: threads out of range, or the package onnxruntime is missing.
    """

    def __init__(self, model: bytes, scale: int, threads: Optional[int] = None) -> None:
        threads = checked_threads(threads)
        runtime = import_package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.scale = scale
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 (1, 3, h, w) -> (1, 3, scale h, scale w)."""
        return self._session.run(None, {"lr": np.ascontiguousarray(images)})[0]

    def upscale(self, image: np.ndarray) -> np.ndarray:
        """float32 (h, w, 3) RGB in [0, 1] -> float32 (scale h, scale w, 3), not clamped."""
        return upscale_planar(self.run, image, "ONNX Runtime")


def load_upscaler(model: PackedModel, threads: Optional[int] = None, target: str = "ort") -> OnnxUpscaler:
    """ONNX Runtime's session of a packed model."""
    return OnnxUpscaler(to_onnx(model, target).SerializeToString(), model.architecture["scale"], threads)
