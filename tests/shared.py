"""Where the reference data lie that some tests compare with; they are not part of the project."""
from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_path(relative: str) -> Path:
    """Path of a reference file, or a skip with the reason when this machine does not have it.

    The folder is ``$PPSR2Q_SHARED`` or ``shared`` beside the checkout.
    """
    root = Path(os.environ.get("PPSR2Q_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    path = root / relative
    if not path.exists():
        pytest.skip(f"reference data {relative!r} not found under {root} (set PPSR2Q_SHARED)")
    return path
