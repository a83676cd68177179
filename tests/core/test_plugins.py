"""Discovery: a broken plugin is listed and hurts nobody."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import t2ialign
from t2ialign import plugins
from t2ialign.errors import UsageError
from t2ialign.testing import entry_point, toy


def plugin(**hooks):
    return SimpleNamespace(**{name: t2ialign.hookimpl(function) for name, function in hooks.items()})


def rewards(kind):
    def t2ialign_rewards(register):
        register(kind, toy.Redness)

    return plugin(t2ialign_rewards=t2ialign_rewards)


def test_a_plugin_that_fails_to_import_is_listed_with_its_error():
    found = plugins.load([entry_point("bad", ImportError("no module x"), "bad-dist"), entry_point("toy", toy)])
    assert {s.name: s.error for s in found.plugins} == {"bad": "ImportError: no module x", "toy": ""}
    assert "toy-redness" in found.parts["reward"]
    with pytest.raises(UsageError, match="failed to load: bad"):
        found.find("reward", "nothing-like-it")


def test_two_plugins_with_one_kind_are_named():
    found = plugins.load([entry_point("a", rewards("x"), "dist-a"), entry_point("b", rewards("x"), "dist-b")])
    with pytest.raises(UsageError, match="dist-a and dist-b"):
        found.find("reward", "x")


def test_a_misspelt_hook_is_reported():
    def t2ialign_reward(register):
        register("x", toy.Redness)

    found = plugins.load([entry_point("typo", plugin(t2ialign_reward=t2ialign_reward))])
    assert "unknown hook 't2ialign_reward', did you mean 't2ialign_rewards'?" in found.plugins[0].error


def test_a_plugin_that_fails_half_way_registers_nothing():
    def t2ialign_rewards(register):
        register("good", toy.Redness)
        register("bad", "no-colon")

    found = plugins.load([entry_point("half", plugin(t2ialign_rewards=t2ialign_rewards))])
    assert "must be a class or 'package.module:Class'" in found.plugins[0].error
    assert not found.parts["reward"]


def test_a_class_needs_nothing_but_itself():
    declared = plugins.declare("reward", "red", toy.Redness)
    assert declared.summary == "Mean red minus the mean of green and blue, in [-1, 1]."
    assert declared.provides == {"differentiable"}
    assert declared.config is toy.Redness.Config


def test_a_lazy_target_is_imported_only_on_load():
    target = "t2ialign.testing.toy:Redness"
    declared = plugins.declare("reward", "x", target, config=t2ialign.Config, summary="lazy")
    assert declared.load() is toy.Redness
    with pytest.raises(TypeError, match="needs config= and summary="):
        plugins.declare("reward", "x", "json:JSONDecoder")
