"""GenEval's own metadata on the shapes world: the reward reads it, and a run takes the file as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from worlds import WORLD

from t2ialign import Prompt, UsageError
from t2ialign.cli import app
from t2ialign.spec import checkpoints
from t2ialign.spec.prompts import read
from t2ialign_judges import rules
from t2ialign_shapes import captions
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.plugin import ShapesGenEvalConfig
from t2ialign_shapes.render import render
from t2ialign_shapes.rewards import ShapesGenEval

BENCHMARK = checkpoints.package_path("pkg:t2ialign_shapes/prompts/benchmark.jsonl")


@pytest.mark.parametrize("prompt", read(BENCHMARK))
def test_metadata_asks_for_what_the_text_says(prompt):
    said, asked = captions.parse(prompt), rules.read(prompt.data)
    clauses = {(clause.name, clause.color, clause.count) for clause in asked.include}
    assert clauses == {(thing.shape, thing.color, thing.count) for thing in said.things}
    assert [clause.relation for clause in asked.include if clause.relation] == [said.relation] * bool(said.relation)


@pytest.fixture(scope="module")
def pictures():
    """A picture that shows each prompt of the benchmark."""
    prompts = read(BENCHMARK)
    layout = sample_layout([captions.parse(prompt) for prompt in prompts], torch.Generator().manual_seed(0))
    return render(layout), prompts


@pytest.mark.parametrize("form", ["lenient", "strict", "graded"])
def test_pictures_of_their_prompts_are_right(pictures, form):
    images, prompts = pictures
    scores = ShapesGenEval(ShapesGenEvalConfig(form=form)).score(images, prompts)
    assert (scores == 1).float().mean() > 0.98  # the detector misses one in a hundred
    others = ShapesGenEval(ShapesGenEvalConfig(form=form)).score(images.roll(7, 0), prompts)
    assert others.mean() < scores.mean() / 2 + 0.1 * (form == "graded")


def test_reasons_are_told(pictures):
    images, prompts = pictures
    row = next(i for i, prompt in enumerate(prompts) if prompt.data["tag"] == "counting")
    reward = ShapesGenEval(ShapesGenEvalConfig())
    blank = torch.zeros_like(images[row : row + 1])
    (words,) = reward.explain(blank, prompts[row : row + 1])
    (clause,) = prompts[row].data["include"]
    assert words.startswith("expected ")
    assert words.endswith(f"{clause['class']}>={clause['count']}, found 0")
    assert reward.explain(images[row : row + 1], prompts[row : row + 1]) == ["all that was asked for"]


def test_words_of_another_world_are_named():
    config = ShapesGenEvalConfig()
    dog = Prompt("a dog", {"include": [{"class": "dog", "count": 1}]})
    assert "'dog' is none of circle, square, triangle" in config.problem_with(dog)
    with pytest.raises(UsageError, match="'dog' is none of circle, square, triangle"):
        ShapesGenEval(config).score(torch.zeros(1, 3, 32, 32), [dog])


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


@pytest.mark.parametrize(
    ("include", "words"),
    [
        ('[{"class": "dog", "count": 1}]', "'dog' is none of circle, square, triangle"),
        ('[{"class": "circle", "count": 0}]', "include[0].count is 0; must be an integer of at least 1"),
    ],
)
def test_metadata_that_cannot_be_judged_is_refused_before_the_run(tmp_path, include, words):
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "a thing", "include": {include}}}\n')
    text = WORLD.replace("OUT", str(tmp_path / "runs")).replace("shapes-graded", "shapes-geneval")
    (tmp_path / "spec.toml").write_text(text.replace("pkg:t2ialign_shapes/prompts/train.txt", "prompts.jsonl"))
    done = CliRunner().invoke(app, ["validate", str(tmp_path / "spec.toml")])
    assert words in str(done.exception)
