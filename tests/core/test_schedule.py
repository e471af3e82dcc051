"""Learning-rate factors against values computed by hand."""
from __future__ import annotations

import pytest

from ppsr2q.core.schedule import cosine, multistep


def test_cosine_by_hand():
    assert [cosine(i, 4) for i in range(5)] == pytest.approx([1, 0.8535534, 0.5, 0.1464466, 0])
    assert cosine(2, 4, min_ratio=0.2) == pytest.approx(0.6)


def test_warmup_then_cosine():
    found = [cosine(i, 8, warmup=4, min_ratio=0.1) for i in range(9)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.8681981, 0.55, 0.2318019, 0.1])


def test_multistep_by_hand():
    assert [multistep(i, [2, 4], 0.5, warmup=2) for i in range(6)] == [0.5, 1, 0.5, 0.5, 0.25, 0.25]
    assert multistep(9, [], 0.5) == 1


def test_warmup_longer_than_the_run():
    assert [cosine(i, 2, warmup=4) for i in range(2)] == [0.25, 0.5]
