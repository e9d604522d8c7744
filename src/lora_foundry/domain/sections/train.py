"""Recipe section [train]: the LoRA and how it is learned. Every field's description is its documentation; settings
that contradict one another are refused here, in one sentence, before anything is loaded."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lora_foundry.domain.sections.base import (
    NOTHING,
    Affects,
    BaseModelPath,
    LocalPath,
    Positive,
    Section,
    Share,
    Size,
    declared,
)
from lora_foundry.registry import OneOf

Rate = Annotated[float, Field(ge=0, le=1)]


class NetworkSettings(Section):
    """What is trained: the kind of network, its size, and the modules that get one."""

    AFFECTS: ClassVar[Affects] = "weights"

    backend: Annotated[str, OneOf("trainer")] = Field("inprocess", description="Which trainer.")
    network: Literal["lora", "dora", "loha", "lokr"] = Field(
        "lora",
        description="`lora`; `dora`: LoRA with a magnitude of its own for each output (arXiv 2402.09353); `loha` and "
        "`lokr`: LyCORIS, with the extra `lycoris`.",
    )
    rank: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="Rank of the LoRA matrices (network_dim)."
    )
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="LoRA alpha; the update is scaled by alpha / rank."
    )
    targets: tuple[Literal["attention", "feed_forward", "projection"], ...] = Field(
        ("attention", "feed_forward", "projection"), description="Which modules of the denoiser get a LoRA."
    )
    conv_rank: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="Rank for the 3x3 convolutions too (LoCon), with `rank` for the other layers of their blocks; 0 leaves "
        "these blocks alone.",
    )
    conv_alpha: Annotated[float, Field(gt=0)] = Field(1.0, description="Alpha of the convolutions' LoRA.")
    lokr_factor: int = Field(-1, ge=-1, description="LoKr's factor; -1 takes the most even split.")
    training_adapter: BaseModelPath = Field(
        "",
        description="A LoRA's .safetensors file that is part of a distilled base while it is trained and not of what is "
        "exported, so that the base keeps its few steps; a bare file name is looked for as `model.vae` is.",
    )
    max_norm: float = Field(
        0.0, ge=0, description="Largest norm of a module's update, scaled back after each step; 0: no limit."
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Decay of a running mean of the weights, which is exported in their place; 0: none."
    )
    start_from: Annotated[str, LocalPath("models")] = Field(
        "",
        description="A LoRA file to go on from, of the same network, rank and targets; empty: from nothing.",
    )


class OptimizerSettings(Section):
    """How it is learned: for how long, at which rates, by which optimizer."""

    AFFECTS: ClassVar[Affects] = "weights"

    steps: int = Field(
        0,
        ge=0,
        description="Optimizer steps; 0 derives them from epochs, repeats and batch size. A finished training for which "
        "more are asked goes on from its end.",
    )
    epochs: Positive = Field(15, description="Passes over the set, where `steps` is 0.")
    repeats: Positive = Field(10, description="How often an epoch shows each picture.")
    image_repeats: dict[str, Positive] = Field(
        {}, description="Other repeats for single pictures, by file name. A folder images/<n>_<name>/ has n."
    )
    batch_size: Annotated[int, Field(ge=1, le=256)] = Field(
        1, description="Pictures that are computed at once."
    )
    accumulation: Annotated[int, Field(ge=1, le=256)] = Field(
        1,
        description="Batches whose gradients make one optimizer step; batch 2 twice learns what batch 4 does.",
    )
    optimizer: Literal["adamw", "adamw8bit", "prodigy", "adafactor", "schedule_free"] = Field(
        "adamw",
        description="`adamw` (fused); `adamw8bit` needs bitsandbytes (extra `cuda`); `prodigy` and `schedule_free` need the "
        "extra `optimizers`; `adafactor` takes the rate as it is set.",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        1e-4, description="Peak learning rate of the denoiser's LoRA; Prodigy wants 1."
    )
    text_encoder_rate: Rate = Field(
        0.0, description="Peak learning rate of a LoRA on the text encoders; 0 leaves them as they are."
    )
    lr_schedule: Literal["constant", "cosine", "cosine_with_restarts"] = Field(
        "cosine_with_restarts", description="Learning-rate schedule."
    )
    restarts: Positive = Field(1, description="Cycles of cosine_with_restarts.")
    warmup_steps: int = Field(100, ge=0, description="Steps over which the rate rises linearly from 0.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping by global norm; 0 turns it off.")
    seed: int = Field(42, ge=0, description="Seed of noise, timesteps and order.")


class DatasetSettings(Section):
    """What it is learned from: pictures, captions, noise and their weights."""

    AFFECTS: ClassVar[Affects] = "weights"

    resolution: Size = Field(
        512,
        description="Pictures are scaled to this area (the square of it), and cut around their centre to a shape in whole "
        "steps of the model's.",
    )
    buckets: bool = Field(
        True,
        description="Let pictures of unlike shape keep theirs, in batches of one shape; otherwise all are cut to the "
        "commonest. Drawn pictures have one shape anyway.",
    )
    min_snr_gamma: float = Field(
        5.0, ge=0, description="Min-SNR loss weighting (arXiv 2303.09556); 0 turns it off."
    )
    noise_offset: float = Field(
        0.0, ge=0, le=1, description="Noise offset: share of noise that is constant a channel."
    )
    multires_noise: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Multi-resolution noise: weight of each coarser level relative to the last; 0: off.",
    )
    flip: bool = Field(
        False,
        description="Mirror half of the samples, left for right; not for characters that are asymmetric.",
    )
    caption_dropout: Share = Field(0.0, description="Share of samples trained with an empty caption.")
    shuffle_tags: bool = Field(
        False, description="Shuffle a caption's tags at every use, the first `keep_tokens` kept."
    )
    keep_tokens: int = Field(1, ge=0, description="Tags at the start of a caption that stay in place.")
    mask: Literal["none", "alpha", "folder"] = Field(
        "none",
        description="What counts of a picture: all of it, what its alpha channel shows, or what is white in the "
        "picture of the same name in masks/ beside images/.",
    )
    regularisation: int = Field(
        0,
        ge=0,
        description="Pictures that the base draws for the captions without the trigger, trained beside the set so "
        "that the character stays with the trigger; 0: none.",
    )
    regularisation_folder: Annotated[str, LocalPath("pictures")] = Field(
        "",
        description="A folder of own regularisation pictures with captions; in place of drawn ones, whatever "
        "`train.regularisation` says.",
    )
    regularisation_weight: float = Field(
        1.0, gt=0, description="How much the loss on a regularisation picture counts (prior loss weight)."
    )
    validation: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="Share of the pictures held out, on which the loss is measured with fixed noise."
    )


class MachineSettings(Section):
    """How the machine is used."""

    AFFECTS: ClassVar[Affects] = "weights"

    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp16",
        description="Type of the frozen base while training; "
        "LoRA weights are always fp32. A CPU computes fp16 as fp32, and a flow-matching base, which leaves its range, "
        "as bf16.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade time for memory.")
    quantise: Literal["auto", "none", "int8", "nf4"] = Field(
        "auto",
        description="Bits that the frozen base is kept in: `none`: the 16 of `precision`; `int8`; `nf4`, four, with "
        "bitsandbytes (extra `cuda`). `auto`: 16, and fewer only where the memory holds neither that nor what `streamed` "
        "leaves of it. The LoRA's file is the same kind of file for all.",
    )
    streamed: Share = Field(
        0.0,
        description="Share of the denoiser's blocks that wait in the computer's memory and come to the GPU when they are "
        "computed, with gradient checkpointing; the result is the same. Chosen by `memory` where it is needed.",
        json_schema_extra=NOTHING,
    )
    cache_captions: bool = Field(
        False,
        description="Encode every caption of the training before its first step, shuffled ones too, so that the text "
        "encoders leave the GPU; takes disk space. Chosen by `memory` where it is needed.",
        json_schema_extra=NOTHING,
    )
    cuda_graphs: bool = Field(
        True,
        description="Record a step's passes once and play them back where that can be, which spares a GPU the wait for "
        "Python: CUDA, without checkpointing or text encoders that learn, where two and a half times the memory that it takes "
        "is free. A recording that does not give what computing gives is dropped.",
        json_schema_extra=NOTHING,
    )
    compile_blocks: bool = Field(
        False,
        description="Have torch compile the blocks of a transformer (not of a UNet), for LoRA on a base that is neither "
        "quantised nor streamed. Takes a C++ compiler on the computer, on a GPU Triton too, and a minute or more before the "
        "first step, as before the first with a picture or caption of another size; where it fails, the training goes on as "
        "usual. Unproven on a GPU.",
        json_schema_extra=NOTHING,
    )
    needs_mib: int = Field(
        0,
        ge=0,
        description="GPU memory in MiB that must be free before the training starts; 0 estimates it from base and "
        "settings.",
        json_schema_extra=NOTHING,
    )
    memory: Literal["as_set", "auto", "8gb", "12gb", "16gb", "24gb"] = Field(
        "auto",
        description="Fit the training to a GPU's free memory, or to that of a card: batches computed in parts, text encoders "
        "let go of, gradient checkpointing, blocks streamed, and only then a quantised base. The pictures a step stay as "
        "many. `as_set` takes the settings as they are. A CPU's memory is not managed.",
    )
    export_precision: Literal["fp16", "bf16"] = Field("fp16", description="Number format of the LoRA file.")


class SavingSettings(Section):
    """What is kept and shown on the way."""

    AFFECTS: ClassVar[Affects] = "nothing"

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
    sample_prompts: tuple[str, ...] = Field(
        (),
        description="Drawn into training/samples/ with every kept export; {trigger} stands for the trigger word.",
        json_schema_extra={"affects": "nothing", "private": True},
    )
    sample_steps: Positive = Field(20, description="Sampling steps of these pictures.")
    sample_cfg: float = Field(5.0, ge=0, description="Their guidance scale.")
    tensorboard: bool = Field(False, description="Also write TensorBoard events to training/tensorboard/.")


class TrainSection(SavingSettings, MachineSettings, DatasetSettings, OptimizerSettings, NetworkSettings):
    """[train]: the LoRA and how it is learned."""

    @property
    def samples_per_step(self) -> int:
        """Pictures that make one optimizer step."""
        return self.batch_size * self.accumulation

    @model_validator(mode="after")
    def _contradictions(self) -> Self:
        for wrong, sentence in (
            (
                self.optimizer == "schedule_free" and self.lr_schedule != "constant",
                'train.optimizer = "schedule_free" needs train.lr_schedule = "constant"',
            ),
            (
                self.optimizer == "schedule_free" and self.ema > 0,
                'train.ema must be 0 with train.optimizer = "schedule_free", which averages the weights itself',
            ),
            (
                self.optimizer == "prodigy" and self.learning_rate < 0.1,
                'train.optimizer = "prodigy" finds the rate itself and needs train.learning_rate = 1.0',
            ),
            (
                self.optimizer == "prodigy" and self.text_encoder_rate not in {0.0, self.learning_rate},
                "Prodigy has one rate: set train.text_encoder_rate to train.learning_rate, or to 0",
            ),
            (
                self.noise_offset > 0 and self.multires_noise > 0,
                "train.noise_offset and train.multires_noise do the same thing; set one of them to 0",
            ),
            (
                self.max_norm > 0 and self.network != "lora",
                f'train.max_norm is for train.network = "lora"; set it to 0 for {self.network!r}',
            ),
            (
                self.network == "dora" and self.text_encoder_rate > 0,
                'train.network = "dora" leaves the text encoders alone, since diffusers reads no magnitudes for them; '
                "set train.text_encoder_rate to 0",
            ),
            (
                self.quantise in {"int8", "nf4"} and self.network != "lora",
                f'train.quantise is for train.network = "lora"; set it to "none" for {self.network!r}',
            ),
            (
                self.streamed > 0 and not self.gradient_checkpointing,
                "train.streamed needs train.gradient_checkpointing = true, by which a block's weights are needed only while "
                "it is computed",
            ),
            (
                self.streamed > 0 and self.network == "dora",
                'train.network = "dora" starts from the norms of all weights at once; set train.streamed to 0',
            ),
            (
                not self.targets and self.conv_rank == 0,
                "train.targets is empty; name at least one group of modules",
            ),
        ):
            if wrong:
                raise ValueError(sentence)
        return self


# What says how it is computed, kept or shown, and leaves the trained weights as they are.
WITHOUT_INFLUENCE = frozenset(name for name, affected in declared(TrainSection) if affected == "nothing")
