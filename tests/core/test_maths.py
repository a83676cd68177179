"""Seeds, the reward mix and the evaluation's statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from misfits import Broken

from t2ialign import seeding
from t2ialign.config import RewardMixConfig
from t2ialign.errors import RewardError
from t2ialign.problem.mix import MixedReward, RewardMix, normalise
from t2ialign.tensors.batching import split, with_oom_retry
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.testing import toy


def test_noise_of_an_image_is_that_of_a_plain_generator_whatever_the_batch():
    batch = seeding.normal([5, 6, 7], (2, 3))
    alone = torch.randn((2, 3), generator=torch.Generator().manual_seed(6))
    assert torch.equal(batch[1], alone)
    assert torch.equal(seeding.normal([6], (2, 3))[0], alone)


def test_derived_seeds_do_not_collide_across_word_boundaries():
    seeds = {seeding.derive(0, "a", 1), seeding.derive(0, "a1"), seeding.derive(0, "a", "1"), seeding.derive(1, "a", 1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(st.integers(0, 2**40), st.integers(1, 30), st.integers(1, 70))
def test_choice_is_distinct_while_it_can_be(seed, total, count):
    chosen = seeding.choose(seed, total, count)
    assert len(chosen) == count
    assert len(set(chosen)) == min(total, count)
    assert chosen == seeding.choose(seed, total, count)


@given(st.integers(0, 50), st.integers(1, 9))
def test_split_covers_everything_once(total, size):
    rows = [i for chunk in split(total, size) for i in range(total)[chunk]]
    assert rows == list(range(total))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no room"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_halves_the_micro_batch(error):
    tried = []

    def run(size):
        tried.append(size)
        if size > 3:
            raise error
        return "done"

    assert with_oom_retry(run, 13) == ("done", 3)
    assert tried == [13, 6, 3]


def mix(*parts, **options):
    return RewardMix(
        [MixedReward(name, reward, RewardMixConfig(**settings)) for name, reward, settings in parts], **options
    )


RED, DARK = toy.Redness(toy.Redness.Config()), toy.Darkness(toy.Darkness.Config())


def test_weights_and_held_out_rewards():
    rewards = mix(("dark", DARK, {"weight": 0.0}), ("red", RED, {"weight": 2.0}))
    images = torch.rand(5, 3, 4, 4)
    raw = rewards.score(images, ["p"] * 5)
    assert set(raw) == {"red", "dark"}
    assert rewards.names == ["red", "dark"]
    assert torch.equal(rewards.combine(raw), 2 * raw["red"])
    assert set(rewards.score(images, ["p"] * 5, optimised_only=True)) == {"red"}


def test_scores_do_not_depend_on_the_micro_batch():
    images, rewards = torch.rand(7, 3, 4, 4), mix(("red", RED, {}))
    whole = rewards.score(images, ["p"] * 7)["red"]
    assert torch.allclose(rewards.score(images, ["p"] * 7, micro_batch=2)["red"], whole)


def test_a_nan_score_names_reward_prompt_and_image():
    rewards = mix(("broken", Broken(Broken.Config()), {}))
    images = torch.rand(2, 3, 4, 4)
    with pytest.raises(RewardError, match="'broken' is nan for prompt 'blue'") as caught:
        rewards.score(images, ["red", "blue"])
    assert torch.equal(caught.value.image, images[1])


def test_nan_samples_can_be_dropped_instead():
    rewards = mix(("broken", Broken(Broken.Config()), {}), drop_nonfinite=True)
    raw = rewards.score(torch.rand(2, 3, 4, 4), ["red", "blue"])
    assert rewards.combine(raw).isnan().tolist() == [False, True]


def test_range_zscore_and_rank():
    scores = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert torch.allclose(
        normalise(scores, RewardMixConfig(normalise="range", range=[1.0, 3.0])),
        torch.tensor([[0.0, 1.0], [0.5, 0.5]]),
    )
    z = normalise(scores, RewardMixConfig(normalise="zscore"))
    assert abs(z.mean().item()) < 1e-6
    assert z.square().mean().item() == pytest.approx(1, rel=1e-4)
    assert normalise(scores, RewardMixConfig(normalise="rank")).tolist() == [[-0.5, 0.5], [0.0, 0.0]]


def test_zscore_per_prompt_centres_every_prompt():
    scores = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    z = normalise(scores, RewardMixConfig(normalise="zscore-prompt"), torch.tensor([0, 1]))
    assert torch.allclose(z, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), atol=1e-4)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.sampled_from(["none", "zscore", "rank"]))
def test_normalisation_never_turns_an_order_around(values, kind):
    scores = torch.tensor(values)
    result = normalise(scores, RewardMixConfig(normalise=kind))
    order = scores.argsort()
    assert bool((result[order].diff() >= -1e-5).all())


def test_conditioning_rows():
    rows = Conditioning(("a", "b", "c"), {"e": torch.arange(3.0)[:, None]})
    assert rows[[2, 0, 2]].prompts == ("c", "a", "c")
    assert rows[1:].tensors["e"].tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="3 rows for 2 prompts"):
        Conditioning(("a", "b"), {"e": torch.zeros(3)})
