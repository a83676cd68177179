"""Specs that nobody should write: one clear error with file and key, exit code 2, no traceback, nothing made."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from t2ialign.cli import app
from t2ialign.errors import T2IAlignError, UsageError
from t2ialign.spec import parse as specs
from t2ialign.storage.run_directory import RunDir

LONGEST_MESSAGE = 4096


def refused(path, *overrides: str) -> str:
    done = CliRunner().invoke(app, ["validate", str(path), *(word for one in overrides for word in ("--set", one))])
    assert isinstance(done.exception, T2IAlignError), (done.exception, done.output)
    message = str(done.exception)
    assert done.exception.exit_code == 2
    assert len(message.encode()) < LONGEST_MESSAGE
    return message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('reward=[{kind="toy-redness",weight=nan}]', "reward[0].weight"),
        ('reward=[{kind="toy-redness",weight=inf}]', "reward[0].weight"),
        ("evaluation.drift_threshold=inf", "evaluation.drift_threshold"),
        ('run.name=".."', "run.name"),
        ('run.name="."', "run.name"),
        (f'run.name="{"a" * 300}"', "run.name"),
        (f'run.name="{"圆" * 90}"', "run.name"),
        (f"run.seed={'9' * 5000}", "run.seed"),
        ('run.out="~nosuchuser/x"', "there is no user 'nosuchuser'"),
        (f'run.out="{"a" * 300}"', "run.out"),
        ('run.out="prompts.txt/inside"', "run.out"),
        (f'prompts.file="{"a" * 400}.txt"', "prompts.file"),
        ('prompts.file="a\\u0000b.txt"', "prompts.file"),
        ('prompts.file="~nosuchuser/p.txt"', "prompts.file"),
        (f'backend.checkpoint="{"a/" * 4000}"', "backend.checkpoint"),
        ('backend.checkpoint="a\\u0000b"', "backend.checkpoint"),
        ("samples=[[[[[[1]]]]]]", "samples"),
        (f"samples={'[' * 3000}{']' * 3000}", "samples"),
    ],
)
def test_hostile_values_are_refused_by_key(toy_spec, tmp_path, monkeypatch, override, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(toy_spec(), override)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"[run]\nseed = " + b"9" * 5000,
        b"a = " + b"[" * 5000 + b"]" * 5000,
        b'[run]\nname = "\xed\xa0\x80"\n',
        b'[run]\nname = "\\uD800"\n',
        b'"" = 1\n[run]\n',
        b'[run]\nname = "' + b"x/" * 100_000 + b'"\n',
        b"\x00" * 100,
        b"",
    ],
    ids=["digits", "deep", "surrogate bytes", "surrogate", "empty key", "long", "zeros", "empty"],
)
def test_hostile_files_are_refused_by_name(toy_registry, tmp_path, content):
    path = tmp_path / "hostile.toml"
    path.write_bytes(content)
    assert "hostile.toml" in refused(path)


def test_a_device_that_is_not_here_is_told_before_anything_is_made(toy_spec, tmp_path, monkeypatch):
    monkeypatch.setattr("t2ialign.spec.machine._has_cuda", lambda: False)
    spec = toy_spec(run={"device": "cuda", "out": str(tmp_path / "runs")})
    assert 'run.device = "cuda": this machine has no CUDA' in refused(spec)
    with pytest.raises(UsageError, match="no CUDA"):
        RunDir.create(specs.load(spec))
    assert not (tmp_path / "runs").exists()


#: Values that found faults before, beside arbitrary ones.
VALUES = st.one_of(
    st.sampled_from(
        [float("nan"), float("inf"), -1, 0, 2**63, 10**30, "", " ", "~x/y", "..", "a" * 300, "[/red]", "\x1b[31m", "\0"]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.booleans(),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


@settings(
    max_examples=2000,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 10**6), value=VALUES, more=VALUES)
def test_mutated_specs_are_valid_or_refused_in_few_words(toy_spec, tmp_path, seed, value, more):
    """Any value at any place of a good spec, keys that do not exist included."""
    tree = json.loads(json.dumps(GOOD)) | {"run": {**GOOD["run"], "out": str(tmp_path / "runs")}}
    (tmp_path / "prompts.txt").write_text("red\ngreen\n", encoding="utf-8")
    chooser = random.Random(seed)
    for new in (value, more)[: chooser.randint(1, 2)]:
        _mutate(tree, chooser, new)
    message = "mutated.toml"
    try:
        spec = specs.parse(tree, "mutated.toml", tmp_path)
        spec.optimizer_config.plan(spec)
    except UsageError as error:
        message = str(error)
    assert "mutated.toml" in message
    assert len(message.encode("utf-8", "replace")) < LONGEST_MESSAGE


GOOD = {
    "run": {"steps": 4, "checkpoint_every": 2, "seed": 0, "name": "a", "device": "cpu", "micro_batch": 8},
    "backend": {"kind": "toy-model", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 2}},
    "sampler": {"kind": "toy-step"},
    "optimizer": {"kind": "toy-search"},
    "reward": [{"kind": "toy-redness", "weight": 1.0, "normalise": "none"}],
    "prompts": {"file": "prompts.txt", "per_step": 2, "images_per_prompt": 2},
    "evaluation": {"limit": 2, "every": 1},
    "samples": {"count": 2},
    "export": {"formats": ["diffusers"]},
}


def _mutate(tree, chooser, value) -> None:
    """Put a value in some table's place, below some key, or below a new one; or take a key away."""
    table = tree
    while True:
        keys = list(table) if isinstance(table, dict) else list(range(len(table)))
        if not keys:
            return
        key = chooser.choice(keys)
        inner = table[key]
        if isinstance(inner, dict | list) and inner and chooser.random() < 0.8:
            table = inner
            continue
        if isinstance(table, dict) and chooser.random() < 0.2:
            table[chooser.choice(["", "kind", "new", "name ", "\x1b"])] = value
        elif chooser.random() < 0.1:
            del table[key]
        else:
            table[key] = value
        return
