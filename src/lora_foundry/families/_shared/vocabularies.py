"""The vocabularies of text encoders, which the files of a model lack (a diffusers folder has its own): where each can be had
and where it is looked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Vocabulary(NamedTuple):
    """What one is called, its repository on the hub, the environment variable that names a folder with its files, these
    files, their licence, and the folder below a ComfyUI that has them too."""

    words: str
    repository: str
    variable: str
    files: tuple[str, ...]
    licence: str
    comfyui: str = ""

    def own_folder(self, comfyui: str | Path | None) -> Path | None:
        """The folder that a person has named, or ComfyUI's; None where neither has it."""
        given = os.environ.get(self.variable)
        if given:
            return Path(given).expanduser()
        folder = Path(comfyui).expanduser() / self.comfyui if comfyui and self.comfyui else None
        return folder if folder is not None and (folder / self.files[0]).is_file() else None


CLIP = Vocabulary(
    "CLIP", "openai/clip-vit-large-patch14", "LORA_FOUNDRY_CLIP_VOCABULARY", ("vocab.json", "merges.txt"), "MIT",
    comfyui="comfy/sd1_tokenizer",
)  # fmt: skip
QWEN3 = Vocabulary(
    "Qwen3", "Qwen/Qwen3-4B", "LORA_FOUNDRY_QWEN_VOCABULARY",
    ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"), "Apache-2.0",
)  # fmt: skip
QWEN25 = Vocabulary(
    "Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct", "LORA_FOUNDRY_QWEN25_VOCABULARY",
    ("vocab.json", "merges.txt", "tokenizer_config.json"), "Apache-2.0", comfyui="comfy/text_encoders/qwen25_tokenizer",
)  # fmt: skip
T5 = Vocabulary(
    "T5", "google-t5/t5-base", "LORA_FOUNDRY_T5_VOCABULARY", ("tokenizer.json", "tokenizer_config.json"), "Apache-2.0",
    comfyui="comfy/text_encoders/t5_tokenizer",
)  # fmt: skip
