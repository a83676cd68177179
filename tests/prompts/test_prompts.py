"""A prompt is a text everywhere and keeps what its file knew."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import t2ialign
from t2ialign import Prompt
from t2ialign.errors import SpecError, UsageError
from t2ialign.evaluation.evaluate import items_of
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec import parse as specs
from t2ialign.spec.prompts import read
from t2ialign.testing import installed, toy
from t2ialign.testing.world import run_spec, write_spec

CASES = Path(__file__).parents[1] / "golden" / "cases"


def test_a_prompt_is_a_text_with_data():
    prompt = Prompt("a red circle", {"tag": "colors"})
    assert prompt == "a red circle"
    assert {prompt: 1}["a red circle"] == 1
    assert type(prompt.upper()) is str
    for again in (copy.copy(prompt), copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert (again, again.data) == ("a red circle", {"tag": "colors"})


@pytest.mark.parametrize("name", ["bom.txt", "bom.tsv", "bom.jsonl"])
def test_a_byte_order_mark_is_no_text(name):
    assert not any("\ufeff" in prompt for prompt in read(CASES / "03-bom" / name))


def test_a_commented_first_line_behind_a_mark_is_a_comment():
    assert not any("#" in prompt for prompt in read(CASES / "03-bom" / "bom_comment.txt"))


def test_only_real_line_ends_end_a_line():
    assert len(read(CASES / "04-unicode-line-breaks" / "p.txt")) == 2
    assert len(read(CASES / "04-unicode-line-breaks" / "p.jsonl")) == 1


def test_tables_are_read_and_unknown_kinds_are_not():
    first = read(CASES / "02-prompt-csv" / "drawbench.csv")[0]
    assert first == "a red circle, and more"
    assert first.data == {"Category": "Colors"}
    assert read(CASES / "02-prompt-csv" / "PARTI.TSV")
    assert read(CASES / "02-prompt-csv" / "list.json")
    with pytest.raises(UsageError, match=r"unknown kind '\.yaml'; \.txt, \.jsonl"):
        read(CASES / "02-prompt-csv" / "list.yaml")


def test_a_folder_has_a_file_for_each_split(tmp_path, toy_registry):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.txt").write_text("red\ngreen\n")
    (data / "test_metadata.jsonl").write_text('{"prompt": "blue", "tag": "x"}\n')
    tables = {"prompts": {"file": "data", "per_step": 2}, "evaluation": {"prompts": "data"}}
    spec = specs.load(write_spec(tmp_path, **tables))
    assert spec.training_prompts() == ["red", "green"]
    assert spec.evaluation_prompts()[0].data == {"tag": "x"}
    run = runner.start(specs.load(tmp_path / "spec.toml"), Display(quiet=True))
    assert run.spec().evaluation_prompts()[0].data == {"tag": "x"}
    line = json.loads((run.path / "evaluation" / "scores.jsonl").read_text().splitlines()[0])
    assert line["data"] == {"tag": "x"}


class Tagged(t2ialign.Reward):
    """1 where the prompt's tag is 'yes'."""

    class Config(t2ialign.Config):
        def reads(self):
            return {"tag"}

    def score(self, images, prompts):
        return torch.tensor([float(prompt.data["tag"] == "yes") for prompt in prompts]) + images.mean((1, 2, 3)) * 0.01


class Plugin:
    @staticmethod
    @t2ialign.hookimpl
    def t2ialign_rewards(register):
        register("tagged", Tagged)


def test_a_reward_reads_the_data_of_each_line_also_where_texts_are_equal(tmp_path):
    rows = [{"prompt": "red", "tag": "yes"}, {"prompt": "red", "tag": "no"}, {"prompt": "blue", "tag": "yes"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "prompts": {"file": "p.jsonl", "per_step": 3},
        "reward": [{"kind": "tagged"}, {"kind": "toy-darkness", "weight": 0.0}],
    }
    run = run_spec(tmp_path, Plugin, **tables)
    lines = [json.loads(line) for line in (run.path / "evaluation" / "scores.jsonl").read_text().splitlines()]
    assert [round(line["base"]["tagged"]) for line in lines] == [1, 0, 1]
    assert len({line["seed"] for line in lines}) == 3


def test_prompts_without_what_a_reward_reads_are_refused(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "red", "tag": "yes"}\n{"prompt": "blue"}\n')
    path = write_spec(tmp_path, prompts={"file": "p.jsonl"}, reward=[{"kind": "tagged"}])
    with installed(Plugin), pytest.raises(SpecError, match=r"reads 'tag', which prompt 1 .*blue.* does not have"):
        specs.load(path)


def test_a_column_may_be_named(tmp_path, toy_registry):
    (tmp_path / "p.csv").write_text("title,words\n1,red\n2,blue\n")
    spec = specs.load(write_spec(tmp_path, prompts={"file": "p.csv", "column": "words"}))
    assert spec.training_prompts() == ["red", "blue"]
    with pytest.raises(SpecError, match="no column with prompts"):
        specs.load(write_spec(tmp_path, prompts={"file": "p.csv"}))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), st.integers(1, 3))
def test_every_image_has_a_seed_of_its_own(prompts, count):
    wanted = items_of(prompts, count, 0)
    pairs = list(zip(wanted.prompts, wanted.seeds, strict=True))
    assert len(set(pairs)) == len(pairs)
    distinct = list(dict.fromkeys(prompts))
    once = items_of(distinct, count, 0)
    assert set(zip(once.prompts, once.seeds, strict=True)) <= set(pairs)


@pytest.mark.parametrize("stem", ["my spec (1)", "a,b", 'quo"te', "cafe\u0301", "图片", "..."])
def test_a_run_of_a_spec_of_any_name_resumes(tmp_path, toy_registry, stem):
    source = write_spec(tmp_path)
    path = source.rename(tmp_path / f"{stem}.toml")
    run = runner.start(specs.load(path), Display(quiet=True))
    assert run.spec().name == run.path.name
    runner.resume(run.path, Display(quiet=True))


def test_a_spec_with_a_mark_is_read(tmp_path, toy_registry):
    path = write_spec(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert specs.load(path).optimizer.kind == "toy-search"


def test_toy_rewards_take_plain_texts():
    assert toy.Redness(toy.Redness.Config()).score(torch.zeros(1, 3, 4, 4), ["x"]).shape == (1,)
