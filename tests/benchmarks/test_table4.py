"""Table 4: its counts, its ratios from a record, and what it says without one."""
import pytest

from benchmarks import table4
from benchmarks.inference_plan import ENGINES, LARGEST


def record_of(**seconds):
    figures = {name: {"skipped": "a test"} for name in ENGINES}
    figures.update({name: {"seconds": value, "psnr_y": 32.0, "psnr_loss": 0.0} for name, value in seconds.items()})
    return {"results": {"cases": {LARGEST: figures}}, "machine": {"cpu": "a CPU"}, "protocol": {"threads": 2}, "commit": "abc"}


@pytest.mark.parametrize("bits, overrides", [(32, {}), (4, {"**.CPE.0.*": None}), (2, {"**.CPE.0.*": None})])
def test_the_papers_counts_are_those_of_a_plan_without_the_cpe_convolution(bits, overrides):
    cost, (size, flops, _) = table4.counted(bits, overrides), table4.PAPER[bits]
    assert round(cost.size_mib, 2) == size and round(cost.weighted_macs / 1e9, 1) == flops


def test_the_measured_ratio_is_over_the_fastest_full_precision_engine_that_is_not_ours():
    record = record_of(openvino_fp32=6.0, onnxruntime_fp32=7.0, openvino_int8=1.0, runtime_fp32=3.0, runtime_w4a4=2.0)
    assert table4.measured_speedup(record, 4) == (3.0, "openvino_fp32", 1.5)
    assert table4.measured_speedup(record, 2) is None
    assert table4.measured_speedup(record_of(runtime_w4a4=2.0, runtime_fp32=3.0), 4) is None
    text = table4.render(record)
    row = next(line for line in text.splitlines() if line.startswith("| 4 |"))
    assert row.endswith("| 3.51 (3.44) | 3.00 [1.50] |") and "a CPU, 2 threads, commit abc" in text
    assert next(line for line in text.splitlines() if line.startswith("| 2 |")).endswith("| not measured |")


def test_without_a_record_nothing_is_measured():
    text = table4.render(None)
    assert text.count("not measured") == 2 and "| 32 | 3.01 (3.01) | 75.6 (75.6) |" in text
