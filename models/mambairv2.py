"""MambaIRv2-light (Guo et al., CVPR 2025, csguoh/MambaIR): attentive state space restoration, x2 and x4.

Module names follow the official checkpoint, except that ``wqkv`` is three Linear layers ``q``, ``k``, ``v`` because
SPR²Q quantizes them separately (``checkpoint.py`` splits and rejoins them).
"""
from __future__ import annotations

from typing import Iterator, List, Optional, Tuple

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

from ppsr2q import ops
from ppsr2q.models.parts import RGB_MEAN, Operation, as_graph_block, pad_symmetric, to_image, to_tokens

CHANNELS = 48
STATES = 8
DT_RANK = 3
HEADS = 4
WINDOW = 16
CLASSES = 64  # num_tokens of the official configuration: classes that pixels are sorted by
INNER_RANK = 32
DEPTHS = (5, 5, 5, 5)
HIDDEN = 48
ROUTINGS = ("argmax", "gumbel")


class WindowAttention(nn.Layer):
    """Parameters of one window attention: the relative position biases and the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = self.create_parameter([(2 * WINDOW - 1) ** 2, HEADS])
        self.proj = nn.Linear(CHANNELS, CHANNELS)
        self.points = ops.QuantPoints("q", "k", "v", "map")

    def forward(self, q, k, v, size, shift, residual):
        mixed = ops.window_attention(q, k, v, self.relative_position_bias_table, size, HEADS, WINDOW, shift,
                                     self.points)
        return ops.linear(mixed, self.proj, residual)


class SpatialGate(nn.Layer):
    """LayerNorm and 5x5 depth-wise convolution of the gate half of the feed-forward network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2D(channels, channels, 5, padding=2, groups=channels)


class ConvFeedForward(nn.Layer):
    """x + fc2(p · DWConv(LN(g))) + skip · scale, (p, g) = split(GELU(fc1(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(CHANNELS, HIDDEN)
        self.sg = SpatialGate(HIDDEN // 2)
        self.fc2 = nn.Linear(HIDDEN // 2, CHANNELS)

    def forward(self, x, norm, size, skip, scale):
        hidden, = ops.norm_linear(x, norm, [self.fc1])
        mixed = ops.gated_mixing(hidden, self.sg.norm, self.sg.conv, size)
        return ops.linear(mixed, self.fc2, residual=x, skip=(skip, scale))


class SelectiveScan(nn.Layer):
    """Parameters of the state space model and the tensors around its scan (one direction, K = 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.x_proj_weight = self.create_parameter([1, DT_RANK + 2 * STATES, CHANNELS])
        self.dt_projs_weight = self.create_parameter([1, CHANNELS, DT_RANK])
        self.dt_projs_bias = self.create_parameter([1, CHANNELS])
        self.A_logs = self.create_parameter([CHANNELS, STATES])
        self.Ds = self.create_parameter([CHANNELS])
        self.points = ops.QuantPoints("x_proj_weight", "dt_projs_weight", "u", "dt", "delta", "B", "C", "A", "dt_bias",
                                      "states")

    def forward(self, u: paddle.Tensor, prompt: paddle.Tensor) -> paddle.Tensor:
        """u (B, L, 48) in scan order, prompt (B, L, 8) in RASTER order -> y (B, L, 48).

        The official network adds the prompt of pixel l at scan position l, although u is sorted; its checkpoints
        were trained so.
        """
        points = self.points
        return ops.state_space(u, prompt, points.x_proj_weight(self.x_proj_weight)[0],
                               points.dt_projs_weight(self.dt_projs_weight)[0],
                               points.A(-paddle.exp(self.A_logs)), self.Ds, points.dt_bias(self.dt_projs_bias[0]),
                               points)


class AttentiveStateSpace(nn.Layer):
    """x + ASSM(norm(x)): pixels are sorted by class, scanned once, and put back; a learned prompt of the class joins C."""

    def __init__(self) -> None:
        super().__init__()
        self.selectiveScan = SelectiveScan()
        self.out_norm = nn.LayerNorm(CHANNELS)
        self.out_proj = nn.Linear(CHANNELS, CHANNELS)
        self.in_proj = nn.Sequential(nn.Conv2D(CHANNELS, CHANNELS, 1))
        self.CPE = nn.Sequential(nn.Conv2D(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS))
        self.embeddingB = nn.Embedding(CLASSES, INNER_RANK)
        self.route = nn.Sequential(nn.Linear(CHANNELS, CHANNELS // 3), nn.GELU(), nn.Linear(CHANNELS // 3, CLASSES))
        self.points = ops.QuantPoints("embeddingB", "prompt_table", "one_hot")
        self.router = ops.route  # logits -> ops.Routing; training may watch or replace it

    def forward(self, x, norm, size, embedding, noise: Optional[paddle.Tensor]):
        points = self.points
        table = points.prompt_table(paddle.matmul(points.embeddingB(self.embeddingB.weight), embedding))
        hidden, u = ops.norm_linear(x, norm, [self.route[0], self.in_proj[0]])
        # The official LogSoftmax before the Gumbel softmax changes neither its value nor its argmax.
        logits = ops.linear(F.gelu(hidden), self.route[2])
        if noise is not None:
            logits = logits + noise
        routing = self.router(logits)
        prompt = ops.routed_prompt(logits, routing.index, table, points.one_hot)
        u = ops.positional_gate(u, self.CPE[0], size)
        y = self.selectiveScan(ops.gather_rows(u, routing.order, routing.inverse), prompt)
        y, = ops.norm_linear(y, self.out_norm, [self.out_proj])
        return ops.gather_rows(y, routing.inverse, routing.order, residual=x)


class AttentiveLayer(nn.Layer):
    """Window attention, feed-forward, state space model, feed-forward; two residual connections with learned scales."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(CHANNELS) for _ in range(4))
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))
        self.win_mhsa = WindowAttention()
        self.convffn1 = ConvFeedForward()
        self.assm = AttentiveStateSpace()
        self.convffn2 = ConvFeedForward()
        self.scale1 = self.create_parameter([CHANNELS])
        self.scale2 = self.create_parameter([CHANNELS])
        self.embeddingA = nn.Embedding(INNER_RANK, STATES)
        self.points = ops.QuantPoints("embeddingA")

    def forward(self, x: paddle.Tensor, size: Tuple[int, int], noise: Optional[paddle.Tensor] = None):
        """x (B, H W, 48), size (H, W), Gumbel noise (B, H W, 64) or None -> (B, H W, 48)."""
        q, k, v = ops.norm_linear(x, self.norm1, [self.q, self.k, self.v])
        attended = self.win_mhsa(q, k, v, size, self.shift, residual=x)
        x = self.convffn1(attended, self.norm2, size, x, self.scale1)
        embedding = self.points.embeddingA(self.embeddingA.weight)
        scanned = self.assm(x, self.norm3, size, embedding, noise)
        return self.convffn2(scanned, self.norm4, size, x, self.scale2)


class ResidualGroup(nn.Layer):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.LayerList([AttentiveLayer(0 if i % 2 == 0 else WINDOW // 2) for i in range(depth)])


class Stage(nn.Layer):
    """ASSB: attentive layers and a 3x3 convolution around a residual connection."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.residual_group = ResidualGroup(depth)
        self.conv = nn.Conv2D(CHANNELS, CHANNELS, 3, padding=1)


class PatchEmbedding(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)


class MambaIRv2Light(nn.Layer):
    """The whole network.

    Args:
        scale: 2 or 4.
        routing: ``argmax`` (noise-free) or ``gumbel`` (as the official network, noise drawn from ``routing_seed``).
        recompute: keep only the input of every AttentiveLayer for the backward pass and compute it again.

    Attributes:
        routing_seed: noise is a function of (routing_seed, layer, shape): a teacher and a student with equal seeds
            draw equal noise. Change it from batch to batch for fresh noise.
    """

    window = WINDOW

    def __init__(self, scale: int, routing: str = "argmax", recompute: bool = False) -> None:
        super().__init__()
        if scale not in (2, 4) or routing not in ROUTINGS:
            raise ValueError(f"expected scale 2 or 4 and routing in {ROUTINGS}, got {scale!r} and {routing!r}")
        self.scale, self.routing, self.recompute = scale, routing, recompute
        self.routing_seed = 0
        self.conv_first = nn.Conv2D(3, CHANNELS, 3, padding=1)
        self.patch_embed = PatchEmbedding()
        self.layers = nn.LayerList([Stage(depth) for depth in DEPTHS])
        self.norm = nn.LayerNorm(CHANNELS)
        self.conv_after_body = nn.Conv2D(CHANNELS, CHANNELS, 3, padding=1)
        self.upsample = nn.Sequential(nn.Conv2D(CHANNELS, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.register_buffer("mean", paddle.to_tensor(RGB_MEAN, "float32").reshape([1, 3, 1, 1]), persistable=False)

    def blocks(self) -> List[Tuple[str, AttentiveLayer]]:
        """(name, layer) of the 20 AttentiveLayers in order: where features are compared and memory is recomputed."""
        return [(f"layers.{s}.residual_group.layers.{i}", layer)
                for s, stage in enumerate(self.layers) for i, layer in enumerate(stage.residual_group.layers)]

    def _noise(self, block: int, tokens: paddle.Tensor) -> Optional[paddle.Tensor]:
        if self.routing == "argmax":
            return None
        rng = np.random.default_rng([self.routing_seed, block])
        shape = (tokens.shape[0], tokens.shape[1], CLASSES)
        exponential = rng.standard_exponential(shape, dtype=np.float32)
        return paddle.to_tensor(-np.log(np.maximum(exponential, np.finfo(np.float32).tiny)))  # it does draw 0

    def _run(self, layer, tokens, size, noise):
        if not paddle.in_dynamic_mode():
            return as_graph_block(lambda x: layer(x, size), tokens)
        if self.recompute and paddle.is_grad_enabled() and not tokens.stop_gradient:
            from paddle.distributed.fleet.utils import recompute
            return recompute(layer, tokens, size, noise)
        return layer(tokens, size, noise)

    def forward(self, x: paddle.Tensor, return_features: bool = False):
        """Super-resolve.

        Args:
            x: float32 (B, 3, h, w) in [0, 1], any h and w.
            return_features: also return the token outputs (B, H W, 48) of :meth:`blocks`, H and W padded to 16.

        Returns:
            float32 (B, 3, scale h, scale w), not clamped; with features (y, [20 tensors]).
        """
        height, width = x.shape[2], x.shape[3]
        x = pad_symmetric(x, WINDOW) - self.mean
        size = (x.shape[2], x.shape[3])
        shallow = to_tokens(self.conv_first(x))
        tokens = ops.layer_norm(shallow, self.patch_embed.norm)
        features = []
        for stage in self.layers:
            stage_input = tokens
            for layer in stage.residual_group.layers:
                tokens = self._run(layer, tokens, size, self._noise(len(features), tokens))
                features.append(tokens)
            tokens = ops.convolution(tokens, stage.conv, size, residual=stage_input)
        deep = ops.convolution(ops.layer_norm(tokens, self.norm), self.conv_after_body, size, residual=shallow)
        convolution, shuffle = self.upsample
        y = shuffle(to_image(ops.convolution(deep, convolution, size), size))
        y = (y + self.mean)[:, :, :height * self.scale, :width * self.scale]
        return (y, features) if return_features else y

    def operations(self, height: int, width: int) -> Iterator[Operation]:
        """Multiply-accumulates of one forward pass for an (height, width) LR image, as fvcore counts them (padded to
        whole windows; LayerNorm 5 per element; scan 9 D N + D per token), in the order of the network."""
        tokens = (-(-height // WINDOW) * WINDOW) * (-(-width // WINDOW) * WINDOW)

        def conv3x3(name, fan_in, fan_out):
            return Operation(name, tokens * 9 * fan_in * fan_out)

        def norm(name, channels=CHANNELS):
            return Operation(name, tokens * 5 * channels)

        def product(name, macs, *operands):
            return Operation(name, tokens * macs, operands)

        def layer_product(name, macs):
            return product(name, macs, f"{name}.input", f"{name}.weight")

        yield conv3x3("conv_first", 3, CHANNELS)
        yield norm("patch_embed.norm")
        for s, depth in enumerate(DEPTHS):
            for i in range(depth):
                for operation in self._layer_operations(f"layers.{s}.residual_group.layers.{i}", norm, product,
                                                        layer_product):
                    yield operation
            yield conv3x3(f"layers.{s}.conv", CHANNELS, CHANNELS)
        yield norm("norm")
        yield conv3x3("conv_after_body", CHANNELS, CHANNELS)
        yield conv3x3("upsample.0", CHANNELS, 3 * self.scale**2)

    @staticmethod
    def _layer_operations(layer, norm, product, layer_product):
        square = CHANNELS * CHANNELS
        for i in range(1, 5):
            yield norm(f"{layer}.norm{i}")
        for name in ("q", "k", "v", "win_mhsa.proj", "assm.in_proj.0", "assm.out_proj"):
            yield layer_product(f"{layer}.{name}", square)
        points = f"{layer}.win_mhsa.points"
        yield product(f"{layer}.win_mhsa.scores", WINDOW**2 * CHANNELS, f"{points}.q", f"{points}.k")
        yield product(f"{layer}.win_mhsa.mix", WINDOW**2 * CHANNELS, f"{points}.map", f"{points}.v")
        for ffn in ("convffn1", "convffn2"):
            yield layer_product(f"{layer}.{ffn}.fc1", CHANNELS * HIDDEN)
            yield norm(f"{layer}.{ffn}.sg.norm", HIDDEN // 2)
            yield layer_product(f"{layer}.{ffn}.sg.conv", 25 * HIDDEN // 2)
            yield layer_product(f"{layer}.{ffn}.fc2", HIDDEN // 2 * CHANNELS)
        yield layer_product(f"{layer}.assm.route.0", CHANNELS * CHANNELS // 3)
        yield layer_product(f"{layer}.assm.route.2", CHANNELS // 3 * CLASSES)
        yield layer_product(f"{layer}.assm.CPE.0", 9 * CHANNELS)
        yield product(f"{layer}.assm.prompt", CLASSES * STATES, f"{layer}.assm.points.one_hot",
                      f"{layer}.assm.points.prompt_table")
        points = f"{layer}.assm.selectiveScan.points"
        yield product(f"{layer}.assm.selectiveScan.x_proj", (DT_RANK + 2 * STATES) * CHANNELS,
                      f"{points}.u", f"{points}.x_proj_weight")
        yield product(f"{layer}.assm.selectiveScan.dt_proj", DT_RANK * CHANNELS,
                      f"{points}.dt", f"{points}.dt_projs_weight")
        yield product(f"{layer}.assm.selectiveScan.scan", 9 * CHANNELS * STATES + CHANNELS)
        yield norm(f"{layer}.assm.out_norm")
