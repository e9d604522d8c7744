"""Workflows: graphs in ComfyUI's API format whose inputs are filled for each picture.

An input is bound by a placeholder, `{{prompt}}`, or by the title of its node, "prompt". The shipped ones
use nothing but placeholders and core nodes; a user's own may hold any custom node.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lora_foundry.backends.comfyui import editor
from lora_foundry.backends.comfyui.bindings import NAMES, Values, filled, left_out, places, title_of
from lora_foundry.backends.comfyui.faults import node_title
from lora_foundry.backends.comfyui.graphs import Graph, Output, clips_of, leading_to, models_of, source_of
from lora_foundry.backends.comfyui.protocol import NodeClass, is_link
from lora_foundry.errors import InputError, did_you_mean

NodeList = Callable[[], dict[str, NodeClass]]
_OUTPUT_TITLES = ("output", "result")
_CHECKPOINT_INPUTS = ("ckpt_name", "unet_name")
# Nodes that do without a second or third reference: they drop the input, or hand on what they were given.
_DROPS, _HANDS_ON = ("TextEncode",), {"ReferenceLatent": "conditioning"}


@dataclass(frozen=True)
class Workflow:
    """A graph, the name of what it came from, and where its pictures come out. bindings: what fills inputs of nodes that
    lead to the picture; idle: what fills only others."""

    name: str
    graph: Graph
    output: str
    bindings: frozenset[str]
    idle: frozenset[str] = frozenset()

    def bind(self, values: Values, checkpoint: str = "") -> Graph:
        """The graph with every binding filled. checkpoint: the name of the model that a LoRA is for, where the workflow
        has several. Raises InputError for a binding that has no value, and for a LoRA that has no place."""
        graph = copy.deepcopy(self.graph)
        for key in left_out(graph, values):
            _leave_out(graph, key)
        if "lora" in self.bindings:
            if values.lora is None:
                _bypass_loras(graph)
        elif values.lora is not None:
            for model in lora_places(self, checkpoint):
                self._insert_lora(graph, values.lora, values.strength, model)
        for place in list(places(graph)):
            inputs = graph[place.node]["inputs"]
            inputs[place.input] = filled(inputs[place.input], place.names, values, self.name)
        return graph

    def _insert_lora(self, graph: Graph, lora: str, strength: float, model: Output) -> None:
        """Puts a LoRA behind a model, and behind the text encoder where there is but one, or one of the same loader."""
        clips = clips_of(graph, self.output)
        own = [clip for clip in clips if clip.node == model.node]
        clip = (own or clips)[0] if own or len(clips) == 1 else None
        new = f"lora-{model.node}"
        inputs: dict[str, Any] = {"model": [*model], "lora_name": lora, "strength_model": strength}
        _rewire(graph, model, [new, 0])
        if clip is not None:
            inputs |= {"clip": [*clip], "strength_clip": strength}
            _rewire(graph, clip, [new, 1])
        class_type = "LoraLoaderModelOnly" if clip is None else "LoraLoader"
        graph[new] = {"class_type": class_type, "inputs": inputs, "_meta": {"title": "LoRA"}}


def shipped() -> list[str]:
    """The names of the workflows that come with the package."""
    folder = resources.files("lora_foundry.backends.comfyui").joinpath("templates")
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


def load_workflow(name: str, node_list: NodeList | None = None) -> Workflow:
    """A shipped workflow by its name, or a file by its path. node_list: asks a server for its nodes, which a file in the
    editor's format is converted with. Raises InputError."""
    path = Path(name).expanduser()
    if path.suffix == ".json":
        try:
            return parse_workflow(path.read_bytes(), str(path), node_list)
        except OSError as error:
            raise InputError(f"The workflow {path} cannot be read: {error}.") from error
    if name not in shipped():
        raise InputError(
            f"There is no workflow {name!r}; {did_you_mean(name, shipped())} A file ends in .json."
        )
    file = resources.files("lora_foundry.backends.comfyui").joinpath("templates", f"{name}.json")
    return parse_workflow(file.read_bytes(), name)


def parse_workflow(text: str | bytes, name: str, node_list: NodeList | None = None) -> Workflow:
    """A workflow from JSON, in any Unicode encoding and with or without a byte order mark. Raises InputError that says
    what it is instead."""
    try:
        data = json.loads(text.removeprefix("\ufeff") if isinstance(text, str) else text)
    except ValueError as error:
        raise InputError(f"The workflow {name} is not JSON: {error}.") from error
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict) and "class_type" not in data["prompt"]:
        data = data["prompt"]  # as it was posted to a server
    if editor.is_editor_format(data):
        if node_list is None:
            raise InputError(
                f"The workflow {name} is in the format of ComfyUI's editor, which can only be converted with the node "
                "list of a running server; start it, or open the workflow there, choose Workflow > Export (API), and "
                "use that file."
            )
        data = editor.converted(data, node_list(), name)
    if not isinstance(data, dict) or not data or not all(_is_node(node) for node in data.values()):
        raise InputError(
            f"{name} is not a workflow in ComfyUI's API format; export it by Workflow > Export (API)."
        )
    graph: Graph = {str(key): node for key, node in data.items()}
    found = list(places(graph))
    names = {binding for place in found for binding in place.names}
    if unknown := sorted(names - set(NAMES)):
        raise InputError(f"The workflow {name} has {{{{{unknown[0]}}}}}; {did_you_mean(unknown[0], NAMES)}")
    output = _output(graph, name)
    used = leading_to(graph, output)
    bound = {binding for place in found if place.node in used for binding in place.names}
    return Workflow(name, graph, output, frozenset(bound), frozenset(names - bound))


def _is_node(node: object) -> bool:
    return (
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
    )


def _output(graph: Graph, name: str) -> str:
    """The node whose pictures count: the only one that saves, or the one titled "output"."""
    saving = [key for key, node in graph.items() if "filename_prefix" in node["inputs"]]
    titled = [key for key in saving if title_of(graph[key]) in _OUTPUT_TITLES]
    if len(titled) == 1 or len(saving) == 1:
        return (titled or saving)[0]
    if not saving:
        raise InputError(f"The workflow {name} saves no picture; add a Save Image node to it.")
    which = " and ".join(node_title(graph, key) for key in titled or saving)
    raise InputError(
        f"The workflow {name} has {len(saving)} nodes that save, {which}; title the one that counts 'output'."
    )


def lora_places(workflow: Workflow, checkpoint: str = "") -> list[Output]:
    """The models that a LoRA is put behind, where the workflow has no {{lora}}: the only one whose samplers lead to the
    picture, else each whose name is bound, else each of that name. Raises InputError where it is not clear."""
    graph, name = workflow.graph, workflow.name
    models = models_of(graph, workflow.output)
    advice = "give it a LoRA node with {{lora}} behind the model that the LoRA is for"
    if not models:
        raise InputError(f"The workflow {name} has no place for a LoRA; {advice}.")
    bound = {place.node for place in places(graph) if "checkpoint" in place.names}
    files = {model: _file_of(graph, model) for model in models}
    wanted = checkpoint.replace("\\", "/").rsplit("/", 1)[-1]
    if len(models) == 1 or (len(set(files.values())) == 1 and all(files.values())):
        return models
    for chosen in (
        [model for model in models if model.node in bound],
        [model for model in models if wanted and files[model] == wanted],
    ):
        if chosen:
            return chosen
    listed = " and ".join(node_title(graph, model.node) for model in models)
    raise InputError(
        f"The workflow {name} draws with {len(models)} models, {listed}, and does not say which one a LoRA is for; "
        f"write {{{{checkpoint}}}} as the name of that one, or {advice}."
    )


def _file_of(graph: Graph, model: Output) -> str:
    """The bare name of the file that a loader loads; "" for a node that is no loader we know."""
    inputs = graph[model.node]["inputs"]
    name = next((inputs[each] for each in _CHECKPOINT_INPUTS if isinstance(inputs.get(each), str)), "")
    return str(name).replace("\\", "/").rsplit("/", 1)[-1]


def _rewire(graph: Graph, old: Output, new: list[Any], but: str = "") -> None:
    """Lets every input that reads `old` read `new`, those of the node `but` excepted."""
    for key, node in graph.items():
        for name, value in node["inputs"].items():
            if key != but and is_link(value) and (str(value[0]), value[1]) == old:
                node["inputs"][name] = new


def _bypass_loras(graph: Graph) -> None:
    """Takes the workflow's own LoRA nodes out where no LoRA is used, joining what stood on both sides."""
    for key in [place.node for place in places(graph) if "lora" in place.names]:
        inputs = graph[key]["inputs"]
        for slot, name in enumerate(("model", "clip")):
            if name in inputs:
                _rewire(graph, Output(key, slot), inputs[name], but=key)
        del graph[key]


def _leave_out(graph: Graph, key: str) -> None:
    """Takes a node out whose value is not given, and what stands between it and the nodes that can do without it."""
    if key not in graph:
        return
    del graph[key]
    for reader, node in list(graph.items()):
        for name, value in list(node["inputs"].items()):
            if not is_link(value) or str(value[0]) != key:
                continue
            handed_on = _HANDS_ON.get(node["class_type"], "")
            if node["class_type"].startswith(_DROPS):
                del node["inputs"][name]
            elif (given := source_of(graph, node["inputs"].get(handed_on))) is not None:
                del graph[reader]
                _rewire(graph, Output(reader, 0), [*given])
            else:
                _leave_out(graph, reader)


def describe(workflow: Workflow) -> str:
    """One line for people: what the workflow is told and where its pictures come out."""
    bound = ", ".join(name for name in NAMES if name in workflow.bindings) or "nothing"
    return f"{workflow.name}: told {bound}; pictures come from {node_title(workflow.graph, workflow.output)}"
