"""sd-scripts' failures in our words. Its exit code says little (a set without pictures ends with 0), so they are
known by what it printed."""

from __future__ import annotations

import re
from pathlib import Path

from lora_foundry.backends.kohya.checkout import Checkout
from lora_foundry.errors import BackendError, BaseModelError, FoundryError, InputError, MissingExtraError

_MODULE = re.compile(r"ModuleNotFoundError: No module named '([^']+)'|ImportError: ([^\n]+)")
_MEMORY = re.compile(r"out of memory|OutOfMemoryError|not enough memory|DefaultCPUAllocator", re.IGNORECASE)
_NO_PICTURES = re.compile(r"No data found|no images found|not a single image", re.IGNORECASE)
_VOCABULARY = re.compile(
    r"Can't load tokenizer|We couldn't connect to|LocalEntryNotFoundError|OfflineModeIsEnabled"
)
_SHAPES = re.compile(r"size mismatch for|Missing key\(s\) in state_dict")
_ARGUMENT = re.compile(r"error: ([^\n]*(?:argument|choice)[^\n]*)")
# The launcher's own error only repeats that its child failed.
_LAST_ERROR = re.compile(
    r"^(?!\S*CalledProcessError)(?:\w+\.)*(\w*(?:Error|Exception|Interrupt)\b[^\n]*)", re.MULTILINE
)


def translate(text: str, code: int, checkout: Checkout, log: Path) -> FoundryError:
    """The error that the end of its output tells of; `code` is the exit code, 0 where it ended without a file."""
    if found := _MODULE.search(text):
        what = f"has no module {found[1]!r}" if found[1] else f"cannot import something ({found[2][:120]})"
        return MissingExtraError(
            f"sd-scripts' Python {checkout.python} {what}; install what it requires: {checkout.python} -m pip install "
            f"-r {checkout.folder / 'requirements.txt'}"
        )
    if _MEMORY.search(text):
        return BackendError(
            "sd-scripts ran out of memory; lower train.batch_size or train.resolution, or set "
            "train.gradient_checkpointing."
        )
    if _NO_PICTURES.search(text):
        return InputError(f"sd-scripts found no pictures to train on; see {log}.")
    if _VOCABULARY.search(text):
        return BaseModelError(
            "sd-scripts could not fetch CLIP's vocabulary; go online once, or set LORA_FOUNDRY_CLIP_VOCABULARY to a "
            "folder that holds its vocab.json and merges.txt."
        )
    if _SHAPES.search(text):
        return BaseModelError(
            "sd-scripts cannot load this base model, whose layers are not of the sizes it knows; set train.backend "
            "to 'inprocess'."
        )
    if found := _ARGUMENT.search(text):
        return InputError(f"sd-scripts refused its settings ({found[1][:200]}); update the checkout.")
    errors = _LAST_ERROR.findall(text)
    said = f": {errors[-1][:240]}" if errors else ""
    how = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    if code == 0:
        how = "ended without leaving a LoRA, though its exit code is 0"
    return BackendError(f"sd-scripts {how}{said}. Its output is in {log}.")
