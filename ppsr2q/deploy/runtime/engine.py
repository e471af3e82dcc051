"""A packed model, ready to run."""
from __future__ import annotations

import ctypes
from typing import List, Optional, Tuple

import numpy as np

from ppsr2q.core.environment import require_memory
from ppsr2q.core.errors import UserError
from ppsr2q.deploy.images import checked
from ppsr2q.deploy.packed import PackedModel
from ppsr2q.deploy.runtime import library
from ppsr2q.deploy.threads import checked_threads

MAX_SIDE = 2**15  # of an image; larger ones are work for tiling long before
BYTES_PER_PIXEL = 1800  # of working memory: the most that planes of any plan take
LAYER_CHANNELS, WINDOW, LAYERS = 48, 16, 20

# Status codes of the C interface (ops/csrc/status.h).
_OUT_OF_MEMORY = -1
_NO_THREADS = -4


class Runtime:
    """Runs a packed model on the CPU with integer arithmetic where factors are quantized.

    Any number of Python threads may call one object at the same time; the GIL is released meanwhile, and each call
    starts ``threads`` threads of its own. Results do not depend on their number.

    Args:
        model: from :func:`ppsr2q.deploy.packed.read_packed`.
        threads: of one call; default: all processors that this process may use.
        instruction_set: a name of ``library.instruction_sets()``; default: the best one of this processor.
        source: what to call the model in errors.

    Attributes:
        scale: of the enlargement.
        threads: of one call.
        instruction_set: what the library was compiled for.

    Raises:
        UserError: threads out of range, instructions that this processor does not run, no compiler to build the
            library with, a model that does not fit.
    """

    def __init__(self, model: PackedModel, threads: Optional[int] = None,
                 instruction_set: Optional[str] = None, source: str = "the packed model") -> None:
        self.scale: int = model.architecture["scale"]
        self.threads = checked_threads(threads)
        self.instruction_set = library.chosen_set(instruction_set)
        self._library = library.load_library(self.instruction_set)
        self._network = self._create(model, source)

    def _create(self, model: PackedModel, source: str) -> int:
        parameters, kept = _parameters(model)
        quantizers = (library.QuantizerBounds * len(model.quantizers))(
            *(library.QuantizerBounds(name.encode(), q.bits, q.lower, q.upper) for name, q in model.quantizers.items()))
        message = ctypes.create_string_buffer(512)
        network = self._library.ppsr2q_runtime_create(parameters, len(parameters), quantizers, len(quantizers),
                                                      self.scale, message, len(message))
        del kept  # the library has copied them
        if not network:
            raise UserError(f"{source} does not fit the runtime: {message.value.decode()}")
        return network

    def __del__(self) -> None:
        if getattr(self, "_network", None):
            self._library.ppsr2q_runtime_destroy(self._network)

    def upscale(self, image: np.ndarray) -> np.ndarray:
        """Super-resolve.

        Args:
            image: float32 (h, w, 3), RGB in [0, 1], any h and w from 1. Memory grows with h w (about 1.8 kB a pixel):
                ``evaluation.tiling.run_tiled`` bounds it.

        Returns:
            float32 (scale h, scale w, 3), not clamped.

        Raises:
            ValueError: another type or shape, or values that are not finite.
            UserError: more pixels than memory holds, or more threads than the system gives.
        """
        image = checked(image)
        height, width = image.shape[:2]
        if max(height, width) > MAX_SIDE:
            raise UserError(f"image sides must be at most {MAX_SIDE}, got {width} x {height}; use tiles (predict --tile)")
        require_memory(BYTES_PER_PIXEL * _padded(height) * _padded(width) + 12 * self.scale**2 * height * width,
                       f"an image of {width} x {height} pixels")
        result = np.empty((self.scale * height, self.scale * width, 3), np.float32)
        self._check(self._library.ppsr2q_runtime_upscale(self._network, image.ctypes.data, height, width,
                                                         self.threads, result.ctypes.data))
        return result

    def run_layer(self, index: int, tokens: np.ndarray) -> np.ndarray:
        """One AttentiveLayer alone, for comparisons with the network in Paddle.

        Args:
            index: 0 to 19.
            tokens: float32 (H, W, 48), H and W multiples of 16.

        Returns:
            float32 (H, W, 48).
        """
        tokens = checked(tokens, "tokens", LAYER_CHANNELS).copy()
        height, width = tokens.shape[:2]
        if not 0 <= index < LAYERS or height % WINDOW or width % WINDOW:
            raise ValueError(f"expected a layer from 0 to {LAYERS - 1} and sides that are multiples of {WINDOW}, got "
                             f"layer {index} and {width} x {height}")
        self._check(self._library.ppsr2q_runtime_run_layer(self._network, index, height, width, self.threads,
                                                           tokens.ctypes.data))
        return tokens

    def _check(self, status: int) -> None:
        if status == _OUT_OF_MEMORY:
            raise UserError("not enough memory for an image of this size: use tiles (predict --tile)")
        if status == _NO_THREADS:
            raise UserError(f"the system does not give {self.threads} threads; ask for fewer")
        if status:
            raise RuntimeError(f"the integer runtime failed with status {status}")


def _padded(size: int) -> int:
    return -(-size // WINDOW) * WINDOW


def _parameters(model: PackedModel) -> Tuple[ctypes.Array, List[np.ndarray]]:
    """The C array of all parameters and points with codes, and the arrays that it points into."""
    kept, entries = [], []
    for arrays, dtype in ((model.floats, np.float32), (model.codes, np.uint8)):
        for name, array in arrays.items():
            array = np.ascontiguousarray(array, dtype)
            kept.append(array)
            values, codes = (array.ctypes.data, None) if dtype is np.float32 else (None, array.ctypes.data)
            entries.append(library.Parameter(name.encode(), values, codes, array.size))
    return (library.Parameter * len(entries))(*entries), kept
