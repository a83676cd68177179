"""The rewards judge prompts as text, and registering them loads no torch."""

import subprocess
import sys

import pytest
import torch

from t2ialign import UsageError
from t2ialign_shapes import captions, detector, plugin
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.plugin import ShapesRewardConfig
from t2ialign_shapes.render import render
from t2ialign_shapes.rewards import ShapesExact, ShapesGraded

PROMPTS = ["a red circle", "two cyan squares", "a triangle above a circle on a white background"]


@pytest.fixture(scope="module")
def images():
    wanted = [captions.parse(prompt) for prompt in PROMPTS]
    return render(sample_layout(wanted, torch.Generator().manual_seed(0)))


def test_right_pictures_earn_one_and_others_less(images):
    exact, graded = (reward(ShapesRewardConfig()) for reward in (ShapesExact, ShapesGraded))
    swapped = ["a red square", "three cyan squares", "a triangle below a circle"]
    assert exact.score(images, PROMPTS).tolist() == [1, 1, 1]
    assert exact.score(images, swapped).tolist() == [0, 0, 0]
    assert graded.score(images, PROMPTS).tolist() == [1, 1, 1]
    torch.testing.assert_close(graded.score(images, swapped), torch.tensor([0.5, 2 / 3, 0.6]))


def test_rewards_of_the_same_pictures_look_once_and_see_a_change(images, monkeypatch):
    looks = []
    detect = detector.detect
    monkeypatch.setattr(detector, "detect", lambda pictures: looks.append(1) or detect(pictures))
    exact, graded = (reward(ShapesRewardConfig()) for reward in (ShapesExact, ShapesGraded))
    pictures = images.clone()
    assert exact.score(pictures, PROMPTS).tolist() == graded.score(pictures, PROMPTS).tolist() == [1, 1, 1]
    assert len(looks) == 1
    pictures[0] = pictures[1]
    assert graded.score(pictures, PROMPTS)[0] < 1
    assert exact.score(pictures.flip(0), PROMPTS).tolist() == [0, 1, 0]
    assert len(looks) == 3


def test_a_prompt_or_picture_of_another_world_is_refused(images):
    reward = ShapesExact(ShapesRewardConfig())
    with pytest.raises(UsageError, match="not a caption of the shapes world: 'a photo of a cat'"):
        reward.score(images[:1], ["a photo of a cat"])
    with pytest.raises(UsageError, match="3x32x32, not 3x64x64"):
        reward.score(torch.rand(1, 3, 64, 64), ["a circle"])


def test_the_plugin_registers_its_rewards():
    registered = {}
    plugin.t2ialign_rewards(lambda kind, target, **rest: registered.update({kind: target}))
    assert registered == {
        "shapes-exact": "t2ialign_shapes.rewards:ShapesExact",
        "shapes-graded": "t2ialign_shapes.rewards:ShapesGraded",
        "shapes-geneval": "t2ialign_shapes.rewards:ShapesGenEval",
    }


def test_registering_loads_no_torch():
    code = "import t2ialign_shapes.plugin, sys; assert not {'torch', 'diffusers'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prompts_that_the_exact_judge_cannot_read_are_told_without_an_image():
    config = ShapesRewardConfig()
    assert config.problem_with("two red circles on a white background") == "" == config.problem_with("7")
    assert "no caption of the shapes world" in config.problem_with("a watercolour of my cat")
