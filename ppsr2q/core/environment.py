"""What must be settled before Paddle is imported. This module therefore never imports it."""
from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Dict, Iterator, Mapping, MutableMapping, Optional

from ppsr2q.core.errors import UserError

_PADDLE_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu")
_RECORDED_PACKAGES = ("ppsr2q", *_PADDLE_PACKAGES, "numpy", "safetensors")
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
#: Whether nobody had decided on the number of threads when ppsr2q was imported. Paddle's import decides for one.
_THREADS_LEFT_OPEN = "OMP_NUM_THREADS" not in os.environ and "paddle" not in sys.modules


def prepare_environment(environ: Optional[MutableMapping[str, str]] = None,
                        cpuinfo: Path = Path("/proc/cpuinfo")) -> Dict[str, str]:
    """Let Paddle's matrix products run at full speed on AMD processors.

    The MKLML library that Paddle ships takes its slowest path when the CPU vendor is not Intel;
    ``MKL_DEBUG_CPU_TYPE=5`` selects the AVX2 path (three times the speed). The variable is set only when
    the CPU reports ``AuthenticAMD`` with AVX2, the user has not set it, ``PPSR2Q_NO_MKL_HINT`` is unset
    and Paddle is not imported yet, since it is read only once.

    Args:
        environ: the environment to change (default: ``os.environ``).
        cpuinfo: the kernel's CPU description; a system without that file is left alone.

    Returns:
        The variables that were set (empty when there was nothing to do).
    """
    environ = os.environ if environ is None else environ
    if "paddle" in sys.modules or "MKL_DEBUG_CPU_TYPE" in environ or "PPSR2Q_NO_MKL_HINT" in environ:
        return {}
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    if "AuthenticAMD" not in text or "avx2" not in text:
        return {}
    settings = {"MKL_DEBUG_CPU_TYPE": "5"}
    environ.update(settings)
    return settings


def usable_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads(left_open: bool = _THREADS_LEFT_OPEN,
                    environ: Optional[Mapping[str, str]] = None) -> Optional[int]:
    """Threads that Paddle should compute with: all processors where the user left it open, one process of several
    excepted.

    Args:
        left_open: neither was OMP_NUM_THREADS set nor Paddle imported before ppsr2q.
        environ: the environment (default: ``os.environ``).

    Returns:
        None to leave Paddle's setting as it is.
    """
    environ = os.environ if environ is None else environ
    several = environ.get("PADDLE_TRAINERS_NUM", "1") != "1"
    return usable_processors() if left_open and not several else None


def keep_freed_memory() -> None:
    """Let this process keep the memory that its arrays give back, for programs that compute with large ones.

    glibc maps each block above 32 MB afresh and unmaps it when it is freed, so that the kernel clears every page again
    for every intermediate result: 14 of the 19 seconds of a forward of 512 x 512 pixels. Other C libraries are left
    alone.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def available_memory(meminfo: Path = Path("/proc/meminfo"), own_group: Path = Path("/proc/self/cgroup"),
                     groups: Path = Path("/sys/fs/cgroup")) -> Optional[int]:
    """Bytes that this process can still get without swapping: from the system, and from the control groups (version 2:
    containers, services) it is in; None where the system does not say (no /proc).

    Args:
        meminfo, own_group, groups: the kernel's descriptions.
    """
    if not meminfo.is_file():
        return None
    line = next((line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")), None)
    return None if line is None else min([1024 * int(line.split()[1]), *_left_in_groups(own_group, groups)])


def _left_in_groups(own_group: Path, groups: Path) -> Iterator[int]:
    entries = own_group.read_text().splitlines() if own_group.is_file() else []
    names = [Path(entry[3:].lstrip("/")) for entry in entries if entry.startswith("0::")]
    for name in (parent for own in names for parent in (own, *own.parents)):
        with contextlib.suppress(OSError, ValueError, StopIteration):  # no such file, or "max"
            limit, taken = (int((groups / name / f"memory.{key}").read_text()) for key in ("max", "current"))
            statistics = (groups / name / "memory.stat").read_text().splitlines()
            cache = next(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
            yield max(limit - taken + cache, 0)


def require_memory(needed: int, what: str) -> None:
    """Refuse work whose memory is not there: Linux would grant it, and then kill the process.

    Args:
        needed: bytes.
        what: the work, for the message.

    Raises:
        UserError: fewer are available, also after what this process keeps (:func:`keep_freed_memory`) was given back.
    """
    free = available_memory()
    if free is not None and needed > free:
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
            free = available_memory()
        if needed > free:
            raise UserError(f"{what} needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free: use tiles "
                            "(predict --tile)")


def package_version(name: str) -> Optional[str]:
    """Version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def library_versions() -> Dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers, for the records in our files."""
    versions = {name: package_version(name) for name in _RECORDED_PACKAGES}
    found = {name: version for name, version in versions.items() if version is not None}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


def require_paddle() -> None:
    """Check that Paddle can be imported, without importing it.

    Raises:
        UserError: Paddle is missing; the message holds the commands that install it.

    Warns when the CPU and the GPU package are both installed: they overwrite each other's files.
    """
    if importlib.util.find_spec("paddle") is None:
        raise UserError(
            "this needs PaddlePaddle, which is not installed. Install one of\n"
            "  CPU:       pip install 'ppsr2q[cpu]'\n"
            "  GPU 2.6.2: pip install 'ppsr2q[gpu]'   (CUDA 11.8; up to RTX 40)\n"
            "  GPU 3.x:   python -m pip install paddlepaddle-gpu -i <Paddle's own package index; the address "
            "for your CUDA is on https://www.paddlepaddle.org.cn/install>")
    if all(package_version(name) for name in _PADDLE_PACKAGES):
        warnings.warn("both paddlepaddle and paddlepaddle-gpu are installed; they overwrite each other's "
                      "files. Uninstall both, then install the one you want.", stacklevel=2)
