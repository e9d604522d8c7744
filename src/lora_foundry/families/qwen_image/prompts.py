"""Prompts of Qwen-Image: sentences to Qwen2.5-VL, which is told to describe a picture; what it makes of that order itself
is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.qwen import ChatPrompts, lengths_mask


def make_prompts(pipeline: Any, base: Base) -> QwenImagePrompts:
    """The prompts of a loaded pipeline, which has the order's words."""
    return QwenImagePrompts(pipeline)


class QwenImagePrompts(ChatPrompts):
    """`text` is (length, width)."""

    LONGEST = 1024

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline.tokenizer, pipeline.text_encoder)
        self._order: str = pipeline.prompt_template_encode
        self._skipped: int = pipeline.prompt_template_encode_start_idx

    def _encode(self, text: str) -> Tensor:
        ids = self._tokenizer(
            self._order.format(text),
            truncation=True,
            max_length=self.LONGEST + self._skipped,
            return_tensors="pt",
        ).input_ids
        answer = self._encoder(
            input_ids=ids.to(self._encoder.device), output_hidden_states=True, use_cache=False
        )
        states: Tensor = answer.hidden_states[-1][0, self._skipped :]
        return states

    def arguments(
        self,
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        empty: Condition | None = None,
    ) -> dict[str, Any]:
        """Each kind is filled up to its own longest, and says what of it is real."""
        given: dict[str, Any] = {}
        for prefix, each in (("", conditions), ("negative_", negatives)):
            stacked = self.stack(each)
            given[f"{prefix}prompt_embeds"] = stacked["text"]
            given[f"{prefix}prompt_embeds_mask"] = lengths_mask(stacked)
        return given
