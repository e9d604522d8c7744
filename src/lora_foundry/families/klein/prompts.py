"""Prompts of FLUX.2 Klein: sentences to Qwen3, of which three layers are read, always as long as its window, since the
transformer was trained with the padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import OfOneLength
from lora_foundry.families._shared.qwen import ChatPrompts

_LAYERS = (9, 18, 27)


def make_prompts(pipeline: Any, base: Base) -> KleinPrompts:
    """The prompts of a loaded pipeline."""
    return KleinPrompts(pipeline.tokenizer, pipeline.text_encoder)


class KleinPrompts(OfOneLength, ChatPrompts):
    """`text` is (512, 3 x width)."""

    def _encode(self, text: str) -> Tensor:
        given = self._tokenizer(
            self._message(text, thinking=False), padding="max_length", truncation=True, max_length=self.LONGEST,
            return_tensors="pt",
        )  # fmt: skip
        device = self._encoder.device
        answer = self._encoder(
            input_ids=given.input_ids.to(device), attention_mask=given.attention_mask.to(device),
            output_hidden_states=True, use_cache=False,
        )  # fmt: skip
        return torch.cat([answer.hidden_states[layer][0] for layer in _LAYERS], dim=-1)
