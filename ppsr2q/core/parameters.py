"""What a trainer moves."""
from __future__ import annotations

import dataclasses
from typing import Dict, Mapping, Optional

import numpy as np
import paddle


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an Adam and a learning rate, under names that are the same in every process."""

    name: str
    parameters: Dict[str, paddle.Tensor]
    lr: float


def first_misfit(parameters: Mapping[str, paddle.Tensor], arrays: Mapping[str, np.ndarray]) -> Optional[str]:
    """The first name, sorted, that only one of the two has or that has another shape; None where arrays fit."""
    odd = set(parameters) ^ set(arrays)
    odd |= {name for name in set(parameters) & set(arrays) if list(parameters[name].shape) != list(arrays[name].shape)}
    return min(odd, default=None)
