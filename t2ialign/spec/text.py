"""A spec as text: the resolved TOML, its JSON Schema, and a commented template. No torch."""

from __future__ import annotations

from typing import Any

import tomli_w
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from t2ialign.config import Config, RewardMixConfig
from t2ialign.declaration import Declaration
from t2ialign.plugins import Registry
from t2ialign.spec.model import Spec
from t2ialign.spec.parse import TABLES


def to_tree(spec: Spec) -> dict[str, Any]:
    """The resolved spec as nested dicts, defaults filled in (TOML has no null: unset keys are left out)."""

    def table(config: Config) -> dict[str, Any]:
        return config.model_dump(exclude_none=True)

    tree: dict[str, Any] = {"run": {**table(spec.run), "name": spec.name}}
    tree["backend"] = {"kind": spec.backend.kind, **table(spec.backend.config)}
    if spec.sampler:
        tree["sampler"] = {"kind": spec.sampler.kind, **table(spec.sampler.config)}
    tree["optimizer"] = {"kind": spec.optimizer.kind, **table(spec.optimizer.config)}
    tree["prompts"] = table(spec.prompts)
    tree["evaluation"] = table(spec.evaluation)
    tree["samples"] = table(spec.samples)
    tree["reward"] = [{"kind": r.kind, **table(r.mix), **table(r.config)} for r in spec.rewards]
    return tree


def to_toml(tree: dict[str, Any], comment: str) -> str:
    """TOML text with a comment on top."""
    return "".join(f"# {line}\n" for line in comment.splitlines()) + "\n" + tomli_w.dumps(tree)


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
