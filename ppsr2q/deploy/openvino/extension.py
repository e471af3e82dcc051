"""The library that teaches OpenVINO the selective scan, built against the headers that its wheel brings."""
from __future__ import annotations

import functools
from pathlib import Path

from ppsr2q.core import native_build
from ppsr2q.core.errors import UserError
from ppsr2q.deploy.onnx_export import import_package
from ppsr2q.deploy.runtime.library import SHARED_SOURCES

COMPILE_SECONDS = 20
UNIT = Path(__file__).parent / "selective_scan.cpp"


def _library() -> native_build.Library:
    openvino = import_package("openvino")
    package = Path(openvino.__file__).parent
    headers, libraries = package / "include", package / "libs"
    if not (headers / "openvino" / "core" / "op_extension.hpp").is_file():
        raise native_build.KernelsUnavailable(f"OpenVINO {openvino.__version__} brings no C++ headers in {headers}")
    needed = [next(libraries.glob(f"{name}.so.*"), None)
              for name in ("libopenvino", "libopenvino_onnx_frontend", "libtbb")]
    if None in needed:
        raise native_build.KernelsUnavailable(f"OpenVINO {openvino.__version__} brings no libraries in {libraries}")
    return native_build.Library(
        "openvino-scan", "the selective scan for OpenVINO", COMPILE_SECONDS, UNIT, (UNIT.parent, SHARED_SOURCES),
        native_build.native_target(), ("-isystem", str(headers), "-I", str(SHARED_SOURCES)),
        (*map(str, needed), f"-Wl,-rpath,{libraries}"), (openvino.__version__,))


@functools.lru_cache(maxsize=None)
def scan_library() -> Path:
    """Path of the library for this machine and this OpenVINO, built first when it is not in the cache.

    Raises:
        UserError: it cannot be built, or the package openvino is missing.
    """
    try:
        loaded = native_build.load_or_build(_library(), native_build.cache_folder())
    except native_build.KernelsUnavailable as error:
        raise UserError(f"the scan extension of OpenVINO is not available: {error}") from error
    return Path(loaded._name)
