"""How many kernels a training step launches and how many bytes they move, for every family at full size, counted on the
meta device: no weights, no GPU, half a minute. A GPU at small batches waits for these launches, so the number is what a
change of the step must lower; `tests/unit/trainer/test_launches.py` keeps it from growing.

    python -m benchmarks.launches [--only klein] [--kinds 10]

UNets and Z-Image are called as diffusers has them; the other transformers by the trainer's own loss, as the memory estimate
counts them. With `--only`, what is stored of the other cases stays. A launch is an operation that is not a view; attention
counts as the one kernel that a GPU has for it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_foundry.domain.sections import TrainSection
from lora_foundry.families._shared.targets import DENOISER, Target
from lora_foundry.trainer.fused import fuse
from lora_foundry.trainer.lora import NAME, Adapter

RESULTS = Path(__file__).parent / "results" / "launches.json"
META = torch.device("meta")
# Operations that give a tensor and start no kernel.
_QUIET = ("empty", "detach", "alias", "_unsafe_view", "is_same_size", "lift_fresh")


@dataclass
class Launches(TorchDispatchMode):
    """Counts what is launched while it is active."""

    bytes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def count(self) -> int:
        return self.kinds.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        name = str(func.overloadpacket).removeprefix("aten.")
        if made and not func.is_view and not name.startswith(_QUIET):
            self.kinds[name] += 1
            self.bytes += sum(tensor.nbytes for tensor in (*given, *made))
        return result


class _Attention(torch.autograd.Function):
    """One kernel forward and one backward, as on a GPU; the meta device would count its mathematics."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        context.save_for_backward(query, key, value)
        return torch.neg(query) if value.shape[-1] == query.shape[-1] else query @ value.mT

    @staticmethod
    def backward(context: Any, *above: Tensor) -> Any:
        query, key, value = context.saved_tensors
        return torch._foreach_neg([query, key, value])


def attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """In the place of torch's."""
    result: Tensor = _Attention.apply(query, key, value)
    return result


def unet(family: str, configuration: str, size: int, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    """A UNet of full size, and what it is called with for pictures of `size` pixels."""
    from diffusers import UNet2DConditionModel

    from lora_foundry import families

    folder = Path(families.__path__[0]) / family / "configurations" / configuration / "unet"
    with META:
        network: Any = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(folder)))
        network = network.to(torch.bfloat16).requires_grad_(False)
        half = {"dtype": torch.bfloat16}
        given: dict[str, Any] = {
            "sample": torch.zeros(batch, 4, size // 8, size // 8, **half),
            "timestep": torch.zeros(batch, dtype=torch.int64),
            "encoder_hidden_states": torch.zeros(batch, 77, network.config.cross_attention_dim, **half),
            "return_dict": False,
        }
        if network.config.addition_embed_type:
            pooled = torch.zeros(batch, 1280, **half)
            given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(batch, 6, **half)}
    return network, given


def z_image(size: int, batch: int, layers: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Z-Image's transformer, of full width; `layers` in place of all 30."""
    from diffusers import ZImageTransformer2DModel

    with META:
        network: Any = ZImageTransformer2DModel(**({"n_layers": layers} if layers else {}))
        network = network.to(torch.bfloat16).requires_grad_(False)
        given = {
            "x": [torch.zeros(16, 1, size // 8, size // 8, dtype=torch.bfloat16) for _ in range(batch)],
            "t": torch.zeros(batch),
            "cap_feats": [torch.zeros(64, 2560, dtype=torch.bfloat16) for _ in range(batch)],
            "return_dict": False,
        }
    return network, given


def targets(network: nn.Module, settings: TrainSection) -> list[Target]:
    """The layers that get a LoRA, by the family's own rule for UNets; a transformer's attention and feed-forward."""
    if hasattr(network, "down_blocks"):
        from lora_foundry.families._shared.unet_targets import unet_targets

        return unet_targets(network, settings)
    from lora_foundry.families.z_image.names import TARGETS

    endings = tuple("." + ending for group in settings.targets for ending in TARGETS[group])
    return [
        Target(DENOISER, name)
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(endings)
    ]


def count_family(case: str, size: int, half_copies: bool = True) -> Launches:
    """The same of a family's base at full size, with the trainer's own network and loss. case: of the memory test's."""
    import pytest

    from lora_foundry.families._shared.family import Batch, load_family
    from lora_foundry.families._shared.parts import Parts
    from tests.unit.families.meter import Remembering, full_size, meta_network
    from tests.unit.families.test_memory import CASES as KNOWN
    from tests.unit.families.test_memory import condition

    family, configuration, (channels, scale), _, text = KNOWN[case]
    base = full_size(family, configuration)
    settings = TrainSection.model_validate(
        {"precision": "bf16", "rank": 32, "alpha": 16.0, "min_snr_gamma": 0.0, "batch_size": 1, "resolution": size}
        | {"targets": ("attention", "feed_forward")}
    )  # fmt: skip
    words = condition(1, **text)
    with pytest.MonkeyPatch.context() as patch, Remembering():
        patch.setattr(Parts, "load_denoiser", lambda self: meta_network(base).requires_grad_(False))
        patch.setattr(nn.Module, "cpu", lambda self: self)
        with META:
            model = load_family(base, settings, META)
            adapter = Adapter(model.networks, model.lora_targets(settings), settings, 0)
            fuse(model.network, NAME, adapter.keep_half_copies(model.dtype) if half_copies else {})
            latents = torch.empty(1, channels, size // scale, size // scale)
            given = Batch(latents, words, latents, torch.full((1,), 0.5))
        return counted(adapter, lambda: model.losses(given).sum())


def count_step(network: nn.Module, given: dict[str, Any], half_copies: bool = True) -> Launches:
    """Forward and backward pass, clipping and AdamW, of LoRA of rank 32 on a network in bf16."""
    settings = TrainSection.model_validate({"rank": 32, "alpha": 16.0})
    adapter = Adapter({DENOISER: network}, targets(network, settings), settings, 1)
    twins = adapter.keep_half_copies(torch.bfloat16) if half_copies else {}
    fuse(network, NAME, twins)

    def loss() -> Tensor:
        answer = network(**given)[0]
        answers = answer if isinstance(answer, list) else [answer]
        return torch.stack([one.float().square().mean() for one in answers]).sum()

    return counted(adapter, loss)


def counted(adapter: Adapter, loss: Callable[[], Tensor]) -> Launches:
    """What one step launches: the loss, the backward pass, clipping and AdamW."""
    optimizer = torch.optim.AdamW(adapter.buffers.values(), foreach=False)
    usual = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = attention
    try:
        with Launches() as launches:
            loss().backward()
            adapter.gradients_added()
            torch.nn.utils.clip_grad_norm_(adapter.buffers.values(), 1.0)
            optimizer.step()
            adapter.zero_gradients()
            adapter.weights_changed()
    finally:
        nn.functional.scaled_dot_product_attention = usual
    return launches


CASES: dict[str, Callable[[bool], Launches]] = {
    "sd15 512, batch 1": lambda half: count_step(*unet("sd", "sd", 512, 1), half),
    "sd15 512, batch 4": lambda half: count_step(*unet("sd", "sd", 512, 4), half),
    "sdxl 1024, batch 1": lambda half: count_step(*unet("sdxl", "sdxl", 1024, 1), half),
    "sdxl 1024, batch 4": lambda half: count_step(*unet("sdxl", "sdxl", 1024, 4), half),
    "z-image 1024, batch 1": lambda half: count_step(*z_image(1024, 1), half),
    "klein 1024, batch 1": lambda half: count_family("klein 512", 1024, half),
    "anima 1024, batch 1": lambda half: count_family("anima 512", 1024, half),
    "krea2 1024, batch 1": lambda half: count_family("krea2 512", 1024, half),
    "qwen-image 1024, batch 1": lambda half: count_family("qwen_image 512", 1024, half),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--kinds", type=int, default=0, help="also print the most frequent operations")
    parser.add_argument("--no-save", action="store_true", help="leave benchmarks/results as it is")
    options = parser.parse_args()
    found: dict[str, dict[str, object]] = {}
    if options.only and RESULTS.is_file():
        found = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, count in CASES.items():
        if options.only not in name:
            continue
        for half in (False, True):
            launches = count(half)
            row = {"launches": launches.count, "gigabytes": round(launches.bytes / 1e9, 2)}
            found.setdefault(name, {})["with 16-bit copies" if half else "cast matrix by matrix"] = row
            print(
                f"{name:24} {'with 16-bit copies' if half else 'cast matrix by matrix':22}", row, flush=True
            )
            if options.kinds:
                print(launches.kinds.most_common(options.kinds))
    if not options.no_save:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
