"""Turns what ComfyUI refuses or breaks off into sentences that name the node by its title and say what to
do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lora_foundry.backends.comfyui.graphs import Graph
from lora_foundry.backends.comfyui.protocol import Failure, NodeFault, PromptRefused
from lora_foundry.errors import BackendError, BaseModelError, FoundryError, InputError

SHOWN = 8
_NOUNS = {
    "ckpt_name": "checkpoint",
    "lora_name": "LoRA",
    "vae_name": "VAE",
    "unet_name": "diffusion model",
    "clip_name": "text encoder",
    "clip_name1": "text encoder",
    "clip_name2": "text encoder",
    "sampler_name": "sampler",
}
_BASE_INPUTS = ("ckpt_name", "unet_name")
_NODE = re.compile(r"Node ID '#(.+)'")
_UNKNOWN_CLASS = ("invalid_prompt", "missing_node_type")  # the second is the newer servers'


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a sentence on an unknown word: the nearest known one, or the first few of them."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    if not known:
        return "the server has none."
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"the server has {', '.join(known[:SHOWN])}{rest}."


def node_title(graph: Mapping[str, Mapping[str, Any]], node: str) -> str:
    """A node as its author knows it: its title where it has one, else its class, and its number."""
    entry = graph.get(node, {})
    title = (entry.get("_meta") or {}).get("title") or entry.get("class_type") or "unknown"
    return f"{title!r} (node {node})"


def fault_sentence(fault: NodeFault, graph: Graph) -> str:
    """One fault as a sentence."""
    where = node_title(graph, fault.node)
    if fault.kind == "value_not_in_list":
        noun = _NOUNS.get(fault.input_name, fault.input_name)
        verb = (
            "is not installed"
            if fault.input_name.endswith(("_name", "_name1", "_name2"))
            else "is not a choice"
        )
        if fault.input_name == "sampler_name":
            verb = "is not a choice"
        return f"{noun} {fault.received} {verb}, says {where}; {nearest(fault.received, fault.allowed)}"
    if fault.kind == "required_input_missing":
        return f"the input {fault.input_name!r} of {where} is missing; connect or fill it."
    return f"{where}: {fault.message} ({fault.details})."


def refusal(answer: PromptRefused, graph: Graph) -> FoundryError:
    """The error for a prompt that was not queued: permanent, since the same prompt is refused again."""
    if answer.faults:
        return dropped(answer.faults, graph, "ComfyUI refuses the workflow")
    if answer.kind == "prompt_no_outputs":
        return InputError("The workflow saves no picture; add a Save Image node to it.")
    named = _NODE.search(answer.details)
    if named and answer.kind in _UNKNOWN_CLASS and named.group(1) in graph:
        node = named.group(1)
        return InputError(
            f"{node_title(graph, node)} is of the kind {graph[node].get('class_type')}, which this ComfyUI does not have; "
            "install the custom node that brings it, or update ComfyUI."
        )
    return InputError(f"ComfyUI refuses the workflow: {answer.message} {answer.details}".strip())


def dropped(faults: Sequence[NodeFault], graph: Graph, what: str) -> FoundryError:
    """The error for faults of nodes, whether the whole prompt was refused or one output was left out."""
    text = f"{what}: " + " ".join(fault_sentence(fault, graph) for fault in faults[:3])
    missing = any(fault.kind == "value_not_in_list" and fault.input_name in _BASE_INPUTS for fault in faults)
    return BaseModelError(text) if missing else InputError(text)


def execution_error(failure: Failure | None, graph: Graph) -> BackendError:
    """The error for a run that broke off."""
    if failure is None:
        return BackendError("ComfyUI broke off a run without saying why; look at its log.")
    advice = "look at ComfyUI's log."
    if "OutOfMemory" in failure.exception or "out of memory" in failure.message.lower():
        advice = "its GPU memory is full: make smaller pictures or smaller batches, or close other programs."
    return BackendError(f"ComfyUI stopped at {node_title(graph, failure.node)}: {failure.message}; {advice}")
