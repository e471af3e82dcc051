"""Which network parameters learn at a level, and that artifacts carry those that did."""
import numpy as np
import paddle
import pytest

from ppsr2q.core.config import LossConfig, RectifierConfig
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact
from ppsr2q.quant import PLAN_ENTRIES, Plan, quantize
from ppsr2q.spr2q.finetune import changed_parameters, finetuned_parameters, network_parameters, snapshot
from ppsr2q.spr2q.group_training import GroupTraining
from ppsr2q.spr2q.rectifier import attach_rectifiers, freeze_gates
from ppsr2q.spr2q.routing_table import load_rectifiers, load_table, save_rectifiers, save_table
from tests.spr2q.networks import ENTRIES, make
from tests.spr2q.test_stages import RATES, images, run

FC = {f"blocks.{i}.fc.weight" for i in (0, 1)}
TABLES = {f"blocks.{i}.table" for i in (0, 1)}


@pytest.mark.parametrize("level, latent, rest", [("none", False, False), ("latent", True, False), ("all", True, True)])
def test_levels(level, latent, rest):
    _, student, tensors = make(paddle.to_tensor(images()))
    found = finetuned_parameters(student, tensors, level)
    everything = set(network_parameters(student))
    assert set(found["latent"]) == (TABLES if latent else set())
    assert set(found["float"]) == (everything - TABLES - FC if rest else set())
    assert len(everything - TABLES - FC) == 2 * 3 + 4  # norm and fc bias of two blocks; two convolutions


def test_what_an_override_leaves_in_floating_point_learns_as_such():
    from tests.spr2q.networks import Tiny
    plan = Plan(ENTRIES, 2, {"blocks.0.fc.weight": None, "blocks.1.points.table": None})
    teacher = Tiny()
    student, tensors = quantize(teacher, plan), plan.resolve(teacher)
    attach_rectifiers(student, tensors, RectifierConfig(), 0)
    found = finetuned_parameters(student, tensors, "all")
    assert set(found["latent"]) == {"blocks.0.table"}
    assert {"blocks.0.fc.weight", "blocks.1.table"} <= set(found["float"]) and "blocks.1.fc.weight" not in found["float"]


def test_of_mambairv2_everything_quantized_without_a_rectifier_is_latent():
    from ppsr2q.models import MambaIRv2Light
    teacher = MambaIRv2Light(2)
    plan = Plan(PLAN_ENTRIES["mambairv2_light"], 4)
    student, tensors = quantize(teacher, plan), plan.resolve(teacher)
    assert sum(p.size for group in finetuned_parameters(student, tensors, "all").values() for p in group.values()) == 774_092
    attach_rectifiers(student, tensors, RectifierConfig(), 0)
    found = finetuned_parameters(student, tensors, "all")
    layer = "layers.1.residual_group.layers.2"
    assert {name for name in found["latent"] if name.startswith(layer)} == {f"{layer}.{name}" for name in (
        "convffn1.sg.conv.weight", "convffn2.sg.conv.weight", "assm.in_proj.0.weight", "assm.CPE.0.weight",
        "assm.selectiveScan.x_proj_weight", "assm.selectiveScan.dt_projs_weight", "assm.selectiveScan.A_logs",
        "assm.selectiveScan.dt_projs_bias", "assm.embeddingB.weight", "embeddingA.weight")}
    total = sum(p.size for group in found.values() for p in group.values())
    assert total == 774_092 - 404_480  # all but the rectified weights


def test_artifacts_carry_what_was_fine_tuned(tmp_path):
    teacher, student, tensors = make(paddle.to_tensor(images()), bits=3)
    before = snapshot(student)
    stage = GroupTraining(student, teacher, LossConfig(), learning_rates={**RATES, "latent": 1e-2, "float": 1e-3},
                          finetuned=finetuned_parameters(student, tensors, "all"))
    assert {group.name for group in stage.parameter_groups()} == {"bounds", "rectifiers", "gates", "latent", "float"}
    run(stage, tmp_path, 5)
    changed = changed_parameters(student, before)
    assert {f"parameters/{name}" for name in TABLES | {"first.weight", "blocks.0.norm.bias"}} <= set(changed)
    assert not {f"parameters/{name}" for name in FC} & set(changed)

    x = paddle.to_tensor(images(7))
    save_rectifiers(student, tmp_path / "r.safetensors", {}, changed)
    _, other, _ = make(paddle.to_tensor(images()), bits=3)
    load_rectifiers(other, load_artifact(tmp_path / "r.safetensors"), "r")
    np.testing.assert_array_equal(other(x).numpy(), student(x).numpy())

    freeze_gates(student, paddle.to_tensor(images()))
    save_table(student, tmp_path / "t.safetensors", {}, changed)
    fresh = quantize(teacher, Plan(ENTRIES, 3))
    load_table(fresh, load_artifact(tmp_path / "t.safetensors"), tmp_path / "t.safetensors")
    np.testing.assert_array_equal(fresh(x).numpy(), student(x).numpy())

    save_table(student, tmp_path / "t.safetensors", {}, {"parameters/blocks.0.table": np.zeros(7, np.float32)})
    with pytest.raises(UserError, match=r"t.safetensors: holds a fine-tuned blocks.0.table \[7\]"):
        load_table(fresh, load_artifact(tmp_path / "t.safetensors"), tmp_path / "t.safetensors")


def test_a_full_rank_increment_learns_without_a_gate(tmp_path):
    teacher, student, _ = make(paddle.to_tensor(images()), bits=3, form="full_rank", number=1)
    stage = GroupTraining(student, teacher, LossConfig(), learning_rates=RATES)
    groups = {group.name: set(group.parameters) for group in stage.parameter_groups()}
    assert groups["rectifiers"] == {f"rectifiers/blocks.{i}.fc.delta" for i in (0, 1)} and "gates" not in groups
    run(stage, tmp_path, 5)
    increment = student.blocks[0].fc.weight_delta.delta
    assert np.abs(increment.numpy()).max() > 1e-3
    expected = student.blocks[0].fc.weight_quantizer(student.blocks[0].fc.weight + increment).numpy()
    np.testing.assert_array_equal(student.blocks[0].fc.quantized_weight().numpy(), expected)
    with pytest.raises(UserError, match="rectifier.number is 4"):
        make(paddle.to_tensor(images()), form="full_rank")
