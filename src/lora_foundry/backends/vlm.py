"""A vision-language model as a captioner, behind any OpenAI-compatible address: Ollama and vLLM on a machine of one's
own, or a service."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from lora_foundry.context import Context
from lora_foundry.domain.character import Character, split_tags
from lora_foundry.domain.dataset import PictureRecord
from lora_foundry.errors import BackendError, InputError
from lora_foundry.files.images import load_picture

_QUESTION = (
    "List what this picture shows of one character as short lower-case tags, separated by commas and nothing else: "
    "hair, eyes, clothes, accessories, pose, facial expression, camera angle, framing, lighting, background. "
    "Leave out whatever cannot be seen."
)
_LONGEST_SIDE = 1024
_MOST_WORDS = 5  # longer parts are sentences, not tags
_PATIENCE = 120.0


class VisionCaptioner:
    """Asks the model about one picture at a time, at temperature 0."""

    @classmethod
    def make(cls, context: Context) -> Self:
        """See registry."""
        return cls(context.settings.vlm_url, context.settings.vlm_model, context.settings.vlm_key)

    def __init__(
        self, url: str | None, model: str, key: str = "", transport: httpx.BaseTransport | None = None
    ) -> None:
        if not url or not model:
            raise InputError(
                "caption.look = ['vlm'] needs LORA_FOUNDRY_VLM_URL and LORA_FOUNDRY_VLM_MODEL, such as "
                "http://127.0.0.1:11434/v1 and a vision model's name."
            )
        self._url, self._model = url.rstrip("/"), model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=_PATIENCE, headers=headers, transport=transport)

    def describe(
        self, character: Character, pictures: Sequence[PictureRecord], folder: Path
    ) -> list[list[str]]:
        """See ports.Captioner. Raises InputError where the server refuses, BackendError where it does not answer."""
        return [self._ask(folder / picture.file) for picture in pictures]

    def _ask(self, path: Path) -> list[str]:
        content = [
            {"type": "text", "text": _QUESTION},
            {"type": "image_url", "image_url": {"url": _data_uri(path)}},
        ]
        body = {"model": self._model, "temperature": 0, "messages": [{"role": "user", "content": content}]}
        try:
            answer = self._client.post(f"{self._url}/chat/completions", json=body)
        except httpx.HTTPError as error:
            raise BackendError(
                f"The vision model at {self._url} does not answer ({type(error).__name__}); start it, or set "
                "LORA_FOUNDRY_VLM_URL."
            ) from error
        if answer.status_code >= 500 or answer.status_code in (408, 429):
            raise BackendError(
                f"The vision model at {self._url} failed with HTTP {answer.status_code}; try again."
            )
        if answer.is_error:
            reason = " ".join(answer.text.split())[:200]
            raise InputError(f"The vision model at {self._url} refused: HTTP {answer.status_code}, {reason}")
        return parse_answer(_text(answer, self._url))


def _text(answer: httpx.Response, url: str) -> str:
    try:
        content: Any = answer.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise BackendError(f"{url} did not answer as an OpenAI-compatible server does.") from error
    if not isinstance(content, str):
        raise BackendError(f"{url} answered without text.")
    return content


def parse_answer(text: str) -> list[str]:
    """The tags of an answer: list signs, quotes and full stops taken off, whole sentences left out."""
    plain = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    parts = split_tags(re.sub(r"(?m)^\s*(?:[-*•]|\d+[.)])\s*", "", plain).replace(";", ","))
    tags = (part.strip(" .\"'`*").lower() for part in parts)
    return list(
        dict.fromkeys(tag for tag in tags if tag and len(tag.split()) <= _MOST_WORDS and ":" not in tag)
    )


def _data_uri(path: Path) -> str:
    image = load_picture(path, within=2 * _LONGEST_SIDE)
    if image is None:
        raise BackendError(f"The picture {path} cannot be read; run again.")
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    data = io.BytesIO()
    image.save(data, format="PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
