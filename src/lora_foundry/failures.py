"""What an exception that nobody here raised on purpose means, as one of our errors: whether trying again can help, and a
sentence that says what to do. Stages let such exceptions through; they meet a person, or a task's row, at one of two doors
(the child process and the Python API), and both ask here."""

from __future__ import annotations

from pathlib import Path

from lora_foundry.errors import BackendError, DefectError, FoundryError, StorageError
from lora_foundry.extras import missing_package
from lora_foundry.files.storage import storage_error

# How libraries that are not written in Python report what Python has exceptions for.
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
_NO_SPACE = ("no space left on device", "os error 28", "disk quota exceeded")


def as_ours(error: BaseException, log: Path | None = None) -> FoundryError:
    """The error itself if it is ours, else what it means. log: where the traceback is, for those that need it."""
    if isinstance(error, FoundryError):
        return error
    if isinstance(error, ImportError):
        return missing_package("This stage", error)
    said = f"{type(error).__name__}: {error}".removesuffix(": ")
    where = "" if log is None else f" Its log is {log}."
    report = "" if log is None else f" Its log is {log}; please report it."
    if lacks_memory(error):
        return not_enough_memory(said.splitlines()[0][:300])
    if _speaks_of(error, _NO_SPACE):
        return StorageError(f"The disk is full ({said}); free some space and run the same command again.")
    if isinstance(error, OSError) and error.filename is not None:
        return storage_error(Path(str(error.filename)), error)
    if isinstance(error, OSError | RuntimeError):
        return BackendError(f"A stage stopped working ({said}). Run the same command to go on.{where}")
    said = said.rstrip(".")
    return DefectError(f"{said}. This is a fault of the program, not of what it was asked for.{report}")


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception says, by its class or in its words, that there was no memory left."""
    return isinstance(error, MemoryError) or _speaks_of(error, _NO_MEMORY)


def not_enough_memory(said: str) -> BackendError:
    """The error for such an exception, with its words."""
    return BackendError(
        f"There was not enough memory ({said}). Close other programs, or ask for less: a smaller train.batch_size or "
        "train.resolution, train.gradient_checkpointing, a smaller generate.batch_size."
    )


def _speaks_of(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)
