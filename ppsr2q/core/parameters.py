"""What a trainer moves."""
from __future__ import annotations

import dataclasses
from typing import Dict

import paddle


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share an Adam and a learning rate, under names that are the same in every process."""

    name: str
    parameters: Dict[str, paddle.Tensor]
    lr: float
