"""What a plan costs: parameters, bytes and multiply-accumulates, and the plan as a table.

Conventions of 2DQuant and SPR²Q's Table 4: a b-bit weight counts b/32 of a float, a multiply-accumulate whose two
factors have at most b bits counts b/32, everything else counts whole.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Sequence

from paddle import nn

from ppsr2q.quant.plan import PlannedTensor

MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Totals: parameters and bytes of the weights, multiply-accumulates as counted and weighted by bits."""

    parameters: int
    quantized_parameters: int
    size_bytes: float
    macs: int
    quantized_macs: int
    weighted_macs: float

    @property
    def size_mib(self) -> float:
        return self.size_bytes / MIB


def parameter_sizes(model: nn.Layer) -> Dict[str, int]:
    """Elements of every parameter of the full-precision model."""
    return {name: int(parameter.size) for name, parameter in model.named_parameters()}


def operation_bits(operation, bits: Dict[str, Optional[int]]) -> Optional[int]:
    """Bits of an operation: the larger of its operands' when all are quantized, else None."""
    operands = [bits.get(name) for name in operation.operands]
    return max(operands) if operands and None not in operands else None


def count(sizes: Dict[str, int], operations: Iterable, tensors: Sequence[PlannedTensor]) -> Cost:
    """Totals of a network under a plan.

    Args:
        sizes: :func:`parameter_sizes`.
        operations: ``model.operations(h, w)``.
        tensors: the resolved plan; an empty list counts the full-precision network.
    """
    weight_bits = {t.parameter: t.bits for t in tensors if t.parameter and t.bits}
    bits = {t.name: t.bits for t in tensors}
    size = sum(n * weight_bits.get(name, 32) / 8 for name, n in sizes.items())
    macs, quantized, weighted = 0, 0, 0.0
    for operation in operations:
        low = operation_bits(operation, bits)
        macs += operation.macs
        quantized += operation.macs if low else 0
        weighted += operation.macs * (low or 32) / 32
    return Cost(sum(sizes.values()), sum(sizes[name] for name in weight_bits), size, macs, quantized, weighted)


def _family(name: str) -> str:
    return re.sub(r"(?<=layers\.)\d+", "*", name)


def plan_table(sizes: Dict[str, int], operations: Iterable, tensors: Sequence[PlannedTensor],
               rectifiers: bool = True) -> str:
    """The plan as text: one line for tensors that differ only in the number of their layer, then the totals.

    Parameters and bytes stand with the weight that they belong to, multiply-accumulates with the first factor of
    the product. Without ``rectifiers`` no tensor gets the one that the plan has for it.
    """
    operations = list(operations)
    macs: Dict[str, int] = {}
    for operation in operations:
        if operation.operands:
            macs[operation.operands[0]] = macs.get(operation.operands[0], 0) + operation.macs
    rows: Dict[tuple, List[int]] = {}
    for tensor in tensors:
        key = (_family(tensor.name), tensor.bits, rectifiers and tensor.rectified)
        row = rows.setdefault(key, [0, 0, 0, 0])
        parameters = sizes.get(tensor.parameter, 0)
        for i, value in enumerate((1, parameters, macs.get(tensor.name, 0), parameters * (tensor.bits or 32) // 8)):
            row[i] += value
    width = max(len(key[0]) for key in rows)
    lines = [f"{'tensor':<{width}} {'count':>5} {'bits':>4} {'rectifier':>9} {'parameters':>10} {'MMACs':>9} {'bytes':>8}"]
    for (name, bits, rectified), (number, parameters, mac, size) in rows.items():
        lines.append(f"{name:<{width}} {number:>5} {bits or 'fp':>4} {'yes' if rectified else '-':>9} "
                     f"{parameters or '-':>10} {f'{mac / 1e6:.1f}' if mac else '-':>9} {size or '-':>8}")
    full, low = count(sizes, operations, []), count(sizes, operations, tensors)
    lines += ["", f"quantizers       {sum(t.bits is not None for t in tensors)}",
              f"parameters       {full.parameters:,} of which {low.quantized_parameters:,} quantized",
              f"size             {full.size_mib:.3f} MiB in float32, {low.size_mib:.3f} MiB as planned",
              f"MACs             {full.macs / 1e9:.2f} G, {low.quantized_macs / full.macs:.1%} of them low-bit; "
              f"weighted by bits/32: {low.weighted_macs / 1e9:.2f} G"]
    return "\n".join(lines)
