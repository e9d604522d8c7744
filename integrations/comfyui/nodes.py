"""The nodes: pictures sent to lora-foundry, a run started from a workflow, and a character's newest LoRA loaded."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path
from typing import Any

from .client import Foundry, FoundryError

CATEGORY = "lora-foundry"
PICTURES = "LORA_FOUNDRY_PICTURES"
LOOK = 1.0  # seconds between looks at a run
_ENDS = ("completed", "failed", "cancelled")
_MOST_REFERENCES = 3


class SendPictures:
    """Uploads the pictures of the workflow, to be a run's reference images or its own set."""

    CATEGORY, FUNCTION = CATEGORY, "send"
    RETURN_TYPES, RETURN_NAMES = (PICTURES,), ("pictures",)
    DESCRIPTION = "Sends pictures to lora-foundry."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}, "optional": {"more": (PICTURES,)}}

    def send(self, images: Any, more: tuple[str, ...] = ()) -> tuple[tuple[str, ...]]:
        foundry = Foundry()
        names = [foundry.send_picture(_png(image)) for image in images]
        return (tuple(dict.fromkeys((*more, *names))),)


def _png(image: Any) -> bytes:
    """A ComfyUI picture (height, width, channels; 0 to 1) as a PNG file."""
    import numpy as np
    from PIL import Image

    pixels = np.clip(np.asarray(image.cpu() if hasattr(image, "cpu") else image) * 255.0 + 0.5, 0, 255)
    data = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)[..., :3]).save(data, "PNG")
    return data.getvalue()


class TrainCharacter:
    """Starts a run and shows in the editor how it comes along. A run that draws with this ComfyUI, or that asks it for its
    memory, needs its queue: it is not waited for inside of a workflow, which would wait for itself."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "train", True
    RETURN_TYPES, RETURN_NAMES = ("STRING", "STRING"), ("run", "status")
    DESCRIPTION = "Trains a character's LoRA with lora-foundry."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        words = {"multiline": True, "default": ""}
        return {
            "required": {
                "name": ("STRING", {"default": "Elara"}),
                "description": ("STRING", {**words, "tooltip": "What the character looks like."}),
                "recipe": (
                    "STRING",
                    {"default": "", "tooltip": "A recipe of lora-foundry; its default if empty."},
                ),
                "settings": (
                    "STRING",
                    {**words, "tooltip": "Changes to the recipe, one a line: train.rank=8"},
                ),
                "use": (("references", "own set"), {"tooltip": "What the pictures are for."}),
                "wait": ("BOOLEAN", {"default": False, "tooltip": "Hold the queue until the run is over."}),
            },
            "optional": {"pictures": (PICTURES,)},
            "hidden": {"node": "UNIQUE_ID"},
        }

    def train(  # noqa: PLR0917 - ComfyUI gives the inputs by name
        self,
        name: str,
        description: str,
        recipe: str,
        settings: str,
        use: str,
        wait: bool,
        pictures: tuple[str, ...] = (),
        node: str = "",
    ) -> dict[str, Any]:
        foundry = Foundry()
        wanted = request(name, description, recipe, settings, use, pictures)
        if wait:
            refuse_to_wait_for_oneself(foundry, wanted)
        run = foundry.start(wanted)
        if wait:
            run = watch(foundry, str(run["id"]), node, _interrupted)
            if run["status"] != "completed":
                raise FoundryError(
                    f"The run {run['id']} is {run['status']}: {run.get('error') or 'see its page'}"
                )
        else:
            threading.Thread(target=follow, args=(foundry, str(run["id"]), node), daemon=True).start()
        told = describe(foundry, run)
        return {"ui": {"text": [told]}, "result": (str(run["id"]), str(run["status"]))}


def request(
    name: str, description: str, recipe: str, settings: str, use: str, pictures: tuple[str, ...]
) -> dict[str, Any]:
    """What the server is asked for."""
    changes = [
        line.strip() for line in settings.splitlines() if line.strip() and not line.lstrip().startswith("#")
    ]
    wanted: dict[str, Any] = {"name": name.strip(), "description": description.strip(), "settings": changes}
    if recipe.strip():
        wanted["recipe"] = recipe.strip()
    if pictures and use == "own set":
        wanted["pictures"] = list(pictures)
    elif pictures:
        if len(pictures) > _MOST_REFERENCES:
            raise FoundryError(
                f"At most {_MOST_REFERENCES} pictures can be references; use them as an own set."
            )
        wanted["reference"] = pictures[0]
        if pictures[1:]:
            wanted["more_references"] = list(pictures[1:])
    return wanted


def refuse_to_wait_for_oneself(foundry: Foundry, wanted: dict[str, Any]) -> None:
    """Raises FoundryError where a run needs this ComfyUI's queue, which the waiting node itself would hold."""
    backend = next(
        (
            each.partition("=")[2].strip(" \"'")
            for each in wanted["settings"]
            if each.startswith("generate.backend")
        ),
        None,
    )
    if backend is None and "recipe" in wanted:
        backend = foundry.recipe_value(wanted["recipe"], "generate.backend")
    if backend == "comfyui" or foundry.comfyui_is_named():
        raise FoundryError(
            "This run asks ComfyUI for its queue, which this node would hold while it waits; switch `wait` off, and the "
            "node shows the progress all the same."
        )


def watch(foundry: Foundry, run: str, node: str, stop: Any = lambda: None) -> dict[str, Any]:
    """Follows a run to its end and tells the editor; the run as it ended. stop: raises to give up, which cancels it."""
    told, failures = "", 0
    while True:
        try:
            found = foundry.run(run)
            failures = 0
        except FoundryError:
            failures += 1
            if failures > 30:
                raise
            time.sleep(LOOK)
            continue
        text = describe(foundry, found)
        if text != told:
            _tell(node, text, float(found.get("progress") or 0.0))
            told = text
        if found["status"] in _ENDS:
            return found
        try:
            stop()
        except BaseException:
            foundry.cancel(run)
            raise
        time.sleep(LOOK)


def follow(foundry: Foundry, run: str, node: str) -> None:
    """Follows a run for a node that did not wait; a server that stays away is told at the node, since nobody else hears."""
    try:
        watch(foundry, run, node)
    except FoundryError as error:
        _tell(node, str(error), 0.0)


def describe(foundry: Foundry, run: dict[str, Any]) -> str:
    """A run in a few lines."""
    share = round(100 * float(run.get("progress") or 0.0))
    lines = [f"{run['character']['name']}: {run['status']}, {share}%"]
    if run["status"] not in _ENDS and run.get("stage"):
        stage = next((each for each in run["stages"] if each["stage"] == run["stage"]), {})
        count = f" {stage['done']}/{stage['total']} {stage['unit']}s" if stage.get("total") else ""
        lines.append(f"{run['stage']}{count}")
    if run.get("error"):
        lines.append(str(run["error"]))
    lines.append(f"{foundry.address}/pipelines/{run['id']}")
    return "\n".join(lines)


def _tell(node: str, text: str, share: float) -> None:
    """Shows a run's state at its node in every open editor."""
    try:
        from server import PromptServer
    except ImportError:  # outside ComfyUI
        return
    if PromptServer.instance is not None:
        PromptServer.instance.send_sync("lora_foundry.progress", {"node": node, "text": text, "share": share})


def _interrupted() -> None:
    from comfy.model_management import throw_exception_if_processing_interrupted

    throw_exception_if_processing_interrupted()


class LoadCharacter:
    """Loads the newest LoRA of a character with the strength that was measured to be best, and gives its trigger."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES = ("MODEL", "CLIP", "STRING", "FLOAT")
    RETURN_NAMES = ("model", "clip", "trigger", "strength")
    DESCRIPTION = "Loads a character's newest LoRA from lora-foundry."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        strength = {
            "default": 0.0,
            "min": -2.0,
            "max": 2.0,
            "step": 0.05,
            "tooltip": "0 takes the measured one.",
        }
        return {
            "required": {
                "model": ("MODEL",),
                "character": ("STRING", {"default": "", "tooltip": "The newest of all if empty."}),
                "strength": ("FLOAT", strength),
            },
            "optional": {"clip": ("CLIP",)},
        }

    @classmethod
    def IS_CHANGED(cls, character: str = "", **others: Any) -> str:
        """Another LoRA of that character makes the node run again."""
        try:
            found = Foundry().newest_lora(character)
        except FoundryError:
            return "unknown"
        return json.dumps([found["name"], found["sha256"]]) if found else "none"

    def load(
        self, model: Any, character: str, strength: float, clip: Any = None
    ) -> tuple[Any, Any, str, float]:
        import comfy.sd
        import comfy.utils

        foundry = Foundry()
        found = foundry.newest_lora(character)
        if found is None:
            raise FoundryError(
                f"{foundry.address} has no LoRA of {character.strip() or 'any character'} yet."
            )
        used = strength or float(found.get("strength") or found.get("recommended_strength") or 1.0)
        weights = comfy.utils.load_torch_file(str(lora_file(foundry, found)), safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(
            model, clip, weights, used, used if clip is not None else 0.0
        )
        return model, clip, str(found["trigger"]), used


def lora_file(foundry: Foundry, lora: dict[str, Any]) -> Path:
    """The LoRA's file in ComfyUI's own folders, if it is the very one, else fetched into them under a name of its content,
    since the same name may stand for other weights."""
    import hashlib

    import folder_paths

    wanted = f"{lora['name']}.safetensors"
    for name in folder_paths.get_filename_list("loras"):
        if name.replace("\\", "/").rsplit("/", 1)[-1] == wanted:
            path = Path(folder_paths.get_full_path_or_raise("loras", name))
            if hashlib.sha256(path.read_bytes()).hexdigest() == lora["sha256"]:
                return path
    folder = Path(folder_paths.get_folder_paths("loras")[0]) / "lora-foundry"
    target = folder / f"{Path(wanted).stem}_{lora['sha256'][:12]}.safetensors"
    return target if target.is_file() else foundry.download_lora(lora, target)


NODE_CLASS_MAPPINGS = {
    "LoraFoundrySendPictures": SendPictures,
    "LoraFoundryTrainCharacter": TrainCharacter,
    "LoraFoundryLoadCharacter": LoadCharacter,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoraFoundrySendPictures": "Send pictures (lora-foundry)",
    "LoraFoundryTrainCharacter": "Train a character (lora-foundry)",
    "LoraFoundryLoadCharacter": "Load a character's LoRA (lora-foundry)",
}
