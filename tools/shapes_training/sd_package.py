"""Write the checkpoints in Stable Diffusion's format, with their figures and cards, into the plugin."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

from shapes_training import autoencoder as autoencoder_stage
from shapes_training import sd, sd_autoencoder, sd_cards, sd_relations, sd_solvers, sd_turbo
from shapes_training.benchmark import score_generator
from shapes_training.models import count_parameters, halve
from shapes_training.package import environment, training
from shapes_training.sd_models import StableDiffusion, StableDiffusionTurbo, build_scheduler
from shapes_training.workdir import write_json, write_text

PER_FAMILY = 120
"""Benchmark images per family: the overall accuracy has a standard error of less than two points."""


def write_package(work: Path, package: Path) -> None:
    """Fill ``checkpoints/sd`` and ``checkpoints/sd-turbo`` of the plugin from a finished work directory."""
    checkpoints = package / "src" / "t2ialign_shapes" / "checkpoints"
    _write_sd(work, checkpoints / "sd")
    _write_turbo(work, checkpoints / "sd-turbo")


def _write_sd(work: Path, folder: Path) -> None:
    autoencoder = sd_autoencoder.run(work)
    save_pipeline(folder, sd_relations.run(work, autoencoder), autoencoder, DDIMScheduler)
    figures = measure(folder, StableDiffusion)
    figures["training"] = {
        "sd": training(work, "sd", sd.RECIPE),
        "sd-turbo": training(work, "sd-turbo", sd_turbo.RECIPE),
        "sd-relations": training(work, "sd-relations", sd_relations.RECIPE),
        "autoencoder": training(work, "sd-autoencoder", sd_autoencoder.RECIPE),
    }
    figures["sampling"] = {"steps": StableDiffusion.steps, "guidance": StableDiffusion.guidance}
    figures["solvers"] = sd_solvers.measure(folder, StableDiffusion.guidance)
    write_card(folder, figures)


def _write_turbo(work: Path, folder: Path) -> None:
    autoencoder = sd_autoencoder.run(work)
    save_pipeline(folder, sd_turbo.run(work, autoencoder), autoencoder, EulerDiscreteScheduler)
    figures = measure(folder, StableDiffusionTurbo)
    figures["training"] = {
        "sd": training(work, "sd", sd.RECIPE),
        "sd-turbo": training(work, "sd-turbo", sd_turbo.RECIPE),
        "autoencoder": training(work, "sd-autoencoder", sd_autoencoder.RECIPE),
    }
    write_card(folder, figures)


def save_pipeline(folder: Path, model: StableDiffusion, autoencoder: AutoencoderKL, scheduler: type) -> None:
    """Write a complete `StableDiffusionPipeline` folder, weights in half precision."""
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=model.text_encoder.eval(),
        tokenizer=model.tokenizer,
        unet=model.unet.eval(),
        scheduler=build_scheduler(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    halve(folder)


def load_shipped(folder: Path, kind: type[StableDiffusion]) -> tuple[StableDiffusion, AutoencoderKL]:
    """Load a shipped pipeline as (generator, autoencoder)."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    model = kind()
    model.text_encoder, model.unet, model.tokenizer = pipeline.text_encoder, pipeline.unet, pipeline.tokenizer
    return model.eval().requires_grad_(False), pipeline.vae.eval()


def measure(folder: Path, kind: type[StableDiffusion]) -> dict:
    """Figures of a shipped checkpoint."""
    shipped, autoencoder = load_shipped(folder, kind)
    return {
        "benchmark": score_generator(shipped, autoencoder, PER_FAMILY),
        "autoencoder": autoencoder_stage.evaluate(autoencoder),
        "parameters": {
            "unet": count_parameters(shipped.unet),
            "text_encoder": count_parameters(shipped.text_encoder),
            "vae": count_parameters(autoencoder),
        },
        "environment": environment(),
    }


def write_card(folder: Path, figures: dict) -> None:
    """Write the figures as JSON and the card made from them."""
    write_json(folder / "evaluation.json", figures)
    write_text(folder / "README.md", sd_cards.card(folder.name, figures))
