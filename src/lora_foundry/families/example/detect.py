"""Which files and folders are this family's, told by names, headers and configurations alone: torch is not imported and no
weight is read."""

from __future__ import annotations

from lora_foundry.families._shared.kinds import Kind, PublishedName
from lora_foundry.families._shared.vocabularies import CLIP
from lora_foundry.files.safetensors import Header

FAMILY = "example"  # the name of the folder

# Ends the sentence about a file that nobody knows: "supported are ...".
SUPPORTED = "the example (a diffusers folder)"

# The `_class_name` in a diffusers folder's model_index.json, and what such a folder is in words.
PIPELINES = {"ExamplePipeline": "an example model"}

# What reads prompts where a base is a file: a diffusers folder brings its own vocabulary.
VOCABULARIES = (CLIP,)

# The training adapter for a distilled model of the family, which `lora-foundry setup` fetches; None where there is none.
ADAPTER = None

# What published files are called by ComfyUI-Lora-Manager and A1111, by how `ss_base_model_version` of `train.py` begins.
PUBLISHED = {"example": PublishedName("Other")}


def look(header: Header, name: str) -> Kind | None:
    """What a safetensors file is, by its tensors' names and shapes; None where it is no business of this family. A part of
    a model gets a `Kind` without a family, whose words say what it is; a transformer whose VAE and text encoder are files
    of their own gets `needs`, as in `klein`."""
    if "blocks.0.to_q.weight" in header.shapes and "words.weight" in header.shapes:
        return Kind("the transformer of an example model alone; give the diffusers folder that it is from")
    return None
