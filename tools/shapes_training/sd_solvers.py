"""How good the multi-step generator's pictures are, by solver, schedule and number of network evaluations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from shapes_training.benchmark import balanced_captions, summarize
from t2ialign import Sampler
from t2ialign_sd.config import Sd15Config
from t2ialign_sd.unet import StableDiffusion
from t2ialign_shapes import detector
from t2ialign_solvers.config import Dpm2Config, IpndmConfig, OdeConfig, TwoStageConfig
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M, Ipndm
from t2ialign_solvers.single_step import Dpm2, Euler, Heun

ONE_EVALUATION, TWO_EVALUATIONS = (2, 3, 5, 10, 20, 40), (2, 3, 5, 10, 20)
"""Steps of solvers with one and with two evaluations a step."""

SOLVERS = {
    "euler": (Euler, OdeConfig, ONE_EVALUATION),
    "ipndm": (Ipndm, IpndmConfig, ONE_EVALUATION),
    "dpmpp-2m": (DpmSolverPlusPlus2M, OdeConfig, ONE_EVALUATION),
    "heun": (Heun, TwoStageConfig, TWO_EVALUATIONS),
    "dpm2": (Dpm2, Dpm2Config, TWO_EVALUATIONS),
}
SCHEDULES = ("native", "logsnr")
REFERENCE_STEPS = 1000
CHUNK = 64


@torch.no_grad()
def measure(folder: Path, guidance: float, per_family: int = 16) -> dict:
    """Accuracy and truncation error of every solver, all from the same noise.

    The truncation error of a picture is the root mean squared difference of its pixels in [0, 1] to
    the reference, `REFERENCE_STEPS` steps of DPM-Solver++(2M) on the checkpoint's own grid. Its
    median is that of a typical picture; the mean over all pixels is ruled by the few pictures whose
    objects end up elsewhere.
    """
    captions = balanced_captions(per_family)
    backend = StableDiffusion(Sd15Config(checkpoint=str(folder), guidance_scale=guidance))
    conditioning = backend.encode([str(caption) for caption in captions])

    def images(sampler: Sampler) -> Tensor:
        chunks = torch.arange(len(captions)).split(CHUNK)
        return torch.cat([backend.generate(conditioning[rows], rows.tolist(), sampler) for rows in chunks])

    def judge(pictures: Tensor) -> dict:
        right, grade = detector.check(pictures, captions), detector.graded(pictures, captions)
        result = summarize(captions, right, grade)
        return {key: result[key] for key in ("accuracy", "se", "graded")}

    reference = images(DpmSolverPlusPlus2M(OdeConfig(steps=REFERENCE_STEPS)))
    rows = []
    for schedule in SCHEDULES:
        for name, (solver, config, step_counts) in SOLVERS.items():
            for steps in step_counts:
                options = config(steps=steps, schedule=schedule)
                pictures = images(solver(options))
                error = (pictures - reference).square().mean((1, 2, 3))
                what = {"solver": name, "schedule": schedule, "steps": steps, "nfe": options.evaluations()}
                errors = {"median": error.sqrt().median().item(), "rmse": error.mean().sqrt().item()}
                rows.append(what | {key: round(value, 5) for key, value in errors.items()} | judge(pictures))
    return {
        "n": len(captions),
        "guidance": guidance,
        "reference": {"solver": "dpmpp-2m", "steps": REFERENCE_STEPS} | judge(reference),
        "rows": rows,
    }
