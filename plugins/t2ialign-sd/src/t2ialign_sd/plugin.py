"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_diffusers.config import GuidedConfig
from t2ialign_sd import config

#: kind, class in this package, options, summary, what the checkpoint was trained for.
BACKENDS: list[tuple[str, str, type[GuidedConfig], str, set[str]]] = [
    ("sd15", "unet:StableDiffusion", config.Sd15Config, "Stable Diffusion 1.x / 2.x", {"multi-step"}),
    (
        "sd-turbo",
        "unet:StableDiffusion",
        config.SdTurboConfig,
        "SD-Turbo: one to four steps, no guidance",
        {"one-step", "multi-step", "few-step"},
    ),
    ("sdxl", "unet:StableDiffusionXL", config.SdxlConfig, "Stable Diffusion XL", {"multi-step"}),
    (
        "sdxl-turbo",
        "unet:StableDiffusionXL",
        config.SdxlTurboConfig,
        "SDXL-Turbo: one to four steps, no guidance",
        {"one-step", "multi-step", "few-step"},
    ),
    (
        "hyper-sd",
        "hyper_sd:HyperSd",
        config.HyperSdConfig,
        "Hyper-SDXL: SDXL with a UNet distilled to one step",
        {"one-step", "few-step"},
    ),
    (
        "pixart-dmd",
        "pixart:PixArtDmd",
        config.PixArtDmdConfig,
        "PixArt-alpha DMD: a transformer distilled to one step",
        {"one-step", "few-step"},
    ),
    ("pixart-sigma", "pixart:PixArtSigma", config.PixArtSigmaConfig, "PixArt-Sigma", {"multi-step"}),
    ("sd3", "sd3:StableDiffusion3", config.Sd3Config, "Stable Diffusion 3 / 3.5", {"multi-step"}),
    (
        "flux",
        "flux:Flux",
        config.FluxConfig,
        "FLUX.1 dev and schnell",
        {"one-step", "multi-step"},
    ),
    (
        "flux2-klein",
        "flux2:Flux2",
        config.Flux2Config,
        "FLUX.2 klein 4B / 9B: about 4 steps, or the base models",
        {"multi-step"},
    ),
    ("qwen-image", "qwen_image:QwenImage", config.QwenImageConfig, "Qwen-Image 20B", {"multi-step"}),
]


def _path(kind: str) -> set[str]:
    """Which schedulers of diffusers a model understands."""
    return {"rectified-flow"} if kind in ("sd3", "flux") else {"variance-preserving", "solver-schedulers"}


@hookimpl
def t2ialign_backends(register: Register) -> None:
    for kind, target, options, summary, trained_for in BACKENDS:
        register(
            kind,
            f"t2ialign_sd.{target}",
            config=options,
            summary=summary,
            provides={"diffusion", "denoiser", "lora", "differentiable", *trained_for, *_path(kind)},
        )
