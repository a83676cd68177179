"""Every solver and schedule against vectors of the published EPD code, in float64.

The model is a Gaussian mixture, whose denoiser is known in closed form.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from t2ialign import Denoiser, Prediction
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.paths import FlowPath, TrigFlowPath, VPPath
from t2ialign_solvers import schedules
from t2ialign_solvers.config import Dpm2Config, EpdConfig, IpndmConfig, OdeConfig, ScheduleConfig, TwoStageConfig
from t2ialign_solvers.epd import Epd
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M, Ipndm
from t2ialign_solvers.ode import Ode
from t2ialign_solvers.single_step import Dpm2, Euler, Heun
from t2ialign_solvers.starts import arithmetic_table
from t2ialign_solvers.table import SolverTable

FILE = Path(__file__).parents[1] / "golden/epd_solvers.safetensors"
GOLDEN = load_file(FILE)
with safe_open(FILE, "pt") as stream:
    CASES = json.loads(stream.metadata()["cases"])
SOLVED = [name for name in CASES if not name.startswith("schedule.")]
SHIFTS = {"sd3": (3.0, 3 * 0.001 / (1 + 2 * 0.001)), "flux": (torch.tensor(1.15).double().exp().item(), 0.001)}


class Mixture(Denoiser):
    """x0 ~ a mixture of isotropic Gaussians; guidance extrapolates from even mixture weights."""

    def __init__(self, path, logits, guidance=1.0):
        super().__init__(path, Conditioning(tuple("?" * len(logits)), {"logits": logits}))
        self.guidance = guidance

    def __call__(self, x, t):  # in float64, unlike sampling
        self.evaluations += 1
        return self.predict(x, torch.as_tensor(t, dtype=x.dtype).expand(len(x)))

    def rows(self, index):
        return Mixture(self.path, self.conditioning[index].tensors["logits"], self.guidance)

    def predict(self, x, t):
        column = t.view(-1, 1, 1, 1)
        alpha, sigma = self.path.alpha(column), self.path.sigma(column)
        logits = self.conditioning.tensors["logits"]
        x0 = self.mean(x, alpha, sigma, logits)
        if self.guidance != 1:
            x0 = (1 - self.guidance) * self.mean(x, alpha, sigma, torch.zeros_like(logits)) + self.guidance * x0
        return Prediction(x0, (x - alpha * x0) / sigma)

    def mean(self, x, alpha, sigma, logits):
        centres, spread = GOLDEN["gmm.mu"][None], GOLDEN["gmm.s"].view(1, -1, 1, 1, 1)
        x, alpha, sigma = x[:, None], alpha[:, None], sigma[:, None]
        variance = (alpha * spread) ** 2 + sigma**2
        distance = (x - alpha * centres).square().sum((2, 3, 4))
        flat = variance[:, :, 0, 0, 0]
        weights = torch.softmax(logits.log_softmax(1) - distance / (2 * flat) - 32 * flat.log(), 1)
        means = centres + alpha * spread**2 / variance * (x - alpha * centres)
        return (weights[:, :, None, None, None] * means).sum(1)


def path_of(case):
    if case["path"] == "flow":
        return FlowPath(*SHIFTS[case["flow"]])
    return VPPath(GOLDEN["sd.alphas_cumprod"])


def sampler_of(name, case):
    """The sampler of a case, on the case's stored schedule."""
    knots = GOLDEN[f"{name}.t"]
    options = {"afs": case.get("afs", False)}
    if case.get("denoise_to_zero"):
        knots = torch.cat([knots, torch.zeros(1, dtype=knots.dtype)])
    if case["solver"] == "dpm":  # DPM-Solver-2 on a finer grid
        parts = [schedules.polynomial(case["inner_steps"], start, end, 7)[:-1] for start, end in pairwise(knots)]
        knots = torch.cat([*parts, knots[-1:]])
    if f"{name}.r" in GOLDEN or f"{name.replace('epdpar', 'epd')}.r" in GOLDEN:
        sampler = Epd(EpdConfig(**options, probes_per_call=1 if case["solver"] == "epd" else None))
        source = name if f"{name}.r" in GOLDEN else name.replace("epdpar", "epd")
        tensors = [GOLDEN[f"{source}.{part}"] for part in ("r", "w", "scale_dir", "scale_time")]
        sampler.table = SolverTable(*tensors, probe_order=case.get("max_order", 1))
    elif case["solver"] == "ddim":
        sampler = Euler(OdeConfig(**options))
    elif case["solver"] in ("dpm2", "dpm"):
        sampler = Dpm2(Dpm2Config(midpoint=case.get("r", 0.5)))
    elif case["solver"] in ("heun", "edm"):
        sampler = Heun(TwoStageConfig())
    else:
        sampler = Ipndm(IpndmConfig(order=case["max_order"]))
    sampler.knots = lambda path: knots
    return sampler


@pytest.mark.parametrize("name", SOLVED)
def test_solver(name):
    case = CASES[name]
    denoiser = Mixture(path_of(case), GOLDEN["cond"], case.get("guidance", 1.0))
    result = sampler_of(name, case).sample(denoiser, GOLDEN["latents"])
    expected = GOLDEN[f"{name}.final"]
    assert (result - expected).norm() / expected.norm() < 2e-6
    assert denoiser.evaluations == case["sample_evals"]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("schedule.")])
def test_schedule(name):
    case = CASES[name]
    case["path"] = "flow" if case["schedule_type"] == "flowmatch" else "sd"
    config = ScheduleConfig(
        steps=case["num_steps"] - 1,
        schedule=case["schedule_type"],
        rho=float(case.get("schedule_rho", 1)),
        to_zero=False,
    )
    tolerance = 3e-5 if case["schedule_type"] == "time_uniform" else 1e-6
    values = schedules.knots(config, path_of(case))
    assert values.dtype is torch.float32
    assert (values / GOLDEN[name] - 1).abs().max() < tolerance


def test_discrete_noise_levels():
    path = VPPath(GOLDEN["sd.alphas_cumprod"])
    tolerance = {"rtol": 2e-5, "atol": 0}  # upstream's log alpha has float32 digits
    values = path.variable(GOLDEN["sd.probe_t"] * 1000 - 1)
    assert torch.allclose(values, GOLDEN["sd.probe_sigma"], **tolerance)
    taus = (path.time(GOLDEN["sd.probe_sigma_in"]) + 1) / 1000
    assert torch.allclose(taus, GOLDEN["sd.probe_t_out"], **tolerance)
    assert torch.allclose(path.time(GOLDEN["sd.probe_sigma_in"]), GOLDEN["sd.probe_c_noise"], rtol=2e-5, atol=2e-4)


def test_the_data_that_a_guided_model_predicts_between_timesteps():
    ode = Ode(Mixture(VPPath(GOLDEN["sd.alphas_cumprod"]), GOLDEN["cond"], 3.0))
    found = ode.predict(GOLDEN["sd.denoised_x"], GOLDEN["sd.denoised_sigma"]).x0
    torch.testing.assert_close(found, GOLDEN["sd.denoised_out"], rtol=2e-6, atol=2e-6)


EXACT = {  # name of a 4000-step solution -> a case with the same model and end points
    "reference.sd.g1.0": {"path": "sd", "guidance": 1.0},
    "reference.sd.g3.0": {"path": "sd", "guidance": 3.0},
    "reference.flow.sd3.6": {"path": "flow", "flow": "sd3"},
    "reference.flow.sd3.11": {"path": "flow", "flow": "sd3"},
    "reference.flow.flux.9": {"path": "flow", "flow": "flux"},
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("solver", "config", "order"),
    [
        (Euler, OdeConfig(), 1),
        (Heun, TwoStageConfig(), 2),
        (Dpm2, Dpm2Config(), 2),
        (Ipndm, IpndmConfig(order=2), 2),
        (DpmSolverPlusPlus2M, OdeConfig(), 2),
        (Epd, EpdConfig(), 2),
    ],
)
def test_solvers_converge_to_the_exact_solution(name, solver, config, order):
    """Twice the steps are 1 / 2^order of the error, or nearly; the arithmetic start table is second-order, too."""
    path = path_of(EXACT[name])
    start, end = path.variable(torch.tensor([path.t_start, path.t_min], dtype=torch.float64))
    if EXACT[name]["path"] == "flow":
        end = path.shifted(end)
    errors = []
    for steps in (64, 128):
        knots = schedules.polynomial(steps + 1, start, end, 7.0)
        sampler = Epd(EpdConfig()).with_table(arithmetic_table(knots, 2)) if solver is Epd else solver(config)
        sampler.knots = lambda path, knots=knots: knots
        denoiser = Mixture(path, GOLDEN["cond"], EXACT[name].get("guidance", 1.0))
        found = sampler.sample(denoiser, GOLDEN["latents"])
        errors.append((found - GOLDEN[name]).norm() / GOLDEN[name].norm())
    assert errors[1] < 0.02
    assert errors[0] / errors[1] > {1: 1.9, 2: 2.8}[order]


@pytest.mark.parametrize("path", [VPPath(GOLDEN["sd.alphas_cumprod"]), FlowPath(), TrigFlowPath()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_and_variable_are_inverse(path, dtype):
    t = torch.linspace(path.t_start, path.t_min, 50, dtype=dtype)
    assert torch.allclose(path.time(path.variable(t)), t, rtol=1e-5, atol=1e-3 if dtype is torch.float32 else 1e-9)
    end = torch.tensor(path.t_end, dtype=dtype)
    assert path.variable(end) == 0
    assert path.time(torch.zeros((), dtype=dtype)) == end


def test_float32_sampling_is_close_to_float64():
    class Single(Mixture):
        __call__ = Denoiser.__call__

        def predict(self, x, t):
            prediction = super().predict(x.double(), t.double())
            return Prediction(prediction.x0.float(), prediction.eps.float())

    name = "heun.discrete"
    result = sampler_of(name, CASES[name]).sample(
        Single(path_of(CASES[name]), GOLDEN["cond"], 3.0), GOLDEN["latents"].float()
    )
    assert result.dtype is torch.float32
    assert (result - GOLDEN[f"{name}.final"]).norm() / result.norm() < 1e-5
