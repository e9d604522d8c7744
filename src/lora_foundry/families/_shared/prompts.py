"""Prompts longer than the text encoder's window are encoded in pieces and joined, the way people know it from
A1111 and sd-scripts, so that the end of a long caption is never silently dropped. Generator and trainer share
this, and with it what a prompt becomes for each family of base models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Condition = dict[str, Tensor]
"""What a prompt becomes for the network: named tensors without a batch dimension. `text` is (length, width)."""


class Prompts(Protocol):
    """The prompts of one family."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders that a LoRA can train, by the names that files have for them: te, te1, te2."""
        ...

    def encode_all(self, texts: Sequence[str]) -> list[Condition]:
        """The conditions of prompts of any length; gradients flow where the caller lets them."""
        ...

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        """Conditions of unlike length as one batch. `empty`, the empty prompt's condition, fills up shorter ones; it is
        encoded where it is not given, which asks for text encoders that are there."""
        ...

    def arguments(
        self,
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        empty: Condition | None = None,
    ) -> dict[str, Any]:
        """The same as keyword arguments of the family's pipeline."""
        ...


def make_prompts(pipeline: Any) -> Prompts:
    """The prompts of a loaded pipeline, by its parts."""
    if hasattr(pipeline, "transformer"):
        return ChatPrompts(pipeline.tokenizer, pipeline.text_encoder)
    if hasattr(pipeline, "text_encoder_2"):
        return PairPrompts(pipeline)
    return PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)


class PromptEncoder:
    """Prompts with one tokenizer and one CLIP text encoder: Stable Diffusion 1.x and 2.x."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder
        self._empty: Tensor | None = None

    @cached_property
    def _window(self) -> int:
        return _window(self._tokenizer, self._encoder)

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"te": self._encoder}

    def pieces(self, text: str) -> list[list[int]]:
        """Token ids in windows of full length, each with its start, end and padding; at least one."""
        return cut(self._tokenizer, text, self._window)

    def encode_all(self, texts: Sequence[str]) -> list[Condition]:
        """For each text (windows x length, width): its windows, joined along the sequence. All windows go through the
        encoder at once."""
        windows = [self.pieces(text) for text in texts]
        ids = torch.tensor([piece for pieces in windows for piece in pieces], device=self._encoder.device)
        states: Tensor = self._encoder(ids).last_hidden_state
        parts = torch.split(states, [len(pieces) for pieces in windows])
        return [{"text": part.flatten(0, 1)} for part in parts]

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """The embedding of one text, without gradients."""
        return self.encode_all([text])[0]["text"]

    def empty(self) -> Tensor:
        """The empty prompt's single window, which fills up shorter prompts."""
        if self._empty is None:
            self._empty = self.encode("")
        return self._empty

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        return stack_conditions(conditions, empty or {"text": self.empty()})

    def arguments(
        self,
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        empty: Condition | None = None,
    ) -> dict[str, Any]:
        text = self.stack([*conditions, *negatives], empty)["text"]
        return {"prompt_embeds": text[: len(conditions)], "negative_prompt_embeds": text[len(conditions) :]}


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
        return min(_window(tokenizer, encoder) for tokenizer, encoder in self._pairs)

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"te1": self._pairs[0][1], "te2": self._pairs[1][1]}

    def encode_all(self, texts: Sequence[str]) -> list[Condition]:
        states, pooled, counts = [], None, [0]
        for tokenizer, encoder in self._pairs:
            windows = [cut(tokenizer, text, self._window) for text in texts]
            counts = [len(pieces) for pieces in windows]
            ids = torch.tensor([piece for pieces in windows for piece in pieces], device=encoder.device)
            answer = encoder(ids, output_hidden_states=True)
            states.append(answer.hidden_states[-2])
            pooled = getattr(answer, "text_embeds", None)
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


class ChatPrompts:
    """Prompts with a language model that reads them as a user's message (Z-Image): its last states but one, as long
    as the prompt is."""

    LONGEST = 512

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self._tokenizer, self._encoder = tokenizer, text_encoder

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {}

    def encode_all(self, texts: Sequence[str]) -> list[Condition]:
        return [{"text": self._encode(text)} for text in texts]

    def _encode(self, text: str) -> Tensor:
        message = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        ids = self._tokenizer(
            message, truncation=True, max_length=self.LONGEST, return_tensors="pt"
        ).input_ids
        answer = self._encoder(input_ids=ids.to(self._encoder.device), output_hidden_states=True)
        states: Tensor = answer.hidden_states[-2][0]
        return states

    @staticmethod
    def stack(conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        """Side by side, the shorter ones filled up with zeros; `lengths` (n,) says how much of each is real."""
        texts = [condition["text"] for condition in conditions]
        return {
            "text": nn.utils.rnn.pad_sequence(texts, batch_first=True),
            "lengths": torch.tensor([len(text) for text in texts]),
        }

    def arguments(
        self,
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        empty: Condition | None = None,
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": [condition["text"] for condition in conditions],
            "negative_prompt_embeds": [condition["text"] for condition in negatives],
        }


def cut(tokenizer: Any, text: str, window: int) -> list[list[int]]:
    """Token ids in windows of full length, each with its start, end and padding; at least one."""
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    room = window - 2
    parts = [tokens[start : start + room] for start in range(0, len(tokens), room)] or [[]]
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    return [[start, *part, end, *[pad] * (room - len(part))] for part in parts]


def _window(tokenizer: Any, encoder: Any) -> int:
    return min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))


def stack_conditions(conditions: Sequence[Condition], empty: Condition | None) -> Condition:
    """Conditions of CLIP's prompts as one batch; windows of `empty` fill up the shorter ones. It is not needed where all
    are of one length."""
    stacked = {
        name: torch.stack([condition[name] for condition in conditions])
        for name in conditions[0]
        if name != "text"
    }
    texts = [condition["text"] for condition in conditions]
    filler = texts[0] if empty is None else empty["text"].to(texts[0].device, texts[0].dtype)
    return stacked | {"text": stack_prompts(texts, filler)}


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
