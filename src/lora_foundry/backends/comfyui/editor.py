"""Turns a workflow as ComfyUI's editor saves it into the API format that a server runs. The editor keeps the values of a
node's controls as a bare list, whose names only the server's node list tells; its notes, reroutes, bypassed nodes and
subgraphs exist in the editor alone and are resolved here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_foundry.backends.comfyui.protocol import NodeClass
from lora_foundry.errors import InputError

Node = dict[str, Any]
_MUTED, _BYPASSED = 2, 4
_NOTES = ("Note", "MarkdownNote")
_VIRTUAL = ("Reroute", "PrimitiveNode", "GetNode", "SetNode")
_INPUT_NODE, _OUTPUT_NODE = "-10", "-20"
# What stands behind a seed in the list of values, and behind a picture that can be uploaded.
_CONTROLS = ("fixed", "increment", "decrement", "randomize")
_UPLOADS = ("image", "video", "audio")
_DEEPEST = 20


def is_editor_format(data: object) -> bool:
    return isinstance(data, dict) and isinstance(data.get("nodes"), list)


def converted(data: Mapping[str, Any], classes: Mapping[str, NodeClass], name: str) -> dict[str, Node]:
    """The same workflow in API format; nodes of a subgraph are called `instance:node`, as ComfyUI calls them.

    Raises InputError for what is no workflow, and for nodes whose controls come and go, which only the editor knows.
    """
    try:
        definitions = {
            str(each["id"]): each for each in (data.get("definitions") or {}).get("subgraphs") or ()
        }
        return dict(_Scope(data, classes, definitions, name).converted())
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise InputError(
            f"The workflow {name} cannot be converted from the editor's format ({type(error).__name__}: {error}); "
            "open it in ComfyUI, choose Workflow > Export (API), and use that file."
        ) from error


@dataclass
class _Scope:
    """The nodes and links of the workflow, or of one use of a subgraph: then `outside` is where it is used, as the node
    `instance`."""

    data: Mapping[str, Any]
    classes: Mapping[str, NodeClass]
    definitions: Mapping[str, Mapping[str, Any]]
    name: str
    prefix: str = ""
    outside: _Scope | None = None
    instance: Node = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prefix.count(":") > _DEEPEST:
            raise ValueError("a subgraph that contains itself")
        self.nodes: dict[str, Node] = {str(node["id"]): node for node in self.data["nodes"]}
        self.links: dict[int, tuple[str, int]] = {}
        self.into: dict[tuple[str, int], tuple[str, int]] = {}
        for link in self.data.get("links") or ():
            row = [link[k] for k in _LINK] if isinstance(link, dict) else list(link)
            self.links[int(row[0])] = (str(row[1]), int(row[2]))
            self.into[str(row[3]), int(row[4])] = (str(row[1]), int(row[2]))

    def inner(self, node: Node) -> _Scope:
        definition = self.definitions[str(node["type"])]
        prefix = f"{self.prefix}{node['id']}:"
        return _Scope(definition, self.classes, self.definitions, self.name, prefix, self, node)

    def converted(self) -> Iterator[tuple[str, Node]]:
        for key, node in self.nodes.items():
            kind = str(node["type"])
            if node.get("mode") in (_MUTED, _BYPASSED) or kind in (*_NOTES, *_VIRTUAL):
                continue
            if kind in self.definitions:
                yield from self.inner(node).converted()
            elif kind in self.classes or self._is_joined(node):
                yield self.prefix + key, self._api(node, self.classes.get(kind))

    @staticmethod
    def _is_joined(node: Node) -> bool:
        """Whether a node of an unknown kind takes part; labels and switches of the editor's own are joined to nothing."""
        given = any(each.get("link") is not None for each in node.get("inputs") or ())
        return given or any(each.get("links") for each in node.get("outputs") or ())

    def _api(self, node: Node, node_class: NodeClass | None) -> Node:
        inputs = dict(self._controls(node, node_class))
        for each in node.get("inputs") or ():
            if each.get("link") is not None:
                found = self.resolve(*self.links[int(each["link"])])
                if found is not None:
                    inputs[str(each["name"])] = found
                elif "widget" not in each:
                    inputs.pop(str(each["name"]), None)
        title = node.get("title") or (node_class.title if node_class else "") or node["type"]
        return {"class_type": str(node["type"]), "inputs": inputs, "_meta": {"title": str(title)}}

    def _controls(self, node: Node, node_class: NodeClass | None) -> Iterator[tuple[str, Any]]:
        """The names and values of a node's controls."""
        values = node.get("widgets_values")
        if isinstance(values, dict):
            known = (
                [name for name, spec in node_class.inputs.items() if spec.widget] if node_class else values
            )
            yield from ((str(name), values[name]) for name in known if name in values)
            return
        left = list(values or ())
        if node_class is None:
            names = [str(each["widget"]["name"]) for each in node.get("inputs") or () if each.get("widget")]
        else:
            names = [name for name, spec in node_class.inputs.items() if spec.widget]
            if changing := next(
                (n for n, s in node_class.inputs.items() if s.kind.startswith("COMFY_")), None
            ):
                raise ValueError(f"the controls of {node['type']} change with its {changing}")
        for name in names:
            if not left:
                return
            yield name, left.pop(0)
            spec = node_class.inputs[name] if node_class else None
            control = spec.control if spec else name in ("seed", "noise_seed")
            if left and control and left[0] in _CONTROLS:
                left.pop(0)
            if left and spec is not None and spec.upload and left[0] in _UPLOADS:
                left.pop(0)

    def resolve(self, key: str, slot: int) -> Any:
        """What an output gives: a link in API format, the value of a primitive, or None where nothing comes."""
        if key == _INPUT_NODE:
            return self._from_outside(slot)
        node = self.nodes[key]
        kind, mode = str(node["type"]), node.get("mode")
        if mode == _MUTED:
            return None
        if mode == _BYPASSED:
            return self._through(node, slot)
        if kind == "PrimitiveNode":
            return (node.get("widgets_values") or [None])[0]
        if kind in ("Reroute", "SetNode"):
            return self._input(node, 0)
        if kind == "GetNode":
            return self._named(str(node["widgets_values"][0]))
        if kind in self.definitions:
            inner = self.inner(node)
            source = inner.into.get((_OUTPUT_NODE, slot))
            return None if source is None else inner.resolve(*source)
        return [self.prefix + key, slot]

    def _input(self, node: Node, index: int) -> Any:
        given = (node.get("inputs") or [])[index : index + 1]
        link = given[0].get("link") if given else None
        return None if link is None else self.resolve(*self.links[int(link)])

    def _through(self, node: Node, slot: int) -> Any:
        """What a bypassed node hands on: its input of the output's type, the one at the same place if there is one."""
        inputs, kind = node.get("inputs") or [], node["outputs"][slot].get("type")
        order = sorted(range(len(inputs)), key=lambda index: index != slot)
        fitting = [index for index in order if inputs[index].get("type") == kind]
        return self._input(node, fitting[0]) if fitting else None

    def _named(self, name: str) -> Any:
        setters = (node for node in self.nodes.values() if node["type"] == "SetNode")
        found = next((node for node in setters if (node.get("widgets_values") or [""])[0] == name), None)
        return None if found is None else self._input(found, 0)

    def _from_outside(self, slot: int) -> Any:
        """What the subgraph is given at one of its inputs: over a link, or by a control of the subgraph's own node."""
        if self.outside is None:
            return None
        name = str(self.data["inputs"][slot]["name"])
        given = list(self.instance.get("inputs") or ())
        index = next((index for index, each in enumerate(given) if each.get("name") == name), None)
        if index is None:
            return None
        if given[index].get("link") is not None:
            return self.outside._input(self.instance, index)
        controls = [str(each["name"]) for each in given if each.get("widget")]
        values = self.instance.get("widgets_values") or []
        if name in controls and isinstance(values, list) and controls.index(name) < len(values):
            return values[controls.index(name)]
        return None


_LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
