"""The official PyTorch MambaIRv2-light (a checkout of csguoh/MambaIR), its scan computed by our kernel.

Its files are imported from the checkout and stay as they are. Two things are replaced at run time:
``mamba_ssm``, whose scan needs CUDA, and the noise of its Gumbel softmax, so that outputs can be compared.
"""
from __future__ import annotations

import contextlib
import ctypes
import importlib
import logging
import sys
import types
from pathlib import Path
from typing import Callable, Iterator
from unittest import mock

import numpy as np
import paddle
import yaml

from ppsr2q import ops
from ppsr2q.core.errors import UserError
from ppsr2q.models.checkpoint import official_state
from ppsr2q.models.convert_torch import to_paddle_layout
from ppsr2q.ops import native

TOLERANCE = 1e-4
_ARCHITECTURE = "basicsr/archs/mambairv2light_arch.py"
_OPTIONS = "options/test/mambairv2/test_MambaIRv2_lightSR_x{}.yml"
_INSTALL = "pip install torch einops setuptools"


def peer_forward(folder: str, network, images: np.ndarray) -> Callable[[], object]:
    """The peer with the weights of our ``network`` as a call on ``images`` (B, 3, h, w).

    Raises:
        UserError: no such checkout, or a package that it needs is missing.
    """
    torch = _import("torch")
    model = _load(Path(folder), network)
    x = torch.from_numpy(images)

    def call():
        with torch.no_grad(), _yielding_openmp():
            return model(x)
    return call


def check(folder: str, network, images: np.ndarray) -> float:
    """Largest difference of the outputs; UserError when it is above TOLERANCE. ``network`` keeps a router that
    records.

    Two things are chance there, and are taken from our network here, though not where the peer is timed: the
    class of a token whose best two classes are equal to rounding, and the order in which an unstable sort
    leaves the tokens of a class.
    """
    forward, torch = peer_forward(folder, network, images), _import("torch")
    routes = []

    def recorded(logits):
        routes.append(ops.route(logits))
        return routes[-1]

    for layer in network.sublayers():
        if hasattr(layer, "router"):
            layer.router = recorded
    with paddle.no_grad():
        ours = network(paddle.to_tensor(images)).numpy()
    classes, gaps, default_sort = iter(routes), [], torch.sort

    def one_hot_of_ours(logits, **_):
        index = torch.from_numpy(next(classes).index.numpy().astype(np.int64)).reshape(logits.shape[:-1])
        gaps.append(float((logits.max(-1).values - logits.gather(-1, index[..., None])[..., 0]).max()))
        return torch.nn.functional.one_hot(index, logits.shape[-1]).to(logits.dtype)

    with mock.patch.object(torch.nn.functional, "gumbel_softmax", one_hot_of_ours), \
            mock.patch.object(torch, "sort", lambda x, dim, stable: default_sort(x, dim=dim, stable=True)):
        theirs = forward().numpy()
    difference = max(float(np.abs(theirs - ours).max()), *gaps)
    if not difference <= TOLERANCE:
        raise UserError(f"--peer {folder}: its output differs from ours by {difference:.1e}, expected at "
                        f"most {TOLERANCE}; times would compare different networks")
    return difference


def _import(name: str):
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"--peer needs the Python package {error.name}: {_INSTALL}") from None


def official_network(folder: Path, scale: int):
    """The official network of a checkout as its own options build it, with its initial weights.

    Raises:
        UserError: no such checkout, or a package that it needs is missing.
    """
    for needed in (_ARCHITECTURE, _OPTIONS.format(scale)):
        if not (folder / needed).is_file():
            raise UserError(f"--peer {folder}: not a checkout of csguoh/MambaIR, it lacks {needed}")
    _import("torch")
    _stand_in_modules(folder)
    architecture = _import("basicsr.archs.mambairv2light_arch")
    options = yaml.safe_load((folder / _OPTIONS.format(scale)).read_text(encoding="utf-8"))["network_g"]
    return getattr(architecture, options.pop("type"))(**options)


def _load(folder: Path, network):
    model, torch = official_network(folder, network.scale), _import("torch")
    torch.nn.functional.gumbel_softmax = _argmax_one_hot
    state = to_paddle_layout(official_state(network))  # it transposes, so it is its own inverse
    model.load_state_dict({**{key: value for key, value in model.state_dict().items() if key not in state},
                           **{key: torch.from_numpy(value) for key, value in state.items()}})
    return model.eval()


def _stand_in_modules(folder: Path) -> None:
    """Packages without their ``__init__``, which would import training code; ``mamba_ssm`` with our scan; and
    what the files import but the network does not use (a logger, torchvision)."""
    for name in ("basicsr", "basicsr.archs", "basicsr.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = package
    sys.modules["basicsr.utils"].get_root_logger = logging.getLogger
    for name in ("torchvision", "mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        sys.modules[name] = types.ModuleType(name)
    interface = sys.modules["mamba_ssm.ops.selective_scan_interface"]
    interface.selective_scan_fn = interface.selective_scan_ref = selective_scan_fn


def _argmax_one_hot(logits, tau=1.0, hard=False, eps=1e-10, dim=-1):
    import torch
    return torch.nn.functional.one_hot(logits.argmax(dim), logits.shape[dim]).to(logits.dtype)


def selective_scan_fn(u, delta, A, B, C, D, z=None, delta_bias=None, delta_softplus=False,
                      return_last_state=False):
    """``mamba_ssm``'s function, forward only, by our kernel.

    Args:
        u, delta: float32 (B, D, L); A: (D, N); B, C: (B, 1, N, L); D, delta_bias: (D,).

    Returns:
        float32 (B, D, L).
    """
    import torch
    if z is not None or delta_bias is None or not delta_softplus or return_last_state:
        raise ValueError("only MambaIRv2's form is served: delta_bias, delta_softplus, no z, no last state")
    batch, _, length = u.shape
    u, delta, B, C = (tensor.reshape(batch, -1, length).transpose(1, 2).contiguous()
                      for tensor in (u, delta, B, C))
    inputs = [u, delta, A.contiguous(), B, C, D, delta_bias]
    y = torch.empty_like(u)
    pointer, size, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    run = native.function("selective_scan_forward", *(pointer,) * 8, integer, size, size, integer, integer,
                          *(pointer,) * 3)
    bounds, bits, checkpoints, states = None, 0, None, None
    status = run(*(tensor.data_ptr() for tensor in inputs), bounds, bits, *u.shape, A.shape[1],
                 y.data_ptr(), checkpoints, states)
    native.check(status, "selective_scan", {})
    return y.transpose(1, 2)


@contextlib.contextmanager
def _yielding_openmp() -> Iterator[None]:
    """Paddle's OpenMP threads, which our scan uses, sleep at once instead of spinning for 200 ms: PyTorch has
    an OpenMP runtime of its own, which would have to share the cores with them."""
    path = native.paddle_openmp()
    if path is None:
        yield
        return
    openmp = ctypes.CDLL(str(path))
    before = openmp.kmp_get_blocktime()
    openmp.kmp_set_blocktime(0)
    try:
        yield
    finally:
        openmp.kmp_set_blocktime(before)
