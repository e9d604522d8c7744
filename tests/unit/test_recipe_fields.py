"""Every field of a recipe is read by something that acts on it: a field that does nothing is a lie."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lora_foundry
from lora_foundry.domain.recipe import Recipe
from lora_foundry.domain.sections.base import Section

SOURCE = Path(lora_foundry.__file__).parent
SECTIONS = {
    name: field.annotation
    for name, field in Recipe.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
FIELDS = [(section, name) for section, kind in SECTIONS.items() for name in kind.model_fields]
# What these do with a field changes nothing of a run: they store, show, check or compare it.
IDLE = ("trainer/metadata.py", "doctor.py", "web/routes/recipes.py", "domain/sharing.py", "domain/recipe.py")
NAMING = (ast.arg, ast.AnnAssign, ast.Assign, ast.NamedExpr)


class Reader:
    """Which fields of which sections a source file reads, by what its names are annotated with or assigned from."""

    def __init__(self, tree: ast.AST, held: dict[str, str]) -> None:
        self._held = held
        self._attributes, self._naming = list[ast.Attribute](), list[ast.AST]()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                self._attributes.append(node)
            elif isinstance(node, NAMING):
                self._naming.append(node)
        self._names: dict[str, str] = {}
        self._classes = {kind.__name__: name for name, kind in SECTIONS.items()}
        self.learn()

    def learn(self) -> None:
        """Anew, when all that other files hold is known."""
        self._names.clear()
        before = None
        while before != (len(self._names), len(self._held)):
            before = (len(self._names), len(self._held))
            for target, section in self._named():
                if isinstance(target, ast.Name):
                    self._names[target.id] = section
                elif isinstance(target, ast.Attribute):
                    self._held[target.attr] = section

    def _named(self) -> Iterator[tuple[ast.expr, str]]:
        for node in self._naming:
            if isinstance(node, ast.arg) and (found := self._annotated(node.annotation)):
                yield ast.Name(node.arg), found
            elif isinstance(node, ast.AnnAssign) and (found := self._annotated(node.annotation)):
                yield node.target, found
                if isinstance(node.target, ast.Name):
                    yield ast.Attribute(node.target, node.target.id), found  # of a dataclass, say
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    yield from self._assigned(target, node.value)
            elif isinstance(node, ast.NamedExpr):
                yield from self._assigned(node.target, node.value)

    def _assigned(self, target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, str]]:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=True):
                yield from self._assigned(one, other)
        elif found := self._section(value):
            yield target, found

    def _annotated(self, annotation: ast.expr | None) -> str | None:
        named = (node.id for node in ast.walk(annotation or ast.Module([], [])) if isinstance(node, ast.Name))
        return next((self._classes[name] for name in named if name in self._classes), None)

    def _section(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Attribute):
            return node.attr if node.attr in SECTIONS else self._held.get(node.attr)
        return self._names.get(node.id) if isinstance(node, ast.Name) else None

    def reads(self) -> set[tuple[str, str]]:
        """(section, field) of everything that is read."""
        loads = [node for node in self._attributes if isinstance(node.ctx, ast.Load)]
        return {(section, node.attr) for node in loads if (section := self._section(node.value))}


def read_in(sources: dict[str, str]) -> set[tuple[str, str]]:
    """What is read in any of the files, by their texts."""
    held: dict[str, str] = {}
    trees = [ast.parse(text) for text in sources.values()]
    found = _properties(trees)
    for reader in [Reader(tree, held) for tree in trees]:
        reader.learn()
        found |= reader.reads()
    return found


def _properties(trees: list[ast.Module]) -> set[tuple[str, str]]:
    """What a section's own properties read of it."""
    found = set()
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for section, kind in SECTIONS.items():
        for node in classes:
            if node.name in [each.__name__ for each in kind.__mro__]:
                for method in node.body:
                    names = [getattr(each, "id", "") for each in getattr(method, "decorator_list", ())]
                    if "property" in names:
                        reads = [each for each in ast.walk(method) if isinstance(each, ast.Attribute)]
                        found |= {
                            (section, each.attr) for each in reads if getattr(each.value, "id", "") == "self"
                        }
    return found


def test_every_field_does_something() -> None:
    files = {path.relative_to(SOURCE).as_posix(): path for path in SOURCE.rglob("*.py")}
    acting = {name: path.read_text(encoding="utf-8") for name, path in files.items() if name not in IDLE}
    read = read_in(acting)
    assert [f"{section}.{field}" for section, field in FIELDS if (section, field) not in read] == []


def test_a_field_that_nothing_reads_is_found() -> None:
    text = """
def act(rules: CurateSection, run):
    section = run.recipe.caption
    return rules.budget, section.kept, run.recipe.train.ema
"""
    assert read_in({"a.py": text}) == {("curate", "budget"), ("caption", "kept"), ("train", "ema")}
