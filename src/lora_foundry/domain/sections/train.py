"""Recipe section [train]: the LoRA and how it is learned. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lora_foundry.domain.sections.base import Positive, Section, Share, Size

# Settings that say what is kept on the way, and leave the trained weights as they are.
WITHOUT_INFLUENCE = frozenset({"checkpoint_every", "saves", "save_every_epochs", "save_every_minutes"})


class TrainSection(Section):
    """[train]: the LoRA and how it is learned."""

    backend: Literal["inprocess", "kohya", "dry-run"] = Field(
        "inprocess",
        description="Which trainer: `inprocess`; `kohya`, an sd-scripts checkout (LORA_FOUNDRY_KOHYA); or "
        "`dry-run`, which prepares everything, trains nothing and is never published.",
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="Rank of the LoRA matrices (network_dim)."
    )
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="LoRA alpha; the update is scaled by alpha / rank."
    )
    steps: int = Field(
        0, ge=0, description="Optimizer steps; 0 derives them from epochs, repeats and batch size."
    )
    epochs: Positive = Field(15, description="Passes over the set, where `steps` is 0.")
    repeats: Positive = Field(10, description="How often an epoch shows each picture.")
    batch_size: Annotated[int, Field(ge=1, le=256)] = Field(1, description="Pictures a step.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-4, description="Peak learning rate of the UNet LoRA."
    )
    lr_schedule: Literal["constant", "cosine", "cosine_with_restarts"] = Field(
        "cosine_with_restarts", description="Learning-rate schedule."
    )
    restarts: Positive = Field(1, description="Cycles of cosine_with_restarts.")
    warmup_steps: int = Field(100, ge=0, description="Steps over which the rate rises linearly from 0.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping by global norm; 0 turns it off.")
    min_snr_gamma: float = Field(
        5.0, ge=0, description="Min-SNR loss weighting (arXiv 2303.09556); 0 turns it off."
    )
    noise_offset: float = Field(
        0.0, ge=0, le=1, description="Noise offset: share of noise that is constant a channel."
    )
    caption_dropout: Share = Field(0.0, description="Share of samples trained with an empty caption.")
    shuffle_tags: bool = Field(
        False, description="Shuffle a caption's tags at every use, the first `keep_tokens` kept."
    )
    keep_tokens: int = Field(1, ge=0, description="Tags at the start of a caption that stay in place.")
    targets: tuple[Literal["attention", "feed_forward", "projection"], ...] = Field(
        ("attention", "feed_forward", "projection"), description="Which UNet modules get a LoRA."
    )
    resolution: Size = Field(
        512,
        description="Pictures are scaled and cut around their centre to this area (the square of it), "
        "in the set's commonest shape.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp16",
        description="Type of the frozen base while training; "
        "LoRA weights are always fp32. A CPU computes fp16 as fp32.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade time for memory.")
    checkpoint_every: Positive = Field(200, description="Steps between checkpoints; the newest two are kept.")
    saves: Annotated[int, Field(ge=0, le=100)] = Field(
        4,
        description="Exports kept in training/saved/, evenly over the run, the last one included; 0 keeps none.",
    )
    save_every_epochs: int = Field(
        0, ge=0, description="Keep an export every so many epochs, in place of `saves`."
    )
    save_every_minutes: float = Field(
        0.0, ge=0, description="Keep an export every so many minutes too; 0 turns it off."
    )
    seed: int = Field(42, ge=0, description="Seed of noise, timesteps and order.")
