"""A base on a card that does not hold it: blocks that are streamed learn bit for bit what blocks that stay learn, and a
quantised base learns what a network with the unpacked weights learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.errors import MissingExtraError
from lora_foundry.families._shared import quantised
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.prompts import Condition
from lora_foundry.families._shared.quantised import (
    Packing,
    QuantisedLinear,
    pack,
    packed_bytes,
    quantise,
    repeated_blocks,
    unpack,
)
from lora_foundry.families._shared.streaming import Streamed, streamed_places, streams_of
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.lora import NAME, Adapter
from tests.unit.trainer import tiny_bases, tiny_qwen

CPU = torch.device("cpu")
FAMILIES: dict[str, tuple[Callable[[Path], Path], int]] = {
    # and the channels of their latents
    "sdxl": (tiny_bases.sdxl_folder, 4),
    "z_image": (tiny_bases.z_image_folder, 16),
    "klein": (tiny_bases.klein_folder, 128),
    "qwen_image": (tiny_qwen.qwen_image_folder, 16),
    "krea2": (tiny_qwen.krea2_folder, 16),
    "anima": (tiny_qwen.anima_folder, 16),
}


def usable(packing: Packing) -> None:
    if packing == "nf4":
        pytest.importorskip("bitsandbytes")


class Family(NamedTuple):
    base: Base
    conditions: list[Condition]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    base = find_base(str(FAMILIES[request.param][0](tmp_path_factory.mktemp(request.param))))
    with torch.no_grad():
        model = load_family(base, section(), CPU)
        return Family(base, model.encode_captions(["elara, running", "elara"]))


def section(**given: object) -> TrainSection:
    chosen = {"precision": "fp32", "rank": 4, "min_snr_gamma": 0.0, "gradient_checkpointing": True} | given
    return TrainSection.model_validate(chosen)


class Learner:
    """A family's network with a LoRA that is not zero, on two pictures."""

    def __init__(
        self, family: Family, change: Callable[[nn.Module], None] = lambda network: None, **given: object
    ) -> None:
        settings = section(**given)
        self.model = load_family(family.base, settings, CPU)
        change(self.model.network)
        self.adapter = Adapter(self.model.networks, self.model.lora_targets(settings), settings, 0)
        fuse(self.model.network, NAME)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in self.adapter.parameters():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
        latents = torch.randn(2, FAMILIES[family.base.family][1], 8, 8, generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        condition = self.model.stack(family.conditions)
        self.batch = Batch(latents, condition, noise, torch.tensor([0.3, 0.8]))

    def step(self) -> list[Tensor]:
        """The losses, and every gradient of a step."""
        self.adapter.zero_gradients()
        losses = self.model.losses(self.batch)
        losses.sum().backward()
        gradients = [tensor.grad.clone() for tensor in self.adapter.parameters() if tensor.grad is not None]
        assert sum(bool(gradient.any()) for gradient in gradients) > len(gradients) / 2
        return [losses.detach(), *gradients]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_streamed_blocks_learn_the_same_to_the_last_bit(family: Family, share: float) -> None:
    """On a GPU the weights of a block that is not there lie elsewhere; here NaN stands in their place, so that equal
    gradients show that each was there whenever it was used, in the forward pass, anew in the backward pass, and in the
    next step."""
    plain, streamed = Learner(family), Learner(family, streamed=share)
    blocks = list(repeated_blocks(streamed.model.network).values())
    absent = [any(bool(tensor.isnan().any()) for tensor in block.parameters()) for block in blocks]
    assert sum(absent) == len(streamed_places(len(blocks), share)) > 0
    streams = streams_of(streamed.model.network)
    assert streams is not None
    for _ in range(3):
        for one, other in zip(plain.step(), streamed.step(), strict=True):
            assert torch.equal(one, other)
        assert len(streams.present) <= 2
    largest = sorted(streams.block_bytes)[-2:]
    assert streams.resident <= sum(largest)
    with torch.no_grad():  # as pictures are drawn
        for _ in range(2):
            assert torch.equal(plain.model.losses(plain.batch), streamed.model.losses(streamed.batch))


@pytest.mark.slow
def test_after_the_first_step_every_block_is_brought_twice_a_step_and_never_in_vain(family: Family) -> None:
    learner = Learner(family, streamed=1.0)
    streams = streams_of(learner.model.network)
    assert streams is not None
    learner.step()
    learner.step()
    before, count = streams.brought, len(repeated_blocks(learner.model.network))
    learner.step()
    # Two stay where forward and backward pass meet, and two where the steps do.
    assert streams.brought - before == 2 * (count - 2)


def test_without_checkpointing_what_computes_with_absent_weights_shows() -> None:
    """Why the settings refuse it: gradients are NaN rather than wrong without a word."""
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3)).requires_grad_(False)
    for block in blocks:
        quantise(block, "int8", CPU)
    Streamed(list(blocks), CPU)
    x = torch.randn(2, 4, requires_grad=True)
    nn.Sequential(*blocks)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isnan().any()


@given(blocks=st.integers(0, 80), share=st.floats(0, 1))
def test_a_share_of_the_blocks_is_spread_evenly(blocks: int, share: float) -> None:
    places = streamed_places(blocks, share)
    assert places == sorted(set(places))
    assert set(places) <= set(range(blocks))
    assert (len(places) > 0) == (share > 0 and blocks > 0)
    if len(places) > 1:
        gaps = {later - earlier for earlier, later in pairwise(places)}
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "streamed"), [("int8", 0.0), ("int8", 1.0), ("nf4", 1.0)])
def test_a_quantised_base_learns_what_its_unpacked_weights_do(
    family: Family, packing: Packing, streamed: float
) -> None:
    usable(packing)
    quantised_one = Learner(family, quantise=packing, streamed=streamed)
    layers = [
        name
        for name, layer in quantised_one.model.network.named_modules()
        if isinstance(layer, QuantisedLinear)
    ]
    assert len(layers) > 10

    def unpacked(network: nn.Module) -> None:
        for block in repeated_blocks(network).values():
            for layer in block.modules():
                if type(layer) is nn.Linear:
                    shape = (layer.out_features, layer.in_features)
                    layer.weight.data = unpack(pack(layer.weight, packing), packing, shape, torch.float32)

    as_numbers = Learner(family, unpacked)
    for one, other in zip(as_numbers.step(), quantised_one.step(), strict=True):
        assert torch.equal(one, other)
    exact = Learner(family)
    away = [
        float((one - other).norm() / one.norm().clamp_min(1e-9))
        for one, other in zip(exact.step(), as_numbers.step(), strict=True)
    ]
    assert 0 < away[0] < {"int8": 0.01, "nf4": 0.2}[packing]


@given(rows=st.integers(1, 40), columns=st.integers(1, 200), size=st.floats(1e-6, 1e3))
def test_a_matrix_comes_back_within_half_a_step(rows: int, columns: int, size: float) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns)) * size
    packed = pack(weight, "int8")
    assert sum(tensor.nbytes for tensor in packed) == packed_bytes((rows, columns), "int8")
    error = (unpack(packed, "int8", (rows, columns), torch.float32) - weight).abs()
    assert bool((error <= packed.scales * 0.5001).all())


def test_nf4_comes_back_within_half_its_widest_gap() -> None:
    """One shape only: on a CPU the library compiles a function for each."""
    usable("nf4")
    weight = torch.randn(24, 72, generator=torch.Generator().manual_seed(3))
    packed = pack(weight, "nf4")
    assert sum(tensor.nbytes for tensor in packed) == packed_bytes((24, 72), "nf4")
    error = (unpack(packed, "nf4", (24, 72), torch.float32) - weight).abs()
    assert float(error.max()) <= 0.153 * float(weight.abs().max())  # from -1 to -0.696


def test_rows_of_zeros_stay_zeros() -> None:
    packed = pack(torch.zeros(3, 5), "int8")
    assert not unpack(packed, "int8", (3, 5), torch.bfloat16).any()


@pytest.fixture
def no_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import sys

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        patch.setitem(sys.modules, "bitsandbytes.functional", None)
        patch.setattr(quantised, "find_spec", lambda name: None)
        yield


def test_nf4_without_its_package_says_what_to_install(no_bitsandbytes: None) -> None:
    assert quantised.installed_packings() == ("int8",)
    with pytest.raises(MissingExtraError, match=r"train\.quantise = \"nf4\".*\[cuda\]"):
        pack(torch.ones(2, 64), "nf4")
