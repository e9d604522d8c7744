"""Checks a workflow before it is queued, so that one that cannot work is refused before its first picture: by itself
(inputs that nothing fills, a LoRA without a place, pictures of another size), and against the nodes and models that a
server has."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lora_foundry.backends.comfyui.bindings import Values, places
from lora_foundry.backends.comfyui.faults import nearest, node_title
from lora_foundry.backends.comfyui.graphs import Graph, Picture, fits, leading_to, picture_of, source_of
from lora_foundry.backends.comfyui.protocol import InputSpec, NodeClass, is_link
from lora_foundry.backends.comfyui.workflows import Workflow, lora_places
from lora_foundry.errors import FoundryError, InputError

ADVISED = {
    "negative": "the recipe's negative prompt is not used",
    "width": "the recipe's width is not used; it must equal the workflow's",
    "height": "the recipe's height is not used; it must equal the workflow's",
    "steps": "the workflow's own steps are used",
    "cfg": "the workflow's own cfg is used",
    "checkpoint": "the workflow's own model is used",
}
_TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt")
_SEEDS = ("seed", "noise_seed")
_SHOWN = 3
_ANY = "*"


@dataclass(frozen=True)
class Remark:
    """A fault, which stops the workflow from working, or a note."""

    level: Literal["fault", "note"]
    text: str


@dataclass(frozen=True)
class Asked:
    """What a run asks of a workflow: pictures of a size in pixels, a LoRA drawn with, a reference followed. checkpoint:
    the name of the model that the LoRA is for."""

    width: int
    height: int
    checkpoint: str = ""
    lora: bool = True
    reference: bool = False


def check_alone(workflow: Workflow, asked: Asked | None = None) -> list[Remark]:
    """Everything that can be said without a server. asked: what a run wants of it; None where there is no run yet."""
    remarks = check_bindings(workflow)
    if asked is None or asked.lora:
        remarks += _lora_remarks(workflow, asked.checkpoint if asked else "")
    if asked is not None and asked.reference and "reference" not in workflow.bindings:
        remarks.append(
            Remark(
                "fault",
                "it uses no reference image; set generate.reference_workflow to img2img, or to one with {{reference}}.",
            )
        )
    return remarks + _picture_remarks(workflow, asked)


def refuse_faults(workflow: Workflow, remarks: Sequence[Remark]) -> None:
    """Raises InputError where any remark is a fault, with the first of them."""
    faults = list(dict.fromkeys(remark.text for remark in remarks if remark.level == "fault"))
    if faults:
        more = f" ({len(faults) - _SHOWN} more)" if len(faults) > _SHOWN else ""
        raise InputError(f"The workflow {workflow.name} cannot work: {' '.join(faults[:_SHOWN])}{more}")


def check_bindings(workflow: Workflow) -> list[Remark]:
    """What nothing fills."""
    faults = [
        *_unbound(workflow, "prompt", "every picture would show the same", _TEXTS),
        *_unbound(workflow, "seed", "every picture would be the same", _SEEDS),
    ]
    if not faults and not any(_makes_noise(workflow.graph, key) for key in _bound_nodes(workflow, "seed")):
        faults.append(
            "{{seed}} is bound only where no noise is added (add_noise is disabled), so every picture would be the same; "
            "bind it in the sampler that adds the noise."
        )
    return [Remark("fault", text) for text in faults] + [
        Remark("note", f"{{{{{name}}}}} is bound nowhere: {why}.")
        for name, why in ADVISED.items()
        if name not in workflow.bindings
    ]


def _unbound(workflow: Workflow, name: str, why: str, inputs: Sequence[str]) -> Iterator[str]:
    """The fault of a binding that a workflow must have, with the nodes that it most likely belongs to."""
    if name in workflow.bindings:
        return
    where = (
        "bound only in nodes that do not lead to the picture" if name in workflow.idle else "bound nowhere"
    )
    graph, used = workflow.graph, leading_to(workflow.graph, workflow.output)
    negative = {key for node in graph.values() if (found := source_of(graph, node["inputs"].get("negative")))
                for key in leading_to(graph, found.node)}  # fmt: skip
    positive = {key for node in graph.values() if (found := source_of(graph, node["inputs"].get("positive")))
                for key in leading_to(graph, found.node)}  # fmt: skip
    likely = [
        node_title(graph, key)
        for key, node in graph.items()
        if key in used
        and (name != "prompt" or key in positive or key not in negative)
        and any(each in node["inputs"] and not is_link(node["inputs"][each]) for each in inputs)
    ]
    which = f" of {' or '.join(likely[:2])}" if likely else ""
    yield (
        f"{{{{{name}}}}} is {where}: {why}; write {{{{{name}}}}} into the input{which}, or give that node the title "
        f"'{name}'."
    )


def _bound_nodes(workflow: Workflow, name: str) -> set[str]:
    used = leading_to(workflow.graph, workflow.output)
    return {place.node for place in places(workflow.graph) if name in place.names and place.node in used}


def _makes_noise(graph: Graph, key: str) -> bool:
    return graph[key]["inputs"].get("add_noise") not in ("disable", False)


def _lora_remarks(workflow: Workflow, checkpoint: str) -> list[Remark]:
    """Whether a LoRA has its place, which the evaluation needs after the training."""
    if "lora" in workflow.bindings:
        return []
    if "lora" in workflow.idle:
        text = "{{lora}} is bound only in a node that does not lead to the picture; join it to the sampler's model."
        return [Remark("fault", text)]
    try:
        lora_places(workflow, checkpoint)
    except InputError as error:
        return [Remark("fault", str(error).removeprefix(f"The workflow {workflow.name} "))]
    return []


def _picture_remarks(workflow: Workflow, asked: Asked | None) -> list[Remark]:
    """What can be told of the picture's size and number from the graph."""
    values = Values(prompt="", seed=0, checkpoint="x", text_encoder="x", vae="x", reference="x")
    if asked is not None:
        values = replace(values, width=asked.width, height=asked.height)
    try:
        graph = workflow.bind(values)
        picture = picture_of(graph, workflow.output)
    except (FoundryError, KeyError):
        return []
    if picture is None:
        return []
    remarks = [] if asked is None else _size_remarks(workflow, picture, asked)
    if picture.number > 1:
        text = f"it makes {picture.number} pictures of one prompt; set its batch_size to 1 or {{{{batch}}}}."
        remarks.append(Remark("fault", text))
    return remarks


def _size_remarks(workflow: Workflow, picture: Picture, asked: Asked) -> list[Remark]:
    made, wanted = f"{picture.width}x{picture.height}", f"{asked.width}x{asked.height}"
    if made == wanted:
        return []
    if fits(picture[:2], (asked.width, asked.height)):
        return [
            Remark("note", f"it makes pictures of {made}, which are scaled down to the recipe's {wanted}.")
        ]
    bound = {"width", "height"} <= workflow.bindings
    how = "" if bound else " bind {{width}} and {{height}} (a node titled 'size' has both), or"
    text = (
        f"it makes pictures of {made} where the recipe asks for {wanted};{how} set generate.width={picture.width} and "
        f"generate.height={picture.height}."
    )
    return [Remark("fault", text)]


def check_nodes(graph: Graph, classes: dict[str, NodeClass]) -> list[Remark]:
    """What the server would refuse: unknown nodes, missing inputs, models it lacks, links that fit
    nothing."""
    remarks = []
    for key, node in graph.items():
        node_class = classes.get(node["class_type"])
        if node_class is None:
            near = difflib.get_close_matches(
                node["class_type"], classes, n=1, cutoff=0.85
            )  # a slip, no other node
            hint = f"did you mean {near[0]}?" if near else "install the custom node that brings it."
            remarks.append(f"{node_title(graph, key)}: the server has no {node['class_type']}; {hint}")
            continue
        for name, spec in node_class.inputs.items():
            if spec.required and name not in node["inputs"]:
                remarks.append(f"{node_title(graph, key)}: the input {name!r} is missing.")
        remarks += [
            text
            for name, value in node["inputs"].items()
            if (text := _input(graph, key, name, value, classes))
        ]
    return [Remark("fault", text) for text in remarks]


def _input(graph: Graph, key: str, name: str, value: object, classes: dict[str, NodeClass]) -> str:
    """What is wrong with one input; "" if nothing is."""
    spec = classes[graph[key]["class_type"]].inputs.get(name)
    where = node_title(graph, key)
    if is_link(value) and isinstance(value, list):
        source = graph.get(str(value[0]))
        if source is None:
            return f"{where}: {name!r} is linked to node {value[0]}, which does not exist."
        outputs = classes[source["class_type"]].outputs if source["class_type"] in classes else ()
        if outputs and not 0 <= value[1] < len(outputs):
            return f"{where}: {name!r} is linked to output {value[1]} of node {value[0]}, which has {len(outputs)}."
        if outputs and spec and not _fits(outputs[value[1]], spec.kind):
            return f"{where}: {name!r} takes {spec.kind}, but node {value[0]} gives {outputs[value[1]]}."
        return ""
    return "" if spec is None else _value(where, name, value, spec)


def _value(where: str, name: str, value: object, spec: InputSpec) -> str:
    """What is wrong with a value that stands in the workflow itself; "" if nothing is."""
    if isinstance(value, str) and "{{" in value:
        return ""
    if spec.options is not None and str(value) not in spec.options:
        return f"{where}: {name} {value!r} is not there; {nearest(str(value), spec.options)}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if spec.least is not None and value < spec.least:
            return f"{where}: {name} is {value}, less than {spec.least}."
        if spec.most is not None and value > spec.most:
            return f"{where}: {name} is {value}, more than {spec.most}."
    return ""


def _fits(given: str, taken: str) -> bool:
    return _ANY in (given, taken) or bool(set(given.split(",")) & set(taken.split(",")))
