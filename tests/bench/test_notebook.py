"""The example notebook: its cells run, it holds what they gave, and it is what its script writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOOK = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))


def code() -> list[dict]:
    return [cell for cell in BOOK["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_what_its_script_writes_with_outputs_and_no_path_of_a_machine():
    spec = importlib.util.spec_from_file_location("make_notebook", ROOT / "tools" / "make_notebook.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert ["".join(cell["source"]) for cell in BOOK["cells"]] == script.CELLS
    assert all(cell["outputs"] for cell in code())
    text = json.dumps(BOOK)
    assert len(text) < 300_000
    assert not any(word in text for word in ("/tmp", "/home/", "/root/", "/opt/", "Traceback"))


@pytest.mark.slow
def test_its_cells_run(monkeypatch):
    monkeypatch.chdir(ROOT / "examples")
    names: dict = {}
    for cell in code():
        exec(compile("".join(cell["source"]), "cell", "exec"), names)
    assert names["run"].lora.is_file()
    assert names["longer"].metrics[-1]["step"] == 3
