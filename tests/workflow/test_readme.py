"""What the README says can be done is done here."""
import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_example_of_a_network_of_ones_own(capsys):
    example = re.search(r"```python\n(.+?)```", README, re.S).group(1)
    code = [line for line in example.splitlines() if line.strip()]
    assert len(code) <= 15
    exec(compile(example, "README.md", "exec"), {})
    loss, bounds = capsys.readouterr().out.split(" ", 1)
    assert 0 < float(loss) < 0.5 and bounds.startswith("[")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:tools|configs|benchmarks)/[\w./-]+\.(?:py|sh|yml)", README))))
def test_files_that_the_readme_names_exist(path):
    assert (Path(__file__).resolve().parents[2] / path).is_file()
