"""The card of a LoRA in words: the README of a hub's repository with the fields that the hub reads, and the description for
an upload page."""

from __future__ import annotations

from huggingface_hub import ModelCardData

from lora_foundry.hubs.release import Release

PICTURES = "pictures"  # the folder beside the card
# Licences that the hub knows by a name of its own; others are `other` with their makers' name.
_KNOWN = {
    "apache-2.0", "mit", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "cc0-1.0",
    "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "agpl-3.0",
}  # fmt: skip


def readme(release: Release) -> str:
    """README.md: the hub's fields, then what a person wants to know."""
    words = [each.made_with.partition("\n")[0] or release.trigger for each in release.pictures]
    licence, licence_name = _licence(release.licence)
    fields = ModelCardData(
        license=licence,
        license_name=licence_name,
        base_model=release.base_repository or None,
        pipeline_tag="text-to-image",
        library_name="diffusers",
        tags=["lora", "text-to-image", "character", "lora-foundry"],
        instance_prompt=release.trigger,
        widget=[
            {"text": text, "output": {"url": f"{PICTURES}/{each.name}"}}
            for text, each in zip(words, release.pictures, strict=True)
        ],
    )
    return f"---\n{fields.to_yaml()}\n---\n\n{description(release, with_pictures=True)}"


def _licence(said: str) -> tuple[str | None, str | None]:
    """The hub's fields `license` and `license_name` for a licence as its makers call it."""
    name = said.strip().lower().replace(" ", "-")
    if not name or name in _KNOWN:
        return name or None, None
    return "other", name


def description(release: Release, *, with_pictures: bool = False) -> str:
    """What it draws, how to call it, how well it does, and how it was made, as Markdown."""
    parts = [f"# {release.character}", release.description]
    if with_pictures:
        parts.append("\n".join(f"![{each.name}]({PICTURES}/{each.name})" for each in release.pictures))
    base = (
        f"[{release.base}](https://huggingface.co/{release.base_repository})"
        if release.base_repository
        else release.base
    )
    parts += [
        f"**Trigger word:** `{release.trigger}` · **strength:** {release.strength:g} · **base:** {base}"
        + (f" · **the base's licence:** {release.licence}" if release.licence else ""),
        _scores(release),
        f"## Recipe\n\n```toml\n{release.recipe.strip()}\n```" if release.recipe else "",
        "Made with lora-foundry.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(release: Release) -> str:
    if release.scores is None:
        return ""
    values = release.scores.model_dump()
    rows = [
        f"| {shown} | {_number(values[f'{name}_before'])} | {_number(values[f'{name}_after'])} |"
        for name, shown in (
            ("identity", release.scores.measure),
            ("adherence", "adherence"),
            ("likeness", "likeness"),
        )
        if values[f"{name}_after"] is not None
    ]
    if not rows:
        return ""
    head = (
        "## Scores\n\nOn prompts that the training never saw.\n\n| | without | with |\n| --- | --- | --- |\n"
    )
    return head + "\n".join(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
