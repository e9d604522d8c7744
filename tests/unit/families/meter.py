"""Counts what a training step really takes, without a GPU and without computing anything: the trainer's own network, LoRA
and loss at full size on torch's meta device, with every storage that comes and goes counted."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.loading import loader_of
from lora_foundry.families._shared.parts import Parts
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.lora import NAME, Adapter

META = torch.device("meta")


_Maker = Callable[[Any], Any]
_made: dict[Any, _Maker | None] = {}


class Remembering(TorchDispatchMode):
    """What operations on the meta device give, torch works out in Python, and anew for each of a network's equal blocks.
    Here what one gave once is made again for tensors of the same looks, in a third of the time."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(
                *args, **kwargs
            )  # on its own way of C++, which takes less than to look at the arguments
        key = (func, _looks(args), _looks(tuple(kwargs.items())))
        if again := _made.get(key):
            return again(args)
        result = func(*args, **kwargs)
        if key not in _made:
            _made[key] = _maker(result, args, kwargs)
        return result


def _maker(result: Any, args: Any, kwargs: Any) -> _Maker | None:
    """What makes a result again of the arguments; None where the operation must: it gives a view, no tensor, or numbers."""
    results = (result,) if isinstance(result, Tensor) else result
    if not isinstance(results, tuple) or not all(isinstance(each, Tensor | None) for each in results):
        return None
    there = [each for each in results if each is not None]  # a gradient that nobody asked for is not
    given = [each for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)]
    if not all(each.is_meta for each in (*given, *there)):
        return None
    if args and result is args[0]:
        return operator.itemgetter(0)  # changed in place
    storages = {each.untyped_storage()._cdata for each in there}
    if len(storages) < len(there) or storages & {each.untyped_storage()._cdata for each in given}:
        return None
    makers = [
        partial(torch.empty_strided, each.shape, each.stride(), dtype=each.dtype, device=META)
        if each is not None
        else _nothing
        for each in results
    ]
    if isinstance(result, Tensor):
        return lambda _: makers[0]()
    return lambda _: tuple(make() for make in makers)


def _nothing() -> None:
    """What an operation gives in the place of a result that was not asked for."""


def _looks(value: Any) -> Any:
    """All of an argument that the looks of a result depend on."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, tuple | list):
        return tuple(map(_looks, value))
    return type(value), value


class Meter(Remembering):
    """Bytes of the storages that live now, and the most there were at once; `known` ones do not count."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in (result,) if isinstance(result, Tensor) else tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class _Attention(torch.autograd.Function):
    """What a GPU's fused attention keeps: query, key, value, the result, and one number for each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(
            query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32)
        )
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def fused_attention(patch: pytest.MonkeyPatch) -> Iterator[None]:
    def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **given: Any) -> Tensor:
        return _Attention.apply(query, key, value)  # type: ignore[no-any-return, no-untyped-call]

    with patch.context() as inner:
        inner.setattr(functional, "scaled_dot_product_attention", attention)
        yield


def full_size(family: str, configuration: str) -> Base:
    """A file of the family's real size that is not there: nothing but our configurations is read."""
    return Base(
        path=Path("/nowhere.safetensors"), layout="file", family=family, name=family, identity="0" * 64,
        configuration=configuration,
    )  # fmt: skip


def meta_network(base: Base) -> Any:
    """The denoiser of a base at its full size, without numbers."""
    import diffusers

    loader = loader_of(base)
    kind = getattr(diffusers, loader.denoiser_class)
    with META:
        config = kind.load_config(loader.configuration(base), subfolder=loader.denoiser)
        return kind.from_config({**config, **loader.denoiser_options})


def stored_bytes(tensors: Iterator[Tensor]) -> int:
    """Bytes of the storages that tensors lie in, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def step_bytes(
    base: Base, settings: TrainSection, condition: dict[str, Tensor], channels: int, scale: int
) -> tuple[int, int]:
    """Bytes of what lies on the device all the time (base, LoRA, gradients, their copies in 16 bits, AdamW's moments), and
    the most that a step's forward and backward pass takes beside them, all as the trainer prepares it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parts, "load_denoiser", lambda self: meta_network(base).requires_grad_(False))
        # What would wait in the computer's memory is not there either.
        patch.setattr(nn.Module, "cpu", lambda self: self)
        with META, Remembering():
            model = load_family(base, settings, META)
            adapter = Adapter(model.networks, model.lora_targets(settings), settings, 0)
            fuse(model.network, NAME, adapter.keep_half_copies(model.dtype))
            optimizer = torch.optim.AdamW(adapter.buffers.values(), foreach=False)
            optimizer.step()
        moments = [tensor for each in optimizer.state.values() for tensor in each.values()]
        side = settings.resolution // scale
        latents = torch.empty(settings.batch_size, channels, side, side, device=META)
        gradients = [buffer.grad for buffer in adapter.buffers.values() if buffer.grad is not None]
        half = vars(adapter.half).values() if adapter.half else ()
        copies = [tensor for tensor in half if isinstance(tensor, Tensor)]
        here = [*model.network.parameters(), *model.network.buffers(), *gradients, *copies, *moments]
        known = [*here, *condition.values(), latents]
        resident = stored_bytes(iter(here))
        with fused_attention(patch), Meter(iter(known)) as meter:
            timesteps = torch.full((settings.batch_size,), 0.5, device=META)
            model.losses(Batch(latents, condition, latents, timesteps)).sum().backward()
        return resident, meter.peak
