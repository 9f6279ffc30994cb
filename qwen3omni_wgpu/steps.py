"""Encoding as a generator of (done, total), so that whoever runs it can report and stop in between."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")
Steps = Generator[tuple[int, int], None, T]


def finish(steps: Steps[T], progress: Callable[[int, int], None] | None = None) -> T:
    """Run to the end; `progress(done, total)` after each step."""
    while True:
        try:
            done, total = next(steps)
        except StopIteration as stop:
            return stop.value
        if progress:
            progress(done, total)
