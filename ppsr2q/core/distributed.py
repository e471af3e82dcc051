"""Data parallelism in the few verbs this project needs; with one process every one of them does nothing.

Processes are started by ``python -m paddle.distributed.launch --nproc_per_node N tool.py ...``. The group is
set up at the first exchange, on NCCL or, on the CPU, gloo.
"""
from __future__ import annotations

import functools
import os
from typing import List

import paddle
from paddle import distributed as dist


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size()


def rank() -> int:
    """Number of this process, 0 ... world_size() - 1."""
    return dist.get_rank()


def is_main() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def all_reduce_mean_(tensor: paddle.Tensor) -> paddle.Tensor:
    """Replace ``tensor`` (same shape and dtype on every rank) by its mean over the ranks; no gradient."""
    if world_size() > 1:
        _initialize()
        dist.all_reduce(tensor)
        tensor.scale_(1.0 / world_size())
    return tensor


def broadcast_(tensor: paddle.Tensor) -> paddle.Tensor:
    """Replace ``tensor`` (same shape and dtype on every rank) by rank 0's; no gradient."""
    if world_size() > 1:
        _initialize()
        dist.broadcast(tensor, src=0)
    return tensor


def all_gather(tensor: paddle.Tensor) -> paddle.Tensor:
    """The ranks' tensors (same shape and dtype), joined along axis 0 in order of rank; no gradient.

    Raises:
        ValueError: ``tensor`` needs a gradient, which would be lost.
    """
    if world_size() == 1:
        return tensor
    if not tensor.stop_gradient:
        raise ValueError("all_gather has no gradient: detach the tensor")
    _initialize()
    parts: List[paddle.Tensor] = []
    dist.all_gather(parts, tensor)
    return paddle.concat(parts, axis=0)


def barrier() -> None:
    """Wait until every rank is here."""
    all_reduce_mean_(paddle.zeros([1]))


@functools.lru_cache(maxsize=None)
def _initialize() -> None:
    if paddle.get_device() == "cpu":  # a GPU build would choose NCCL, which cannot move CPU tensors
        os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")
    dist.init_parallel_env()
