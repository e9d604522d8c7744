"""Ways of learning a LoRA that the trainer does not offer, for `learn_faster.py` alone: each puts something in the place of
one part of the trainer for as long as a training lasts. What wins there belongs into the trainer; what does not stays here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.cpu_layers import compute_by
from lora_foundry.families._shared.targets import DENOISER, Target
from lora_foundry.trainer import trainer
from lora_foundry.trainer.lora import DOWN, UP, Adapter, LoraModule, flatten
from lora_foundry.trainer.optimizers import PEAK

_BLOCK = 32  # of OFT, peft's default
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, the quintic's coefficients


def method(name: str, value: float = 0.0) -> AbstractContextManager[Any]:
    """The way of learning called `name`; '' is the trainer's own."""
    ways: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
        "": nullcontext,
        "lora_plus": lambda: _optimizer(lambda settings, adapter: _lora_plus(settings, adapter, value)),
        "muon": lambda: _optimizer(_muon),
        "lora_muon": lambda: _optimizer(LoraMuon),
        "t_lora": _t_lora,
        "svd_down": lambda: patch.object(trainer, "Adapter", SvdDown),
        "pissa": _pissa,
        "oft": _oft,
        "timesteps": lambda: _timesteps(value),
    }
    return ways[name]()


def _optimizer(build: Callable[[TrainSection, Adapter], torch.optim.Optimizer]) -> Any:
    return patch.object(trainer, "build_optimizer", build)


def _lora_plus(settings: TrainSection, adapter: Adapter, ratio: float) -> torch.optim.Optimizer:
    """AdamW with another rate for the up matrices (LoRA+, arXiv 2402.12354)."""
    groups = [
        {"params": [module.tensors[name] for module in adapter.modules], "lr": rate, PEAK: rate}
        for name, rate in ((DOWN, settings.learning_rate), (UP, settings.learning_rate * ratio))
    ]
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def _muon(settings: TrainSection, adapter: Adapter) -> torch.optim.Optimizer:
    """torch's Muon on each matrix by itself, its updates as large as AdamW's (arXiv 2502.16982)."""
    rate, matrices = settings.learning_rate, list[nn.Parameter]()
    for tensor in adapter.parameters():
        assert tensor.grad is not None
        flat = nn.Parameter(tensor.data.flatten(1))  # a 1x1 convolution is a matrix, too
        flat.grad = tensor.grad.flatten(1)
        matrices.append(flat)
    muon = torch.optim.Muon(
        matrices, lr=rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    muon.param_groups[0][PEAK] = rate
    return muon


class LoraMuon(torch.optim.Optimizer):
    """Muon of the product of the two matrices (arXiv 2606.12921): each factor's momentum is orthogonalised in the geometry
    of the other, and the rate is the spectral norm of a step's change of the whole update."""

    def __init__(self, settings: TrainSection, adapter: Adapter, momentum: float = 0.95) -> None:
        rate = settings.learning_rate
        self._modules = [
            (module.tensors[DOWN], module.tensors[UP], module.alpha / len(module.tensors[DOWN]))
            for module in adapter.modules
        ]
        self._momentum = momentum
        super().__init__(adapter.parameters(), {"lr": rate, PEAK: rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Moves all pairs of matrices; gives what `closure` gives, which is called first (see torch's Optimizer)."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        half = self.param_groups[0]["lr"] / 2
        for down, up, scale in self._modules:
            a, b = down.flatten(1), up.flatten(1)
            roots = _inverse_root(b.T @ b), _inverse_root(a @ a.T)
            steps = [
                roots[0] @ _sign(roots[0] @ self._average(down).flatten(1)),
                _sign(self._average(up).flatten(1) @ roots[1]) @ roots[1],
            ]
            # Of the product's share `scale`, each factor moves the half.
            for matrix, change in zip((down, up), steps, strict=True):
                matrix.sub_(change.view_as(matrix), alpha=half / scale)
        return loss

    def _average(self, matrix: nn.Parameter) -> Tensor:
        kept = self.state[matrix].setdefault("average", torch.zeros_like(matrix))
        assert matrix.grad is not None
        average: Tensor = kept.lerp_(matrix.grad, 1 - self._momentum)
        return average


def _inverse_root(gram: Tensor) -> Tensor:
    """The inverse square root of a Gram matrix, held off zero: the up matrix begins as zeros."""
    values, vectors = torch.linalg.eigh(gram)
    floor = max(float(values.max()) * 1e-3, 0.1)
    return vectors @ torch.diag(values.clamp(min=floor).rsqrt()) @ vectors.T


def _sign(matrix: Tensor) -> Tensor:
    """The matrix with all its singular values brought to about 1."""
    a, b, c = _NEWTON_SCHULZ
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-12)
    for _ in range(5):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


@contextmanager
def _t_lora() -> Iterator[None]:
    """The noisier a sample, the fewer of the rank learn from it, half of them at least (T-LoRA, arXiv 2507.05964). What draws
    has the whole rank at every step, since no program that reads the file would know better."""
    shown: list[Tensor] = []
    whole = trainer.ForwardBackward.__call__

    def masked(self: Any, batch: Any) -> Tensor:
        shown[:] = [batch.timesteps]
        return whole(self, batch)

    def hook(layer: nn.Module, _: Any, narrow: Tensor) -> Tensor:
        rank = narrow.shape[-1]
        kept = rank / 2 + (1 - shown[0]) * rank / 2
        mask = (torch.arange(rank) < kept[:, None]).to(narrow.dtype)
        return narrow * mask.view(len(mask), *[1] * (narrow.ndim - 2), rank)

    def unfused(network: nn.Module, name: str, _: Any) -> int:
        for layer in network.modules():
            if hasattr(layer, "lora_A"):
                layer.lora_A[name].register_forward_hook(hook)
        return 0

    with (
        patch.object(trainer.ForwardBackward, "__call__", masked),
        patch.object(trainer, "fuse", unfused),
    ):
        yield


class SvdDown(Adapter):
    """The down matrices begin as the directions that the base's own weights answer to most, as long as random ones."""

    def __init__(self, networks: Mapping[str, nn.Module], *rest: Any) -> None:
        super().__init__(networks, *rest)
        for module in self.modules:
            layer = networks[module.target.part].get_submodule(module.target.module)
            weight = layer.get_base_layer().weight.detach().float()
            _, _, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
            down = module.tensors[DOWN]
            rows = right[: len(down)]
            with torch.no_grad():
                down.copy_((rows * (down.norm() / rows.norm())).view_as(down))


class Pissa(Adapter):
    """Both matrices begin as the base's own largest directions, which the base loses (PiSSA, arXiv 2404.02948)."""

    def __init__(self, networks: Mapping[str, nn.Module], *rest: Any) -> None:
        super().__init__(networks, *rest)
        self.begun: dict[str, Tensor] = {}
        for module in self.modules:
            layer = networks[module.target.part].get_submodule(module.target.module).get_base_layer()
            down, up = module.tensors[DOWN], module.tensors[UP]
            scale = module.alpha / len(down)
            left, values, right = torch.linalg.svd(
                layer.weight.detach().float().flatten(1), full_matrices=False
            )
            root = (values[: len(down)] / scale).sqrt()
            with torch.no_grad():
                down.copy_((root[:, None] * right[: len(down)]).view_as(down))
                up.copy_((left[:, : len(down)] * root).view_as(up))
                self.begun[module.name] = scale * up.flatten(1) @ down.flatten(1)
                layer.weight.sub_(self.begun[module.name].view_as(layer.weight))

    def change(self, module: LoraModule, state: Mapping[str, Tensor]) -> Tensor:
        """What the module adds to the base as it was."""
        down, up = state[f"{module.name}.{DOWN}"], state[f"{module.name}.{UP}"]
        product = module.alpha / len(down) * up.flatten(1) @ down.flatten(1)
        change = product - self.begun[module.name]
        return change.view(*change.shape, *down.shape[2:])


class Oft(Adapter):
    """Turns what comes into each linear layer, block by block, and adds nothing (OFT, arXiv 2306.07280): a rotation by
    Cayley's formula of a skew matrix that begins at zero."""

    def __init__(self, networks: Mapping[str, nn.Module], targets: Sequence[Target], *_: Any) -> None:
        self._owned, self.half, self._layers = [], None, dict[str, nn.Linear]()
        modules = []
        for target in targets:
            layer = networks[target.part].get_submodule(target.module)
            if not isinstance(layer, nn.Linear) or layer.in_features % _BLOCK:
                continue
            angles = nn.Parameter(torch.zeros(layer.in_features // _BLOCK, _BLOCK * (_BLOCK - 1) // 2))
            module = LoraModule(target, {"oft": angles}, 1.0)
            self._layers[module.name] = layer
            compute_by(layer, _Turned(layer, angles))
            modules.append(module)
        self.modules = tuple(modules)
        self.buffers = {DENOISER: flatten(self.parameters())}

    def change(self, module: LoraModule, state: Mapping[str, Tensor]) -> Tensor:
        """What the turn is as a change of the weights."""
        weight = self._layers[module.name].weight.detach()
        return _turn(weight, state[f"{module.name}.oft"], back=True) - weight


class _Turned:
    def __init__(self, layer: nn.Linear, angles: nn.Parameter) -> None:
        self._layer, self._angles = layer, angles

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(_turn(x, self._angles), self._layer.weight, self._layer.bias)


def _turn(x: Tensor, angles: Tensor, back: bool = False) -> Tensor:
    """x (..., n) turned in blocks; `back` by the transpose, which is how a weight takes in what its input was turned by."""
    rows, columns = torch.triu_indices(_BLOCK, _BLOCK, 1)
    skew = angles.new_zeros(len(angles), _BLOCK, _BLOCK).index_put(
        (torch.arange(len(angles))[:, None], rows[None], columns[None]), angles
    )
    skew = skew - skew.mT
    one = torch.eye(_BLOCK)
    turn = torch.linalg.solve(one - skew, one + skew)
    blocks = x.unflatten(-1, (-1, _BLOCK))
    return torch.einsum("...nb,nbc->...nc", blocks, turn.mT if back else turn).flatten(-2)


def _dense(
    adapter: Any, state: Mapping[str, Tensor], export_name: Any, dtype: Any, _: Any
) -> dict[str, Tensor]:
    """A file that any program reads, whatever the way of learning: the whole change of each matrix as the up matrix of a
    LoRA whose down matrix changes nothing."""
    tensors = {}
    for module in adapter.modules:
        change = adapter.change(module, state)
        name, width, places = export_name(module.target), change.shape[1], change.shape[2:]
        tensors[f"{name}.alpha"] = torch.tensor(float(width), dtype=dtype)
        tensors[f"{name}.lora_down.weight"] = torch.eye(width, dtype=dtype).view(width, width, *places)
        tensors[f"{name}.lora_up.weight"] = change.to(dtype)
    return tensors


@contextmanager
def _pissa() -> Iterator[None]:
    with patch.object(trainer, "Adapter", Pissa), patch.object(trainer, "kohya_tensors", _dense):
        yield


@contextmanager
def _oft() -> Iterator[None]:
    with patch.object(trainer, "Adapter", Oft), patch.object(trainer, "kohya_tensors", _dense):
        yield


def _timesteps(power: float) -> Any:
    """Timesteps drawn more often where there is more noise (a power below 1) or less of it (above 1)."""
    plain = trainer.NoiseSampler.timesteps

    def bent(self: Any, step: int) -> Tensor:
        return plain(self, step) ** power if power > 0 else _middle(plain(self, step))

    return patch.object(trainer.NoiseSampler, "timesteps", bent)


def _middle(positions: Tensor) -> Tensor:
    """Logit-normal: mostly half noised (Esser et al. 2024)."""
    return torch.sigmoid(math.sqrt(2) * torch.erfinv((2 * positions - 1).clamp(-1 + 1e-6, 1 - 1e-6)))
