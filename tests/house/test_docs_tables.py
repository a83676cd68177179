"""The tables of the docs that are made from the code are those of the code, and have no empty cell."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = tool("docs_tables").PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_says(name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run: python tools/docs_tables.py"


@pytest.mark.parametrize("name", PAGES)
def test_no_cell_is_empty(name):
    rows = [line for line in (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert not [row for row in rows if any(not cell.strip() for cell in row.strip("|").split(" | "))]


def test_every_command_is_on_the_page_of_outputs():
    outputs = tool("docs_outputs")
    text = outputs.PAGE.read_text(encoding="utf-8")
    typed = [line.removeprefix("$ t2ialign ") for line in text.splitlines() if line.startswith("$ t2ialign ")]
    assert typed == outputs.COMMANDS, "run: python tools/docs_outputs.py"
    shown = {command.split()[0] for command in typed}
    assert outputs.summaries().keys() == shown | outputs.NOT_RUN.keys()
    assert all(f"## {name}\n" in text for name in shown)
    assert "/tmp/" not in text
