"""Where the files of a run lie."""
from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from ppsr2q.core.config import Config
from ppsr2q.core.errors import UserError
from ppsr2q.core.files import load_artifact, tensors_sha256


def paths(config: Config) -> Dict[str, Path]:
    """Where everything of a run lies under ``output_dir``."""
    out = Path(config.output_dir)
    return {"bounds": out / "searched_bounds.safetensors", "start": out / "start.safetensors",
            "rectifiers": out / "rectifiers.safetensors",
            "table": out / "spr2q_table.safetensors", "fused": out / "fused.safetensors",
            "packed": out / "model.safetensors", "onnx": out / "model.onnx", "torch": out / "torch.safetensors",
            "openvino": out / "openvino",
            "inference": out / "inference", "resume": out / "resume", "log": out / "log"}


def checkpoint_path(config: Config, stage_name: str) -> Path:
    """The file that a stage goes on from."""
    return paths(config)["resume"] / f"{stage_name}.safetensors"


def set_aside(config: Config, stage_name: str, made: Sequence[Path] = ()) -> List[Path]:
    """Keep what a stage has left before it starts over: its checkpoint with the files that it began with (``made``), and
    its curves, under names with ``.earlier`` (``.earlier2``, ...) in them.

    Returns:
        Where they lie now; empty when there was nothing.
    """
    checkpoint = checkpoint_path(config, stage_name)
    left = [checkpoint, *made] if checkpoint.exists() else []
    left = [path for path in (*left, paths(config)["log"] / stage_name) if path.exists()]
    for number in itertools.count(1):
        mark = f".earlier{number if number > 1 else ''}"
        kept = [path.with_name(f"{path.stem}{mark}{path.suffix}") for path in left]
        if not any(path.exists() for path in kept):
            break
    for path, place in zip(left, kept):
        os.replace(path, place)
    return kept


def require_current(path: Path, recorded: Optional[str], source: Path, tool: str) -> None:
    """Refuse ``path`` where its source is there but has changed since.

    Args:
        recorded: ``tensors_sha256`` of the source that ``path`` was made from.

    Raises:
        UserError: with the tool that makes ``path`` again.
    """
    if source.exists() and tensors_sha256(load_artifact(source).tensors) != recorded:
        raise UserError(f"{path}: made from another {source.name} than the one beside it; run tools/{tool}.py again")


def require_stage(path: Path, tool: str, config_path: str) -> None:
    """Raise the error that names the command which makes a missing file."""
    if not path.exists():
        raise UserError(f"{path} is missing; make it with\n  python tools/{tool}.py -c {config_path} (and the same -o "
                        "options)")
