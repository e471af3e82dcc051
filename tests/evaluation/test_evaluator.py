import math

import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.data.datasets import TestSet
from ppsr2q.data.image_io import write_rgb8
from ppsr2q.evaluation.evaluator import PROTOCOL, bicubic_upscaler, evaluate, format_results
from tests.shared import shared_path


@pytest.fixture
def test_set(tmp_path):
    for name, level in (("a", 100), ("b", 50)):
        write_rgb8(tmp_path / "Flat" / "HR" / f"{name}.png", np.full((33, 32, 3), level, np.uint8))
    return TestSet(tmp_path, "Flat", 2)


# Y PSNR of bicubic up-sampling as published; the whole sets take long, two sets suffice.
@pytest.mark.parametrize(
    "name, scale, expected",
    [("Set5", 2, 33.67), ("Set5", 4, 28.43), ("Set14", 2, 30.33), ("Set14", 4, 26.09)],
)
def test_bicubic_rows(name, scale, expected):
    root = shared_path(f"data/{name}/HR").parents[1]
    results = evaluate(bicubic_upscaler(scale), [TestSet(root, name, scale)])
    assert results[name]["psnr_y"] == pytest.approx(expected, abs=0.01)


def test_results_by_hand(test_set):
    seen = []
    results = evaluate(lambda lr: lr.repeat(2, 0).repeat(2, 1) + np.float32(1 / 255), [test_set],
                       on_image=lambda *arguments: seen.append(arguments))
    expected = 20 * math.log10(255 / (219 / 255))
    for row in (results["Flat"], *results["Flat"]["images"].values()):
        assert row["psnr_y"] == pytest.approx(expected)
    assert list(results["Flat"]["images"]) == ["a", "b"] and results["protocol"] == {"scale": 2, **PROTOCOL}
    assert [(name, pair.name) for name, pair, _, _ in seen] == [("Flat", "a"), ("Flat", "b")]
    assert seen[0][2].dtype == np.uint8 and seen[0][2].shape == (32, 32, 3) and seen[0][2].max() == 101


def test_refusals(test_set, tmp_path):
    with pytest.raises(ValueError, match="Flat/a"):
        evaluate(lambda lr: lr, [test_set])
    with pytest.raises(UserError, match="Flat/a.*NaN"):
        evaluate(lambda lr: lr.repeat(2, 0).repeat(2, 1) * np.float32("nan"), [test_set])
    with pytest.raises(ValueError, match="one scale"):
        evaluate(bicubic_upscaler(2), [test_set, TestSet(tmp_path, "Flat", 4)])
    with pytest.raises(ValueError, match="one scale"):
        evaluate(bicubic_upscaler(2), [])


def test_an_image_too_small_to_measure_is_named_before_it_is_enlarged(tmp_path):
    write_rgb8(tmp_path / "Tiny" / "HR" / "a.png", np.zeros((14, 40, 3), np.uint8))
    with pytest.raises(UserError, match="Tiny/a of 40x14 pixels .* too small"):
        evaluate(lambda lr: pytest.fail("enlarged"), [TestSet(tmp_path, "Tiny", 2)])


def test_the_protocol_says_where_small_images_come_from(test_set, tmp_path):
    for name in "ab":
        write_rgb8(tmp_path / "Flat" / "LR_bicubic" / "X2" / f"{name}.png", np.full((16, 16, 3), 100, np.uint8))
    write_rgb8(tmp_path / "Other" / "HR" / "c.png", np.zeros((32, 32, 3), np.uint8))
    given, made = TestSet(tmp_path, "Flat", 2), TestSet(tmp_path, "Other", 2)
    assert evaluate(bicubic_upscaler(2), [given])["protocol"]["lr"] == "as found in LR_bicubic of Flat"
    assert evaluate(bicubic_upscaler(2), [given, made])["protocol"]["lr"] == (
        "as found in LR_bicubic of Flat; else MATLAB-exact bicubic of the 8-bit HR image")
    assert evaluate(bicubic_upscaler(2), [made])["protocol"]["lr"] == PROTOCOL["lr"]


def test_table(test_set):
    text = format_results(evaluate(lambda lr: lr.repeat(2, 0).repeat(2, 1) + np.float32(1 / 255), [test_set]))
    assert "Flat       2      49.45  " in text and "scale: 2" in text
