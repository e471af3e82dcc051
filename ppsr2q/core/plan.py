"""The rules of a quantization plan as data: which tensors of a network get how many bits.

Nothing here knows a framework: a network is a mapping from the names of its layers to their kinds. ``quant.plan``
applies the rules to Paddle networks, ``deploy.packed`` to descriptions of them.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ppsr2q.core.errors import UserError

LINEAR, CONV, POINT = "Linear", "Conv2D", "QuantPoint"  # kinds of layers that can be quantized
MAX_BITS = 8
MAX_OVERRIDES, MAX_PATTERN = 1000, 200  # of a file: each costs a walk over all tensors


def _fits(parts: Sequence[str], pattern: Sequence[str], wildcard: str, fits_one) -> bool:
    """Whether ``parts`` fit ``pattern``, whose ``wildcard`` elements stand for any run of parts; linear in practice,
    at worst the product of both lengths, because only the last wildcard ever has to give way."""
    at, part, star, resume = 0, 0, None, 0
    while part < len(parts):
        if at < len(pattern) and pattern[at] == wildcard:
            star, resume, at = at, part, at + 1
        elif at < len(pattern) and fits_one(parts[part], pattern[at]):
            at, part = at + 1, part + 1
        elif star is not None:
            resume += 1
            at, part = star + 1, resume
        else:
            return False
    return all(element == wildcard for element in pattern[at:])


def _part_fits(part: str, pattern: str) -> bool:
    if "*" not in pattern:
        return part == pattern
    return pattern == "*" or _fits(part, pattern, "*", str.__eq__)


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name matches: ``*`` stands for anything within one part, a part ``**`` for one or more
    parts."""
    parts = _parts(pattern)
    if "*" not in parts[-1] and not name.endswith(parts[-1]):  # settles most of the many pairs at once
        return False
    return _fits(name.split("."), parts, "**", _part_fits)


@functools.lru_cache(maxsize=4096)
def _parts(pattern: str) -> Tuple[str, ...]:
    # one or more parts are one, then any number
    return tuple(element for part in pattern.split(".") for element in (("*", "**") if part == "**" else (part,)))


@dataclass(frozen=True)
class QuantizerOptions:
    """How every quantizer of a network holds its bounds.

    Attributes:
        zero_point: ``float``: a is free (the paper); ``integer``: a = -z s with a whole 0 <= z <= 2^n - 1, straight
            through the rounding, so that 0 is a level (to the last bit of a float32), as engines with integer zero points
            need it.
        parametrization: ``absolute``: (a, b) are trained (the paper); ``relative``: (a, b) / R0 are, R0 the width of
            the first bounds, so that one learning rate means the same for every tensor.
    """

    zero_point: str = "float"
    parametrization: str = "absolute"

    def __post_init__(self) -> None:
        if self.zero_point not in ("float", "integer") or self.parametrization not in ("absolute", "relative"):
            raise ValueError(f"unknown quantizer options: {self}")


@dataclass(frozen=True)
class PlanEntry:
    """A rule for all sublayers whose name matches ``pattern`` (see :func:`matches`).

    A Linear or Conv2D gets a weight and an input quantizer, a QuantPoint one.

    Attributes:
        rectifier: the weight gets a rectifier group (Linear only).
        one_sided: the range search may keep the lower bound (``dobi_mode: paper``).
        fixed: bounds that are neither searched nor trained.
        parameter: of a point through which a parameter passes unchanged, that parameter's name beside the points
            (its codes can be stored instead of its floats).
        source: of a point that sees a function of a parameter, that parameter's name beside the points (it can learn
            through the quantizer).
    """

    pattern: str
    rectifier: bool = False
    one_sided: bool = False
    fixed: Optional[Tuple[float, float]] = None
    parameter: Optional[str] = None
    source: Optional[str] = None


@dataclass(frozen=True)
class PlannedTensor:
    """One quantizer of a resolved plan.

    Attributes:
        name: ``<layer>.weight``, ``<layer>.input`` or the point's own name.
        layer: name of the sublayer that is replaced.
        role: ``weight``, ``input`` or ``point``.
        bits: 1 to 8, or None: left in floating point by an override.
        parameter: name of the parameter whose codes this quantizer makes, if any.
        source: name of the parameter that alone decides the quantized values, if any.
    """

    name: str
    layer: str
    role: str
    bits: Optional[int]
    entry: PlanEntry
    parameter: Optional[str]
    source: Optional[str] = None

    @property
    def rectified(self) -> bool:
        return self.entry.rectifier and self.role == "weight" and self.bits is not None


@dataclass(frozen=True)
class PlanRules:
    """Entries, the bits they get, exceptions, and how bounds are held.

    Attributes:
        overrides: pattern over tensor names -> bits, or None for floating point; the last match wins.
    """

    entries: Sequence[PlanEntry]
    bits: int = 4
    overrides: Mapping[str, Optional[int]] = field(default_factory=dict)
    options: QuantizerOptions = QuantizerOptions()

    def resolve_kinds(self, kinds: Mapping[str, str], network: str) -> List[PlannedTensor]:
        """The quantizers of a network in the order of its layers.

        Args:
            kinds: layer name -> LINEAR, CONV, POINT, or the name of a kind that cannot be quantized.
            network: what to call it in errors.

        Raises:
            UserError: an entry or override matches nothing, a layer is matched twice or is of no kind that can be
                quantized, or a rectifier is asked for where there is no Linear.
        """
        matched: Dict[str, PlanEntry] = {}
        for entry in self.entries:
            names = [name for name in kinds if matches(name, entry.pattern)]
            if not names:
                raise UserError(f"plan entry {entry.pattern!r} matches no layer of {network}")
            for name in names:
                if name in matched:
                    raise UserError(f"layer {name} is matched by two plan entries: {matched[name].pattern!r} and "
                                    f"{entry.pattern!r}")
                matched[name] = entry
        tensors = [tensor for name, kind in kinds.items() if name in matched
                   for tensor in _tensors(name, kind, matched[name], self.bits)]
        return _override(tensors, self.overrides)

    def describe(self) -> dict:
        """The rules as plain data, for files that a resolved network belongs to."""
        return {"entries": [vars(entry) for entry in self.entries], "bits": self.bits,
                "overrides": dict(self.overrides), "options": vars(self.options)}

    @classmethod
    def from_description(cls, description: Any, source: str) -> "PlanRules":
        """Inverse of :meth:`describe`, after a journey through JSON.

        Raises:
            UserError: anything but what ``describe`` gives, naming ``source`` (a file).
        """
        try:
            _expect_keys(description, ("entries", "bits", "overrides", "options"))
            entries, overrides = description["entries"], description["overrides"]
            if not isinstance(entries, list) or not isinstance(overrides, dict):
                raise ValueError("entries must be a list and overrides a mapping")
            if len(overrides) > MAX_OVERRIDES or any(len(pattern) > MAX_PATTERN for pattern in overrides):
                raise ValueError(f"at most {MAX_OVERRIDES} overrides of {MAX_PATTERN} characters are read")
            options = description["options"]
            _expect_keys(options, ("zero_point", "parametrization"))
            return cls([_entry(entry) for entry in entries], _bits(description["bits"], False),
                       {str(pattern): _bits(bits, True) for pattern, bits in overrides.items()},
                       QuantizerOptions(**options))
        except (ValueError, TypeError, OverflowError) as error:
            raise UserError(f"{source}: its quantization plan is not one that ppsr2q writes: {error}") from None


def _expect_keys(value: Any, keys: Sequence[str]) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"expected a mapping of {', '.join(keys)}")


def _bits(value: Any, optional: bool) -> Optional[int]:
    if value is None and optional:
        return None
    if type(value) is not int or not 1 <= value <= MAX_BITS:
        raise ValueError(f"bits must be 1 to {MAX_BITS}, got {value!r}")
    return value


def _entry(value: Any) -> PlanEntry:
    _expect_keys(value, ("pattern", "rectifier", "one_sided", "fixed", "parameter", "source"))
    texts = [value[key] for key in ("pattern", "parameter", "source") if key == "pattern" or value[key] is not None]
    if any(not isinstance(text, str) or len(text) > MAX_PATTERN for text in texts):
        raise ValueError(f"pattern, parameter and source of an entry must be text of at most {MAX_PATTERN} characters")
    if type(value["rectifier"]) is not bool or type(value["one_sided"]) is not bool:
        raise ValueError("rectifier and one_sided of an entry must be true or false")
    fixed = value["fixed"]
    if fixed is not None:
        lower, upper = fixed
        fixed = (float(lower), float(upper))
        if not -1e30 < fixed[0] < fixed[1] < 1e30:
            raise ValueError(f"fixed bounds must be finite and ordered, got {fixed}")
    return PlanEntry(**{**value, "fixed": fixed})


def _tensors(name: str, kind: str, entry: PlanEntry, bits: int) -> List[PlannedTensor]:
    if kind == POINT:
        if entry.rectifier:
            raise UserError(f"plan entry {entry.pattern!r}: a rectifier needs a Linear layer, {name} is a point")
        owner = name.rpartition(".points.")[0]
        parameter = f"{owner}.{entry.parameter}" if entry.parameter else None
        source = f"{owner}.{entry.source}" if entry.source else parameter
        return [PlannedTensor(name, name, "point", bits, entry, parameter, source)]
    if kind not in (LINEAR, CONV):
        raise UserError(f"plan entry {entry.pattern!r} matches {name}, a {kind}; only Linear, Conv2D and QuantPoint "
                        "can be quantized")
    if entry.rectifier and kind != LINEAR:
        raise UserError(f"plan entry {entry.pattern!r}: a rectifier needs a Linear layer, {name} is a Conv2D")
    weight = f"{name}.weight"
    return [PlannedTensor(weight, name, "weight", bits, entry, weight, weight),
            PlannedTensor(f"{name}.input", name, "input", bits, entry, None)]


def _override(tensors: List[PlannedTensor], overrides: Mapping[str, Optional[int]]) -> List[PlannedTensor]:
    for pattern, bits in overrides.items():
        if not any(matches(tensor.name, pattern) for tensor in tensors):
            raise UserError(f"override {pattern!r} (quant.overrides) matches no tensor of the plan; see --show-plan")
        tensors = [replace(t, bits=bits) if matches(t.name, pattern) else t for t in tensors]
    return tensors
