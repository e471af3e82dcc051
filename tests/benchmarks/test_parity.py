"""The comparison of the runtime with Paddle on test sets."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import parity, table1
from ppsr2q import deploy
from ppsr2q.data.datasets import TestSet
from ppsr2q.data.embedded import TEST_SET, write_embedded
from ppsr2q.data.image_io import list_images, read_rgb8, write_rgb8
from ppsr2q.evaluation.metrics import to_uint8
from ppsr2q.workflow.networks import load_packed, upscaler

MODEL = table1.RESULTS / "x2_w4a4_fine-tuned.safetensors"


def test_differences_are_counted_in_levels():
    first = np.array([[[0, 10, 255]], [[7, 7, 9]]], np.uint8)
    second = np.array([[[0, 9, 0]], [[10, 3, 9]]], np.uint8)
    counts = parity.histogram(first, second)
    assert [counts[n] for n in (0, 1, 3, 4, 255)] == [2, 1, 1, 1, 1] and counts.sum() == 6
    assert parity.shares(counts) == pytest.approx({"0": 2 / 6, "1": 1 / 6, "2 to 3": 1 / 6, "4 to 7": 1 / 6,
                                                   "8 or more": 1 / 6})


def test_figures_are_those_of_the_two_engines(tmp_path):
    data = write_embedded(tmp_path)
    for path in list_images(data / TEST_SET / "HR"):
        write_rgb8(path, read_rgb8(path)[100:164, 100:180].copy())
    runtime, paddle = deploy.load(MODEL).upscale, upscaler(load_packed(MODEL))
    found = parity.compare(runtime, paddle, TestSet(data, TEST_SET, 2))
    images = [pair.lr.astype(np.float32) / np.float32(255) for pair in TestSet(data, TEST_SET, 2)]
    apart = np.concatenate([np.abs(to_uint8(runtime(image)).astype(int) - to_uint8(paddle(image))).ravel()
                            for image in images])
    assert found["shares"]["0"] == np.mean(apart == 0) and found["largest"] == apart.max()
    assert found["images"]["number"] == 2
    assert found["images"]["lowest"] <= found["difference"] <= found["images"]["highest"]
    assert found["difference"] == pytest.approx(found["runtime"] - found["paddle"]) and 20 < found["paddle"] < 50


def test_the_report_says_what_was_missed():
    row = {"runtime": 37.64, "paddle": 37.61, "difference": 0.03, "images": {"number": 5, "lowest": -0.01, "highest": 0.1},
           "shares": {label: 0.2 for label in parity.CLASSES}, "largest": 9}
    text = parity.markdown({"what": "a model", "machine": {"cpu": "a CPU"}, "commit": "abc",
                            "results": {"Set5": row, "B100": {**row, "difference": 0.01}, "Set14": row}})
    assert "| Set5 | 37.640 | 37.610 | +0.0300 | ±0.02 missed | -0.010 … +0.100 | 20.000% |" in text
    assert "±0.01 met" in text and "| Set14 | 37.640 | 37.610 | +0.0300 |  | " in text


@pytest.mark.parametrize("options, message", [
    (["--model", "absent.safetensors", "--json", "x.json"], "absent.safetensors"),
    (["--model", str(MODEL), "--json", "x.txt"], "ends in .json"),
    (["--model", str(MODEL), "--json", "x.json"], "Set5")])
def test_mistakes_are_named_and_nothing_is_written(options, message, tmp_path):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, str(root / "benchmarks" / "parity.py"), "--data", str(tmp_path), *options],
                          cwd=tmp_path, text=True, capture_output=True, check=False, env=dict(os.environ))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
