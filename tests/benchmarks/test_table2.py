"""Table 2a: what belongs to it, what is stale, what a difference is worth; and its smallest run."""
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from benchmarks import runs, table2
from ppsr2q.core.config import default_values as config_defaults
from ppsr2q.core.errors import UserError
from ppsr2q.data.embedded import write_embedded
from ppsr2q.evaluation.records import read_records, write_record

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "0" * 64


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def change_short(monkeypatch, tmp_path):
    """Give the schedule ``short`` at 4 bits further options, as YAML."""
    def change(options):
        config = tmp_path / "short.yml"
        config.write_text(f"_base_: {ROOT / 'configs/mambairv2_light_x2_w4a4_short.yml'}\n{options}")
        monkeypatch.setitem(table2.SCHEDULES, "short", str(config))
    return change


def _record(folder, key, psnr, seed=10, bits=4, weights=WEIGHTS, sets=("Set5",)):
    mark = table2.fingerprint(table2.ROWS[key], bits, seed, "short", weights)
    write_record(folder / f"{table2.record_name(key, bits, seed, 'short')}.json", key,
                 {name: {"psnr_y": psnr, "ssim_y": 0.9} for name in sets}, how="pytest", seconds=1.0, fingerprint=mark)


def test_cells_means_differences_and_the_paper(tmp_path):
    for seed, rgt, osrc, full in ((10, 37.40, 37.45, 37.9), (11, 37.50, 37.53, 38.0), (12, 37.60, 37.61, 38.1)):
        _record(tmp_path, "rgt", rgt, seed)
        _record(tmp_path, "osrc", osrc, seed)
        _record(tmp_path, "full_rank", full, seed)
    _record(tmp_path, "further", 37.0, sets=("Set5", "B20"))
    text = table2.render("short", WEIGHTS, tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("| RGT, dynamic gate"))
    assert "| 37.50 ± 0.10 (37.60) | not run |" in line
    assert "| not run (37.20) |" in text and "| 37.00 | not run | 37.00 | not run |" in text
    assert "| RGT + OSRC against RGT, dynamic gate | none: +0.03 ± 0.02 (3) |" in text
    assert "| RGT + OSRC against control: RGT, as many further iterations as OSRC | +0.45 ± 0.08 (1) |" in text  # seed 10 of both
    assert "full-rank ΔW (no group, no gate) against RGT, dynamic gate | +0.50 ± 0.00 (3) |" in text
    assert "stale" not in text.lower()


def test_one_seed_has_no_spread(tmp_path):
    _record(tmp_path, "rgt", 35.0, bits=2)
    _record(tmp_path, "osrc", 35.1, bits=2)
    assert "| +0.10 ± ? (1) |" in table2.render("short", WEIGHTS, tmp_path)


def test_records_of_other_weights_or_schedules_enter_no_cell(tmp_path, change_short):
    _record(tmp_path, "rgt", 33.33, weights="1" * 64)
    text = table2.render("short", WEIGHTS, tmp_path)
    assert "33.33" not in text and "Stale" in text and "short_w4_rgt_s10" in text
    _record(tmp_path, "rgt", 33.33)
    assert "33.33" in table2.render("short", WEIGHTS, tmp_path)
    change_short("train: {iterations: 601}")
    assert "33.33" not in table2.render("short", WEIGHTS, tmp_path)


def test_fingerprints_tell_apart_what_matters_only(monkeypatch, change_short):
    def mark(key="rgt", bits=4, seed=10, schedule="short"):
        return table2.fingerprint(table2.ROWS[key], bits, seed, schedule, WEIGHTS)
    marks = [mark(), mark("osrc"), mark("static"), mark(bits=2), mark(seed=11), mark(schedule="paper")]
    assert len(set(marks)) == len(marks)
    before = mark(), mark("further")
    plain = table2.config_to_dict
    with monkeypatch.context() as patch:  # an option that a later version has, at its default
        patch.setattr(table2, "config_to_dict", lambda config: {**plain(config), "loss": {**plain(config)["loss"], "new": 1}})
        patch.setattr(table2, "default_values", lambda: {**config_defaults(), "loss.new": 1})
        assert mark() == before[0]
    change_short("train: {save_every: 7}")
    assert (mark(), mark("further")) == before
    monkeypatch.setitem(table2.ROWS, "rgt", dataclasses.replace(table2.ROWS["rgt"], options=("rectifier.rank=4",)))
    assert mark() != before[0] and mark("further") != before[1]  # it goes on from that row


def test_rows_and_seeds():
    assert table2.seeds_of(table2.ROWS["rgt"], 4, 3) == (10, 11, 12)
    assert table2.seeds_of(table2.ROWS["rgt"], 2, 3) == table2.seeds_of(table2.ROWS["static"], 4, 3) == (10,)
    further = table2.row_config(table2.ROWS["further"], 4, 11, "short")
    assert further.train.iterations == further.route_calib.iterations == 100
    assert further.train.start_from == "output/table2/short/w4/rgt-s11/rectifiers.safetensors"
    with pytest.raises(UserError, match="unknown 'rgtt'; known: fp, one_sided, searched"):
        runs.choose("rgt,rgtt", list(table2.ROWS), "rows")


def test_the_smallest_run_writes_records_and_keeps_them(tmp_path, change_short):
    data = write_embedded(tmp_path / "data")
    for path in (data / "Embedded" / "HR").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[:48, :64])
    change_short("calib: {images: 1, lr_patch: 16}\n"
                 "train: {iterations: 2, batch: 1, lr_patch: 16, validate_every: 0, validation_crops: 1}\n"
                 "route_calib: {iterations: 1, batch: 1}")
    run = ("embedded", data, ["Embedded"], tmp_path / "runs", tmp_path / "records")
    keys = ("fp", "searched", "rgt", "osrc", "further")
    for key in keys:
        table2.run_row(key, 4, 10, "short", *run)
    records = read_records(tmp_path / "records")
    assert set(records) == {f"short_w4_{key}_s10" for key in keys}
    seconds = {key: records[f"short_w4_{key}_s10"]["seconds"] for key in keys}
    assert seconds["fp"] == seconds["searched"] == 0 < seconds["further"] and 0 < seconds["rgt"] < seconds["osrc"]
    with pytest.raises(UserError, match="Other"):  # what is measured stays, what is missing is asked for
        table2.run_row("rgt", 4, 10, "short", "embedded", data, ["Embedded", "Other"], *run[3:])
    assert read_records(tmp_path / "records") == records


def test_without_weights_the_command_says_what_it_needs():
    done = subprocess.run([sys.executable, "benchmarks/table2.py", "--run"], text=True, capture_output=True, check=False,
                          env={k: v for k, v in os.environ.items() if not k.startswith("PPSR2Q")})
    assert done.returncode == 2 and "--weights" in done.stderr and "Traceback" not in done.stderr
