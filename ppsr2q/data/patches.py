"""Random training patches that depend on (seed, iteration, sample) alone, and fixed validation crops."""
from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.data.bicubic import crop_to_multiple, downsample
from ppsr2q.data.image_io import read_rgb8


class PatchSampler:
    """Cuts random LR patches, and the HR patches that belong to them, out of a list of images.

    Stateless: sample ``k`` of iteration ``i`` is a function of (seed, i, k), so a resumed run sees what an
    uninterrupted one sees, and processes that share a batch need not talk. The image is drawn uniformly, then
    the position, then one of the 8 symmetries of the square. LR patches are cut from MATLAB's bicubic of the
    whole image: resizing a crop would invent borders.

    Args:
        paths: image files; each must be at least ``scale * lr_patch`` on both sides.
        scale: super-resolution factor.
        lr_patch: side of the LR patches in pixels.
        seed: of the run, not negative.
        augment: draw one of the 8 flips and rotations.
        with_hr: also give the HR patches (full-precision training needs them, calibration does not).
        cache_bytes: limit of the decoded images kept in memory; the least recently used go first.

    Raises:
        UserError: no images; when it is drawn, an image that is too small or unreadable.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        scale: int,
        lr_patch: int,
        seed: int,
        augment: bool = True,
        with_hr: bool = False,
        cache_bytes: int = 1 << 30,
    ):
        if not paths:
            raise UserError("no training images given, expected at least one")
        self.paths = list(paths)
        self.scale = scale
        self.lr_patch = lr_patch
        self.seed = seed
        self.augment = augment
        self.with_hr = with_hr
        self.cache_bytes = cache_bytes
        self._cache: "OrderedDict[int, Tuple[np.ndarray, Optional[np.ndarray]]]" = OrderedDict()
        self._cached_bytes = 0

    def batch(self, iteration: int, start: int, count: int) -> Dict[str, np.ndarray]:
        """Samples ``start`` to ``start + count - 1`` of an iteration.

        Returns:
            ``{"lr": float32 (count, 3, p, p)}`` in [0, 1], with ``with_hr`` also ``"hr"`` (count, 3, sp, sp).
        """
        samples = [self._sample(iteration, index) for index in range(start, start + count)]
        result = {"lr": to_batch([lr for lr, _ in samples])}
        if self.with_hr:
            result["hr"] = to_batch([hr for _, hr in samples])
        return result

    def _sample(self, iteration: int, index: int) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        rng = np.random.default_rng([self.seed, iteration, index])
        lr, hr = self._image(int(rng.integers(len(self.paths))))
        top = int(rng.integers(lr.shape[0] - self.lr_patch + 1))
        left = int(rng.integers(lr.shape[1] - self.lr_patch + 1))
        symmetry = int(rng.integers(8)) if self.augment else 0
        lr_patch = dihedral(_cut(lr, top, left, self.lr_patch, 1), symmetry)
        if hr is None:
            return lr_patch, None
        return lr_patch, dihedral(_cut(hr, top, left, self.lr_patch, self.scale), symmetry)

    def _image(self, index: int) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """uint8 (LR, HR or None) of one file, from the cache when it is there."""
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        hr, lr = _read_whole(self.paths[index], self.scale, self.lr_patch)
        entry = (lr, hr if self.with_hr else None)
        self._cache[index] = entry
        self._cached_bytes += _entry_bytes(entry)
        while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _entry_bytes(dropped)
        return entry


def validation_crops(
    paths: Sequence[Path], scale: int, lr_patch: int, count: int
) -> Tuple[np.ndarray, np.ndarray]:
    """Centre crops of at most ``count`` images, spread evenly over ``paths``.

    Returns:
        float32 LR (n, 3, p, p) and HR (n, 3, sp, sp) in [0, 1], n = min(count, len(paths)).

    Raises:
        UserError: no images, or images that are too small (named) or unreadable.
    """
    if not paths:
        raise UserError("no validation images given, expected at least one")
    number = min(count, len(paths))
    chosen = [paths[index * len(paths) // number] for index in range(number)]
    low: List[np.ndarray] = []
    high: List[np.ndarray] = []
    for path in chosen:
        hr, lr = _read_whole(path, scale, lr_patch)
        top, left = (lr.shape[0] - lr_patch) // 2, (lr.shape[1] - lr_patch) // 2
        low.append(_cut(lr, top, left, lr_patch, 1))
        high.append(_cut(hr, top, left, lr_patch, scale))
    return to_batch(low), to_batch(high)


def dihedral(image: np.ndarray, symmetry: int) -> np.ndarray:
    """One of the 8 symmetries of the square (0 is the identity) applied to an (H, W, C) image."""
    if symmetry & 1:
        image = image[:, ::-1]
    if symmetry & 2:
        image = image[::-1]
    return image.swapaxes(0, 1) if symmetry & 4 else image


def to_batch(images: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 (H, W, 3) images of one size -> float32 (N, 3, H, W) in [0, 1]."""
    stacked = np.stack(images).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked, np.float32) / np.float32(255.0)


def _read_whole(path: Path, scale: int, lr_patch: int) -> Tuple[np.ndarray, np.ndarray]:
    hr = np.ascontiguousarray(crop_to_multiple(read_rgb8(path), scale))
    height, width, side = *hr.shape[:2], scale * lr_patch
    if min(height, width) < side:
        raise UserError(f"{path}: {width} x {height} pixels, smaller than a patch of {side} x {side}; take it out of the "
                        "folder or choose a smaller lr_patch")
    return hr, downsample(hr, scale)


def _cut(image: np.ndarray, top: int, left: int, side: int, scale: int) -> np.ndarray:
    return image[top * scale : (top + side) * scale, left * scale : (left + side) * scale]


def _entry_bytes(entry: Tuple[np.ndarray, Optional[np.ndarray]]) -> int:
    return sum(array.nbytes for array in entry if array is not None)
