"""The search against closed forms, and its invariances."""

import pytest
import torch

import t2ialign
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath
from t2ialign_dav import e_step
from t2ialign_dav.model import Draws, Model


class OneStep(t2ialign.StepSampler):
    """A single transition N(m, 0.5^2) to the data."""

    std = 0.5

    def times(self, path):
        return torch.tensor([1.0, 0.0])

    def transition(self, path, x, prediction, t, s):
        return prediction.x0, torch.tensor(self.std)


class Constant(t2ialign.Denoiser):
    """x0 = x, whatever the prompt."""

    def predict(self, x, t):
        return t2ialign.Prediction(x, x)

    def rows(self, index):
        return Constant(self.path, self.conditioning[index])


SLOPE = torch.tensor([1.0, -0.5, 0.25]).view(3, 1, 1)


def linear_model(count, shift=0.0):
    denoiser = Constant(FlowPath(), Conditioning(("p",) * count, {"e": torch.zeros(count, 1)}))
    return Model(denoiser, lambda x: x, lambda x, prompts: (x * SLOPE).sum((1, 2, 3)) + shift, 4096)


@pytest.mark.parametrize("guided", [True, False])
def test_a_linear_reward_shifts_the_gaussian_by_its_gradient(guided):
    """p(x) exp(c x gamma / alpha) with p = N(m, s^2) is N(m + s^2 c gamma / alpha, s^2), guided or not."""
    count, alpha, gamma = 512, 0.8, 0.9
    posterior = e_step.Posterior(alpha, gamma, guided, None, "sum")
    draws = Draws(range(count), (3, 1, 1))
    found = e_step.search(linear_model(count), OneStep(None), draws, posterior, particles=256)
    expected = found.latents[:, 0] + OneStep.std**2 * SLOPE * gamma / alpha
    error = found.latents[:, 1] - expected
    standard_error = OneStep.std / count**0.5
    assert error.mean(0).abs().max() < 4 * standard_error
    assert error.std(0).flatten().tolist() == pytest.approx([OneStep.std] * 3, rel=0.1)
    # the weighted mean of the particles is the same target with less noise
    residual = found.targets[:, 0] - expected
    assert residual.mean(0).abs().max() < 2 * standard_error
    assert residual.std() < 0.3 * OneStep.std


def test_guided_particles_alone_miss_the_target_when_nothing_corrects_them():
    count, posterior = 512, e_step.Posterior(0.8, 0.9, True, None, "off")
    found = e_step.search(linear_model(count), OneStep(None), Draws(range(count), (3, 1, 1)), posterior, particles=256)
    exact = found.latents[:, 0] + OneStep.std**2 * SLOPE * 0.9 / 0.8
    assert (found.latents[:, 1] - exact).mean(0)[0] > 0.15  # the shift counts twice


def test_a_shift_is_never_longer_than_the_cap():
    posterior = e_step.Posterior(1e-3, 0.9, True, 0.25, "mean")
    found = e_step.search(linear_model(8), OneStep(None), Draws(range(8), (3, 1, 1)), posterior, particles=4)
    assert found.diagnostics["shift"].tolist() == pytest.approx([0.25] * 8)


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_the_sign_of_the_reward_does_not_matter(shift):
    posterior = e_step.Posterior(0.1, 0.9, False, None, "mean")
    found = [
        e_step.search(linear_model(16, shift=s), OneStep(None), Draws(range(16), (3, 1, 1)), posterior, particles=4)
        for s in (0.0, shift)
    ]
    assert torch.equal(found[0].latents, found[1].latents)


@pytest.mark.parametrize("initial", [1, 4])
def test_batched_search_equals_one_trajectory_at_a_time(tiny, initial):
    posterior = e_step.Posterior(0.005, 0.9, True, 0.5, "mean")
    seeds, sampler = [11, 5, 8], tiny.sampler(10)

    def search(seeds, micro_batch):
        draws = Draws(seeds, (4, 8, 8))
        model = tiny.model(tiny.denoiser(10, len(seeds)), micro_batch=micro_batch)
        return e_step.search(model, sampler, draws, posterior, 4, initial)

    together = search(seeds, 64)
    for micro_batch in (64, 1):
        alone = [search([seed], micro_batch) for seed in seeds]
        for name in ("latents", "targets", "images"):
            joined = torch.cat([getattr(found, name) for found in alone])
            torch.testing.assert_close(joined, getattr(together, name), rtol=1e-4, atol=1e-4)


def test_more_particles_find_better_images(tiny):
    rewards = []
    for particles in (1, 2, 8):
        posterior = e_step.Posterior(0.005, 0.9, False, None, "mean")
        model = tiny.model(tiny.denoiser(10, 32))
        found = e_step.search(model, tiny.sampler(10), Draws(range(32), (4, 8, 8)), posterior, particles)
        rewards.append(tiny.reward(found.images).mean().item())
    assert rewards[0] < rewards[1] < rewards[2]


def test_candidates_without_a_score_are_never_chosen():
    weights = e_step.importance_weights(torch.tensor([[torch.nan, 1.0], [torch.nan, torch.nan]]))
    assert weights.tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_choices_follow_the_probabilities():
    draws = Draws(range(4000), (1,))
    probabilities = torch.tensor([[0.0, 0.2, 0.5, 0.3, 0.0]]).expand(4000, -1)
    counts = torch.bincount(draws.choose(0, probabilities), minlength=5) / 4000
    assert counts.tolist() == pytest.approx([0.0, 0.2, 0.5, 0.3, 0.0], abs=0.03)
    assert counts[0] == counts[4] == 0
