"""What a noise search refuses before anything is loaded, and what it plans."""

from __future__ import annotations

import pytest

from t2ialign.errors import SpecError
from t2ialign.spec import parse as specs


def refusal(path) -> str:
    with pytest.raises(SpecError) as caught:
        specs.load(path)
    return str(caught.value)


def test_a_reward_without_gradients(reno_spec):
    message = refusal(reno_spec(reward=[{"kind": "toy-darkness"}]))
    assert "needs a reward that is 'differentiable'" in message
    assert "A reward that fits: toy-redness." in message
    assert "An optimizer that fits this reward: image-select" in message


def test_a_backend_made_for_many_steps(reno_spec):
    message = refusal(reno_spec(backend={"kind": "toy-diffusion"}))
    assert "needs a backend that is 'one-step'" in message
    assert "A backend that fits: toy-model." in message
    assert "An optimizer that fits this backend: image-select" in message


def test_an_autoregressive_backend(reno_spec):
    path = reno_spec(backend={"kind": "toy-tokens"})
    path.write_text(path.read_text().replace('[sampler]\nkind = "toy-differentiable"\n', ""))
    message = refusal(path)
    assert "needs a backend that is 'differentiable', 'one-step'" in message
    assert "A backend that fits: toy-model." in message
    specs.load(path, ["optimizer={kind='image-select'}"])


def test_a_sampler_without_gradients(reno_spec):
    message = refusal(reno_spec(sampler={"kind": "toy-step"}))
    assert "A sampler that fits: toy-differentiable, toy-steps." in message


def test_only_held_out_rewards_may_lack_gradients(reno_spec):
    specs.load(reno_spec(reward=[{"kind": "toy-redness"}, {"kind": "toy-darkness", "weight": 0.0}]))


def test_a_normalisation_that_compares_images(reno_spec):
    message = refusal(reno_spec(reward=[{"kind": "toy-redness", "normalise": "zscore"}]))
    assert "normalise = 'zscore' of reward 'toy-redness' compares images; use 'none' or 'range'" in message


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "toy-once"}, "no sampler of this kind is installed"),
        ({"kind": "toy-step", "steps": 3}, "second_sampler"),
        ({"steps": 3}, "second_sampler"),
    ],
)
def test_a_second_sampler_that_does_not_exist(reno_spec, table, words):
    assert words in refusal(reno_spec(optimizer={"second_sampler": table}))


def test_a_second_sampler_that_does_not_fit_the_backend(reno_spec):
    path = reno_spec(backend={"kind": "toy-tokens"})
    path.write_text(path.read_text().replace('[sampler]\nkind = "toy-differentiable"\n', ""))
    with pytest.raises(SpecError, match="needs a backend that is 'denoiser'"):
        specs.load(path, ["optimizer={kind='image-select', second_sampler={kind='toy-twice'}}"])


@pytest.mark.parametrize(
    ("optimizer", "prompts", "steps", "at_a_time", "searches"),
    [
        ({}, {"per_step": 2}, 18, 2, 5),
        ({}, {"per_step": 8}, 6, 5, 5),
        ({"restarts": 3}, {"per_step": 1}, 30, 3, 15),
        ({"restarts": 3}, {"per_step": 4, "images_per_prompt": 2}, 12, 24, 30),
    ],
)
def test_the_plan_counts_iterations_of_all_searches(reno_spec, optimizer, prompts, steps, at_a_time, searches):
    spec = specs.load(reno_spec(optimizer=optimizer, prompts=prompts))
    plan = spec.optimizer_config.plan(spec)
    assert (plan.steps, plan.images_per_step) == (steps, at_a_time)
    assert plan.notes["searches"] == f"{searches} of 6 iterations, {at_a_time} at a time"
