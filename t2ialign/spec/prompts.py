"""Prompt files: one prompt a line, or JSON lines with a "prompt" key. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from t2ialign.errors import UsageError


def read(path: Path) -> list[str]:
    """The prompts of a file, in order.

    A ``.txt`` file has one prompt a line; blank lines and lines that start with '#' are left out. A ``.jsonl`` file
    has one object a line with the key "prompt" (GenEval's metadata files have this form); a ``.tsv`` file has a
    header with a column Prompt (PartiPrompts has this form; quotation marks are kept).

    Raises:
        UsageError: unreadable, not UTF-8, malformed, or without prompts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"prompt file {path}: {error}") from error
    match path.suffix:
        case ".jsonl":
            prompts = [_json_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        case ".tsv":
            prompts = _column(path, lines)
        case _:
            prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError(f"prompt file {path} has no prompts")
    return prompts


def _json_prompt(path: Path, number: int, line: str) -> str:
    try:
        prompt = json.loads(line)["prompt"]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f'prompt file {path}, line {number}: not a JSON object with a "prompt"') from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f'prompt file {path}, line {number}: "prompt" must be a non-empty text')
    return prompt


def _column(path: Path, lines: list[str]) -> list[str]:
    header = [name.strip().lower() for name in lines[0].split("\t")] if lines else []
    if "prompt" not in header:
        raise UsageError(f"prompt file {path}: the header has no column 'Prompt'")
    column = header.index("prompt")
    rows = [line.split("\t") for line in lines[1:] if line.strip()]
    return [row[column] for row in rows if len(row) > column and row[column].strip()]
