"""Convolutions in a transformed space must answer as torch's own do, whatever the picture's shape and the strips."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from lora_foundry.families._shared import convolutions
from lora_foundry.families._shared.convolutions import convolve_large, is_large, use_fast_convolutions

HERE = convolutions._available()  # without NNPACK the same is asked of what stands in for it


def alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(6, 40), st.integers(6, 40)),
    bias=st.booleans(),
    strips=st.booleans(),
)
def test_the_answer_is_the_librarys(
    count: int, channels: tuple[int, int], size: tuple[int, int], bias: bool, strips: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, channels[0], *size, generator=generator)
    weight = torch.randn(channels[1], channels[0], 3, 3, generator=generator)
    shift = torch.randn(channels[1], generator=generator) if bias else None
    answers: list[Tensor] = []
    nnpack = convolutions._nnpack

    def noted(*arguments: object) -> Tensor:
        answers.append(nnpack(*arguments))
        return answers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolutions, "_nnpack", noted)
        if strips:
            patch.setattr(convolutions, "_ROOM", 1)
        answer = convolve_large(x, weight, shift)
    assert alike(answer, functional.conv2d(x, weight, shift, padding=1))
    assert len(answers) == HERE * count * (-(-size[0] // 6) if strips else 1)


@pytest.mark.parametrize("room", [1, 1 << 30])
def test_a_refusal_is_computed_the_usual_way(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise RuntimeError("NNPACK SpatialConvolution_updateOutput failed")

    monkeypatch.setattr(convolutions, "_nnpack", refuse)
    monkeypatch.setattr(convolutions, "_ROOM", room)
    x, weight, shift = torch.randn(2, 4, 13, 11), torch.randn(5, 4, 3, 3), torch.randn(5)
    assert alike(convolve_large(x, weight, shift), functional.conv2d(x, weight, shift, padding=1))


def test_views_are_understood() -> None:
    x = torch.randn(2, 16, 12, 10).to(memory_format=torch.channels_last)
    weight = torch.randn(4, 16, 3, 3).flip(2, 3).transpose(0, 1)
    expected = functional.conv2d(x[:, :4], weight, padding=1)
    assert alike(convolve_large(x[:, :4], weight, None), expected)


def test_only_what_is_large_and_in_fp32_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_available", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    weight = torch.zeros(128, 128, 3, 3)
    assert is_large(torch.zeros(1, 128, 64, 64), weight)
    assert not is_large(torch.zeros(1, 128, 63, 64), weight)
    assert not is_large(torch.zeros(1, 128, 64, 64), weight[:64])
    assert not is_large(torch.zeros(1, 128, 64, 64).half(), weight.half())
    assert not is_large(torch.zeros(1, 128, 64, 64, device="meta"), weight)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert is_large(torch.zeros(1, 128, 32, 32), weight)
    assert not is_large(torch.zeros(1, 128, 31, 32), weight)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, 2, 1)]
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.parametrize("available", [True, False])
def test_a_network_answers_as_before(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_PLACES", 1)
    monkeypatch.setattr(convolutions, "_CHANNELS", 4)
    taken: list[tuple[int, ...]] = []
    convolve = convolutions._convolve

    def note(picture: Tensor, weight: Tensor, bias: Tensor | None, margin: int) -> Tensor:
        taken.append(tuple(weight.shape[:2]))
        return convolve(picture, weight, bias, margin)

    monkeypatch.setattr(convolutions, "_convolve", note)
    monkeypatch.setattr(convolutions, "_available", lambda: available)
    layers, x = network(), torch.randn(2, 3, 20, 14)
    before = layers(x)
    use_fast_convolutions(layers)
    with torch.no_grad():
        assert alike(layers(x), before)
    # Only the second layer has enough channels on both sides and no stride; one call a picture.
    assert taken == ([(8, 8)] * 2 if available else [])


def test_a_gradient_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_PLACES", 1)
    monkeypatch.setattr(convolutions, "_CHANNELS", 4)
    layers, x = network(), torch.randn(1, 3, 70, 70)
    expected = torch.autograd.grad(layers(x.requires_grad_()).square().sum(), x)[0]
    use_fast_convolutions(layers)
    assert alike(torch.autograd.grad(layers(x).square().sum(), x)[0], expected)


def test_what_is_let_go_of_is_gone_at_once() -> None:
    layers = network()
    use_fast_convolutions(layers)
    watched = weakref.ref(layers[1])
    gc.disable()
    try:
        del layers
        assert watched() is None
    finally:
        gc.enable()


def test_without_the_library_nothing_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_nnpack", None)
    convolutions._available.cache_clear()
    try:
        assert not is_large(torch.zeros(1, 128, 64, 64), torch.zeros(128, 128, 3, 3))
    finally:
        convolutions._available.cache_clear()
