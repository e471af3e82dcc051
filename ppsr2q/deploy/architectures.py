"""The architectures as names and shapes, for readers of packed files that have no Paddle.

``models`` holds the networks themselves; tests compare every description with its network.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, Tuple

from ppsr2q.core.plan import CONV, LINEAR, POINT

Shape = Tuple[int, ...]


@dataclass(frozen=True)
class Fold:
    """A quantized point whose tensor depends on parameters alone, so that its codes say all that they can say.

    Attributes:
        shape: of the point's tensor.
        replaces: the parameters that need not be stored when the point is quantized.
        negative: the unquantized tensor is negative everywhere, whatever the parameters (-exp).
    """

    shape: Shape
    replaces: Tuple[str, ...]
    negative: bool = False


@dataclass
class Description:
    """An architecture at one scale.

    Attributes:
        parameters: name -> shape of the full-precision network, Paddle's layout, in the order of
            ``named_parameters``.
        layers: name -> kind of every layer that can be quantized, in the order of ``named_sublayers``.
        folds: by the name of their point.
    """

    parameters: Dict[str, Shape] = field(default_factory=dict)
    layers: Dict[str, str] = field(default_factory=dict)
    folds: Dict[str, Fold] = field(default_factory=dict)

    def parameter(self, name: str, *shape: int) -> None:
        self.parameters[name] = shape

    def linear(self, name: str, fan_in: int, fan_out: int) -> None:
        self.layers[name] = LINEAR
        self.parameter(f"{name}.weight", fan_in, fan_out)
        self.parameter(f"{name}.bias", fan_out)

    def conv(self, name: str, fan_in: int, fan_out: int, side: int, groups: int = 1) -> None:
        self.layers[name] = CONV
        self.parameter(f"{name}.weight", fan_out, fan_in // groups, side, side)
        self.parameter(f"{name}.bias", fan_out)

    def norm(self, name: str, channels: int) -> None:
        self.parameter(f"{name}.weight", channels)
        self.parameter(f"{name}.bias", channels)

    def points(self, owner: str, *names: str) -> None:
        self.layers.update({f"{owner}.points.{name}": POINT for name in names})

    def fold(self, point: str, shape: Shape, *replaces: str, negative: bool = False) -> None:
        self.folds[point] = Fold(shape, replaces, negative)


def _mambairv2_feed_forward(net: Description, name: str) -> None:
    net.linear(f"{name}.fc1", 48, 48)
    net.norm(f"{name}.sg.norm", 24)
    net.conv(f"{name}.sg.conv", 24, 24, 5, groups=24)
    net.linear(f"{name}.fc2", 24, 48)


def _mambairv2_state_space(net: Description, name: str) -> None:
    scan = f"{name}.selectiveScan"
    for parameter, shape in (("x_proj_weight", (1, 19, 48)), ("dt_projs_weight", (1, 48, 3)),
                             ("dt_projs_bias", (1, 48)), ("A_logs", (48, 8)), ("Ds", (48,))):
        net.parameter(f"{scan}.{parameter}", *shape)
    net.points(scan, "x_proj_weight", "dt_projs_weight", "u", "dt", "delta", "B", "C", "A", "dt_bias", "states")
    net.fold(f"{scan}.points.A", (48, 8), f"{scan}.A_logs", negative=True)
    net.fold(f"{scan}.points.dt_bias", (48,), f"{scan}.dt_projs_bias")
    net.norm(f"{name}.out_norm", 48)
    net.linear(f"{name}.out_proj", 48, 48)
    net.conv(f"{name}.in_proj.0", 48, 48, 1)
    net.conv(f"{name}.CPE.0", 48, 48, 3, groups=48)
    net.parameter(f"{name}.embeddingB.weight", 64, 32)
    net.linear(f"{name}.route.0", 48, 16)
    net.linear(f"{name}.route.2", 16, 64)
    net.points(name, "embeddingB", "prompt_table", "one_hot")


def _mambairv2_layer(net: Description, name: str) -> None:
    net.parameter(f"{name}.scale1", 48)
    net.parameter(f"{name}.scale2", 48)
    for i in range(1, 5):
        net.norm(f"{name}.norm{i}", 48)
    for projection in ("q", "k", "v"):
        net.linear(f"{name}.{projection}", 48, 48)
    net.parameter(f"{name}.win_mhsa.relative_position_bias_table", 31 * 31, 4)
    net.linear(f"{name}.win_mhsa.proj", 48, 48)
    net.points(f"{name}.win_mhsa", "q", "k", "v", "map")
    _mambairv2_feed_forward(net, f"{name}.convffn1")
    _mambairv2_state_space(net, f"{name}.assm")
    _mambairv2_feed_forward(net, f"{name}.convffn2")
    net.parameter(f"{name}.embeddingA.weight", 32, 8)
    net.points(name, "embeddingA")
    net.fold(f"{name}.assm.points.prompt_table", (64, 8), f"{name}.embeddingA.weight", f"{name}.assm.embeddingB.weight")


def mambairv2_layers() -> Iterator[str]:
    """Names of the 20 AttentiveLayers of MambaIRv2-light."""
    for stage in range(4):
        for layer in range(5):
            yield f"layers.{stage}.residual_group.layers.{layer}"


def _mambairv2_light(scale: int) -> Description:
    net, names = Description(), list(mambairv2_layers())
    net.conv("conv_first", 3, 48, 3)
    net.norm("patch_embed.norm", 48)
    for stage in range(4):
        for name in names[5 * stage:5 * stage + 5]:
            _mambairv2_layer(net, name)
        net.conv(f"layers.{stage}.conv", 48, 48, 3)
    net.norm("norm", 48)
    net.conv("conv_after_body", 48, 48, 3)
    net.conv("upsample.0", 48, 3 * scale**2, 3)
    return net


#: Architecture name -> (scales, description of a scale).
ARCHITECTURES: Dict[str, Tuple[Tuple[int, ...], Callable[[int], Description]]] = {
    "mambairv2_light": ((2, 4), _mambairv2_light),
}
