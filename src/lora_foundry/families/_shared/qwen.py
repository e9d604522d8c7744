"""The language models of the Qwen series, by which several families read their prompts: their vocabulary, and a prompt as
a user's message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.families._shared.loading import load_vocabulary
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.vocabularies import QWEN3, Vocabulary

# How the names of a language model's weights begin in the files of models that see and read, in the order of trying.
_LANGUAGE = ("model.language_model.", "language_model.", "model.")
_OTHERS = ("visual.", "model.visual.", "lm_head.", "model.lm_head.")  # what a prompt has no use for


def load_qwen_vocabulary(vocabulary: Vocabulary = QWEN3) -> Any:
    """The tokenizer, which the text encoder's file does not contain. Raises BaseModelError where there is none."""
    from transformers import AutoTokenizer

    return load_vocabulary(AutoTokenizer, vocabulary)


def language_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The language model of a file of one that sees, too, under its own names."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(_OTHERS):
            prefix = next((each for each in _LANGUAGE if name.startswith(each)), "")
            found[name.removeprefix(prefix)] = tensor
    return found


def lengths_mask(condition: Condition) -> Tensor | None:
    """Of stacked prompts (n, length) what is real; None where all of it is, which networks compute faster."""
    lengths, longest = condition["lengths"], condition["text"].shape[1]
    if bool((lengths == longest).all()):
        return None
    places = torch.arange(longest, device=lengths.device)
    return (places < lengths[:, None]).to(condition["text"].device)


class ChatPrompts:
    """Prompts as a user's messages to a language model: its last states but one, as long as the prompt is."""

    LONGEST = 512

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self._tokenizer, self._encoder = tokenizer, text_encoder

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {}

    def encode_all(self, texts: Sequence[str], weighted: bool = False) -> list[Condition]:
        """A language model reads words, and brackets as brackets: `weighted` is without meaning."""
        return [{"text": self._encode(text)} for text in texts]

    def _encode(self, text: str) -> Tensor:
        ids = self._tokenizer(
            self._message(text, thinking=True), truncation=True, max_length=self.LONGEST, return_tensors="pt"
        ).input_ids
        answer = self._encoder(input_ids=ids.to(self._encoder.device), output_hidden_states=True)
        states: Tensor = answer.hidden_states[-2][0]
        return states

    def _message(self, text: str, thinking: bool) -> str:
        message: str = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        return message

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


class WithLengths:
    """What the models of families share whose captions keep their lengths, which the network is told."""

    def stack(self, conditions: Sequence[Condition], empty: Condition | None = None) -> Condition:
        return ChatPrompts.stack(conditions)
