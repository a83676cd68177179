"""Every scheduler class of diffusers draws a family of models, or is refused by name before anything loads."""

from __future__ import annotations

import diffusers
import pytest
import torch
from pydantic import ValidationError

from t2ialign import Denoiser, Prediction, seeding
from t2ialign.plugins import registry
from t2ialign.spec.capabilities import capability_problems
from t2ialign.spec.model import Chosen
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_diffusers.scheduler import dynamic_shift, flow_path, vp_path
from t2ialign_solvers.config import DiffusersConfig
from t2ialign_solvers.scheduler import DiffusersScheduler
from t2ialign_solvers.scheduler_classes import BOTH, DRAWN, RECTIFIED_FLOW, REFUSED, VARIANCE_PRESERVING

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
DEV = {"use_dynamic_shifting": True, "shift": 3.0}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SHAPE = (4, 2, 2)
CLASSES = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))


class Known(Denoiser):
    """Knows the one image that there is."""

    def __init__(self, path):
        super().__init__(path, Conditioning(("?", "?"), {}))
        self.x0 = seeding.normal([7], SHAPE)

    def rows(self, index):
        raise NotImplementedError

    def predict(self, x, t):
        alpha, sigma = self.path.coefficients(t.view(-1, 1, 1, 1))
        return Prediction(self.x0.expand_as(x), (x - alpha * self.x0) / sigma.clamp(min=1e-6))


def dev():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**DEV)
    return flow_path(scheduler, own_grid=False, shift=dynamic_shift(scheduler, (16, 32, 32)))


PATHS = {
    "vp": lambda: vp_path(diffusers.DDIMScheduler(**SD)),
    "flow": lambda: flow_path(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), own_grid=True),
    "flow of another resolution": dev,
}
DRAWING = [
    *(("vp", name, {}) for name in sorted(VARIANCE_PRESERVING | BOTH)),
    *((path, name, {}) for path in ("flow", "flow of another resolution") for name in sorted(RECTIFIED_FLOW)),
    *((path, name, FLOW_SIGMAS) for path in ("flow", "flow of another resolution") for name in sorted(BOTH)),
]


def test_every_class_is_drawn_or_refused():
    assert set(CLASSES) == DRAWN | REFUSED.keys()
    assert not DRAWN & REFUSED.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("path", "name", "options"), DRAWING)
def test_a_class_that_is_drawn_finds_the_one_image(path, name, options):
    denoiser = Known(PATHS[path]())
    sampler = DiffusersScheduler(DiffusersConfig(scheduler=name, steps=12, options=options))
    found = sampler.sample(denoiser, seeding.normal([0, 1], SHAPE), [3, 4])
    assert (found - denoiser.x0).abs().max() < 0.2  # some end at the least noise of the training
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_class_that_draws_nothing_here_is_refused_by_name(name):
    with pytest.raises(ValidationError, match=r"there are .*DDIMScheduler"):
        DiffusersConfig(scheduler=name)


def test_a_misspelt_class_is_refused_with_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'EulerDiscreteScheduler'"):
        DiffusersConfig(scheduler="EulerDiscretScheduler")


@pytest.mark.parametrize(
    ("kind", "name", "options", "words"),
    [
        ("sd15", "FlowMatchEulerDiscreteScheduler", {}, "'FlowMatchEulerDiscreteScheduler' is of rectified flows"),
        ("flux", "EulerDiscreteScheduler", {}, "'EulerDiscreteScheduler' is of models that predict noise"),
        ("sd3", "UniPCMultistepScheduler", {}, "'UniPCMultistepScheduler' needs options = { use_flow_sigmas"),
        ("sd3", "UniPCMultistepScheduler", FLOW_SIGMAS, ""),
        ("sana", "DPMSolverMultistepScheduler", {}, ""),
        ("sana-sprint", "EulerDiscreteScheduler", {}, "'EulerDiscreteScheduler' is of models"),
        ("sdxl", "UniPCMultistepScheduler", {}, ""),
    ],
)
def test_a_class_of_the_other_family_is_refused_by_name(kind, name, options, words):
    parts = registry()
    backend = Chosen(parts.find("backend", kind), parts.find("backend", kind).config())
    sampler = Chosen(parts.find("sampler", "diffusers"), DiffusersConfig(scheduler=name, options=options))
    found = capability_problems(backend, sampler, None, [], parts)
    assert len(found) == bool(words)
    assert all(words in str(problem.allowed) for problem in found)
