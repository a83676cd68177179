"""Stage 6: write checkpoints, prompts and model cards into the plugin.

Figures are measured on the files that are shipped, loaded as a user loads them.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaSprintPipeline
from transformers import CLIPModel

from shapes_training import autoencoder as autoencoder_stage
from shapes_training import cards, clip, reward, sprint
from shapes_training.benchmark import score_generator
from shapes_training.clip import ShapesClip
from shapes_training.models import SanaSprint, count_parameters, save_clip, save_pipeline
from shapes_training.prompts import write_prompts
from shapes_training.workdir import read_json, read_json_lines, write_json, write_text

PER_FAMILY = 240
"""Benchmark images per family: the overall accuracy has a standard error of about one point."""

BASES = {"sprint": sprint.RECIPE, "sprint-washed": sprint.WASHED_RECIPE}


def write_package(work: Path, package: Path) -> None:
    """Fill ``prompts/`` and ``checkpoints/`` of the plugin from a finished work directory."""
    data = package / "src" / "t2ialign_shapes"
    write_prompts(data / "prompts")
    checkpoints = data / "checkpoints"
    for name in BASES:
        _write_base(work, checkpoints / name, name)
    _write_clip(work, checkpoints)


def load_base(folder: Path) -> tuple[SanaSprint, Any]:
    """Load a shipped pipeline as (generator, autoencoder)."""
    pipeline = SanaSprintPipeline.from_pretrained(folder)
    model = SanaSprint()
    model.text_encoder, model.transformer = pipeline.text_encoder, pipeline.transformer
    model.tokenizer = pipeline.tokenizer
    return model.eval().requires_grad_(False), pipeline.vae.eval()


def _write_base(work: Path, folder: Path, name: str) -> None:
    trained = reward.load_generator(work / name / "final.safetensors")
    autoencoder = autoencoder_stage.run(work)
    save_pipeline(folder, trained, autoencoder)
    shipped, shipped_autoencoder = load_base(folder)
    figures = {
        "benchmark": score_generator(shipped, shipped_autoencoder, PER_FAMILY),
        "benchmark_before_rounding": score_generator(trained, autoencoder, PER_FAMILY),
        "autoencoder": autoencoder_stage.evaluate(shipped_autoencoder),
        "parameters": {
            "transformer": count_parameters(shipped.transformer),
            "text_encoder": count_parameters(shipped.text_encoder),
            "vae": count_parameters(shipped_autoencoder),
        },
        "training": training(work, name, BASES[name]),
        "training_autoencoder": training(work, "autoencoder", autoencoder_stage.RECIPE),
        "environment": environment(),
    }
    write_json(folder / "evaluation.json", figures)
    write_text(folder / "README.md", cards.base_card(name, figures))


def _write_clip(work: Path, checkpoints: Path) -> None:
    folder = checkpoints / "clip"
    save_clip(folder, reward.run(work).clip)
    shipped = ShapesClip()
    shipped.clip = CLIPModel.from_pretrained(folder)
    shipped.eval()
    bases = {name: load_base(checkpoints / name) for name in BASES}
    figures = {
        "agreement": {name: reward.evaluate(shipped, *base) for name, base in bases.items()},
        "agreement_before_tuning": read_json(work / "reward" / "agreement.json")["before"],
        "clean_renders": clip.evaluate(shipped),
        "parameters": count_parameters(shipped.clip),
        "training": training(work, "clip", clip.RECIPE),
        "training_reward": training(work, "reward", reward.RECIPE),
        "environment": environment(),
    }
    write_json(folder / "evaluation.json", figures)
    write_text(folder / "README.md", cards.clip_card(figures))


def training(work: Path, stage: str, recipe: Any) -> dict:
    """What a finished stage took: settings, time and last loss."""
    last = read_json_lines(work / stage / "log.jsonl")[-1]
    return {
        "steps": last["step"],
        "batch": recipe.batch,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
        "wall_s": round(last["wall_s"]),
        "cpu_s": round(last["cpu_s"]),
        "final_loss": round(last["loss"], 4),
    }


def environment() -> dict[str, str]:
    """Versions that figures were measured with."""
    packages = {name: version(name) for name in ("torch", "diffusers", "transformers")}
    threads = {"cpu_threads": str(torch.get_num_threads())}
    return {"python": platform.python_version(), **packages, **threads}
