"""What the report computes from a record's figures."""
from __future__ import annotations

import pytest

from benchmarks import speed_report


def record(**seconds):
    growth = {side[1:]: {"seconds": value, "seconds_per_pixel": value / int(side[1:])**2}
              for side, value in seconds.items()}
    cases = {"fp_forward_64": {"fused": {"seconds": 0.2}, "scan": {"seconds": 3}, "reference": {"skipped": "quick"}}}
    return {"results": {"growth": growth, "cases": cases}}


def test_ratio_needs_both_figures():
    assert speed_report.ratio(record(), "fp_forward_64", "scan") == pytest.approx(15)
    assert speed_report.ratio(record(), "fp_forward_64", "reference") is None


def test_flatness_is_relative_to_the_middle():
    low, high = speed_report.flatness(record(_10=100 * 0.75, _20=400 * 1.25))
    assert (low, high) == pytest.approx((-0.25, 0.25))


def test_a_straight_line_is_found_again():
    line = {f"_{side}": 0.05 + 2e-5 * side**2 for side in (64, 128, 256)}
    assert speed_report.fixed_and_per_pixel(record(**line)) == pytest.approx((0.05, 2e-5))
