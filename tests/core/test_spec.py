"""A spec is right, or everything that is wrong with it is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from t2ialign.cli import starting
from t2ialign.errors import SpecError, UsageError
from t2ialign.spec import parse as specs
from t2ialign.spec import text as spec_text


def problems(path: Path, *overrides: str) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        specs.load(path, overrides)
    return {problem.key: str(problem) for problem in caught.value.problems}


def test_defaults_are_filled_in(toy_spec):
    spec = specs.load(toy_spec())
    assert spec.name == "spec"
    assert spec.rewards[0].mix.weight == 1.0
    assert spec.backend_config.lora.scaling == 1.0


def test_everything_wrong_is_reported_in_one_go(toy_spec):
    path = toy_spec(
        run={"steps": "ten", "sede": 1, "micro_batch": 0},
        backend={"kind": "toy-modle", "checkpoint": "some/model"},
        optimizer={"kind": "toy-search", "scale": -1.0},
        reward=[{"kind": "toy-redness", "gian": 2.0, "normalise": "zscor"}],
        prompts={"file": "promts.txt"},
        evaluaton={},
    )
    found = problems(path)
    assert found["run.steps"] == 'run.steps = "ten": must be an integer.'
    assert "Did you mean 'seed'?" in found["run.sede"]
    assert "must be >= 1" in found["run.micro_batch"]
    assert "Did you mean 'toy-model'?" in found["backend.kind"]
    assert "must be > 0" in found["optimizer.scale"]
    assert "Did you mean 'gain'?" in found["reward[0].gian"]
    assert "Did you mean 'zscore'?" in found["reward[0].normalise"]
    assert "did you mean 'prompts.txt'?" in found["prompts.file"]
    assert "Did you mean 'evaluation'?" in found["evaluaton"]


def test_an_impossible_pair_names_both_sides_and_what_fits(toy_spec):
    found = problems(toy_spec(backend={"kind": "toy-tokens", "checkpoint": "some/model"}, sampler=None))
    assert "needs a backend that is 'lora'" in found["optimizer.kind"]
    assert "'toy-tokens' is 'autoregressive'" in found["optimizer.kind"]
    assert "A backend that fits: toy-flow, toy-model." in found["optimizer.kind"]


def test_only_weighted_rewards_must_be_differentiable(toy_spec):
    wanted = {"optimizer": {"kind": "toy-gradient"}}
    held_out = [{"kind": "toy-redness"}, {"kind": "toy-darkness", "weight": 0.0}]
    assert "reward" not in problems(toy_spec(**wanted, reward=held_out))["optimizer.kind"]
    keys = [str(p) for p in _all(toy_spec(**wanted, reward=[{"kind": "toy-darkness"}]))]
    assert any("needs a reward that is 'differentiable'" in text and "toy-redness" in text for text in keys)


def _all(path: Path):
    with pytest.raises(SpecError) as caught:
        specs.load(path)
    return caught.value.problems


@pytest.mark.parametrize(
    ("tables", "key", "words"),
    [
        ({"reward": []}, "reward", "at least one"),
        ({"reward": [{"kind": "toy-redness", "weight": 0.0}]}, "reward", "every weight is 0"),
        ({"reward": [{"kind": "toy-redness"}] * 2}, "reward[1].name", "another reward has this name"),
        ({"reward": [{"kind": "toy-redness", "range": [2.0, 1.0]}]}, "reward[0].range", "low < high"),
        ({"optimizer": None}, "optimizer", "toy-search"),
        ({"optimizer": {}}, "optimizer.kind", "must be one of"),
        ({"sampler": None}, "sampler", "missing table"),
        ({"prompts": {}}, "prompts.file", "missing key: prompt file"),
        ({"backend": {"kind": "toy-model", "checkpoint": "no such folder"}}, "backend.checkpoint", "owner/name"),
        ({"backend": {"kind": "toy-model", "checkpoint": "pkg:absent/x"}}, "backend.checkpoint", "not installed"),
        ({"backend": {"kind": "toy-model", "checkpoint": "a/b", "lora": {"rank": 0}}}, "backend.lora.rank", ">= 1"),
        ({"run": 3}, "run", "must be a table"),
    ],
)
def test_single_faults(toy_spec, tables, key, words):
    assert words in problems(toy_spec(**tables))[key]


def test_wrong_options_of_a_backend_with_its_own_sampler_do_not_ask_for_one(toy_spec):
    found = problems(toy_spec(backend={"kind": "toy-tokens", "checkpoint": "a/b", "bogus": 1}, sampler=None))
    assert "backend.bogus" in found
    assert "sampler" not in found
    denoiser = problems(toy_spec(backend={"kind": "toy-model", "checkpoint": "a/b", "bogus": 1}, sampler=None))
    assert {"backend.bogus", "sampler"} <= denoiser.keys()


def test_a_reward_that_compares_images_is_a_diagnostic_and_needs_some(toy_spec):
    wanted = [{"kind": "toy-redness"}, {"kind": "toy-variety"}]
    said = [str(problem) for problem in _all(toy_spec(reward=wanted))]
    assert any("toy-variety" in text and "weight = 0" in text for text in said)
    assert any("toy-variety" in text and "images_per_prompt" in text for text in said)
    wanted[1]["weight"] = 0.0
    specs.load(toy_spec(reward=wanted, evaluation={"images_per_prompt": 2}))


def test_overrides_reach_tables_and_list_items(toy_spec):
    spec = specs.load(
        toy_spec(), ["run.steps=7", "reward[0].gain=2.5", "reward.0.name=red", "evaluation.seed=3", "run.name=a.b"]
    )
    assert (spec.run.steps, spec.rewards[0].config.gain, spec.rewards[0].name) == (7, 2.5, "red")
    assert (spec.evaluation.seed, spec.run.name) == (3, "a.b")


@pytest.mark.parametrize("override", ["run.steps", "=3", "run.steps.more=1", "reward[5].gain=1"])
def test_impossible_overrides(toy_spec, override):
    with pytest.raises(UsageError, match="--set"):
        specs.load(toy_spec(), [override])


def test_overrides_are_validated_like_the_file(toy_spec):
    assert "must be an integer" in problems(toy_spec(), "run.steps=1.5")["run.steps"]


def test_not_toml_and_no_file(tmp_path):
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(UsageError, match="not valid TOML"):
        specs.load(tmp_path / "bad.toml")
    with pytest.raises(UsageError, match="absent"):
        specs.load(tmp_path / "absent.toml")


def test_the_resolved_spec_is_a_fixed_point(toy_spec, tmp_path):
    spec = specs.load(toy_spec())
    tree = spec_text.to_tree(spec)
    again = tmp_path / "again.toml"
    again.write_text(spec_text.to_toml(tree, "resolved"))
    assert spec_text.to_tree(specs.load(again)) == tree


def test_schema_accepts_the_resolved_spec_and_refuses_a_typo(toy_spec, toy_registry):
    jsonschema = pytest.importorskip("jsonschema")
    schema = starting.json_schema(toy_registry)
    tree = spec_text.to_tree(specs.load(toy_spec()))
    jsonschema.validate(tree, schema)
    tree["optimizer"]["sclae"] = 1.0
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, schema)


def test_template_is_a_valid_spec_once_its_file_exists(toy_registry, tmp_path):
    text = starting.template(
        *(toy_registry.find(role, kind) for role, kind in [
            ("backend", "toy-model"), ("sampler", "toy-step"), ("optimizer", "toy-search"), ("reward", "toy-redness"),
        ])
    )  # fmt: skip
    (tmp_path / "prompts.txt").write_text("red\n")
    path = tmp_path / "new.toml"
    path.write_text(text.replace("checkpoint = ...", 'checkpoint = "some/model"'))
    assert specs.load(path).optimizer.kind == "toy-search"
    assert "# multiplies the score" in text
