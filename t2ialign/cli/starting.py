"""``init``, ``schema`` and ``import-flags``: how a new spec begins. No torch."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from t2ialign.config import RewardMixConfig
from t2ialign.declaration import Declaration
from t2ialign.errors import UsageError
from t2ialign.foreign import shown
from t2ialign.plugins import Registry, registry
from t2ialign.spec.parse import TABLES


def schema() -> None:
    """Print a JSON Schema of the whole spec, installed plugins included, for editors that complete TOML."""
    typer.echo(json.dumps(json_schema(registry()), indent=2))


def init(
    backend: Annotated[str, typer.Option(help="Backend kind.")],
    optimizer: Annotated[str, typer.Option(help="Optimizer kind.")],
    reward: Annotated[str, typer.Option(help="Reward kind.")],
    sampler: Annotated[str, typer.Option(help="Sampler kind; 'none' for a backend that samples itself.")] = "one-step",
    out: Annotated[Path, typer.Option("--out", "-o", help="The spec file to write; it must not exist.")] = Path(
        "spec.toml"
    ),
) -> None:
    """Write a commented spec for a chosen backend, sampler, optimizer and reward."""
    found = registry()
    if out.exists():
        raise UsageError(f"{out} exists; choose another --out")
    text = template(
        found.find("backend", backend),
        None if sampler == "none" else found.find("sampler", sampler),
        found.find("optimizer", optimizer),
        found.find("reward", reward),
    )
    out.write_text(text, encoding="utf-8")
    typer.echo(shown(f"wrote {out}; next: t2ialign validate {out}"))


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
        options = []
        for kind, declared in sorted(parts.parts[role].items()):
            schema = model(declared.config, {"kind": {"const": kind, "description": declared.summary}, **shared})
            options.append({**schema, "title": kind})
        return {"oneOf": options}

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


def template(backend: Declaration, sampler: Declaration | None, optimizer: Declaration, reward: Declaration) -> str:
    """A commented spec for the chosen parts: every key with its meaning and default."""
    blocks = [
        f"# {optimizer.kind} on {backend.kind} with {reward.kind}.\n"
        "# Keys that are commented out show their default. Check it with: t2ialign validate THIS_FILE",
        _block("[run]", TABLES["run"]),
        _block("[backend]", backend.config, backend.kind, backend.summary),
    ]
    if sampler:
        blocks.append(_block("[sampler]", sampler.config, sampler.kind, sampler.summary))
    blocks += [
        _block("[optimizer]", optimizer.config, optimizer.kind, optimizer.summary),
        _block("[[reward]]", reward.config, reward.kind, reward.summary, mix=True),
        _block("[prompts]", TABLES["prompts"], required={"file": '"prompts.txt"'}),
        _block("[evaluation]", TABLES["evaluation"]),
        _block("[samples]", TABLES["samples"]),
        _block("[export]", TABLES["export"]),
    ]
    return "\n\n".join(blocks) + "\n"


def _block(
    header: str,
    config: type[BaseModel],
    kind: str = "",
    summary: str = "",
    mix: bool = False,
    required: dict[str, str] | None = None,
) -> str:
    lines = [header + (f"  # {summary}" if summary else "")]
    if kind:
        lines.append(f'kind = "{kind}"')
    nested: list[str] = []
    fields = {**(RewardMixConfig.model_fields if mix else {}), **config.model_fields}
    for name, field in fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            nested.append(_block(f"[{header.strip('[]')}.{name}]", annotation))
            continue
        lines.append(f"# {field.description or name}")
        if field.is_required():
            lines.append(f"{name} = {(required or {}).get(name, '...')}")
        else:
            default = field.get_default(call_default_factory=True)
            text = "" if default is None or default is PydanticUndefined else tomli_w.dumps({name: default}).strip()
            lines.append(f"# {text or f'{name} = (unset)'}".replace("\n", "\n# "))
    return "\n\n".join(["\n".join(lines), *nested])
