"""Full-precision checkpoints: always under the official key names, Linear weights as [in, out] (Paddle's layout)."""
from __future__ import annotations

from pathlib import Path
from typing import Dict, Mapping, Union

import numpy as np
from paddle import nn

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact, save_artifact, tensors_sha256
from ppsr2q.core.pdparams import read_pdparams

KIND = "full-precision weights"
_REBUILT = ("relative_position_index_SA",)  # a buffer of the official file that follows from the window size
_JOINED = {"wqkv": ("q", "k", "v")}  # official layer: our layers, side by side along the output axis


def official_name(name: str) -> str:
    """Official key of one of our parameters: ``….q.weight`` -> ``….wqkv.weight``; all others keep their names."""
    prefix, _, leaf = name.rpartition(".")
    parent, _, layer = prefix.rpartition(".")
    for joined, parts in _JOINED.items():
        if layer in parts:
            return f"{parent}.{joined}.{leaf}"
    return name


def official_arrays(parameters: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Parameters by our names, in the order of ``named_parameters``, under the official keys."""
    state: Dict[str, np.ndarray] = {}
    for name, value in parameters.items():
        key = official_name(name)
        # q, k, v come in this order, so joining by appending keeps the official order
        state[key] = value if key not in state else np.concatenate([state[key], value], axis=-1)
    return state


def official_state(model: nn.Layer) -> Dict[str, np.ndarray]:
    """All parameters of a full-precision model as float32 arrays under the official keys."""
    return official_arrays({name: parameter.numpy() for name, parameter in model.named_parameters()})


def weights_sha256(model: nn.Layer) -> str:
    """Hash of the full-precision weights: what tables, checkpoints and packed files say they belong to."""
    return tensors_sha256(official_state(model))


def read_weights(path: Union[str, Path]) -> Dict[str, np.ndarray]:
    """Arrays of a full-precision checkpoint (``.safetensors`` of this project or ``.pdparams``).

    Raises:
        UserError: unreadable file, or a torch ``.pth`` (with the command that converts it).
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt"):
        raise UserError(f"{path}: this is a torch checkpoint; convert it once with\n"
                        f"  python -m ppsr2q.models.convert_torch {path} {path.with_suffix('.safetensors')}")
    if path.suffix == ".safetensors":
        return load_artifact(path, KIND).tensors
    if path.suffix == ".pdparams":
        return read_pdparams(path)
    raise UserError(f"{path}: expected a .safetensors or .pdparams file")


def _named(keys) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def load_state(model: nn.Layer, state: Dict[str, np.ndarray], source: str) -> None:
    """Load official arrays strictly: every key, every shape, every value finite.

    Raises:
        UserError: naming ``source`` and the keys; the model is unchanged then.
    """
    expected = official_state(model)
    state = {key: value for key, value in state.items() if key not in _REBUILT}
    missing, extra = set(expected) - set(state), set(state) - set(expected)
    if missing or extra:
        raise UserError(f"{source}: does not hold the parameters of {type(model).__name__}"
                        + (f"; missing: {_named(missing)}" if missing else "")
                        + (f"; unknown: {_named(extra)}" if extra else ""))
    wrong = {key for key in expected if state[key].shape != expected[key].shape}
    if wrong == {"upsample.0.weight", "upsample.0.bias"}:
        outputs = state["upsample.0.bias"].shape[0] if state["upsample.0.bias"].ndim else 0
        scale = {12: "x2 (set model.scale)", 48: "x4 (set model.scale)"}.get(outputs, "a scale other than x2 and x4")
        raise UserError(f"{source}: the configured network is x{model.scale}, these are weights for {scale}")
    if wrong:
        key = sorted(wrong)[0]
        raise UserError(f"{source}: {key} has shape {list(state[key].shape)}, expected {list(expected[key].shape)}"
                        + (f" ({len(wrong)} keys in all)" if len(wrong) > 1 else ""))
    broken = [key for key, value in state.items() if not np.isfinite(value).all()]
    if broken:
        raise UserError(f"{source}: NaN or infinite values in {_named(broken)}")
    offsets: Dict[str, int] = {}
    for name, parameter in model.named_parameters():
        key = official_name(name)
        start = offsets.get(key, 0)
        width = parameter.shape[-1]
        value = state[key] if key == name else state[key][..., start:start + width]
        offsets[key] = start + width
        parameter.set_value(np.ascontiguousarray(value, dtype=np.float32))


def load_weights(model: nn.Layer, path: Union[str, Path]) -> None:
    """:func:`read_weights` and :func:`load_state`."""
    load_state(model, read_weights(path), str(path))


def save_weights(model: nn.Layer, path: Union[str, Path], metadata: dict) -> None:
    """Write the full-precision weights as safetensors; ``metadata`` tells recipe, seed and measured figures."""
    save_artifact(path, official_state(model), KIND, metadata)
