"""Packed models as OpenVINO networks: converted from their ONNX form, written as IR, run."""
from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike, atomic_folder
from ppsr2q.deploy.images import upscale_planar
from ppsr2q.deploy.onnx_export import import_package, to_onnx
from ppsr2q.deploy.openvino.extension import scan_library
from ppsr2q.deploy.packed import PackedModel
from ppsr2q.deploy.threads import checked_threads

GRAPH, WEIGHTS, LIBRARY = "model.xml", "model.bin", "ppsr2q_scan.so"


def _core(extension: Optional[PathLike]) -> Any:
    core = import_package("openvino").Core()
    if extension is not None:
        core.add_extension(os.fspath(extension))
    return core


def to_openvino(model: PackedModel, optimize: bool = False) -> Any:
    """An ``openvino.Model`` with input ``lr`` float32 (1, 3, h, w) in [0, 1], any h and w, and output ``sr``.

    Args:
        optimize: the scans are operators of our extension instead of loops in the graph.

    Raises:
        UserError: a missing package, or no extension on this machine.
    """
    content = to_onnx(model, "openvino", scan_operator=optimize).SerializeToString()
    return _core(scan_library() if optimize else None).read_model(content)


def write_openvino(folder: PathLike, model: PackedModel, optimize: bool = False) -> None:
    """Write ``model.xml`` and ``model.bin`` into a folder, and with ``optimize`` the library that whoever reads them
    has to load first (``core.add_extension``): ``ppsr2q_scan.so``, for this kind of processor and this OpenVINO.

    Raises:
        UserError: as :func:`to_openvino`, or files that cannot be written.
    """
    network = to_openvino(model, optimize)
    with atomic_folder(folder) as temporary:
        if optimize:
            shutil.copyfile(scan_library(), temporary / LIBRARY)
        try:
            import_package("openvino").serialize(network, str(temporary / GRAPH), str(temporary / WEIGHTS))
        except RuntimeError as error:  # its own kind of OSError
            raise UserError(f"{folder}: OpenVINO cannot write its files there ({error})") from error


class OpenvinoUpscaler:
    """A network run by OpenVINO on the CPU; see ``ppsr2q.deploy.Upscaler``.

    Args:
        model: an ``openvino.Model``, or a folder of :func:`write_openvino`.
        scale: of the enlargement.
        threads: of one call; default: all processors that this process may use.
        precision: of what is not integer, ``f32`` or ``bf16``.

    Raises:
        UserError: threads out of range, the package openvino is missing, or a processor without bfloat16.
    """

    def __init__(self, model: Any, scale: int, threads: Optional[int] = None, precision: str = "f32") -> None:
        if isinstance(model, (str, os.PathLike)):
            library = Path(model) / LIBRARY
            core = _core(library if library.is_file() else None)
            model = core.read_model(Path(model) / GRAPH)
        else:
            core = _core(None)
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UserError("this processor has no bfloat16 instructions")
        self.scale = scale
        self._network = core.compile_model(model, "CPU", {
            "INFERENCE_NUM_THREADS": checked_threads(threads), "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision})

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 (1, 3, h, w) -> (1, 3, scale h, scale w)."""
        return self._network.create_infer_request().infer({"lr": np.ascontiguousarray(images)})["sr"].copy()

    def upscale(self, image: np.ndarray) -> np.ndarray:
        """float32 (h, w, 3) RGB in [0, 1] -> float32 (scale h, scale w, 3), not clamped."""
        return upscale_planar(self.run, image, "OpenVINO")


def load_upscaler(model: PackedModel, threads: Optional[int] = None, optimize: bool = False,
                  precision: str = "f32") -> OpenvinoUpscaler:
    """OpenVINO's network of a packed model."""
    return OpenvinoUpscaler(to_openvino(model, optimize), model.architecture["scale"], threads, precision)
