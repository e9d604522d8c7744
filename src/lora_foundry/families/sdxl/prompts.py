"""Prompts of SDXL: two text encoders side by side, and a pooled prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import Condition, cut, stack_conditions, weigh, window_of


def make_prompts(pipeline: Any, base: Base) -> PairPrompts:
    """The prompts of a loaded pipeline."""
    return PairPrompts(pipeline)


class PairPrompts:
    """Prompts with SDXL's two text encoders: the last states but one of both side by side, and `pooled` (width), the
    projection of the second one's first window. The last states but one have no final normalisation, as SDXL was
    trained (Podell et al. 2023)."""

    def __init__(self, pipeline: Any) -> None:
        self._pairs = (
            (pipeline.tokenizer, pipeline.text_encoder),
            (pipeline.tokenizer_2, pipeline.text_encoder_2),
        )
        self._empty: Condition | None = None

    @cached_property
    def _window(self) -> int:
        return min(window_of(tokenizer, encoder) for tokenizer, encoder in self._pairs)

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"te1": self._pairs[0][1], "te2": self._pairs[1][1]}

    def encode_all(self, texts: Sequence[str], weighted: bool = False) -> list[Condition]:
        states, pooled, counts = [], None, [0]
        for tokenizer, encoder in self._pairs:
            windows = [cut(tokenizer, text, self._window, weighted) for text in texts]
            counts = [len(each.ids) for each in windows]
            ids = [piece for each in windows for piece in each.ids]
            weighs = weighted and any(each.weighted for each in windows)
            if weighs:
                ids.append(cut(tokenizer, "", self._window, weighted=False).ids[0])
            answer = encoder(torch.tensor(ids, device=encoder.device), output_hidden_states=True)
            hidden, pooled = answer.hidden_states[-2], getattr(answer, "text_embeds", None)
            if weighs:
                hidden = weigh(hidden[:-1], hidden[-1], [row for each in windows for row in each.weights])
                pooled = None if pooled is None else pooled[:-1]
            states.append(hidden)
        if pooled is None:
            raise RuntimeError("SDXL's second text encoder gives no projection")
        text_parts = torch.split(torch.cat(states, dim=-1), counts)
        pooled_parts = torch.split(pooled, counts)
        return [
            {"text": part.flatten(0, 1), "pooled": first[0]}
            for part, first in zip(text_parts, pooled_parts, strict=True)
        ]

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        return stack_conditions(conditions, empty or self.empty())

    @torch.no_grad()
    def empty(self) -> Condition:
        """The empty prompt's condition."""
        if self._empty is None:
            self._empty = self.encode_all([""])[0]
        return self._empty

    def arguments(
        self,
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        empty: Condition | None = None,
    ) -> dict[str, Any]:
        both, count = self.stack([*conditions, *negatives], empty), len(conditions)
        return {
            "prompt_embeds": both["text"][:count],
            "negative_prompt_embeds": both["text"][count:],
            "pooled_prompt_embeds": both["pooled"][:count],
            "negative_pooled_prompt_embeds": both["pooled"][count:],
        }
