"""The one line that a training run shows."""
from __future__ import annotations

import shutil
import time
from typing import Mapping, Optional, TextIO


def format_duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``6 h 41 min``."""
    whole = int(round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressLine:
    """Iteration, losses, learning rate, seconds per iteration and time left.

    On a terminal the line overwrites itself every iteration; elsewhere one line is printed every ``every``.

    Args:
        name: the stage.
        start: iterations done before this run (resumed).
        total: iterations of the whole run.
        stream: where to; None shows nothing.
    """

    def __init__(self, name: str, start: int, total: int, every: int, stream: Optional[TextIO]) -> None:
        self._name, self._first, self._total, self._every, self._stream = name, start, total, every, stream
        self._live = stream is not None and stream.isatty()
        self._started = time.monotonic()
        self._open = False

    def update(self, done: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """Show the state after ``done`` iterations; figures named ``term/part`` are left out."""
        if self._stream is None:
            return
        logged = done % self._every == 0 or done in (self._first + 1, self._total)
        if not (logged or self._live):
            return
        pace = (time.monotonic() - self._started) / (done - self._first)
        figures = "  ".join(f"{key} {value:.4g}" for key, value in losses.items()
                            if "/" not in key)
        line = (f"[{self._name}] {done}/{self._total}  {figures}  lr {learning_rate:.3g}  {pace:.2f} s/it  "
                f"{format_duration(pace * (self._total - done))} left")
        if self._live:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line cannot be overwritten
            self._stream.write(f"\r\033[K{line[:width]}")
            self._open = True
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def message(self, text: str) -> None:
        """Print a line of its own."""
        if self._stream is None:
            return
        self.close()
        self._stream.write(f"[{self._name}] {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """End the overwriting line."""
        if self._open:
            self._stream.write("\n")
            self._open = False
