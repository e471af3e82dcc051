"""The whole job through the command line, on the embedded network and images, as small as it gets."""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppsr2q.core.errors import UserError
from ppsr2q.data.embedded import write_embedded

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/mambairv2_light_x2_w4a4.yml"


def tool(name, *arguments, expect=0):
    """Run a tool in its own process; returns its output, which must hold no traceback."""
    done = subprocess.run([sys.executable, f"tools/{name}.py", *map(str, arguments)], cwd=ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == expect, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_embedded(tmp_path_factory.mktemp("data"))
    for path in (root / "Embedded" / "HR").iterdir():  # smaller test images: this is a test of the tools
        cv2.imwrite(str(path), cv2.imread(str(path))[:96, :120])
    return root


@pytest.fixture(scope="module")
def options(data, tmp_path_factory):
    return ["-c", CONFIG, "-o", "model.weights=embedded", "-o", f"data.train={data / 'train'}",
            "-o", f"data.root={data}", "-o", f"output_dir={tmp_path_factory.mktemp('out')}", "-o", "calib.images=2",
            "-o", "calib.lr_patch=16", "-o", "train.iterations=3", "-o", "train.batch=1", "-o", "train.lr_patch=16",
            "-o", "train.validate_every=3", "-o", "train.validation_crops=1", "-o", "route_calib.iterations=2",
            "-o", "route_calib.batch=1"]


@pytest.fixture(scope="module")
def out(options):
    return Path(next(o.split("=")[1] for o in options if o.startswith("output_dir=")))


@pytest.fixture(scope="module")
def trained(options):
    return tool("train", *options)


@pytest.fixture(scope="module")
def exported(options, trained):
    tool("route_calib", *options)
    return tool("export", *options, "--format", "fused,packed,torch,paddle")


def test_missing_stages_name_the_tool_that_makes_them(options, tmp_path):
    elsewhere = [*options, "-o", f"output_dir={tmp_path}"]
    assert "tools/train.py" in tool("route_calib", *elsewhere, expect=2)
    assert "tools/route_calib.py" in tool("export", *elsewhere, expect=2)
    assert "tools/export.py" in tool("evaluate", *elsewhere, "--sets", "Embedded", expect=2)


def test_training_reports_and_keeps_a_dashboard(trained, out):
    assert "[rgt] 3/3" in trained and "psnr_y" in trained
    assert (out / "rectifiers.safetensors").is_file() and list((out / "log" / "rgt").iterdir())


def test_export_writes_what_answers_alike(exported, out):
    assert "fused.safetensors" in exported
    assert "torch.safetensors" in exported
    assert (out / "inference" / "model.pdiparams").is_file()


def test_the_packed_model_is_the_fused_network_bit_for_bit(exported, out):
    import paddle

    from ppsr2q.workflow.exporting import probe
    from ppsr2q.workflow.networks import load_fused, load_packed
    assert f"model.safetensors: {(out / 'model.safetensors').stat().st_size:,} bytes" in exported
    fused, packed = load_fused(out / "fused.safetensors"), load_packed(out / "model.safetensors")
    with paddle.no_grad():
        for size in ((16, 16), (5, 50), (40, 40)):
            assert np.array_equal(packed(probe(size)).numpy(), fused(probe(size)).numpy())
    stored, weights = dict(fused.named_parameters()), dict(packed.named_parameters())
    assert set(stored) == set(weights)
    for name, value in stored.items():
        if not name.endswith(("A_logs", "dt_projs_bias", "embeddingA.weight", "embeddingB.weight")):  # folded
            assert np.array_equal(weights[name].numpy(), value.numpy()), name


def test_files_that_are_given_away_name_no_folder(exported, out, data):
    from ppsr2q.core.files import load_artifact
    for name in ("fused", "model", "torch"):
        said = json.dumps(load_artifact(out / f"{name}.safetensors").metadata)
        assert str(out.parent) not in said and str(data.parent) not in said and f'"output_dir": "{out.name}"' in said


def test_half_precision_answers_nearly_alike(exported, options, out, data, tmp_path):
    full = out / "model.safetensors"
    kept, size = full.read_bytes(), full.stat().st_size
    said = tool("export", *options, "--format", "packed", "--rest", "float16")
    half = full.rename(tmp_path / "half.safetensors")
    full.write_bytes(kept)
    assert "fused" not in said and half.stat().st_size < 0.65 * size
    for name, path in (("full", full), ("half", half)):
        tool("evaluate", "--model", path, "-o", f"data.root={data}", "--sets", "Embedded", "--json", tmp_path / f"{name}.json")
    psnr = [json.loads((tmp_path / f"{name}.json").read_text())["Embedded"]["psnr_y"] for name in ("full", "half")]
    assert psnr[0] == pytest.approx(psnr[1], abs=0.05)


def test_unknown_formats_and_stray_options_are_named(exported, options, out, tmp_path):
    assert "expected some of fused, packed, onnx, openvino, torch, paddle" in tool("export", *options, "--format", "fused,jpeg", expect=2)
    for stray, form in ((["--rest", "float16"], "packed"), (["--target", "float"], "onnx"), (["--optimize"], "openvino")):
        said = tool("export", *options, "--format", "fused", *stray, expect=2)
        assert f"{' '.join(stray)} is of --format {form}, which is not among fused" in said
    assert "--plan-size 64x64 is of --show-plan" in tool("train", *options, "--plan-size", "64x64", expect=2)
    assert "expected the name of a file that ends in .json" in tool(
        "evaluate", "--model", out / "fused.safetensors", "--json", out, expect=2)
    packed = ["--model", out / "model.safetensors"]
    said = tool("predict", *packed, "--threads", "2", tmp_path, tmp_path / "o", expect=2)
    assert "--engine runtime or onnxruntime" in said
    said = tool("predict", "--engine", "runtime", tmp_path, tmp_path / "o", "-c", CONFIG, expect=2)
    assert "a packed model (tools/export.py)" in said
    said = tool("predict", "--engine", "runtime", *packed, "--threads", "0", tmp_path, tmp_path / "o", expect=2)
    assert "threads must be a whole number from 1" in said


def test_the_inference_model_takes_any_size(exported, out):
    import paddle

    from ppsr2q.workflow.exporting import graph_tolerance, probe
    from ppsr2q.workflow.networks import load_fused
    model, fused = paddle.jit.load(str(out / "inference" / "model")), load_fused(out / "fused.safetensors")
    with paddle.no_grad():
        for size in ((16, 16), (5, 50)):
            expected = fused(probe(size)).numpy()
            difference = model(probe(size)).numpy() - expected
            assert difference.shape == (1, 3, 2 * size[0], 2 * size[1])
            assert (difference**2).mean()**0.5 < graph_tolerance(fused, [expected], [size])


def test_fused_weights_have_16_values_and_no_rectifier_is_left(exported, out):
    from ppsr2q.workflow.networks import load_fused
    network = load_fused(out / "fused.safetensors")
    layer = network.layers[2].residual_group.layers[3]
    for weight in (layer.q.weight, layer.convffn1.sg.conv.weight, layer.assm.selectiveScan.x_proj_weight):
        assert len(np.unique(weight.numpy())) <= 16
    assert not [name for name, _ in network.named_parameters() if "weight_delta" in name or "gate." in name]


def test_evaluation_measures_every_stage(exported, options, out, data, tmp_path):
    tool("evaluate", "--model", out / "fused.safetensors", "-o", f"data.root={data}", "--sets", "Embedded",
         "--json", tmp_path / "fused.json")
    tool("evaluate", *options, "--stage", "osrc", "--sets", "Embedded", "--json", tmp_path / "osrc.json")
    tool("evaluate", *options, "--stage", "fp", "--sets", "Embedded", "--json", tmp_path / "fp.json")
    fused, osrc, full = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("fused", "osrc", "fp"))
    assert set(fused) == {"Embedded", "protocol", "measured"} and set(fused["Embedded"]["images"]) == {"chelsea", "coffee"}
    assert fused["Embedded"]["psnr_y"] == pytest.approx(osrc["Embedded"]["psnr_y"], abs=1e-3)
    assert fused["measured"]["sha256"] == hashlib.sha256((out / "fused.safetensors").read_bytes()).hexdigest()
    tool("evaluate", *options, "--sets", "Embedded", "--json", tmp_path / "default.json")
    default = json.loads((tmp_path / "default.json").read_text())["measured"]
    assert (default["stage"], default["sha256"]) == ("fused", fused["measured"]["sha256"])
    assert osrc["measured"]["sha256"] == hashlib.sha256((out / "spr2q_table.safetensors").read_bytes()).hexdigest()
    assert full["measured"]["stage"] == "fp" and full["measured"]["options"]["output_dir"] == out.name
    assert full["Embedded"]["psnr_y"] > fused["Embedded"]["psnr_y"] > 20


def test_test_sets_are_looked_for_before_a_network_is_loaded(options, data, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no model")
    for network in (["--model", "nowhere.safetensors"], [*options, "--stage", "fp", "-o", "model.weights=nowhere.safetensors"]):
        assert "nowhere.safetensors" in tool("evaluate", *network, "-o", f"data.root={data}", "--sets", "Embedded", expect=2)
    assert "Absent" in tool("evaluate", *options, "--stage", "fp", "-o", "model.weights=nowhere.safetensors", "--sets", "Absent",
                            expect=2)


def test_results_are_json_also_where_an_image_is_met_exactly():
    from ppsr2q.workflow.evaluating import as_json
    found = json.loads(as_json({"Set": {"psnr_y": float("inf"), "ssim_y": 1.0}}), parse_constant=pytest.fail)
    assert found == {"Set": {"psnr_y": None, "ssim_y": 1.0}}


def test_starting_over_keeps_earlier_runs_however_often(tmp_path, capsys):
    from ppsr2q.core.config import load_config
    from ppsr2q.workflow.training import start_over
    config = load_config(None, [f"output_dir={tmp_path}"])
    bounds, checkpoint, log = tmp_path / "searched_bounds.safetensors", tmp_path / "resume/rgt.safetensors", tmp_path / "log/rgt"
    for folder in (checkpoint.parent, log):
        folder.mkdir(parents=True)

    def run(number, *files):
        for path in files:
            path.write_text(f"of run {number}")
        (log / "events").write_text(f"of run {number}")

    def kept(path, mark):
        return path.with_name(f"{path.stem}{mark}{path.suffix}").read_text()
    start_over(config, "rgt", False, [bounds])
    log.mkdir()  # curves alone were left, and are set aside
    run(1, bounds, checkpoint)
    start_over(config, "rgt", True, [bounds])  # goes on
    assert checkpoint.exists() and (log / "events").exists()
    start_over(config, "rgt", False, [bounds])
    assert not any(path.exists() for path in (bounds, checkpoint, log)) and "rgt.earlier2.safetensors" in capsys.readouterr().out
    log.mkdir()
    run(2, bounds, checkpoint)
    start_over(config, "rgt", False, [bounds])
    for mark, number in ((".earlier2", 1), (".earlier3", 2)):
        assert kept(bounds, mark) == kept(checkpoint, mark) == f"of run {number}"
        assert (log.with_name(f"rgt{mark}") / "events").read_text() == f"of run {number}"
    log.mkdir()
    start_over(config, "rgt", True, [bounds])  # nothing to go on from: these curves are of another run
    assert not log.exists()


@pytest.mark.parametrize("option, message", [
    ("pretrain.schedule=multistep", "there are no pretrain.milestones"),
    ("model.init=bilinear", "model.init=bilinear is of runs from scratch")])
def test_what_pretraining_would_ignore_is_refused(options, option, message):
    assert message in tool("pretrain", *options, "-o", option, expect=2)


def test_prediction_keeps_grey_alpha_and_depth(exported, out, tmp_path):
    rng = np.random.default_rng(0)
    images = {"grey.png": rng.integers(0, 255, (9, 20), np.uint8), "one.png": rng.integers(0, 255, (1, 1, 3), np.uint8),
              "alpha.png": rng.integers(0, 255, (20, 9, 4), np.uint8),
              "deep.png": rng.integers(0, 65535, (17, 17, 3), np.uint16)}
    (tmp_path / "in").mkdir()
    for name, image in images.items():
        cv2.imwrite(str(tmp_path / "in" / name), image)
    tool("predict", "--model", out / "fused.safetensors", tmp_path / "in", tmp_path / "out", "--tile", "16")
    for name, image in images.items():
        written = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)
        assert written.shape == (2 * image.shape[0], 2 * image.shape[1]) + image.shape[2:], name
        assert written.dtype == image.dtype


def test_damaged_images_do_not_stop_the_others(exported, out, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "in" / "b.png"), np.zeros((4, 4, 3), np.uint8))
    said = tool("predict", "--model", out / "fused.safetensors", tmp_path / "in", tmp_path / "out", expect=2)
    assert "a.png" in said and (tmp_path / "out" / "b.png").is_file()


def test_damaged_models_are_refused(exported, out, tmp_path):
    content = (out / "fused.safetensors").read_bytes()
    for name, damaged in (("cut", content[:-100]), ("flipped", content[:-9] + b"\x55" + content[-8:])):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        assert str(path) in tool("predict", "--model", path, tmp_path, tmp_path / "o", expect=2)
    said = tool("predict", "--model", out / "rectifiers.safetensors", tmp_path, tmp_path / "o", expect=2)
    assert "'rectifiers'" in said and "fused model" in said and "packed model" in said


@pytest.mark.parametrize("change, message", [
    ({"architecture": None}, "unknown architecture None"), ({"architecture": "x"}, "unknown architecture x"),
    ({"architecture": {"name": "mambairv2_light", "scale": 3}}, "known: mambairv2_light x2, mambairv2_light x4"),
    ({"plan": None}, "its quantization plan is not one that ppsr2q writes")])
def test_fused_models_of_unknown_kinds_are_refused(exported, out, tmp_path, change, message):
    from ppsr2q.core.files import load_artifact, save_artifact
    from ppsr2q.workflow.networks import load_fused
    fused = load_artifact(out / "fused.safetensors")
    save_artifact(tmp_path / "m.safetensors", fused.tensors, fused.kind, {**fused.metadata, **change})
    with pytest.raises(UserError, match=f"m.safetensors: {message}|m.safetensors.*{message}"):
        load_fused(tmp_path / "m.safetensors")


@pytest.mark.parametrize("broken", range(2))
def test_a_form_that_answers_no_numbers_differs(broken):
    import paddle

    from ppsr2q.core.errors import ParityError
    from ppsr2q.workflow import exporting
    expected = [np.zeros((1, 3, 2 * h, 2 * w), np.float32) for h, w in exporting.PROBE_SIZES]
    answers = iter([paddle.to_tensor(a * (np.nan if i == broken else 1)) for i, a in enumerate(expected)])
    with pytest.raises(ParityError, match="by nan"):
        exporting._checked(ROOT, lambda image: next(answers), expected, exporting._LARGEST, 1e-5)


def test_errors_of_a_writer_name_the_file_that_was_asked_for(tmp_path):
    from ppsr2q.workflow import exporting

    def write(job, path):
        raise UserError(f"{path}: a parameter is not finite as float16")
    with pytest.raises(UserError, match=f"^{tmp_path / 'model.safetensors'}: a parameter"):
        exporting._write(exporting._Format(write, "packed"), None, tmp_path / "model.safetensors")


def test_a_parity_failure_leaves_with_code_3_and_what_was_there(exported, options, out, monkeypatch):
    from ppsr2q.core.config import load_config
    from ppsr2q.core.errors import ParityError
    from ppsr2q.workflow import cli, exporting
    overrides = options[3::2]
    real = exporting.load_fused

    def slightly_wrong(path):
        network = real(path)
        network.upsample[0].bias.set_value(network.upsample[0].bias + 1e-3)
        return network
    monkeypatch.setattr(exporting, "load_fused", slightly_wrong)

    def export():
        exporting.export(load_config(ROOT / CONFIG, overrides), CONFIG, ["fused"])
    files = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    with pytest.raises(ParityError, match="fused.safetensors differs .* 0.001 .* it was not written"):
        export()
    assert files == {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    with pytest.raises(SystemExit) as left:
        cli.run(export)
    assert left.value.code == 3


def test_rectifiers_of_other_weights_are_refused(trained, options, tmp_path):
    from ppsr2q.models import MambaIRv2Light
    from ppsr2q.models.checkpoint import save_weights
    from ppsr2q.models.initialization import official_initialization
    other = MambaIRv2Light(2)
    official_initialization(other, 5)
    save_weights(other, tmp_path / "other.safetensors", {})
    said = tool("route_calib", *options, "-o", f"model.weights={tmp_path / 'other.safetensors'}", expect=2)
    assert "rectifiers.safetensors" in said and "made for full-precision weights" in said


def test_what_stages_do_not_belong_together_is_refused(exported, options, out):
    said = tool("evaluate", *options, "-o", "quant.bits=2", "--sets", "Embedded", expect=2)
    assert "fused.safetensors: made with quant.bits = 4, now it is 2" in said
    said = tool("evaluate", *options, "--stage", "bounds", "--sets", "Embedded", expect=2)
    assert "--stage bounds is of runs that have nothing to route" in said


@pytest.mark.parametrize("changed, stage, message", [
    ("rectifiers", "osrc", "spr2q_table.safetensors: made from another rectifiers.safetensors .*run tools/route_calib.py"),
    ("rectifiers", "fused", "fused.safetensors: made from another rectifiers.safetensors .*run tools/route_calib.py"),
    ("spr2q_table", "fused", "fused.safetensors: made from another spr2q_table.safetensors .*run tools/export.py")])
def test_what_was_made_from_something_older_is_refused(exported, options, out, changed, stage, message):
    from ppsr2q.core.config import load_config
    from ppsr2q.core.files import load_artifact, save_artifact
    from ppsr2q.workflow.stages import network_of_stage
    path = out / f"{changed}.safetensors"
    before, artifact = path.read_bytes(), load_artifact(path)
    name = next(name for name in artifact.tensors if name.startswith("bounds/"))
    save_artifact(path, {**artifact.tensors, name: artifact.tensors[name] * 2}, artifact.kind, artifact.metadata)
    config = load_config(ROOT / CONFIG, options[3::2])
    try:
        with pytest.raises(UserError, match=message):
            network_of_stage(config, CONFIG, stage)
    finally:
        path.write_bytes(before)
    network_of_stage(config, CONFIG, stage)


def test_a_fused_network_without_routing_is_not_taken_for_one_with_it(exported, options, out, tmp_path):
    from ppsr2q.core.config import load_config
    from ppsr2q.core.files import load_artifact, save_artifact
    from ppsr2q.workflow.stages import network_of_stage
    (tmp_path / "rectifiers.safetensors").write_bytes((out / "rectifiers.safetensors").read_bytes())
    fused = load_artifact(out / "fused.safetensors")
    metadata = {key: value for key, value in fused.metadata.items() if key != "rectifiers_sha256"}
    save_artifact(tmp_path / "fused.safetensors", fused.tensors, fused.kind, metadata)
    config = load_config(ROOT / CONFIG, [*options[3::2], f"output_dir={tmp_path}"])
    with pytest.raises(UserError, match="fused.safetensors: made from another rectifiers.safetensors"):
        network_of_stage(config, CONFIG, "fused")


def test_a_fused_network_of_another_scale_is_refused(exported, options, out):
    said = tool("evaluate", *options, "-o", "model.scale=4", "--sets", "Embedded", expect=2)
    assert "fused.safetensors: holds mambairv2_light x2, but the config is of mambairv2_light x4" in said


def test_where_nothing_can_be_written_is_said_at_once(exported, options, out, tmp_path):
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file" / "below"
    assert f"{blocked}: files cannot be written there" in tool("train", *options, "-o", f"output_dir={blocked}", expect=2)
    said = tool("evaluate", *options, "--sets", "Embedded", "--json", blocked / "r.json", expect=2)
    assert "files cannot be written there" in said and "evaluating" not in said


@pytest.mark.parametrize("option, culprit", [
    ("quant.bitz=4", "quant.bitz"), ("quant.bits=9", "quant.bits"), ("train.batch=many", "train.batch"),
    ("quant.overrides={nowhere: 8}", "nowhere"), ("quant.overrides={\"**\": null}", "nothing to quantize"),
    ("model.weights=nowhere.pdparams", "nowhere.pdparams"),
    ("data.train=nowhere", "nowhere"),
])
def test_mistakes_are_named(options, option, culprit):
    assert culprit in tool("train", *options, "-o", option, expect=2)


def test_the_plan_can_be_printed_without_weights():
    said = tool("train", "-c", "configs/mambairv2_light_x4_w2a2.yml", "--show-plan")
    assert "win_mhsa.points.map" in said and "789,680" in said and "1.044 MiB" in said
