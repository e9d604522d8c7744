"""How Stable Diffusion 1.x and 2.x follow a reference image: image-to-image, which any base can do, or an
IP-Adapter, which takes the look and leaves the pose free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lora_foundry.domain.dataset import ReferenceUse
from lora_foundry.domain.sections import GenerateSection
from lora_foundry.errors import InputError
from lora_foundry.families._shared.drawing import Guide, read_reference
from lora_foundry.families._shared.inspect import BUNDLED
from lora_foundry.families._shared.loading import quiet_libraries

# The library is untyped.
_ImageToImagePipeline: Any = diffusers.StableDiffusionImg2ImgPipeline


class ImageToImage(Guide):
    """Starts from the reference instead of from noise alone, and denoises a share 1 - strength of the steps."""

    def __init__(self, pipeline: Any, use: ReferenceUse) -> None:
        super().__init__(pipeline, use)
        self._image = read_reference(use.path)

    def denoise(self, **options: Any) -> Any:
        latents: Tensor = options.pop("latents")
        size = options.pop("width"), options.pop("height")
        del options["guidance_rescale"]  # the library's image-to-image knows none
        steps = options["num_inference_steps"]
        twin = _ImageToImagePipeline(**self._pipeline.components, requires_safety_checker=False)
        twin.set_progress_bar_config(disable=True)
        image = ImageOps.fit(self._image, size, Image.Resampling.LANCZOS)
        # At least one step is taken, or the library would refuse.
        share = min(1.0, max(1.0 - self.use.strength, 1.0 / steps + 1e-6))
        return twin(image=[image] * len(latents), strength=share, **options)


class ImagePrompt(Guide):
    """An IP-Adapter: the reference as tokens that the UNet attends to beside those of the text."""

    def __init__(self, pipeline: Any, use: ReferenceUse, file: Path) -> None:
        super().__init__(pipeline, use)
        self._image = read_reference(use.path)
        try:
            with quiet_libraries():
                self._see(pipeline, file)
                _load_adapter(pipeline, file)
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"generate.ip_adapter = {str(file)!r} does not fit this base: {reason}"
            ) from error
        pipeline.set_ip_adapter_scale(use.strength)

    def _see(self, pipeline: Any, file: Path) -> None:
        """Gives the pipeline the vision model that the adapter was trained with."""
        from transformers import CLIPVisionModelWithProjection

        encoder = _beside(file, "image_encoder")
        vision = CLIPVisionModelWithProjection.from_pretrained(encoder, use_safetensors=True)
        vision.to(pipeline.unet.device, pipeline.unet.dtype)
        pipeline.register_modules(image_encoder=vision, feature_extractor=_processor(vision))

    def denoise(self, **options: Any) -> Any:
        count = len(options["latents"])
        return self._pipeline(ip_adapter_image=[[self._image] * count], **options)

    def close(self) -> None:
        with quiet_libraries():
            self._pipeline.unload_ip_adapter()


class BundledImagePrompt(ImagePrompt):
    """The miniature model's own adapter, which sees with the bundled encoder instead of CLIP."""

    def __init__(self, pipeline: Any, use: ReferenceUse) -> None:
        from lora_foundry.mini.vision import ADAPTER

        super().__init__(pipeline, use, ADAPTER)

    def _see(self, pipeline: Any, file: Path) -> None:
        from lora_foundry.mini.vision import ImageFeatures

        eye = ImageFeatures()
        # (2, 1, rows, width): no picture, for the guidance's unconditional half, and the reference.
        both = torch.stack([eye.nothing(), eye.of([self._image])])
        self._features = both.to(pipeline.unet.device, pipeline.unet.dtype)

    def denoise(self, **options: Any) -> Any:
        count = len(options["latents"])
        return self._pipeline(ip_adapter_image_embeds=[self._features.expand(-1, count, -1, -1)], **options)


def _load_adapter(pipeline: Any, file: Path) -> None:
    """Puts an adapter's weights on a pipeline. Raises what the library raises for those that do not fit."""
    weights = load_file(file)
    state = {
        part: {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"{part}.")
        }
        for part in ("image_proj", "ip_adapter")
    }
    pipeline.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)


def make_guide(pipeline: Any, use: ReferenceUse, section: GenerateSection) -> Guide:
    """The guide that the recipe names. Raises InputError for a reference or an adapter that cannot be used."""
    if section.reference_method == "img2img":
        return ImageToImage(pipeline, use)
    if not section.ip_adapter:
        raise InputError(
            "generate.reference_method = 'ip_adapter' needs the adapter's file in generate.ip_adapter, "
            "such as ip-adapter_sd15.safetensors; or choose 'img2img'."
        )
    if section.ip_adapter == BUNDLED:
        return BundledImagePrompt(pipeline, use)
    return ImagePrompt(pipeline, use, Path(section.ip_adapter).expanduser())


def _beside(file: Path, name: str) -> Path:
    """The folder `name` beside an adapter's file or one folder up, as the adapters are shared."""
    for folder in (file.parent / name, file.parent.parent / name):
        if (folder / "config.json").is_file():
            return folder
    raise InputError(
        f"generate.ip_adapter = {str(file)!r} needs its CLIP vision model in {file.parent / name}."
    )


def _processor(vision: Any) -> Any:
    size = vision.config.image_size
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
