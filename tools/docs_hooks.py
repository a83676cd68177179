"""Pages that mkdocs makes while it builds: the reference of the spec, and the repository's own pages at the root."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args, get_origin

import tomli_w
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from t2ialign.config import RewardMixConfig
from t2ialign.plugins import registry
from t2ialign.spec.parse import TABLES

ROOT = Path(__file__).parents[1]
MEANING = {
    "backend": "`[backend]`: the frozen model",
    "sampler": "`[sampler]`: from noise to latents",
    "optimizer": "`[optimizer]`: the algorithm",
    "reward": "`[[reward]]`: one table for each score",
}


def on_files(files: Files, config: Any) -> Files:
    """Add what is generated."""
    files.append(File.generated(config, "reference/spec.md", content=spec_reference()))
    files.append(File.generated(config, "contributing.md", content=(ROOT / "CONTRIBUTING.md").read_text("utf-8")))
    return files


#: A link to a file outside the docs' folder.
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!writing-a-plugin|reference|plugins/[a-z]+\.md)([^)]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links out of the docs' folder are code spans on the site, where the files are not."""
    return OUTSIDE.sub(r"\1 (`\2`)", markdown)


def spec_reference() -> str:
    """Every table and every installed kind with its options."""
    lines = ["# The spec", "", "Made from the installed packages. A key without a default is required.", ""]
    for name, model in TABLES.items():
        lines += [f"## `[{name}]`", "", *options(model), ""]
    found = registry()
    for role, meaning in MEANING.items():
        lines += [f"## {meaning}", ""]
        if role == "reward":
            lines += ["Every reward understands these, besides its own:", "", *options(RewardMixConfig), ""]
        for kind, declared in sorted(found.parts[role].items()):
            words = ", ".join(f"`{word}`" for word in sorted(declared.provides))
            lines += [f"### `{kind}`", "", f"{escaped(declared.summary)} ({declared.distribution})", ""]
            lines += [f"Provides {words}.", ""] if words else []
            needs = [
                f"of the {other} `{word}`" for other in declared.requires for word in sorted(declared.requires[other])
            ]
            lines += [f"Requires {', '.join(needs)}.", ""] if needs else []
            lines += [*options(declared.config), ""]
    return "\n".join(lines)


def options(model: type[BaseModel], prefix: str = "") -> list[str]:
    """A table of a model's fields; nested tables follow with their dotted keys."""
    rows = list(rows_of(model, prefix))
    return ["| key | type | default | |", "|---|---|---|---|", *rows] if rows else ["No options."]


def rows_of(model: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = []
    schema = model.model_json_schema()["properties"] if model.model_fields else {}
    for name, field in model.model_fields.items():
        key, table = f"{prefix}{name}", table_in(field.annotation)
        if table is not field.annotation:
            cells = [f"`{key}`", f"`{words(schema[name])}`", default_of(field), escaped(field.description or "")]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if table:
            rows += rows_of(table, f"{key}[]." if get_origin(field.annotation) is list else f"{key}.")
    return rows


def table_in(annotation: Any) -> type[BaseModel] | None:
    """The options of a field that is a table, perhaps an optional one or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := table_in(inner))), None)


def words(schema: dict[str, Any]) -> str:
    """The type and range, from a field's JSON schema."""
    if "$ref" in schema:
        return "table"
    if "enum" in schema or "const" in schema:
        return " or ".join(toml(value) for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(words(one) for one in schema["anyOf"] if one.get("type") != "null")
    kind = {"string": "text", "number": "number", "integer": "integer", "boolean": "true or false", "object": "table"}
    if schema.get("type") == "array":
        return f"list of {words(schema['items'])}" if "items" in schema else "list"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in bounds.items() if key in schema]
    return " ".join([kind.get(schema.get("type", ""), "any"), ", ".join(limits)]).strip()


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    return "unset" if value is None else f"`{toml(value)}`"


def toml(value: Any) -> str:
    """A value as a spec writes it, in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
