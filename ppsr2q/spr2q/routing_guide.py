"""Token classes of a teacher and a student: watched, followed by either, and learned.

A quantized student that sorts its tokens into other classes than its teacher scans them in another order: part of the
teacher's answer is then out of its reach, and no gradient tells it so. Networks with token routing hold a ``router``
(logits -> ``ops.Routing``) in every routing layer.
"""
from __future__ import annotations

from typing import Dict, List, Optional

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q import ops
from ppsr2q.core.errors import UserError


class _Watch:
    """A router that keeps what it has seen; ``follow`` makes it answer with another watch's routing."""

    def __init__(self) -> None:
        self.logits = None
        self.routing = None
        self.follow = None

    def __call__(self, logits: paddle.Tensor) -> "ops.Routing":
        self.logits = logits
        self.routing = ops.route(logits) if self.follow is None else self.follow.routing
        return self.routing

    def own_classes(self) -> paddle.Tensor:
        """What its network's own logits say, whatever was followed."""
        return self.routing.index if self.follow is None else ops.route(self.logits).index


def _watch(network: nn.Layer) -> List[_Watch]:
    layers = [layer for layer in network.sublayers() if hasattr(layer, "router")]
    for layer in layers:
        layer.router = _Watch()
    return [layer.router for layer in layers]


class RoutingGuide:
    """Watches the routing of a teacher and a student that run on the same batch.

    Args:
        student, teacher: networks of one architecture.
        needed: an option asks for it: a network without token routing is an error then.

    Raises:
        UserError: ``needed``, and there is no token routing, or the student recomputes its layers (the logits then
            come from a pass that keeps no gradient).
    """

    def __init__(self, student: nn.Layer, teacher: nn.Layer, needed: bool) -> None:
        self._teacher, self._student = _watch(teacher), _watch(student)
        if needed and not self._student:
            raise UserError("loss.route_weight and train.teacher_routing need a network with token routing, this one "
                            "has none")
        if needed and getattr(student, "recompute", False):
            raise UserError("loss.route_weight and train.teacher_routing do not go with train.recompute: set it to "
                            "false")

    def lead(self, leader: Optional[str]) -> None:
        """Whose classes and order (of the same batch) both networks take: ``teacher``'s, ``student``'s, or, None, each
        its own. The leader must run first."""
        for student, teacher in zip(self._student, self._teacher):
            student.follow = teacher if leader == "teacher" else None
            teacher.follow = student if leader == "student" else None

    def cross_entropy(self) -> paddle.Tensor:
        """Of the student's route logits to the teacher's classes, mean over layers and tokens; scalar."""
        terms = [F.cross_entropy(student.logits, teacher.own_classes().astype("int64").unsqueeze(-1))
                 for student, teacher in zip(self._student, self._teacher)]
        return paddle.stack(terms).mean()

    def figures(self) -> Dict[str, paddle.Tensor]:
        """``flipped``: share of tokens whose own classes of the two networks differ; none without routing."""
        if not self._student:
            return {}
        shares = [(student.own_classes() != teacher.own_classes()).astype("float32").mean()
                  for student, teacher in zip(self._student, self._teacher)]
        return {"flipped": paddle.stack(shares).mean()}

    def release(self) -> None:
        """Forget the last batch (its logits hold on to the graph of the student)."""
        for watch in (*self._teacher, *self._student):
            watch.logits = watch.routing = None
