"""Compiles the CPU kernels (``csrc/``) for this machine on first use, caches them, loads them with ctypes.

The kernels know nothing of Paddle: one plain C interface serves every Paddle version. Only the OpenMP runtime
is shared with Paddle (libiomp5 of its wheel), because two of them in one process would fight over the cores.
"""
from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Iterator, List, Mapping, Optional, Sequence

import paddle

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import atomic_path

SOURCES = Path(__file__).parent / "csrc"
UNIT = "ppsr2q_ops.cpp"
OPTIMIZATION = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
                "-fvisibility=hidden", "-fPIC")
COMPILE_SECONDS = 20  # on the reference machine, for the line that tells the user what he waits for
_DIGEST_SIZE = hashlib.sha256().digest_size

POINTER, SIZE, INT, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float

# Status codes of the C interface (csrc/status.h).
_OUT_OF_MEMORY = -1
_BAD_INDEX = -2
_UNSUPPORTED = -3
_NOT_FINITE = 100
_FIRST_BAD_BOUNDS = 101
_CPU = paddle.CPUPlace()


class KernelsUnavailable(Exception):
    """The kernels cannot be built or loaded here; the message says why and what would help."""


def native_target() -> List[str]:
    """Compiler flags that select every instruction of this machine."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return ["-march=native"] if x86 else ["-mcpu=native"]


def find_compiler() -> str:
    """Path of $CXX, g++, clang++ or c++, whichever comes first; KernelsUnavailable when there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise KernelsUnavailable("no C++ compiler was found: install g++ or clang++, or point CXX to one")


def paddle_openmp() -> Optional[Path]:
    """The OpenMP runtime in Paddle's wheel, None when it ships none."""
    spec = importlib.util.find_spec("paddle")
    path = Path(spec.submodule_search_locations[0]) / "libs" / "libiomp5.so"
    return path if path.exists() else None


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise KernelsUnavailable(
            f"{' '.join(command)} failed with code {result.returncode}:\n{result.stdout[-2000:]}")


def build(output: Path, target: Sequence[str]) -> None:
    """Compile ``csrc/`` into the shared library ``output`` for ``target`` (flags: ``-march=x86-64-v3``).

    Compiling and linking are two steps so that GCC does not add its own OpenMP runtime to Paddle's.
    """
    compiler, openmp = find_compiler(), paddle_openmp()
    link = ["-fopenmp"] if openmp is None else [str(openmp), f"-Wl,-rpath,{openmp.parent}"]
    with tempfile.TemporaryDirectory() as folder:
        unit = os.path.join(folder, "ppsr2q_ops.o")
        _run([compiler, *OPTIMIZATION, *target, "-fopenmp", "-c", str(SOURCES / UNIT), "-o", unit])
        _run([compiler, "-shared", unit, "-o", str(output), *link])


def cache_folder() -> Path:
    """$PPSR2Q_CACHE, or ppsr2q in the user's cache folder (XDG)."""
    if os.environ.get("PPSR2Q_CACHE"):
        return Path(os.environ["PPSR2Q_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppsr2q"


def _cpu_features() -> str:
    """What tells processors apart that share one home folder."""
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(("flags", "Features", "model name"))]
        return "".join(sorted(set(lines)))
    return platform.processor()


def build_key() -> str:
    """Hash of everything that the library depends on: sources, compiler, flags, processor, Paddle."""
    compiler = find_compiler()
    version = subprocess.run([compiler, "--version"], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
    parts = [compiler, version.stdout, " ".join([*OPTIMIZATION, *native_target()]), _cpu_features(),
             paddle.__version__, str(paddle_openmp())]
    for source in sorted(SOURCES.iterdir()):
        if source.suffix in (".h", ".cpp"):
            parts += [source.name, source.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _digest(key: str, library: bytes) -> bytes:
    return hashlib.sha256(key.encode() + library).digest()


def _build_into_cache(path: Path, key: str) -> None:
    print(f"ppsr2q: compiling CPU kernels, once, about {COMPILE_SECONDS} s", file=sys.stderr, flush=True)
    with atomic_path(path) as temporary:
        build(Path(temporary), native_target())
        content = Path(temporary).read_bytes()
        with open(temporary, "ab") as file:  # a loader ignores what follows the last section
            file.write(_digest(key, content))


def _open_cached(path: Path, key: str) -> Optional[ctypes.CDLL]:
    """The cached library; None when there is none or it is damaged (loading such a file could crash)."""
    try:
        content = path.read_bytes()
        if content[-_DIGEST_SIZE:] != _digest(key, content[:-_DIGEST_SIZE]):
            return None
        return ctypes.CDLL(str(path))
    except OSError:
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path``, so that of several processes one builds and the others wait."""
    import fcntl
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_or_build(folder: Path) -> ctypes.CDLL:
    """The library for this machine from the cache ``folder``, built first when it is absent or damaged."""
    if os.name != "posix":
        raise KernelsUnavailable(f"they are not built on {platform.system()}: use Linux, macOS or WSL")
    key = build_key()
    path = folder / f"kernels-{key}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "kernels.lock"):
            library = _open_cached(path, key)
            if library is None:
                _build_into_cache(path, key)
                library = _open_cached(path, key)
    except (OSError, UserError) as error:
        raise KernelsUnavailable(
            f"cannot write the kernel cache {folder} ({error}): set PPSR2Q_CACHE") from error
    if library is None:
        raise KernelsUnavailable(f"{path} was built but cannot be loaded")
    return library


@functools.lru_cache(maxsize=None)
def _attempt():
    """(library, None) or (None, why not), decided once a process."""
    setting = os.environ.get("PPSR2Q_KERNELS", "auto")
    if setting not in ("auto", "off"):
        raise UserError(f"PPSR2Q_KERNELS must be auto or off, got {setting!r}")
    if setting == "off":
        return None, "PPSR2Q_KERNELS=off"
    try:
        return load_or_build(cache_folder()), None
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


def pointer(tensor: Optional[paddle.Tensor]) -> Optional[int]:
    """Address of a contiguous tensor's data, None (a C null pointer) for None."""
    return None if tensor is None else tensor.data_ptr()


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
    name, tensor = list(tensors.items())[status - 1]
    raise ValueError(f"{operator}: {name} of shape {list(tensor.shape)} contains NaN or infinite values")
