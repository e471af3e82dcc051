"""The packed model: a quantized network as one small file, and its reader for environments without Paddle.

A safetensors file of three tensors, whose parts follow each other without names:

* ``codes``, uint8: the codes of every coded tensor in the order of the plan. A tensor of n bits starts on a byte; its
  elements follow in C order, n bits each, the least significant bit first; the bits left in its last byte are 0.
* ``bounds``, float32: (a, b) of every quantizer in the order of the plan, those with fixed bounds left out.
* ``rest``, float32 or float16: every other parameter in the order of the network.

What lies where follows from the architecture (``architectures.py``) and the rules of the plan, which the metadata
hold; a hash of the resulting list refuses a file whose list this version would make differently. Where the codes of a
point say all that the network needs of some parameters (``Fold``), they are stored in the place of these parameters.
"""
from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike, load_artifact, save_artifact
from ppsr2q.core.plan import PlanRules
from ppsr2q.deploy.architectures import ARCHITECTURES, Description, Shape

PACKED_KIND = "packed model"
LAYOUT_VERSION = 1
REST_DTYPES = ("float32", "float16")
MAX_FILE_BYTES = 2**26  # far above any network described here; a file beyond it is not even read
_HEADER_KEY = "packed"


@dataclass(frozen=True)
class TensorQuantizer:
    """Eq. 1's parameters of one tensor: float32 values ``lower`` < ``upper``, codes 0 to 2^bits - 1."""

    bits: int
    lower: float
    upper: float

    @property
    def step(self) -> np.float32:
        """s = (b - a) / (2^n - 1), in float32 as everywhere."""
        return (np.float32(self.upper) - np.float32(self.lower)) / np.float32(2**self.bits - 1)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """r s + a as float32, each operation rounded (a kernel that fuses them may differ in the last bit)."""
        return codes.astype(np.float32) * self.step + np.float32(self.lower)


@dataclass(frozen=True)
class PackedModel:
    """A quantized network.

    Attributes:
        architecture: ``{"name": "mambairv2_light", "scale": 4}``.
        quantizers: by plan name (``….q.weight``, ``….q.input``, ``….win_mhsa.points.map``), those that quantize.
        codes: uint8, unpacked. By parameter name in Paddle's layout (``….q.weight``, ``….x_proj_weight``, whose
            quantizer is ``….points.x_proj_weight``) or, where parameters are folded, by the name of the point whose
            value they made: ``….selectiveScan.points.A`` (48, 8), ``….selectiveScan.points.dt_bias`` (48,) and
            ``….assm.points.prompt_table`` (64, 8) stand for ``A_logs``, ``dt_projs_bias`` and both embeddings.
        floats: every other parameter, float32.
        metadata: provenance (config, seed, hash of the full-precision weights) and ``plan``, the rules.
    """

    architecture: Dict[str, Any]
    quantizers: Dict[str, TensorQuantizer]
    codes: Dict[str, np.ndarray]
    floats: Dict[str, np.ndarray]
    metadata: Dict[str, Any]


def dequantized(model: PackedModel) -> Dict[str, np.ndarray]:
    """float32 values of everything in a model, by the names of :attr:`PackedModel.codes` and ``floats``."""
    layout = make_layout(model.architecture, model.metadata["plan"], "the packed model")
    coded = {t.name: model.quantizers[t.quantizer].dequantize(model.codes[t.name]) for t in layout.coded}
    return {**model.floats, **coded}


@dataclass(frozen=True)
class CodedTensor:
    """A run of the ``codes``: ``name`` as in :attr:`PackedModel.codes`, the plan name of its quantizer."""

    name: str
    quantizer: str
    shape: Shape
    bits: int
    negative: bool

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))

    @property
    def packed_bytes(self) -> int:
        return (self.elements * self.bits + 7) // 8


@dataclass(frozen=True)
class Layout:
    """What a packed file holds, in order.

    Attributes:
        bits: plan name -> bits of every quantizer that quantizes.
        fixed: plan name -> bounds that are not stored.
    """

    coded: Tuple[CodedTensor, ...]
    bits: Dict[str, int]
    fixed: Dict[str, Tuple[float, float]]
    rest: Dict[str, Shape]

    @property
    def stored_bounds(self) -> List[str]:
        return [name for name in self.bits if name not in self.fixed]

    def sha256(self) -> str:
        coded = [(t.name, t.quantizer, t.shape, t.bits) for t in self.coded]
        text = json.dumps([coded, list(self.bits.items()), sorted(self.fixed), list(self.rest.items())])
        return hashlib.sha256(text.encode()).hexdigest()


def describe(architecture: Any, source: str) -> Description:
    """The description of ``{"name", "scale"}``.

    Raises:
        UserError: naming ``source``; an architecture or scale that this version does not know.
    """
    known = {name: scales for name, (scales, _) in ARCHITECTURES.items()}
    whole = isinstance(architecture, dict) and set(architecture) == {"name", "scale"}
    name, scale = (architecture[key] if whole else None for key in ("name", "scale"))
    if not isinstance(name, str) or name not in known or type(scale) is not int or scale not in known[name]:
        choices = ", ".join(f"{name} x{scale}" for name, scales in known.items() for scale in scales)
        raise UserError(f"{source}: unknown architecture {str(architecture)[:100]}; known: {choices}")
    return ARCHITECTURES[name][1](scale)


def make_layout(architecture: Dict[str, Any], plan: Dict[str, Any], source: str) -> Layout:
    """The layout that follows from an architecture and a plan's description.

    Raises:
        UserError: naming ``source``; see :func:`describe` and ``PlanRules``.
    """
    describe(architecture, source)
    return _cached_layout(json.dumps(architecture), json.dumps(plan), source)


@functools.lru_cache(maxsize=8)  # the walk over all patterns and layers takes longer than the rest of reading
def _cached_layout(architecture: str, plan: str, source: str) -> Layout:
    architecture = json.loads(architecture)
    description = describe(architecture, source)
    rules = PlanRules.from_description(json.loads(plan), source)
    try:
        tensors = [t for t in rules.resolve_kinds(description.layers, architecture["name"]) if t.bits is not None]
    except UserError as error:
        raise UserError(f"{source}: its plan does not fit: {error}") from None
    folds = {t.name: description.folds[t.name] for t in tensors if t.name in description.folds}
    folded = {parameter for fold in folds.values() for parameter in fold.replaces}
    coded = []
    for tensor in tensors:
        if tensor.name in folds:
            fold = folds[tensor.name]
            coded.append(CodedTensor(tensor.name, tensor.name, fold.shape, tensor.bits, fold.negative))
        elif tensor.parameter is not None and tensor.parameter not in folded:
            if tensor.parameter not in description.parameters:
                raise UserError(f"{source}: its plan names {tensor.parameter}, which is no parameter")
            shape = description.parameters[tensor.parameter]
            coded.append(CodedTensor(tensor.parameter, tensor.name, shape, tensor.bits, False))
    names = [tensor.name for tensor in coded]
    if len(set(names)) != len(names):
        raise UserError(f"{source}: its plan quantizes one parameter twice")
    left = {n: shape for n, shape in description.parameters.items() if n not in folded and n not in set(names)}
    fixed = {t.name: t.entry.fixed for t in tensors if t.entry.fixed is not None}
    return Layout(tuple(coded), {t.name: t.bits for t in tensors}, fixed, left)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes of any shape, each below 2^bits -> uint8 (ceil(n bits / 8),), the least significant bit first."""
    if bits == 8:
        return codes.reshape(-1)
    planes = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(planes.reshape(-1), bitorder="little")


def unpack_codes(packed: np.ndarray, bits: int, elements: int) -> np.ndarray:
    """Inverse of :func:`pack_codes`: uint8 (elements,).

    Raises:
        ValueError: the bits behind the last code are not 0.
    """
    if bits == 8:
        return packed.copy()
    stream = np.unpackbits(packed, bitorder="little")
    if stream[elements * bits:].any():
        raise ValueError("bits behind the last code are set")
    planes = stream[:elements * bits].reshape(elements, bits)
    return np.packbits(planes, axis=1, bitorder="little").reshape(-1)


def write_packed(path: PathLike, model: PackedModel, rest_dtype: str = "float32") -> None:
    """Write a packed model, atomically.

    Args:
        rest_dtype: of everything that is not quantized, ``float32`` or ``float16``.

    Raises:
        UserError: the file cannot be written, or a parameter does not fit into float16.
        ValueError: codes, floats or quantizers that are not those of the architecture and plan.
    """
    layout = make_layout(model.architecture, model.metadata["plan"], str(path))
    _require_complete(model, layout)
    if rest_dtype not in REST_DTYPES:
        raise ValueError(f"rest_dtype must be one of {REST_DTYPES}, got {rest_dtype!r}")
    with np.errstate(over="ignore"):  # said below
        rest = np.concatenate([model.floats[name].reshape(-1) for name in layout.rest]).astype(rest_dtype)
    if not np.isfinite(rest).all():
        raise UserError(f"{path}: a parameter is not finite as {rest_dtype}; write it with float32")
    quantizers = [model.quantizers[name] for name in layout.stored_bounds]
    tensors = {"codes": np.concatenate([pack_codes(model.codes[t.name], t.bits) for t in layout.coded]
                                       or [np.empty(0, np.uint8)]),
               "bounds": np.array([(q.lower, q.upper) for q in quantizers], np.float32).reshape(-1), "rest": rest}
    header = {"version": LAYOUT_VERSION, "layout_sha256": layout.sha256()}
    save_artifact(path, tensors, PACKED_KIND,
                  {**model.metadata, "architecture": model.architecture, _HEADER_KEY: header})


def _require_complete(model: PackedModel, layout: Layout) -> None:
    found = {name: quantizer.bits for name, quantizer in model.quantizers.items()}
    if found != layout.bits:
        odd = sorted(set(found.items()) ^ set(layout.bits.items()))[0]
        raise ValueError(f"the quantizers are not those of the plan, first at {odd[0]}")
    shapes = {t.name: t.shape for t in layout.coded}
    for what, arrays, expected, dtype in (("codes", model.codes, shapes, np.uint8),
                                          ("floats", model.floats, layout.rest, np.float32)):
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            odd = sorted(set(found.items()) ^ set(expected.items()))[0]
            raise ValueError(f"the {what} are not those of the network, first at {odd[0]}")
        wrong = [name for name, array in arrays.items() if array.dtype != dtype]
        if wrong:
            raise ValueError(f"{what} must be {np.dtype(dtype).name}, {wrong[0]} is {arrays[wrong[0]].dtype}")
    for tensor in layout.coded:
        if model.codes[tensor.name].max() >= 2**tensor.bits:
            raise ValueError(f"{tensor.name}: a code needs more than {tensor.bits} bits")


def read_packed(path: PathLike) -> PackedModel:
    """Read and check a packed model.

    Raises:
        UserError: naming the file and what is wrong with it: missing, damaged, truncated or oversized, another kind or
            version, arrays of a wrong length or type, values that are not finite, bounds that are not ordered, codes
            that no network could have.
    """
    path = Path(path)
    _require_small(path)
    artifact = load_artifact(path, PACKED_KIND)
    metadata = artifact.metadata
    if not {"architecture", "plan", _HEADER_KEY} <= set(metadata):
        raise UserError(f"{path}: damaged, its metadata do not name architecture and plan")
    metadata = dict(metadata)
    header, architecture = metadata.pop(_HEADER_KEY), metadata.pop("architecture")
    if not isinstance(header, dict) or type(header.get("version")) is not int:
        raise UserError(f"{path}: damaged, its version is missing")
    if header["version"] != LAYOUT_VERSION:
        raise UserError(f"{path}: packed by another version of ppsr2q (layout {header['version']}, this one reads "
                        f"{LAYOUT_VERSION}); export it again")
    layout = make_layout(architecture, metadata["plan"], str(path))
    if header.get("layout_sha256") != layout.sha256():
        raise UserError(f"{path}: made for another network than {architecture['name']} x{architecture['scale']} is in "
                        "this version of ppsr2q; export it again")
    tensors = artifact.tensors
    _require_tensors(path, tensors, layout)
    quantizers = _read_quantizers(path, tensors["bounds"], layout)
    codes = _read_codes(path, tensors["codes"], layout, quantizers)
    return PackedModel(architecture, quantizers, codes, _read_floats(path, tensors["rest"], layout), metadata)


def _require_small(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        return  # load_artifact says what is wrong
    if size > MAX_FILE_BYTES:
        raise UserError(f"{path}: {size:,} bytes are too many for a packed model (at most {MAX_FILE_BYTES:,})")


def _require_tensors(path: Path, tensors: Dict[str, np.ndarray], layout: Layout) -> None:
    lengths = {"codes": sum(t.packed_bytes for t in layout.coded), "bounds": 2 * len(layout.stored_bounds),
               "rest": sum(int(np.prod(shape)) for shape in layout.rest.values())}
    if set(tensors) != set(lengths):
        raise UserError(f"{path}: holds tensors {', '.join(sorted(tensors)[:5])}; expected {', '.join(lengths)}")
    for name, dtypes in (("codes", ("uint8",)), ("bounds", ("float32",)), ("rest", REST_DTYPES)):
        array = tensors[name]
        if array.shape != (lengths[name],) or array.dtype.name not in dtypes:
            raise UserError(f"{path}: {name} is {array.dtype.name} {list(array.shape)}, expected "
                            f"{' or '.join(dtypes)} [{lengths[name]}]")


def _read_quantizers(path: Path, bounds: np.ndarray, layout: Layout) -> Dict[str, TensorQuantizer]:
    stored = dict(zip(layout.stored_bounds, bounds.reshape(-1, 2).tolist()))
    quantizers = {}
    for name, bits in layout.bits.items():
        quantizer = TensorQuantizer(bits, *(stored.get(name) or layout.fixed[name]))
        with np.errstate(over="ignore", invalid="ignore"):
            usable = quantizer.lower < quantizer.upper and 0 < quantizer.step < np.inf
        if not usable:  # NaN is not in any order
            raise UserError(f"{path}: bounds of {name} are not finite and ordered: {quantizer.lower:g}, "
                            f"{quantizer.upper:g}")
        quantizers[name] = quantizer
    return quantizers


def _read_codes(path: Path, packed: np.ndarray, layout: Layout,
                quantizers: Dict[str, TensorQuantizer]) -> Dict[str, np.ndarray]:
    codes, start = {}, 0
    for tensor in layout.coded:
        run = packed[start:start + tensor.packed_bytes]
        start += tensor.packed_bytes
        try:
            values = unpack_codes(run, tensor.bits, tensor.elements).reshape(tensor.shape)
        except ValueError as error:
            raise UserError(f"{path}: codes of {tensor.name} are damaged, {error}") from None
        if tensor.negative and not has_negative_cells(values, quantizers[tensor.quantizer]):
            raise UserError(f"{path}: codes of {tensor.name} stand for positive numbers, expected negative ones")
        codes[tensor.name] = values
    return codes


def has_negative_cells(codes: np.ndarray, quantizer: TensorQuantizer) -> bool:
    """Whether every code may have come from a negative number: code 0 always may, code r > 0 if the threshold below
    it, a + (r - 1/2) s, is negative."""
    highest = int(codes.max())
    return highest == 0 or quantizer.lower + (highest - 0.5) * float(quantizer.step) < 0


def _read_floats(path: Path, rest: np.ndarray, layout: Layout) -> Dict[str, np.ndarray]:
    if not np.isfinite(rest).all():
        raise UserError(f"{path}: NaN or infinite values in rest")
    values, floats, start = rest.astype(np.float32), {}, 0
    for name, shape in layout.rest.items():
        elements = int(np.prod(shape))
        floats[name] = values[start:start + elements].reshape(shape).copy()
        start += elements
    return floats
