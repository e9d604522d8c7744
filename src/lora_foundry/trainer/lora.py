"""The LoRA itself: peft's layers (LoRA, DoRA) or the lycoris library's (LoHa, LoKr) in the frozen networks, their weights
in fp32 whatever the base computes in, started from a seed of their own, addressed by the path of the module they
belong to, and laid out in one buffer with their gradients in another. An optimizer step over hundreds of small tensors
takes a host longer than a GPU computes for it; over one it is one call, as are the gradients' norm and their return to
zero, and a place for a gradient that stays is what a product can be added to directly (`fused`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_foundry.domain.sections import TrainSection
from lora_foundry.extras import missing_package
from lora_foundry.families._shared.targets import DENOISER, ENCODERS, Target

NAME = "default"
_ALIGNED = 64  # numbers: each tensor begins where wide loads may begin
DOWN, UP, MAGNITUDE = "lora_down.weight", "lora_up.weight", "dora_scale"


class LoraModule(NamedTuple):
    """What is trained at one module: tensors by the names that files give them (LoRA: lora_down.weight (r, in),
    lora_up.weight (out, r); convolutions have two more dimensions), and the alpha that scales them."""

    target: Target
    tensors: dict[str, nn.Parameter]
    alpha: float

    @property
    def name(self) -> str:
        return f"{self.target.part}:{self.target.module}"


class Adapter:
    """What learns, on `networks` by part. It changes nothing at first: the `up` matrices start at zero. `buffers` are the
    weights of the denoiser and of all text encoders, each with their gradients in one piece (`flatten`)."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        targets: Sequence[Target],
        settings: TrainSection,
        seed: int,
    ) -> None:
        self._owned: list[nn.Module] = []
        generator = torch.Generator().manual_seed(seed)
        modules: list[LoraModule] = []
        for part, network in networks.items():
            paths = [target.module for target in targets if target.part == part]
            if not paths:
                continue
            if settings.network in {"lora", "dora"}:
                _inject(network, paths, settings)
                layers = dict(network.named_modules())
                modules += [_start(Target(part, path), layers[path], settings, generator) for path in paths]
            else:
                for module, owner in _attach_lycoris(network, part, paths, settings, generator):
                    modules.append(module)
                    self._owned.append(owner)
        self.modules = tuple(modules)
        self.half: HalfCopies | None = None
        self.buffers = {
            part: flatten(tensors) for part in (DENOISER, ENCODERS) if (tensors := self.parameters(part))
        }

    def parameters(self, part: str = "") -> list[nn.Parameter]:
        """Every trained tensor, in a fixed order; of one part alone where it is named, `te` meaning all text
        encoders."""
        return [
            tensor
            for module in self.modules
            if module.target.part.startswith(part)
            for tensor in module.tensors.values()
        ]

    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())

    def named(self) -> dict[str, nn.Parameter]:
        """Every trained tensor by a name of its own."""
        return {
            f"{module.name}.{name}": tensor
            for module in self.modules
            for name, tensor in module.tensors.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights by name, on the CPU."""
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.named().items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave. Raises KeyError for a missing module."""
        for name, tensor in self.named().items():
            tensor.copy_(state[name])
        self.weights_changed()

    def keep_half_copies(self, dtype: torch.dtype) -> Mapping[nn.Parameter, nn.Parameter]:
        """Copies of the denoiser's LoRA in the 16-bit type that the network computes in, by their originals; nothing for
        fp32."""
        if dtype == torch.float32 or DENOISER not in self.buffers:
            return {}
        self.half = HalfCopies(self.buffers[DENOISER], self.parameters(DENOISER), dtype)
        return self.half.twins

    def weights_changed(self) -> None:
        """Is to be called after every change of the weights, before they are computed with."""
        if self.half:
            self.half.refresh()

    def gradients_added(self) -> None:
        """Is to be called after every backward pass, before the gradients are read."""
        if self.half:
            self.half.collect()

    def gradients(self) -> list[Tensor]:
        """All that a backward pass adds to: the buffers' gradients and those of the 16-bit copy."""
        found = [buffer.grad for buffer in self.buffers.values() if buffer.grad is not None]
        return [*found, self.half.gradients] if self.half else found

    @torch.no_grad()
    def clip_norms(self, largest: float) -> None:
        """Scales back each module whose update (alpha / r) * up @ down has a Frobenius norm above `largest`.

        |BA|^2 = sum((B^T B) * (A A^T)), two small products of rank by rank, and no question to the device.
        """
        for module in self.modules:
            down, up = module.tensors[DOWN], module.tensors[UP]
            low, high = down.flatten(1), up.flatten(1)
            square = ((high.T @ high) * (low @ low.T)).sum().clamp(min=0)
            norm = square.sqrt() * (module.alpha / len(low))
            factor = (largest / norm.clamp(min=1e-12)).clamp(max=1).sqrt()
            down.mul_(factor)
            up.mul_(factor)

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return all(bool(torch.isfinite(buffer).all()) for buffer in self.buffers.values())

    def zero_gradients(self) -> None:
        """Sets every gradient to zero, where it lies."""
        for buffer in self.buffers.values():
            assert buffer.grad is not None
            buffer.grad.zero_()


class HalfCopies:
    """A 16-bit copy of a buffer of weights, and another of its gradients. Computing in 16 bits with fp32 weights casts
    every matrix on its way in and adds every gradient on its way out, four small kernels a module and step; of a whole
    buffer that is one kernel each. `twins` are the parts of the copy, by the parameters they are copies of: the fused
    form (`fused`) computes with them, and adds their gradients to the copy's."""

    def __init__(self, buffer: nn.Parameter, parameters: Sequence[nn.Parameter], dtype: torch.dtype) -> None:
        assert buffer.grad is not None
        self._weights, self._gradients = buffer.data, buffer.grad
        self._half = self._weights.to(dtype)
        self.gradients = torch.zeros_like(self._weights, dtype=dtype)
        self.twins: dict[nn.Parameter, nn.Parameter] = {}
        for parameter in parameters:
            first = parameter.data.storage_offset()
            part = slice(first, first + parameter.numel())
            twin = nn.Parameter(self._half[part].view(parameter.shape))
            twin.grad = self.gradients[part].view(parameter.shape)
            self.twins[parameter] = twin

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the weights."""
        self._half.copy_(self._weights)

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the copy's gradients to the buffer's, in fp32, and forgets them: those of the next micro-batch are not
        to be added to them in 16 bits."""
        self._gradients.add_(self.gradients)
        self.gradients.zero_()


class _CastLinear(nn.Linear):
    """fp32 weights that compute in whatever type comes in: casting them is cheap, casting the activations is
    not."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight.to(input.dtype))


class _CastConv2d(nn.Conv2d):
    """The same for convolutions."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(
            input, self.weight.to(input.dtype), None, self.stride, self.padding, self.dilation, self.groups
        )


def size_of(layer: nn.Module, settings: TrainSection) -> tuple[int, float]:
    """Rank and alpha for `layer`: 3x3 convolutions have their own."""
    spatial = isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)
    if spatial:
        return settings.conv_rank, settings.conv_alpha
    return settings.rank, settings.alpha


def _inject(network: nn.Module, modules: Sequence[str], settings: TrainSection) -> None:
    """peft's layers at `modules` of `network`."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = dict(network.named_modules())
    sizes = {path: size_of(layers[path], settings) for path in modules}
    other = {path: size for path, size in sizes.items() if size != (settings.rank, settings.alpha)}
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft says int, and takes any number
        target_modules=list(modules),
        # peft reads these keys as patterns; a whole path from its start names one module.
        rank_pattern={f"^{path}": rank for path, (rank, _) in other.items()},
        alpha_pattern={f"^{path}": alpha for path, (_, alpha) in other.items()},
        use_dora=settings.network == "dora",
        init_lora_weights=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inject_adapter_in_model(config, network, NAME)


def _start(target: Target, layer: Any, settings: TrainSection, generator: torch.Generator) -> LoraModule:
    """fp32 weights of one module: down uniform as kohya and peft start it, up zero, and DoRA's magnitudes as the
    base has them."""
    layer.cast_input_dtype_enabled = False  # peft would turn every activation into fp32 and back
    tensors: dict[str, nn.Parameter] = {}
    for side, name in (("lora_A", DOWN), ("lora_B", UP)):
        part = getattr(layer, side)[NAME]
        part.__class__ = _CastConv2d if isinstance(part, nn.Conv2d) else _CastLinear
        weight = torch.zeros(part.weight.shape)
        if side == "lora_A":
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        part.weight = nn.Parameter(weight.to(part.weight.device))
        tensors[name] = part.weight
    if settings.network == "dora":
        holder = layer.lora_magnitude_vector[NAME]
        base = layer.get_base_layer().weight.detach().float()
        norms = base.flatten(1).norm(dim=1).view(holder.weight.shape)
        holder.weight = nn.Parameter(norms)
        tensors[MAGNITUDE] = holder.weight
    return LoraModule(target, tensors, size_of(layer.get_base_layer(), settings)[1])


def flatten(tensors: Sequence[nn.Parameter]) -> nn.Parameter:
    """Moves fp32 `tensors` of one device into one buffer (n,) and returns it, with its gradient, zeros (n,), set. The
    tensors and their gradients are views of the two from then on; a gradient is forgotten by zeroing, never by None."""
    places = [0]
    for tensor in tensors:
        places.append(places[-1] + -(-tensor.numel() // _ALIGNED) * _ALIGNED)
    buffer = nn.Parameter(torch.zeros(places[-1], dtype=torch.float32, device=tensors[0].device))
    gradient = torch.zeros_like(buffer.data)
    buffer.grad = gradient
    for place, tensor in zip(places, tensors, strict=False):
        part = slice(place, place + tensor.numel())
        buffer.data[part] = tensor.detach().flatten()
        tensor.data = buffer.data[part].view(tensor.shape)
        tensor.grad = gradient[part].view(tensor.shape)
    return buffer


def _attach_lycoris(
    network: nn.Module, part: str, modules: Sequence[str], settings: TrainSection, generator: torch.Generator
) -> Iterator[tuple[LoraModule, nn.Module]]:
    """Puts a LyCORIS module on each of `modules` and yields what it trains. Raises MissingExtraError."""
    kind = _lycoris_class(settings.network)
    layers = dict(network.named_modules())
    for path in modules:
        rank, alpha = size_of(layers[path], settings)
        extra = {"factor": settings.lokr_factor} if settings.network == "lokr" else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            module: Any = kind(
                path.replace(".", "_"), layers[path], lora_dim=rank, alpha=alpha, bypass_mode=True, **extra
            )
        module.to(next(layers[path].parameters()).device)
        module.apply_to()
        tensors = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}
        yield LoraModule(Target(part, path), tensors, float(module.alpha)), module


def _lycoris_class(name: str) -> Any:
    try:
        return getattr(
            import_module(f"lycoris.modules.{name}"), {"loha": "LohaModule", "lokr": "LokrModule"}[name]
        )
    except ImportError as error:
        raise missing_package(f'train.network = "{name}"', error) from error
