"""Every error this project raises on purpose, in one tree, so that a caller can decide by type alone.

    FoundryError
    ├── PermanentError            trying again changes nothing; exit code 2
    │   ├── InputError            what the user gave cannot be used (name, recipe, option, folder)
    │   ├── BaseModelError        the base model is missing, unsafe, damaged or of an unsupported kind
    │   ├── StorageError          the disk is full or a folder cannot be written
    │   ├── MissingExtraError     an optional dependency is not installed
    │   ├── DivergedError         training ran into NaN; the same settings would again
    │   ├── DefectError           this program did something wrong that it did not foresee
    │   └── VerificationError     a LoRA was made, but it failed its proofs and is not published
    └── RetryableError            the same call may succeed later; exit code 1
        ├── BackendError          a generator, tagger or trainer stopped working
        ├── StageError            a stage ended without its result
        ├── FolderBusyError       another process still holds the run's folder
        ├── TakenOverError        another host has begun the stage anew, so this attempt's work does not count
        └── StopRequested         the run was asked to stop at the next safe place, and did

A message is one sentence or two: what happened, where, and what to do next. `exit_code` is the CLI's.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FoundryError(Exception):
    """Root of the tree. Never raised itself."""

    exit_code = 1
    retryable = False


class PermanentError(FoundryError):
    """Trying the same thing again cannot help."""

    exit_code = 2


class InputError(PermanentError):
    """The user's input cannot be used as it is."""


class BaseModelError(PermanentError):
    """The base model is missing, unsafe, damaged, or of a kind that is not supported."""


class AbsentModelError(BaseModelError):
    """A model that is named is not on this machine."""


class StorageError(PermanentError):
    """A file could not be written: the disk is full, or the folder is not ours to write."""


class MissingExtraError(PermanentError):
    """An optional dependency that the recipe asks for is not installed."""


class DivergedError(PermanentError):
    """Training arrived at numbers that are none; with the same settings it would do so again."""


class DefectError(PermanentError):
    """An exception that nobody raised on purpose and that trying again would bring back: a fault of this program."""


class VerificationError(PermanentError):
    """The LoRA file failed a proof (keys, NaN, effect on a picture) and must not be published."""


class RetryableError(FoundryError):
    """The same call may succeed when it is made again."""

    retryable = True


class BackendError(RetryableError):
    """A generator, captioner, embedder or trainer stopped working."""


class StageError(RetryableError):
    """A stage ended without leaving its result."""


class FolderBusyError(RetryableError):
    """Another process holds the run's folder, such as one on a host that froze. Waiting for it counts as no attempt."""


class TakenOverError(RetryableError):
    """Another host has begun the stage anew since; what this attempt makes is not stored."""


class StopRequested(RetryableError):
    """The run was asked to stop, from inside its progress callback; what it has done is kept."""


def error_of(kind: str, said: str, permanent: bool = False) -> FoundryError:
    """The error that another process told by its class's name and its words. One of a class that is not of this tree is
    a BackendError, or a PermanentError where trying again was said to change nothing."""
    found = globals().get(kind)
    if isinstance(found, type) and issubclass(found, FoundryError):
        return found(said)
    return (PermanentError if permanent else BackendError)(said)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A closing sentence for an unknown word: the nearest known one, or all of them if none is near.

    >>> did_you_mean("trian", ["train", "publish"])
    "did you mean 'train'?"
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known: " + ", ".join(names) if names else "none is known"


MOST_WORDS = 480


def brief(text: str) -> str:
    """A message as one line of under 500 characters that any file, terminal and database holds."""
    line = " ".join(
        text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode().split()
    )
    return line if len(line) <= MOST_WORDS else line[: MOST_WORDS - 1] + "…"


def is_storable(text: str) -> bool:
    """Whether text has neither NUL nor half of a surrogate pair, which JSON can spell and no file can hold."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
