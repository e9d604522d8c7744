"""Frozen layers in their own form must answer, forward and backward, as torch's do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_foundry.families._shared import convolutions, cpu_layers
from lora_foundry.families._shared.cpu_layers import use_cpu_layers

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1, "bias": False},
]


def answers(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    answer: Tensor = network(x)
    answer.square().sum().backward()
    assert x.grad is not None
    return answer.detach(), x.grad


def network_of(layer: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(layer, nn.GroupNorm(2, 8), nn.SiLU()).requires_grad_(False)


@pytest.mark.parametrize("few", [0, 10**6], ids=["library", "patches"])
@pytest.mark.parametrize("shape", CONVOLUTIONS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_convolution_answers_as_before(
    few: int, shape: dict[str, int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_layers, "_WIDE", 0)
    monkeypatch.setattr(cpu_layers, "_FEW", few)
    network = network_of(nn.Conv2d(4, 8, **shape))
    x = torch.randn(count, 4, 6, 5)
    before = answers(network, x)
    use_cpu_layers(network)
    for one, other in zip(before, answers(network, x), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_a_large_convolution_answers_as_before(
    shape: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "_PLACES", 1)
    monkeypatch.setattr(convolutions, "_CHANNELS", 4)
    taken: list[int] = []
    convolve = convolutions._convolve

    def note(picture: Tensor, weight: Tensor, bias: Tensor | None, margin: int) -> Tensor:
        taken.append(len(weight))
        return convolve(picture, weight, bias, margin)

    monkeypatch.setattr(convolutions, "_available", lambda: True)
    monkeypatch.setattr(convolutions, "_convolve", note)
    network = network_of(nn.Conv2d(4, 8, **shape))
    x = torch.randn(2, 4, 20, 15)
    before = answers(network, x)
    use_cpu_layers(network)
    for one, other in zip(before, answers(network, x), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4)
    plain = shape["kernel_size"] == 3 and "stride" not in shape
    assert taken == ([8, 8, 4, 4] if plain else [])  # two pictures, forward and back


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 1), nn.Linear(5, 5)])
def test_weights_kept_in_bf16_compute_in_fp32(layer: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(layer, nn.SiLU()).requires_grad_(False)
    x = torch.randn(2, 4, 6, 5)
    rounded = nn.Sequential(layer, nn.SiLU()).to(torch.bfloat16).float()
    before = answers(rounded, x)
    network.to(torch.bfloat16)
    use_cpu_layers(network)
    after = answers(network, x)
    assert {weight.dtype for weight in network.parameters()} == {torch.bfloat16}
    for one, other in zip(before, after, strict=True):
        assert other.dtype == torch.float32
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def test_other_weights_become_fp32_and_layers_that_learn_are_left_alone() -> None:
    network = network_of(nn.Conv2d(4, 8, 3)).to(torch.bfloat16)
    network.append(nn.Conv2d(8, 2, 1))
    use_cpu_layers(network)
    assert network[1].weight.dtype == torch.float32
    assert "forward" in vars(network[0])
    assert "forward" not in vars(network[3])


def test_nothing_of_the_activations_is_kept() -> None:
    """What autograd holds until the way back are the weights alone, as they are."""
    kept: list[Tensor] = []
    layer = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1)).requires_grad_(False).to(torch.bfloat16)
    use_cpu_layers(layer)

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(torch.randn(1, 4, 6, 6, requires_grad=True))
    assert [tensor.data_ptr() for tensor in kept] == [layer[0].weight.data_ptr()]
