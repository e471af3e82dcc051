"""The C++ library of the runtime: which instructions it is compiled for, and its functions.

One source is compiled once for each instruction set. Each becomes a library of its own, so that no function of one ever
replaces that of another, and the processor decides which of them is loaded. Threads are the library's own: no OpenMP
runtime is loaded beside the one of whoever shares the process.
"""
from __future__ import annotations

import ctypes
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Optional, Tuple

import ppsr2q
from ppsr2q.core import native_build
from ppsr2q.core.errors import UserError

COMPILE_SECONDS = 30
SOURCES = Path(__file__).parent / "csrc"
SHARED_SOURCES = Path(ppsr2q.__file__).parent / "ops" / "csrc"


@dataclass(frozen=True)
class InstructionSet:
    """Compiler flags, and the processor's features (as Linux calls them) that they need."""

    flags: Tuple[str, ...]
    features: Tuple[str, ...]


_AVX2 = ("avx2", "fma", "bmi2", "f16c")
_AVX512 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni")


def _x86_set(*features: str) -> InstructionSet:
    # feature by feature: -march=x86-64-v3 would allow more than is looked for, and needs GCC 11
    return InstructionSet(tuple(f"-m{feature.replace('_', '')}" for feature in features), features)


#: The best first.
X86_SETS: Dict[str, InstructionSet] = {"avx512vnni": _x86_set(*_AVX2, *_AVX512), "avx2": _x86_set(*_AVX2),
                                       "baseline": _x86_set()}
OTHER_SETS: Dict[str, InstructionSet] = {"native": InstructionSet(("-mcpu=native",), ())}


def instruction_sets() -> Dict[str, InstructionSet]:
    """The instruction sets for this kind of processor, the best first."""
    return X86_SETS if native_build.is_x86() else OTHER_SETS


def supported(name: str) -> bool:
    """Whether this processor runs an instruction set."""
    features = set(native_build.cpu_description("flags").split())
    return set(instruction_sets()[name].features) <= features


def chosen_set(name: Optional[str] = None) -> str:
    """``name``, else $PPSR2Q_RUNTIME_ISA, else the best instruction set of this processor.

    Raises:
        UserError: there is no such set, or this processor does not run it.
    """
    names, asked = list(instruction_sets()), "instruction_set" if name is not None else "PPSR2Q_RUNTIME_ISA"
    name = os.environ.get("PPSR2Q_RUNTIME_ISA") if name is None else name
    if name is None:
        return next(name for name in names if supported(name))
    if name not in names or not supported(name):
        runs = ", ".join(name for name in names if supported(name))
        raise UserError(f"{asked}={name!r}: this processor runs {runs}")
    return name


def runtime_library(name: str) -> native_build.Library:
    """The library for an instruction set."""
    return native_build.Library(f"runtime-{name}", f"the integer runtime ({name})", COMPILE_SECONDS,
                                SOURCES / "ppsr2q_runtime.cpp", (SOURCES, SHARED_SOURCES),
                                instruction_sets()[name].flags, ("-pthread",), ("-pthread",))


class Parameter(ctypes.Structure):
    """csrc/source.h: a parameter's floats, or the codes of its quantizer."""

    _fields_ = [("name", ctypes.c_char_p), ("values", ctypes.c_void_p), ("codes", ctypes.c_void_p),
                ("count", ctypes.c_int64)]


class QuantizerBounds(ctypes.Structure):
    """csrc/source.h."""

    _fields_ = [("name", ctypes.c_char_p), ("bits", ctypes.c_int32), ("lower", ctypes.c_float),
                ("upper", ctypes.c_float)]


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.ppsr2q_runtime_create.restype = pointer
    library.ppsr2q_runtime_create.argtypes = [ctypes.POINTER(Parameter), size, ctypes.POINTER(QuantizerBounds), size,
                                              integer, ctypes.c_char_p, size]
    library.ppsr2q_runtime_destroy.restype = None
    library.ppsr2q_runtime_destroy.argtypes = [pointer]
    library.ppsr2q_runtime_upscale.argtypes = [pointer, pointer, integer, integer, integer, pointer]
    library.ppsr2q_runtime_run_layer.argtypes = [pointer, integer, integer, integer, integer, pointer]
    library.ppsr2q_runtime_codes.restype = None
    library.ppsr2q_runtime_codes.argtypes = [pointer, size, ctypes.c_float, ctypes.c_float, integer, pointer]
    return library


@functools.lru_cache(maxsize=None)
def load_library(name: str) -> ctypes.CDLL:
    """The library for an instruction set, built first when it is not in the cache.

    Raises:
        UserError: it cannot be built.
    """
    try:
        return _declare(native_build.load_or_build(runtime_library(name), native_build.cache_folder()))
    except native_build.KernelsUnavailable as error:
        raise UserError(f"the integer runtime is not available: {error}") from error
