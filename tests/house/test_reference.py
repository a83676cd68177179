"""The generated reference of the spec: every kind with every option, in the words of a spec."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel, Field

import t2ialign
from t2ialign.plugins import registry

HOOKS = Path(__file__).parents[2] / "tools" / "docs_hooks.py"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", HOOKS)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(hooks: ModuleType) -> str:
    return hooks.spec_reference()


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| ").split(" | ")]


class Inner(t2ialign.Config):
    bits: int = Field(8, ge=2, le=8, description="bits of a weight")


class Options(t2ialign.Config):
    """One option of every form."""

    switch: bool = Field(True, description="on or off")
    ratio: float = Field(description="a share", gt=0, lt=1)
    table: Inner | None = Field(None, description="a table that may be left out")
    tables: list[Inner] = Field([], description="any number of tables")
    always: Inner = Field(default_factory=Inner, description="a table with defaults")


def test_a_row_says_type_range_default_and_meaning(hooks):
    rows = {cells(row)[0]: cells(row) for row in hooks.options(Options)[2:]}
    assert rows["`switch`"] == ["`switch`", "`true or false`", "`true`", "on or off"]
    assert rows["`ratio`"] == ["`ratio`", "`number > 0, < 1`", "**required**", "a share"]


def test_the_options_of_nested_tables_are_listed_whether_or_not_the_table_is_optional(hooks):
    rows = {cells(row)[0]: cells(row) for row in hooks.options(Options)[2:]}
    assert rows["`table`"][2] == "unset"
    for key in ("`table.bits`", "`tables[].bits`", "`always.bits`"):
        assert rows[key][1:] == ["`integer ≥ 2, ≤ 8`", "`8`", "bits of a weight"]


def keys(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_every_installed_kind_is_there_with_every_option(page):
    for parts in registry().parts.values():
        for kind, declared in parts.items():
            section = page.split(f"### `{kind}`\n")[1].split("\n## ")[0].split("\n### ")[0]
            listed = {
                cells(row)[0].strip("`").split(".")[0].split("[]")[0] for row in section.splitlines() if "|" in row
            }
            assert keys(declared.config) <= listed, kind


def test_defaults_are_written_as_a_spec_writes_them(page):
    def value(text: str) -> Any:
        return tomllib.loads(f"x = {text}")["x"]

    defaults = {cells(row)[2] for row in page.splitlines() if row.startswith("| `")}
    for default in defaults - {"unset", "**required**"}:
        value(default.strip("`"))


def test_the_page_is_made_without_torch():
    code = (
        f"import sys; sys.path.insert(0, {str(HOOKS.parent)!r}); import docs_hooks; docs_hooks.spec_reference();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
