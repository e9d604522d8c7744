"""The house rules that a reviewer would otherwise have to remember: imports go one way, torch stays in its rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "lora_foundry"

# Layers from the top; a module may import from its own layer (but see SEPARATE) and from those below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("testing",),
    ("cli", "__main__"),
    ("agents",),
    ("web",),
    ("compat", "doctor", "setup_job"),
    ("needs",),
    ("stage_job", "trial_job", "redraw_job", "memory_job"),
    ("api", "hubs"),
    ("composition",),
    ("backends", "tasks", "trainer"),
    ("remote",),
    ("stages", "pipeline"),
    ("mini",),
    (
        "announcements",
        "failures",
        "context",
        "families",
        "files",
        "identity",
        "measures",
        "processes",
        "recipe_files",
        "settings",
    ),
    ("ports",),
    ("domain", "recipes"),
    ("registry",),
    ("errors", "extras"),
)
# Lower modules that reach the package's data by name only.
LAZY_BELOW = {("families", "mini")}
TORCH_ROOMS = {"backends", "trainer", "mini", "families"}
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")


def room(path: Path) -> str:
    """The layer name a file belongs to: its package, or its own name at the top level."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> set[str]:
    """Every absolute module name that a file imports, at any depth, type-checking imports included."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write it in full"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rank(name: str) -> int:
    for index, layer in enumerate(LAYERS):
        if name in layer:
            return index
    raise AssertionError(f"{name} is in no layer of the architecture test; give it one")


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def faults(rule: Callable[[Path], Iterator[str]]) -> list[str]:
    """What a rule finds in every file, each with the file's name; all of them, not the first alone."""
    assert len(FILES) > 100, "the sources were not found"
    return [f"{path.relative_to(SOURCE)} {fault}" for path in FILES for fault in rule(path)]


def test_imports_go_one_way() -> None:
    def rule(path: Path) -> Iterator[str]:
        own = room(path)
        for module in imports(path):
            parts = module.split(".")
            if parts[0] != "lora_foundry" or len(parts) < 2 or parts[1].startswith("__"):
                continue
            if (own, parts[1]) not in LAZY_BELOW and rank(parts[1]) < rank(own):
                yield f"imports {module}, which lies above it"

    assert faults(rule) == []


def test_backends_never_import_one_another() -> None:
    def rule(path: Path) -> Iterator[str]:
        own = path.relative_to(SOURCE).with_suffix("").parts
        if own[0] != "backends":
            return
        for module in imports(path):
            parts = module.split(".")
            if parts[:2] == ["lora_foundry", "backends"] and len(parts) > 2 and parts[2] != own[1]:
                yield f"imports another backend, {module}"
            if parts[:2] == ["lora_foundry", "trainer"]:
                yield f"imports the trainer, {module}"

    assert faults(rule) == []


def test_torch_stays_in_its_rooms() -> None:
    def rule(path: Path) -> Iterator[str]:
        if room(path) not in TORCH_ROOMS and path.name != "doctor.py":
            yield from (
                f"imports {module}" for module in sorted(imports(path)) if module.split(".")[0] in HEAVY
            )

    assert faults(rule) == []


def test_stages_never_name_a_backend() -> None:
    names = ("comfyui", "diffusers", "kohya", "plan_captions", "mini_instruments")
    classes = ("FolderPublisher", "DiffusersGenerator", "MiniEmbedder", "PlanCaptioner")

    def rule(path: Path) -> Iterator[str]:
        if room(path) == "stages":
            text = path.read_text(encoding="utf-8")
            yield from (f"names {name}" for name in names if f"backends.{name}" in text or f"{name}(" in text)
            yield from (f"names {name}" for name in classes if name in text)

    assert any(room(path) == "stages" for path in FILES)
    assert faults(rule) == []


def test_every_module_says_why_it_exists() -> None:
    def rule(path: Path) -> Iterator[str]:
        if not ast.get_docstring(tree_of(path)):
            yield "has no opening paragraph"

    assert faults(rule) == []


def test_modules_and_functions_stay_small() -> None:
    def rule(path: Path) -> Iterator[str]:
        if path.read_text(encoding="utf-8").count("\n") > 450:
            yield "is too long; make two rooms of it"
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                if length > 70:
                    yield f"has a function of {length} lines, {node.name}"

    assert faults(rule) == []


def test_importing_the_package_and_its_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, lora_foundry, lora_foundry.cli.app, lora_foundry.domain.recipe, lora_foundry.pipeline;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_outside_names_a_family_or_guesses_it() -> None:
    """What is special about a base model stands in its family's folder."""
    families = sorted(path.name for path in (SOURCE / "families").iterdir() if (path / "detect.py").is_file())
    quoted = re.compile(rf"""["']({"|".join(families)})["']""")
    guessed = re.compile(r"hasattr\([^)]*(transformer|unet|text_encoder)")
    found = []
    for path in SOURCE.rglob("*.py"):
        inside = path.relative_to(SOURCE).parts
        if inside[0] == "families" and inside[1] != "_shared":
            continue
        text = path.read_text(encoding="utf-8")
        found += [
            f"{path}: {hit.group(0)}" for pattern in (quoted, guessed) for hit in pattern.finditer(text)
        ]
    assert len(families) >= 4
    assert not found


def test_programs_beside_the_package_import_only_what_there_is() -> None:
    """mypy reads the package alone, and an import inside a function fails only when somebody runs it."""
    root = SOURCE.parents[1]
    places = [
        path
        for name in ("benchmarks", "examples", "mini_world", "tests")
        for path in (root / name).rglob("*.py")
    ]
    assert len(places) > 100
    lacking = []
    for path in places:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lora_foundry":
                lacking += [
                    f"{path.relative_to(root)} imports {alias.name} from {node.module}"
                    for alias in node.names
                    if not is_there(node.module or "", alias.name)
                ]
    assert lacking == []


def is_there(module: str, name: str) -> bool:
    """Whether a module of the package has that name, or a module of that name below it."""
    place = SOURCE.parent.joinpath(*module.split("."))
    if (place / name).is_dir() or (place / f"{name}.py").is_file():
        return True
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return file.is_file() and (name in names_of(file) or "__getattr__" in names_of(file))


@cache
def names_of(path: Path) -> frozenset[str]:
    """What a module defines or imports, at any depth: conditions and aliases count too."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return frozenset(found)
