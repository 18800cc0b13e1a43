"""A progress line for people at a terminal, and now and then a line for those who read a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

WIDTH = 24  # of the bar
AT_TERMINAL, IN_LOG = 0.1, 30.0  # seconds between two updates


def duration(seconds: float) -> str:
    """A time such as ``1:05`` or ``2:10:00``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Says how far a loop has come.

    At a terminal, one line that is overwritten; elsewhere, a line of its own every half minute, so that a log stays
    short.

    Args:
        title: what the loop does.
        total: how many steps it has.
        stream: where to write; standard error unless given.
        enabled: whether to write at all.
    """

    def __init__(self, title: str, total: int, stream: TextIO | None = None, enabled: bool = True) -> None:
        self.title = title
        self.total = total
        self.stream = stream or sys.stderr
        self.enabled = enabled
        self.terminal = self.stream.isatty()
        self.begun = self.written = time.monotonic()
        self.done = 0
        self.shown = 0  # characters on the line

    def step(self, note: str = "") -> None:
        """One more step is done.

        Args:
            note: what else to say.
        """
        self.done += 1
        now = time.monotonic()
        if not self.enabled or now - self.written < (AT_TERMINAL if self.terminal else IN_LOG):
            return
        self.written = now
        left = (now - self.begun) / self.done * (self.total - self.done)
        text = f"{self.title} {self.done}/{self.total} {note} {duration(left)} left"
        if self.terminal:
            filled = WIDTH * self.done // max(self.total, 1)
            text = f"[{'=' * filled}{' ' * (WIDTH - filled)}] {text}"
            self.stream.write(f"\r{text:<{self.shown}}")
            self.shown = len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Clears the line."""
        if self.shown:
            self.stream.write(f"\r{' ' * self.shown}\r")
            self.stream.flush()
            self.shown = 0
