"""What the benchmarks that train have in common."""
from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ppsr2q.core.config import Config
from ppsr2q.core.errors import Interrupted, UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
#: scale -> SHA-256 over the tensors of the official checkpoint (:func:`weights_hash`)
OFFICIAL_WEIGHTS = {2: "180f79dba0f8993a4e2479e31601947f16043e70ffb804a45595889cf42b7e36",
                    4: "064ee781549b70e3832cf845895ab1da1be3e17fc7b49f9adeba62e5565c0652"}


def choose(text: str, known: Sequence[str], what: str) -> List[str]:
    """The names in a comma-separated list; UserError for one that is not ``known``."""
    chosen = text.split(",")
    odd = [name for name in chosen if name not in known]
    if odd:
        raise UserError(f"--{what} {text}: unknown {odd[0]!r}; known: {', '.join(known)}")
    return chosen


def expect_sets(data: Path, sets: Sequence[str], scale: int) -> None:
    """Name a test set that is missing or unpaired before hours of training."""
    from ppsr2q.data.datasets import TestSet  # its packages would count in the memory that speed_inference measures
    for name in sets:
        TestSet(data, name, scale)


def scores(found: Mapping[str, Any], sets: Sequence[str], when: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    """Of an evaluation, what records keep: the means of the sets, not the images; and by what, when (of
    ``records.circumstances``) and from which LR images each was measured, because sets are added to records later."""
    measured = {"commit": when["commit"], "date": when["date"], "lr": found["protocol"]["lr"]}
    return {name: {**{key: found[name][key] for key in ("psnr_y", "ssim_y")}, "measured": measured} for name in sets}


def protocol_of(found: Mapping[str, Any]) -> Dict[str, Any]:
    """The protocol of an evaluation but for what :func:`scores` keeps with every set."""
    return {key: value for key, value in found["protocol"].items() if key != "lr"}


def stop_after(minutes: Optional[float]) -> None:
    """Ask the process to stop after a time: the trainer finishes its iteration and saves."""
    def stop(*_: Any) -> None:
        raise Interrupted("stopped")
    signal.signal(signal.SIGTERM, stop)
    if minutes is not None:
        timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()


def trained_seconds(config: Config, stages: Sequence[str]) -> float:
    """What the named stages of a run took, earlier parts of an interrupted run included."""
    from ppsr2q.core.files import load_artifact
    from ppsr2q.workflow.paths import checkpoint_path
    return sum(load_artifact(checkpoint_path(config, stage)).metadata["state"]["seconds"] for stage in stages)


def weights_hash(config: Config) -> str:
    """SHA-256 over the tensors of the full-precision network."""
    from ppsr2q.models.checkpoint import weights_sha256
    from ppsr2q.workflow.networks import build_network
    return weights_sha256(build_network(config))
