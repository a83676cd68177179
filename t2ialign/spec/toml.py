"""TOML is read here and nowhere else, by tomli: the grammar of the standard library's parser, compiled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import tomli

from t2ialign.errors import UsageError
from t2ialign.foreign import read as read_bytes
from t2ialign.foreign import shown

#: What ``loads`` and ``value`` raise; tomli's own error is one.
TOMLError = ValueError
#: Bytes of a spec.
MOST = 2**22


def loads(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        TOMLError: it is none, or has numbers or nesting beyond what can be read.
    """
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise TOMLError("arrays or tables are nested too deeply") from error
    except ValueError as error:  # of int()
        raise TOMLError("an integer has too many digits") from error


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte order mark.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or is no TOML.
    """
    try:
        text = read_bytes(path, MOST).decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"spec {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"spec {path}: {error}") from error
    try:
        return loads(text)
    except TOMLError as error:
        raise UsageError(f"spec {path} is not valid TOML: {shown(error, 500)}") from error


def value(text: str) -> Any:
    """What the right side of ``key = <text>`` means.

    Raises:
        TOMLError: the text is no TOML value.
    """
    return loads(f"value = {text}")["value"]


def assignments(values: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Overrides of keys as ``--set`` takes them: texts stay, {"run.steps": 10} becomes "run.steps = 10"."""
    if not isinstance(values, Mapping):
        return list(values)
    return [f"{key}={_inline(one)}" for key, one in values.items()]


def _inline(value: Any) -> str:
    """A value in one line of TOML; JSON's texts, numbers, truths and lists are TOML's too."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(str(value) if isinstance(value, PurePath) else value)
