"""Checkpoints from which a run goes on bit for bit: parameters, their mean, Adam's state, iteration, history."""
from __future__ import annotations

import dataclasses
import fnmatch
import re
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np
import paddle

from ppsr2q.core.averaging import IterateAverage
from ppsr2q.core.config import flatten, is_reporting
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact, save_artifact
from ppsr2q.core.parameters import ParameterGroup

KIND = "resume"
_MEAN = "mean"
_ADAM_STATE = ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the identity of a checkpoint is compared with that of the run that would go on from it. Keys are dotted.

    Attributes:
        free: patterns of keys that may differ; options that only report always may.
        added: keys that checkpoints of older versions lack.
        defaults: key -> its value where a checkpoint of an older version has none.
        advice: key without ``run.`` -> what a difference means and what helps (of a hash, say).
    """

    free: Sequence[str] = ()
    added: Sequence[str] = ()
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    advice: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class RunState:
    """How far a run is: iterations done, seconds spent, and the logged figures."""

    iteration: int = 0
    seconds: float = 0.0
    history: List[Dict[str, float]] = dataclasses.field(default_factory=list)


def adam_state(group: ParameterGroup, optimizer: paddle.optimizer.Adam) -> Dict[str, paddle.Tensor]:
    """Adam's tensors of a group as ``<our name>/<moment1 ...>``: Paddle's own names differ between processes.

    The tensors are the optimizer's own, not copies. Empty before the optimizer's first step.
    """
    ours = {parameter.name: name for name, parameter in group.parameters.items()}
    pattern = re.compile(rf"(.+)_({'|'.join(_ADAM_STATE)})_\d+")
    found = {}
    for key, tensor in optimizer.state_dict().items():
        match = pattern.fullmatch(key)
        if match and match.group(1) in ours:
            found[f"{ours[match.group(1)]}/{match.group(2)}"] = tensor
    return found


def save_checkpoint(path: Path, groups: List[ParameterGroup], optimizers: List[paddle.optimizer.Adam],
                    average: IterateAverage, state: RunState, identity: Mapping[str, Any]) -> None:
    """Write everything that :func:`load_checkpoint` needs, atomically.

    Args:
        identity: what run this is; only a run with the same identity may load it.
    """
    tensors = {key: tensor.numpy() for key, tensor in _all_tensors(groups, optimizers).items()}
    tensors.update({f"{name}/{_MEAN}": tensor.numpy() for name, tensor in average.state().items()})
    save_artifact(path, tensors, KIND, {"identity": identity, "state": dataclasses.asdict(state),
                                        "averaged": average.count})


def load_checkpoint(path: Path, groups: List[ParameterGroup], optimizers: List[paddle.optimizer.Adam],
                    average: IterateAverage, identity: Mapping[str, Any], comparison: Comparison) -> RunState:
    """Put a checkpoint into fresh parameters, optimizers and mean; nothing is changed when it does not fit.

    Raises:
        UserError: unreadable file, another run's checkpoint (the first differing key is named), or one whose
            tensors differ in name or shape.
    """
    artifact = load_artifact(path, KIND)
    _check_identity(path, artifact.metadata["identity"], identity, comparison)
    averaged = artifact.metadata.get("averaged", 0)
    parts = ("value", *_ADAM_STATE, *([_MEAN] if averaged else []))
    names = {f"{group.name}/{name}/{part}" for group in groups for name in group.parameters for part in parts}
    odd = sorted(names ^ set(artifact.tensors))
    if odd:
        owner = "lacks" if odd[0] in names else "has an unknown"
        raise UserError(f"{path}: the checkpoint {owner} {odd[0]} ({len(odd)} differences in all)")
    for group in groups:
        for name, parameter in group.parameters.items():
            stored = artifact.tensors[f"{group.name}/{name}/value"]
            if list(stored.shape) != list(parameter.shape):
                raise UserError(f"{path}: {group.name}/{name} has shape {list(stored.shape)}, "
                                f"expected {list(parameter.shape)}")
    for group, optimizer in zip(groups, optimizers):
        _make_state(group, optimizer)
    for key, tensor in _all_tensors(groups, optimizers).items():
        tensor.set_value(np.asarray(artifact.tensors[key]))
    average.restore({key[:-len(f"/{_MEAN}")]: paddle.to_tensor(value) for key, value in artifact.tensors.items()
                     if key.endswith(f"/{_MEAN}")}, averaged)
    return RunState(**artifact.metadata["state"])


def _all_tensors(groups: List[ParameterGroup],
                 optimizers: List[paddle.optimizer.Adam]) -> Dict[str, paddle.Tensor]:
    tensors = {}
    for group, optimizer in zip(groups, optimizers):
        for name, parameter in group.parameters.items():
            tensors[f"{group.name}/{name}/value"] = parameter
        for name, tensor in adam_state(group, optimizer).items():
            tensors[f"{group.name}/{name}"] = tensor
    return tensors


def _make_state(group: ParameterGroup, optimizer: paddle.optimizer.Adam) -> None:
    """Paddle makes Adam's tensors in the first step; one with gradient and rate 0 changes nothing else."""
    for parameter in group.parameters.values():
        parameter.grad = paddle.zeros_like(parameter)
    optimizer.set_lr(0.0)
    optimizer.step()
    optimizer.clear_grad()


def _check_identity(path: Path, stored: Mapping[str, Any], current: Mapping[str, Any], comparison: Comparison) -> None:
    before, now = flatten(stored), flatten(current)
    before = {**{key: value for key, value in comparison.defaults.items() if key in now},
              **{key: now[key] for key in comparison.added if key in now}, **before}
    for key in [*now, *(key for key in before if key not in now)]:
        free = is_reporting(key) or any(fnmatch.fnmatchcase(key, pattern) for pattern in comparison.free)
        if before.get(key) != now.get(key) and not free:
            name = re.sub(r"^run\.(config\.)?", "", key)
            what = comparison.advice.get(name, f"{name} was {before.get(key)!r}, now it is {now.get(key)!r}; restore it")
            raise UserError(f"{path}: checkpoint of another run: {what}, or leave --resume out to start over")
