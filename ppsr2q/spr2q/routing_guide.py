"""The teacher's token classes as a guide for the student's: watched, followed, and learned.

A quantized student that sorts its tokens into other classes than its teacher scans them in another order, and no
gradient tells it so. Networks with token routing hold a ``router`` (logits -> ``ops.Routing``) in every routing layer.
"""
from __future__ import annotations

from typing import Dict, List

import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q import ops
from ppsr2q.core.errors import UserError


class _Watch:
    """A router that keeps its routing, and where asked the logits; ``follow`` makes it answer with another watch's
    routing."""

    def __init__(self, keep_logits: bool) -> None:
        self._keep_logits = keep_logits
        self.logits = None
        self.routing = None
        self.follow = None

    def __call__(self, logits: paddle.Tensor) -> "ops.Routing":
        self.logits = logits if self._keep_logits else None
        self.routing = ops.route(logits) if self.follow is None else self.follow.routing
        return self.routing


def _routing_layers(network: nn.Layer) -> List[nn.Layer]:
    return [layer for layer in network.sublayers() if hasattr(layer, "router")]


def expect_guidable(student: nn.Layer) -> None:
    """Refuse a student that ``loss.route_weight`` and ``train.teacher_routing`` cannot guide.

    Raises:
        UserError: it has no token routing, or recomputes its layers (the logits then come from a pass that keeps no
            gradient).
    """
    if not _routing_layers(student):
        raise UserError("loss.route_weight and train.teacher_routing need a network with token routing, this one has none")
    if getattr(student, "recompute", False):
        raise UserError("loss.route_weight and train.teacher_routing do not go with train.recompute: set it to false")


def _watch(network: nn.Layer, keep_logits: bool) -> List[_Watch]:
    layers = _routing_layers(network)
    for layer in layers:
        layer.router = _Watch(keep_logits)
    return [layer.router for layer in layers]


class RoutingGuide:
    """Watches the routing of a teacher and a student that run on the same batch, the teacher first.

    Args:
        student, teacher: networks of one architecture.
        keep_logits: of the student, for :meth:`cross_entropy`.
    """

    def __init__(self, student: nn.Layer, teacher: nn.Layer, keep_logits: bool) -> None:
        self._teacher, self._student = _watch(teacher, False), _watch(student, keep_logits)

    def follow_teacher(self, follow: bool) -> None:
        """Whether the student takes the teacher's classes and order (of the same batch) for its own."""
        for own, other in zip(self._student, self._teacher):
            own.follow = other if follow else None

    def cross_entropy(self) -> paddle.Tensor:
        """Of the student's route logits to the teacher's classes, mean over layers and tokens; scalar."""
        terms = [F.cross_entropy(own.logits, other.routing.index.astype("int64").unsqueeze(-1))
                 for own, other in zip(self._student, self._teacher)]
        return paddle.stack(terms).mean()

    def figures(self) -> Dict[str, paddle.Tensor]:
        """``flipped``: share of tokens for which the student's own class is not the teacher's; none without routing."""
        if not self._student:
            return {}
        shares = []
        for own, other in zip(self._student, self._teacher):
            index = own.routing.index if own.follow is None else ops.route(own.logits).index
            shares.append((index != other.routing.index).astype("float32").mean())
        return {"flipped": paddle.stack(shares).mean()}

    def release(self) -> None:
        """Forget the last batch (its logits hold on to the graph of the student)."""
        for watch in (*self._teacher, *self._student):
            watch.logits = watch.routing = None
