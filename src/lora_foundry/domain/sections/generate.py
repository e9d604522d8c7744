"""Recipe section [generate]: how the pictures are made. Every field's description is its documentation."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lora_foundry.domain.sections.base import NOTHING, LocalPath, Section, Share, Size, WorkflowPath
from lora_foundry.errors import did_you_mean
from lora_foundry.registry import OneOf

_IN_PROCESS = {"sampler": ("dpmpp_2m", "euler", "euler_ancestral", "ddim"), "scheduler": ("karras", "normal")}


class GenerateSection(Section):
    """[generate]: how the training pictures are made."""

    backend: Annotated[str, OneOf("generator")] = Field("diffusers", description="Where pictures are made.")
    workflow: WorkflowPath = Field(
        "sd15",
        description="ComfyUI workflow: a shipped one's name or an API-format .json file. Other backends ignore it.",
    )
    reference_workflow: WorkflowPath = Field(
        "img2img", description="The workflow that ComfyUI is given where the character has a reference image."
    )
    checkpoint: str = Field(
        "", description="ComfyUI's name for the checkpoint, where it is not the file name of `model.base`."
    )
    reference_checkpoint: str = Field(
        "", description="ComfyUI's name for the model of `reference_workflow`, where it is another one."
    )
    text_encoder: str = Field(
        "",
        description="ComfyUI's name for the text encoder of a workflow with `{{text_encoder}}`; its own unless set.",
    )
    vae: str = Field(
        "", description="ComfyUI's name for the VAE of a workflow with `{{vae}}`; its own unless set."
    )
    references: Annotated[tuple[str, ...], Field(max_length=2), LocalPath("pictures")] = Field(
        (),
        description="More pictures of the character beside its reference image, for a `reference_workflow` with "
        "`{{reference2}}` and `{{reference3}}`.",
    )
    images: Annotated[int, Field(ge=1, le=1000)] = Field(40, description="Pictures in the training set.")
    width: Size = Field(512, description="Picture width in pixels.")
    height: Size = Field(512, description="Picture height in pixels.")
    steps: Annotated[int, Field(ge=1, le=200)] = Field(28, description="Sampling steps.")
    cfg: Annotated[float, Field(ge=1, le=30)] = Field(7.5, description="Classifier-free guidance scale.")
    guidance_rescale: Share = Field(
        0.0,
        description="Guidance rescale (arXiv 2305.08891, eq. 16); for zero-terminal-SNR models about 0.5.",
    )
    sampler: str = Field(
        "dpmpp_2m",
        description="Sampler: `dpmpp_2m`, `euler`, `euler_ancestral` or `ddim`; with ComfyUI any that the server has.",
    )
    scheduler: str = Field(
        "karras",
        description="Noise schedule of the sampler, `karras` or `normal`, with ComfyUI any that the server has; DDIM and "
        "zero-terminal-SNR bases keep their own instead of `karras`.",
    )
    batch_size: Annotated[int, Field(ge=1, le=64)] = Field(
        4,
        description="Pictures made at once.",
        json_schema_extra=NOTHING,
    )
    rounds: Annotated[int, Field(ge=1, le=10)] = Field(
        1,
        description="Sets drawn in all (The Chosen One, arXiv 2311.10093): between two of them a short LoRA is "
        "trained on the most cohesive cluster, until the mean pairwise distance stops falling. 1 draws one.",
    )
    round_images: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="Pictures of a set before the last, never more than `images`; 0 is as many."
    )
    round_keep: Share = Field(0.25, description="Share of such a set that the short LoRA is trained on.")
    round_steps: Annotated[int, Field(ge=0)] = Field(
        150, description="Optimizer steps of the short LoRA between two sets; 0 trains none."
    )
    complete_description: bool = Field(
        False,
        description="Between two sets, look at that cluster and add to the description what it leaves open, such as "
        "the colour of the eyes: the value that most have, at least `caption.identity_share` of those that show any. "
        "What a reference image shows is added before the first. Needs `caption.look`.",
    )
    reference_method: Literal["img2img", "ip_adapter"] = Field(
        "img2img",
        description="How the in-process generator follows a reference image: image-to-image, or an IP-Adapter. "
        "ComfyUI follows `reference_workflow`.",
    )
    reference_strength: Share = Field(
        0.4,
        description="How closely a reference image is followed: an IP-Adapter's scale; image-to-image denoises "
        "the remaining share.",
    )
    ip_adapter: Annotated[str, LocalPath("models", names="mini")] = Field(
        "",
        description="The IP-Adapter's .safetensors file, with its CLIP vision model in `image_encoder/` beside it "
        "or one folder up; `mini` is the bundled model's own.",
    )
    prefix: str = Field("", description="Words before the description in every prompt.")
    suffix: str = Field(description="Quality words after the shot in every prompt.")
    negative: str = Field(description="Negative prompt.")

    @model_validator(mode="after")
    def _in_process(self) -> Self:
        """Only a server has samplers and schedules of its own. Raises ValueError."""
        for name, known in _IN_PROCESS.items():
            if self.backend == "diffusers" and (value := getattr(self, name)) not in known:
                raise ValueError(
                    f"there is no {name} {value!r} in this process; {did_you_mean(value, known)}"
                )
        return self
