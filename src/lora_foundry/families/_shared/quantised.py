"""A frozen base in 8 or 4 bits a weight, for cards that do not hold it in 16. Only the large matrices of the repeated blocks
are packed, where nearly all weights are; each is unpacked whole while its layer computes, forward and backward, and let go
of again, so that the gradients are exactly those of a network with the unpacked weights. Packed after loading rather than by
the library's quantisers while it loads: a training adapter must be added first, checkpoints of all layouts come the same
way, and what a LoRA's fused form multiplies by must be at hand (docs/decisions/0023-small-cards.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lora_foundry.domain.sections import TrainSection
from lora_foundry.extras import missing_package
from lora_foundry.families._shared.cpu_layers import widened

Packing = Literal["int8", "nf4"]
PACKINGS: tuple[Packing, ...] = ("int8", "nf4")  # the more exact one first
Unpack = Callable[[Sequence[Tensor], torch.dtype], Tensor]
"""Makes a layer's matrix (out, in) of the tensors that it is kept in, in the type that is asked for."""

_INT8_MOST = 127
_NF4_BLOCK = 64  # weights that share a scale, as in QLoRA (arXiv 2305.14314)
_BITSANDBYTES = "bitsandbytes"


class Packed(NamedTuple):
    """A matrix (out, in) in few bits: its codes, and their scales in fp32. int8: codes (out, in), a scale a row. nf4: two
    codes a byte, a scale for each 64 weights in reading order."""

    codes: Tensor
    scales: Tensor


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose matrix is packed: `weight` holds the codes, `scales` their scales. A subclass of
    `nn.Linear`, so that a LoRA finds it by its kind and its sizes."""

    def __init__(self, layer: nn.Linear, packing: Packing, device: torch.device) -> None:
        """Packs the matrix of `layer` on `device`, where codes and scales stay."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.packing = layer.in_features, layer.out_features, packing
        packed = pack(layer.weight.detach().to(device), packing)
        self.weight = nn.Parameter(packed.codes, requires_grad=False)
        self.register_buffer("scales", packed.scales, persistent=False)
        bias: Tensor | None = layer.bias
        kept = None if bias is None else nn.Parameter(bias.to(device), requires_grad=False)
        self.register_parameter("bias", kept)

    def unpack(self, stored: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The matrix (out, in) in `dtype` of what `stored_tensors` gave."""
        return unpack(Packed(*stored), self.packing, (self.out_features, self.in_features), dtype)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = _multiply(input, self.bias, self.unpack, *stored_tensors(self))
        return result


class _FrozenProduct(torch.autograd.Function):
    """y = x W^T + b, W and b frozen: W is what `unpack` makes of `stored`, forward and again backward. Nothing of x is
    kept."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        bias: Tensor | None,
        unpack: Unpack,
        *stored: Tensor,
    ) -> Tensor:
        context.save_for_backward(*stored)
        context.unpack = unpack
        return functional.linear(x, unpack(stored, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(context: Any, above: Tensor) -> tuple[Tensor | None, ...]:
        rest = (None,) * (2 + len(context.saved_tensors))
        if not context.needs_input_grad[0]:
            return None, *rest
        return above @ context.unpack(context.saved_tensors, above.dtype), *rest


_multiply: Any = _FrozenProduct.apply  # untyped in the library


def stored_tensors(layer: nn.Linear) -> tuple[Tensor, ...]:
    """The tensors that a layer's matrix is kept in: what a function that computes with it must save for its way back."""
    if isinstance(layer, QuantisedLinear):
        return layer.weight, layer.get_buffer("scales")
    return (layer.weight,)


def unpacker(layer: nn.Linear) -> Unpack:
    """What makes a layer's matrix of its `stored_tensors`."""
    if isinstance(layer, QuantisedLinear):
        return layer.unpack
    return _widen


def _widen(stored: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return widened(stored[0], dtype)


def repeated_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks that a network is made of, by their paths: of the classes that diffusers says are repeated, or that
    transformers never splits. Gradient checkpointing computes each of them anew as a whole."""
    declared = getattr(network, "_repeated_blocks", None) or getattr(network, "_no_split_modules", None)
    kinds, found = set(declared or ()), dict[str, nn.Module]()
    for name, module in network.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if type(module).__name__ in kinds and not inside:
            found[name] = module
    return found


def packable(block: nn.Module) -> list[str]:
    """The paths in a block of the layers that are packed: its plain linear ones."""
    return [name for name, layer in block.named_modules() if type(layer) is nn.Linear]


def quantise(block: nn.Module, packing: Packing, device: torch.device) -> None:
    """Packs a block's matrices on `device`, one after another. Raises MissingExtraError."""
    for path in packable(block):
        parent, _, name = path.rpartition(".")
        layer = block.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        setattr(block.get_submodule(parent), name, QuantisedLinear(layer, packing, device))


def packing_of(settings: TrainSection) -> Packing | None:
    """How the settings want a base packed; not at all where they leave it open, which is for the memory's plan to say."""
    match settings.quantise:
        case "int8" | "nf4" as packing:
            return packing
    return None


def installed_packings() -> tuple[Packing, ...]:
    """Those that this environment can do: NF4 needs bitsandbytes (extra `cuda`)."""
    return PACKINGS if find_spec(_BITSANDBYTES) is not None else ("int8",)


def packed_bytes(shape: tuple[int, int], packing: Packing) -> int:
    """What a matrix (out, in) takes."""
    count = shape[0] * shape[1]
    if packing == "int8":
        return count + 4 * shape[0]
    return -(-count // 2) + 4 * -(-count // _NF4_BLOCK)


@torch.no_grad()
def pack(weight: Tensor, packing: Packing) -> Packed:
    """A matrix (out, in) in few bits. int8: rounded to 127 steps either way up to each row's largest value;
    nf4: bitsandbytes', to the 16 quantiles of a normal distribution. Raises MissingExtraError."""
    if packing == "nf4":
        codes, state = _bitsandbytes().quantize_4bit(
            weight.contiguous(), blocksize=_NF4_BLOCK, quant_type="nf4"
        )
        return Packed(codes, state.absmax)
    largest = weight.abs().amax(1, keepdim=True).float()
    scales = (largest / _INT8_MOST).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (weight / scales).round_().clamp_(-_INT8_MOST, _INT8_MOST)
    return Packed(codes.to(torch.int8), scales)


def unpack(packed: Packed, packing: Packing, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix of `shape` in `dtype`; what is multiplied is multiplied in fp32."""
    if packing == "nf4":
        library = _bitsandbytes()
        state = library.QuantState(
            absmax=packed.scales, shape=torch.Size(shape), dtype=dtype, blocksize=_NF4_BLOCK, quant_type="nf4"
        )
        result: Tensor = library.dequantize_4bit(packed.codes, state)
        return result
    matrix = torch.empty(shape, dtype=dtype, device=packed.codes.device)
    return torch.mul(packed.codes, packed.scales, out=matrix)


def _bitsandbytes() -> Any:
    try:
        return import_module(f"{_BITSANDBYTES}.functional")
    except ImportError as error:
        raise missing_package('train.quantise = "nf4"', error) from error
