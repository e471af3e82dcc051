"""Folds: rewritings of a network's parameters that leave what it computes unchanged.

Along an edge, what one layer multiplies in the next divides out: a LayerNorm's channels against the rows of the linear
layers it feeds (SmoothQuant, Xiao et al. 2023; with a shift: Outlier Suppression+, Wei et al. 2023), a depth-wise
convolution's channels against both of its neighbours', an invertible matrix per head on q against its inverse
transpose on k, or on v against its inverse in the projection (as rotations in QuaRot, Ashkboos et al. 2024), and the
states of a selective scan between B and C. ``quant.equalize`` chooses folds that make tensors easier to quantize.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, Mapping, Tuple, Union

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.plan import matches
from ppsr2q.quant.convert import get_sublayer

Values = Mapping[str, np.ndarray]


def weight_matrix(layer: nn.Layer) -> np.ndarray:
    """float64 [d_in, d_out] of a Linear or a 1x1 convolution."""
    weight = layer.weight.numpy().astype(np.float64)
    return weight if weight.ndim == 2 else weight.reshape(weight.shape[:2]).T


def _set(parameter: paddle.Tensor, value: np.ndarray) -> None:
    parameter.set_value(value.astype(np.float32))


def _set_matrix(layer: nn.Layer, matrix: np.ndarray) -> None:
    shape = layer.weight.shape
    _set(layer.weight, matrix if len(shape) == 2 else matrix.T.reshape(shape))


def _times_heads(layer: nn.Layer, matrices: np.ndarray) -> None:
    """Multiply the output of a layer, head by head, by (heads, d, d) from the right."""
    heads, size, _ = matrices.shape
    weight = np.einsum("ihd,hde->ihe", weight_matrix(layer).reshape(-1, heads, size), matrices)
    bias = np.einsum("hd,hde->he", layer.bias.numpy().astype(np.float64).reshape(heads, size), matrices)
    _set_matrix(layer, weight.reshape(-1, heads * size))
    _set(layer.bias, bias.reshape(-1))


@dataclass(frozen=True)
class NormEdge:
    """A LayerNorm and the linear layers it feeds. ``scale``, ``shift`` (C,): its output y becomes
    (y - shift) / scale."""

    norm: str
    layers: Tuple[str, ...]

    def identity(self, block: nn.Layer) -> Dict[str, np.ndarray]:
        channels = get_sublayer(block, self.norm).weight.shape[0]
        return {"scale": np.ones(channels), "shift": np.zeros(channels)}

    def fold(self, block: nn.Layer, values: Values) -> None:
        norm, scale, shift = get_sublayer(block, self.norm), values["scale"], values["shift"]
        _set(norm.weight, norm.weight.numpy() / scale)
        _set(norm.bias, (norm.bias.numpy() - shift) / scale)
        for name in self.layers:
            layer = get_sublayer(block, name)
            matrix = weight_matrix(layer)
            _set(layer.bias, layer.bias.numpy() + shift @ matrix)
            _set_matrix(layer, matrix * scale[:, None])


@dataclass(frozen=True)
class GateEdge:
    """LayerNorm -> depth-wise convolution -> product with the ungated half -> linear layer. ``before``, ``after`` (C,)
    divide the convolution's input and output; no shift, because the convolution pads with zeros."""

    norm: str
    conv: str
    layer: str

    def identity(self, block: nn.Layer) -> Dict[str, np.ndarray]:
        channels = get_sublayer(block, self.norm).weight.shape[0]
        return {"before": np.ones(channels), "after": np.ones(channels)}

    def fold(self, block: nn.Layer, values: Values) -> None:
        norm, conv, layer = (get_sublayer(block, name) for name in (self.norm, self.conv, self.layer))
        before, after = values["before"], values["after"]
        _set(norm.weight, norm.weight.numpy() / before)
        _set(norm.bias, norm.bias.numpy() / before)
        _set(conv.weight, conv.weight.numpy() * (before / after)[:, None, None, None])
        _set(conv.bias, conv.bias.numpy() / after)
        _set_matrix(layer, weight_matrix(layer) * after[:, None])


@dataclass(frozen=True)
class _HeadEdge:
    """Two layers with a product between them along each head's axis; ``matrices`` (heads, d, d), invertible, multiply
    the first one's heads. ``points``: of the attention between them."""

    first: str
    second: str
    points: str
    heads: int

    def identity(self, block: nn.Layer) -> Dict[str, np.ndarray]:
        size = get_sublayer(block, self.first).weight.shape[1] // self.heads
        return {"matrices": np.tile(np.eye(size), (self.heads, 1, 1))}


@dataclass(frozen=True)
class QueryKeyEdge(_HeadEdge):
    """q M (k M^-T)ᵀ = q kᵀ."""

    def fold(self, block: nn.Layer, values: Values) -> None:
        matrices = values["matrices"].astype(np.float64)
        _times_heads(get_sublayer(block, self.first), matrices)
        _times_heads(get_sublayer(block, self.second), np.linalg.inv(matrices).transpose(0, 2, 1))


@dataclass(frozen=True)
class ValueEdge(_HeadEdge):
    """(map v M) M^-1 W = map v W, W the rows of the projection that read a head."""

    def fold(self, block: nn.Layer, values: Values) -> None:
        matrices = values["matrices"].astype(np.float64)
        heads, size, _ = matrices.shape
        _times_heads(get_sublayer(block, self.first), matrices)
        layer = get_sublayer(block, self.second)
        rows = weight_matrix(layer).reshape(heads, size, -1)
        _set_matrix(layer, np.einsum("hde,heo->hdo", np.linalg.inv(matrices), rows).reshape(heads * size, -1))


@dataclass(frozen=True)
class StateEdge:
    """The states of a selective scan. ``scale`` (N,) multiplies B, and with it the states, and divides C and the prompt
    that joins C: rows of the scan's projection and columns of the embedding that makes the prompt."""

    scan: str
    embedding: str

    def identity(self, block: nn.Layer) -> Dict[str, np.ndarray]:
        return {"scale": np.ones(get_sublayer(block, self.scan).A_logs.shape[1])}

    def fold(self, block: nn.Layer, values: Values) -> None:
        scan, embedding, scale = get_sublayer(block, self.scan), get_sublayer(block, self.embedding), values["scale"]
        rank = scan.x_proj_weight.shape[1] - 2 * len(scale)
        rows = np.concatenate([np.ones(rank), scale, 1 / scale])
        _set(scan.x_proj_weight, scan.x_proj_weight.numpy() * rows[None, :, None])
        _set(embedding.weight, embedding.weight.numpy() / scale)


Edge = Union[NormEdge, GateEdge, QueryKeyEdge, ValueEdge, StateEdge]

#: Architecture -> (pattern of its blocks, edges within a block by name, in the order in which they are folded).
EDGES: Dict[str, Tuple[str, Dict[str, Edge]]] = {"mambairv2_light": ("layers.*.residual_group.layers.*", {
    "attention_input": NormEdge("norm1", ("q", "k", "v")),
    "ffn1_input": NormEdge("norm2", ("convffn1.fc1",)),
    "ffn2_input": NormEdge("norm4", ("convffn2.fc1",)),
    "scan_input": NormEdge("norm3", ("assm.in_proj.0", "assm.route.0")),
    "scan_output": NormEdge("assm.out_norm", ("assm.out_proj",)),
    "ffn1_gate": GateEdge("convffn1.sg.norm", "convffn1.sg.conv", "convffn1.fc2"),
    "ffn2_gate": GateEdge("convffn2.sg.norm", "convffn2.sg.conv", "convffn2.fc2"),
    "query_key": QueryKeyEdge("q", "k", "win_mhsa.points", 4),
    "value": ValueEdge("v", "win_mhsa.proj", "win_mhsa.points", 4),
    "states": StateEdge("assm.selectiveScan", "embeddingA"),
})}


def blocks_of(network: nn.Layer, architecture: str) -> Iterator[Tuple[str, nn.Layer]]:
    """(name, layer) of the blocks that hold an architecture's edges."""
    pattern = EDGES[architecture][0]
    return ((name, layer) for name, layer in network.named_sublayers() if matches(name, pattern))


def apply_folds(network: nn.Layer, architecture: str, folds: Mapping[str, np.ndarray]) -> None:
    """Fold a network, in place, by the same float32 operations wherever the folds come from.

    Args:
        network: full-precision or quantized, not folded yet.
        architecture: key of :data:`EDGES`.
        folds: ``<block>.<edge>.<value>`` -> float32, from ``equalize`` or a file; edges may be absent.

    Raises:
        ValueError: naming a value that this network has no place for, or of another shape.
    """
    left = dict(folds)
    for name, block in blocks_of(network, architecture):
        for edge_name, edge in EDGES[architecture][1].items():
            expected = {f"{name}.{edge_name}.{key}": value for key, value in edge.identity(block).items()}
            if not set(expected) & set(left):
                continue
            odd = [key for key, value in expected.items() if key not in left or left[key].shape != value.shape]
            if odd:
                raise ValueError(f"{odd[0]}: expected an array of shape {list(expected[odd[0]].shape)}")
            edge.fold(block, {key.rpartition(".")[2]: left.pop(key) for key in expected})
    if left:
        raise ValueError(f"{sorted(left)[0]}: {architecture} has no such fold")
