"""The recipe learns, resumes exactly, and couples noise to layouts that fit the caption."""

from dataclasses import replace

import pytest
import torch
from shapes_training import autoencoder, clip, reward, sprint
from shapes_training.data import couple, draw_captions, draw_noise
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.models import build_autoencoder

from t2ialign_shapes import detector, judge
from t2ialign_shapes.render import render

SHORT = Recipe(steps=20, batch=8, learning_rate=2e-3, warmup=5)


def mean_losses(stage):
    """Mean loss of the first and of the last five steps."""
    return sum(stage.history[:5]) / 5, sum(stage.history[-5:]) / 5


def autoencoder_stage(work):
    torch.manual_seed(0)
    model = build_autoencoder()

    def loss(step, generator):
        images = autoencoder.draw_images(draw_captions(SHORT.batch, generator), generator)
        return autoencoder.loss(model, images, generator)

    return Stage("autoencoder", work, model, loss)


def test_the_autoencoder_learns(tmp_path):
    stage = autoencoder_stage(tmp_path)
    train(stage, replace(SHORT, learning_rate=3e-3))
    first, last = mean_losses(stage)
    assert last < 0.9 * first


def test_the_generator_learns():
    torch.manual_seed(0)
    frozen = build_autoencoder().eval().requires_grad_(False)
    model = sprint.SanaSprint()
    generator = generator_for("test")
    prompts, noise, target, weight = sprint.draw_pairs(frozen, SHORT.batch, False, generator)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(20):
        loss = sprint.weighted_error(model(noise, prompts), target, weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_clip_learns(tmp_path):
    torch.manual_seed(0)
    model = clip.ShapesClip()
    stage = Stage("clip", tmp_path, model, lambda step, g: clip.loss(model, SHORT.batch, g))
    train(stage, SHORT)
    first, last = mean_losses(stage)
    assert last < first


def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    recipe = replace(SHORT, steps=9, batch=4, save_every=3, ema=0.9)
    whole = autoencoder_stage(tmp_path / "whole")
    train(whole, recipe)

    killed = autoencoder_stage(tmp_path / "killed")
    loss = killed.loss

    def killing(step, generator):
        if step == 5:
            raise KeyboardInterrupt
        return loss(step, generator)

    killed.loss = killing
    with pytest.raises(KeyboardInterrupt):
        train(killed, recipe)
    resumed = autoencoder_stage(tmp_path / "killed")
    train(resumed, recipe)
    assert len(resumed.history) == 6
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_coupled_pictures_show_their_captions():
    generator = generator_for("coupling")
    captions, noise = draw_captions(300, generator), draw_noise(300, generator)
    layout = couple(captions, noise)
    assert judge.satisfied(judge.expect(layout), judge.require(captions)).all()
    assert detector.check(render(layout), captions).float().mean() >= 0.98
    assert torch.equal(couple(captions, noise).centers, layout.centers)
    assert not torch.equal(couple(captions, -noise).centers, layout.centers)


def test_fading_hides_objects_from_the_detector():
    generator = generator_for("fading")
    captions, noise = draw_captions(300, generator), draw_noise(300, generator)
    layout = couple(captions, noise, fade=True)
    assert layout.contrast.min() >= 0.35
    assert layout.contrast.max() <= 0.95
    assert 0.3 <= detector.check(render(layout), captions).float().mean() <= 0.5


def test_area_under_curve_counts_ordered_pairs():
    right = torch.tensor([True, True, False, False])
    assert reward.area_under_curve(torch.tensor([4.0, 3.0, 2.0, 1.0]), right) == 1
    assert reward.area_under_curve(torch.tensor([1.0, 4.0, 2.0, 3.0]), right) == 0.5
    assert reward.area_under_curve(torch.ones(4), right) == 0.5
