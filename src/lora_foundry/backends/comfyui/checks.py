"""Checks a workflow before it is queued: against the nodes and models that a server has, and for inputs
that nothing fills, such as a fixed seed that would give the same picture forty times."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from lora_foundry.backends.comfyui.faults import nearest, node_title
from lora_foundry.backends.comfyui.protocol import InputSpec, NodeClass, is_link
from lora_foundry.backends.comfyui.workflows import Workflow

NEEDED = {
    "prompt": "every picture would show the same",
    "seed": "every picture would be the same",
}
ADVISED = {
    "negative": "the recipe's negative prompt is not used",
    "width": "the recipe's width is not used; it must equal the workflow's",
    "height": "the recipe's height is not used; it must equal the workflow's",
    "steps": "the workflow's own steps are used",
    "cfg": "the workflow's own cfg is used",
    "checkpoint": "the workflow's own model is used",
}
_ANY = "*"


@dataclass(frozen=True)
class Remark:
    """A fault, which stops the workflow from working, or a note."""

    level: Literal["fault", "note"]
    text: str


def check_bindings(workflow: Workflow) -> list[Remark]:
    """What nothing fills."""
    faults = [
        Remark("fault", f"{{{{{name}}}}} is bound nowhere: {why}.")
        for name, why in NEEDED.items()
        if name not in workflow.bindings
    ]
    return faults + [
        Remark("note", f"{{{{{name}}}}} is bound nowhere: {why}.")
        for name, why in ADVISED.items()
        if name not in workflow.bindings
    ]


def check_nodes(workflow: Workflow, classes: dict[str, NodeClass]) -> list[Remark]:
    """What the server would refuse: unknown nodes, missing inputs, models it lacks, links that fit
    nothing."""
    remarks = []
    for key, node in workflow.graph.items():
        node_class = classes.get(node["class_type"])
        if node_class is None:
            near = difflib.get_close_matches(
                node["class_type"], classes, n=1, cutoff=0.85
            )  # a slip, no other node
            hint = f"did you mean {near[0]}?" if near else "install the custom node that brings it."
            remarks.append(
                f"{node_title(workflow.graph, key)}: the server has no {node['class_type']}; {hint}"
            )
            continue
        for name, spec in node_class.inputs.items():
            if spec.required and name not in node["inputs"]:
                remarks.append(f"{node_title(workflow.graph, key)}: the input {name!r} is missing.")
        remarks += [
            text
            for name, value in node["inputs"].items()
            if (text := _input(workflow, key, name, value, classes))
        ]
    return [Remark("fault", text) for text in remarks]


def _input(workflow: Workflow, key: str, name: str, value: object, classes: dict[str, NodeClass]) -> str:
    """What is wrong with one input; "" if nothing is."""
    spec = classes[workflow.graph[key]["class_type"]].inputs.get(name)
    where = node_title(workflow.graph, key)
    if is_link(value) and isinstance(value, list):
        source = workflow.graph.get(str(value[0]))
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
