"""What can be read from a workflow's links alone: which nodes lead to the picture, where its models come from, how large
it will be. No server is asked, so a workflow that cannot work is refused wherever it is handed in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lora_foundry.backends.comfyui.protocol import is_link

Graph = dict[str, dict[str, Any]]
Size = tuple[int, int]
# An input through which a diffusion model comes, and nothing else that is called a model (upscale_model, model_patch).
_MODEL_INPUT = re.compile(r"model(_?[0-9ab])?")
_LATENT_PIXELS = 8
_SAME_SHAPE = 0.02  # of the ratio of the sides: what rounding to whole latents makes of it
_SIZE_INPUTS = ("width", "height")
_PICTURES = ("latent_image", "samples", "image", "pixels", "images")
_SCALES_TO = ("ImageScale", "LatentUpscale")
_KEEPS_SIZE = ("VAEDecode", "VAEDecodeTiled", "VAEEncode", "VAEEncodeTiled", "SetLatentNoiseMask")


class Output(NamedTuple):
    """One output of one node."""

    node: str
    slot: int


def source_of(graph: Graph, value: object) -> Output | None:
    """The output that a link comes from; None for a plain value and for a link to a node that is not there."""
    if not isinstance(value, list) or not is_link(value) or str(value[0]) not in graph:
        return None
    return Output(str(value[0]), value[1])


def leading_to(graph: Graph, output: str) -> set[str]:
    """The nodes that the picture of `output` is made of, itself included. Others run too, but change nothing of it."""
    found: set[str] = set()
    open_nodes = [output]
    while open_nodes:
        key = open_nodes.pop()
        if key in found or key not in graph:
            continue
        found.add(key)
        sources = (source_of(graph, value) for value in graph[key]["inputs"].values())
        open_nodes += [source.node for source in sources if source is not None]
    return found


def models_of(graph: Graph, output: str) -> list[Output]:
    """Where the diffusion models come from whose samplers the picture passes: the loader's output, or that of a node
    that merges several models into one. In the order of the nodes, each once."""
    used = leading_to(graph, output)
    found = [
        _origin(graph, source) for key in graph if key in used for _, source in _model_inputs(graph, key)
    ]
    return list(dict.fromkeys(found))


def clips_of(graph: Graph, output: str) -> list[Output]:
    """The same for the text encoders."""
    used = leading_to(graph, output)
    found = []
    for key in graph:
        if key in used and (source := source_of(graph, graph[key]["inputs"].get("clip"))):
            seen: set[Output] = set()
            while source not in seen and (
                above := source_of(graph, graph[source.node]["inputs"].get("clip"))
            ):
                seen.add(source)
                source = above
            found.append(source)
    return list(dict.fromkeys(found))


def _model_inputs(graph: Graph, key: str) -> Iterator[tuple[str, Output]]:
    for name, value in graph[key]["inputs"].items():
        if _MODEL_INPUT.fullmatch(name) and (source := source_of(graph, value)):
            yield name, source


def _origin(graph: Graph, source: Output) -> Output:
    """Follows a model to where it comes from, through the nodes that change it (LoRAs, shifts, patches)."""
    seen: set[Output] = set()
    while source not in seen:
        seen.add(source)
        above = [found for _, found in _model_inputs(graph, source.node)]
        if len(above) != 1:
            break
        source = above[0]
    return source


class Picture(NamedTuple):
    """How large a picture will be, and how many one prompt gives."""

    width: int
    height: int
    number: int = 1


def picture_of(graph: Graph, output: str) -> Picture | None:
    """What the node `output` saves, of a graph whose inputs are filled; None where that cannot be told from the graph: it
    depends on a picture, on an upscaler's model, or on a node that is not known here."""
    images = source_of(graph, graph[output]["inputs"].get("images"))
    return None if images is None else _made_by(graph, images.node, set())


def _made_by(graph: Graph, key: str, seen: set[str]) -> Picture | None:
    """The size of the picture, or of the latent in pixels, that a node gives."""
    class_type, inputs = graph[key]["class_type"], graph[key]["inputs"]
    if class_type.startswith("Empty") and "Latent" in class_type:
        return _sized(Picture(0, 0, _number(inputs.get("batch_size"), 1)), inputs)
    below = next((found for name in _PICTURES if (found := source_of(graph, inputs.get(name)))), None)
    picture = None
    if below is not None and key not in seen:
        picture = _made_by(graph, below.node, seen | {key})
    if class_type in _SCALES_TO:
        return _sized(picture or Picture(0, 0), inputs)
    return None if picture is None else _changed(class_type, inputs, picture)


def _changed(class_type: str, inputs: dict[str, Any], picture: Picture) -> Picture | None:
    """What a node makes of the picture, or latent, that it is given."""
    match class_type:
        case "ImageScaleBy" | "LatentUpscaleBy":
            step = 1 if class_type == "ImageScaleBy" else _LATENT_PIXELS
            return _scaled(picture, inputs.get("scale_by"), step)
        case "RepeatLatentBatch":
            return picture._replace(number=picture.number * _number(inputs.get("amount"), 1))
        case "LatentFromBatch" | "ImageFromBatch":
            length = _number(inputs.get("length"), picture.number)
            return picture._replace(number=min(picture.number, length))
    known = class_type in _KEEPS_SIZE or "latent_image" in inputs  # a sampler, of whatever kind
    return picture if known else None


def _sized(picture: Picture, inputs: dict[str, Any]) -> Picture | None:
    """The picture at a node's own width and height; None where these come over links."""
    sides = [inputs.get(name) for name in _SIZE_INPUTS]
    if not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    width, height = (int(side) // _LATENT_PIXELS * _LATENT_PIXELS for side in sides if side)
    return picture._replace(width=width, height=height)


def _scaled(picture: Picture, factor: object, step: int) -> Picture | None:
    if not isinstance(factor, int | float) or factor <= 0:
        return None
    width, height = (round(side / step * factor) * step for side in (picture.width, picture.height))
    return picture._replace(width=width, height=height)


def _number(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and value > 0 else otherwise


def fits(made: tuple[int, int], asked: tuple[int, int]) -> bool:
    """Whether a picture of one size can be kept at another: it has that shape, and at least that size."""
    shape = abs(made[0] * asked[1] / (made[1] * asked[0]) - 1)
    return shape <= _SAME_SHAPE and made[0] >= asked[0] and made[1] >= asked[1]
