"""Workflows: graphs in ComfyUI's API format whose inputs are filled for each picture.

An input is bound by a placeholder, `{{prompt}}`, or by the title of its node, "prompt". The shipped ones
use nothing but placeholders and core nodes; a user's own may hold any custom node.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from lora_foundry.backends.comfyui.faults import Graph, node_title
from lora_foundry.backends.comfyui.protocol import is_link
from lora_foundry.errors import InputError, did_you_mean

_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
# The inputs that a node titled by a binding's name may have for it, the first found one wins.
_TITLED_INPUTS: dict[str, tuple[str, ...]] = {
    "prompt": ("text", "prompt", "value", "string"),
    "negative": ("text", "prompt", "value", "string"),
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
    "lora": ("lora_name",),
    "strength": ("strength_model", "strength", "value"),
    "reference": ("image", "value"),
    "reference_strength": ("weight", "strength", "value"),
}
# Loaders behind which a LoRA is put where the workflow has no place for one: class -> (LoRA class, passes CLIP).
_LOADERS = {
    "CheckpointLoaderSimple": ("LoraLoader", True),
    "unCLIPCheckpointLoader": ("LoraLoader", True),
    "UNETLoader": ("LoraLoaderModelOnly", False),
}
_OUTPUT_TITLES = ("output", "result")


@dataclass(frozen=True)
class Values:
    """What a workflow can be told. None leaves the workflow's own value, or is refused where there is
    none."""

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
    lora: str | None = None
    strength: float = 1.0
    reference: str | None = None
    reference_strength: float = 0.4


NAMES = tuple(field.name for field in fields(Values))


@dataclass(frozen=True)
class Workflow:
    """A graph, the name of what it came from, and where its pictures come out."""

    name: str
    graph: Graph
    output: str
    bindings: frozenset[str]

    def bind(self, values: Values) -> Graph:
        """The graph with every binding filled. Raises InputError for one that has no value."""
        graph = copy.deepcopy(self.graph)
        if "lora" in self.bindings:
            if values.lora is None:
                _bypass_loras(graph)
        elif values.lora is not None:
            _insert_lora(graph, values.lora, values.strength, self.name)
        for node, key, names in list(_places(graph)):
            inputs = graph[node]["inputs"]
            inputs[key] = _filled(inputs[key], names, values, self.name)
        return graph


def shipped() -> list[str]:
    """The names of the workflows that come with the package."""
    folder = resources.files("lora_foundry.backends.comfyui").joinpath("templates")
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def load_workflow(name: str) -> Workflow:
    """A shipped workflow by its name, or a file by its path. Raises InputError."""
    path = Path(name).expanduser()
    if path.suffix == ".json":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The workflow {path} cannot be read: {error}.") from error
        return parse_workflow(text, str(path))
    if name not in shipped():
        raise InputError(
            f"There is no workflow {name!r}; {did_you_mean(name, shipped())} A file ends in .json."
        )
    file = resources.files("lora_foundry.backends.comfyui").joinpath("templates", f"{name}.json")
    return parse_workflow(file.read_text(encoding="utf-8"), name)


def parse_workflow(text: str, name: str) -> Workflow:
    """A workflow from JSON in API format. Raises InputError that says what it is instead."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"The workflow {name} is not JSON: {error}.") from error
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict) and "class_type" not in data["prompt"]:
        data = data["prompt"]  # as it was posted to a server
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        raise InputError(
            f"The workflow {name} is in the format of ComfyUI's editor; open it there and choose "
            "Workflow > Export (API), then use that file."
        )
    if not isinstance(data, dict) or not data or not all(_is_node(node) for node in data.values()):
        raise InputError(
            f"{name} is not a workflow in ComfyUI's API format; export it by Workflow > Export (API)."
        )
    graph: Graph = {str(key): node for key, node in data.items()}
    names = {binding for _, _, found in _places(graph) for binding in found}
    if unknown := sorted(names - set(NAMES)):
        raise InputError(f"The workflow {name} has {{{{{unknown[0]}}}}}; {did_you_mean(unknown[0], NAMES)}")
    return Workflow(name, graph, _output(graph, name), frozenset(names))


def _is_node(node: object) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _title(node: dict[str, Any]) -> str:
    return str((node.get("_meta") or {}).get("title") or "").strip().lower()


def _output(graph: Graph, name: str) -> str:
    """The node whose pictures count: the only one that saves, or the one titled "output"."""
    saving = [key for key, node in graph.items() if "filename_prefix" in node["inputs"]]
    titled = [key for key in saving if _title(graph[key]) in _OUTPUT_TITLES]
    if len(titled) == 1 or len(saving) == 1:
        return (titled or saving)[0]
    if not saving:
        raise InputError(f"The workflow {name} saves no picture; add a Save Image node to it.")
    raise InputError(
        f"The workflow {name} has {len(saving)} nodes that save; title the one that counts 'output'."
    )


def _places(graph: Graph) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every (node, input, names of what fills it); a placeholder goes before the node's title."""
    for key, node in graph.items():
        held = False
        for name, value in node["inputs"].items():
            if isinstance(value, str) and (found := _PLACEHOLDER.findall(value)):
                held = True
                yield key, name, tuple(found)
        title = _title(node)
        if not held and title in _TITLED_INPUTS:
            for name in _TITLED_INPUTS[title]:
                if name in node["inputs"] and not is_link(node["inputs"][name]):
                    yield key, name, (title,)
                    break


def _filled(value: Any, names: tuple[str, ...], values: Values, workflow: str) -> Any:
    """The input's new value: typed where the placeholder, or the title, stands for all of it, else text."""
    for name in names:
        if getattr(values, name) is None:
            advice = {"reference": "give a reference image", "checkpoint": "name a checkpoint in model.base"}
            raise InputError(f"The workflow {workflow} needs a {name}; {advice.get(name, 'give one')}.")
    if not isinstance(value, str) or not (found := _PLACEHOLDER.search(value)):
        return getattr(values, names[0])
    if found.group(0) == value.strip():
        return getattr(values, found.group(1))
    return _PLACEHOLDER.sub(lambda match: str(getattr(values, match.group(1))), value)


def _rewire(graph: Graph, old: tuple[str, int], new: list[Any], but: str = "") -> None:
    """Lets every input that reads `old` read `new`, those of the node `but` excepted."""
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if key != but and is_link(value) and (str(value[0]), value[1]) == old:
                node["inputs"][name] = new


def _insert_lora(graph: Graph, lora: str, strength: float, workflow: str) -> None:
    """Puts a LoRA behind every loader of a model. Raises InputError where the workflow has none that we
    know."""
    loaders = [key for key, node in graph.items() if node["class_type"] in _LOADERS]
    if not loaders:
        raise InputError(
            f"The workflow {workflow} has no place for a LoRA; give it a LoRA node with {{{{lora}}}}."
        )
    for key in loaders:
        class_type, with_clip = _LOADERS[graph[key]["class_type"]]
        new = f"lora-{key}"
        inputs: dict[str, Any] = {"model": [key, 0], "lora_name": lora, "strength_model": strength}
        _rewire(graph, (key, 0), [new, 0])
        if with_clip:
            inputs |= {"clip": [key, 1], "strength_clip": strength}
            _rewire(graph, (key, 1), [new, 1])
        graph[new] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": "LoRA"}}


def _bypass_loras(graph: Graph) -> None:
    """Takes the workflow's own LoRA nodes out where no LoRA is used, joining what stood on both sides."""
    for key in [key for key, _, names in _places(graph) if "lora" in names]:
        inputs = graph[key]["inputs"]
        for slot, name in enumerate(("model", "clip")):
            if name in inputs:
                _rewire(graph, (key, slot), inputs[name], but=key)
        del graph[key]


def describe(workflow: Workflow) -> str:
    """One line for people: what the workflow is told and where its pictures come out."""
    bound = ", ".join(name for name in NAMES if name in workflow.bindings) or "nothing"
    return f"{workflow.name}: told {bound}; pictures come from {node_title(workflow.graph, workflow.output)}"
