"""Compiles the CPU kernels (``csrc/``) for this machine on first use, caches them, loads them with ctypes.

The kernels know nothing of Paddle: one plain C interface serves every Paddle version. Only the OpenMP runtime
is shared with Paddle (libiomp5 of its wheel), because two of them in one process would fight over the cores.
"""
from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Mapping, Optional, Sequence, Tuple

import paddle

from ppsr2q.core import native_build
from ppsr2q.core.errors import UserError
from ppsr2q.core.native_build import KernelsUnavailable, cache_folder, native_target

SOURCES = Path(__file__).parent / "csrc"
UNIT = "ppsr2q_ops.cpp"
COMPILE_SECONDS = 20

POINTER, SIZE, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float

# Status codes of the C interface (csrc/status.h).
_OUT_OF_MEMORY = -1
_BAD_INDEX = -2
_UNSUPPORTED = -3
_NOT_FINITE = 100
_FIRST_BAD_BOUNDS = 101
_CPU = paddle.CPUPlace()


def paddle_openmp() -> Optional[Path]:
    """The OpenMP runtime in Paddle's wheel, None when it ships none."""
    spec = importlib.util.find_spec("paddle")
    libs = Path(spec.submodule_search_locations[0]) / "libs"
    return next((path for path in (libs / "libiomp5.so", libs / "libiomp5.dylib") if path.exists()), None)


def kernels(target: Sequence[str], threads: bool = True) -> native_build.Library:
    """The library of ``csrc/`` for ``target`` (flags: ``-march=x86-64-v3``), with OpenMP or for one thread."""
    compile_flags: Tuple[str, ...] = ()
    link: Tuple[str, ...] = ()
    if threads:
        openmp = paddle_openmp()
        compile_flags = ("-fopenmp",)
        link = ("-fopenmp",) if openmp is None else (str(openmp), f"-Wl,-rpath,{openmp.parent}")
    return native_build.Library("kernels", "CPU kernels", COMPILE_SECONDS, SOURCES / UNIT, (SOURCES,), tuple(target),
                                compile_flags, link, (paddle.__version__,))


def _load() -> ctypes.CDLL:
    try:
        return native_build.load_or_build(kernels(native_target()), cache_folder())
    except KernelsUnavailable as error:
        # Apple's clang knows no OpenMP, and others need a package for it
        loaded = native_build.load_or_build(kernels(native_target(), threads=False), cache_folder())
        warnings.warn(f"CPU kernels run on one thread, because they cannot be built with OpenMP: {error}", stacklevel=3)
        return loaded


@functools.lru_cache(maxsize=None)
def _attempt():
    """(library, None) or (None, why not), decided once a process."""
    setting = os.environ.get("PPSR2Q_KERNELS", "auto")
    if setting not in ("auto", "off"):
        raise UserError(f"PPSR2Q_KERNELS must be auto or off, got {setting!r}")
    if setting == "off":
        return None, "PPSR2Q_KERNELS=off"
    try:
        return _load(), None
    except KernelsUnavailable as error:
        warnings.warn(f"CPU kernels are not available: {error}. Plain Paddle computes instead, with the same "
                      f"results, about ten times slower (PPSR2Q_KERNELS=off silences this).", stacklevel=2)
        return None, str(error)


def why_unavailable() -> Optional[str]:
    """None when the kernels are loaded (building them first if need be), otherwise the reason."""
    return _attempt()[1]


def library() -> ctypes.CDLL:
    """The loaded kernels; KernelsUnavailable when there are none."""
    loaded, reason = _attempt()
    if loaded is None:
        raise KernelsUnavailable(reason)
    return loaded


@functools.lru_cache(maxsize=None)
def function(name: str, *argument_types):
    """The C function ``ppsr2q_<name>`` with its argument types; it returns a status for :func:`check`."""
    found = getattr(library(), f"ppsr2q_{name}")
    found.argtypes = argument_types
    found.restype = ctypes.c_int
    return found


def instruction_set() -> str:
    """Which vector instructions the loaded library uses, such as ``AVX2``."""
    found = library().ppsr2q_instruction_set
    found.restype = ctypes.c_char_p
    return found().decode()


def get_threads() -> int:
    """How many threads a kernel uses: OpenMP's setting, which Paddle's other operators follow too."""
    return library().ppsr2q_get_threads()


def set_threads(count: int) -> None:
    """Set OpenMP's number of threads for this process."""
    library().ppsr2q_set_threads(ctypes.c_int(count))


def empty(shape: Sequence[int], dtype: paddle.dtype = paddle.float32) -> paddle.Tensor:
    """``paddle.empty`` on the CPU without the checks of its arguments, which take longer than small kernels do."""
    return paddle._C_ops.empty(shape, dtype, _CPU)


def empty_like(tensor: paddle.Tensor) -> paddle.Tensor:
    """:func:`empty` of a tensor's shape and dtype."""
    return empty(tensor.shape, tensor.dtype)


def pointer(tensor: Optional[paddle.Tensor]) -> Optional[int]:
    """Address of a contiguous tensor's data, None (a C null pointer) for None.

    Raises:
        ValueError: neither float32 nor int32, which is all that kernels read.
    """
    if tensor is None:
        return None
    if tensor.dtype != paddle.float32 and tensor.dtype != paddle.int32:
        raise ValueError(f"kernels take parameters of float32, got {tensor.dtype} of shape {list(tensor.shape)}")
    return tensor.data_ptr()


def contiguous(tensor: Optional[paddle.Tensor]) -> Optional[paddle.Tensor]:
    """The tensor itself, or a copy without strides."""
    return tensor if tensor is None or tensor.is_contiguous() else tensor.contiguous()


def needs_gradient(*tensors: Optional[paddle.Tensor]) -> bool:
    """Whether the call must be recorded for a backward pass."""
    return paddle.is_grad_enabled() and any(t is not None and not t.stop_gradient for t in tensors)


def check(status: int, operator: str, tensors: Mapping[str, paddle.Tensor],
          bounds: Optional[Mapping[str, Optional[paddle.Tensor]]] = None) -> None:
    """Turn the status of a C function into a ValueError that names the operator and the argument.

    Args:
        tensors: those that the kernel checks for NaN and infinities, in the order of its numbering.
        bounds: name and bounds of every quantizer, in the order of the kernel's numbering.
    """
    if status == 0:
        return
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"{operator}: not enough memory for scratch buffers")
    if status == _BAD_INDEX:
        raise ValueError(f"{operator}: an index is out of range")
    if status >= _FIRST_BAD_BOUNDS:
        name, value = list(bounds.items())[status - _FIRST_BAD_BOUNDS]
        raise ValueError(
            f"{operator}: quantizer {name!r} needs finite bounds (a, b) with a < b, got {value.tolist()}")
    if status == _UNSUPPORTED:
        raise ValueError(f"{operator}: a size is not compiled into the kernel")
    if status == _NOT_FINITE:
        raise ValueError(f"{operator}: the arguments are finite but the result overflows")
    if status < 0:
        raise RuntimeError(f"{operator}: the kernel failed with status {status}")
    name, tensor = list(tensors.items())[status - 1]
    raise ValueError(f"{operator}: {name} of shape {list(tensor.shape)} contains NaN or infinite values")
