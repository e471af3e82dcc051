"""Stage 1, RGT: bounds, rectifiers and gates learn together; the weights themselves stay as they are."""
from __future__ import annotations

from typing import Dict, List

from ppsr2q.core.trainer import ParameterGroup
from ppsr2q.quant.convert import named_quantizers
from ppsr2q.quant.fake_quantizer import keep_open
from ppsr2q.spr2q.distillation import Distillation
from ppsr2q.spr2q.rectifier import rectifier_groups


class GroupTraining(Distillation):
    """Rectifier group training; without rectifiers it trains the bounds alone (2DQuant's DQC on this loss).

    Args:
        learning_rates: of the groups ``bounds``, ``rectifiers`` and ``gates``.
        others: as for :class:`Distillation`.
    """

    name = "rgt"

    def __init__(self, *args, learning_rates: Dict[str, float], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._learning_rates = learning_rates
        self._quantizers = named_quantizers(self.student)

    def parameter_groups(self) -> List[ParameterGroup]:
        groups = rectifier_groups(self.student)
        parameters = {
            "bounds": {f"bounds/{name}": quantizer.bounds for name, quantizer in self._quantizers.items()
                       if not quantizer.bounds.stop_gradient},
            "rectifiers": {f"rectifiers/{name}.{factor}": getattr(group, factor)
                           for name, group in groups.items() for factor in ("A", "B")},
            # a group of one mixes with weight 1 whatever its gate says
            "gates": {f"gates/{name}.{key}": parameter for name, group in groups.items() if group.A.shape[0] > 1
                      for key, parameter in group.gate.named_parameters()},
        }
        return [ParameterGroup(name, members, self._learning_rates[name])
                for name, members in parameters.items() if members]

    def after_update(self) -> Dict[str, float]:
        return {"bounds_widened": keep_open(self._quantizers.values())}
