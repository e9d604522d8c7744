"""The house rules that a reviewer would otherwise have to remember: imports go one way, torch stays in its rooms."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "lora_foundry"

# Layers from the top; a module may import from its own layer (but see SEPARATE) and from those below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("testing",),
    ("cli", "__main__"),
    ("web",),
    ("compat", "doctor"),
    ("stage_job",),
    ("foundry",),
    ("backends", "tasks", "trainer"),
    ("stages", "pipeline"),
    ("mini",),
    (
        "announcements",
        "families",
        "files",
        "identity",
        "measures",
        "recipe_files",
        "settings",
    ),
    ("ports",),
    ("domain", "recipes"),
    ("errors",),
)
# Lower modules that reach the package's data by name only.
LAZY_BELOW = {("families", "mini")}
TORCH_ROOMS = {"backends", "trainer", "mini", "families"}
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate")


def room(path: Path) -> str:
    """The layer name a file belongs to: its package, or its own name at the top level."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """Every absolute module name that a file imports, at any depth, type-checking imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = room(path)
    for module in imports(path):
        parts = module.split(".")
        if (
            parts[0] != "lora_foundry"
            or len(parts) < 2
            or parts[1].startswith("__")
            or (own, parts[1]) in LAZY_BELOW
        ):
            continue
        assert rank(parts[1]) >= rank(own), f"{path} imports {module}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_backends_never_import_one_another(path: Path) -> None:
    own = path.relative_to(SOURCE).with_suffix("").parts
    if own[0] != "backends" or own[-1] == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[:2] == ["lora_foundry", "backends"] and len(parts) > 2:
            assert parts[2] == own[1], f"{path} imports another backend, {module}"
        assert parts[:2] != ["lora_foundry", "trainer"], f"{path} imports the trainer"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_torch_stays_in_its_rooms(path: Path) -> None:
    if room(path) in TORCH_ROOMS or path.name == "doctor.py":
        return
    heavy = {module for module in imports(path) if module.split(".")[0] in HEAVY}
    assert not heavy, f"{path} imports {heavy}"


def test_stages_never_name_a_backend() -> None:
    names = (
        "comfyui",
        "diffusers",
        "kohya",
        "plan_captions",
        "FolderPublisher",
        "DiffusersGenerator",
        "mini_instruments",
    )
    for path in (SOURCE / "stages").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not [name for name in names if f"backends.{name}" in text or f"{name}(" in text], path


def test_every_module_says_why_it_exists() -> None:
    for path in FILES:
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
            f"{path} has no opening paragraph"
        )


def test_modules_and_functions_stay_small() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 450, f"{path} is too long; make two rooms of it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                assert length <= 70, f"{path}: {node.name} has {length} lines"


def test_importing_the_package_and_its_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, lora_foundry, lora_foundry.cli.app, lora_foundry.domain.recipe, lora_foundry.pipeline;"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
