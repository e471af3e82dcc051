"""What is in a data folder, what is damaged or missing, and the LR images that can be made."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from ppsr2q.core.errors import UserError
from ppsr2q.core.files import PathLike
from ppsr2q.data.datasets import (
    files_by_stem, find_hr_folder, lr_folder_of, pair_lr, read_pair, source_of, training_split, unpaired_message,
)
from ppsr2q.data.image_io import read_rgb8, write_rgb8

BENCHMARKS = {"Set5": 5, "Set14": 14, "B100": 100, "Urban100": 100, "Manga109": 109}

OnFile = Callable[[Path], None]


@dataclass
class SetReport:
    """One test set: images found and expected (None: not a known benchmark), LR state per scale, problems."""

    name: str
    found: int = 0
    expected: Optional[int] = None
    lr: Dict[int, str] = field(default_factory=dict)
    problems: List[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One line for people."""
        if not self.found:
            return "not there"
        count = f"{self.found} images" if self.expected is None else f"{self.found} of {self.expected} images"
        return "; ".join([count] + [f"LR x{scale} {state}" for scale, state in self.lr.items()])


@dataclass
class TrainingReport:
    """The training folder: numbers of files in its two parts, megapixels of the readable ones, problems."""

    folder: str
    train: int = 0
    validation: int = 0
    megapixels: float = 0.0
    problems: List[str] = field(default_factory=list)


@dataclass
class DataReport:
    """What :func:`prepare_data` found."""

    root: str
    sets: List[SetReport]
    training: Optional[TrainingReport] = None

    @property
    def problems(self) -> List[str]:
        """Everything that needs a hand; a benchmark that is not there is none, unless all are missing."""
        lines = [line for report in self.sets for line in report.problems]
        if not any(report.found for report in self.sets) and not lines:
            lines.append(f"{self.root}: holds none of the test sets {', '.join(report.name for report in self.sets)}; "
                         f"expected folders like {self.root}/{self.sets[0].name}/HR")
        return lines + (self.training.problems if self.training else [])

    def __str__(self) -> str:
        width = max(len(report.name) for report in self.sets) if self.sets else 0
        lines = [f"test sets in {self.root}:"]
        lines += [f"  {report.name:<{width}}  {report.state}" for report in self.sets]
        if self.training:
            lines.append(
                f"training images in {self.training.folder}: {self.training.train}, for validation "
                f"{self.training.validation}; {self.training.megapixels:.1f} megapixels"
            )
        lines += ["problems:"] + [f"  {line}" for line in self.problems] if self.problems else ["no problems"]
        return "\n".join(lines)


def prepare_data(
    root: PathLike,
    scales: Sequence[int] = (2, 4),
    make_lr: bool = False,
    training_folder: Optional[PathLike] = None,
    names: Sequence[str] = tuple(BENCHMARKS),
    on_file: Optional[OnFile] = None,
) -> DataReport:
    """Decode every image of the test sets and the training folder; check that LR files pair with HR ones.

    Args:
        root: folder that holds the test sets in the layout of :class:`ppsr2q.data.datasets.TestSet`.
        scales: the scales whose LR folders are checked or made.
        make_lr: write the LR images that are missing to ``LR_bicubic/X<scale>/<stem>x<scale>.png``.
        training_folder: checked too when given.
        names: test sets to look for.
        on_file: called with each file after it was read, for progress.

    Raises:
        UserError: ``root`` is no folder. What is wrong inside is in the report.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: expected a folder that holds the test sets, found none")
    notify = on_file or (lambda path: None)
    sets = [_check_set(root, name, scales, make_lr, notify) for name in names]
    training = None if training_folder is None else _check_training(Path(training_folder), notify)
    return DataReport(str(root), sets, training)


def _check_set(root: Path, name: str, scales: Sequence[int], make_lr: bool, notify: OnFile) -> SetReport:
    source = source_of(root, name)
    report = SetReport(name, expected=BENCHMARKS.get(source))
    if not (root / source).is_dir():
        return report
    try:
        hr = files_by_stem(find_hr_folder(root, source))
    except UserError as error:
        report.problems.append(str(error))
        return report
    report.found = len(hr)
    if report.expected is not None and report.found != report.expected:
        report.problems.append(f"{root / source}: {report.found} images, expected {report.expected}")
    sound = {stem: path for stem, path in hr.items() if _readable(path, report.problems, notify)}
    for scale in scales:
        try:
            folder = lr_folder_of(root, source, scale)
            report.lr[scale] = _check_lr(folder, hr, sound, scale, make_lr, report.problems)
        except UserError as error:
            report.lr[scale] = "incomplete"
            report.problems.append(str(error))
    return report


def _readable(path: Path, problems: List[str], notify: OnFile) -> bool:
    try:
        read_rgb8(path)
    except UserError as error:
        problems.append(str(error))
        return False
    finally:
        notify(path)
    return True


def _check_lr(
    folder: Path, hr: Dict[str, Path], sound: Dict[str, Path], scale: int, make_lr: bool, problems: List[str]
) -> str:
    """Check one LR folder, make what is missing if asked, and say in a few words how it is."""
    if not folder.is_dir() and not make_lr:
        return "not there (made in memory when needed)"
    pairs, missing, extra = pair_lr(hr, folder, scale) if folder.is_dir() else ({}, sorted(hr), [])
    made = 0
    if make_lr:
        for stem in [stem for stem in missing if stem in sound]:
            write_rgb8(folder / f"{stem}x{scale}.png", read_pair(stem, sound[stem], None, scale).lr)
            missing.remove(stem)
            made += 1
    if missing or extra:
        problems.append(unpaired_message(folder, missing, extra))
    unfit = _unfit_pairs(pairs, sound, scale)
    problems += unfit
    if missing or extra or unfit:
        return "incomplete"
    return f"complete, {made} made now" if made else "complete"


def _unfit_pairs(pairs: Dict[str, Path], sound: Dict[str, Path], scale: int) -> List[str]:
    """What is wrong with existing LR files: damage or a size that does not fit the HR image."""
    messages = []
    for stem, lr_path in pairs.items():
        if stem in sound:
            try:
                read_pair(stem, sound[stem], lr_path, scale)
            except UserError as error:
                messages.append(str(error))
    return messages


def _check_training(folder: Path, notify: OnFile) -> TrainingReport:
    report = TrainingReport(str(folder))
    try:
        train, validation = training_split(folder)
    except UserError as error:
        report.problems.append(str(error))
        return report
    report.train, report.validation = len(train), len(validation)
    for path in train + validation:
        try:
            image = read_rgb8(path)
            report.megapixels += image.shape[0] * image.shape[1] / 1e6
        except UserError as error:
            report.problems.append(str(error))
        notify(path)
    return report
