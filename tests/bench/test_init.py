"""The first command of a newcomer: what ``init`` writes validates at once, or it says what is in the way."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from t2ialign import plugins
from t2ialign.cli import app
from t2ialign.cli.first import completion
from t2ialign.cli.starting import json_schema
from t2ialign.errors import UsageError
from t2ialign.spec import parse as specs

RUNNER = CliRunner()


def init(folder, *arguments: str, **options):
    return RUNNER.invoke(app, ["init", "--out", str(folder / "spec.toml"), *arguments], **options)


WORK = [
    ("sana-sprint", "eggroll", "geneval"),  # reads what the prompt's file knows
    ("sana-sprint", "eggroll", "ocr"),  # looks for words in quotation marks
    ("sana-sprint", "eggroll", "shapes-geneval"),
    ("sd15", "dav", "clipscore"),  # a stochastic sampler for a model that is no rectified flow
    ("sd15", "ppo-epd", "clipscore"),  # several images of a prompt
    ("sd-turbo", "reno", "clipscore"),
    ("var", "eggroll", "clipscore"),  # a model that samples itself
]
REFUSED = [("var", "reno", "clipscore"), ("sana-sprint", "eggroll", "clip-diversity"), ("sana-sprint", "reno", "ocr")]


@pytest.mark.parametrize("kinds", WORK, ids="-".join)
def test_what_can_work_validates_at_once(kinds, tmp_path, monkeypatch):
    monkeypatch.setattr("t2ialign.cli.first.init.json_schema", lambda parts: {})
    backend, optimizer, reward = kinds
    done = init(tmp_path, "--backend", backend, "--optimizer", optimizer, "--reward", reward)
    assert done.exit_code == 0, done.exception
    spec = specs.load(tmp_path / "spec.toml")  # as it is: nothing else is to be done
    assert (spec.backend.kind, spec.optimizer.kind, spec.rewards[0].kind) == kinds
    assert len(spec.training_prompts()) >= 4


@pytest.mark.parametrize("kinds", REFUSED, ids="-".join)
def test_what_cannot_work_is_refused_with_the_reason_and_leaves_nothing(kinds, tmp_path):
    backend, optimizer, reward = kinds
    done = init(tmp_path, "--backend", backend, "--optimizer", optimizer, "--reward", reward)
    assert isinstance(done.exception, UsageError)
    assert "nothing was written, since no spec of these validates\n  " in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_what_it_writes_has_a_schema_line_and_prompts_to_start_from(tmp_path):
    done = init(tmp_path, "--backend", "sana-sprint", "--optimizer", "eggroll", "--reward", "shapes-geneval")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "spec.toml").read_text()
    assert text.startswith("#:schema ./t2ialign.schema.json\n")
    schema = json.loads((tmp_path / "t2ialign.schema.json").read_text())
    assert "oneOf" not in json.dumps(schema["properties"]["backend"]["allOf"][0]["if"])
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert all({"prompt", "include"} <= line.keys() for line in lines)
    again = init(tmp_path, "--backend", "sana-sprint", "--optimizer", "eggroll", "--reward", "clipscore")
    assert "exists" in str(again.exception)


def test_it_asks_for_what_is_not_given_and_lists_the_kinds(tmp_path):
    done = init(tmp_path, "--optimizer", "reno", input="sd-trubo\nsd-turbo\nclipscore\n")
    assert done.exit_code == 0, done.output
    assert "no backend 'sd-trubo'" in done.output
    assert "Which model?" in done.output
    assert specs.load(tmp_path / "spec.toml").optimizer.kind == "reno"
    silent = init(tmp_path, input="")
    assert silent.exit_code != 0


def test_nobody_answers_and_several_kinds_are_wrong(tmp_path):
    done = init(tmp_path, "--backend", "sana-sprint", "--reward", "clipscore", input="")
    assert "init needs --optimizer where nobody answers; kinds: " in str(done.exception)
    done = init(tmp_path, "--backend", "sana-sprnit", "--optimizer", "egroll", "--reward", "clipscore")
    assert "sana-sprnit" in str(done.exception)
    assert "egroll" in str(done.exception)


def test_what_a_kind_lacks_is_named_and_can_be_given(tmp_path):
    words = ("--backend", "sana-sprint", "--optimizer", "eggroll", "--reward", "remote")
    done = init(tmp_path, *words)
    assert "reward[0].url" in str(done.exception)
    assert "--set" in str(done.exception)
    done = init(tmp_path, *words, "--set", "reward.0.url=http://127.0.0.1:8000", "--set", "run.steps=7")
    assert done.exit_code == 0, done.exception
    assert specs.load(tmp_path / "spec.toml").run.steps == 7


def test_the_schema_tells_one_mistake_and_not_that_of_every_kind(toy_registry):
    schema = json_schema(toy_registry)
    for role in ("backend", "sampler", "optimizer"):
        part = schema["properties"][role]
        assert "oneOf" not in part
        assert {one["if"]["properties"]["kind"]["const"] for one in part["allOf"]} == set(
            part["properties"]["kind"]["enum"]
        )


def test_shells_complete_kinds_keys_and_run_folders(tmp_path, monkeypatch, toy_spec):
    assert ("toy-model", plugins.registry().parts["backend"]["toy-model"].summary) in completion.of("backend")("toy-m")
    assert completion.keys("optimizer.sc") == ["optimizer.scale="]
    assert "run.steps=" in completion.keys("run.st")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "spec.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "runs/first" in completion.runs("")
    assert completion.runs("runs/f") == ["runs/first"]
