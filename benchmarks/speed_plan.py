"""What ``speed_training.py`` measures, as data (no Paddle needed)."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple

OURS = ("reference", "scan", "fused")
PEER = "pytorch_eager"
PEER_KEPT = "pytorch_eager_kept"  # the same in a process that keeps freed memory, as ours does
SLOW = ("reference", "scan")
SEED = 10
SIDES = (64, 128, 256, 384, 512)  # of the square images that show growth with pixels
#: commit that brought the scan kernel, the first of the kernels
SCAN_COMMIT = "e080588c30e5e3ab43d2795def7a64aceaf173ab"


@dataclass(frozen=True)
class Sources:
    """What the command line may bring: an x4 checkpoint, and a checkout of the official repository."""

    weights: Optional[str] = None
    peer: Optional[str] = None


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        kind: ``forward`` (full precision, x4), ``rgt`` (a step of stage 1, x2) or ``osrc`` (of stage 2, x2).
        shape: batch, height and width in low-resolution pixels.
        rounds: of a whole run.
        quick_rounds, quick_variants: of ``--quick``.
        once: variants so slow that they are timed in one round only, without a warm-up.
        left_out: variants that are not measured, because one call takes minutes.
    """

    kind: str
    shape: Tuple[int, int, int]
    rounds: int
    quick_rounds: int
    quick_variants: Tuple[str, ...]
    once: Tuple[str, ...] = ()
    left_out: Tuple[str, ...] = ()

    @property
    def variants(self) -> Tuple[str, ...]:
        return (*OURS, PEER, PEER_KEPT) if self.kind == "forward" else OURS


CASES = {
    "fp_forward_64": Case("forward", (1, 64, 64), 5, 3, (*OURS, PEER, PEER_KEPT)),
    "fp_forward_180x320": Case("forward", (1, 180, 320), 3, 1, ("fused", PEER, PEER_KEPT), left_out=SLOW),
    "stage1_32": Case("rgt", (8, 32, 32), 3, 1, ("scan", "fused"), once=("scan",), left_out=("reference",)),
    "stage1_64": Case("rgt", (8, 64, 64), 2, 1, ("fused",), left_out=SLOW),
    "osrc_32": Case("osrc", (8, 32, 32), 3, 1, ("fused",), left_out=SLOW),
}
