"""What a plugin author's mistakes show: at registration by the package's name, later by part and step."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from pydantic import Field

import t2ialign
from t2ialign import plugins
from t2ialign.errors import PartError, RewardError, UsageError
from t2ialign.spec import parse as specs
from t2ialign.testing import toy
from t2ialign.testing.world import entry_point, installed, run_spec, write_spec


def registering(role, *arguments, **options):
    """A plugin whose one hook registers one part."""

    def hook(register):
        register(*arguments, **options)

    hook.__name__ = f"t2ialign_{role}s"
    return SimpleNamespace(**{hook.__name__: t2ialign.hookimpl(hook)}, __name__="mine")


def error_of(plugin) -> str:
    found = plugins.load([entry_point("mine", plugin, "mine-dist"), entry_point("toy", toy)])
    assert "toy-redness" in found.parts["reward"], "one plugin's mistake hurts nobody else"
    return found.plugins[0].error


class Options(t2ialign.Config):
    level: int = 1


class Heavy(t2ialign.Config):
    kernel: tuple[int, int] = (1, 1)
    mode: Literal["a", "b"] = "c"


def options(**fields):
    annotations = {name: type(value) for name, value in fields.items()}
    return type("Made", (t2ialign.Config,), {**fields, "__annotations__": annotations, "__module__": "mine"})


class NoScore(t2ialign.Reward):
    """Misspelt."""

    def scores(self, images, prompts):
        return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        (registering("reward", 3, toy.Redness), "kind 3 must be a word"),
        (registering("reward", "", toy.Redness), "kind '' must be a word"),
        (registering("reward", "a.b", toy.Redness), "kind 'a.b' must be a word"),
        (registering("reward", "Bad Kind", toy.Redness), "must be a word of lower-case letters"),
        (registering("reward", "mine", toy.Redness, config=options(weight=1.0)), "the option name 'weight' is taken"),
        (registering("reward", "mine", toy.Redness, config=options(kind="x")), "the option name 'kind' is taken"),
        (registering("reward", "mine", toy.Redness, config=options(provides=1)), "the option name 'provides' is taken"),
        (registering("reward", "mine", toy.ToyStep), "'ToyStep' is a sampler, registered as reward"),
        (registering("reward", "mine", dict), "'dict' must subclass t2ialign.Reward"),
        (registering("reward", "mine", NoScore), "'NoScore' lacks the method score"),
        (registering("reward", "mine", "nonsense", config=Options, summary=""), "must be a class or 'package.module:"),
        (registering("reward", "mine", 7), "not int"),
        (registering("optimizer", "mine", toy.RandomSearch, config=Options), "must subclass t2ialign.OptimizerConfig"),
        (registering("sampler", "mine", toy.ToyStep, config=Options), "must subclass t2ialign.SamplerConfig"),
        (registering("backend", "mine", toy.ToyBackend, config=Options), "must subclass t2ialign.BackendConfig"),
        (registering("reward", "mine", toy.Redness, requires={"backends": {"lora"}}), "requires names 'backends'"),
        (registering("reward", "mine", toy.Redness, requires={"lora"}), "requires must be like"),
        (registering("reward", "mine", toy.Redness, provides="word"), "provides must be a set of words, not 'word'"),
        (registering("reward", "mine", toy.Redness, config=Heavy), "the default 'c' of its option 'mode' is not valid"),
        (SimpleNamespace(__name__="mine"), "registered nothing"),
        (SimpleNamespace(t2ialign_rewards=lambda register: None), "'t2ialign_rewards' lacks @t2ialign.hookimpl"),
        (SimpleNamespace(t2ialign_rewards=t2ialign.hookimpl(lambda adder: None)), "is called register"),
        (toy.Redness, "the entry point names the class Redness"),
        (SystemExit(3), "exited at import (SystemExit: 3)"),
    ],
)
def test_a_mistake_is_told_at_registration(plugin, says):
    assert says in error_of(plugin)


def test_a_malformed_entry_point_is_quoted():
    point = entry_point("mine", toy)
    point.value = "my package:"
    (status,) = plugins.load([point]).plugins
    assert "my package:" in status.error
    assert "malformed" in status.error


def test_what_a_plugin_prints_at_import_goes_to_stderr(capsys):
    point = entry_point("mine", toy)
    load = point.load
    point.load = lambda: print("hello from afar") or load()
    assert not plugins.load([point]).plugins[0].error
    said = capsys.readouterr()
    assert said.out == ""
    assert "plugin mine: hello from afar" in said.err


def test_two_plugins_of_one_kind_get_no_hint(tmp_path):
    twins = [entry_point(name, registering("reward", "mine", toy.Redness), f"{name}-dist") for name in ("one", "two")]
    found = plugins.load([*twins, entry_point("toy", toy)])
    tree = {"reward": [{"kind": "mine"}]}
    with pytest.raises(t2ialign.SpecError) as caught:
        specs.parse(tree, "spec.toml", tmp_path, found)
    assert "one-dist and two-dist; uninstall one of them" in str(caught.value)
    assert "Did you mean 'mine'" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("t2ialign.nowhere:Thing", "there is no module 't2ialign.nowhere'"),
        ("t2ialign.testing.toy:Nothing", "the module has no 'Nothing'"),
    ],
)
def test_a_wrong_lazy_target_is_told_before_anything_loads(tmp_path, target, says):
    plugin = registering("reward", "mine", target, config=Options, summary="lazy")
    with installed(plugin), pytest.raises(t2ialign.SpecError, match=says):
        specs.load(write_spec(tmp_path, reward=[{"kind": "mine"}]))


def test_a_lazy_target_of_another_role_is_told_by_name(tmp_path):
    plugin = registering("reward", "mine", "t2ialign.testing.toy:ToyStep", config=Options, summary="lazy")
    with pytest.raises(PartError, match=r"reward 'mine' .*'ToyStep' is a sampler, registered as reward"):
        run_spec(tmp_path, plugin, reward=[{"kind": "mine"}])


def test_lists_fit_tuples():
    class Config(t2ialign.Config):
        kernel: tuple[int, int] = (1, 1)
        sizes: tuple[int, ...] | None = None
        names: list[str] = Field(default_factory=list)

    made = Config.model_validate({"kernel": [2, 3], "sizes": [1], "names": ["a"]})
    assert (made.kernel, made.sizes, made.names) == ((2, 3), (1,), ["a"])


def test_a_lora_optimizer_requires_a_lora_by_itself():
    class Plain(toy.RandomSearch):
        class Config(t2ialign.OptimizerConfig):
            scale: float = 0.1

    found = plugins.load([entry_point("mine", registering("optimizer", "mine", Plain))])
    assert found.parts["optimizer"]["mine"].requires == {"backend": {"lora"}}


def reward_with(score, differentiable=False):
    return registering(
        "reward", "bad", type("Bad", (t2ialign.Reward,), {"score": score, "differentiable": differentiable})
    )


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda self, images, prompts: [0.0] * len(images), "reward 'bad' (mine 1.0) returned list; must be a tensor"),
        (lambda self, images, prompts: images.mean((1, 2, 3)).numpy(), "returned ndarray"),
        (lambda self, images, prompts: None, "returned NoneType"),
        (lambda self, images, prompts: images.mean(), "gave shape () for"),
    ],
)
def test_a_wrong_score_is_told_by_the_rewards_name(tmp_path, score, says):
    with pytest.raises(RewardError) as caught:
        run_spec(tmp_path, reward_with(score), reward=[{"kind": "bad"}])
    assert says in str(caught.value)


@pytest.mark.parametrize(("again", "says"), [([0.0, 0.0], "returned list"), (None, "returned NoneType")])
def test_a_wrong_score_the_second_time_is_told_by_the_rewards_name(again, says):
    from t2ialign.config import RewardMixConfig
    from t2ialign.problem.mix import MixedReward, RewardMix

    class Second(toy.Redness):
        def score_again(self, images, prompts):
            return again

    mix = RewardMix([MixedReward("mine", Second(Second.Config()), RewardMixConfig())])
    with pytest.raises(RewardError, match=says):
        mix.unrepeatable(torch.rand(2, 3, 4, 4), ["a", "b"])


def test_a_reward_that_detaches_is_told_by_name():
    from t2ialign.config import RewardMixConfig
    from t2ialign.problem.mix import MixedReward, RewardMix

    class Detached(toy.Redness):
        def score(self, images, prompts):
            return super().score(images.detach(), prompts)

    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    mix = RewardMix([MixedReward("mine", Detached(Detached.Config()), RewardMixConfig())])
    with pytest.raises(RewardError, match="promises gradients, but its score has none"):
        mix.score(images, ["a", "b"])


def test_an_exception_in_a_reward_names_part_package_and_step(tmp_path):
    def score(self, images, prompts):
        if len(images) > 8:  # grids are smaller
            raise ValueError("no such word")
        return images.mean((1, 2, 3))

    with pytest.raises(PartError) as caught:
        run_spec(tmp_path, reward_with(score), reward=[{"kind": "bad"}])
    lines = str(caught.value).splitlines()
    assert lines[0] == "reward 'bad' (mine 1.0) failed at step 1: ValueError: no such word"
    (run,) = (tmp_path / "runs").iterdir()
    assert "no such word" in (run / "traceback.txt").read_text()
    assert str(run) in lines[1]


def search_with(**methods):
    return registering("optimizer", "mine", type("Mine", (toy.RandomSearch,), methods))


def failing(tmp_path, plugin, **tables):
    with pytest.raises(t2ialign.T2IAlignError) as caught:
        run_spec(tmp_path, plugin, **tables)
    return str(caught.value)


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (lambda self, index: {"metrics": 1}, "step(0) returned dict; must return StepResult"),
        (lambda self, index: None, "step(0) returned NoneType; must return StepResult"),
        (lambda self, index: t2ialign.StepResult({"x": "fast"}), "metric 'x' of step 1 is 'fast'; must be one number"),
        (lambda self, index: t2ialign.StepResult({"x": torch.ones(2)}), "metric 'x' of step 1 is a tensor of shape"),
        (lambda self, index: 1 / 0, "optimizer 'mine' (mine 1.0) failed at step 1: ZeroDivisionError"),
    ],
)
def test_a_wrong_step_is_told_by_the_optimizers_name(tmp_path, step, says):
    assert says in failing(tmp_path, search_with(step=step), optimizer={"kind": "mine"})


def test_metrics_may_be_tensors_of_one_number_and_need_not_be_finite(tmp_path, caplog):
    result = t2ialign.StepResult({"x": torch.tensor(2.0), "y": float("inf")})
    said = failing(tmp_path, search_with(step=lambda self, index: result), optimizer={"kind": "mine"})
    assert "no step changed it" in said
    (run,) = (tmp_path / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["x"], line["y"]) for line in lines] == [(2.0, None)] * 4
    assert sum("metric 'y' of step 1 is inf" in message for message in caplog.messages) == 1
    assert any("the last 3 steps changed nothing" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (lambda self: {}, "state() returned dict; must return State"),
        (lambda self: t2ialign.State({}, {"n": {1: (2, 3)}}), "JSON changes state().values['n']"),
        (lambda self: t2ialign.State({}, {"n": object()}), "state().values['n'] is no JSON"),
        (lambda self: t2ialign.State({"t": [1.0]}), "state().tensors['t'] is list, no tensor"),
    ],
)
def test_a_state_that_no_checkpoint_gives_back_is_refused_before_the_first_step(tmp_path, state, says):
    assert says in failing(tmp_path, search_with(state=state), optimizer={"kind": "mine"})
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "metrics.jsonl").read_text() == ""


def test_a_lora_that_becomes_nan_stops_at_its_step(tmp_path):
    def step(self, index):
        if index == 1:
            with torch.no_grad():
                next(iter(self.problem.adapter.parameters().values())).fill_(torch.nan)
        return t2ialign.StepResult({})

    said = failing(tmp_path, search_with(step=step), optimizer={"kind": "mine"})
    assert "no longer finite after step 2" in said


def backend_with(decode):
    backend = type("Model", (toy.ToyBackend,), {"decode": decode})
    provides = {"diffusion", "denoiser", "lora", "differentiable", "one-step"}
    return registering("backend", "model", backend, provides=provides)


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (lambda self, latents: latents.mean((1, 2, 3)), "images of shape (5,); must be floats (5, 3, 4, 4)"),
        (lambda self, latents: (latents.sigmoid() * 255).byte(), "returned torch.uint8 images"),
        (lambda self, latents: latents, "returned pixels from"),
        (lambda self, latents: latents * torch.nan, "images that are not finite"),
    ],
)
def test_wrong_images_are_told_by_the_backends_name(tmp_path, decode, says):
    table = {"kind": "model", "checkpoint": "some/model", "dtype": "float32", "lora": {"rank": 2}}
    said = failing(tmp_path, backend_with(decode), backend=table)
    assert "backend 'model' (mine 1.0)" in said
    assert says in said


def test_a_sampler_that_drops_rows_is_told_by_name(tmp_path):
    def sample(self, denoiser, noise, seeds=None):
        return noise[:1]

    plugin = registering("sampler", "mine", type("Mine", (toy.ToyStep,), {"sample": sample}), provides={"one-step"})
    said = failing(tmp_path, plugin, sampler={"kind": "mine"})
    assert "sampler 'mine' (mine 1.0) returned (1, 3, 4, 4), must be latents of shape (5, 3, 4, 4)" in said


def test_a_score_that_depends_on_its_batch_is_told(tmp_path, caplog):
    def score(self, images, prompts):
        return images.mean((1, 2, 3)) - images.mean()

    run_spec(tmp_path, reward_with(score), reward=[{"kind": "bad"}])
    assert any("must not depend on its batch" in message for message in caplog.messages)


def test_an_unknown_part_of_no_plugin_is_still_a_usage_error():
    found = plugins.load([entry_point("toy", toy)])
    with pytest.raises(UsageError, match="no reward of this kind is installed"):
        found.find("reward", "mine")


def test_importing_torch_in_an_entry_point_is_told(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    point = entry_point("mine", toy)

    def load():
        sys.modules["torch"] = torch
        return toy

    point.load = load
    assert plugins.load([point]).plugins[0].imports_torch


def test_asking_for_the_registry_while_it_is_made_is_told_and_hurts_nobody(monkeypatch):
    class Asking:
        @t2ialign.hookimpl
        def t2ialign_rewards(self, register):
            plugins.registry()

    points = [entry_point("asking", Asking()), entry_point("toy", toy)]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points)
    plugins.registry.cache_clear()
    try:
        found = plugins.registry()
        errors = {status.name: status.error for status in found.plugins}
        assert "asks for the registry while plugins are being registered" in errors["asking"]
        assert not errors["toy"]
        assert plugins.registry() is found
    finally:
        plugins.registry.cache_clear()
