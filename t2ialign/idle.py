"""Options that do nothing at some settings of the others: declared beside the options, told before the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel


@dataclass(frozen=True)
class Idle:
    """Options that do nothing, or less than they say, at some settings of the others: a remark, and a row of the docs.

    Attributes:
        options: names in one table, with spaces between; those with another value than the default are remarked on.
        when: the remark, behind "option = value: ".
        holds: whether it is so, of (the table's options, the spec); the spec is None where rewards score outside runs.
        remedy: what to do.
    """

    options: str
    when: str
    holds: Callable[[Any, Any], object]
    remedy: str = "leave it out"


def declared(options: type[BaseModel]) -> list[Idle]:
    """``idle`` of a class of options and of its bases, the general ones first."""
    return [found for base in reversed(options.__mro__) for found in vars(base).get("idle", ())]


def given(options: BaseModel, name: str) -> bool:
    """Whether an option has another value than its default; resolved specs write out both."""
    default = type(options).model_fields[name].get_default(call_default_factory=True)
    return bool(getattr(options, name) != default)
