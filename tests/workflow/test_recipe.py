"""What the best recipe adds to the workflow, on the embedded network: the ladder of bit widths, the final phase."""
import numpy as np
import paddle
import pytest

from ppsr2q.core.config import load_config
from ppsr2q.core.errors import Interrupted, UserError
from ppsr2q.core.files import load_artifact
from ppsr2q.data.embedded import write_embedded
from ppsr2q.workflow.batches import phased_batches
from ppsr2q.workflow.exporting import export, probe
from ppsr2q.workflow.networks import load_fused
from ppsr2q.workflow.paths import paths
from ppsr2q.workflow.stages import network_of_stage
from ppsr2q.workflow.starting import search_only
from ppsr2q.workflow.training import calibrate_routing, train

CONFIG = "configs/mambairv2_light_x2_w{}a{}_best.yml"
SMALL = ["model.weights=embedded", "calib.images=1", "calib.lr_patch=16", "calib.dobi_mode=code", "calib.candidates=10",
         "train.iterations=4", "train.batch=1", "train.lr_patch=16", "train.final_share=0.25", "train.final_lr_patch=24",
         "train.final_batch=2", "train.average_last=2", "train.warmup=0", "train.validate_every=0",
         "train.validation_crops=1", "train.save_every=1", "train.teacher_routing=0.5", "loss.route_weight=0.01",
         "route_calib.iterations=1", "route_calib.batch=1", "quant.equalize=true", "rectifier.start=closed_form"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_embedded(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def configure(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")

    def configure(bits, name, *options):
        return load_config(CONFIG.format(bits, bits), [*SMALL, f"data.train={data / 'train'}", f"data.root={data}",
                                                       f"output_dir={out / name}", *options])
    return configure


@pytest.fixture(scope="module")
def eight(configure):
    config = configure(8, "eight")
    train(config)
    return config


def test_the_ladder_starts_where_the_wider_run_ended_and_ships_what_was_fine_tuned(eight, configure):
    start = paths(eight)["rectifiers"]
    config = configure(4, "four", f"train.start_from={start}", "train.iterations=1", "train.average_last=0",
                       "train.lr_bounds=0", "train.lr_rectifier=0", "train.lr_gate=0", "train.lr_latent=0",
                       "train.lr_float=0")
    train(config)
    before, after = (load_artifact(paths(c)["rectifiers"]) for c in (eight, config))
    assert after.metadata["start_sha256"] and set(before.tensors) == set(after.tensors)
    assert [piece["bits"] for piece in after.metadata["earlier"]] == [8] and "earlier" not in before.metadata
    names = [name for name in before.tensors if not name.startswith("bounds/")]
    assert any(name.startswith("parameters/") for name in names)
    for name in names:
        np.testing.assert_array_equal(after.tensors[name], before.tensors[name], name)
    assert any((after.tensors[n] != before.tensors[n]).any() for n in before.tensors if n.startswith("bounds/"))
    calibrate_routing(config, "")
    export(config, "", formats=("fused",))
    with paddle.no_grad():
        expected = network_of_stage(config, "", "osrc")(probe((24, 40))).numpy()
        found = load_fused(paths(config)["fused"])(probe((24, 40))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture(scope="module")
def again(eight, configure):
    config = configure(8, "again", f"train.start_from={paths(eight)['rectifiers']}", "train.iterations=1",
                       "train.average_last=0")
    train(config)
    return config


def test_equal_quantizers_keep_the_bounds_of_the_start(eight, again):
    start, bounds = load_artifact(paths(eight)["rectifiers"]), load_artifact(paths(again)["bounds"])
    for name, value in bounds.tensors.items():
        np.testing.assert_allclose(value, start.tensors[name], rtol=1e-6)


def test_bounds_searched_behind_the_rectifiers_of_a_start_are_not_those_of_the_full_precision_network(again):
    with pytest.raises(UserError, match="of the network that .*rectifiers.safetensors holds"):
        network_of_stage(again, "", "searched")


def test_one_rectifier_a_layer_has_no_routing(configure):
    config = configure(4, "one", "rectifier.number=1", "quant.equalize=false", "rectifier.start=zero")
    train(config)
    with pytest.raises(UserError, match="rectifier.number is 1: there is no routing to calibrate"):
        calibrate_routing(config, "")
    with paddle.no_grad():
        expected = network_of_stage(config, "", "rgt")(probe((24, 40))).numpy()
        export(config, "", formats=("fused",))
        found = load_fused(paths(config)["fused"])(probe((24, 40))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_with_routing_noise_ships_without_it(configure):
    config = configure(4, "noisy", "rectifier.enabled=false", "quant.equalize=false", "rectifier.start=zero",
                       "model.routing=gumbel", "train.iterations=1", "train.average_last=0")
    train(config)
    written = export(config, "", formats=("fused", "packed"))
    assert written["fused"].difference <= 1e-5


def test_a_run_from_another_one_goes_on_bit_for_bit(eight, configure, monkeypatch):
    options = (f"train.start_from={paths(eight)['rectifiers']}",)
    whole, part = configure(4, "whole", *options), configure(4, "part", *options)
    train(whole)
    from ppsr2q.spr2q.group_training import GroupTraining
    real, steps = GroupTraining.step, []

    def stopping(self, batch):
        steps.append(batch["iteration"])
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(self, batch)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(GroupTraining, "step", stopping)
        train(part)
    train(part, resume=True)
    expected, found = (load_artifact(paths(c)["rectifiers"]).tensors for c in (whole, part))
    for name, value in expected.items():
        assert value.tobytes() == found[name].tobytes(), name


def test_the_final_phase_has_its_own_crops_and_ground_truth(configure):
    batches = phased_batches(configure(4, "phases"))
    assert batches(2, 0, 1)["lr"].shape == (1, 3, 16, 16) and "hr" not in batches(2, 0, 1)
    last = batches(3, 0, 1)
    assert last["lr"].shape == (2, 3, 24, 24) and last["hr"].shape == (2, 3, 48, 48)
    assert "hr" not in phased_batches(configure(4, "phases", "loss.truth_weight=0"))(3, 0, 1)


@pytest.mark.parametrize("option, message", [
    ("train.final_share=0", "loss.truth_weight needs a final phase"),
    ("train.average_last=5", "train.average_last is 5, but there are only 4 iterations"),
    ("train.start_from=nowhere.safetensors", "nowhere.safetensors: no such file"),
    ("train.final_lr_patch=4000", "none of the 1 images to train on"),
    ("quant.overrides.**.weight=null", "no weight to rectify: set rectifier.enabled to false"),
    ("rectifier.form=full_rank", "set it to 1"),
    ("train.recompute=true", "do not go with train.recompute"),
])
def test_mistakes_are_named_before_anything_is_searched(configure, option, message):
    config = configure(4, "mistakes", option)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not paths(config)["bounds"].exists()


@pytest.mark.parametrize("equalize", [True, False])
def test_a_run_in_closed_form_goes_on_bit_for_bit(configure, equalize):
    """One run in one piece, one that stops after each iteration. Biases that do not learn are kept too."""
    options = ("train.finetune=none", f"quant.equalize={str(equalize).lower()}", "route_calib.iterations=3")
    whole, part = (configure(8, f"{name}8{equalize}", *options) for name in ("whole", "part"))
    train(whole)
    from ppsr2q.core.trainer import Trainer
    real = Trainer._iterate
    stages = [train, *([] if equalize else [lambda config, resume=False: calibrate_routing(config, "", resume)])]
    for stage in stages:
        for _ in range(3 if stage is train else 2):
            with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
                patch.setattr(Trainer, "_iterate", lambda self, iteration: (real(self, iteration)[0], True))
                stage(part, resume=True)
        stage(part, resume=True)
    for stage in stages[1:]:
        stage(whole)
        expected, found = (load_artifact(paths(c)["table"]).tensors for c in (whole, part))
        assert all(value.tobytes() == found[name].tobytes() for name, value in expected.items())
    expected, found = (load_artifact(paths(c)["rectifiers"]).tensors for c in (whole, part))
    assert set(expected) == set(found) and any(name.startswith("folds/") for name in expected) is equalize
    assert {name for name in expected if name.startswith("parameters/")} and not any(
        name.startswith("parameters/") and name.endswith("weight") for name in expected)
    for name, value in expected.items():
        assert value.tobytes() == found[name].tobytes(), name


def test_a_checkpoint_goes_on_from_the_bounds_it_began_with_only(configure):
    """They are the units of relative bounds: another search may have replaced them since."""
    options = ("quant.equalize=false", "rectifier.start=zero", "calib.candidates=5")
    train(configure(4, "begun", *options))
    search_only(configure(4, "begun", *options, "calib.outliers=0.2"))
    with pytest.raises(UserError, match="stage 0 has left other bounds since; remove searched_bounds.safetensors"):
        train(configure(4, "begun", *options), resume=True)


def test_the_searched_stage_is_equalized(eight):
    bounds, rectifiers = (load_artifact(paths(eight)[key]) for key in ("bounds", "rectifiers"))
    folds = {name: value for name, value in rectifiers.tensors.items() if name.startswith("folds/")}
    assert folds and all((bounds.tensors[name] == value).all() for name, value in folds.items())
    name = "layers.0.residual_group.layers.0.norm1.weight"
    student, plain = network_of_stage(eight, "", "searched"), network_of_stage(eight, "", "fp")
    weights = [dict(network.named_parameters())[name].numpy() for network in (student, plain)]
    scale = folds["folds/layers.0.residual_group.layers.0.attention_input.scale"]
    np.testing.assert_allclose(weights[0], weights[1] / scale, rtol=1e-6)


def test_equalized_and_other_runs_are_not_mixed(eight, configure):
    start = f"train.start_from={paths(eight)['rectifiers']}"
    with pytest.raises(UserError, match="made with quant.equalize = True, now it is False"):
        train(configure(4, "unequal", start, "quant.equalize=false"))


def test_starts_of_other_weights_or_rectifiers_are_refused(eight, configure, tmp_path):
    start = f"train.start_from={paths(eight)['rectifiers']}"
    with pytest.raises(UserError, match="its rectifiers differ from the configured ones"):
        train(configure(4, "rank", start, "rectifier.rank=2"))
    from ppsr2q.models import MambaIRv2Light
    from ppsr2q.models.checkpoint import save_weights
    from ppsr2q.models.initialization import official_initialization
    other = MambaIRv2Light(2)
    official_initialization(other, 5)
    save_weights(other, tmp_path / "other.safetensors", {})
    with pytest.raises(UserError, match="made for full-precision weights"):
        train(configure(4, "other", start, f"model.weights={tmp_path / 'other.safetensors'}"))
