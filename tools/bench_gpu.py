"""A step of every plugin's method at the real sizes of its model, beside the network's bare passes: one table.

    python tools/bench_gpu.py                              on a GPU; starts no row after ten minutes
    python tools/bench_gpu.py --rows reno dav --seconds 300
    OMP_NUM_THREADS=1 python tools/bench_gpu.py --tiny     the same code with small models, on a CPU

Weights and prompts' embeddings are random, the configurations are those of tests/released. A reward that costs next to
nothing (the CLIP of t2ialign-shapes) stands in for the specs' own. Columns:

    step        seconds of one step of the spec, the second one of the process
    rows        rows that went through the network in it, guidance counted once
    bare        rows a second of the network alone at the run's micro-batch, and of forward plus backward; plain images
                of models that sample themselves
    network     the share of the step that the bare passes would take: what is left of it is decoding, rewards, noise
                and updates
    peak        memory in the step, weights included
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import random_weights as released
import torch
from turns import clock

from t2ialign.evaluation.counting import counting
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import Problem, assemble
from t2ialign.run.machine import peak_memory
from t2ialign.spec import parse as specs
from t2ialign.tensors.batching import is_out_of_memory
from t2ialign_diffusers.quiet import quiet_libraries
from t2ialign_infinity.variants import VARIANTS
from t2ialign_var.transformer import released as var_sizes
from t2ialign_var.vqvae import RELEASED

ROOT = Path(__file__).resolve().parents[1]
REWARD = "reward=[{kind='clipscore',model='pkg:t2ialign_shapes/checkpoints/clip'}]"
SMALL_VAE = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}
SMALL_UNET = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "sample_size": 16,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 32,
    "norm_num_groups": 4,
}
SMALL_VAR = {"patch_nums": [1, 2, 4], "codes": 64, "code_channels": 8, "classes": 18, "depth": 2, "width": 64}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        spec: file in specs/ without its ending.
        folder: of the model's configurations in tests/released; None for models that are no diffusers folder.
        options: overrides, so that a step takes seconds and not minutes.
        tiny: part of a checkpoint -> changed settings of its small form.
        tiny_options: further overrides of the small form.
        gradient: whether the step's network passes have a backward pass.
    """

    spec: str
    folder: str | None = None
    options: tuple[str, ...] = ()
    tiny: dict[str, dict[str, Any]] = field(default_factory=dict)
    tiny_options: tuple[str, ...] = ()
    gradient: bool = False


EGGROLL = ("optimizer.population=32", "prompts.per_step=1", "prompts.images_per_prompt=1")
EPD = ("prompts.per_step=1", "prompts.images_per_prompt=4", "sampler.steps=4")
TINY_EGGROLL = ("optimizer.population=4", "run.micro_batch=4")
ROWS = {
    "eggroll": Row(
        "eggroll-sana-sprint",
        "Efficient-Large-Model--Sana_Sprint_1.6B_1024px_diffusers",
        (*EGGROLL, "backend.image_size=512", "run.micro_batch=32"),
        {
            "transformer": {
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 8,
                "num_cross_attention_heads": 2,
                "cross_attention_head_dim": 8,
                "cross_attention_dim": 16,
                "caption_channels": 16,
                "in_channels": 8,
                "out_channels": 8,
                "sample_size": 4,
            },
            "vae": {
                "latent_channels": 8,
                "encoder_block_out_channels": [8, 16],
                "decoder_block_out_channels": [8, 16],
                "encoder_block_types": ["ResBlock"] * 2,
                "decoder_block_types": ["ResBlock"] * 2,
                "encoder_layers_per_block": [1, 1],
                "decoder_layers_per_block": [1, 1],
                "encoder_qkv_multiscales": [[], []],
                "decoder_qkv_multiscales": [[], []],
            },
        },
        (*TINY_EGGROLL, "backend.image_size=8"),
    ),
    "reno": Row(
        "reno-sdxl-turbo",
        "stabilityai--sdxl-turbo",
        ("prompts.per_step=4",),
        {
            "unet": SMALL_UNET
            | {
                "attention_head_dim": [2, 4],
                "transformer_layers_per_block": [1, 1],
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 80,
            },
            "vae": SMALL_VAE,
        },
        ("backend.image_size=32", "prompts.per_step=2"),
        gradient=True,
    ),
    "dav": Row(
        "dav-sd15-aesthetic",
        "stable-diffusion-v1-5--stable-diffusion-v1-5",
        ("prompts.per_step=2", "sampler.steps=5"),
        {"unet": SMALL_UNET | {"attention_head_dim": 4}, "vae": SMALL_VAE},
        ("prompts.per_step=1", "sampler.steps=3", "optimizer.particles=2"),
        gradient=True,
    ),
    "ppo-sd3.5": Row(
        "ppo-epd-sd3",
        "stabilityai--stable-diffusion-3.5-medium",
        (*EPD, "backend.dtype='bfloat16'"),
        {
            "transformer": {
                "sample_size": 16,
                "num_layers": 2,
                "attention_head_dim": 8,
                "num_attention_heads": 4,
                "joint_attention_dim": 64,
                "caption_projection_dim": 32,
                "pooled_projection_dim": 64,
                "pos_embed_max_size": 16,
                "dual_attention_layers": [0],
            },
            "vae": SMALL_VAE,
        },
        ("backend.image_size=32", "sampler.steps=2", "prompts.images_per_prompt=2", "optimizer.minibatch=2"),
    ),
    "ppo-flux": Row(
        "ppo-epd-flux",
        "black-forest-labs--FLUX.1-dev",
        (*EPD, "sampler.steps=3"),
        {
            "transformer": {
                "num_layers": 1,
                "num_single_layers": 1,
                "attention_head_dim": 16,
                "num_attention_heads": 2,
                "joint_attention_dim": 32,
                "pooled_projection_dim": 32,
                "axes_dims_rope": [4, 4, 8],
            },
            "vae": SMALL_VAE,
        },
        ("backend.image_size=32", "sampler.steps=2", "prompts.images_per_prompt=2", "optimizer.minibatch=2"),
    ),
    "var-d30": Row(
        "eggroll-var",
        None,
        (*EGGROLL, "backend.depth=30"),
        {
            "transformer": SMALL_VAR | {"heads": 4},
            "vqvae": {"codes": 64, "z_channels": 8, "ch": 16, "ch_mult": [1, 2], "num_res_blocks": 1, "norm_groups": 4},
        },
        TINY_EGGROLL,
    ),
    "infinity-2b": Row(
        "eggroll-infinity-2b",
        None,
        ("optimizer.population=8", "prompts.per_step=1"),
        {
            "transformer": {
                "bits": 8,
                "depth": 4,
                "width": 48,
                "heads": 3,
                "chunks": 2,
                "text_channels": 256,
                "text_length": 16,
                "scales": 4,
            },
            "vae": {"bits": 8, "ch": 32, "ch_mult": [1, 1, 2], "num_res_blocks": 1, "patchify": False},
        },
        TINY_EGGROLL,
    ),
}


def checkpoint(name: str, row: Row, tiny: bool, scratch: Path) -> Path:
    """The folder with a row's configurations."""
    if row.folder:
        folder = ROOT / "tests/released" / row.folder
        return released.shrunk(folder, scratch / name, row.tiny if tiny else {})
    if name.startswith("var"):
        sizes = row.tiny if tiny else {"transformer": var_sizes(30), "vqvae": RELEASED}
        return released.var_checkpoint(scratch / name, **sizes)
    full = {"transformer": VARIANTS["2b"].transformer, "vae": VARIANTS["2b"].autoencoder}
    return released.infinity_checkpoint(scratch / name, **(row.tiny if tiny else full))


def measure(name: str, row: Row, tiny: bool, device: torch.device, scratch: Path) -> dict[str, Any]:
    """Seconds of a step, and of the network's bare passes over as many rows."""
    prompts = scratch / f"{name}.txt"
    prompts.write_text("class 1\nclass 2\nclass 3\nclass 4\n" if name.startswith("var") else "a cat\na dog\na fox\n")
    options = [
        f"backend.checkpoint={json.dumps(str(checkpoint(name, row, tiny, scratch)))}",
        f"prompts.file={json.dumps(str(prompts))}",
        f"run.device='{device}'",
        "run.steps=9",
        *row.options,
        *(("backend.dtype='float32'", *row.tiny_options) if tiny else ()),
        "evaluation={}",
        REWARD,
    ]
    problem = assemble(specs.load(ROOT / "specs" / f"{row.spec}.toml", options), report=lambda text: None)
    optimizer = load_optimizer(problem)
    optimizer.step(0)  # loads, checks and warms up
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = clock(device)
    with counting() as count:
        optimizer.step(1)
    step = clock(device) - start
    peak = peak_memory(device)
    plan = problem.spec.optimizer_config.plan(problem.spec)
    rows = count.rows or plan.images_per_step
    bare, both = (seconds_a_row(problem, gradient) for gradient in (False, True))
    limit = both if row.gradient and both else bare
    return {
        "row": name,
        "spec": row.spec,
        "step": step,
        "images": plan.images_per_step,
        "rows": rows,
        "bare": 1 / bare,
        "bare_backward": 1 / both if both else None,
        "network": rows * limit / step,
        "peak_mb": peak,
    }


def seconds_a_row(problem: Problem, gradient: bool) -> float | None:
    """Of the frozen network, best of three calls of a micro-batch; None where a model has no such pass."""
    batch = problem.draw(0)
    index = torch.arange(problem.micro_batch) % len(batch.seeds)
    conditioning, seeds = batch.conditioning[index], [batch.seeds[i] for i in index.tolist()]
    if problem.backend.info.family != "diffusion":
        return None if gradient else best(lambda: problem.render(conditioning, seeds), problem) / len(index)
    x = problem.backend.noise(seeds).requires_grad_(gradient)
    denoiser = problem.backend.denoiser(conditioning)

    def call() -> None:
        found = denoiser(x, denoiser.path.t_start / 2).x0
        if gradient:
            torch.autograd.grad(found.square().mean(), x)

    with contextlib.nullcontext() if gradient else torch.no_grad():
        return best(call, problem) / len(index)


def best(run: Callable[[], object], problem: Problem) -> float:
    times = []
    with problem.base():
        for _ in range(4):
            start = clock(problem.device)
            run()
            times.append(clock(problem.device) - start)
    return min(times[1:])


def line(found: dict[str, Any]) -> str:
    backward = f" / {found['bare_backward']:.1f}" if found["bare_backward"] else ""
    cells = [
        f"`{found['spec']}`",
        f"{found['step']:.2f}",
        f"{found['images'] / found['step']:.2f}",
        f"{found['rows']}",
        f"{found['bare']:.1f}{backward}",
        f"{found['network']:.0%}",
        f"{found['peak_mb']:.0f}" if found["peak_mb"] else "",
    ]
    return "| " + " | ".join(cells) + " |"


HEAD = "| spec | step, s | images/s | network rows | bare rows/s, forward / with backward | network | peak MB |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small models in float32, on any device")
    parser.add_argument("--device", help="default: cuda, with --tiny the CPU")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=600, help="no row starts later than this")
    parser.add_argument("--json", type=Path, help="append one JSON object a row to this file, too")
    arguments = parser.parse_args()
    device = torch.device(arguments.device or ("cpu" if arguments.tiny else "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device; --tiny runs on a CPU")
    start = time.perf_counter()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {'small models' if arguments.tiny else 'real sizes'}\n\n{HEAD}")
    print("|---" * HEAD.count(" | ") + "|---|", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as scratch, released.random_weights(device), quiet_libraries():
        for row in arguments.rows:
            if time.perf_counter() - start > arguments.seconds:
                print(f"| `{ROWS[row].spec}` | not started: the time was up |", flush=True)
                continue
            try:
                found = measure(row, ROWS[row], arguments.tiny, device, Path(scratch))
            except Exception as error:  # time on a GPU is dear: the other rows are measured all the same
                if is_out_of_memory(error):
                    print(f"| `{ROWS[row].spec}` | out of memory |", flush=True)
                else:
                    print(f"| `{ROWS[row].spec}` | failed: {type(error).__name__} |", flush=True)
                    traceback.print_exc()
                    failed.append(row)
            else:
                print(line(found), flush=True)
                if arguments.json:
                    with arguments.json.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(found) + "\n")
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
