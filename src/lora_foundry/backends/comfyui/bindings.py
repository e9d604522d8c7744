"""Which inputs of a workflow are filled for each picture: those with a placeholder, `{{prompt}}`, and those of a node
whose title says so, "prompt" or "steps, cfg"."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from lora_foundry.backends.comfyui.graphs import Graph, source_of
from lora_foundry.backends.comfyui.protocol import is_link
from lora_foundry.errors import InputError

# {{name}}, or {{name|what stands there where nothing else is given}}; {{name?}} takes its node out instead.
PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*(?:\?|\|([^{}]*))?\s*\}\}")
_LEFT_OUT = re.compile(r"\{\{\s*(\w+)\s*\?\s*\}\}")
_TEXTS = ("text", "text_g", "text_l", "clip_g", "clip_l", "t5xxl", "llama", "prompt", "string", "value")
# The inputs that a node titled by a binding's name may have for it: all texts, the first found of the others.
_TITLED_INPUTS: dict[str, tuple[str, ...]] = {
    "prompt": _TEXTS,
    "negative": _TEXTS,
    "seed": ("seed", "noise_seed", "value"),
    "width": ("width", "value"),
    "height": ("height", "value"),
    "batch": ("batch_size", "amount", "value"),
    "steps": ("steps", "value"),
    "cfg": ("cfg", "guidance", "value"),
    "sampler": ("sampler_name",),
    "scheduler": ("scheduler",),
    "denoise": ("denoise", "value"),
    "checkpoint": ("ckpt_name", "unet_name", "value"),
    "text_encoder": ("clip_name", "clip_name1", "value"),
    "vae": ("vae_name", "value"),
    "lora": ("lora_name",),
    "strength": ("strength_model", "strength", "value"),
    "reference": ("image", "value"),
    "reference2": ("image", "value"),
    "reference3": ("image", "value"),
    "reference_strength": ("weight", "strength", "value"),
}
_ALIASES: dict[str, tuple[str, ...]] = {
    "positive": ("prompt",),
    "positive_prompt": ("prompt",),
    "negative_prompt": ("negative",),
    "size": ("width", "height"),
}
_BETWEEN = re.compile(r"\s*(?:[,;/&+]|\band\b)\s*")
ADVICE = {
    "reference": "give a reference image",
    "checkpoint": "name a checkpoint in model.base or generate.checkpoint",
}


@dataclass(frozen=True)
class Values:
    """What a workflow can be told. None leaves what the placeholder itself says, or is refused where it says
    nothing."""

    prompt: str
    seed: int
    negative: str = ""
    width: int = 512
    height: int = 512
    batch: int = 1
    steps: int = 28
    cfg: float = 7.5
    sampler: str = "dpmpp_2m"
    scheduler: str = "karras"
    denoise: float = 0.7
    checkpoint: str | None = None
    text_encoder: str | None = None
    vae: str | None = None
    lora: str | None = None
    strength: float = 1.0
    reference: str | None = None
    reference2: str | None = None
    reference3: str | None = None
    reference_strength: float = 0.4


NAMES = tuple(field.name for field in fields(Values))


class Place(NamedTuple):
    """An input of a node, and the names of what fills it."""

    node: str
    input: str
    names: tuple[str, ...]


def title_of(node: dict[str, Any]) -> str:
    return str((node.get("_meta") or {}).get("title") or "").strip().lower()


def named_by(title: str) -> tuple[str, ...]:
    """The bindings that a title stands for: one ("Negative prompt"), or several between commas or blanks ("steps, cfg");
    none where any word of it is something else."""
    for parts in ([title], _BETWEEN.split(title), title.split()):
        names: list[str] = []
        for part in parts:
            word = re.sub(r"[\s_-]+", "_", part)
            known = (word,) if word in _TITLED_INPUTS else _ALIASES.get(word)
            if known is None:
                break
            names += known
        else:
            return tuple(dict.fromkeys(names))
    return ()


def places(graph: Graph) -> Iterator[Place]:
    """Every input that is filled; a placeholder goes before the node's title."""
    for key, node in graph.items():
        held = False
        for name, value in node["inputs"].items():
            if isinstance(value, str) and (found := PLACEHOLDER.findall(value)):
                held = True
                yield Place(key, name, tuple(binding for binding, _ in found))
        if not held:
            yield from _titled(graph, key)


def _titled(graph: Graph, key: str) -> Iterator[Place]:
    """The inputs of a node that its title fills; where one comes over a link, the value at the link's other end."""
    inputs = graph[key]["inputs"]
    for binding in named_by(title_of(graph[key])):
        wanted = [name for name in _TITLED_INPUTS[binding] if name in inputs]
        for name in wanted if binding in ("prompt", "negative") else wanted[:1]:
            if not is_link(inputs[name]):
                yield Place(key, name, (binding,))
            elif (source := source_of(graph, inputs[name])) is not None:
                yield from _primitive(graph, source.node, binding)


def _primitive(graph: Graph, key: str, binding: str) -> Iterator[Place]:
    """The one value of a node that only hands a value on."""
    plain = [name for name, value in graph[key]["inputs"].items() if not is_link(value)]
    named = [
        name for name in ("value", "string", "text", "int", "seed", *_TITLED_INPUTS[binding]) if name in plain
    ]
    if named and not any(is_link(value) for value in graph[key]["inputs"].values()):
        yield Place(key, named[0], (binding,))


def filled(value: Any, names: tuple[str, ...], values: Values, workflow: str) -> Any:
    """The input's new value: typed where the placeholder, or the title, stands for all of it, else text."""

    def of(name: str, otherwise: str | None) -> Any:
        given = getattr(values, name)
        if given is None and otherwise is None:
            raise InputError(f"The workflow {workflow} needs a {name}; {ADVICE.get(name, 'give one')}.")
        return otherwise if given is None else given

    if not isinstance(value, str) or not (found := PLACEHOLDER.search(value)):
        return of(names[0], None if value is None else value)
    if found.group(0) == value.strip():
        return of(found.group(1), found.group(2))
    return PLACEHOLDER.sub(lambda match: str(of(match.group(1), match.group(2))), value)


def left_out(graph: Graph, values: Values) -> list[str]:
    """The nodes whose `{{name?}}` has no value."""
    return [
        key
        for key, node in graph.items()
        for value in node["inputs"].values()
        if isinstance(value, str)
        and (found := _LEFT_OUT.search(value))
        and getattr(values, found.group(1), None) is None
    ]


def with_defaults(graph: Graph) -> Graph:
    """The graph with what each placeholder says itself, where it says something."""
    changed = copy.deepcopy(graph)
    for node in changed.values():
        for name, value in node["inputs"].items():
            found = PLACEHOLDER.fullmatch(value.strip()) if isinstance(value, str) else None
            if found is not None and found.group(2):
                node["inputs"][name] = found.group(2)
    return changed
