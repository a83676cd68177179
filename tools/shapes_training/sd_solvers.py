"""How good the multi-step generator's pictures are, by solver and number of network evaluations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from shapes_training.benchmark import balanced_captions, summarize
from t2ialign import Sampler
from t2ialign_sd.config import Sd15Config
from t2ialign_sd.unet import StableDiffusion
from t2ialign_shapes import detector
from t2ialign_solvers.config import DdimConfig, Dpm2Config, IpndmConfig, OdeConfig, TwoStageConfig
from t2ialign_solvers.ddim import Ddim
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M, Ipndm
from t2ialign_solvers.single_step import Dpm2, Heun

ONE_EVALUATION, TWO_EVALUATIONS = (2, 3, 5, 10, 20), (2, 3, 5, 10)
"""Steps of solvers with one and with two evaluations a step."""

SOLVERS = {
    "ddim": (Ddim, DdimConfig, ONE_EVALUATION),
    "ipndm": (Ipndm, IpndmConfig, ONE_EVALUATION),
    "dpmpp-2m": (DpmSolverPlusPlus2M, OdeConfig, ONE_EVALUATION),
    "heun": (Heun, TwoStageConfig, TWO_EVALUATIONS),
    "dpm2": (Dpm2, Dpm2Config, TWO_EVALUATIONS),
}
REFERENCE_STEPS = 100
CHUNK = 64


@torch.no_grad()
def measure(folder: Path, guidance: float, per_family: int = 16) -> dict:
    """Accuracy and truncation error of every solver, all from the same noise.

    The truncation error is the root mean squared difference of pixels in [0, 1] to the pictures of
    the reference, `REFERENCE_STEPS` steps of DPM-Solver++(2M).
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
    for name, (solver, config, step_counts) in SOLVERS.items():
        for steps in step_counts:
            options = config(steps=steps)
            pictures = images(solver(options))
            error = (pictures - reference).square().mean().sqrt().item()
            rows.append(
                {"solver": name, "steps": steps, "nfe": options.evaluations(), "rmse": round(error, 4)}
                | judge(pictures)
            )
    return {
        "n": len(captions),
        "guidance": guidance,
        "reference": {"solver": "dpmpp-2m", "steps": REFERENCE_STEPS} | judge(reference),
        "rows": rows,
    }
