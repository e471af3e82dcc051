"""Test sets of paired images, and the split of a training folder."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike
from ppsr2q.data.bicubic import crop_to_multiple, downsample
from ppsr2q.data.image_io import is_image_name, list_images, read_rgb8

HR_FOLDERS = ("HR", "GTmod12", "original")  # this project's layout, BasicSR's, KAIR's
VALIDATION_EVERY = 20
#: Small test sets: every fifth image (the 5th, 10th, ... by sorted name) of a benchmark, where no folder of that name is.
SUBSETS = {"B20": "B100", "Urban20": "Urban100"}
SUBSET_EVERY = 5


@dataclass
class Pair:
    """One test image: ``lr`` uint8 (h, w, 3) and ``hr`` uint8 (h * scale, w * scale, 3), RGB."""

    name: str
    hr: np.ndarray
    lr: np.ndarray


class TestSet:
    """The pairs of one benchmark, read one at a time in the order of their names.

    Layout: ``<root>/<name>/HR/*`` (or ``GTmod12``, ``original``) and, optionally,
    ``<root>/<name>/LR_bicubic/X<scale>/`` with ``<stem>x<scale>.<ext>`` or ``<stem>.<ext>``. Without the LR
    folder the LR images are made in memory by MATLAB's bicubic. ``B20`` and ``Urban20`` are read from ``B100`` and
    ``Urban100`` (:data:`SUBSETS`).

    Raises:
        UserError: no images, or an LR folder whose files do not pair with the HR ones; while iterating,
            damaged files or sizes that do not fit.
    """

    __test__ = False  # not a pytest class

    def __init__(self, root: PathLike, name: str, scale: int):
        self.name = name
        self.scale = scale
        source = source_of(root, name)
        self.hr_folder = find_hr_folder(root, source)
        self.lr_folder: Optional[Path] = lr_folder_of(root, source, scale)
        hr = files_by_stem(self.hr_folder)
        if not hr:
            raise UserError(f"{self.hr_folder}: no images (PNG, JPEG, WebP, BMP or TIFF) in this test set")
        lr: Dict[str, Path] = {}
        if self.lr_folder.is_dir():
            lr, missing, extra = pair_lr(hr, self.lr_folder, scale)
            if missing or extra:
                raise UserError(unpaired_message(self.lr_folder, missing, extra))
        else:
            self.lr_folder = None
        self._files = [(stem, hr[stem], lr.get(stem)) for stem in sorted(hr)]
        if source != name:
            self._files = self._files[SUBSET_EVERY - 1::SUBSET_EVERY]
            if not self._files:
                raise UserError(f"{self.hr_folder}: {len(hr)} images; {self.name} is every fifth of at least five")

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Pair]:
        for stem, hr_path, lr_path in self._files:
            yield read_pair(stem, hr_path, lr_path, self.scale)


def read_pair(name: str, hr_path: Path, lr_path: Optional[Path], scale: int) -> Pair:
    """Read one pair, HR cropped at the bottom and right to LR * scale; no ``lr_path``: LR is made from HR.

    Raises:
        UserError: a damaged file, an HR image smaller than ``scale``, or sizes that do not fit.
    """
    hr = read_rgb8(hr_path)
    height, width = hr.shape[0] // scale, hr.shape[1] // scale
    if not height or not width:
        raise UserError(f"{hr_path}: {hr.shape[1]}x{hr.shape[0]} pixels (WxH) are too few for scale {scale}")
    hr = np.ascontiguousarray(crop_to_multiple(hr, scale))
    if lr_path is None:
        return Pair(name, hr, downsample(hr, scale))
    lr = read_rgb8(lr_path)
    if lr.shape[:2] != (height, width):
        raise UserError(
            f"{lr_path}: {lr.shape[1]}x{lr.shape[0]} pixels (WxH); expected {width}x{height}, "
            f"1/{scale} of {hr_path}"
        )
    return Pair(name, hr, lr)


def source_of(root: PathLike, name: str) -> str:
    """The test set that holds the images of ``name``: the larger one, where ``name`` is a subset without a folder."""
    return name if (Path(root) / name).is_dir() else SUBSETS.get(name, name)


def find_hr_folder(root: PathLike, name: str) -> Path:
    """The folder with the ground truth of test set ``name``; UserError naming what was looked for."""
    candidates = [Path(root) / name / folder for folder in HR_FOLDERS]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise UserError(f"test set {name!r} not found: expected its images in {candidates[0]}")


def lr_folder_of(root: PathLike, name: str, scale: int) -> Path:
    """Where the LR images of a test set lie, or would."""
    return Path(root) / name / "LR_bicubic" / f"X{scale}"


def files_by_stem(folder: Path) -> Dict[str, Path]:
    """{name without extension: path} of the images in ``folder``; UserError when two files share a stem."""
    files: Dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in files:
            raise UserError(f"{path} and {files[path.stem].name}: two images of one name; remove one of them")
        files[path.stem] = path
    return files


def pair_lr(hr: Dict[str, Path], folder: Path, scale: int) -> Tuple[Dict[str, Path], List[str], List[str]]:
    """Pair the files of an LR folder with HR stems.

    Returns:
        ({HR stem: LR path}, HR stems without an LR file, names of LR files that belong to no HR image).
    """
    pairs: Dict[str, Path] = {}
    extra = []
    suffix = f"x{scale}"
    for stem, path in files_by_stem(folder).items():
        plain = stem[: -len(suffix)] if stem.endswith(suffix) else stem
        owner = plain if plain in hr else stem
        if owner in hr and owner not in pairs:
            pairs[owner] = path
        else:
            extra.append(path.name)
    return pairs, sorted(set(hr) - set(pairs)), sorted(extra)


def unpaired_message(folder: Path, missing: List[str], extra: List[str]) -> str:
    """What to tell a user whose LR folder does not match the HR one."""
    parts = []
    if missing:
        parts.append(f"no LR file for {shortened(missing)}")
    if extra:
        parts.append(f"no HR image for {shortened(extra)}")
    advice = "Complete the folder, or remove it to have the LR images made in memory"
    return f"{folder}: {'; '.join(parts)}. {advice}"


def shortened(names: List[str], limit: int = 8) -> str:
    """At most ``limit`` names, then how many more there are."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _images_below(folder: Path) -> Iterator[Path]:
    """Of linked subfolders too (DF2K is two folders linked into one), not of hidden ones, of none twice."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        for path in (Path(parent, name) for name in files if real not in seen):
            if is_image_name(path) and path.is_file():
                yield path
        seen.add(real)


def training_split(folder: PathLike) -> Tuple[List[Path], List[Path]]:
    """Split the images below ``folder`` (at any depth) into training and validation files.

    The files are sorted by their path relative to ``folder``, written with forward slashes; the 20th, 40th,
    ... (indices 19, 39, ...) are for validation. A folder of fewer than 20 images gives its last one to
    validation.

    Raises:
        UserError: no such folder, or fewer than two images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of training images, found none")
    paths = sorted(_images_below(folder), key=lambda path: path.relative_to(folder).as_posix())
    if len(paths) < 2:
        raise UserError(f"{folder}: {len(paths)} image(s) found; at least 2 are needed, one to validate")
    if len(paths) < VALIDATION_EVERY:
        return paths[:-1], paths[-1:]
    chosen = set(range(VALIDATION_EVERY - 1, len(paths), VALIDATION_EVERY))
    train = [path for index, path in enumerate(paths) if index not in chosen]
    return train, [paths[index] for index in sorted(chosen)]
