"""TOML is read here and nowhere else, by tomli: the grammar of the standard library's parser, compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli

from t2ialign.errors import UsageError

TOMLError = tomli.TOMLDecodeError


def loads(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        TOMLError: it is none.
    """
    return tomli.loads(text)


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file, with or without a byte order mark.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or is no TOML.
    """
    try:
        return loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"spec {path}: {error}") from error
    except TOMLError as error:
        raise UsageError(f"spec {path} is not valid TOML: {error}") from error


def value(text: str) -> Any:
    """What the right side of ``key = <text>`` means.

    Raises:
        TOMLError: the text is no TOML value.
    """
    return loads(f"value = {text}")["value"]
