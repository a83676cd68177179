"""Orders of convergence on a trained network: the error against a reference of 1000 steps."""

import math

import pytest
import torch

from t2ialign_sd.config import Sd15Config
from t2ialign_sd.unet import StableDiffusion
from t2ialign_solvers.config import OdeConfig, TwoStageConfig
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M
from t2ialign_solvers.single_step import Euler, Heun

PROMPTS = ["a red circle left of a blue square", "a yellow triangle"]
STEPS = (5, 10, 20)
"""More of them ask the network between the timesteps that it was trained on, where it is rough at the level of 1e-3."""


@pytest.fixture(scope="module")
def error():
    """Root mean squared error of a sampler's latents."""
    checkpoint = "pkg:t2ialign_shapes/checkpoints/sd"
    backend = StableDiffusion(Sd15Config(checkpoint=checkpoint, dtype="float32", guidance_scale=1.0))
    conditioning, seeds = backend.encode(PROMPTS), list(range(len(PROMPTS)))

    @torch.no_grad()
    def latents(solver, config, steps):
        # Even in log SNR down to the smallest noise: a grid that ends at zero ends with a step of Euler's.
        sampler = solver(config(steps=steps, schedule="logsnr", to_zero=False))
        return sampler.sample(backend.denoiser(conditioning), backend.noise(seeds), seeds)

    reference = latents(DpmSolverPlusPlus2M, OdeConfig, 1000)
    return lambda *arguments: (latents(*arguments) - reference).square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("solver", "config", "order"),
    [(Euler, OdeConfig, 1), (Heun, TwoStageConfig, 2), (DpmSolverPlusPlus2M, OdeConfig, 2)],
)
def test_the_error_falls_with_the_order_of_the_solver(error, solver, config, order):
    errors = [error(solver, config, steps) for steps in STEPS]
    observed = math.log(errors[0] / errors[-1]) / math.log(STEPS[-1] / STEPS[0])
    assert order - 0.3 < observed < order + 0.6, errors
    assert errors[0] > errors[1] > errors[2]
