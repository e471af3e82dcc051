"""Printing a plan and its cost (``tools/train.py --show-plan``)."""
from __future__ import annotations

import re

from ppsr2q.core.config import Config
from ppsr2q.core.errors import UserError
from ppsr2q.quant.cost import parameter_sizes, plan_table
from ppsr2q.workflow.networks import build_network, build_plan


def show_plan(config: Config, size: str) -> str:
    """The plan as a table; MACs for a low-resolution image of ``size``, "HxW" in pixels. Needs no weights."""
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    if not numbers:
        raise UserError(f"--plan-size {size}: expected HEIGHTxWIDTH in low-resolution pixels, as in 180x320")
    network = build_network(config, with_weights=False)
    height, width = int(numbers[1]), int(numbers[2])
    return plan_table(parameter_sizes(network), network.operations(height, width), build_plan(config).resolve(network),
                      config.rectifier.enabled)
