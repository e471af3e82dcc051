"""The teacher's token classes: followed, learned and counted, on a network that does nothing but route."""
import numpy as np
import paddle
import pytest
from paddle import nn

from ppsr2q import ops
from ppsr2q.core.config import LossConfig
from ppsr2q.core.errors import UserError
from ppsr2q.spr2q.distillation import Distillation
from ppsr2q.spr2q.routing_guide import RoutingGuide, expect_guidable

LOGITS = {"teacher": [[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]], "student": [[1.0, 0.0], [1.0, 0.0], [0.0, 2.0]]}


class Router(nn.Layer):
    """Two routing layers over three tokens; the output is the sorted order of the first."""

    def __init__(self, logits):
        super().__init__()
        self.logits = self.create_parameter([1, 3, 2], default_initializer=nn.initializer.Assign(np.array([logits])))
        self.inner = nn.LayerList([nn.Layer(), nn.Layer()])
        for layer in self.inner:
            layer.router = ops.route
        self.calls = 0

    def forward(self, x, return_features=False):
        self.calls += 1
        routings = [layer.router(self.logits) for layer in self.inner]
        y = ops.gather_rows(paddle.to_tensor([[[1.0], [2.0], [3.0]]]), routings[0].order, routings[0].inverse)
        y = y + 0 * self.logits.sum()
        return (y, [y]) if return_features else y


def networks():
    return Router(LOGITS["student"]), Router(LOGITS["teacher"])


def test_cross_entropy_and_flips_by_hand():
    student, teacher = networks()
    guide = RoutingGuide(student, teacher, True)
    teacher(None), student(None)
    # the teacher's classes are 0, 1, 0: log(1 + e^-1), log(1 + e^1), log(1 + e^2)
    expected = np.mean([np.log1p(np.exp(z)) for z in (-1.0, 1.0, 2.0)])
    assert float(guide.cross_entropy()) == pytest.approx(expected, rel=1e-5)
    assert float(guide.figures()["flipped"]) == pytest.approx(2 / 3)


def test_following_sorts_as_the_teacher_and_still_counts_the_students_own_classes():
    student, teacher = networks()
    guide = RoutingGuide(student, teacher, True)
    order = teacher(None).numpy()
    assert order.ravel().tolist() == [1, 3, 2]
    guide.follow_teacher(True)
    np.testing.assert_array_equal(student(None).numpy(), order)
    assert float(guide.figures()["flipped"]) == pytest.approx(2 / 3)
    guide.follow_teacher(False)
    assert student(None).numpy().ravel().tolist() == [1, 2, 3]


def test_a_stage_follows_first_learns_the_route_and_asks_the_teacher_once():
    student, teacher = networks()
    stage = Distillation(student, teacher, LossConfig(route_weight=0.5), teacher_routing=2)
    batch = {"lr": np.zeros([1, 3, 1, 1], np.float32)}
    followed = stage.step({**batch, "iteration": 1})
    assert float(followed["pixel"]) == 0 and teacher.calls == 1
    alone = stage.step({**batch, "iteration": 2})
    assert float(alone["pixel"]) == pytest.approx(2 / 3)  # 1, 2, 3 against 1, 3, 2
    assert float(alone["loss"]) == pytest.approx(float(alone["pixel"] + 5 * alone["feature"] + 0.5 * alone["route"]))
    alone["loss"].backward()
    gradient = student.logits.grad.numpy()[0]
    assert gradient[1, 1] < 0 < gradient[1, 0]  # towards the teacher's class


def test_ground_truth_counts_where_a_batch_carries_it():
    student, teacher = networks()
    stage = Distillation(student, teacher, LossConfig(truth_weight=2.0))
    batch = {"lr": np.zeros([1, 3, 1, 1], np.float32)}
    without = stage.step(batch)
    assert "truth" not in without
    hr = np.array([[[1.0], [2.0], [6.0]]], np.float32)
    found = stage.step({**batch, "hr": hr})
    assert float(found["truth"]) == 1.0  # |3 - 6| / 3
    assert float(found["loss"]) == pytest.approx(float(without["loss"]) + 2)


def test_where_it_does_not_apply():
    plain = nn.Linear(2, 2)
    assert RoutingGuide(plain, nn.Linear(2, 2), False).figures() == {}
    with pytest.raises(UserError, match="needs? a network with token routing"):
        expect_guidable(plain)
    student, _ = networks()
    expect_guidable(student)
    student.recompute = True
    with pytest.raises(UserError, match="train.recompute"):
        expect_guidable(student)
