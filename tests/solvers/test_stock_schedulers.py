"""Our solvers against the schedulers of diffusers, on a model with a known denoiser and on the checkpoint's grid."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch

from t2ialign import Denoiser, Prediction, UsageError, seeding
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath, TrigFlowPath, VPPath
from t2ialign_diffusers.scheduler import flow_path, vp_path
from t2ialign_solvers import schedules
from t2ialign_solvers.config import DdimConfig, DiffusersConfig, OdeConfig, TwoStageConfig
from t2ialign_solvers.ddim import Ddim
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M, Ipndm
from t2ialign_solvers.scheduler import DiffusersScheduler
from t2ialign_solvers.single_step import Dpm2, Euler, Heun

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
SHAPE = (4, 2, 2)


class TwoModes(Denoiser):
    """x0 is -1 or 1 plus Gaussian noise of width 0.3, in every coordinate."""

    def __init__(self, path, rows=2):
        super().__init__(path, Conditioning(("?",) * rows, {}))

    def rows(self, index):
        return TwoModes(self.path, len(index))

    def predict(self, x, t):
        column = t.view(-1, 1, 1, 1)
        alpha, sigma = self.path.alpha(column), self.path.sigma(column)
        variance = (0.3 * alpha) ** 2 + sigma**2
        mode = torch.tanh(alpha * x / variance)
        x0 = mode + alpha * 0.09 / variance * (x - alpha * mode)
        return Prediction(x0, (x - alpha * x0) / sigma)


def flow(**options):
    return flow_path(diffusers.FlowMatchEulerDiscreteScheduler(**options), own_grid=True)


def stock(path, name, steps, **options):
    config = DiffusersConfig(scheduler=name, steps=steps, options=options)
    return DiffusersScheduler(config).sample(TwoModes(path), seeding.normal([0, 1], SHAPE), [3, 4])


def ours(path, sampler):
    return sampler.sample(TwoModes(path), seeding.normal([0, 1], SHAPE), [3, 4])


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [1, 4, 10])
@pytest.mark.parametrize(
    ("scheduler", "make"),
    [
        ("DDIMScheduler", lambda n: Ddim(DdimConfig(steps=n))),
        ("EulerDiscreteScheduler", lambda n: Euler(OdeConfig(steps=n))),
        ("EulerDiscreteScheduler", lambda n: Ddim(DdimConfig(steps=n))),
        ("HeunDiscreteScheduler", lambda n: Heun(TwoStageConfig(steps=n))),
        ("DPMSolverMultistepScheduler", lambda n: DpmSolverPlusPlus2M(OdeConfig(steps=n))),
    ],
)
def test_vp(scheduler, make, steps, spacing):
    options = SD | {"timestep_spacing": spacing}
    if scheduler == "DDIMScheduler":
        if spacing == "linspace" and steps > 1:
            pytest.skip("diffusers' DDIM steps between other times than it evaluates")
        options |= {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}
    path = vp_path(getattr(diffusers, scheduler)(**options))
    expected = stock(path, scheduler, steps)
    assert (ours(path, make(steps)) - expected).abs().max() < 2e-4 * expected.abs().max()


@pytest.mark.parametrize("end", [True, False])
def test_ddim_ends_where_the_checkpoint_says(end):
    path = vp_path(diffusers.DDIMScheduler(**SD, clip_sample=False, set_alpha_to_one=end))
    assert path.times(5)[-1] == (-1 if end else 0)
    assert (ours(path, Ddim(DdimConfig(steps=5))) - stock(path, "DDIMScheduler", 5)).abs().max() < 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow(shift):
    path = flow(shift=shift)
    expected = stock(path, "FlowMatchEulerDiscreteScheduler", 6)
    assert (ours(path, Euler(OdeConfig(steps=6))) - expected).abs().max() < 1e-5
    assert (ours(path, Ddim(DdimConfig(steps=6))) - expected).abs().max() < 1e-5


def test_flow_dpm_solver(monkeypatch):
    class Continuous(diffusers.DPMSolverMultistepScheduler):
        """Without the truncation of flow times to whole timesteps, which shifts the network's time by up to 1/1000."""

        def set_timesteps(self, *args, **options):
            super().set_timesteps(*args, **options)
            self.timesteps = self.sigmas[:-1] * 1000

    monkeypatch.setattr(diffusers, "DPMSolverMultistepScheduler", Continuous)
    scheduler = Continuous(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    path = flow_path(scheduler, own_grid=True)
    expected = stock(path, "DPMSolverMultistepScheduler", 6)
    assert (ours(path, DpmSolverPlusPlus2M(OdeConfig(steps=6))) - expected).abs().max() < 1e-5


def test_ddim_noise_has_the_posterior_variance():
    """eta = 1 gives DDPM's step: beta_t (1 - abar_s) / (1 - abar_t) is its variance."""
    scheduler = diffusers.DDPMScheduler(**SD, clip_sample=False)
    path = vp_path(scheduler)
    t, s = torch.tensor(500.0), torch.tensor(499.0)
    x0, eps = torch.ones(1, *SHAPE), torch.full((1, *SHAPE), 0.5)
    x = path.alpha(t) * x0 + path.sigma(t) * eps
    mean, std = Ddim(DdimConfig(eta=1.0)).transition(path, x, Prediction(x0, eps), t, s)
    assert torch.isclose(std**2, scheduler._get_variance(500, 499), rtol=1e-4)
    expected, _ = scheduler.step(eps, 500, x, generator=torch.Generator().manual_seed(0), return_dict=False)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert (mean + std * noise - expected).abs().max() < 1e-5


@pytest.mark.parametrize("path", [VPPath(vp_path(diffusers.DDIMScheduler(**SD)).alpha(torch.arange(1000.0)) ** 2)])
def test_stochastic_images_do_not_depend_on_the_batch(path):
    noise, seeds = seeding.normal([0, 1], SHAPE), [3, 4]
    for sampler in (
        Ddim(DdimConfig(steps=4, eta=0.7)),
        DiffusersScheduler(DiffusersConfig(scheduler="EulerAncestralDiscreteScheduler", steps=4)),
    ):
        path.scheduler_config = SD
        whole = sampler.sample(TwoModes(path), noise, seeds)
        alone = [sampler.sample(TwoModes(path, 1), noise[[i]], seeds[i : i + 1]) for i in (1, 0)]
        assert torch.allclose(whole, torch.cat(alone[::-1]), atol=1e-6)
        again = sampler.sample(TwoModes(path), noise, [5, 6])
        assert not torch.allclose(whole, again)


PATHS = {"vp": vp_path(diffusers.EulerDiscreteScheduler(**SD)), "flow": FlowPath(shift=3.0), "trigflow": TrigFlowPath()}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize(
    ("make", "order"),
    [
        (lambda c: Euler(OdeConfig(**c)), 1),
        (lambda c: Heun(TwoStageConfig(**c)), 2),
        (lambda c: Dpm2(Dpm2.Config(**c)), 2),
        (lambda c: DpmSolverPlusPlus2M(OdeConfig(**c)), 2),
        (lambda c: Ipndm(Ipndm.Config(**c, order=2)), 2),
    ],
    ids=["euler", "heun", "dpm2", "dpmpp-2m", "ipndm"],
)
def test_order(path, make, order):
    """Doubling the steps divides the error by 2^order: on a grid between positive ends, in float64."""

    class Exact(TwoModes):
        def __call__(self, x, t):
            return self.predict(x, t.expand(len(x)))

    noise = seeding.normal([0, 1], SHAPE).double()
    start, end = torch.tensor([0.9, 0.01] if path is not PATHS["vp"] else [14.0, 0.05], dtype=torch.float64)
    even = isinstance(make({}), Ipndm)  # its coefficients are those of an even grid; others keep their order on any
    rho = 1.0 if even else 3.0

    def solve(sampler, steps):
        sampler.knots = lambda path: schedules.polynomial(steps + 1, start, end, rho)
        return sampler.sample(Exact(path), noise)

    reference = solve(Heun(TwoStageConfig()), 640)
    errors = [(solve(make({}), steps) - reference).norm() for steps in (40, 80)]
    assert order - 0.35 < math.log2(errors[0] / errors[1]) < order + 0.6


def test_unknown_scheduler_and_options_are_clear_errors():
    path = PATHS["vp"]
    with pytest.raises(ValueError, match="did you mean 'UniPCMultistepScheduler'"):
        stock(path, "UniPCMultiStepScheduler", 4)
    with pytest.raises(UsageError, match="DPMSolverMultistepScheduler"):
        stock(path, "DPMSolverMultistepScheduler", 4, algorithm_type="nonsense")
    with pytest.raises(UsageError, match="needs a backend"):
        stock(TrigFlowPath(), "DDIMScheduler", 4)


def test_evaluations_are_counted():
    path = PATHS["vp"]
    for sampler in (
        Euler(OdeConfig(steps=5)),
        Heun(TwoStageConfig(steps=5)),
        Dpm2(Dpm2.Config(steps=5, schedule="logsnr")),
        Euler(OdeConfig(steps=5, schedule="logsnr", to_zero=False, afs=True)),
        Ddim(DdimConfig(steps=5)),
        DpmSolverPlusPlus2M(OdeConfig(steps=5)),
    ):
        denoiser = TwoModes(path)
        sampler.sample(denoiser, seeding.normal([0, 1], SHAPE))
        assert denoiser.evaluations == sampler.config.evaluations()
