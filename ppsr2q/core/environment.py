"""What must be settled before Paddle is imported. This module therefore never imports it."""
from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Dict, MutableMapping, Optional

from ppsr2q.core.errors import UserError

_PADDLE_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu")
_RECORDED_PACKAGES = ("ppsr2q", *_PADDLE_PACKAGES, "numpy", "safetensors")


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
