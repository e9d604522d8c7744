"""Prompts of Anima: tags or sentences, as they are, to Qwen3; the adapter then asks its states about each token of T5. What
it gives is filled up with zeros to 512 tokens, which the transformer was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.prompts import Condition, OfOneLength
from lora_foundry.families._shared.syntax import Weighted, parse_weights, plain_text

_LONGEST = 512


def make_prompts(pipeline: Any, base: Base) -> AnimaPrompts:
    """The prompts of a loaded pipeline."""
    return AnimaPrompts(pipeline)


class AnimaPrompts(OfOneLength):
    """`text` is (512, width)."""

    def __init__(self, pipeline: Any) -> None:
        self._tokenizer, self._t5 = pipeline.tokenizer, pipeline.t5_tokenizer
        self._encoder, self._conditioner = pipeline.text_encoder, pipeline.text_conditioner

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {}

    def encode_all(self, texts: Sequence[str], weighted: bool = False) -> list[Condition]:
        """weighted: brackets weigh T5's tokens, as in ComfyUI; Qwen3 reads the words without them."""
        pieces = [parse_weights(text) if weighted else [Weighted(plain_text(text), 1.0)] for text in texts]
        return [{"text": self._encode(each)} for each in pieces]

    def _encode(self, pieces: Sequence[Weighted]) -> Tensor:
        words = "".join(text for text, _ in pieces)
        ids = self._tokenizer(words, truncation=True, max_length=_LONGEST, return_tensors="pt").input_ids
        device = self._encoder.device
        if ids.shape[1]:
            states = self._encoder(input_ids=ids.to(device), use_cache=False).last_hidden_state
        else:  # the library's stand-in for no words: one token that counts nothing
            states = torch.zeros(
                1, 1, self._encoder.config.hidden_size, dtype=self._encoder.dtype, device=device
            )
        tokens, weights = self._t5_tokens(pieces)
        dtype = self._conditioner.dtype
        text: Tensor = self._conditioner(
            source_hidden_states=states.to(device, dtype),
            target_input_ids=torch.tensor([tokens], device=device),
        )[0]
        if any(weight != 1.0 for weight in weights):
            text[: len(tokens)] *= torch.tensor(weights, device=text.device, dtype=text.dtype).unsqueeze(-1)
        return text

    def _t5_tokens(self, pieces: Sequence[Weighted]) -> tuple[list[int], list[float]]:
        """The tokens of all pieces with their weights, and the closing one."""
        if all(weight == 1.0 for _, weight in pieces):
            words = "".join(text for text, _ in pieces)
            tokens: list[int] = self._t5(words, truncation=True, max_length=_LONGEST).input_ids
            return tokens, [1.0] * len(tokens)
        own = [(self._t5(text, add_special_tokens=False).input_ids, weight) for text, weight in pieces]
        ids = [token for tokens, _ in own for token in tokens][: _LONGEST - 1]
        weights = [weight for tokens, weight in own for _ in tokens][: _LONGEST - 1]
        return [*ids, self._t5.eos_token_id], [*weights, 1.0]
