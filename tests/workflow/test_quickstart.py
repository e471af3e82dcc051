"""The quickstart at its smallest: every step of it, at both bit widths."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["train.iterations=1", "train.batch=1", "train.lr_patch=16", "train.validation_crops=1", "train.warmup=0",
         "calib.images=1", "calib.lr_patch=16", "calib.candidates=5", "route_calib.iterations=1", "route_calib.batch=1"]


def quickstart(output, *arguments, expect=0):
    options = [part for option in SMALL for part in ("-o", option)]
    done = subprocess.run([sys.executable, "-m", "ppsr2q.workflow.quickstart", "--output", output, *options, *arguments],
                          cwd=ROOT, text=True, capture_output=True, check=False, env=dict(os.environ))
    assert done.returncode == expect and "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def test_every_step_is_shown_and_what_is_left_can_be_used(tmp_path):
    said = quickstart(tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    steps = ("searched bounds", "trained bounds", "+ RGT", "+ RGT + OSRC")
    assert list(record["results"]) == ["bicubic", "full precision", *(f"{n} bits: {step}" for n in (4, 2) for step in steps)]
    assert record["results"]["full precision"]["psnr_y"] > record["results"]["4 bits: + RGT + OSRC"]["psnr_y"] > 20
    assert record["how"].startswith("bash tools/quickstart.sh -o train.iterations=1 ") and record["schedule"]["calib"]["images"] == 1
    assert (tmp_path / "side_by_side.png").stat().st_size > 10_000
    command = next(line.split() for line in said.splitlines() if "tools/evaluate.py" in line)
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, text=True, capture_output=True, check=True)
    psnr = float(next(line for line in done.stdout.splitlines() if line.startswith("Embedded")).split()[2])
    assert psnr == pytest.approx(record["results"]["4 bits: + RGT + OSRC"]["psnr_y"], abs=0.05)


def test_options_of_its_own_are_refused(tmp_path):
    assert "the quickstart sets" in quickstart(tmp_path, "-o", "eval.mode=official_tiles", expect=2)
