"""A progress line for loops that are not training: count, share, time left."""
from __future__ import annotations

import sys
import time

from ppsr2q.core.progress import format_duration


class Progress:
    """Prints "what: 12/48, 3 s left", over itself on a terminal, in tenths otherwise; nothing where it is not ``shown``."""

    def __init__(self, what: str, total: int, shown: bool = True) -> None:
        self._what, self._total, self._done, self._start = what, total, 0, time.monotonic()
        self._live, self._shown = sys.stderr.isatty(), shown

    def advance(self) -> None:
        self._done += 1
        if not self._shown or not self._live and self._done * 10 // self._total == (self._done - 1) * 10 // self._total:
            return
        left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        line = f"{self._what}: {self._done}/{self._total}, {format_duration(left)} left"
        print(f"\r\033[K{line}" if self._live else line, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown and self._live:
            print(file=sys.stderr)
