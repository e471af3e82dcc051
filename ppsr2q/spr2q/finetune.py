"""Parameters of the network itself that learn beside bounds and rectifiers; structure and bytes stay as they are.

This is not part of SPR²Q: its results are reported as fine-tuned ones.
"""
from __future__ import annotations

from pathlib import Path
from typing import Dict, Iterable, Mapping, Union

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import Artifact
from ppsr2q.quant.convert import parameters_without_bounds
from ppsr2q.quant.plan import PlannedTensor
from ppsr2q.spr2q.rectifier import rectifier_groups

LEVELS = ("none", "latent", "all")
PREFIX = "parameters/"


def network_parameters(student: nn.Layer) -> Dict[str, paddle.Tensor]:
    """The parameters that a student has in common with its full-precision network, under the same names."""
    added = {id(parameter) for group in rectifier_groups(student).values() for parameter in group.parameters()}
    return {name: parameter for name, parameter in parameters_without_bounds(student).items() if id(parameter) not in added}


def finetuned_parameters(student: nn.Layer, tensors: Iterable[PlannedTensor],
                         level: str) -> Dict[str, Dict[str, paddle.Tensor]]:
    """What learns at a level: {"latent": {name: parameter}, "float": {...}}.

    Args:
        level: ``none``; ``latent``: quantized parameters without a rectifier, by the straight-through gradient of
            their quantizers; ``all``: these and every parameter that stays in floating point. A weight that has been
            given a rectifier never learns: its increment does.
    """
    if level not in LEVELS:
        raise ValueError(f"expected a level in {LEVELS}, got {level!r}")
    quantized = {tensor.source for tensor in tensors if tensor.source and tensor.bits is not None}
    rectified = {f"{layer}.weight" for layer in rectifier_groups(student)}
    parameters = network_parameters(student)
    latent = {name: p for name, p in parameters.items() if name in quantized - rectified}
    rest = {name: p for name, p in parameters.items() if name not in quantized}
    return {"latent": latent if level != "none" else {}, "float": rest if level == "all" else {}}


def snapshot(student: nn.Layer) -> Dict[str, np.ndarray]:
    """Copies of :func:`network_parameters`, to tell later what has changed."""
    return {name: parameter.numpy().copy() for name, parameter in network_parameters(student).items()}


def changed_parameters(student: nn.Layer, before: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """``parameters/<name>`` of every network parameter that differs in a bit from ``before`` (:func:`snapshot`)."""
    now = snapshot(student)
    return {f"{PREFIX}{name}": value for name, value in now.items() if value.tobytes() != before[name].tobytes()}


def load_parameters(student: nn.Layer, artifact: Artifact, path: Union[str, Path]) -> None:
    """Set the network parameters that an artifact carries (none, when nothing was fine-tuned).

    Raises:
        UserError: a name or shape that this network does not have.
    """
    parameters = network_parameters(student)
    stored = artifact.part(PREFIX)
    for name, value in stored.items():
        if name not in parameters or list(parameters[name].shape) != list(value.shape):
            raise UserError(f"{path}: holds a fine-tuned {name} {list(value.shape)}, which this network does not have")
    for name, value in stored.items():
        parameters[name].set_value(value)
