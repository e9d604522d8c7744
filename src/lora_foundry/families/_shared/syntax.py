"""The prompt syntax that people bring from ComfyUI and A1111: `(words)` and `(words:1.2)` weigh words, `\\(series\\)` is
a bracket as it stands, BREAK begins a new window of the text encoder."""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(r"\\[()\\]|[()]|[^()\\]+|\\")
_WEIGHT = re.compile(r"^(.*):\s*([+-]?\d*\.?\d+)\s*$", re.DOTALL)
_BREAK = re.compile(r"\s*\bBREAK\b[\s,]*")
_ROUND = 1.1  # what a pair of brackets without a number multiplies by


class Weighted(NamedTuple):
    """A stretch of a prompt and how much it counts; 1 is as it stands."""

    text: str
    weight: float


def plain_text(text: str) -> str:
    """A caption as it is learned: brackets that were escaped for the syntax's sake are brackets, nothing is weighed."""
    return text.replace("\\(", "(").replace("\\)", ")")


def split_windows(text: str) -> list[str]:
    """The parts of a prompt that BREAK keeps in windows of their own; one where there is none."""
    return _BREAK.split(text)


def parse_weights(text: str) -> list[Weighted]:
    """A prompt as stretches with weights, in its order. Brackets multiply what stands outside of them by 1.1, or by
    the number after a colon, in its place; brackets that do not match are taken as they stand."""
    if "(" not in text and "\\" not in text and ")" not in text:
        return [Weighted(text, 1.0)]
    tokens = _TOKEN.findall(text)
    if not _balanced(tokens):
        return [Weighted(plain_text(text), 1.0)]
    found: list[Weighted] = []
    _collect(tokens, 0, 1.0, found)
    return _joined(found)


def _balanced(tokens: list[str]) -> bool:
    depth = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")
        if depth < 0:
            return False
    return depth == 0


def _collect(tokens: list[str], start: int, weight: float, found: list[Weighted]) -> int:
    """Adds the stretches from `start` to the bracket that closes them; returns where that is."""
    place = start
    while place < len(tokens) and tokens[place] != ")":
        if tokens[place] == "(":
            end = _closing(tokens, place)
            inner, factor = _with_weight(tokens[place + 1 : end])
            _collect(inner, 0, weight * factor, found)
            place = end + 1
            continue
        token = tokens[place]
        found.append(Weighted(token[1] if len(token) == 2 and token[0] == "\\" else token, weight))
        place += 1
    return place


def _closing(tokens: list[str], opening: int) -> int:
    depth = 0
    for place in range(opening, len(tokens)):
        depth += (tokens[place] == "(") - (tokens[place] == ")")
        if depth == 0:
            return place
    return len(tokens) - 1


def _with_weight(tokens: list[str]) -> tuple[list[str], float]:
    """What stands in a pair of brackets, without the number at its end, and what it is multiplied by."""
    match = _WEIGHT.match(tokens[-1]) if tokens else None
    if match is None:
        return tokens, _ROUND
    return [*tokens[:-1], match[1]], float(match[2])


def _joined(found: list[Weighted]) -> list[Weighted]:
    """Neighbours of one weight as one stretch, empty ones left out."""
    joined: list[Weighted] = []
    for stretch in found:
        if not stretch.text:
            continue
        if joined and joined[-1].weight == stretch.weight:
            joined[-1] = Weighted(joined[-1].text + stretch.text, stretch.weight)
        else:
            joined.append(stretch)
    return joined or [Weighted("", 1.0)]
