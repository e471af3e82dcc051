"""Full-precision training from scratch or from a checkpoint (``tools/pretrain.py``)."""
from __future__ import annotations

from typing import Any, Dict, List

import paddle
from paddle import nn

from ppsr2q.core import distributed
from ppsr2q.core.config import Config, ModelConfig, config_to_dict, without_folders
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import make_writable
from ppsr2q.core.trainer import ParameterGroup, TrainResult
from ppsr2q.models.checkpoint import save_weights
from ppsr2q.models.initialization import bilinear_start, official_initialization
from ppsr2q.workflow.batches import Validation, training_batches
from ppsr2q.workflow.networks import build_network, provenance
from ppsr2q.workflow.training import PICTURES, run_stage, start_over, trainer_settings, training_provenance


class Pretraining:
    """A trainer stage: mean absolute difference to ground truth, all parameters."""

    name = "pretrain"

    def __init__(self, network: nn.Layer, lr: float, validation: Validation) -> None:
        self.network, self._lr, self._validation = network, lr, validation

    def parameter_groups(self) -> List[ParameterGroup]:
        return [ParameterGroup("network", dict(self.network.named_parameters()), self._lr)]

    def step(self, batch: Dict[str, Any]) -> Dict[str, paddle.Tensor]:
        self.network.routing_seed = batch["routing_seed"]
        output = self.network(paddle.to_tensor(batch["lr"]))
        return {"loss": (output - paddle.to_tensor(batch["hr"])).abs().mean()}

    def after_update(self) -> Dict[str, float]:
        return {}

    def validate(self) -> Dict[str, float]:
        return self._validation(self.network)

    def dashboard(self, dashboard, iteration: int) -> None:
        for i, picture in enumerate(self._validation.outputs(self.network, PICTURES)):
            dashboard.image(f"crop {i}", picture, iteration)


def pretrain(config: Config, resume: bool = False) -> TrainResult:
    """Train in full precision; starts from ``model.weights`` when given, else from ``model.init``. Writes
    ``<output_dir>/weights.safetensors``."""
    settings = config.pretrain
    if settings.schedule == "multistep" and not settings.milestones:
        raise UserError("pretrain.schedule is multistep, but there are no pretrain.milestones: the rate would never fall")
    if config.model.weights is not None and config.model.init != ModelConfig().init:
        raise UserError(f"model.init={config.model.init} is of runs from scratch; this one starts with model.weights")
    network = build_network(config, with_weights=config.model.weights is not None)
    network.recompute = settings.recompute
    if config.model.weights is None:
        official_initialization(network, config.seed)
        if config.model.init == "bilinear":
            bilinear_start(network)
    out = make_writable(config.output_dir)
    stage = Pretraining(network, settings.lr, Validation(config, settings.lr_patch, settings.validation_crops))
    loop = trainer_settings(settings, settings.iterations, warmup=settings.warmup, schedule=settings.schedule,
                            milestones=tuple(settings.milestones), gamma=settings.gamma)
    batches = training_batches(config, settings.batch, settings.lr_patch, settings.augment, with_hr=True)
    start_over(config, stage.name, resume)
    result = run_stage(config, stage, batches, loop, training_provenance(config, network), resume)
    validation = stage.validate()
    if distributed.is_main():
        save_weights(network, out / "weights.safetensors",
                     {**provenance(config, network), "config": without_folders(config_to_dict(config)),
                      "iterations": result.iterations, "seconds": result.seconds,
                      "validation": validation})
    distributed.barrier()  # the launcher ends all processes as soon as one has left
    return result
