"""The nodes that the stub server knows, in the shape of /object_info, and the faults that the real
validation would find in a graph of them, one output after another."""

from __future__ import annotations

import copy
from typing import Any

Node = dict[str, Any]
CHECKPOINT_INPUT, LORA_INPUT = "ckpt_name", "lora_name"
_SAMPLERS = ["euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "ddim", "uni_pc"]
_SCHEDULERS = ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal"]
_SIDE = {"default": 512, "min": 16, "max": 16384, "step": 8}
_SHAPES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "CheckpointLoaderSimple": ({CHECKPOINT_INPUT: [[]]}, ["MODEL", "CLIP", "VAE"]),
    "LoraLoader": (
        {
            "model": ["MODEL"],
            "clip": ["CLIP"],
            LORA_INPUT: [[]],
            "strength_model": ["FLOAT", {"min": -100.0, "max": 100.0}],
            "strength_clip": ["FLOAT", {"min": -100.0, "max": 100.0}],
        },
        ["MODEL", "CLIP"],
    ),
    "CLIPTextEncode": ({"text": ["STRING", {"multiline": True}], "clip": ["CLIP"]}, ["CONDITIONING"]),
    "EmptyLatentImage": (
        {"width": ["INT", _SIDE], "height": ["INT", _SIDE], "batch_size": ["INT", {"min": 1, "max": 4096}]},
        ["LATENT"],
    ),
    "KSampler": (
        {
            "model": ["MODEL"],
            "seed": ["INT", {"min": 0, "max": 18446744073709551615}],
            "steps": ["INT", {"min": 1, "max": 10000}],
            "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
            "sampler_name": [_SAMPLERS],
            "scheduler": ["COMBO", {"options": _SCHEDULERS}],
            "positive": ["CONDITIONING"],
            "negative": ["CONDITIONING"],
            "latent_image": ["LATENT"],
            "denoise": ["FLOAT", {"min": 0.0, "max": 1.0}],
        },
        ["LATENT"],
    ),
    "VAEDecode": ({"samples": ["LATENT"], "vae": ["VAE"]}, ["IMAGE"]),
    "LoadImage": ({"image": [["example.png"], {"image_upload": True}]}, ["IMAGE", "MASK"]),
    "UNETLoader": ({"unet_name": [[]], "weight_dtype": [["default"]]}, ["MODEL"]),
    "CLIPLoader": ({"clip_name": [["encoder.safetensors"]], "type": [["stable_diffusion"]]}, ["CLIP"]),
    "VAELoader": ({"vae_name": [["vae.safetensors"]]}, ["VAE"]),
    "LoraLoaderModelOnly": (
        {"model": ["MODEL"], LORA_INPUT: [[]], "strength_model": ["FLOAT", {"min": -100.0, "max": 100.0}]},
        ["MODEL"],
    ),
    "CLIPTextEncodeSDXL": (
        {
            "clip": ["CLIP"],
            "width": ["INT", _SIDE],
            "height": ["INT", _SIDE],
            "text_g": ["STRING", {"multiline": True}],
            "text_l": ["STRING", {"multiline": True}],
        },
        ["CONDITIONING"],
    ),
    "KSamplerAdvanced": (
        {
            "model": ["MODEL"],
            "add_noise": [["enable", "disable"]],
            "noise_seed": ["INT", {"min": 0, "max": 18446744073709551615, "control_after_generate": True}],
            "steps": ["INT", {"min": 1, "max": 10000}],
            "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
            "sampler_name": [_SAMPLERS],
            "scheduler": [_SCHEDULERS],
            "positive": ["CONDITIONING"],
            "negative": ["CONDITIONING"],
            "latent_image": ["LATENT"],
            "start_at_step": ["INT", {"min": 0, "max": 10000}],
            "end_at_step": ["INT", {"min": 0, "max": 10000}],
            "return_with_leftover_noise": [["disable", "enable"]],
        },
        ["LATENT"],
    ),
    "RandomNoise": (
        {"noise_seed": ["INT", {"min": 0, "max": 18446744073709551615, "control_after_generate": True}]},
        ["NOISE"],
    ),
    "KSamplerSelect": ({"sampler_name": [_SAMPLERS]}, ["SAMPLER"]),
    "BasicScheduler": (
        {
            "model": ["MODEL"],
            "scheduler": [_SCHEDULERS],
            "steps": ["INT", {"min": 1, "max": 10000}],
            "denoise": ["FLOAT", {"min": 0.0, "max": 1.0}],
        },
        ["SIGMAS"],
    ),
    "CFGGuider": (
        {
            "model": ["MODEL"],
            "positive": ["CONDITIONING"],
            "negative": ["CONDITIONING"],
            "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
        },
        ["GUIDER"],
    ),
    "SamplerCustomAdvanced": (
        {
            "noise": ["NOISE"],
            "guider": ["GUIDER"],
            "sampler": ["SAMPLER"],
            "sigmas": ["SIGMAS"],
            "latent_image": ["LATENT"],
        },
        ["LATENT", "LATENT"],
    ),
    "LatentUpscaleBy": (
        {
            "samples": ["LATENT"],
            "upscale_method": [["nearest-exact"]],
            "scale_by": ["FLOAT", {"min": 0.01, "max": 8.0}],
        },
        ["LATENT"],
    ),
    "ImageScale": (
        {
            "image": ["IMAGE"],
            "upscale_method": [["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]],
            "width": ["INT", {"min": 0, "max": 16384}],
            "height": ["INT", {"min": 0, "max": 16384}],
            "crop": [["disabled", "center"]],
        },
        ["IMAGE"],
    ),
    "RepeatLatentBatch": (
        {"samples": ["LATENT"], "amount": ["INT", {"min": 1, "max": 64}]},
        ["LATENT"],
    ),
    "VAEEncode": ({"pixels": ["IMAGE"], "vae": ["VAE"]}, ["LATENT"]),
    "InstructPixToPixConditioning": (
        {"positive": ["CONDITIONING"], "negative": ["CONDITIONING"], "vae": ["VAE"], "pixels": ["IMAGE"]},
        ["CONDITIONING", "CONDITIONING", "LATENT"],
    ),
    "PreviewImage": ({"images": ["IMAGE"]}, []),
    "SaveImage": ({"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "ComfyUI"}]}, []),
}


def node_shapes() -> dict[str, Node]:
    """What /object_info says, with empty lists of models."""
    return {
        name: {
            "input": {"required": copy.deepcopy(inputs)},
            "output": list(outputs),
            "name": name,
            "output_node": name in ("SaveImage", "PreviewImage"),
        }
        for name, (inputs, outputs) in _SHAPES.items()
    }


def problems(graph: Node, outputs: list[str], shapes: dict[str, Node]) -> tuple[list[str], dict[str, Any]]:
    """The outputs that can be made, and `node_errors` for the nodes behind the others."""
    good, errors = [], {}
    for output in outputs:
        faulty = {key: found for key in _behind(graph, output) if (found := _of_node(key, graph, shapes))}
        if not faulty:
            good.append(output)
        for key, found in faulty.items():
            class_type = graph[key]["class_type"]
            errors[key] = {"errors": found, "dependent_outputs": [output], "class_type": class_type}
    return good, errors


def _behind(graph: Node, output: str) -> list[str]:
    found, open_nodes = [], [output]
    while open_nodes:
        key = open_nodes.pop()
        if key in found or key not in graph:
            continue
        found.append(key)
        open_nodes += [str(value[0]) for value in graph[key]["inputs"].values() if isinstance(value, list)]
    return found


def _of_node(key: str, graph: Node, shapes: dict[str, Node]) -> list[Node]:
    given = graph[key]["inputs"]
    found = []
    for name, config in shapes[graph[key]["class_type"]]["input"]["required"].items():
        if name not in given:
            found.append(_error("required_input_missing", "Required input is missing", name, name))
            continue
        value, limits = given[name], config[1] if len(config) > 1 else {}
        options = config[0] if isinstance(config[0], list) else limits.get("options")
        if options is not None and not limits.get("image_upload") and value not in options:
            shown = options if len(options) <= 20 else f"(list of length {len(options)})"
            fault = _error(
                "value_not_in_list", "Value not in list", f"{name}: '{value}' not in {shown}", name
            )
            shown_config = config if len(options) <= 20 else None
            fault["extra_info"] |= {"received_value": value, "input_config": shown_config}
            found.append(fault)
        elif isinstance(value, int | float) and value < limits.get("min", value):
            text = f"Value {value} smaller than min of {limits['min']}"
            found.append(_error("value_smaller_than_min", text, name, name))
        elif isinstance(value, int | float) and value > limits.get("max", value):
            text = f"Value {value} bigger than max of {limits['max']}"
            found.append(_error("value_bigger_than_max", text, name, name))
    return found


def _error(kind: str, message: str, details: str, name: str) -> Node:
    return {"type": kind, "message": message, "details": details, "extra_info": {"input_name": name}}


def refused(kind: str, message: str, details: str) -> Node:
    """The body of an answer of status 400."""
    error = {"type": kind, "message": message, "details": details, "extra_info": {}}
    return {"error": error, "node_errors": {}}
