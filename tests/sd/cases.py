"""One case for every backend of the package and every kind of scheduler, on the tiny checkpoints of ``build``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers

from t2ialign import Backend, Sampler
from t2ialign_sd import config as configs
from t2ialign_sd.flux import Flux
from t2ialign_sd.flux2 import Flux2
from t2ialign_sd.hyper_sd import HyperSd
from t2ialign_sd.pixart import PixArtDmd, PixArtSigma
from t2ialign_sd.qwen_image import QwenImage
from t2ialign_sd.sd3 import StableDiffusion3
from t2ialign_sd.unet import StableDiffusion, StableDiffusionXL
from t2ialign_solvers.config import DdimConfig, OdeConfig, OneStepConfig, TwoStageConfig
from t2ialign_solvers.ddim import Ddim
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M
from t2ialign_solvers.one_step import OneStep
from t2ialign_solvers.single_step import Euler, Heun

VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PROMPTS = ["a red circle", "a blue square and a green circle", "a red square above a circle"]
SEEDS = [5, 6, 7]
ONE_STEP = OneStep(OneStepConfig())
WIDE = [24, 32]


@dataclass
class Case:
    """One backend, its checkpoint, a sampler, and the stock pipeline's call for the same image."""

    family: str
    scheduler: Any
    backend: type[Backend]
    config: type
    options: dict[str, Any]
    sampler: Sampler
    call: dict[str, Any]
    prepare: Callable[[Any], None] = field(default=lambda pipe: None)


def ddim(**options):
    return diffusers.DDIMScheduler(**VP, clip_sample=False, steps_offset=1, **options)


def euler(**options):
    return diffusers.EulerDiscreteScheduler(**VP, **options)


def lcm(pipe):
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)


CASES = {
    "sd15-ddim": Case(
        "sd",
        ddim(set_alpha_to_one=False),
        StableDiffusion,
        configs.Sd15Config,
        {"guidance_scale": 3.0},
        Ddim(DdimConfig(steps=5)),
        {"num_inference_steps": 5, "guidance_scale": 3.0},
    ),
    "sd15-v-prediction": Case(
        "sd",
        ddim(prediction_type="v_prediction", timestep_spacing="trailing"),
        StableDiffusion,
        configs.Sd15Config,
        {"negative_prompt": "a green square"},
        Ddim(DdimConfig(steps=4)),
        {"num_inference_steps": 4, "guidance_scale": 7.5, "negative_prompt": ["a green square"] * 3},
    ),
    "sd15-guidance-input": Case(
        "sd-lcm",
        ddim(),
        StableDiffusion,
        configs.Sd15Config,
        {"guidance_scale": 3.0},
        Ddim(DdimConfig(steps=4)),
        {"num_inference_steps": 4, "guidance_scale": 3.0},
    ),
    "sd15-euler": Case(
        "sd",
        euler(timestep_spacing="leading", steps_offset=1),
        StableDiffusion,
        configs.Sd15Config,
        {"guidance_scale": 1.0},
        Euler(OdeConfig(steps=4)),
        {"num_inference_steps": 4, "guidance_scale": 1.0},
    ),
    "sd15-heun": Case(
        "sd",
        diffusers.HeunDiscreteScheduler(**VP, timestep_spacing="trailing"),
        StableDiffusion,
        configs.Sd15Config,
        {},
        Heun(TwoStageConfig(steps=4)),
        {"num_inference_steps": 4},
    ),
    "sd15-dpmpp-2m": Case(
        "sd",
        diffusers.DPMSolverMultistepScheduler(**VP, timestep_spacing="trailing"),
        StableDiffusion,
        configs.Sd15Config,
        {},
        DpmSolverPlusPlus2M(OdeConfig(steps=5)),
        {"num_inference_steps": 5},
    ),
    "sd-turbo": Case(
        "sd",
        euler(timestep_spacing="trailing"),
        StableDiffusion,
        configs.SdTurboConfig,
        {},
        ONE_STEP,
        {"num_inference_steps": 1, "guidance_scale": 0.0},
    ),
    "zero-terminal-snr-student": Case(
        "sd",
        ddim(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True),
        StableDiffusion,
        configs.SdTurboConfig,
        {},
        ONE_STEP,
        {"num_inference_steps": 1, "guidance_scale": 0.0},
    ),
    "sdxl": Case(
        "sdxl",
        euler(timestep_spacing="leading", steps_offset=1),
        StableDiffusionXL,
        configs.SdxlConfig,
        {},
        Euler(OdeConfig(steps=4)),
        {"num_inference_steps": 4, "guidance_scale": 5.0},
    ),
    "sdxl-negative": Case(
        "sdxl",
        euler(timestep_spacing="leading", steps_offset=1),
        StableDiffusionXL,
        configs.SdxlConfig,
        {"negative_prompt": "a red square"},
        Euler(OdeConfig(steps=4)),
        {"num_inference_steps": 4, "guidance_scale": 5.0, "negative_prompt": ["a red square"] * 3},
    ),
    "sdxl-turbo": Case(
        "sdxl",
        diffusers.EulerAncestralDiscreteScheduler(**VP, timestep_spacing="trailing"),
        StableDiffusionXL,
        configs.SdxlTurboConfig,
        {},
        ONE_STEP,
        {"num_inference_steps": 1, "guidance_scale": 0.0},
    ),
    "hyper-sd": Case(
        "sdxl",
        euler(timestep_spacing="leading", steps_offset=1),
        HyperSd,
        configs.HyperSdConfig,
        {"network_file": "diffusion_pytorch_model.safetensors"},
        ONE_STEP,
        {"num_inference_steps": 1, "guidance_scale": 0.0, "timesteps": [800]},
        lcm,
    ),
    "pixart-dmd": Case(
        "pixart",
        diffusers.DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False),
        PixArtDmd,
        configs.PixArtDmdConfig,
        {"max_sequence_length": 16},
        ONE_STEP,
        {
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "timesteps": [400],
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": 16,
        },
    ),
    "pixart-sigma": Case(
        "pixart-sigma",
        diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02),
        PixArtSigma,
        configs.PixArtSigmaConfig,
        {"max_sequence_length": 16},
        DpmSolverPlusPlus2M(OdeConfig(steps=5)),
        {
            "num_inference_steps": 5,
            "use_resolution_binning": False,
            "clean_caption": False,
            "max_sequence_length": 16,
        },
    ),
    "sd3": Case(
        "sd3",
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        StableDiffusion3,
        configs.Sd3Config,
        {"max_sequence_length": 16},
        Euler(OdeConfig(steps=4)),
        {"num_inference_steps": 4, "guidance_scale": 4.5, "max_sequence_length": 16},
    ),
    "sd3-dynamic-shift": Case(
        "sd3",
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        StableDiffusion3,
        configs.Sd3Config,
        {"max_sequence_length": 16},
        Euler(OdeConfig(steps=4)),
        {"num_inference_steps": 4, "guidance_scale": 4.5, "max_sequence_length": 16},
    ),
    "flux-schnell": Case(
        "flux",
        diffusers.FlowMatchEulerDiscreteScheduler(),
        Flux,
        configs.FluxConfig,
        {"max_sequence_length": 16},
        Euler(OdeConfig(steps=3)),
        {"num_inference_steps": 3, "max_sequence_length": 16},
    ),
    "flux-dev": Case(
        "flux-dev",
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        Flux,
        configs.FluxConfig,
        {"max_sequence_length": 16, "distilled_guidance": 2.0},
        Euler(OdeConfig(steps=3)),
        {"num_inference_steps": 3, "max_sequence_length": 16, "guidance_scale": 2.0},
    ),
    "flux2-klein": Case(
        "flux2-distilled",
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        Flux2,
        configs.Flux2Config,
        {"max_sequence_length": 16},
        Euler(OdeConfig(steps=3)),
        {"num_inference_steps": 3, "max_sequence_length": 16, "guidance_scale": 4.0},
    ),
    "flux2-klein-base": Case(
        "flux2-base",
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        Flux2,
        configs.Flux2Config,
        {"max_sequence_length": 16, "guidance_scale": 4.0},
        Euler(OdeConfig(steps=4)),
        {"num_inference_steps": 4, "max_sequence_length": 16, "guidance_scale": 4.0},
    ),
    "qwen-image": Case(
        "qwen-image",
        diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9),
        QwenImage,
        configs.QwenImageConfig,
        {"negative_prompt": "a green square"},
        Euler(OdeConfig(steps=4)),
        {"num_inference_steps": 4, "true_cfg_scale": 4.0, "negative_prompt": ["a green square"] * 3},
    ),
}


def make(case: Case, build: Callable[..., Path], **options: Any) -> Any:
    """The case's backend; its images are not square, as most users' are not."""
    folder = build(case.family, case.scheduler)
    if case.backend in (HyperSd, PixArtDmd):
        options.setdefault("network_checkpoint", str(folder / "unet" if case.backend is HyperSd else folder))
    options = {"checkpoint": str(folder), "dtype": "float32", "image_size": WIDE} | case.options | options
    return case.backend(case.config(**options))
