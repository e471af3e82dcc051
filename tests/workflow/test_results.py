"""Numbers that the README shows are those of the records."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_ablation_of_the_readme_is_the_rendered_record():
    table = (ROOT / "benchmarks/results/ablation.md").read_text(encoding="utf-8").strip()
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
