"""speed_inference: its networks, its report, and its smallest run (no times are asserted)."""
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import inference_plan, inference_report, speed_inference
from benchmarks.inference_networks import enlarged, make_networks
from ppsr2q.core.errors import UserError
from ppsr2q.deploy.architectures import ARCHITECTURES
from ppsr2q.deploy.packed import read_packed, write_packed
from ppsr2q.deploy.runtime import Runtime
from ppsr2q.quant import PLAN_ENTRIES, Plan
from tests.deploy.models import random_model

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(inference_plan.ENGINES)


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_enlarged_network_doubles_every_pixel():
    rng = np.random.default_rng(0)
    model, image = random_model(overrides={"**": None}), rng.random((9, 20, 3), dtype=np.float32)
    floats = {name: (0.1 * value).astype(np.float32) for name, value in model.floats.items()}
    model = type(model)(model.architecture, model.quantizers, model.codes, floats, model.metadata)
    small, large = Runtime(model, 1).upscale(image), Runtime(enlarged(model), 1).upscale(image)
    assert np.abs(large - small.repeat(2, axis=0).repeat(2, axis=1)).max() < 1e-6


def test_integer_networks_of_other_engines_quantize_linear_layers_only():
    network = inference_plan.NETWORKS["int8"]
    plan = Plan(PLAN_ENTRIES["mambairv2_light"], network.bits, dict(network.overrides))
    bits = {t.name: t.bits for t in plan.resolve_kinds(ARCHITECTURES["mambairv2_light"][1](4).layers, "a test")}
    quantized = {name for name, n in bits.items() if n}
    assert len(quantized) == 20 * 2 * 12  # q, k, v, proj, fc1 and fc2 twice, out_proj, in_proj, route twice
    assert {bits[name] for name in quantized if name.endswith(".weight")} == {7}
    assert {bits[name] for name in quantized if name.endswith(".input")} == {8}


def test_every_quantized_tensor_belongs_to_one_part():
    layers = ARCHITECTURES["mambairv2_light"][1](4).layers
    quantized = [{t.name for t in Plan(PLAN_ENTRIES["mambairv2_light"], network.bits, dict(network.overrides)
                                       ).resolve_kinds(layers, "a test") if t.bits}
                 for network in (inference_plan.NETWORKS[inference_plan.part_network(part, 4)]
                                 for part in inference_plan.PARTS)]
    whole = {t.name for t in Plan(PLAN_ENTRIES["mambairv2_light"], 4).resolve_kinds(layers, "a test") if t.bits}
    assert set().union(*quantized) == whole and sum(map(len, quantized)) == len(whole)


def test_given_models_are_taken_and_wrong_ones_named(tmp_path):
    given = tmp_path / "given"
    write_packed(given / "w4a4.safetensors", random_model(bits=2, scale=4))
    with pytest.raises(UserError, match="x4 with 2 bits, expected x4 with 4"):
        make_networks(tmp_path, ["w4a4"], None, given, _images(tmp_path), True)
    model = random_model(bits=4, scale=4)
    write_packed(given / "w4a4.safetensors", model)
    assert make_networks(tmp_path, ["w4a4"], None, given, _images(tmp_path), True) == {"w4a4": "given: w4a4.safetensors"}
    assert read_packed(tmp_path / "w4a4.safetensors").quantizers == model.quantizers
    trained = make_networks(tmp_path, ["w4a4"], None, ROOT / "benchmarks" / "results" / "table1", _images(tmp_path), True)
    assert trained == {"w4a4": "given: x4_w4a4_fine-tuned.safetensors"}


def _images(folder):
    from ppsr2q.data.embedded import write_embedded
    return write_embedded(folder / "images") / "train"


def _record(**seconds):
    case = {name: {"skipped": "a test"} for name in NAMES}
    case.update({name: {"seconds": s, "peak_bytes": 2**28, "psnr_y": 32.0 - loss, "psnr_loss": loss}
                 for name, (s, loss) in seconds.items()})
    networks = {engine.network: {"bytes": 10**6, "origin": "a test"} for engine in inference_plan.ENGINES.values()}
    parts = {name: 0.9 for name in inference_plan.NETWORKS}
    parts.update(fp32=1.0, part0_w4a4=0.75, part0_w8a8=0.7)
    growth = {"64": {"seconds": 1.0, "seconds_per_pixel": 1.0}, "128": {"seconds": 4.4, "seconds_per_pixel": 1.1}}
    protocol = {"threads": 2, "quick": False, "engines": {name: e.text for name, e in inference_plan.ENGINES.items()},
                **{key: key for key in ("network", "weights", "psnr", "seconds", "peak_bytes", "memory_handling")}}
    cases = {name: case for name in inference_plan.CASES}
    return {"machine": {"cpu": "a CPU", "cores": 2}, "commit": "abc", "date": "today", "protocol": protocol,
            "results": {"cases": cases, "networks": networks, "growth": growth, "parts": parts}}


def test_the_report_compares_with_the_fastest_engines_that_are_not_ours(tmp_path):
    record = _record(paddle_eager=(1.0, 0.0), openvino_fp32=(6.0, 0.0), openvino_int8=(4.0, 0.03),
                     onnxruntime_int8=(3.0, 0.3), runtime_fp32=(3.0, 0.0), runtime_w4a4=(2.0, 1.2))
    assert inference_report.fastest_foreign(record, inference_plan.LARGEST, full_precision=True) == "openvino_fp32"
    assert inference_report.fastest_foreign(record, inference_plan.LARGEST, full_precision=False) == "openvino_int8"
    text = inference_report.markdown(record)
    assert "not ours (openvino_fp32) | 3.00× | 2.5× | 3.44× | met |" in text
    assert "loses at most 0.05 dB (openvino_int8) | 2.00× |" in text
    assert "| W4A4 over our own (runtime_fp32) | 1.50× | 1.5× |  | met |" in text
    assert "| W4A4 over our own | not run | 1.1× |" in text and "| peak memory of W4A4 | 256 MiB | ≤ 300 MiB |" in text
    assert "| linear layers and 1x1 convolutions | -0.300 s | -0.250 s |" in text and "| nothing | 1.000 s |" in text
    assert "| openvino_bf16 | skipped: a test | skipped: a test |" in text and "30.80 (-1.20)" in text
    inference_report.plot(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_the_smallest_run_writes_record_table_and_plot(tmp_path, monkeypatch):
    kept = ("runtime_fp32", "runtime_w4a4", "openvino_bf16")
    monkeypatch.setattr(speed_inference, "ENGINES", {name: inference_plan.ENGINES[name] for name in kept})
    monkeypatch.setattr(speed_inference, "SIDES", (16, 32))
    monkeypatch.setattr("sys.argv", ["speed_inference.py", "--quick", "--threads", "1", "--json",
                                     str(tmp_path / "speed.json")])
    speed_inference.main()
    record = json.loads((tmp_path / "speed.json").read_text())
    case = record["results"]["cases"][inference_plan.SMALLEST]
    assert {"seconds", "peak_bytes", "psnr_loss"} <= set(case["runtime_w4a4"]) and case["runtime_w4a4"]["psnr_loss"] > 0
    assert record["results"]["cases"][inference_plan.LARGEST]["runtime_w4a4"] == {"skipped": "quick"}
    assert list(record["results"]["growth"]) == ["16", "32"]
    assert (tmp_path / "speed.md").is_file() and (tmp_path / "speed.png").is_file()


def test_bad_arguments_are_named(tmp_path, monkeypatch):
    for arguments, message in ((["--json", "x.txt"], "ends in .json"), (["--json", "x.json", "--threads", "0"], "at least 1"),
                               (["--json", "x.json", "--models", "d"], "--models needs --weights")):
        monkeypatch.setattr("sys.argv", ["speed_inference.py", *arguments])
        with pytest.raises(UserError, match=message):
            speed_inference.main()
