"""What both stages share: a student learns to answer like its full-precision teacher."""
from __future__ import annotations

from typing import Any, Callable, Dict, Optional

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.config import LossConfig
from ppsr2q.quant.calibrate import get_bounds
from ppsr2q.spr2q.losses import hybrid_loss, pixel_loss
from ppsr2q.spr2q.rectifier import gated_groups
from ppsr2q.spr2q.routing_guide import RoutingGuide

Validation = Callable[[nn.Layer], Dict[str, float]]


class Distillation:
    """A trainer stage (``core.trainer.Stage``) without its parameters.

    Args:
        student: the quantized network.
        teacher: the full-precision one, same routing; it runs once a batch, and nothing in it is quantized.
        loss: weights and reductions.
        teacher_routing: in iterations below this number the student routes its tokens as the teacher does.
        validation: student -> figures on crops that are never trained on.
        pictures: student -> pictures by name, uint8 (H, W, 3), for the dashboard.
    """

    def __init__(self, student: nn.Layer, teacher: nn.Layer, loss: LossConfig,
                 validation: Optional[Validation] = None,
                 pictures: Optional[Callable[[nn.Layer], Dict[str, np.ndarray]]] = None,
                 teacher_routing: int = 0) -> None:
        self.student, self.teacher, self.loss = student, teacher, loss
        self._teacher_routing = teacher_routing
        self._guide = RoutingGuide(student, teacher, keep_logits=bool(loss.route_weight))
        self._validation, self._pictures = validation, pictures
        teacher.eval()
        student.eval()

    def step(self, batch: Dict[str, Any]) -> Dict[str, paddle.Tensor]:
        """Losses of one micro-batch: ``batch["lr"]`` float32 (B, 3, h, w), and optionally ``batch["hr"]`` float32
        (B, 3, scale h, scale w), the ground truth, ``batch["iteration"]`` and ``batch["routing_seed"]`` (default 0)."""
        x, iteration = paddle.to_tensor(batch["lr"]), batch.get("iteration", 0)
        # with noisy routing both networks must draw the same noise, and fresh noise every batch
        self.student.routing_seed = self.teacher.routing_seed = batch.get("routing_seed", 0)
        with paddle.no_grad():
            target, target_features = self.teacher(x, return_features=True)
        self._guide.follow_teacher(iteration < self._teacher_routing)
        output, features = self.student(x, return_features=True)
        terms = hybrid_loss(output, target, features, target_features, self.loss)
        if self.loss.route_weight:
            terms["route"] = self._guide.cross_entropy()
            terms["loss"] = terms["loss"] + self.loss.route_weight * terms["route"]
        if self.loss.truth_weight and "hr" in batch:
            terms["truth"] = pixel_loss(output, paddle.to_tensor(batch["hr"]))
            terms["loss"] = terms["loss"] + self.loss.truth_weight * terms["truth"]
        terms.update(self._guide.figures())
        self._guide.follow_teacher(False)
        self._guide.release()
        return terms

    def validate(self) -> Dict[str, float]:
        return self._validation(self.student) if self._validation else {}

    def dashboard(self, dashboard, iteration: int) -> None:
        """Bounds of every quantizer, mixing weights (of dynamic gates the parameters that give them), and pictures."""
        for name, bounds in get_bounds(self.student).items():
            dashboard.histogram(f"bounds/{name}", bounds, iteration)
        for name, group in gated_groups(self.student).items():
            gate = group.gate
            tag, weights = ("gate_parameters", gate.linear.weight) if gate.needs_token_mean else ("mixing", gate())
            dashboard.histogram(f"{tag}/{name}", weights.numpy(), iteration)
        for name, picture in (self._pictures(self.student) if self._pictures else {}).items():
            dashboard.image(name, picture, iteration)
