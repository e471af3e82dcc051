"""Where Paddle computes, and its random state."""
from __future__ import annotations

import random

import numpy as np
import paddle

from ppsr2q.core.errors import UserError


def select_device(name: str = "auto") -> str:
    """Make ``auto`` (a GPU when there is one), ``cpu`` or ``gpu`` Paddle's device; gives "cpu" or "gpu:0".

    Raises:
        UserError: ``gpu`` was asked for, but this Paddle has no CUDA or finds no card.
        ValueError: unknown name.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"expected auto, cpu or gpu, got {name!r}")
    cards = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if name == "gpu" and not cards:
        reason = "finds no CUDA device" if paddle.is_compiled_with_cuda() else "is the CPU build"
        raise UserError(f"device: gpu was asked for, but the installed PaddlePaddle {paddle.__version__} "
                        f"{reason}; use device: auto or cpu, or install paddlepaddle-gpu")
    # Under paddle.distributed.launch "gpu" means the card of this process.
    paddle.set_device("gpu" if cards and name != "cpu" else "cpu")
    return paddle.get_device()


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and Paddle."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    paddle.seed(seed)
