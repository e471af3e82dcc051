"""Table 1: what its rows say, what is stale, and its smallest run."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from benchmarks import runs, table1
from ppsr2q import deploy
from ppsr2q.core.config import load_config
from ppsr2q.core.files import load_artifact, tensors_sha256
from ppsr2q.data.embedded import write_embedded
from ppsr2q.deploy.packed import read_packed
from ppsr2q.evaluation.records import read_records, write_record
from ppsr2q.workflow.evaluating import measure
from tests.shared import shared_path

ROOT = Path(__file__).resolve().parents[2]
TINY = ["calib.images=1", "calib.lr_patch=16", "train.iterations=2", "train.batch=1", "train.lr_patch=16",
        "train.final_lr_patch=16", "train.final_batch=1", "train.average_last=0", "train.validate_every=0",
        "train.validation_crops=1", "route_calib.iterations=1", "route_calib.batch=1"]


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def _record(folder, weights):
    write_record(folder / "x2_w4a4_fine-tuned.json", "a row", {"bytes": 765432, "Set5": {"psnr_y": 37.81}}, how="pytest",
                 seconds=1.0, fingerprint=table1.fingerprint(2, 4, weights),
                 schedule={"train": {"iterations": 77, "batch": 4, "lr_patch": 32, "final_share": 0.25, "final_batch": 2,
                                     "final_lr_patch": 64, "lr_bounds": 0.5}})


def test_a_row_says_what_was_trained_and_what_the_paper_has(tmp_path):
    _record(tmp_path, runs.OFFICIAL_WEIGHTS[2])
    text = table1.render(tmp_path)
    assert ("| W4A4, best (fine-tuned), 77 iterations of batch 4 at LR 32x32 (the last 25% "
            "of batch 2 at 64x64), 0.77 MB | 37.81 (37.72) | "
            "not run (33.27) | not run (31.94) | not run (31.53) |") in text
    assert "W4A4, best (fine-tuned), was trained with other options than the recipe has now: " in text
    assert "train.lr_bounds 0.5 (now 0.001)" in text and "train.batch 4 (now" not in text
    assert "| W4A4, best (rectifiers-only) | not run (37.72)" in text and "†" not in text
    assert "| FSRCNN, full precision, as published | 37.00 | 32.63 | 31.53 | 29.88 |" in text


def test_a_schedule_is_the_same_but_for_reports_and_options_of_its_past():
    config = table1.run_config(2, 4, "fine-tuned", TINY)
    steps = {key: table1.config_to_dict(config)[key] for key in ("seed", "quant", "calib", "rectifier", "loss", "train")}
    older = {**{key: value for key, value in steps.items() if key not in ("seed", "rectifier")},
             "loss": {key: value for key, value in steps["loss"].items() if key != "route_weight"},
             "train": {**steps["train"], "log_every": 99}}
    assert config.loss.route_weight == table1.default_values()["loss.route_weight"]
    steps["start_sha256"] = None
    assert table1._same({**older, "start_sha256": "x"}, steps) and not table1._same(older, {**steps, "start_sha256": "x"})
    for change in ({"train": {**steps["train"], "batch": 99}}, {"rectifier": {**steps["rectifier"], "rank": 2}}, {"seed": 77}):
        assert not table1._same({**steps, **change}, steps)


def test_a_record_of_other_weights_is_marked(tmp_path):
    _record(tmp_path, "0" * 64)
    text = table1.render(tmp_path)
    assert "37.81† (37.72)" in text and "to be run again: x2_w4a4_fine-tuned" in text


def test_the_smallest_run_goes_down_to_two_bits_and_leaves_models_that_give_its_numbers(tmp_path):
    data = write_embedded(tmp_path / "data")
    for path in (data / "Embedded" / "HR").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[:48, :64])
    results = tmp_path / "results"
    for bits in (4, 2):
        table1.run(2, bits, "fine-tuned", TINY, "embedded", data, ["Embedded"], tmp_path / "runs", results, how="pytest")
    records = read_records(results)
    assert set(records) == {"x2_w4a4_fine-tuned", "x2_w2a2_fine-tuned"}
    sizes = [(results / f"{name}.safetensors").stat().st_size for name in sorted(records, reverse=True)]
    assert sizes == [records[name]["results"]["bytes"] for name in sorted(records, reverse=True)]
    assert sizes[0] > sizes[1]  # 4 bits, 2 bits
    model = deploy.load(results / "x2_w2a2_fine-tuned.safetensors")
    assert model.scale == 2 and records["x2_w2a2_fine-tuned"]["seconds"] > 0

    first = tmp_path / "runs" / "x2_w4a4_fine-tuned" / "rectifiers.safetensors"
    table1.run(2, 4, "fine-tuned", TINY, "embedded", data, ["Embedded"], tmp_path / "further", results, first, how="pytest")
    trained = read_records(results)["x2_w4a4_fine-tuned"]
    steps = trained["schedule"]
    assert steps["start_sha256"] == tensors_sha256(load_artifact(first).tensors)
    assert steps["earlier"] == [{"bits": 4, "iterations": 2, "batch": 1, "lr_patch": 16, "final_share": 0.5,
                                 "final_batch": 1, "final_lr_patch": 16}]
    assert "| W4A4, best (fine-tuned), 2 + 2 iterations of batch 1 at LR 16x16 (the last 50% of batch 1 at 16x16), " in table1.render(results)

    (data / "Embedded").rename(data / "Other")
    shutil.rmtree(tmp_path / "further")  # a set measured later needs the model alone, however often a run would report
    table1.run(2, 4, "fine-tuned", [*TINY, "train.save_every=7"], "embedded", data, ["Other"], tmp_path / "further", results, first, how="pytest")
    record = read_records(results)["x2_w4a4_fine-tuned"]
    assert record["schedule"] == steps and record["results"]["Other"]["psnr_y"] == record["results"]["Embedded"]["psnr_y"]
    assert set(record["results"]["Other"]["measured"]) == {"commit", "date", "lr"}
    assert record["machine"] == trained["machine"] and "lr" not in record["protocol"]
    assert not (tmp_path / "further").exists()
    table1.measure("x2_w2a2_fine-tuned", data, ["Embedded", "Other"], results)  # and not even the weights
    again = read_records(results)["x2_w2a2_fine-tuned"]
    added = again["results"].pop("Other")
    assert again["results"] == records["x2_w2a2_fine-tuned"]["results"]
    assert added["psnr_y"] == again["results"]["Embedded"]["psnr_y"]
    assert again["how"] == records["x2_w2a2_fine-tuned"]["how"]


COMMITTED = sorted(path.stem for path in table1.RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_models_are_those_of_their_records(name):
    record, path = read_records(table1.RESULTS)[name], table1.RESULTS / f"{name}.safetensors"
    scale, bits = int(name[1]), int(name[name.index("w") + 1])
    assert path.stat().st_size == record["results"]["bytes"] < 3e6
    assert record["fingerprint"] == table1.fingerprint(scale, bits, runs.OFFICIAL_WEIGHTS[scale])
    model = read_packed(path)
    assert model.architecture["scale"] == scale and {q.bits for q in model.quantizers.values()} == {bits}
    assert model.metadata["weights_sha256"] == runs.OFFICIAL_WEIGHTS[scale]
    scans = [q for key, q in model.quantizers.items() if key.endswith("selectiveScan.points.A")]
    assert len(scans) == 20 and all(q.upper < 0 for q in scans)  # no state grows with the size of the image


def test_a_committed_model_gives_the_recorded_psnr():
    """To 0.05 dB: between instruction sets a value within rounding of a threshold may get another code."""
    name = "x2_w4a4_fine-tuned"
    config = load_config(None, [f"data.root={shared_path('data')}"])
    model = deploy.load(table1.RESULTS / f"{name}.safetensors")
    found = measure(config, model.upscale, model.scale, ["Set5"])["Set5"]["psnr_y"]
    assert found == pytest.approx(read_records(table1.RESULTS)[name]["results"]["Set5"]["psnr_y"], abs=0.05)


@pytest.mark.parametrize("options, message", [
    (["--run"], "--run needs --weights"), (["--measure"], "--measure needs --data"),
    (["--measure", "--data", ".", "--results", "nowhere"], "no record x2_w4a4_fine-tuned.json; --run makes it"),
    (["--render", "--bits", "3"], "unknown '3'; known: 4, 2, 1"), ([], "give --run"),
    (["--run", "--bits", "4,2", "--from", "x"], "asks for 2")])
def test_what_it_cannot_do_it_says(options, message):
    done = subprocess.run([sys.executable, "benchmarks/table1.py", *options], text=True, capture_output=True, check=False,
                          env=dict(os.environ))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
