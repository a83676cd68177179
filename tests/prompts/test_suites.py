"""Prompt files and pictures in the forms that suites, trainers and other programs write, case by case of a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from t2ialign.errors import UsageError
from t2ialign.spec.prompts import read
from t2ialign.storage.image_files import read_image
from t2ialign.storage.image_texts import NoPrompt, prompt_of

SUITES = Path(__file__).parents[1] / "golden" / "suites"
CASES = json.loads((SUITES / "manifest.json").read_text(encoding="utf-8"))["files"]


def found(case: dict) -> list[tuple[str, dict]] | str:
    path = SUITES / case["file"]
    try:
        if case["file"].startswith("png/"):
            prompts = [prompt_of(read_image(path)[1])]
        else:
            prompts = read(path, case.get("column"))
    except (UsageError, NoPrompt) as error:
        return str(error)
    return [(str(prompt), dict(prompt.data)) for prompt in prompts]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"])
def test_a_file_gives_its_prompts_and_their_data_or_says_why_not(case):
    result = found(case)
    if isinstance(result, str):
        assert "error" in case["accept"], result
        assert Path(case["file"]).name in result or case["file"].startswith("png/")
    else:
        assert "rows" in case["accept"]
        assert result == [(row["prompt"], row["data"]) for row in case["rows"]]


@pytest.mark.parametrize("name", ["bad_line.jsonl", "number_prompt.jsonl"])
def test_an_error_names_the_line(name):
    with pytest.raises(UsageError, match="line 2"):
        read(SUITES / "quirks" / name)
