"""Tables that the project shows are those of its records."""
import hashlib
import json
from pathlib import Path

import pytest

from benchmarks import inference_report, parity, recipe_trials, runs, speed_report, table1, table2, table4
from ppsr2q.evaluation.records import read_records

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def from_record(markdown, name):
    """Of a benchmark whose report shows one record."""
    return lambda: markdown(read_records(ROOT / "benchmarks/results")[name])


RENDERED = {
    "table1/table1.md": table1.render,
    "table2/short.md": lambda: table2.render("short", runs.OFFICIAL_WEIGHTS[2]),
    "recipe_trials/trials.md": recipe_trials.render,
    "table4.md": from_record(table4.render, table4.RECORD),
    "parity.md": from_record(parity.markdown, "parity"),
    "speed_training.md": from_record(speed_report.markdown, "speed_training"),
    "speed_inference.md": from_record(inference_report.markdown, "speed_inference"),
    "speed_inference_vnni.md": from_record(inference_report.markdown, "speed_inference_vnni"),
}


@pytest.mark.parametrize("name", RENDERED)
def test_tables_are_rendered_from_the_records(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8") == RENDERED[name]()


def test_rows_of_table_1_in_the_readme_are_rendered_ones():
    rows = [line for line in README.splitlines() if "best (" in line and line.startswith("|")]
    table = (ROOT / "benchmarks/results/table1/table1.md").read_text(encoding="utf-8")
    assert rows and not [row for row in rows if row not in table]


def test_rows_of_table_2_in_the_readme_are_rendered_ones():
    rows = README.split("**What every step brings.**")[1].split("| --- |")[1].split("\n\n")[0].splitlines()[1:]
    table = (ROOT / "benchmarks/results/table2/short.md").read_text(encoding="utf-8").split("| 2 bits |")[0].splitlines()
    assert rows and not [row for row in rows if not any(line.startswith(row) for line in table)]


def strings_of(value):
    """All texts in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in strings_of(item)]
    return [value] if isinstance(value, str) else []


def test_records_name_no_folder_of_the_machine_they_were_made_on():
    records = sorted((ROOT / "benchmarks/results").rglob("*.json"))
    named = {path.name: text for path in records for text in strings_of(json.loads(path.read_text())) if text.startswith("/")}
    assert records and not named


def test_parity_is_that_of_the_committed_network():
    record = read_records(ROOT / "benchmarks/results")["parity"]
    model = ROOT / "benchmarks/results/table1" / record["what"].split(":")[0]
    assert record["fingerprint"] == hashlib.sha256(model.read_bytes()).hexdigest()
