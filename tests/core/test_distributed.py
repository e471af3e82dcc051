"""Two CPU processes over gloo against one process with the double batch."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppsr2q.core import distributed
from ppsr2q.core.trainer import Trainer, TrainerSettings
from tests.core.tiny_stage import TinyStage, batches


def test_one_process_exchanges_nothing():
    tensor = paddle.to_tensor([1.0, 2.0])
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    for exchange in (distributed.all_reduce_mean_, distributed.broadcast_, distributed.all_gather):
        assert exchange(tensor) is tensor


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a GPU build wants a card per process")
def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    stage = TinyStage()
    settings = TrainerSettings(3, log_every=1, validate_every=2)
    expected = Trainer(stage, batches, settings, tmp_path / "one").run()
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    launched = subprocess.run(
        [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir",
         str(tmp_path / "log"), str(root / "tests/core/tiny_stage.py"), str(tmp_path / "two"),
         str(tmp_path / "history")], cwd=root, env=environment, capture_output=True, timeout=120, check=False)
    if launched.returncode:
        pytest.fail(launched.stdout.decode()[-2000:] + launched.stderr.decode()[-2000:])
    found = [json.loads((tmp_path / f"history.{rank}").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert len(found[0]["history"]) == len(expected.history)
    for entry, wanted in zip(found[0]["history"], expected.history):
        assert entry == pytest.approx(wanted, rel=1e-5)
    for name, value in stage.state().items():
        np.testing.assert_allclose(found[0]["state"][name], value, rtol=1e-5, atol=1e-7)
    assert (tmp_path / "two").exists()
