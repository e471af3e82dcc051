"""MambaIRv2-light as an ONNX graph: one image of any height and width, weights fused, routing by argmax.

The graph computes what ``models/mambairv2.py`` does, with batch 1: tokens are (L, 48) in raster order.
"""
from __future__ import annotations

from typing import Optional

import numpy as np
import onnx
from onnx import TensorProto, helper

from ppsr2q.deploy import onnx_operators as operators
from ppsr2q.deploy.onnx_graph import GraphBuilder, Value, model as finished
from ppsr2q.deploy.onnx_operators import Form
from ppsr2q.deploy.packed import PackedModel, TensorQuantizer, dequantized

CHANNELS, HEADS, WINDOW, CLASSES, STATES, DT_RANK = 48, 4, 16, 64, 8, 3
HALF = CHANNELS // 2  # of the hidden channels of a feed-forward network: values, and gates
DEPTHS = (5, 5, 5, 5)
RGB_MEAN = (0.4488, 0.4371, 0.4040)
_CHUNK = WINDOW * WINDOW  # divides the number of tokens, since images are padded to whole windows
_MASKED = -100.0


def build(packed: PackedModel, form: Form) -> onnx.ModelProto:
    """The network as a model with input ``lr`` float32 (1, 3, h, w) in [0, 1] and output ``sr`` float32
    (1, 3, scale h, scale w), not clamped."""
    return _Network(packed, form).build()


class _Network:
    """Holds the builder, the weights, and the values that all layers share (sizes, attention mask)."""

    def __init__(self, packed: PackedModel, form: Form) -> None:
        self.packed, self.form, self.g = packed, form, GraphBuilder()
        self.parameters = dequantized(packed)
        self.scale = packed.architecture["scale"]

    # ------------------------------------------------------------ weights

    def _values(self, name: str) -> np.ndarray:
        return self.parameters[name]

    def _scan_constant(self, name: str, which: str) -> np.ndarray:
        """A (D, N) or dt_bias (D,): the codes of its point, or made from the parameter where it is not quantized."""
        point = f"{name}.points.{which}"
        if point in self.parameters:
            return self._values(point)
        return -np.exp(self._values(f"{name}.A_logs")) if which == "A" else self._values(f"{name}.dt_projs_bias")[0]

    def _prompt_table(self, layer: str) -> np.ndarray:
        point = f"{layer}.assm.points.prompt_table"
        if point in self.parameters:
            return self._values(point)
        return self._values(f"{layer}.assm.embeddingB.weight") @ self._values(f"{layer}.embeddingA.weight")

    def _quantizer(self, name: str) -> Optional[TensorQuantizer]:
        return self.packed.quantizers.get(name)

    def _point(self, x: Value, name: str) -> Value:
        return operators.fake_quantize(self.g, x, self._quantizer(name))

    def _linear(self, x: Value, name: str) -> Value:
        weight, bias = self._values(f"{name}.weight"), self._values(f"{name}.bias")
        if weight.ndim == 4:  # a 1x1 convolution
            weight = weight[:, :, 0, 0].T
        return operators.linear(self.g, x, weight, bias, self._quantizer(f"{name}.input"),
                                self._quantizer(f"{name}.weight"), self.form)

    def _norm(self, x: Value, name: str) -> Value:
        return operators.layer_norm(self.g, x, self._values(f"{name}.weight"), self._values(f"{name}.bias"))

    # ------------------------------------------------------------ images and tokens

    def _image(self, tokens: Value, channels: int = CHANNELS) -> Value:
        """(L, C) -> (1, C, H, W)."""
        shape = self._shape(1, self.height, self.width, channels)
        return self.g.transpose(self.g.reshape(tokens, shape), [0, 3, 1, 2])

    def _tokens(self, image: Value, channels: int = CHANNELS) -> Value:
        """(1, C, H, W) -> (L, C)."""
        return self.g.reshape(self.g.transpose(image, [0, 2, 3, 1]), [-1, channels])

    def _shape(self, *sizes) -> Value:
        """int64 shape of numbers and int64 [1] values."""
        parts = [np.array([size], np.int64) if isinstance(size, int) else size for size in sizes]
        return self.g.add("Concat", *parts, axis=0)

    def _conv(self, image: Value, name: str, group: int = 1) -> Value:
        """Quantized where the plan says so, then padded with an exact 0."""
        image = self._point(image, f"{name}.input")
        weight = self._values(f"{name}.weight")
        pad = weight.shape[-1] // 2
        return self.g.add("Conv", image, weight, self._values(f"{name}.bias"), pads=[pad] * 4, group=group,
                          kernel_shape=list(weight.shape[2:]))

    def _depthwise(self, tokens: Value, name: str, channels: int) -> Value:
        return self._tokens(self._conv(self._image(tokens, channels), name, group=channels), channels)

    def _padded(self, image: Value, axis: int) -> Value:
        """Mirrored (edge included) up to a multiple of the window."""
        g = self.g
        size = g.slice(g.add("Shape", image), axis, axis + 1, 0)
        window = np.array([WINDOW], np.int64)
        padded = g.add("Mul", g.add("Div", g.add("Add", size, window - 1), window), window)
        double = g.add("Mul", size, np.array([2], np.int64))
        scalar = g.add("Squeeze", padded, np.array([0], np.int64))
        place = g.add("Mod", g.add("Range", 0, scalar, 1), double)
        mirrored = g.add("Sub", g.add("Sub", double, np.array([1], np.int64)), place)
        return g.add("Gather", image, g.add("Min", place, mirrored), axis=axis)

    # ------------------------------------------------------------ window attention

    def _windows(self, tokens: Value) -> Value:
        """(L, C) -> (windows, 256, C)."""
        shape = self._shape(self.rows, WINDOW, self.columns, WINDOW, CHANNELS)
        x = self.g.transpose(self.g.reshape(tokens, shape), [0, 2, 1, 3, 4])
        return self.g.reshape(x, [-1, WINDOW * WINDOW, CHANNELS])

    def _heads(self, windows: Value, order) -> Value:
        x = self.g.reshape(windows, [-1, WINDOW * WINDOW, HEADS, CHANNELS // HEADS])
        return self.g.transpose(x, order)

    def _rolled(self, tokens: Value, shift: int) -> Value:
        if shift == 0:
            return tokens
        image = self.g.reshape(tokens, self._shape(self.height, self.width, CHANNELS))
        return self.g.reshape(self.g.roll(image, shift, (0, 1)), [-1, CHANNELS])

    def _mask(self) -> Value:
        """(windows, 1, 256, 256): -100 between tokens that the shift brought together from opposite edges."""
        g = self.g

        def region(size):
            place = g.add("Range", 0, g.add("Squeeze", size, np.array([0], np.int64)), 1)
            past = [g.add("Cast", g.add("GreaterOrEqual", place, g.add("Sub", size, np.array([edge], np.int64))),
                          to=TensorProto.FLOAT) for edge in (WINDOW, WINDOW // 2)]
            return g.add("Add", *past)

        rows = g.add("Mul", g.add("Unsqueeze", region(self.height), np.array([1], np.int64)), 3.0)
        regions = g.add("Add", rows, g.add("Unsqueeze", region(self.width), np.array([0], np.int64)))
        shape = self._shape(self.rows, WINDOW, self.columns, WINDOW)
        windows = g.reshape(g.transpose(g.reshape(regions, shape), [0, 2, 1, 3]), [-1, 1, WINDOW * WINDOW])
        differs = g.add("Not", g.add("Equal", g.transpose(windows, [0, 2, 1]), windows))
        mask = g.add("Mul", g.add("Cast", differs, to=TensorProto.FLOAT), _MASKED)
        return g.add("Unsqueeze", mask, np.array([1], np.int64))

    def _attention(self, layer: str, tokens: Value, shift: int) -> Value:
        g, points = self.g, f"{layer}.win_mhsa.points"
        normed = self._norm(tokens, f"{layer}.norm1")
        q, k, v = (self._windows(self._rolled(self._linear(normed, f"{layer}.{name}"), -shift))
                   for name in ("q", "k", "v"))
        q = self._point(g.add("Mul", q, float((CHANNELS // HEADS) ** -0.5)), f"{points}.q")
        scores = g.add("MatMul", self._heads(q, [0, 2, 1, 3]), self._heads(self._point(k, f"{points}.k"), [0, 2, 3, 1]))
        table = self._values(f"{layer}.win_mhsa.relative_position_bias_table")
        scores = g.add("Add", scores, g.add("Gather", table.T, _relative_positions(), axis=1))  # engines fold this
        if shift:
            scores = g.add("Add", scores, self.mask)
        attention = self._point(g.add("Softmax", scores, axis=-1), f"{points}.map")
        mixed = g.add("MatMul", attention, self._heads(self._point(v, f"{points}.v"), [0, 2, 1, 3]))
        windows = g.transpose(mixed, [0, 2, 1, 3])
        shape = self._shape(self.rows, self.columns, WINDOW, WINDOW, CHANNELS)
        image = g.transpose(g.reshape(windows, shape), [0, 2, 1, 3, 4])
        back = self._rolled(g.reshape(image, [-1, CHANNELS]), shift)
        return g.add("Add", self._linear(back, f"{layer}.win_mhsa.proj"), tokens)

    # ------------------------------------------------------------ feed-forward, state space model

    def _feed_forward(self, x: Value, norm: str, name: str) -> Value:
        g = self.g
        hidden = operators.gelu(g, self._linear(self._norm(x, norm), f"{name}.fc1"))
        value, gate = g.slice(hidden, 0, HALF, 1), g.slice(hidden, HALF, 2 * HALF, 1)
        gate = self._depthwise(self._norm(gate, f"{name}.sg.norm"), f"{name}.sg.conv", HALF)
        return g.add("Add", self._linear(g.add("Mul", value, gate), f"{name}.fc2"), x)

    def _state_space(self, layer: str, x: Value) -> Value:
        g, name = self.g, f"{layer}.assm"
        normed = self._norm(x, f"{layer}.norm3")
        hidden = operators.gelu(g, self._linear(normed, f"{name}.route.0"))
        index = g.add("ArgMax", self._linear(hidden, f"{name}.route.2"), axis=-1, keepdims=0)
        order, position = operators.counting_sort(g, index, CLASSES, self.length)
        prompt = g.add("Gather", self._prompt_table(layer), index, axis=0)
        u = self._linear(normed, f"{name}.in_proj.0")
        u = g.add("Mul", u, g.add("Sigmoid", self._depthwise(u, f"{name}.CPE.0", CHANNELS)))
        y = self._scan(f"{name}.selectiveScan", g.add("Gather", u, order, axis=0), prompt)
        y = self._linear(self._norm(y, f"{name}.out_norm"), f"{name}.out_proj")
        return g.add("Add", g.add("Gather", y, position, axis=0), x)

    def _scan(self, name: str, u: Value, prompt: Value) -> Value:
        """The prompt stays in raster order although u is sorted: the official network's quirk."""
        g, points = self.g, f"{name}.points"
        u = self._point(u, f"{points}.u")
        projected = g.add("MatMul", u, self._values(f"{name}.x_proj_weight")[0].T)
        dt = self._point(g.slice(projected, 0, DT_RANK, 1), f"{points}.dt")
        B = self._point(g.slice(projected, DT_RANK, DT_RANK + STATES, 1), f"{points}.B")
        C = g.slice(projected, DT_RANK + STATES, DT_RANK + 2 * STATES, 1)
        C = self._point(g.add("Add", C, prompt), f"{points}.C")
        delta = g.add("MatMul", dt, self._values(f"{name}.dt_projs_weight")[0].T)
        delta, bias = self._point(delta, f"{points}.delta"), self._scan_constant(name, "dt_bias")
        A, D, quantizer = self._scan_constant(name, "A"), self._values(f"{name}.Ds"), self._quantizer(f"{points}.states")
        if self.form.scan_operator:
            return operators.scan_operator(g, delta, u, B, C, A, D, bias, quantizer)
        steps = g.add("Softplus", g.add("Add", delta, bias))
        return operators.selective_scan(g, steps, u, B, C, A, D, quantizer, _CHUNK)

    # ------------------------------------------------------------ the whole network

    def _layer(self, layer: str, x: Value, shift: int) -> Value:
        g = self.g
        attended = self._feed_forward(self._attention(layer, x, shift), f"{layer}.norm2", f"{layer}.convffn1")
        x = g.add("Add", g.add("Mul", x, self._values(f"{layer}.scale1")), attended)
        mixed = self._feed_forward(self._state_space(layer, x), f"{layer}.norm4", f"{layer}.convffn2")
        return g.add("Add", g.add("Mul", x, self._values(f"{layer}.scale2")), mixed)

    def build(self) -> onnx.ModelProto:
        g, scale, mean = self.g, self.scale, np.array(RGB_MEAN, np.float32).reshape(1, 3, 1, 1)
        image = g.add("Sub", self._padded(self._padded("lr", 2), 3), mean)
        shape, window = g.add("Shape", image), np.array([WINDOW], np.int64)
        self.height, self.width = g.slice(shape, 2, 3, 0), g.slice(shape, 3, 4, 0)
        self.rows, self.columns = (g.add("Div", size, window) for size in (self.height, self.width))
        self.length = g.add("Squeeze", g.add("Mul", self.height, self.width), np.array([0], np.int64))
        self.mask = self._mask()
        shallow = self._conv(image, "conv_first")
        x = self._norm(self._tokens(shallow), "patch_embed.norm")
        for stage, depth in enumerate(DEPTHS):
            before = x
            for i in range(depth):
                x = self._layer(f"layers.{stage}.residual_group.layers.{i}", x, 0 if i % 2 == 0 else WINDOW // 2)
            x = g.add("Add", self._tokens(self._conv(self._image(x), f"layers.{stage}.conv")), before)
        deep = g.add("Add", self._conv(self._image(self._norm(x, "norm")), "conv_after_body"), shallow)
        fine = g.add("DepthToSpace", self._conv(deep, "upsample.0"), blocksize=scale, mode="CRD")
        size = g.add("Mul", g.slice(g.add("Shape", "lr"), 2, 4, 0), np.array([scale, scale], np.int64))
        cropped = g.add("Slice", g.add("Add", fine, mean), np.zeros(2, np.int64), size, np.array([2, 3], np.int64))
        g.nodes.append(helper.make_node("Identity", [cropped], ["sr"]))
        inputs = [helper.make_tensor_value_info("lr", TensorProto.FLOAT, [1, 3, "h", "w"])]
        outputs = [helper.make_tensor_value_info("sr", TensorProto.FLOAT, [1, 3, "sh", "sw"])]
        return finished(g, inputs, outputs, {"architecture": f"mambairv2_light x{scale}"})


def _relative_positions() -> np.ndarray:
    """int64 (256, 256): row (dy + 15) 31 + dx + 15 of the bias table, dy and dx query minus key."""
    y, x = np.divmod(np.arange(WINDOW * WINDOW), WINDOW)
    dy, dx = (place[:, None] - place[None, :] + WINDOW - 1 for place in (y, x))
    return dy * (2 * WINDOW - 1) + dx
