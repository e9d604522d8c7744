"""Prompts of Krea 2: sentences to Qwen3-VL, which is told to describe a picture, and of which twelve layers are read. The
library fills every prompt up to one length and has the network not look at what it filled in; here a prompt is as long as
it is, which means the same and takes an eighth of the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.qwen import ChatPrompts, lengths_mask


def make_prompts(pipeline: Any, base: Base) -> Krea2Prompts:
    """The prompts of a loaded pipeline, which has the order's words and says which layers are read."""
    return Krea2Prompts(pipeline)


class Krea2Prompts(ChatPrompts):
    """`text` is (length, layers, width)."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline.tokenizer, pipeline.text_encoder)
        self._before: str = pipeline.prompt_template_encode_prefix
        self._after: str = pipeline.prompt_template_encode_suffix
        self._skipped: int = pipeline.prompt_template_encode_start_idx
        self._most = self.LONGEST + self._skipped - pipeline.prompt_template_encode_num_suffix_tokens
        self._layers: Sequence[int] = pipeline.text_encoder_select_layers

    def _encode(self, text: str) -> Tensor:
        told = self._tokenizer(
            self._before + text, truncation=True, max_length=self._most, return_tensors="pt"
        )
        after = self._tokenizer(self._after, return_tensors="pt")
        ids = torch.cat([told.input_ids, after.input_ids], dim=1).to(self._encoder.device)
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
        answer = self._encoder(input_ids=ids, position_ids=places, output_hidden_states=True, use_cache=False)
        states = [answer.hidden_states[layer][0, self._skipped :] for layer in self._layers]
        return torch.stack(states, dim=1)

    def arguments(
        self,
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        empty: Condition | None = None,
    ) -> dict[str, Any]:
        """Each kind is filled up to the longest of both, since their places are counted once, and says what of it is
        real."""
        stacked = self.stack([*conditions, *negatives])
        text, mask = stacked["text"], lengths_mask(stacked)
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        count = len(conditions)
        return {
            "prompt_embeds": text[:count],
            "prompt_embeds_mask": mask[:count],
            "negative_prompt_embeds": text[count:],
            "negative_prompt_embeds_mask": mask[count:],
        }
