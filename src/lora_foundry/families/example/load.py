"""How it is loaded: the classes by their names in diffusers, or by `module:name` where they are our own."""

from __future__ import annotations

from pathlib import Path

from lora_foundry.families._shared.loading import Loader, brain_precision, flow_precision

LOADER = Loader(
    pipeline="lora_foundry.families.example.pipeline:ExamplePipeline",
    denoiser="transformer",  # its name in the pipeline: a folder of that name has its weights
    denoiser_class="lora_foundry.families.example.network:ExampleTransformer",
    configurations=Path(__file__).parent / "configurations",  # for bases in files; this family has none
    training=flow_precision,  # never fp16, whose range the activations of such transformers leave
    drawing=brain_precision,
    encoding=brain_precision,
)
