"""The language models of the Qwen series, by which several families read their prompts: their vocabulary, and a prompt as
a user's message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_foundry.families._shared.loading import load_vocabulary
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.vocabularies import QWEN3


def load_qwen_vocabulary() -> Any:
    """Qwen3's tokenizer, which the text encoder's file does not contain. Raises BaseModelError where there is none."""
    from transformers import AutoTokenizer

    return load_vocabulary(AutoTokenizer, QWEN3)


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
