"""Stage 1, RGT: bounds, rectifiers and gates learn together; rectified weights themselves stay as they are."""
from __future__ import annotations

from typing import Dict, List, Mapping, Optional

import paddle

from ppsr2q.core.trainer import ParameterGroup
from ppsr2q.quant.convert import named_quantizers
from ppsr2q.quant.fake_quantizer import keep_open
from ppsr2q.spr2q.distillation import Distillation
from ppsr2q.spr2q.rectifier import rectifier_groups


class GroupTraining(Distillation):
    """Rectifier group training; without rectifiers it trains the bounds alone (2DQuant's DQC on this loss).

    Args:
        learning_rates: of the groups ``bounds``, ``rectifiers`` and ``gates``, and of those in ``finetuned``.
        finetuned: further groups, of the network's own parameters (``finetune.finetuned_parameters``).
        others: as for :class:`Distillation`.
    """

    name = "rgt"

    def __init__(self, *args, learning_rates: Dict[str, float],
                 finetuned: Optional[Mapping[str, Dict[str, paddle.Tensor]]] = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._learning_rates = learning_rates
        self._quantizers = named_quantizers(self.student)
        self._finetuned = dict(finetuned or {})
        for members in self._finetuned.values():
            for parameter in members.values():
                parameter.stop_gradient = False

    def parameter_groups(self) -> List[ParameterGroup]:
        groups = rectifier_groups(self.student)
        parameters = {
            "bounds": {f"bounds/{name}": quantizer.bounds for name, quantizer in self._quantizers.items()
                       if not quantizer.bounds.stop_gradient},
            "rectifiers": {f"rectifiers/{name}.{factor}": parameter for name, group in groups.items()
                           for factor, parameter in group.factors().items()},
            # a group of one mixes with weight 1 whatever its gate says
            "gates": {f"gates/{name}.{key}": parameter for name, group in groups.items() if group.number > 1
                      for key, parameter in group.gate.named_parameters()},
            **self._finetuned,
        }
        return [ParameterGroup(name, members, self._learning_rates[name])
                for name, members in parameters.items() if members]

    def after_update(self) -> Dict[str, float]:
        return {"bounds_widened": keep_open(self._quantizers.values())}
