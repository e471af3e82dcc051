"""A stage small enough to train in a test: two linear layers, two parameter groups, random targets."""
from __future__ import annotations

import json
import sys
from typing import Dict

import numpy as np
import paddle

from ppsr2q.core import distributed
from ppsr2q.core.trainer import ParameterGroup, Trainer, TrainerSettings


class TinyStage:
    """Mean squared error of a two-layer network; its loss is NaN in iteration ``nan_at`` (0-based)."""

    name = "tiny"

    def __init__(self, nan_at: int = -1) -> None:
        generator = np.random.default_rng(3)
        self.first, self.second = paddle.nn.Linear(4, 3), paddle.nn.Linear(3, 2)
        for parameter in (*self.first.parameters(), *self.second.parameters()):
            parameter.set_value(generator.normal(size=parameter.shape).astype(np.float32))
        self.nan_at, self.validations = nan_at, 0

    def parameter_groups(self):
        return [ParameterGroup("first", dict(self.first.named_parameters()), 1e-2),
                ParameterGroup("second", dict(self.second.named_parameters()), 3e-3)]

    def step(self, batch: Dict[str, np.ndarray]) -> Dict[str, paddle.Tensor]:
        output = self.second(paddle.tanh(self.first(paddle.to_tensor(batch["x"]))))
        difference = output - paddle.to_tensor(batch["y"])
        loss = (difference ** 2).mean()
        if batch["iteration"] == self.nan_at:
            loss = loss * float("nan")
        return {"loss": loss, "error": difference.abs().mean()}

    def after_update(self) -> Dict[str, float]:
        return {"projected": 0.0}

    def validate(self) -> Dict[str, float]:
        self.validations += 1
        return {"score": float(self.validations)}

    def dashboard(self, dashboard, iteration: int) -> None:
        dashboard.histogram("first", self.first.weight.numpy(), iteration)

    def state(self) -> Dict[str, np.ndarray]:
        return {f"{group.name}/{name}": parameter.numpy() for group in self.parameter_groups()
                for name, parameter in group.parameters.items()}


def batches(iteration: int, index: int, count: int) -> Dict[str, np.ndarray]:
    """Slice of a global batch of 8."""
    generator = np.random.default_rng(iteration)
    x, y = generator.normal(size=(8, 4)).astype(np.float32), generator.normal(size=(8, 2)).astype(np.float32)
    part = slice(index * 8 // count, (index + 1) * 8 // count)
    return {"x": x[part], "y": y[part], "iteration": iteration}


if __name__ == "__main__":  # what the launcher starts, with the paths of a checkpoint and of a history
    paddle.set_device("cpu")
    checkpoint, history = sys.argv[1:]
    stage = TinyStage()
    if distributed.rank() == 1:  # a start that only the broadcast can repair
        stage.first.weight.set_value(stage.first.weight + 1)
    result = Trainer(stage, batches, TrainerSettings(3, log_every=1, validate_every=2), checkpoint).run()
    with open(f"{history}.{distributed.rank()}", "w") as file:
        state = {name: value.tolist() for name, value in stage.state().items()}
        json.dump({"history": result.history, "state": state}, file)
