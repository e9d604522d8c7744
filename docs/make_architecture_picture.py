"""Draws docs/architecture.svg from the code's own imports: a box for every room at the top of src/lora_foundry, as high as
its longest way down to a room that imports nothing, and lines to the rooms that it imports."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parents[1] / "src" / "lora_foundry"
WIDTH, ROW, TOP, BOX_HEIGHT, GAP = 1180, 104, 56, 62, 14
STYLE = """
text { font-family: system-ui, sans-serif; fill: #1c2733; }
.name { font-size: 14px; font-weight: 600; } .size { font-size: 11px; fill: #5a6b7b; }
rect { fill: #f4f7fa; stroke: #8aa0b4; rx: 6; } path { fill: none; stroke: #3f6f9f; stroke-opacity: .55; stroke-width: 1.4; }
.torch rect { fill: #fdf1e3; stroke: #d59a4e; }
@media (prefers-color-scheme: dark) { svg { background: #14191f; } text { fill: #e3eaf1; } .size { fill: #9fb0c0; }
rect { fill: #1e2730; stroke: #51677c; } .torch rect { fill: #33281a; stroke: #96703a; } path { stroke: #7db1e3; } }
"""


class Room(NamedTuple):
    """A package or module at the top of the source folder: its files, their lines, what it imports of ours, and whether
    torch may be loaded in it."""

    name: str
    files: int
    lines: int
    uses: frozenset[str]
    torch: bool


def rooms() -> dict[str, Room]:
    """Every room, by name."""
    found = {}
    for path in sorted(SOURCE.iterdir()):
        name = path.stem
        if name.startswith("__") or not (path.suffix == ".py" or (path / "__init__.py").exists()):
            continue
        files = [path] if path.is_file() else sorted(path.rglob("*.py"))
        texts = [file.read_text(encoding="utf-8") for file in files]
        imported = {module for text in texts for module in _imports(text)}
        ours = {module.split(".")[1] for module in imported if module.startswith("lora_foundry.")}
        lines = sum(text.count("\n") for text in texts)
        found[name] = Room(name, len(files), lines, frozenset(ours - {name}), "torch" in imported)
    return {
        name: room._replace(uses=frozenset(use for use in room.uses if use in found))
        for name, room in found.items()
    }


def _imports(text: str) -> set[str]:
    """The modules that a file imports when it is used, at any depth; what only the type checker reads does not count."""
    tree = ast.parse(text)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def levels(found: Mapping[str, Room]) -> list[list[str]]:
    """The rooms from the top row down: each stands above everything that it imports."""
    height: dict[str, int] = {}

    def measure(name: str, above: tuple[str, ...]) -> int:
        if name not in height:
            below = [use for use in found[name].uses if use not in (*above, name)]
            height[name] = 1 + max((measure(use, (*above, name)) for use in below), default=-1)
        return height[name]

    for name in found:
        measure(name, ())
    return [
        sorted(name for name in found if height[name] == level)
        for level in range(max(height.values()), -1, -1)
    ]


def nearest(name: str, found: Mapping[str, Room]) -> list[str]:
    """The rooms that one imports, without those that it also reaches through another of them."""

    def below(room: str, seen: set[str]) -> set[str]:
        for use in found[room].uses - seen:
            seen.add(use)
            below(use, seen)
        return seen

    uses = found[name].uses
    return sorted(
        use for use in uses if not any(use in below(other, {name}) for other in uses if other != use)
    )


def draw(found: Mapping[str, Room]) -> str:
    """The picture as SVG text."""
    rows = levels(found)
    place: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(rows):
        wide = min(170.0, (WIDTH - GAP * (len(row) + 1)) / len(row))
        left = (WIDTH - len(row) * (wide + GAP) + GAP) / 2
        for name in row:
            place[name] = (left, TOP + number * ROW, wide)
            left += wide + GAP
    lines = []
    for name in found:
        x, y, wide = place[name]
        for use in nearest(name, found):
            to_x, to_y, to_wide = place[use]
            start, end = x + wide / 2, to_x + to_wide / 2
            middle = (y + BOX_HEIGHT + to_y) / 2
            lines.append(
                f'<path d="M{start:.0f} {y + BOX_HEIGHT:.0f} C{start:.0f} {middle:.0f} '
                f'{end:.0f} {middle:.0f} {end:.0f} {to_y:.0f}"/>'
            )
    boxes = [_box(found[name], *at) for name, at in place.items()]
    height = TOP + len(rows) * ROW
    title = (
        "Rooms of src/lora_foundry: a line goes down to what a room imports (not drawn where another line already leads "
        "there); torch is loaded in the orange ones only"
    )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
        f"<style>{STYLE}</style>", f'<text class="size" x="{GAP}" y="28">{title}.</text>', *lines, *boxes, "</svg>",
    ]) + "\n"  # fmt: skip


def _box(room: Room, x: float, y: float, wide: float) -> str:
    size = f"{room.files} files, {room.lines} lines" if room.files > 1 else f"{room.lines} lines"
    middle = x + wide / 2
    return (
        f'<g class="{"torch" if room.torch else "plain"}"><rect x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" '
        f'height="{BOX_HEIGHT}"/><text class="name" text-anchor="middle" x="{middle:.0f}" y="{y + 28:.0f}">'
        f'{escape(room.name)}</text><text class="size" text-anchor="middle" x="{middle:.0f}" y="{y + 47:.0f}">{size}</text></g>'
    )


if __name__ == "__main__":
    (Path(__file__).parent / "architecture.svg").write_text(draw(rooms()), encoding="utf-8")
