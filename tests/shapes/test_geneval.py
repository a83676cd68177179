"""GenEval's own metadata on the shapes world: the reward reads it, and a run takes the file as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner
from worlds import WORLD

from t2ialign.cli import app
from t2ialign.spec import checkpoints
from t2ialign.spec.prompts import read
from t2ialign_shapes import captions

BENCHMARK = checkpoints.package_path("pkg:t2ialign_shapes/prompts/benchmark.jsonl")


@pytest.mark.parametrize("prompt", read(BENCHMARK))
def test_metadata_asks_for_what_the_text_says(prompt):
    said = captions.parse(prompt)
    assert captions.from_include(prompt.data["include"]).things == said.things
    assert captions.from_include(prompt.data["include"]).relation == said.relation


def test_words_of_another_world_are_named():
    with pytest.raises(ValueError, match="'dog' is none of circle, square, triangle"):
        captions.from_include([{"class": "dog", "count": 1}])


@pytest.mark.slow
def test_a_metadata_file_runs_end_to_end(tmp_path):
    rows = [json.loads(line) for line in Path(BENCHMARK).read_text().splitlines()]
    rows = [{**row, "prompt": row["prompt"]} for row in rows if "background" not in row][:6]
    (tmp_path / "geneval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = WORLD.replace("OUT", str(tmp_path / "runs")).replace(
        "pkg:t2ialign_shapes/prompts/train.txt", "geneval.jsonl"
    )
    text = text.replace(
        'kind = "shapes-graded"', 'kind = "shapes-geneval"\n[[reward]]\nkind = "shapes-exact"\nweight = 0.0'
    )
    (tmp_path / "spec.toml").write_text(text)
    done = CliRunner().invoke(app, ["run", str(tmp_path / "spec.toml")])
    assert done.exit_code in (0, 1), done.output  # one step of a strict reward may teach nothing
    lines = (tmp_path / "runs" / "spec" / "evaluation" / "scores.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert line["data"]["include"]
        assert line["base"]["shapes-geneval"] == line["base"]["shapes-exact"]


def test_a_file_without_metadata_is_refused(tmp_path):
    text = WORLD.replace("OUT", str(tmp_path / "runs")).replace("shapes-graded", "shapes-geneval")
    (tmp_path / "spec.toml").write_text(text)
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "spec.toml")])
    assert done.exit_code != 0
    assert "reads 'include'" in str(done.exception)
