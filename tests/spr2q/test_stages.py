"""Both stages, the table and fusing on a tiny network: what is trained, what is frozen, what is left."""
import numpy as np
import paddle
import pytest

from ppsr2q.core.config import LossConfig, RectifierConfig
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact
from ppsr2q.core.trainer import Trainer, TrainerSettings
from ppsr2q.quant import Plan, get_bounds, quantize
from ppsr2q.spr2q.fuse import fuse, fused_state
from ppsr2q.spr2q.group_training import GroupTraining
from ppsr2q.spr2q.rectifier import attach_rectifiers, freeze_gates, rectifier_groups
from ppsr2q.spr2q.routing_calibration import RoutingCalibration
from ppsr2q.spr2q.routing_table import load_rectifiers, load_table, save_rectifiers, save_table
from tests.spr2q.networks import ENTRIES, make

RATES = {"bounds": 1e-2, "rectifiers": 1e-2, "gates": 1e-2}


def images(seed=1, count=4):
    return np.random.default_rng(seed).random((count, 3, 4, 5), dtype=np.float32)


def batches(iteration, index, count):
    return {"lr": images(100), "iteration": iteration}  # always the same, so that losses compare


def run(stage, tmp_path, iterations=60):
    settings = TrainerSettings(iterations=iterations, validate_every=0)
    return Trainer(stage, batches, settings, tmp_path / f"{stage.name}.safetensors").run()


def snapshot(network):
    return {name: parameter.numpy().copy() for name, parameter in network.named_parameters()}


@pytest.fixture
def trained(tmp_path):
    teacher, student, tensors = make(paddle.to_tensor(images()), bits=3)
    stage = GroupTraining(student, teacher, LossConfig(), learning_rates=RATES)
    before = snapshot(student)
    result = run(stage, tmp_path)
    return teacher, student, tensors, before, result


def test_stage_1_learns_and_leaves_weights_and_teacher_alone(trained):
    teacher, student, _, before, result = trained
    assert result.last_losses["loss"] < 0.8 * result.history[0]["loss"]
    assert {"pixel", "feature", "feature/00", "feature/01"} <= set(result.last_losses)
    changed = {name for name, value in snapshot(student).items() if not np.array_equal(value, before[name])}
    assert {"blocks.0.fc.weight_quantizer.bounds", "blocks.1.fc.weight_delta.A", "blocks.1.fc.weight_delta.B",
            "blocks.0.fc.weight_delta.gate.linear.weight", "blocks.0.points.table.bounds"} <= changed
    frozen = {name for name in before if "delta" not in name and "bounds" not in name}
    assert len(frozen) > 8 and not frozen & changed


def test_groups_of_learning_rates(trained):
    teacher, student, *_ = trained
    groups = GroupTraining(student, teacher, LossConfig(), learning_rates={**RATES, "gates": 0.5}).parameter_groups()
    assert {group.name: group.lr for group in groups} == {"bounds": 1e-2, "rectifiers": 1e-2, "gates": 0.5}
    sizes = {group.name: len(group.parameters) for group in groups}
    assert sizes == {"bounds": 2 * 2 + 2, "rectifiers": 2 * 2, "gates": 2 * 2}


def test_without_rectifiers_only_bounds_train(tmp_path):
    teacher, _, _ = make(paddle.to_tensor(images()))
    from ppsr2q.quant import calibrate
    student = quantize(teacher, Plan(ENTRIES, 2))
    calibrate(student, paddle.to_tensor(images()))
    stage = GroupTraining(student, teacher, LossConfig(), learning_rates=RATES)
    assert [group.name for group in stage.parameter_groups()] == ["bounds"]
    assert run(stage, tmp_path).last_losses["bounds_widened"] == 0


def test_stage_2_moves_the_routing_alone_towards_that_of_its_teacher(tmp_path):
    def mixed(weights):
        _, student, _ = make(paddle.to_tensor(images()), bits=8)
        freeze_gates(student, paddle.to_tensor(images()))
        rng = np.random.default_rng(5)
        for group in rectifier_groups(student).values():
            group.B.set_value(rng.normal(0, 0.3, group.B.shape).astype(np.float32))
            group.gate.logits.set_value(np.log(weights))
        return student
    wanted = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    student = mixed(np.full(4, 0.25, np.float32))
    before = snapshot(student)
    result = run(RoutingCalibration(student, mixed(wanted), LossConfig(), learning_rate=0.1), tmp_path)
    changed = {name for name, value in snapshot(student).items() if not np.array_equal(value, before[name])}
    assert changed == {f"blocks.{i}.fc.weight_delta.gate.logits" for i in (0, 1)}
    assert result.last_losses["loss"] < 0.1 * result.history[0]["loss"]
    np.testing.assert_allclose(rectifier_groups(student)["blocks.0.fc"].gate().numpy(), wanted, atol=0.1)


def test_rectifiers_survive_their_file(trained, tmp_path):
    _, student, _, _, _ = trained
    save_rectifiers(student, tmp_path / "r.safetensors", {})
    _, other, _ = make(paddle.to_tensor(images()), bits=3)
    artifact = load_artifact(tmp_path / "r.safetensors", "rectifiers")
    assert not [key for key in artifact.tensors if key.endswith("fc.weight") and "bounds" not in key]
    load_rectifiers(other, artifact, "r.safetensors")
    x = paddle.to_tensor(images(7))
    np.testing.assert_array_equal(other(x).numpy(), student(x).numpy())
    _, larger, _ = make(paddle.to_tensor(images()), bits=3, rank=3)
    with pytest.raises(UserError, match="r.safetensors.*rectifier"):
        load_rectifiers(larger, artifact, "r.safetensors")


def test_table_and_fuse_keep_every_bit_of_the_calibrated_student(trained, tmp_path):
    teacher, student, tensors, _, _ = trained
    freeze_gates(student, paddle.to_tensor(images()))
    x = paddle.to_tensor(images(7))
    expected, bounds = student(x).numpy(), get_bounds(student)
    save_table(student, tmp_path / "t.safetensors", {"seed": 1})
    table = load_artifact(tmp_path / "t.safetensors", "spr2q table").tensors
    assert table["mixing/blocks.0.fc"].sum() == pytest.approx(1)
    group = rectifier_groups(student)["blocks.0.fc"]
    by_hand = sum(g * A.T @ B for g, A, B in zip(table["mixing/blocks.0.fc"], group.A.numpy(), group.B.numpy()))
    np.testing.assert_allclose(table["increment/blocks.0.fc"], by_hand, atol=1e-6)

    other = quantize(teacher, Plan(ENTRIES, 3))
    load_table(other, load_artifact(tmp_path / "t.safetensors"), tmp_path / "t.safetensors")
    np.testing.assert_array_equal(other(x).numpy(), expected)
    fuse(other, tensors)
    np.testing.assert_array_equal(other(x).numpy(), expected)
    state = fused_state(other, bounds)
    assert not [key for key in state if "delta" in key or "gate" in key]
    for key, name in (("blocks.1.fc.weight", "blocks.1.fc.weight"), ("blocks.0.table", "blocks.0.points.table")):
        lower, upper = state[f"bounds/{name}"]
        codes = (state[key] - lower) / ((upper - lower) / 7)
        np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
        assert codes.min() > -0.5 and codes.max() < 7.5


def test_tables_of_another_network_are_refused(trained, tmp_path):
    teacher, student, *_ = trained
    freeze_gates(student, paddle.to_tensor(images()))
    save_table(student, tmp_path / "t.safetensors", {})
    other = quantize(teacher, Plan(ENTRIES[:1], 3))
    with pytest.raises(UserError, match="t.safetensors.*another plan"):
        load_table(other, load_artifact(tmp_path / "t.safetensors"), tmp_path / "t.safetensors")


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_gate_mixes_for_the_batch_or_for_every_sample(per_sample):
    x = paddle.to_tensor(images(3) * np.array([0.1, 1, 2, 3], np.float32)[:, None, None, None])
    _, student, _ = make(x, bits=8, per_sample=per_sample)
    rng = np.random.default_rng(0)
    for group in rectifier_groups(student).values():
        group.B.set_value(rng.normal(size=group.B.shape).astype(np.float32))
        group.gate.linear.weight.set_value(rng.normal(size=[6, 4]).astype(np.float32) * 5)
    difference = np.abs(student(x).numpy()[:1] - student(x[:1]).numpy()).max()
    assert difference < 1e-5 if per_sample else difference > 1e-3


def test_attaching_is_a_function_of_the_seed():
    first, second, other = (make(paddle.to_tensor(images()), seed=0)[1] for _ in range(3))
    a, b = (rectifier_groups(s)["blocks.0.fc"].A.numpy() for s in (first, second))
    np.testing.assert_array_equal(a, b)
    attach_rectifiers(other, make(paddle.to_tensor(images()))[2], RectifierConfig(), seed=9)
    assert np.abs(rectifier_groups(other)["blocks.0.fc"].A.numpy() - a).max() > 0.01
