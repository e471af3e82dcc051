"""Stage 1 and pretraining on two CPU processes over gloo, against one process with the double batch."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppsr2q.core.files import load_artifact, save_artifact
from ppsr2q.data.embedded import write_embedded

ROOT = Path(__file__).resolve().parents[2]
# Adam divides by the size of a gradient: without the epsilon, gradients that are nothing but rounding errors would
# move bounds by whole learning rates, and differently so for every order of summation. Small steps and 8 bits, because
# a value that changes its code for such a difference changes a routing next.
OPTIONS = ["model.weights=embedded", "calib.images=2", "calib.lr_patch=16", "train.iterations=3", "train.lr_patch=16",
           "train.epsilon=0.001", "quant.bits=8", "train.lr_bounds=1.0e-4", "train.lr_rectifier=1.0e-3",
           "train.lr_gate=1.0e-3", "train.log_every=1", "train.validate_every=0", "train.validation_crops=1",
           "pretrain.iterations=3", "pretrain.lr_patch=16", "pretrain.warmup=0", "pretrain.epsilon=0.001",
           "pretrain.log_every=1", "pretrain.validate_every=0", "pretrain.validation_crops=1"]

pytestmark = pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a GPU build wants a card per process")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_embedded(tmp_path_factory.mktemp("data"))


def losses(tool, data, out, processes, *options):
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), "--log_dir", str(out / "launch")]
    command = [sys.executable, *(launch if processes > 1 else []), f"tools/{tool}.py",
               "-c", "configs/mambairv2_light_x2_w4a4.yml"]
    for option in (*OPTIONS, f"data.train={data / 'train'}", f"output_dir={out}", *options):
        command += ["-o", option]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    stage, written = {"train": ("rgt", "rectifiers"), "pretrain": ("pretrain", "weights")}[tool]
    assert (out / f"{written}.safetensors").is_file()
    history = load_artifact(out / "resume" / f"{stage}.safetensors").metadata["state"]["history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def test_two_processes_mix_rectifiers_alike(data, tmp_path):
    """From rectifiers and gates that are far from zero: what ranks of their own mean inputs would mix differs."""
    losses("train", data, tmp_path / "start", 1, "train.batch=1", "train.iterations=1")
    start = load_artifact(tmp_path / "start" / "rectifiers.safetensors")
    rng = np.random.default_rng(0)
    tensors = {name: value + rng.normal(0, 3.0 if "gate" in name else 0.03, value.shape).astype(np.float32)
               if name.endswith((".B", "gate.linear.weight")) else value for name, value in start.tensors.items()}
    save_artifact(tmp_path / "start.safetensors", tensors, start.kind, start.metadata)
    option = f"train.start_from={tmp_path / 'start.safetensors'}"
    found = losses("train", data, tmp_path / "two", 2, option, "train.batch=1")
    expected = losses("train", data, tmp_path / "one", 1, option, "train.batch=2")
    apart = losses("train", data, tmp_path / "apart", 1, option, "train.batch=1", "train.accumulate=2")
    assert found == pytest.approx(expected, rel=1e-5) and apart != pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tool, option", [("train", "rectifier.gate=static"), ("pretrain", "model.routing=argmax")])
def test_two_processes_equal_one_with_the_double_batch(tool, option, data, tmp_path):
    key = {"train": "train.batch", "pretrain": "pretrain.batch"}[tool]
    found = losses(tool, data, tmp_path / "two", 2, option, f"{key}=1")
    expected = losses(tool, data, tmp_path / "one", 1, option, f"{key}=2")
    assert len(found) == 3 and found == pytest.approx(expected, rel=1e-5)
