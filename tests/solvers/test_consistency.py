"""One-step and multistep consistency sampling on a model that knows the answer."""

from __future__ import annotations

import pytest
import torch

from t2ialign import Denoiser, Prediction, seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath, TrigFlowPath
from t2ialign_solvers.config import ConsistencyConfig, OneStepConfig
from t2ialign_solvers.consistency import Consistency
from t2ialign_solvers.one_step import OneStep

SHAPE = (2, 3, 3)


class Halving(Denoiser):
    """Predicts x0 = x_t / 2, and remembers when it was asked."""

    def __init__(self, path):
        super().__init__(path, Conditioning(("a", "b"), {}))
        self.asked = []

    def predict(self, x, t):
        self.asked.append(t[0].item())
        x0 = x / 2
        column = t.view(-1, 1, 1, 1)
        return Prediction(x0, (x - self.path.alpha(column) * x0) / self.path.sigma(column))

    def rows(self, index):
        raise NotImplementedError


@pytest.mark.parametrize("path", [TrigFlowPath(), FlowPath()])
def test_one_step_is_the_prediction_at_the_start(path):
    noise = seeding.normal([0, 1], SHAPE)
    denoiser = Halving(path)
    assert torch.allclose(OneStep(OneStepConfig()).sample(denoiser, noise), noise / 2)
    assert denoiser.asked == [pytest.approx(path.t_start)]
    assert denoiser.evaluations == 1


def test_multistep_adds_each_images_own_noise():
    noise = seeding.normal([0, 1], SHAPE)
    denoiser = Halving(FlowPath())
    result = Consistency(ConsistencyConfig(steps=2)).sample(denoiser, noise, [7, 8])
    fresh = seeding.normal([seeding.derive(seed, "sampler", 0) for seed in (7, 8)], SHAPE)
    assert torch.allclose(result, (0.5 * noise / 2 + 0.5 * fresh) / 2)
    assert denoiser.asked == [1.0, 0.5]
    assert denoiser.evaluations == 2


def test_multistep_without_seeds_is_refused():
    with pytest.raises(ValueError, match="one seed per image"):
        Consistency(ConsistencyConfig(steps=2)).sample(Halving(FlowPath()), seeding.normal([0, 1], SHAPE))


def test_capabilities_follow_the_number_of_steps():
    assert ConsistencyConfig(steps=1).provides() == {"one-step"}
    assert ConsistencyConfig(steps=4).provides() == {"multi-step", "stochastic"}
    assert ConsistencyConfig(steps=4).requires() == {"backend": {"multi-step"}}
    assert ConsistencyConfig(steps=4).evaluations() == 4
