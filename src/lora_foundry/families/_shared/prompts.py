"""What a prompt becomes for a network, and how CLIP's text encoders are asked. Prompts longer than their window are
encoded in pieces and joined, the way people know it from A1111 and sd-scripts, so that the end of a long caption is never
silently dropped. Generator and trainer share this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lora_foundry.families._shared.syntax import parse_weights, plain_text, split_windows

Condition = dict[str, Tensor]
"""What a prompt becomes for the network: named tensors without a batch dimension. `text` is (length, width)."""


class Prompts(Protocol):
    """The prompts of one family."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        """The text encoders that a LoRA can train, by the names that files have for them: te, te1, te2."""
        ...

    def encode_all(self, texts: Sequence[str], weighted: bool = False) -> list[Condition]:
        """The conditions of prompts of any length; gradients flow where the caller lets them. weighted: texts are
        prompts, whose brackets weigh words; captions are taken as they stand."""
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


class Windows(NamedTuple):
    """A text as token ids in windows of full length, and the weight of every token of them."""

    ids: list[list[int]]
    weights: list[list[float]]

    @property
    def weighted(self) -> bool:
        """Whether any token counts more or less than others."""
        return any(weight != 1.0 for window in self.weights for weight in window)


class PromptEncoder:
    """Prompts with one tokenizer and one CLIP text encoder: Stable Diffusion 1.x and 2.x. clip_skip: which of the
    encoder's last layers is read, 1 being the last; the final normalisation follows in any case."""

    def __init__(self, tokenizer: Any, text_encoder: Any, clip_skip: int = 1) -> None:
        self._tokenizer = tokenizer
        self._encoder = text_encoder
        self._clip_skip = clip_skip
        self._empty: Tensor | None = None

    @cached_property
    def _window(self) -> int:
        return window_of(self._tokenizer, self._encoder)

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {"te": self._encoder}

    def pieces(self, text: str) -> list[list[int]]:
        """Token ids in windows of full length, each with its start, end and padding; at least one."""
        return cut(self._tokenizer, text, self._window, weighted=False).ids

    def encode_all(self, texts: Sequence[str], weighted: bool = False) -> list[Condition]:
        """For each text (windows x length, width): its windows, joined along the sequence. All windows go through the
        encoder at once."""
        windows = [cut(self._tokenizer, text, self._window, weighted) for text in texts]
        ids = [piece for each in windows for piece in each.ids]
        weighs = weighted and any(each.weighted for each in windows)
        if weighs:
            ids.append(cut(self._tokenizer, "", self._window, weighted=False).ids[0])
        states = self._states(torch.tensor(ids, device=self._encoder.device))
        if weighs:
            states = weigh(states[:-1], states[-1], [row for each in windows for row in each.weights])
        parts = torch.split(states, [len(each.ids) for each in windows])
        return [{"text": part.flatten(0, 1)} for part in parts]

    def _states(self, ids: Tensor) -> Tensor:
        if self._clip_skip == 1:
            last: Tensor = self._encoder(ids).last_hidden_state
            return last
        hidden = self._encoder(ids, output_hidden_states=True).hidden_states[-self._clip_skip]
        # The library's module tree depends on its version.
        inner = getattr(self._encoder, "text_model", self._encoder)
        normed: Tensor = inner.final_layer_norm(hidden)
        return normed

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


class OfOneLength:
    """What families share whose prompts are filled up where they are encoded, and are all of one length."""

    @staticmethod
    def stack(conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        """All are of one length."""
        return stack_conditions(conditions, empty)

    def arguments(
        self,
        conditions: Sequence[Condition],
        negatives: Sequence[Condition],
        empty: Condition | None = None,
    ) -> dict[str, Any]:
        return {
            "prompt_embeds": torch.stack([condition["text"] for condition in conditions]),
            "negative_prompt_embeds": torch.stack([condition["text"] for condition in negatives]),
        }


def cut(tokenizer: Any, text: str, window: int, weighted: bool) -> Windows:
    """A text in windows of full length, each with its start, end and padding; at least one. weighted: it is a prompt,
    whose brackets weigh words and whose BREAK begins a window."""
    room = window - 2
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids: list[list[int]] = []
    weights: list[list[float]] = []
    for part in split_windows(text) if weighted else [plain_text(text)]:
        tokens: list[tuple[int, float]] = []
        for words, weight in parse_weights(part) if weighted else [(part, 1.0)]:
            found: list[int] = tokenizer(words, add_special_tokens=False, verbose=False).input_ids
            tokens += [(token, weight) for token in found]
        for place in range(0, max(1, len(tokens)), room):
            piece = tokens[place : place + room]
            rest = room - len(piece)
            ids.append([start, *(token for token, _ in piece), end, *[pad] * rest])
            weights.append([1.0, *(weight for _, weight in piece), 1.0, *[1.0] * rest])
    return Windows(ids, weights)


def window_of(tokenizer: Any, encoder: Any) -> int:
    """Tokens that CLIP reads at once."""
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


def weigh(states: Tensor, empty: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """States (n, length, width) moved away from the empty prompt's (length, width), token by token, by their weights:
    ComfyUI's way, so that a prompt means the same in both."""
    factor = torch.tensor(weights, dtype=states.dtype, device=states.device).unsqueeze(-1)
    return torch.where(factor == 1, states, empty + (states - empty) * factor)


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
