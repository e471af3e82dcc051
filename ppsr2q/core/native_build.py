"""C++ libraries that are compiled for this machine on first use, cached, and loaded with ctypes.

Knows nothing of what the libraries compute, nor of Paddle.
"""
from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import atomic_path

OPTIMIZATION = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
                "-fvisibility=hidden", "-fPIC")
_DIGEST_SIZE = hashlib.sha256().digest_size


class KernelsUnavailable(Exception):
    """A library cannot be built or loaded here; the message says why and what would help."""


@dataclass(frozen=True)
class Library:
    """What a library is made of.

    Attributes:
        name: of its files in the cache.
        description: for the line that tells the user what he waits for, with ``seconds`` on the reference machine.
        unit: the one source file that is compiled.
        folders: all ``.h`` and ``.cpp`` files in them belong to the library.
        target: compiler flags that select the instructions.
        compile_flags, link_flags: all others but ``OPTIMIZATION``.
        depends: anything else that a cached library is only valid for.
    """

    name: str
    description: str
    seconds: int
    unit: Path
    folders: Tuple[Path, ...]
    target: Tuple[str, ...]
    compile_flags: Tuple[str, ...] = ()
    link_flags: Tuple[str, ...] = ()
    depends: Tuple[str, ...] = ()


def is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")


def native_target() -> Tuple[str, ...]:
    """Compiler flags that select every instruction of this machine."""
    return ("-march=native",) if is_x86() else ("-mcpu=native",)


def find_compiler() -> str:
    """Path of $CXX, g++, clang++ or c++, whichever comes first; KernelsUnavailable when there is none."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise KernelsUnavailable("no C++ compiler was found: install g++ or clang++, or point CXX to one")


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise KernelsUnavailable(
            f"{' '.join(command)} failed with code {result.returncode}:\n{result.stdout[-2000:]}")


def build(library: Library, output: Path) -> None:
    """Compile ``library`` into the shared library ``output``.

    Compiling and linking are two steps so that ``-fopenmp`` does not add the compiler's own OpenMP runtime.
    """
    compiler = find_compiler()
    with tempfile.TemporaryDirectory() as folder:
        unit = os.path.join(folder, "unit.o")
        _run([compiler, *OPTIMIZATION, *library.target, *library.compile_flags, "-c", str(library.unit), "-o", unit])
        _run([compiler, "-shared", unit, "-o", str(output), *library.link_flags])


def cache_folder() -> Path:
    """$PPSR2Q_CACHE, or ppsr2q in the user's cache folder (XDG)."""
    if os.environ.get("PPSR2Q_CACHE"):
        return Path(os.environ["PPSR2Q_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppsr2q"


def cpu_description(*fields: str) -> str:
    """Lines of the kernel's description of the processors that start with one of ``fields``, without repetitions."""
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith(fields)]
        return "".join(sorted(set(lines)))
    return platform.processor()


def build_key(library: Library) -> str:
    """Hash of everything that the built library depends on: sources, flags, processor, and the compiler where $CXX
    chooses it. A library that is there runs without any compiler."""
    # the processor tells machines apart that share one home folder
    parts: List[str] = [os.environ.get("CXX", ""), *OPTIMIZATION, *library.target, *library.compile_flags,
                        *library.link_flags, *library.depends, cpu_description("flags", "Features", "model name")]
    for folder in library.folders:
        for source in sorted(folder.iterdir()):
            if source.suffix in (".h", ".cpp"):
                parts += [source.name, source.read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _digest(key: str, library: bytes) -> bytes:
    return hashlib.sha256(key.encode() + library).digest()


def build_into_cache(library: Library, path: Path, key: str) -> None:
    """Build ``library`` as the cache file ``path``, which ends with a digest of key and content."""
    print(f"ppsr2q: compiling {library.description}, once, about {library.seconds} s", file=sys.stderr, flush=True)
    with atomic_path(path) as temporary:
        build(library, Path(temporary))
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


def load_or_build(library: Library, folder: Path) -> ctypes.CDLL:
    """``library`` from the cache ``folder``, built first when it is absent or damaged.

    Raises:
        KernelsUnavailable: no compiler, a build that failed, a folder that cannot be written.
    """
    if os.name != "posix":
        raise KernelsUnavailable(f"they are not built on {platform.system()}: use Linux, macOS or WSL")
    key = build_key(library)
    path = folder / f"{library.name}-{key}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{library.name}.lock"):
            loaded = _open_cached(path, key)
            if loaded is None:
                build_into_cache(library, path, key)
                loaded = _open_cached(path, key)
    except (OSError, UserError) as error:
        raise KernelsUnavailable(
            f"cannot write the kernel cache {folder} ({error}): set PPSR2Q_CACHE") from error
    if loaded is None:
        raise KernelsUnavailable(f"{path} was built but cannot be loaded")
    return loaded
