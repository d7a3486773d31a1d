"""A graph of the documentation that is installed: modules and documented classes and functions.

``is in``: a class or function and its module, a module and its package. ``inherits from``: a class and the class that
it names as its base. ``mentions``: a definition and a class whose name, in CamelCase, its docstring has. Files are
parsed, never imported. The same installed packages give the same graph.
"""

from __future__ import annotations

import ast
import gc
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bertillery.data import pydocs
from bertillery.system.environment import num_cores
from bertillery.system.workers import pool
from knowledge.triples import Entity, Triple

VERSION = 1
"""Part of the graph's name; raise it when a change below alters it."""
PACKAGES = (
    "accelerate",
    "datasets",
    "fsspec",
    "numpy",
    "pandas",
    "pyarrow",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
)
"""Packages beside the standard library, where they are installed: they have names that their texts use."""
_CAMEL = re.compile(r"\b(?:[A-Z][a-z0-9]+){2,}[A-Z]?\b|\b[A-Z]{2,}[a-z][A-Za-z0-9]*\b")


class Definition(NamedTuple):
    """A documented class or function, or the module (an empty name)."""

    name: str
    bases: tuple[str, ...]
    """The last parts of the names of a class's bases; of a function ``("def",)``."""
    mentioned: tuple[str, ...]
    """Words of the docstring in CamelCase."""


@cache
def read_graph() -> tuple[list[Entity], list[Triple]]:
    """Entities, sorted, and triples, of which each is there once."""
    modules = [*_modules()]
    kinds = {f"{module}.{each.name}".rstrip("."): each for module, found in modules for each in found}
    places: dict[str, list[str]] = defaultdict(list)
    for name, each in kinds.items():
        if each.name and each.bases != ("def",):
            places[name.rpartition(".")[2]].append(name)
    entities = [_entity(name, each) for name, each in sorted(kinds.items())]
    triples = dict.fromkeys(triple for name in sorted(kinds) for triple in _facts(name, kinds, places))
    return entities, [*triples]


def _facts(name: str, kinds: dict[str, Definition], places: dict[str, list[str]]) -> Iterator[Triple]:
    definition = kinds[name]
    parent = name.rpartition(".")[0]
    while parent and parent not in kinds:
        parent = parent.rpartition(".")[0]
    if parent:
        yield Triple(name, "is in", parent, "python-docs")
    for relation, words in (("inherits from", definition.bases), ("mentions", definition.mentioned)):
        for word in words:
            other = _nearest(name, places.get(word, []))
            if other is not None and other != name:
                yield Triple(name, relation, other, "python-docs")


def _nearest(name: str, candidates: list[str]) -> str | None:
    """The candidate that shares most of the path with a name; None where two share as much."""
    parts = name.split(".")

    def shared(other: str) -> int:
        pairs = zip(parts, other.split("."), strict=False)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), len(parts))

    ranked = sorted((-shared(other), other) for other in candidates)
    if not ranked or (len(ranked) > 1 and ranked[0][0] == ranked[1][0]):
        return None
    return ranked[0][1]


def _entity(name: str, definition: Definition) -> Entity:
    """A class is called by its name; what is named in lower case, as modules and functions are, by that name, which
    often is a word, and what it is."""
    last = name.rpartition(".")[2]
    if not definition.name:
        return Entity(name, f"{last} module", (name,) if "." in name else ())
    if definition.bases == ("def",):
        return Entity(name, f"{last} function", (name,))
    return Entity(name, last if last[0].isupper() else f"{last} class", (name,))


def _modules() -> Iterator[tuple[str, list[Definition]]]:
    """The dotted name and the definitions of modules with documented ones."""
    chosen = [(name, path) for name, path in pydocs.modules() if _package(name) in ("python", *PACKAGES)]
    with pool(num_cores(), gc.disable) as processes:
        found = processes.map(_read_module, [str(path) for _, path in chosen], chunksize=64)
        for (name, _), definitions in zip(chosen, found, strict=True):
            if definitions:
                dotted = name.partition("/")[2].removesuffix(".py").replace("/", ".").removesuffix(".__init__")
                yield dotted, definitions


def _package(module: str) -> str:
    root, _, path = module.partition("/")
    return "python" if root == "0" else path.partition("/")[0].removesuffix(".py")


def _read_module(path: str) -> list[Definition]:
    tree = pydocs.parsed(Path(path).read_bytes())
    found = [Definition("", (), _mentioned(tree))] if ast.get_docstring(tree, clean=False) else []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node, clean=False):
            bases = tuple(map(_last, node.bases)) if isinstance(node, ast.ClassDef) else ("def",)
            found.append(Definition(node.name, tuple(filter(None, bases)), _mentioned(node)))
    if found and found[0].name:  # the module has no docstring of its own
        found.insert(0, Definition("", (), ()))
    return found


def _mentioned(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_CAMEL.findall(ast.get_docstring(node, clean=False) or "")))


def _last(base: ast.expr) -> str:
    """The last part of a base's dotted name; empty for any other expression."""
    if isinstance(base, ast.Subscript):
        base = base.value
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
