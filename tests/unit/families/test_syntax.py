"""Weighted prompts mean what they mean in ComfyUI; captions stand as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import load_pipeline
from lora_foundry.families._shared.prompts import PromptEncoder
from lora_foundry.families._shared.syntax import parse_weights, plain_text, split_windows


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(find_base("mini"), torch.float32, "cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("(red)", [("red", 1.1)]),
        ("a (red:1.3) hat", [("a ", 1.0), ("red", 1.3), (" hat", 1.0)]),
        ("((red))", [("red", pytest.approx(1.21))]),
        ("((red:1.5) hat:0.5)", [("red", 0.75), (" hat", 0.5)]),
        (r"reimu \(touhou\)", [("reimu (touhou)", 1.0)]),
        (r"(reimu \(touhou\):1.2)", [("reimu (touhou)", 1.2)]),
        ("a) smile :(", [("a) smile :(", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("", [("", 1.0)]),
    ],
)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert parse_weights(text) == expected


@given(st.text(alphabet=st.sampled_from(list("ab ,.:12()\\")), max_size=30))
def test_whatever_is_written_has_a_meaning(text: str) -> None:
    found = parse_weights(text)
    assert found
    assert all(stretch.text or len(found) == 1 for stretch in found)


def test_break_and_captions() -> None:
    assert split_windows("a, b BREAK c") == ["a, b", "c"]
    assert split_windows("BREAKFAST") == ["BREAKFAST"]
    assert plain_text(r"reimu \(touhou\)") == "reimu (touhou)"


@torch.no_grad()
def test_a_weight_moves_the_word_away_from_the_empty_prompt(pipeline: Any) -> None:
    prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
    plain, weighted, empty = (
        prompts.encode_all([text], weighted=True)[0]["text"]
        for text in ("brown hair, blue eyes", "brown hair, (blue eyes:1.5)", "")
    )
    moved = (weighted - plain).abs().amax(-1) > 1e-6
    assert moved.any()
    assert torch.allclose(weighted[moved], empty[moved] + 1.5 * (plain[moved] - empty[moved]), atol=1e-5)
    # Beside others in one call it is the same, and a prompt without weights is what it was.
    both = prompts.encode_all(["brown hair, (blue eyes:1.5)", "brown hair, blue eyes"], weighted=True)
    assert torch.allclose(both[0]["text"], weighted, atol=1e-6)
    assert torch.allclose(
        both[1]["text"], prompts.encode_all(["brown hair, blue eyes"])[0]["text"], atol=1e-6
    )


@torch.no_grad()
def test_break_begins_a_window(pipeline: Any) -> None:
    prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)
    one, two = (prompts.encode(text) for text in ("brown hair", "blue eyes"))
    joined = prompts.encode_all(["brown hair BREAK blue eyes"], weighted=True)[0]["text"]
    assert torch.allclose(joined, torch.cat([one, two]), atol=1e-5)


@torch.no_grad()
def test_clip_skip_reads_the_last_layer_but_one(pipeline: Any) -> None:
    encoder = pipeline.text_encoder
    prompts = PromptEncoder(pipeline.tokenizer, encoder)
    hidden = encoder(torch.tensor(prompts.pieces("brown hair")), output_hidden_states=True).hidden_states[-2]
    expected = getattr(encoder, "text_model", encoder).final_layer_norm(hidden)[0]
    ours = PromptEncoder(pipeline.tokenizer, encoder, clip_skip=2).encode("brown hair")
    assert torch.equal(ours, expected)
    assert not torch.allclose(ours, prompts.encode("brown hair"), atol=1e-2)
