"""Who imports whom, read from the sources: type-only and nested imports count like all others."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]


def sources(package: Path) -> dict[str, str]:
    """Module name -> source of every module of a package."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = (package.name, *file.relative_to(package).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file.read_text(encoding="utf-8")
    return found


def graph(modules: Mapping[str, str]) -> Graph:
    """Module -> modules of the same mapping, and packages outside it, that it imports anywhere."""
    return {name: set(_imports(name, ast.parse(text), modules)) for name, text in modules.items()}


def _imports(name: str, tree: ast.AST, modules: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def circles(edges: Graph) -> list[list[str]]:
    """Groups of modules that import each other (strongly connected components of more than one module)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges[node] & edges.keys() - {node}):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def upward(edges: Graph, order: str, package: str) -> list[str]:
    """Imports against the order of folders, lowest first, one line a level; the package's own name is free."""
    level = {word: number for number, line in enumerate(order.split("\n")) for word in line.split()}

    def place(module: str) -> str:
        return module.removeprefix(f"{package}.").partition(".")[0]

    wrong = []
    for module, others in edges.items():
        if module == package:
            continue
        if place(module) not in level:
            wrong.append(f"{module}: no level is given for '{place(module)}'")
            continue
        for other in others:
            inside = other in edges and other != package
            if inside and level[place(other)] > level[place(module)]:
                wrong.append(f"{module} imports {other}, which lies above it")
            if other == package and level[place(module)] < max(level.values()) - 1:
                wrong.append(f"{module} imports the whole package")
    return wrong
