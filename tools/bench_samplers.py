"""Our sampling loops against the stock diffusers pipelines, on the same random weights, side by side.

    python tools/bench_samplers.py [--size tiny|mid] [--batch 1 8] [--rounds 7] [--device cpu|cuda]

Each side loads the checkpoint as its users do, starts from the same latents and cached prompt embeddings, and ends with
images in [0, 1]. The order alternates; the table shows medians, and their ratio (above 1: ours is faster). The second
table compares the K probes of an EPD step in one network call with K calls. The clock is process CPU time with one
thread on a CPU, wall time on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from rich.table import Table

from t2ialign import Sampler
from t2ialign.tensors.conditioning import Conditioning
from t2ialign_sd.config import Sd15Config, SdTurboConfig
from t2ialign_sd.unet import StableDiffusion
from t2ialign_solvers.config import DdimConfig, EpdConfig, OdeConfig, OneStepConfig, TwoStageConfig
from t2ialign_solvers.ddim import Ddim
from t2ialign_solvers.epd import Epd
from t2ialign_solvers.multistep import DpmSolverPlusPlus2M
from t2ialign_solvers.one_step import OneStep
from t2ialign_solvers.single_step import Euler, Heun

#: name -> UNet channels, autoencoder channels, latent side, text width.
SIZES = {
    "tiny": {"unet": (32, 64), "vae": (16, 32), "side": 8, "text": 32},
    "mid": {"unet": (96, 192, 192), "vae": (32, 64), "side": 32, "text": 128},
}
VP = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
NO_TEXT = {"tokenizer": None, "text_encoder": None}
STEPS = 10
TOKENS = 77


@dataclass
class Duel:
    """One sampler, and the scheduler with which the stock pipeline does the same."""

    name: str
    scheduler: Any
    sampler: Sampler
    steps: int = STEPS
    guidance_scale: float = 5.0


DUELS = [
    Duel("one-step", diffusers.EulerDiscreteScheduler(**VP), OneStep(OneStepConfig()), 1, 1.0),
    Duel("ddim", diffusers.DDIMScheduler(**VP, clip_sample=False), Ddim(DdimConfig(steps=STEPS))),
    Duel("euler", diffusers.EulerDiscreteScheduler(**VP), Euler(OdeConfig(steps=STEPS))),
    Duel("heun", diffusers.HeunDiscreteScheduler(**VP), Heun(TwoStageConfig(steps=STEPS))),
    Duel("dpmpp-2m", diffusers.DPMSolverMultistepScheduler(**VP), DpmSolverPlusPlus2M(OdeConfig(steps=STEPS))),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()

    stock = Table("model", "sampler", "batch", "ours ms", "stock ms", "ratio", "max |image difference|")
    probes = Table("model", "K", "batch", "one call ms", "K calls ms", "ratio")
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        for size in arguments.size:
            for batch in arguments.batch:
                for duel in DUELS:
                    stock.add_row(size, duel.name, str(batch), *against_stock(duel, size, batch, arguments, scratch))
                for points in (2, 3):
                    row = batched_probes(points, size, batch, arguments, scratch)
                    probes.add_row(size, str(points), str(batch), *row)
    console = Console()
    console.print(stock)
    console.print(probes)


def against_stock(duel: Duel, size: str, batch: int, arguments: argparse.Namespace, scratch: str) -> list[str]:
    """Cells of one row: our time, the pipeline's, their ratio, and how much the images differ."""
    backend, conditioning = load(duel, size, batch, arguments.device, scratch)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(backend.folder, **backend.load_options, **NO_TEXT)
    pipe.to(arguments.device).set_progress_bar_config(disable=True)
    noise = backend.noise(range(batch))
    negative = backend.negative if duel.guidance_scale > 1 else conditioning[[0]]

    def ours() -> torch.Tensor:
        return backend.generate(conditioning, list(range(batch)), duel.sampler)

    def stock() -> torch.Tensor:
        return pipe(
            prompt_embeds=conditioning.tensors["prompt_embeds"],
            negative_prompt_embeds=negative[[0] * batch].tensors["prompt_embeds"],
            latents=noise,
            num_inference_steps=duel.steps,
            guidance_scale=duel.guidance_scale,
            height=backend.info.image_size[0],
            width=backend.info.image_size[1],
            output_type="pt",
        ).images

    difference = (ours() - stock()).abs().max().item()
    mine, theirs = race(ours, stock, arguments)
    return [f"{mine:.1f}", f"{theirs:.1f}", f"{theirs / mine:.2f}", f"{difference:.1e}"]


def batched_probes(points: int, size: str, batch: int, arguments: argparse.Namespace, scratch: str) -> list[str]:
    """Cells of one row: EPD with its probes together, one after the other, and the ratio."""
    backend, conditioning = load(DUELS[2], size, batch, arguments.device, scratch)
    together = Epd(EpdConfig(steps=STEPS // 2, points=points, schedule="discrete"))
    apart = Epd(EpdConfig(steps=STEPS // 2, points=points, schedule="discrete", probes_per_call=1))
    one, many = race(
        lambda: backend.generate(conditioning, list(range(batch)), together),
        lambda: backend.generate(conditioning, list(range(batch)), apart),
        arguments,
    )
    return [f"{one:.1f}", f"{many:.1f}", f"{many / one:.2f}"]


def load(duel: Duel, size: str, batch: int, device: str, scratch: str) -> tuple[StableDiffusion, Conditioning]:
    """A backend on random weights, and random prompt embeddings in place of encoded prompts."""
    folder = Path(scratch) / f"{size}-{duel.name}"
    if not folder.exists():
        save_pipeline(size, duel.scheduler, folder)
    config = SdTurboConfig if duel.guidance_scale == 1 else Sd15Config
    backend = StableDiffusion(
        config(checkpoint=str(folder), dtype="float32", guidance_scale=duel.guidance_scale), device
    )
    text = torch.randn(batch + 1, TOKENS, SIZES[size]["text"], device=device)
    conditioning = Conditioning(("?",) * (batch + 1), {"prompt_embeds": text})
    backend.negative = conditioning[[batch]]
    return backend, conditioning[:batch]


def save_pipeline(size: str, scheduler: Any, folder: Path) -> None:
    """A StableDiffusionPipeline with random weights and placeholders for the text parts, which nothing here loads."""
    torch.manual_seed(0)
    shape = SIZES[size]
    blocks = len(shape["unet"]) - 1
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=shape["unet"],
        layers_per_block=1,
        sample_size=shape["side"],
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * blocks,
        up_block_types=("CrossAttnUpBlock2D",) * blocks + ("UpBlock2D",),
        cross_attention_dim=shape["text"],
        norm_num_groups=16,
        attention_head_dim=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=shape["vae"],
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * len(shape["vae"]),
        up_block_types=("UpDecoderBlock2D",) * len(shape["vae"]),
    )
    pipe = diffusers.StableDiffusionPipeline(
        vae, None, None, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)
    for part in ("tokenizer", "text_encoder"):
        (folder / part).mkdir()
        (folder / part / "placeholder.json").write_text("{}")


def race(
    ours: Callable[[], object], theirs: Callable[[], object], arguments: argparse.Namespace
) -> tuple[float, float]:
    """Median milliseconds of both, in alternating order after one warm-up each."""
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(arguments.rounds + 1):
        turn = ((ours, times[0]), (theirs, times[1]))
        for run, record in turn if round_ % 2 else turn[::-1]:
            start = clock()
            run()
            if arguments.device.startswith("cuda"):
                torch.cuda.synchronize()
            if round_ > 0:
                record.append(1000 * (clock() - start))
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
