"""A thin builder of ONNX graphs: values are names, every method adds a node and returns its output's name."""
from __future__ import annotations

import hashlib
from typing import Dict, List, Optional, Sequence, Union

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17  # the first with LayerNormalization
DOMAIN = "ppsr2q"  # of operators that an extension has to bring
_IR_VERSION = 8  # that of opset 17: older engines read it too
Value = str
Operand = Union[Value, np.ndarray, float, int]


class GraphBuilder:
    """Collects nodes and initializers of one graph; ``prefix`` keeps the names of subgraphs apart.

    Operands may be values, arrays or numbers: arrays become initializers (equal ones only once), Python floats
    float32 and Python integers int64 scalars.
    """

    def __init__(self, prefix: str = "", parent: Optional["GraphBuilder"] = None) -> None:
        self.nodes: List[onnx.NodeProto] = []
        self._prefix = prefix
        self._root = parent._root if parent is not None else self
        if parent is None:
            self.initializers: Dict[str, onnx.TensorProto] = {}
            self._count = 0

    def constant(self, value: Operand) -> Value:
        """Name of an initializer with this value (subgraphs see those of the main graph)."""
        if isinstance(value, str):
            return value
        kind = {float: np.float32, int: np.int64}.get(type(value))
        array = np.asarray(value, kind)
        digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:16]
        name = f"constant_{digest}"
        if name not in self._root.initializers:
            self._root.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape),
                                                                    name)
        return name

    def add(self, operator: str, *operands: Operand, outputs: int = 1, domain: str = "", **attributes):
        """Add a node; returns its output, or a list where it has several."""
        self._root._count += 1
        stem = f"{self._prefix}{operator}_{self._root._count}"
        names = [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, [self.constant(x) for x in operands], names, name=stem,
                                           domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def subgraph(self, name: str) -> "GraphBuilder":
        """Builder of a body (of a Scan); finish it with :func:`body`."""
        return GraphBuilder(f"{self._prefix}{name}_", self)

    # ------------------------------------------------------------ shapes

    def reshape(self, x: Value, shape: Union[Value, Sequence[int]]) -> Value:
        return self.add("Reshape", x, shape if isinstance(shape, str) else np.array(shape, np.int64))

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        return self.add("Transpose", x, perm=list(order))

    def slice(self, x: Value, start: Operand, end: Operand, axis: int) -> Value:
        """x[start:end] along an axis; bounds are numbers or int64 [1] values."""
        bounds = [np.array([b], np.int64) if isinstance(b, int) else b for b in (start, end)]
        return self.add("Slice", x, *bounds, np.array([axis], np.int64))

    def roll(self, x: Value, shift: int, axes: Sequence[int]) -> Value:
        """``numpy.roll`` by ``shift`` along each of the axes."""
        end = np.iinfo(np.int64).max
        for axis in axes:
            x = self.add("Concat", self.slice(x, -shift, end, axis), self.slice(x, 0, -shift, axis), axis=axis)
        return x


def body(builder: GraphBuilder, inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.GraphProto:
    """The finished graph of a subgraph builder; all its values are float32."""
    def infos(names):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    return helper.make_graph(builder.nodes, builder._prefix.rstrip("_"), infos(inputs), infos(outputs))


def model(builder: GraphBuilder, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto],
          metadata: Dict[str, str]) -> onnx.ModelProto:
    """The checked model of the main graph."""
    graph = helper.make_graph(builder.nodes, "ppsr2q", inputs, outputs, list(builder.initializers.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == DOMAIN for node in builder.nodes):
        opsets.append(helper.make_opsetid(DOMAIN, 1))
    made = helper.make_model(graph, opset_imports=opsets, producer_name="ppsr2q", ir_version=_IR_VERSION)
    helper.set_model_props(made, metadata)
    onnx.checker.check_model(made)
    return made
