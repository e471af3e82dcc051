"""First bounds for every quantizer from one forward pass (2DQuant stage 1, DOBI)."""
from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Callable, Dict, Mapping, Optional, Tuple

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.errors import UserError
from ppsr2q.quant.bounds import search_bounds, subsample
from ppsr2q.quant.convert import named_quantizers
from ppsr2q.quant.fake_quantizer import FakeQuantizer

BOUNDS = "bounds/"  # prefix of plan names in artifacts, whose other arrays have other prefixes
Observer = Callable[[FakeQuantizer, paddle.Tensor], paddle.Tensor]


@dataclass(frozen=True)
class CalibrationSettings:
    """How bounds are searched.

    Attributes:
        dobi_mode: ``code``: two-sided everywhere (2DQuant's released code); ``paper``: one-sided where the plan says;
            ``fit``: as ``code``, then fitted by least squares (``bounds.fit_bounds``; ours).
        progressive: a quantizer acts as soon as its bounds are found, so that later ones see quantized inputs;
            otherwise all statistics are those of the full-precision network.
        outliers: share of a tensor's values, at either end, that the search moves to the rest's minimum or maximum first
            (``bounds.winsorize``; ours).
        candidates: K of the search.
        max_samples: values of a tensor that the search looks at (weights of layers are searched whole).
        seed: draws those values.
    """

    dobi_mode: str = "code"
    progressive: bool = False
    outliers: float = 0.0
    candidates: int = 100
    max_samples: int = 2**16
    seed: int = 0

    def search(self, values: np.ndarray, bits: int, one_sided: bool = False) -> Tuple[float, float]:
        """Bounds of one tensor (``bounds.search_bounds``); ``one_sided`` as the plan says."""
        return search_bounds(values, bits, one_sided and self.dobi_mode == "paper", self.candidates,
                             self.dobi_mode == "fit", self.outliers)


def calibrate(model: nn.Layer, batch: paddle.Tensor, settings: CalibrationSettings = CalibrationSettings(),
              on_quantizer: Optional[Callable[[str], None]] = None) -> Dict[str, tuple]:
    """Search the bounds of every quantizer of ``model`` in one forward pass of ``batch``.

    Args:
        model: from ``quantize``.
        batch: the network's input, for image networks float32 (B, 3, h, w).
        on_quantizer: called with the plan name after each search (progress).

    Returns:
        Plan name -> (a, b).

    Raises:
        UserError: a quantizer saw a value that is not finite: the weights, or the images, are broken. Or an activation
            is quantized more than once in a forward pass: no one of the tensors tells the bounds of all.
        ValueError: a quantizer was not reached by the forward pass.
    """
    quantizers = named_quantizers(model)
    found: Dict[str, tuple] = {name: q.fixed for name, q in quantizers.items() if q.fixed is not None}

    def observer_of(name: str) -> Observer:
        of_weight = name.endswith(".weight")

        def search(quantizer, x):
            if name not in found:
                found[name] = search_first(quantizer, x)
            elif not of_weight:
                raise UserError(f"{name}: reached more than once in a forward pass; give every call a layer of its own")
            return quantizer.act(x) if settings.progressive else x

        def search_first(quantizer, x):
            limit = max(x.size, 2) if of_weight else settings.max_samples
            values = subsample(x.numpy(), limit, settings.seed + zlib.crc32(name.encode()))
            if not np.isfinite(values).all():
                raise UserError(f"{name}: holds NaN or infinite values; are these the right weights?")
            bounds = settings.search(values, quantizer.bits, quantizer.one_sided)
            quantizer.set_bounds(*bounds)
            if on_quantizer is not None:
                on_quantizer(name)
            return bounds
        return search

    fixed = {} if settings.progressive else dict.fromkeys(found, pass_through)
    observe(model, batch, {**fixed, **{name: observer_of(name) for name in quantizers if name not in found}})
    unseen = sorted(set(quantizers) - set(found))
    if unseen:
        raise ValueError(f"the forward pass did not reach {len(unseen)} quantizers, the first is {unseen[0]}")
    return found


def pass_through(quantizer: FakeQuantizer, x: paddle.Tensor) -> paddle.Tensor:
    """An observer that leaves a tensor in full precision."""
    return x


def observe(model: nn.Layer, batch: paddle.Tensor, observers: Mapping[str, Observer]) -> None:
    """One forward pass without gradients in which the named quantizers ask an observer instead of quantizing; none is
    left behind.

    Args:
        batch: the model's input.
        observers: plan name -> observer(quantizer, x) -> what the layer behind gets.
    """
    quantizers = named_quantizers(model)
    for name, observer in observers.items():
        quantizers[name].observer = observer
    try:
        with paddle.no_grad():
            model(batch)
    finally:
        for name in observers:
            quantizers[name].observer = None


def get_bounds(model: nn.Layer) -> Dict[str, np.ndarray]:
    """Plan name -> float32 [2], the bounds that every quantizer acts with now."""
    with paddle.no_grad():
        return {name: quantizer.effective_bounds().numpy() for name, quantizer in named_quantizers(model).items()}


def stored_bounds(bounds: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """Bounds by plan name, as artifacts hold them; ``artifact.part(BOUNDS)`` gives them back."""
    return {f"{BOUNDS}{name}": value for name, value in bounds.items()}


def set_bounds(model: nn.Layer, bounds: Dict[str, np.ndarray]) -> None:
    """Set the bounds of every quantizer, by plan name.

    Raises:
        ValueError: naming quantizers without bounds, unknown names, or unordered bounds.
    """
    quantizers = named_quantizers(model)
    if set(quantizers) != set(bounds):
        odd = sorted(set(quantizers) ^ set(bounds))
        raise ValueError(f"bounds do not belong to this network: {len(odd)} names differ, the first is {odd[0]}")
    for name, quantizer in quantizers.items():
        if quantizer.fixed is None:
            quantizer.set_bounds(*(float(value) for value in bounds[name]))
