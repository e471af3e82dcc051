"""Stage 2, OSRC: everything is frozen but one static mixing weight per rectifier."""
from __future__ import annotations

from typing import Dict, List

from ppsr2q.core.trainer import ParameterGroup
from ppsr2q.spr2q.distillation import Distillation
from ppsr2q.spr2q.rectifier import gated_groups


class RoutingCalibration(Distillation):
    """Offline static routing calibration: gradient descent on the same loss over the static gates.

    The student must have static gates already (``rectifier.freeze_gates``). All other parameters are frozen here.

    Args:
        learning_rate: of the gates.
        others: as for :class:`Distillation`.
    """

    name = "osrc"

    def __init__(self, *args, learning_rate: float, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._learning_rate = learning_rate
        for parameter in self.student.parameters():
            parameter.stop_gradient = True
        for group in gated_groups(self.student).values():
            group.gate.logits.stop_gradient = False

    def parameter_groups(self) -> List[ParameterGroup]:
        logits = {f"gates/{name}.logits": group.gate.logits for name, group in gated_groups(self.student).items()}
        return [ParameterGroup("gates", logits, self._learning_rate)]

    def after_update(self) -> Dict[str, float]:
        return {}
