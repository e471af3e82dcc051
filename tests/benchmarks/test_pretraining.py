"""The record and the plot of a full-precision training."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from benchmarks import pretraining
from ppsr2q.core.config import load_config
from ppsr2q.core.errors import UserError
from ppsr2q.data.embedded import write_embedded
from ppsr2q.models.checkpoint import weights_sha256
from ppsr2q.workflow.networks import build_network
from ppsr2q.workflow.pretraining import pretrain


def test_a_run_is_measured_and_drawn(tmp_path):
    data, out = write_embedded(tmp_path / "data"), tmp_path / "out"
    for path in (data / "Embedded" / "HR").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[:48, :64])
    pretrain(load_config(None, [
        "model.weights=embedded", f"data.train={data / 'train'}", f"output_dir={out}", "pretrain.iterations=2",
        "pretrain.batch=1", "pretrain.lr_patch=16", "pretrain.log_every=1", "pretrain.validate_every=1",
        "pretrain.validation_crops=1"]))
    command = [sys.executable, str(Path(pretraining.__file__)), "--run", str(out), "--data", str(data), "--sets", "Embedded"]
    path = tmp_path / "results" / "curve.json"
    done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
    assert done.returncode == 0, done.stderr
    record = json.loads(path.read_text())
    assert [point[0] for point in record["results"]["curves"]["psnr_y"]] == [1, 2]
    assert [point[0] for point in record["results"]["curves"]["loss"]] == [1, 2]
    assert f"Embedded {record['results']['Embedded']['psnr_y']:.2f}" in done.stdout
    trained = build_network(load_config(None, [f"model.weights={out / pretraining.WEIGHTS}"]))
    assert record["fingerprint"] == weights_sha256(trained) and str(tmp_path) not in path.read_text()
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    (out / pretraining.CHECKPOINT).unlink()
    with pytest.raises(UserError, match="pretrain.safetensors: no such file"):
        pretraining.record(out, data, ["Embedded"], tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()
