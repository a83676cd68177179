"""Prompts with whatever their file knew of them, and the files that people keep them in. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2ialign.errors import UsageError
from t2ialign.foreign import check_file, parse_json, shown
from t2ialign.spec.tables import csv_rows, lines_of, text_of, tsv_rows

#: Where a prompt is looked for in a table or an object, in this order and whatever the case.
COLUMNS = ("prompt", "prompts", "prompt_en", "prompt_cn", "caption", "text")
HUB = "hub:"
#: A table's first line, in a file that says to be plain text.
_HEADER = re.compile(r'(?:^|[\t,;])"?prompts?"?[\t,;]|[\t,;]"?prompts?"?$', re.IGNORECASE)


class Prompt(str):
    """A text everywhere, with the other columns or keys of its row.

    Attributes:
        data: GenEval's ``include``, a category, an OCR target; empty where the file had the text alone.
    """

    data: Mapping[str, Any]

    def __new__(cls, text: str, data: Mapping[str, Any] | None = None) -> Prompt:
        prompt = super().__new__(cls, text)
        prompt.data = dict(data or {})
        return prompt

    def __reduce__(self) -> tuple[type[Prompt], tuple[str, Mapping[str, Any]]]:
        return type(self), (str(self), self.data)


def data_of(prompt: str) -> Mapping[str, Any]:
    """A prompt's data; a plain text has none."""
    return getattr(prompt, "data", {})


def read(path: Path, column: str | None = None) -> list[Prompt]:
    """The prompts of a file, in its order; repeats stay.

    ``.txt``: one a line, spaces at both ends off; blank lines and lines that start with '#' are left out. ``.jsonl``:
    one object a line. ``.json``: a list of texts or objects, alone or as the one list of an object, one object of names
    to texts or objects, or COCO captions.
    ``.csv``, ``.tsv``, ``.parquet``: tables with a header. Fields of tables and objects are taken as they are.

    Args:
        column: the column or key of the prompt; default: the first of ``COLUMNS`` that is there.

    Raises:
        UsageError: of another kind, unreadable, malformed, or without prompts; names file and line.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"prompt file {path}: unknown kind '{path.suffix}'; {', '.join(READERS)}")
    try:
        prompts = list(reader(path, column))
    except OSError as error:
        raise UsageError(f"prompt file {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"prompt file {path}{error}") from error
    if not prompts:
        raise UsageError(f"prompt file {path} has no prompts")
    return prompts


def _lines(path: Path, column: str | None) -> Iterable[Prompt]:
    first = True
    for number, line in enumerate(lines_of(text_of(path)), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if first and _HEADER.search(text):
            raise ValueError(f", line {number}: looks like the header of a table; such a file is a .csv or a .tsv")
        if text.startswith('{"') and _is_json(text):
            raise ValueError(f", line {number}: is JSON; a file with an object a line is a .jsonl")
        for option in (" --n ", " --w ", " --h ", " --d ", " --s ", " --l "):
            if option in text:
                raise ValueError(f", line {number}: '{option.strip()}' looks like another tool's option, not like text")
        first = False
        yield Prompt(text)


def _is_json(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict | list)
    except ValueError:
        return False


def _json_lines(path: Path, column: str | None) -> Iterable[Prompt]:
    for number, line in enumerate(lines_of(text_of(path)), 1):
        if line.strip():
            try:
                value = parse_json(line, finite=True)
            except ValueError as error:
                raise ValueError(f", line {number}: not a JSON object with a prompt ({shown(error, 200)})") from error
            yield _prompt(value, column, f", line {number}")


def _json(path: Path, column: str | None) -> Iterable[Prompt]:
    text = text_of(path)
    try:
        content = parse_json(text, finite=True)
    except ValueError as error:
        lines = (
            "; a file with an object a line is a .jsonl" if _is_json(next(iter(lines_of(text.lstrip())), "")) else ""
        )
        raise ValueError(f" is no JSON: {shown(error, 200)}{lines}") from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        if isinstance(content.get("annotations"), list):  # COCO captions
            content = content["annotations"]
        elif isinstance(content.get("prompt"), str):
            content = [content]
        elif len(lists) == 1:  # {"prompts": [...]}
            content = lists[0]
    if isinstance(content, dict):
        content = [
            {"id": name, **value} if isinstance(value, dict) else {"id": name, "prompt": value}
            for name, value in content.items()
        ]
    if not isinstance(content, list):
        raise ValueError(" is neither a list nor an object of prompts")
    for number, value in enumerate(content):
        yield _prompt(value, column, f", item {number}")


def _csv(path: Path, column: str | None) -> Iterable[Prompt]:
    rows = csv_rows(text_of(path))
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    prompts = _table(rows, column)
    return _grouped(prompts) if {"item_id", "proposition_id"} <= set(header) else prompts


def _tsv(path: Path, column: str | None) -> Iterable[Prompt]:
    return _table(tsv_rows(text_of(path)), column)


def _parquet(path: Path, column: str | None) -> Iterable[Prompt]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(": reading .parquet needs pyarrow; pip install pyarrow") from error
    check_file(path)
    try:
        # Pictures among the columns are no data of a prompt; what JSON has no form for, such as a date, is a text.
        told = [field.name for field in parquet.read_schema(path) if "binary" not in str(field.type)]
        rows = parquet.read_table(path, columns=told).to_pylist()
    except Exception as error:  # of its own kinds, too
        raise ValueError(f" is no readable .parquet: {shown(error, 200)}") from error
    for number, row in enumerate(rows):
        plain = parse_json(json.dumps(row, default=str, ensure_ascii=False), finite=True)
        yield _prompt(plain, column, f", row {number}")


def _table(rows: Sequence[tuple[int, list[str]]], column: str | None) -> list[Prompt]:
    """Prompts of numbered rows, the first of which is the header."""
    if not rows:
        return []
    (_, header), *body = rows
    name = _column(header, column, "")
    if [other.strip().lower() for other in header].count(name.strip().lower()) > 1:
        raise ValueError(f": two columns are called '{shown(name, 60)}'")
    prompts = []
    for line, row in body:
        if len(row) != len(header):
            raise ValueError(f", line {line}: {len(row)} fields, and the header has {len(header)}")
        prompts.append(_prompt(dict(zip(header, row, strict=True)), name, f", line {line}"))
    return prompts


def _grouped(prompts: Iterable[Prompt]) -> list[Prompt]:
    """DPG-Bench has a row a question; rows of one item are one prompt with ``questions``."""
    questions: dict[str, list[dict[str, Any]]] = {}
    texts: dict[str, str] = {}
    for prompt in prompts:
        data = {name.strip().lower(): field for name, field in prompt.data.items()}
        item = data.pop("item_id")
        texts.setdefault(item, str(prompt))
        questions.setdefault(item, []).append(data)
    return [Prompt(text, {"item_id": item, "questions": questions[item]}) for item, text in texts.items()]


def _prompt(value: Any, column: str | None, where: str) -> Prompt:
    """A prompt of a text or an object; ``where`` begins what is wrong with it."""
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise ValueError(f'{where}: not a JSON object with a "prompt"')
    name = _column(list(value), column, where)
    text = value[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{where}: "{shown(name, 60)}" must be a non-empty text, not {shown(repr(text), 60)}')
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: holds half of a surrogate pair (\\ud800 to \\udfff), no character") from None
    return Prompt(text, {key: field for key, field in value.items() if key != name})


def _column(names: Sequence[str], column: str | None, where: str) -> str:
    """Which of a row's names holds the prompt."""
    lower = {name.strip().lower(): name for name in reversed(names)}
    for wanted in (column.strip().lower(),) if column else COLUMNS:
        if wanted in lower:
            return lower[wanted]
    what = f"no column '{shown(column, 60)}'" if column else "no column with prompts (column = ... names it)"
    raise ValueError(f"{where}: {what}; there are {shown(', '.join(map(repr, names)), 200) or 'none'}")


READERS: dict[str, Callable[[Path, str | None], Iterable[Prompt]]] = {
    ".txt": _lines,
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}


def in_folder(folder: Path, split: str) -> Path | None:
    """A split's file in a data set's folder: train.txt, test_metadata.jsonl, ...; None where there is none."""
    names = [f"{split}{ending}{suffix}" for ending in ("_metadata", "") for suffix in READERS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def from_hub(reference: str, folder: Path) -> Path:
    """Prompts of ``hub:<owner>/<name>[:split]`` as a JSON-lines file in a folder.

    Raises:
        UsageError: the package datasets is not installed, or the hub does not give the data set.
    """
    name, _, split = reference.removeprefix(HUB).partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise UsageError(f"'{reference}' needs the package datasets; pip install datasets") from error
    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # whatever the library raises
        raise UsageError(f"'{reference}': {type(error).__name__}: {error}") from error
    path = folder / f"{name.replace('/', '--')}-{split or 'train'}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), encoding="utf-8")
    return path
