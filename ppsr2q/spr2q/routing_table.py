"""Files of the method: the rectifier checkpoint (stage 1) and the SPR²Q Table (stage 2)."""
from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Dict, Mapping, Union

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import Artifact, save_artifact
from ppsr2q.core.parameters import first_misfit
from ppsr2q.quant.calibrate import BOUNDS, get_bounds, set_bounds, stored_bounds
from ppsr2q.quant.convert import get_sublayer
from ppsr2q.spr2q.finetune import load_parameters
from ppsr2q.spr2q.rectifier import gated_groups, rectifier_groups

RECTIFIERS_KIND = "rectifiers"
TABLE_KIND = "spr2q table"


class StaticIncrement(nn.Layer):
    """A fixed ΔW [d_in, d_out]: a rectifier group after its routing is settled."""

    needs_token_mean = False

    def __init__(self, increment: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("increment", paddle.to_tensor(increment))

    def forward(self, token_mean=None) -> paddle.Tensor:
        return self.increment


def rectifier_state(student: nn.Layer) -> Dict[str, np.ndarray]:
    """Adapters, gates and bounds: ``rectifiers/<layer>.<parameter>`` and ``bounds/<plan name>``."""
    state = stored_bounds(get_bounds(student))
    for name, group in rectifier_groups(student).items():
        for key, parameter in group.named_parameters():
            state[f"rectifiers/{name}.{key}"] = parameter.numpy()
    return state


def save_rectifiers(student: nn.Layer, path: Union[str, Path], metadata: dict,
                    changed: Mapping[str, np.ndarray] = MappingProxyType({})) -> None:
    """Write the rectifier checkpoint.

    Args:
        metadata: config, seed and the hash of the FP weights.
        changed: what else of the network is not as in the FP weights (``finetune.changed_parameters``).
    """
    save_artifact(path, {**rectifier_state(student), **changed}, RECTIFIERS_KIND, metadata)


def load_bounds(student: nn.Layer, artifact: Artifact, path: Union[str, Path]) -> None:
    """Set the bounds of a student from the ``bounds/<plan name>`` arrays of any artifact.

    Raises:
        UserError: names differ (another plan or architecture).
    """
    try:
        set_bounds(student, artifact.part(BOUNDS))
    except ValueError as error:
        raise UserError(f"{path}: {error} (another plan or architecture?)") from None


def load_rectifiers(student: nn.Layer, artifact: Artifact, path: Union[str, Path]) -> None:
    """Set bounds, adapters, gates and fine-tuned parameters of a student that ``attach_rectifiers`` prepared alike.

    Raises:
        UserError: names or shapes differ (another plan, N, rank or kind of gate).
    """
    load_adapters(student, artifact, path)
    load_bounds(student, artifact, path)


def load_adapters(student: nn.Layer, artifact: Artifact, path: Union[str, Path]) -> None:
    """:func:`load_rectifiers` without the bounds: what a run at another bit width can start from."""
    parameters = {f"{name}.{key}": parameter for name, group in rectifier_groups(student).items()
                  for key, parameter in group.named_parameters()}
    stored = artifact.part("rectifiers/")
    odd = first_misfit(parameters, stored)
    if odd is not None:
        raise UserError(f"{path}: its rectifiers differ from the configured ones, first at {odd} "
                        "(rectifier.number, rectifier.rank or rectifier.gate of another run?)")
    load_parameters(student, artifact, path)
    for name, parameter in parameters.items():
        parameter.set_value(stored[name])


def save_table(student: nn.Layer, path: Union[str, Path], metadata: dict,
               changed: Mapping[str, np.ndarray] = MappingProxyType({})) -> None:
    """Write the SPR²Q Table of a student with static gates.

    Per rectified layer ``mixing/<layer>`` (N,), the static routing ĝ, and ``increment/<layer>`` (d_in, d_out),
    Σ ĝ_i (B_i A_i)ᵀ; and ``bounds/<plan name>`` of all quantizers: with the full-precision weights it is all that
    fusing needs. ``changed`` and ``metadata`` are as in :func:`save_rectifiers`.
    """
    tensors = {**stored_bounds(get_bounds(student)), **changed}
    with paddle.no_grad():
        for name, group in gated_groups(student).items():
            mixing = group.gate()
            tensors[f"mixing/{name}"] = mixing.numpy()
            tensors[f"increment/{name}"] = group.increment(mixing).numpy()
    save_artifact(path, tensors, TABLE_KIND, metadata)


def load_table(student: nn.Layer, artifact: Artifact, path: Union[str, Path]) -> None:
    """Set the bounds, increments and fine-tuned parameters of a freshly quantized student from a table.

    Raises:
        UserError: a table for another plan or architecture.
    """
    load_bounds(student, artifact, path)
    load_parameters(student, artifact, path)
    for name, increment in artifact.part("increment/").items():
        try:
            layer = get_sublayer(student, name)
            shape = list(layer.weight.shape)
        except (AttributeError, IndexError, KeyError):
            raise UserError(f"{path}: no layer {name} in this network") from None
        if list(increment.shape) != shape:
            raise UserError(f"{path}: increment of {name} has shape {list(increment.shape)}, expected {shape}")
        layer.weight_delta = StaticIncrement(increment)
