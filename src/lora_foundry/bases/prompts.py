"""Prompts longer than the text encoder's window are encoded in pieces and joined, the way people know it from
A1111 and sd-scripts, so that the end of a long caption is never silently dropped. Generator and trainer share
this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class PromptEncoder:
    """Encodes prompts with one tokenizer and one CLIP text encoder."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder
        self._window = min(int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings))
        self._empty: Tensor | None = None

    def pieces(self, text: str) -> list[list[int]]:
        """Token ids in windows of full length, each with its start, end and padding; at least one."""
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        room = self._window - 2
        parts = [tokens[start : start + room] for start in range(0, len(tokens), room)] or [[]]
        start, end, pad = (
            self._tokenizer.bos_token_id,
            self._tokenizer.eos_token_id,
            self._tokenizer.pad_token_id,
        )
        return [[start, *part, end, *[pad] * (room - len(part))] for part in parts]

    def encode_all(self, texts: Sequence[str]) -> list[Tensor]:
        """For each text (windows x length, width): its windows, joined along the sequence. All windows go through the
        encoder at once, and gradients flow where the caller lets them."""
        windows = [self.pieces(text) for text in texts]
        ids = torch.tensor([piece for pieces in windows for piece in pieces], device=self._encoder.device)
        states: Tensor = self._encoder(ids).last_hidden_state
        parts = torch.split(states, [len(pieces) for pieces in windows])
        return [part.flatten(0, 1) for part in parts]

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """The same for one text, without gradients."""
        return self.encode_all([text])[0]

    def empty(self) -> Tensor:
        """The empty prompt's single window, which fills up shorter prompts."""
        if self._empty is None:
            self._empty = self.encode("")
        return self._empty


def stack_prompts(encoded: Sequence[Tensor], filler: Tensor) -> Tensor:
    """(n, length, width): prompts of unlike length, the shorter ones filled up with windows of the empty
    prompt."""
    longest = max(len(item) for item in encoded)
    return torch.stack(
        [torch.cat([item, *[filler] * ((longest - len(item)) // len(filler))]) for item in encoded]
    )


def encode_prompts(pipeline: Any, texts: Sequence[str]) -> Tensor:
    """(n, length, width) for `prompt_embeds` of a Stable Diffusion pipeline. Encode prompts and negative
    prompts in one call: both must have the same length."""
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
    known = {text: encoder.encode(text) for text in dict.fromkeys(texts)}
    return stack_prompts([known[text] for text in texts], encoder.empty())
