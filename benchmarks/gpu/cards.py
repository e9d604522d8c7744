"""What a big base takes of a GPU and how long a step is, in 16 bits, in int8, in NF4 and with streamed blocks: FLUX.2 Klein
at its full size with random weights, at 1024 pixels, as the trainer computes it. Peak memory stands beside the estimate by
which trainings are fitted to cards, and what is streamed must learn what stays."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.base import Base
from lora_foundry.families._shared.family import Batch, load_family
from lora_foundry.families._shared.inspect import find_base
from lora_foundry.families._shared.loading import library_class, load_denoiser, loader_of
from lora_foundry.families._shared.memory import footprint
from lora_foundry.families._shared.parts import Parts
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.lora import NAME, Adapter

GIB = 1 << 30
WAYS: dict[str, dict[str, Any]] = {
    "16 bits": {},
    "half streamed": {"streamed": 0.5},
    "all streamed": {"streamed": 1.0},
    "int8": {"quantise": "int8"},
    "int8, all streamed": {"quantise": "int8", "streamed": 1.0},
    "nf4": {"quantise": "nf4"},
}
_STEPS = 4  # timed, after two that are not
# How far the gradients of each may point away from those in 16 bits.
_ALIKE = {"half streamed": 0.999, "all streamed": 0.999, "int8": 0.98, "int8, all streamed": 0.98, "nf4": 0.7}


class Measured(NamedTuple):
    figures: dict[str, float]
    gradient: Tensor


def measure_cards(device: torch.device, small: bool, folder: Path) -> dict[str, Any]:
    """Every way in turn; `small`: a tiny network, to rehearse on a CPU."""
    base, network = _tiny(folder) if small else (full_size(), random_network(full_size(), device))
    found: dict[str, Any] = {}
    wrong: list[str] = []
    plain: Measured | None = None
    for name, given in WAYS.items():
        if given.get("quantise") == "nf4" and find_spec("bitsandbytes") is None:
            found[name] = "bitsandbytes is not installed"
            continue
        measured = _measure(base, network, given, device, small)
        found[name] = measured.figures
        plain = plain or measured
        alike = float(nn.functional.cosine_similarity(measured.gradient, plain.gradient, dim=0))
        measured.figures["gradient_alike"] = alike
        if not alike >= _ALIKE.get(name, 0.999) and not small:
            wrong.append(f"{name}: the gradients point elsewhere than in 16 bits (cosine {alike:.4f})")
        ratio = measured.figures["estimate_gib"] / max(measured.figures["peak_gib"], 1e-9)
        if not small and not 0.85 < ratio < 1.3:
            wrong.append(f"{name}: {measured.figures} is not what was estimated")
    return {**found, "wrong": wrong}


def _measure(
    base: Base, network: nn.Module, given: Mapping[str, Any], device: torch.device, small: bool
) -> Measured:
    resolution = 128 if small else 1024
    settings = TrainSection.model_validate(
        {"precision": "bf16", "rank": 32, "alpha": 32.0, "min_snr_gamma": 0.0, "resolution": resolution,
         "targets": ("attention", "feed_forward"), "gradient_checkpointing": True, "memory": "as_set", **given}
    )  # fmt: skip
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with patch.object(Parts, "load_denoiser", lambda self: copy.deepcopy(network)):
        model = load_family(base, settings, device)
        adapter = Adapter(model.networks, model.lora_targets(settings), settings, 0)
    fuse(model.network, NAME, adapter.keep_half_copies(model.dtype))
    optimizer = torch.optim.AdamW(adapter.buffers.values(), lr=1e-4, fused=True)
    config: Any = model.network.config
    side, width = resolution // 16, config.joint_attention_dim
    latents = torch.randn(1, config.in_channels, side, side, device=device)
    condition = {"text": torch.randn(1, 512, width, device=device)}
    batch = Batch(latents, condition, torch.randn_like(latents), torch.tensor([0.5]))
    gradient, started = torch.zeros(0), 0.0
    for step in range(2 + _STEPS):
        if step == 2:
            wait(device)
            started = time.perf_counter()
        loss = model.losses(batch).sum()
        loss.backward()
        adapter.gradients_added()
        if step == 1:  # the first one's are zero for half of the matrices
            gradient = torch.cat([(buffer.grad if buffer.grad is not None else buffer).flatten().cpu()
                                  for buffer in adapter.buffers.values()])  # fmt: skip
        optimizer.step()
        adapter.zero_gradients()
        adapter.weights_changed()
    wait(device)
    seconds = (time.perf_counter() - started) / _STEPS
    peak = torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0
    estimate = footprint(base, settings)
    figures = {"peak_gib": peak, "estimate_gib": (estimate.total - estimate.runtime) / GIB,
               "seconds_a_step": seconds, "loss": float(loss.detach())}  # fmt: skip
    return Measured(figures, gradient)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def full_size() -> Base:
    """Klein as it is published, by its configuration alone."""
    return Base(
        path=Path("full-size"), layout="file", family="klein", name="klein", identity="", configuration="base"
    )


def _tiny(folder: Path) -> tuple[Base, nn.Module]:
    from tests.unit.trainer.tiny_bases import klein_folder

    base = find_base(str(klein_folder(folder / "klein-base")))
    return base, load_denoiser(base, torch.bfloat16)


def random_network(
    base: Base, device: torch.device, changes: Mapping[str, object] | None = None
) -> nn.Module:
    """The network of a base at full size, or with `changes` of its configuration, with random weights, in bf16 in the
    computer's memory."""
    loader = loader_of(base)
    kind = library_class(loader.denoiser_class)
    with torch.device("meta"):
        config = kind.load_config(loader.configuration(base), subfolder=loader.denoiser)
        network: nn.Module = kind.from_config({**config, **(changes or {})})
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    for tensor in network.parameters():
        drawn = torch.empty(tensor.shape, dtype=torch.bfloat16, device=device)
        tensor.data.copy_(drawn.normal_(0, 0.02) if tensor.ndim > 1 else drawn.fill_(1))
    return network.requires_grad_(False).eval()
