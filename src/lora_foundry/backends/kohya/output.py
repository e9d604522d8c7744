"""Reads what sd-scripts prints. Its progress bar stands on one line that is written over with carriage returns,
shows every step twice, and gives the mean of all losses so far in place of the step's own."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

_BAR = re.compile(rb"steps:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[")
_LOSS = re.compile(rb"avr_loss=([^\s,\]]+)")
_ENDS = re.compile(rb"[\r\n]+")
_LONGEST = 64 * 1024
_KEPT_LINES = 400


class Step(NamedTuple):
    """One state of the bar: steps done and to do since this process began, and the mean loss so far."""

    done: int
    total: int
    mean_loss: float


class Output:
    """Turns the bytes of both streams into steps and lines."""

    def __init__(self) -> None:
        self._rest = b""
        self._done = 0
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)

    def feed(self, data: bytes) -> tuple[list[Step], list[str]]:
        """The steps that were newly finished, in order, and the other lines in `data`."""
        *whole, self._rest = _ENDS.split(self._rest + data)
        if len(self._rest) > _LONGEST:
            whole, self._rest = [*whole, self._rest], b""
        steps: list[Step] = []
        lines: list[str] = []
        for raw in whole:
            if _BAR.search(raw):
                self._read_bar(raw, steps)
            elif raw.strip():
                lines.append(raw.decode("utf-8", "replace").rstrip())
        if self._rest.endswith(b"]"):
            self._read_bar(self._rest, steps)  # nothing follows a bar until it is drawn again
        self.lines.extend(lines)
        return steps, lines

    def _read_bar(self, raw: bytes, steps: list[Step]) -> None:
        """Adds the step that the bar shows, unless it was told of before."""
        bar, loss = _BAR.search(raw), _LOSS.search(raw)
        if bar and loss and int(bar[1]) > self._done:
            self._done = int(bar[1])
            steps.append(Step(self._done, int(bar[2]), _number(loss[1])))

    def text(self) -> str:
        """The last lines, without the bar."""
        return "\n".join(self.lines)


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
