"""Trials of the recipe: what it cannot do it says, and the table from records."""
import os
import subprocess
import sys

import pytest

from benchmarks import recipe_trials
from ppsr2q.evaluation.records import write_record


@pytest.mark.parametrize("options, message", [
    ([], "give --run"), (["--run"], "--run needs --weights"),
    (["--run", "--trials", "fitted search"], "unknown 'fitted search'; known at 4 bits: paper; relative"),
    (["--run", "--bits", "2"], "--bits 2: trials below 4 bits, and only these, begin with a run"),
    (["--run", "--from", "x"], "--bits 4: trials below 4 bits, and only these, begin with a run")])
def test_what_it_cannot_do_it_says(options, message):
    done = subprocess.run([sys.executable, "benchmarks/recipe_trials.py", *options], text=True, capture_output=True,
                          check=False, env=dict(os.environ))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_wide_bits_and_good_trials_come_first(tmp_path):
    for name, found in (("a", {"psnr_y": 31.0}), ("b", {"psnr_y": 32.0, "bits": 4}), ("c", {"psnr_y": 33.0, "bits": 2})):
        write_record(tmp_path / f"{name}.json", name, {"iterations": 60, "options": ["x=1"], "flipped": 0.5, **found},
                     how="pytest", seconds=90)
    rows = recipe_trials.render(tmp_path).splitlines()[2:]
    assert rows == ["| b | x=1 | 4 | 60 | 32.00 | 50% | 2 |", "| a | x=1 | 4 | 60 | 31.00 | 50% | 2 |",
                    "| c | x=1 | 2 | 60 | 33.00 | 50% | 2 |"]
