import json
import subprocess

import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.evaluation import records
from ppsr2q.evaluation.records import Cell, fingerprint_of, read_records, render_table, write_record


def _write(folder, name, value, fingerprint=None):
    results = {"Set5": {"psnr_y": value}}
    return write_record(folder / f"{name}.json", "a test", results, how="pytest", seconds=1.5, seed=3,
                        fingerprint=fingerprint)


def test_a_record_comes_back_and_says_how_it_came_about(tmp_path):
    written = _write(tmp_path, "fp", 38.27)
    assert read_records(tmp_path) == {"fp": written}
    assert json.loads((tmp_path / "fp.json").read_text()) == written
    assert written["results"]["Set5"]["psnr_y"] == 38.27
    assert (written["what"], written["how"]) == ("a test", "pytest")
    assert (written["seconds"], written["seed"]) == (1.5, 3)
    assert written["date"].endswith("+00:00") and written["machine"]["cores"] >= 1
    assert {"python", "numpy", "scikit-image"} <= set(written["machine"]["versions"])
    assert read_records(tmp_path / "nowhere") == {}


def test_commit_is_that_of_the_checkout_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    assert records.git_commit() is None
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "records.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "records.py"], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path, text=True).strip()
    assert records.git_commit() == head
    (tmp_path / "records.py").write_text("2")
    assert records.git_commit() == f"{head}-dirty"


def test_damaged_records_are_named(tmp_path):
    (tmp_path / "half.json").write_text('{"what": ')
    with pytest.raises(UserError, match="half.json"):
        read_records(tmp_path)
    (tmp_path / "half.json").write_text('{"what": "x"}')
    with pytest.raises(UserError, match="half.json.*how"):
        read_records(tmp_path)


def test_fingerprint_depends_on_content_not_on_order():
    first = fingerprint_of(plan={"a": 4, "b": 2}, weights="x")
    assert first == fingerprint_of(weights="x", plan={"b": 2, "a": 4})
    assert fingerprint_of(weights="x") != fingerprint_of(weights="y")


def test_table(tmp_path):
    _write(tmp_path, "w4", 37.714, fingerprint="now")
    _write(tmp_path, "w2", 35.966, fingerprint="before")
    text = render_table(
        ["method", "4 bit", "2 bit", "1 bit"],
        [("SPR2Q", [Cell("w4", ("Set5", "psnr_y"), 37.72, "now"),
                    Cell("w2", ("Set5", "psnr_y"), 35.97, "now"),
                    Cell("w1", ("Set5", "psnr_y"), 33.3)]),
         ("other", [Cell("w4", ("Set5", "psnr_y")), Cell("x", ("Set5",)), Cell("y", ("Set5",))])],
        read_records(tmp_path),
    )
    assert text.splitlines() == [
        "| method | 4 bit | 2 bit | 1 bit |",
        "| --- | ---: | ---: | ---: |",
        "| SPR2Q | 37.71 (37.72) | 35.97† (35.97) | not run (33.30) |",
        "| other | 37.71 | not run | not run |",
        "",
        "† stale, measured with another plan, weights or protocol; to be run again: w2",
    ]


def test_table_refusals(tmp_path):
    _write(tmp_path, "fp", 1.0)
    with pytest.raises(UserError, match="Set14/psnr_y"):
        render_table(["", "a"], [("r", [Cell("fp", ("Set14", "psnr_y"))])], read_records(tmp_path))
    with pytest.raises(ValueError, match="2 cells"):
        render_table(["", "a"], [("r", [Cell("fp", ("Set5",)), Cell("fp", ("Set5",))])], {})


def test_cells_of_several_seeds(tmp_path):
    for seed, value in enumerate((37.0, 37.5, 38.0)):
        _write(tmp_path, f"s{seed}", value)
    cells = [Cell(["s0", "s1", "s2"], ("Set5", "psnr_y"), 37.6), Cell(["s1", "nowhere"], ("Set5", "psnr_y")),
             Cell([], ("Set5", "psnr_y"))]
    text = render_table(["", "a", "b", "c"], [("r", cells)], read_records(tmp_path))
    assert text.splitlines()[-1] == "| r | 37.50 ± 0.50 (37.60) | 37.50 | not run |"
