"""Devices and seeds."""
from __future__ import annotations

import random

import numpy as np
import paddle
import pytest

from ppsr2q.core.device import seed_everything, select_device
from ppsr2q.core.errors import UserError


@pytest.fixture(autouse=True)
def keep_device():
    before = paddle.get_device()
    yield
    paddle.set_device(before)


def test_cpu():
    assert select_device("cpu") == "cpu" == paddle.get_device()


def test_auto_takes_a_gpu_when_there_is_one():
    cards = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    assert select_device("auto").startswith("gpu" if cards else "cpu")


def test_a_missing_gpu_is_explained(monkeypatch):
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: False)
    with pytest.raises(UserError, match="is the CPU build; use device: auto or cpu"):
        select_device("gpu")
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="finds no CUDA device"):
        select_device("gpu")


def test_unknown_name():
    with pytest.raises(ValueError, match="tpu"):
        select_device("tpu")


def test_one_seed_for_everything():
    def draw():
        seed_everything(7)
        return random.random(), np.random.rand(), float(paddle.rand([1]))
    assert draw() == draw()
