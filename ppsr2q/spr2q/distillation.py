"""What both stages share: a student learns to answer like its full-precision teacher."""
from __future__ import annotations

from typing import Callable, Dict, Optional

import numpy as np
import paddle
from paddle import nn

from ppsr2q.quant.calibrate import get_bounds
from ppsr2q.spr2q.losses import LossSettings, hybrid_loss
from ppsr2q.spr2q.rectifier import rectifier_groups

Validation = Callable[[nn.Layer], Dict[str, float]]


class Distillation:
    """A trainer stage (``core.trainer.Stage``) without its parameters; ground truth is used nowhere.

    Args:
        student: the quantized network.
        teacher: the full-precision one, same routing.
        loss: weights and reductions.
        validation: student -> figures on crops that are never trained on.
        pictures: student -> pictures by name, uint8 (H, W, 3), for the dashboard.
    """

    def __init__(self, student: nn.Layer, teacher: nn.Layer, loss: LossSettings,
                 validation: Optional[Validation] = None,
                 pictures: Optional[Callable[[nn.Layer], Dict[str, np.ndarray]]] = None) -> None:
        self.student, self.teacher, self.loss = student, teacher, loss
        self._validation, self._pictures = validation, pictures
        teacher.eval()
        student.eval()

    def step(self, batch: Dict[str, np.ndarray]) -> Dict[str, paddle.Tensor]:
        """Losses of one micro-batch, ``batch["lr"]`` float32 (B, 3, h, w)."""
        x = paddle.to_tensor(batch["lr"])
        # with noisy routing both networks must draw the same noise, and fresh noise every batch
        self.student.routing_seed = self.teacher.routing_seed = batch.get("iteration", 0)
        with paddle.no_grad():
            target, target_features = self.teacher(x, return_features=True)
        output, features = self.student(x, return_features=True)
        return hybrid_loss(output, target, features, target_features, self.loss)

    def validate(self) -> Dict[str, float]:
        return self._validation(self.student) if self._validation else {}

    def dashboard(self, dashboard, iteration: int) -> None:
        """Bounds of every quantizer, static mixing weights, and sample pictures."""
        for name, bounds in get_bounds(self.student).items():
            dashboard.histogram(f"bounds/{name}", bounds, iteration)
        for name, group in rectifier_groups(self.student).items():
            gate = group.gate
            weights = gate.linear.weight if gate.needs_token_mean else gate()
            dashboard.histogram(f"gates/{name}", weights.numpy(), iteration)
        for name, picture in (self._pictures(self.student) if self._pictures else {}).items():
            dashboard.image(name, picture, iteration)
