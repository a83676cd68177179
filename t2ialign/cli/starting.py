"""``schema``, ``import-flags``, and the text of a new spec. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

import tomli_w
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from t2ialign.config import RewardMixConfig
from t2ialign.declaration import Declaration
from t2ialign.errors import UsageError
from t2ialign.plugins import Registry, registry
from t2ialign.spec.parse import TABLES


def schema() -> None:
    """Print a JSON Schema of the whole spec, installed plugins included, for editors that complete TOML."""
    typer.echo(json.dumps(json_schema(registry()), indent=2))


def import_flags(
    command: Annotated[str, typer.Argument(help='A command line, in quotes: "python main.py --backend ...".')],
    optimizer: Annotated[str, typer.Option(help="The optimizer kind whose program it is of.")] = "eggroll",
) -> None:
    """Print the spec of another program's command line, with a comment wherever something differs."""
    found = registry()
    declaration = found.find("optimizer", optimizer)
    target = getattr(declaration.config, "foreign_command_line", "")
    if not target:
        known = [
            k for k, d in sorted(found.parts["optimizer"].items()) if getattr(d.config, "foreign_command_line", "")
        ]
        raise UsageError(
            f"'{optimizer}' reads no command lines of other programs; these do: {', '.join(known) or 'none'}"
        )
    module, _, function = target.partition(":")
    typer.echo(getattr(import_module(module), function)(command), nl=False)


def json_schema(parts: Registry) -> dict[str, Any]:
    """A JSON Schema of the whole spec with every installed part, for editors that complete TOML."""
    definitions: dict[str, Any] = {}

    def model(config: type[BaseModel], extra: dict[str, Any] | None = None) -> dict[str, Any]:
        schema = config.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(schema.pop("$defs", {}))
        if extra:
            schema["properties"] = {**extra, **schema.get("properties", {})}
            schema["required"] = ["kind", *schema.get("required", [])]
        return schema

    def choice(role: str, shared: dict[str, Any]) -> dict[str, Any]:
        kinds = sorted(parts.parts[role].items())
        words = {"enum": [kind for kind, _ in kinds], "description": f"which {role}"}
        options = []
        for kind, declared in kinds:  # if/then and no oneOf: an editor then tells of one kind's mistake alone
            schema = model(declared.config, {"kind": {"const": kind, "description": declared.summary}, **shared})
            chosen = {"properties": {"kind": {"const": kind}}, "required": ["kind"]}
            options.append({"if": chosen, "then": {**schema, "title": kind}})
        return {"type": "object", "required": ["kind"], "properties": {"kind": words}, "allOf": options}

    tables = {name: model(config) for name, config in TABLES.items()}
    mix = model(RewardMixConfig)["properties"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "t2ialign spec",
        "type": "object",
        "additionalProperties": False,
        "required": ["backend", "optimizer", "reward", "prompts"],
        "properties": {
            **tables,
            **{role: choice(role, {}) for role in ("backend", "sampler", "optimizer")},
            "reward": {"type": "array", "minItems": 1, "items": choice("reward", mix)},
        },
        "$defs": definitions,
    }


def template(
    backend: Declaration,
    sampler: Declaration | None,
    optimizer: Declaration,
    reward: Declaration,
    values: Mapping[str, Any] | None = None,
    schema: str | None = None,
) -> str:
    """A commented spec for the chosen parts: every key with its meaning and default.

    Args:
        values: tables of the spec whose keys are set; the others are comments.
        schema: where editors find the schema.
    """
    given: dict[str, Any] = {"prompts": {"file": "prompts.txt"}, **(values or {})}
    mixed = given.get("reward") or [{}]
    head = f"#:schema {schema}\n" if schema else ""
    head += f"# {optimizer.kind} on {backend.kind} with {reward.kind}.\n"
    head += "# Keys that are commented out show their default. Check it with: t2ialign validate THIS_FILE"
    blocks = [head, _block("[run]", TABLES["run"], given.get("run"))]
    for role, part in (("backend", backend), ("sampler", sampler), ("optimizer", optimizer)):
        if part is not None:
            blocks.append(_block(f"[{role}]", part.config, given.get(role), part.kind, part.summary))
    blocks.append(_block("[[reward]]", reward.config, mixed[0], reward.kind, reward.summary, mix=True))
    tables = ("prompts", "evaluation", "samples", "export")
    blocks += [_block(f"[{name}]", TABLES[name], given.get(name)) for name in tables]
    return "\n\n".join(blocks) + "\n"


def _block(
    header: str,
    config: type[BaseModel],
    values: Mapping[str, Any] | None = None,
    kind: str = "",
    summary: str = "",
    mix: bool = False,
) -> str:
    given = values or {}
    lines = [header + (f"  # {summary}" if summary else "")]
    if kind:
        lines.append(f'kind = "{kind}"')
    nested: list[str] = []
    fields = {**(RewardMixConfig.model_fields if mix else {}), **config.model_fields}
    for name, field in fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            nested.append(_block(f"[{header.strip('[]')}.{name}]", annotation, given.get(name)))
            continue
        lines.append(f"# {field.description or name}")
        if name in given:
            lines.append(tomli_w.dumps({name: given[name]}).strip())
        elif field.is_required():
            lines.append(f"{name} = ...")
        else:
            default = field.get_default(call_default_factory=True)
            text = "" if default is None or default is PydanticUndefined else tomli_w.dumps({name: default}).strip()
            lines.append(f"# {text or f'{name} = (unset)'}".replace("\n", "\n# "))
    return "\n\n".join(["\n".join(lines), *nested])
