"""The one quantizer: a point of a model with a bit width and two learned bounds."""
from __future__ import annotations

from typing import Callable, Optional, Tuple

import numpy as np
import paddle

from ppsr2q import ops
from ppsr2q.core.plan import QuantizerOptions
from ppsr2q.ops.fake_quantize import levels, quantize_dequantize_constant, round_half_even

MIN_RELATIVE_WIDTH = 1e-3  # b - a never falls below this share of the searched range (relative bounds)
MIN_WIDTH = 1e-6  # nor below this (absolute bounds)


def snap_zero_point(bounds: paddle.Tensor, bits: int) -> paddle.Tensor:
    """Bounds extended to hold 0, then moved so that -a/s is a whole number in [0, 2^n - 1]; the gradient passes straight
    through."""
    lower, upper = paddle.clip(bounds[0], max=0.0), paddle.clip(bounds[1], min=0.0)
    step = (upper - lower) / levels(bits)
    zero = paddle.clip(round_half_even(-lower / step), 0, levels(bits))
    snapped = paddle.stack([-zero * step, (levels(bits) - zero) * step])
    return bounds + (snapped - bounds).detach()


def _least_half_width(lower: float, upper: float) -> float:
    """Half of what float32 can safely tell apart beside bounds of this size, and invert."""
    return max(4 * float(np.spacing(np.float32(max(abs(lower), abs(upper))))), 1e-30)


class FakeQuantizer(ops.QuantPoint):
    """Quantize and dequantize a tensor by Eq. 1, with Eq. 8's gradients to the tensor and to both bounds.

    Args:
        bits: 1 to 8.
        options: how the bounds are held.
        one_sided: the range search may keep the lower bound at the minimum (``dobi_mode: paper``).
        fixed: bounds that are neither searched nor trained.

    Attributes:
        bounds: float32 [2] parameter, (a, b), or (a, b)/R0 when relative.
        constant_bounds: the bounds as numbers, for an exported graph (``fix_bounds``).
        observer: while a range search runs, called as ``observer(self, x) -> x`` instead of quantizing.
    """

    def __init__(self, bits: int, options: QuantizerOptions = QuantizerOptions(), one_sided: bool = False,
                 fixed: Optional[tuple] = None) -> None:
        super().__init__()
        if not isinstance(bits, int) or not 1 <= bits <= 8:
            raise ValueError(f"expected 1 to 8 bits, got {bits!r}")
        self.bits = bits
        self.options = options
        self.one_sided = one_sided
        self.fixed = fixed
        self.observer: Optional[Callable] = None
        self.constant_bounds: Optional[Tuple[float, float]] = None
        self.bounds = self.create_parameter([2], default_initializer=paddle.nn.initializer.Constant(float("nan")))
        self.register_buffer("unit", paddle.ones([1]))
        if fixed is not None:
            self.set_bounds(*fixed)
            self.bounds.stop_gradient = True

    @property
    def observing(self) -> bool:
        return self.observer is not None

    def extra_repr(self) -> str:
        return f"bits={self.bits}"

    def set_bounds(self, lower: float, upper: float) -> None:
        """Start from the bounds of a search; relative bounds take their unit from them.

        Raises:
            ValueError: unless lower < upper, both finite.
        """
        if not (np.isfinite([lower, upper]).all() and lower < upper):
            raise ValueError(f"bounds must be finite and ordered, got ({lower}, {upper})")
        half = _least_half_width(lower, upper)
        if upper - lower < 2 * half:  # equal in float32, or nearly
            lower, upper = (lower + upper) / 2 - half, (lower + upper) / 2 + half
        unit = upper - lower if self.options.parametrization == "relative" else 1.0
        self.unit.set_value(np.array([unit], np.float32))
        self.bounds.set_value((np.array([lower, upper]) / unit).astype(np.float32))

    def effective_bounds(self) -> paddle.Tensor:
        bounds = self.bounds
        if self.options.parametrization == "relative":
            bounds = bounds * self.unit
        if self.options.zero_point == "integer":
            bounds = snap_zero_point(bounds, self.bits)
        return bounds

    def bounds_after(self, lower: float, upper: float) -> Tuple[float, float]:
        """The bounds that act after :meth:`set_bounds`: those of integer zero points are others."""
        trial = FakeQuantizer(self.bits, self.options)
        trial.set_bounds(lower, upper)
        return tuple(float(bound) for bound in trial.effective_bounds().numpy())

    @property
    def min_width(self) -> float:
        """What b - a of the parameter must not fall below."""
        return MIN_RELATIVE_WIDTH if self.options.parametrization == "relative" else MIN_WIDTH

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.act(x) if self.observer is None else self.observer(self, x)

    def act(self, x: paddle.Tensor) -> paddle.Tensor:
        """Quantize and dequantize, observed or not."""
        if not paddle.in_dynamic_mode():  # a graph is being exported
            if self.constant_bounds is None:
                raise RuntimeError("a graph holds bounds as numbers: call ppsr2q.quant.fix_bounds("
                                   "named_quantizers(model).values()) before paddle.jit.to_static")
            return quantize_dequantize_constant(x, *self.constant_bounds, self.bits)
        return ops.fake_quantize(x, self.effective_bounds(), self.bits)


def fix_bounds(quantizers) -> None:
    """Note the bounds as numbers, which an exported graph will hold."""
    for quantizer in quantizers:
        quantizer.constant_bounds = tuple(float(bound) for bound in quantizer.effective_bounds().numpy())


def keep_open(quantizers) -> int:
    """Widen, around their centre, bounds that training has brought too close together or past each other.

    Returns:
        How many had to be widened.
    """
    trained = [quantizer for quantizer in quantizers if not quantizer.bounds.stop_gradient]
    if not trained:
        return 0
    with paddle.no_grad():
        bounds = paddle.stack([quantizer.bounds for quantizer in trained]).numpy()
    least = np.array([quantizer.min_width for quantizer in trained], np.float32)
    closed = np.flatnonzero(bounds[:, 1] - bounds[:, 0] < least)
    for i in closed:
        half = max(least[i], _least_half_width(*bounds[i]))  # twice the least width, or as much as float32 needs
        centre = bounds[i].mean()
        trained[i].bounds.set_value(np.array([centre - half, centre + half], np.float32))
    return len(closed)
