"""Reads Paddle's pickled ``.pdparams`` without executing anything from the file."""
from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any, Dict, Tuple, Union

import numpy as np

from ppsr2q.core.errors import UserError

_NAME_TABLE = "StructuredToParameterName@@"  # Paddle's map to its own parameter names


def _encode(text: str, encoding: str) -> bytes:
    """Stands in for ``codecs.encode``, with which protocol 2 writes bytes; any other codec is refused."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _allowed_globals() -> Dict[Tuple[str, str], Any]:
    # Asking numpy for the functions that its own pickles name works on numpy 1 and 2, which moved them.
    reconstruct = np.empty(1).__reduce__()[0]
    from_buffer = np.empty(1).__reduce_ex__(5)[0]
    scalar = np.float32(0).__reduce__()[0]
    allowed: Dict[Tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
                                           ("_codecs", "encode"): _encode,
                                           ("collections", "OrderedDict"): collections.OrderedDict}
    for core in ("numpy._core", "numpy.core"):
        allowed[f"{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"{core}.multiarray", "scalar"] = scalar
        allowed[f"{core}.numeric", "_frombuffer"] = from_buffer
    for builtins in ("builtins", "__builtin__"):
        for kind in (dict, list, tuple):
            allowed[builtins, kind.__name__] = kind
    return allowed


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")
        self._path = path
        self._allowed = _allowed_globals()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise UserError(f"{self._path}: refused, the file asks for {module}.{name}, which a file of "
                            "arrays does not need; do not load it with anything else")
        return self._allowed[module, name]


def read_pdparams(path: Union[str, Path]) -> Dict[str, np.ndarray]:
    """Arrays of a state dict that ``paddle.save`` wrote, by name, in the file's order.

    Paddle's name table is dropped; values are not checked for NaN.

    Raises:
        UserError: missing, empty or truncated file, not a pickle, not a dict of numeric arrays, or a pickle
            that asks for anything but numpy's own constructors and plain containers.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not content:
        raise UserError(f"{path}: empty file")
    try:
        state = _RestrictedUnpickler(content, path).load()
    except UserError:
        raise
    except Exception as error:  # a broken pickle can raise nearly everything
        raise UserError(f"{path}: truncated, damaged or not a .pdparams file ({error})") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, expected a dict of arrays")
    state.pop(_NAME_TABLE, None)
    for name, value in state.items():
        numeric = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        if not isinstance(name, str) or not numeric:
            kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
            raise UserError(f"{path}: {name!r} is {kind}, expected names with numeric arrays")
    return dict(state)
