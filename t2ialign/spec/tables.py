"""Text files with all their encodings and line ends, and tables in them. No torch."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

from t2ialign.foreign import read

#: In this order: the mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
#: Excel's own first line, which tells what parts the fields.
_SEPARATOR = re.compile(r"sep=(.)(?:\r\n|\n|\r)")
_LINE_END = re.compile(r"\r\n|\n|\r")
#: A field is quoted only if its closing quote ends it; every other quote is text.
_TSV_FIELD = re.compile(r'"((?:[^"]|"")*)"(?=\t|\r|\n|\Z)|[^\t\r\n]*')


def text_of(path: Path) -> str:
    """A file as text: UTF-8 with or without its mark, UTF-16 and UTF-32 by their marks. Marks further inside, which
    files that were joined have, are left out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of these, no file, or absurdly large.
    """
    try:
        data = read(path)
    except ValueError as error:
        raise ValueError(f" {error}") from error
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f" is not {encoding}: {error.reason} at byte {error.start}; save it as UTF-8") from error
    if (place := text.find("\0")) >= 0:
        raise ValueError(f" has a zero at character {place}: no text, or UTF-16 without a mark; save it as UTF-8")
    return text.replace("\ufeff", "")


def lines_of(text: str) -> list[str]:
    """Lines, which end at LF, CR LF and CR only (``splitlines`` also cuts inside texts)."""
    lines = _LINE_END.split(text)
    return lines[:-1] if lines[-1] == "" else lines


def csv_rows(text: str) -> list[tuple[int, list[str]]]:
    """Rows (RFC 4180) with the line each ends at; rows without any text are left out. Semicolons or tabs part fields
    if the header's do, or what ``sep=`` before it names.

    Raises:
        ValueError: malformed.
    """
    told = _SEPARATOR.match(text)
    header = next((line for line in lines_of(text) if line.strip()), "")
    delimiter = told[1] if told else max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text[told.end() :] if told else text, newline=""), delimiter=delimiter, strict=True)
    before = 1 if told else 0
    try:
        return [(reader.line_num + before, row) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise ValueError(f", line {reader.line_num + before}: {error}") from error


def tsv_rows(text: str) -> list[tuple[int, list[str]]]:
    """Tab-separated rows with the line each begins at; rows without any text are left out."""
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
        if any(map(str.strip, row)):
            rows.append((begun, row))
        line += 1
        begun, row = line, []
    return rows
