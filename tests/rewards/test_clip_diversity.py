"""Diversity of the images of one prompt, on a tiny CLIP model."""

import pytest
import torch

from t2ialign_rewards.clip_diversity import ClipDiversity
from t2ialign_rewards.config import ClipDiversityConfig


@pytest.fixture
def diversity(clip_folder):
    return ClipDiversity(ClipDiversityConfig(model=str(clip_folder), micro_batch=3))


def test_the_mean_score_of_a_prompt_is_the_mean_pairwise_distance(diversity):
    images = torch.rand(7, 3, 32, 32)
    prompts = ["a", "b", "a", "b", "a", "b", "b"]
    scores = diversity.score(images, prompts)
    embeds = diversity.network.tower.image_embeds(images)
    for prompt in "ab":
        rows = [row for row, name in enumerate(prompts) if name == prompt]
        pairs = [1 - embeds[i] @ embeds[j] for i in rows for j in rows if i < j]
        assert scores[rows].mean() == pytest.approx(torch.stack(pairs).mean().item(), abs=1e-5)
    assert (scores > 0).all()


def test_equal_images_have_no_diversity_and_a_single_one_has_none_to_speak_of(diversity):
    image = torch.rand(1, 3, 32, 32)
    scores = diversity.score(image.expand(4, -1, -1, -1), ["a", "a", "a", "alone"])
    assert scores[:3].abs().max() < 1e-5
    assert scores[3].isnan()
