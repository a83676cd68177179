"""Pydantic's errors in the words of a spec: dotted key, value, what is allowed, the nearest word."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel, ValidationError

from t2ialign.errors import SpecProblem, nearest

_TYPES = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be a text in quotes",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
}
_BOUNDS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


#: The name and password of a URL: never printed.
CREDENTIALS = re.compile(r"//\S*@")


def show(value: Any) -> str:
    """A value as TOML would show it, cut to a readable length."""
    text = CREDENTIALS.sub("//***@", json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= 80 else f"{text[:77]}..."


def dotted(*parts: str | int) -> str:
    """("reward", 0, "weight") -> "reward[0].weight"."""
    key = ""
    for part in parts:
        key += f"[{part}]" if isinstance(part, int) else (f".{part}" if key else part)
    return key


def from_pydantic(prefix: str, model: type[BaseModel], error: ValidationError) -> list[SpecProblem]:
    """One problem per pydantic error of a table validated against ``model``."""
    return [_problem(prefix, model, detail) for detail in error.errors(include_url=False)]


def _problem(prefix: str, model: type[BaseModel], detail: Any) -> SpecProblem:
    location, kind = detail["loc"], detail["type"]
    key = dotted(prefix, *location)
    context = detail.get("ctx", {})
    value = show(detail["input"])
    if kind == "extra_forbidden":
        fields = list(_model_at(model, location[:-1]).model_fields)
        return SpecProblem(
            key, value, f"unknown key; allowed: {', '.join(fields) or 'none'}.", nearest(str(location[-1]), fields)
        )
    if kind == "missing":
        field = _model_at(model, location[:-1]).model_fields.get(str(location[-1]))
        meaning = f": {field.description}" if field and field.description else ""
        return SpecProblem(key, "", f"missing key{meaning}.")
    if kind == "literal_error":
        words = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return SpecProblem(key, value, f"must be one of {', '.join(words)}.", nearest(str(detail["input"]), words))
    if kind in _BOUNDS:
        name, sign = _BOUNDS[kind]
        return SpecProblem(key, value, f"must be {sign} {context[name]:g}.")
    if kind == "string_pattern_mismatch":
        return SpecProblem(key, value, f"must match {context['pattern']}.")
    if kind == "value_error":
        return SpecProblem(key, value, f"{context['error']}.")
    return SpecProblem(key, value, f"{_TYPES.get(kind, detail['msg'])}.")


def _model_at(model: type[BaseModel], location: tuple[str | int, ...]) -> type[BaseModel]:
    """The nested model that a location points into."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
    return model
