"""Prompts of any length are encoded whole, and short ones exactly as diffusers does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline
from lora_foundry.families._shared.prompts import PromptEncoder, encode_prompts

LONG = ", ".join(["brown hair", "blue eyes", "red dress"] * 30)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(find_base("mini"), torch.float32, "cpu")


def test_a_short_prompt_is_what_diffusers_makes_of_it(pipeline: Any) -> None:
    for text in ("", "1girl, brown hair"):
        theirs = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0]
        assert torch.allclose(encode_prompts(pipeline, [text]), theirs, atol=1e-6)


def test_no_token_of_a_long_prompt_is_lost(pipeline: Any) -> None:
    pieces = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder).pieces(LONG)
    assert len(pieces) > 2
    assert {len(piece) for piece in pieces} == {pipeline.tokenizer.model_max_length}
    special = set(pipeline.tokenizer.all_special_ids)
    kept = [token for piece in pieces for token in piece if token not in special]
    assert kept == pipeline.tokenizer(LONG, add_special_tokens=False, verbose=False).input_ids


def test_prompts_of_unlike_length_share_a_shape_and_the_filling_is_the_empty_prompt(pipeline: Any) -> None:
    window = pipeline.tokenizer.model_max_length
    encoded = encode_prompts(pipeline, [LONG, "1girl", LONG])
    assert encoded.shape[0] == 3
    assert encoded.shape[1] > 2 * window
    assert torch.equal(encoded[0], encoded[2])
    assert torch.equal(encoded[1, :window], encode_prompts(pipeline, ["1girl"])[0])
    assert torch.equal(encoded[1, window : 2 * window], encode_prompts(pipeline, [""])[0])


def test_a_prompt_that_fills_its_window_exactly_takes_no_second_one(pipeline: Any) -> None:
    room = pipeline.tokenizer.model_max_length - 2
    encoder = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
    word = "hair "
    assert len(encoder.pieces(word * room)) == 1
    assert len(encoder.pieces(word * (room + 1))) == 2
