"""Rectifier groups: N low-rank corrections of one weight, mixed by a gate; and the unconstrained increment."""
from __future__ import annotations

from typing import Dict, Iterable, List, Union

import numpy as np
import paddle
from paddle import nn

from ppsr2q.core.config import RectifierConfig
from ppsr2q.core.errors import UserError
from ppsr2q.quant.convert import get_sublayer
from ppsr2q.quant.layers import QuantLinear
from ppsr2q.quant.plan import PlannedTensor
from ppsr2q.spr2q.gating import DynamicGate, StaticGate, uniform_gate


class RectifierGroup(nn.Layer):
    """ΔW = Σ_i g_i B_i A_i in the layout [d_in, d_out] of a Paddle weight.

    Attributes:
        A: float32 (N, r, d_in), Kaiming-uniform with a = sqrt(5), a different draw for every rectifier.
        B: float32 (N, r, d_out), B_i transposed; zero, so that training starts at the float weight.
        gate: gives g (N,), or (B, N) for one weight a sample.
    """

    def __init__(self, d_in: int, d_out: int, number: int, rank: int, gate: nn.Layer, rng: np.random.Generator) -> None:
        super().__init__()
        bound = d_in**-0.5  # Kaiming uniform: sqrt(6 / ((1 + a²) fan_in)) with a² = 5
        draws = rng.uniform(-bound, bound, (number, rank, d_in)).astype(np.float32)
        self.A = self.create_parameter([number, rank, d_in], default_initializer=nn.initializer.Assign(draws))
        self.B = self.create_parameter([number, rank, d_out], default_initializer=nn.initializer.Constant(0.0))
        self.gate = gate

    @property
    def number(self) -> int:
        return self.A.shape[0]

    @property
    def needs_token_mean(self) -> bool:
        return self.gate.needs_token_mean

    @property
    def per_sample(self) -> bool:
        return self.needs_token_mean and self.gate.per_sample

    def factors(self) -> Dict[str, paddle.Tensor]:
        """The trained parameters that are not the gate's."""
        return {"A": self.A, "B": self.B}

    def nearest(self, increment: np.ndarray) -> np.ndarray:
        """The best approximation of float (d_in, d_out) that the group can express, of rank N r."""
        count = self.A.shape[0] * self.A.shape[1]
        left, values, right = np.linalg.svd(increment, full_matrices=False)
        return (left * values)[:, :count] @ right[:count]

    def start_at(self, increment: np.ndarray) -> None:
        """Make ΔW, mixed by equal weights, :meth:`nearest` to float (d_in, d_out).

        The singular triples are dealt out in turn. Rows of A get the norm that their draws have (the mean square of a
        draw is 1/(3 d_in)), so that B learns as fast as from zero; where no triple is left, A and B stay.
        """
        number, rank, _ = self.A.shape
        left, values, right = np.linalg.svd(increment, full_matrices=False)
        A, B = self.A.numpy(), self.B.numpy()
        for i, value in enumerate(values[:number * rank]):
            A[i % number, i // number] = left[:, i] * 3**-0.5
            B[i % number, i // number] = right[i] * value * number * 3**0.5
        self.A.set_value(A)
        self.B.set_value(B)

    def forward(self, token_mean=None) -> paddle.Tensor:
        return self.increment(self.gate(token_mean))

    def increment(self, mixing: paddle.Tensor) -> paddle.Tensor:
        """Σ_i g_i (B_i A_i)ᵀ: (d_in, d_out) for g (N,), (B, d_in, d_out) for g (B, N).

        One matrix product: the N rectifiers side by side are one of rank N r.
        """
        number, rank, d_in = self.A.shape
        weighted = mixing.unsqueeze(-1).unsqueeze(-1) * self.B
        weighted = weighted.reshape(mixing.shape[:-1] + [number * rank, -1])
        return paddle.matmul(self.A.reshape([number * rank, d_in]), weighted, transpose_x=True)


class FullRankIncrement(nn.Layer):
    """ΔW itself [d_in, d_out] as a parameter, zero at the start: what a group of rectifiers could at best express."""

    number = 1
    needs_token_mean = False

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.delta = self.create_parameter([d_in, d_out], default_initializer=nn.initializer.Constant(0.0))

    def factors(self) -> Dict[str, paddle.Tensor]:
        """The trained parameters."""
        return {"delta": self.delta}

    def nearest(self, increment: np.ndarray) -> np.ndarray:
        """The increment itself: any can be expressed."""
        return increment

    def start_at(self, increment: np.ndarray) -> None:
        """Set ΔW to float (d_in, d_out)."""
        self.delta.set_value(increment.astype(np.float32))

    def forward(self, token_mean=None) -> paddle.Tensor:
        return self.delta


def rectified_tensors(tensors: Iterable[PlannedTensor], settings: RectifierConfig) -> List[PlannedTensor]:
    """The weights of a plan that get a group each.

    Raises:
        UserError: a full-rank increment is to be one of several, or no weight that takes rectifiers is quantized.
    """
    if settings.form == "full_rank" and settings.number != 1:
        raise UserError(f"rectifier.form: full_rank is one increment a layer, but rectifier.number is "
                        f"{settings.number}; set it to 1")
    rectified = [tensor for tensor in tensors if tensor.rectified]
    if not rectified:
        raise UserError("quant.overrides leave no weight to rectify: set rectifier.enabled to false")
    return rectified


def attach_rectifiers(student: nn.Layer, tensors: Iterable[PlannedTensor], settings: RectifierConfig,
                      seed: int) -> None:
    """Give every rectified layer of the plan its group. One rectifier (PQFR) needs no gate: its weight is 1.

    Args:
        settings: N, r, and how the group is mixed: ``gate`` is ``dynamic`` (paper) or ``static`` (the authors' released
            code). ``form: full_rank`` is a control, not the method: one trained increment a layer, neither factors nor
            gate.
        seed: of the draws of A.

    Raises:
        UserError: see :func:`rectified_tensors`.
    """
    rng = np.random.default_rng(seed)
    for tensor in rectified_tensors(tensors, settings):
        layer: QuantLinear = get_sublayer(student, tensor.layer)
        d_in, d_out = layer.weight.shape
        if settings.form == "full_rank":
            layer.weight_delta = FullRankIncrement(d_in, d_out)
            continue
        if settings.number > 1 and settings.gate == "dynamic":
            gate: nn.Layer = DynamicGate(d_in, settings.number, settings.per_sample)
        else:
            gate = uniform_gate(settings.number)
        layer.weight_delta = RectifierGroup(d_in, d_out, settings.number, settings.rank, gate, rng)


def rectifier_groups(model: nn.Layer) -> Dict[str, Union[RectifierGroup, FullRankIncrement]]:
    """Layer name -> what is trained in its place, in the order of the network."""
    return {name: layer.weight_delta for name, layer in model.named_sublayers()
            if isinstance(layer, QuantLinear) and isinstance(layer.weight_delta, (RectifierGroup, FullRankIncrement))}


def gated_groups(model: nn.Layer) -> Dict[str, RectifierGroup]:
    """Layer name -> its group, of the layers whose increment a gate mixes."""
    return {name: group for name, group in rectifier_groups(model).items() if isinstance(group, RectifierGroup)}


def freeze_gates(student: nn.Layer, batch: paddle.Tensor, space: str = "softmax") -> Dict[str, np.ndarray]:
    """Replace every dynamic gate by a static one at its mean weights over a calibration batch.

    This is "RGT without OSRC" at test time, and where OSRC starts. Static gates keep their weights; where there are no
    others nothing is run.

    Returns:
        Layer name -> the weights (N,).
    """
    seen: Dict[str, List[np.ndarray]] = {}
    groups = gated_groups(student)
    hooks = []
    dynamic = {name: group for name, group in groups.items() if group.needs_token_mean}
    for name, group in dynamic.items():
        def record(layer, inputs, output, name=name):
            seen.setdefault(name, []).append(output.numpy().reshape(-1, output.shape[-1]).mean(axis=0))
        hooks.append(group.gate.register_forward_post_hook(record))
    try:
        with paddle.no_grad():
            if dynamic:
                student(batch)
    finally:
        for hook in hooks:
            hook.remove()
    mean = {name: np.mean(seen[name], axis=0) if name in dynamic else group.gate().numpy() for name, group in groups.items()}
    for name, group in groups.items():
        group.gate = StaticGate(mean[name], space)
    return mean
