"""Weights in one buffer must be the same weights, and learn the same."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lora_foundry.families._shared.targets import Target
from lora_foundry.trainer.lora import Adapter, flatten
from lora_foundry.trainer.optimizers import build_optimizer
from tests.unit.trainer.conftest import short_section

SHAPES = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=6)


@given(SHAPES)
def test_every_tensor_keeps_its_values_and_shares_the_buffer(shapes: list[list[int]]) -> None:
    tensors = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    before = [tensor.detach().clone() for tensor in tensors]
    buffer = flatten(tensors)
    for number, (tensor, value) in enumerate(zip(tensors, before, strict=True), start=1):
        assert torch.equal(tensor, value)
        assert tensor.data_ptr() % 16 == 0
        tensor.grad.fill_(number)
    with torch.no_grad():
        buffer -= buffer.grad
    for number, (tensor, value) in enumerate(zip(tensors, before, strict=True), start=1):
        assert torch.equal(tensor, value - number)  # no two overlap, and all are in the buffer


def adapter() -> tuple[nn.Module, Adapter]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), nn.SiLU(), nn.Linear(5, 3)).requires_grad_(False)
    targets = [Target("unet", "0"), Target("unet", "2")]
    return network, Adapter({"unet": network}, targets, short_section(rank=2, alpha=2.0), 1)


def test_backward_adds_to_gradients_that_stay() -> None:
    network, learned = adapter()
    places = [tensor.grad.data_ptr() for tensor in learned.parameters()]
    for _ in range(2):
        network(torch.ones(1, 6)).sum().backward()
    twice = learned.buffers["unet"].grad.clone()
    learned.zero_gradients()
    assert not learned.buffers["unet"].grad.any()
    network(torch.ones(1, 6)).sum().backward()
    assert torch.allclose(2 * learned.buffers["unet"].grad, twice)
    assert twice.any()
    assert places == [tensor.grad.data_ptr() for tensor in learned.parameters()]


def test_adamw_learns_as_over_single_tensors() -> None:
    (one, flat), (other, single) = adapter(), adapter()
    section = short_section(rank=2, alpha=2.0)
    optimizers = [
        build_optimizer(section, flat),
        torch.optim.AdamW(
            single.parameters(), lr=section.learning_rate, weight_decay=section.weight_decay, fused=True
        ),
    ]
    assert sum(len(group["params"]) for group in optimizers[0].param_groups) == 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        x = torch.randn(4, 6, generator=generator)
        for network, learned, optimizer in zip((one, other), (flat, single), optimizers, strict=True):
            network(x).square().sum().backward()
            optimizer.step()
            learned.zero_gradients()
    for left, right in zip(flat.parameters(), single.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=1e-6, atol=1e-8)
