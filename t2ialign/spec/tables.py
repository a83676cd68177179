"""Text files with all their encodings and line ends, and tables in them. No torch."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

from t2ialign.foreign import read

_LINE_END = re.compile(r"\r\n|\n|\r")
#: A field is quoted only if its closing quote ends it; every other quote is text.
_TSV_FIELD = re.compile(r'"((?:[^"]|"")*)"(?=\t|\r|\n|\Z)|[^\t\r\n]*')


def text_of(path: Path) -> str:
    """A file as text: UTF-8 with or without its mark, UTF-16 by its mark.

    Raises:
        OSError: it cannot be read.
        ValueError: it is neither, no file, or absurdly large.
    """
    try:
        data = read(path)
    except ValueError as error:
        raise ValueError(f" {error}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f" is not {'UTF-16' if wide else 'UTF-8'}: {error.reason} at byte {error.start}") from error


def lines_of(text: str) -> list[str]:
    """Lines, which end at LF, CR LF and CR only (``splitlines`` also cuts inside texts)."""
    lines = _LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def csv_rows(text: str) -> list[tuple[int, list[str]]]:
    """Rows (RFC 4180) with the line each ends at; blank lines are left out. Semicolons part fields if the header's do.

    Raises:
        ValueError: malformed.
    """
    header = (lines_of(text) or [""])[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f", line {reader.line_num}: {error}") from error


def tsv_rows(text: str) -> list[tuple[int, list[str]]]:
    """Tab-separated rows with the line each begins at; blank lines are left out."""
    rows: list[tuple[int, list[str]]] = []
    row: list[str] = []
    at, line, begun = 0, 1, 1
    while at < len(text):
        found = _TSV_FIELD.match(text, at)
        assert found  # the pattern fits the empty text
        row.append(found[0] if found[1] is None else found[1].replace('""', '"'))
        line += len(_LINE_END.findall(found[0]))
        at = found.end()
        if text.startswith("\t", at):
            at += 1
            if at < len(text):
                continue
            row.append("")
        end = _LINE_END.match(text, at)
        at = end.end() if end else at
        if row != [""]:
            rows.append((begun, row))
        line += 1
        begun, row = line, []
    return rows
