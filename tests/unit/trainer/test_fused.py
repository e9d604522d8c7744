"""The fused form must learn what the plain one learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.targets import Target
from lora_foundry.trainer.fused import FusedLora, fuse
from lora_foundry.trainer.lora import NAME, Adapter


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20)
        self.second = nn.Linear(20, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.second(torch.nn.functional.silu(self.first(x)))
        return answer


def gradients(
    kind: torch.dtype, fused: bool, half: bool = False, **settings: object
) -> tuple[list[Tensor], int]:
    torch.manual_seed(0)
    network = Small().requires_grad_(False).to(kind)
    section = TrainSection.model_validate({"rank": 4, "alpha": 2.0} | settings)
    adapter = Adapter({"unet": network}, [Target("unet", "first"), Target("unet", "second")], section, 3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in adapter.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    adapter.weights_changed()
    twins = adapter.keep_half_copies(kind) if half else {}
    count = fuse(network, NAME, twins) if fused else 0
    x = torch.randn(2, 5, 12, generator=generator).to(kind).requires_grad_()
    answer = network(x)
    answer.float().square().sum().backward()
    adapter.gradients_added()
    assert x.grad is not None
    return [
        answer,
        x.grad,
        *(tensor.grad for tensor in adapter.parameters() if tensor.grad is not None),
    ], count


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_the_result_and_every_gradient_are_those_of_the_plain_form(
    kind: torch.dtype, tolerance: float
) -> None:
    plain, _ = gradients(kind, fused=False)
    fused, count = gradients(kind, fused=True)
    assert count == 2
    assert len(plain) == len(fused) == 6
    for one, other in zip(plain, fused, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(
            one.float(), other.float(), rtol=tolerance, atol=tolerance * one.abs().max().item()
        )


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_sixteen_bit_copies_learn_what_casting_each_matrix_does(kind: torch.dtype) -> None:
    cast, _ = gradients(kind, fused=True)
    copied, count = gradients(kind, fused=True, half=True)
    assert count == 2
    for one, other in zip(cast, copied, strict=True):
        assert one.dtype == other.dtype
        scale = one.abs().max().item()
        assert torch.allclose(one.float(), other.float(), rtol=0.01, atol=0.01 * scale)
    assert gradients(torch.float32, fused=True, half=True)[1] == 2  # nothing to copy


def test_copies_follow_the_weights_and_gradients_add_up_in_fp32() -> None:
    """Many small gradients after a large one would be lost in bf16."""
    network = Small().requires_grad_(False).to(torch.bfloat16)
    section = TrainSection.model_validate({"rank": 4, "alpha": 2.0})
    adapter = Adapter({"unet": network}, [Target("unet", "first"), Target("unet", "second")], section, 3)
    twins = adapter.keep_half_copies(torch.bfloat16)
    assert set(twins) == set(adapter.parameters())
    for parameter, twin in twins.items():
        assert torch.equal(parameter.to(torch.bfloat16), twin)
        for value in (256.0, *[0.5] * 8):
            twin.grad.fill_(value)
            adapter.gradients_added()
        assert torch.equal(parameter.grad, torch.full_like(parameter.grad, 260.0))
        assert not twin.grad.any()
        adapter.zero_gradients()
    adapter.load({name: torch.full_like(tensor, 0.25) for name, tensor in adapter.named().items()})
    assert all(bool((twin == 0.25).all()) for twin in twins.values())


def test_dora_keeps_its_own_form() -> None:
    _, count = gradients(torch.float32, fused=True, network="dora")
    assert count == 0


def test_the_formula_by_numerical_differentiation() -> None:
    torch.manual_seed(0)
    x, weight, bias, down, up = (
        torch.randn(*shape, dtype=torch.float64) for shape in ((3, 4), (5, 4), (5,), (2, 4), (5, 2))
    )
    for tensor in (x, down, up):
        tensor.requires_grad_()

    def plain() -> Tensor:
        return x @ weight.T + bias + 0.7 * (x @ down.T) @ up.T

    down.grad, up.grad = torch.ones_like(down), torch.ones_like(up)
    answer: Tensor = FusedLora.apply(x, bias, down, up, 0.7, lambda stored, dtype: stored[0], weight)
    assert torch.allclose(answer, plain())
    given = torch.randn_like(answer)
    expected = torch.autograd.grad(plain(), (x, down, up), given)
    answer.backward(given)
    for found, other in zip((x.grad, down.grad - 1, up.grad - 1), expected, strict=True):
        assert torch.allclose(found, other, rtol=1e-5, atol=1e-6)
