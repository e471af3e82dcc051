"""How many threads an engine may use."""
from __future__ import annotations

from typing import Optional

from ppsr2q.core.environment import usable_processors
from ppsr2q.core.errors import UserError

MAX_THREADS = 1024


def checked_threads(threads: Optional[int]) -> int:
    """``threads``, by default all processors that this process may use.

    Raises:
        UserError: not a whole number from 1 to :data:`MAX_THREADS`.
    """
    if threads is None:
        return min(usable_processors(), MAX_THREADS)
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise UserError(f"threads must be a whole number from 1 to {MAX_THREADS}, got {threads!r}")
    return threads
