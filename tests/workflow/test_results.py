"""Tables that the project shows are those of its records."""
from pathlib import Path

import pytest

from benchmarks import recipe_trials, runs, table1, table2

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RENDERED = {
    "table1/table1.md": table1.render,
    "table2/short.md": lambda: table2.render("short", runs.OFFICIAL_WEIGHTS[2]),
    "recipe_trials/trials.md": recipe_trials.render,
}


@pytest.mark.parametrize("name", RENDERED)
def test_tables_are_rendered_from_the_records(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8") == RENDERED[name]()


def test_rows_of_table_1_in_the_readme_are_rendered_ones():
    rows = [line for line in README.splitlines() if "best (" in line and line.startswith("|")]
    table = (ROOT / "benchmarks/results/table1/table1.md").read_text(encoding="utf-8")
    assert rows and not [row for row in rows if row not in table]
