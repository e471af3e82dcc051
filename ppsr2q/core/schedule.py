"""Learning-rate factors: pure functions of the iteration (0-based), multiplied with each group's rate."""
from __future__ import annotations

import math
from typing import Sequence


def warmup_factor(iteration: int, warmup: int) -> float:
    """1/warmup, 2/warmup, ... 1 over the first ``warmup`` iterations, then 1."""
    return min(1.0, (iteration + 1) / warmup) if warmup else 1.0


def cosine(iteration: int, iterations: int, warmup: int = 0, min_ratio: float = 0.0) -> float:
    """Linear warm-up, then half a cosine from 1 towards ``min_ratio``, reached after ``iterations`` steps.

    SGDR (Loshchilov and Hutter 2017), Eq. 5, without restarts.
    """
    if iteration < warmup:
        return warmup_factor(iteration, warmup)
    progress = (iteration - warmup) / max(1, iterations - warmup)
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def multistep(iteration: int, milestones: Sequence[int], gamma: float, warmup: int = 0) -> float:
    """Linear warm-up, then gamma to the number of milestones that ``iteration`` has reached."""
    return warmup_factor(iteration, warmup) * gamma ** sum(milestone <= iteration for milestone in milestones)
