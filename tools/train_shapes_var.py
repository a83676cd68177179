"""Train the tiny VAR of t2ialign-shapes from nothing, on one CPU core.

    python tools/train_shapes_var.py all --work runs/shapes-var

Eighteen classes, colour times shape: "a red circle". The pictures it learns from are washed out on purpose: objects
fade into the background by a random contrast, so that many samples are too faint for the detector. That defect is
smooth, global and removable by a low-rank update, so that black-box alignment shows an effect within minutes.

Stages, in order; each checkpoints itself, continues where it stopped, and does nothing if it is complete.

    tokenizer     pixels to 85 tokens and back
    transformer   class to tokens, scale by scale
    package       evaluate, write checkpoint, classes, prompts and card
"""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from shapes_training.loop import Recipe, Stage, generator_for, train
from shapes_training.workdir import read_json_lines, read_tensors, write_json, write_tensors, write_text
from torch import Tensor, nn
from torch.nn import functional as F

from t2ialign_shapes import detector
from t2ialign_shapes.captions import Caption, enumerate_captions
from t2ialign_shapes.layout import sample_layout
from t2ialign_shapes.render import render
from t2ialign_var.backend import VarBackend
from t2ialign_var.config import VarConfig
from t2ialign_var.transformer import VarTransformer
from t2ialign_var.vqvae import VQVAE

CLASSES: list[Caption] = [caption for caption in enumerate_captions("colors") if caption.background is None]
PATCH_NUMS = [1, 2, 4, 8]
SIZES: dict[str, dict[str, Any]] = {
    "transformer": {
        "patch_nums": PATCH_NUMS,
        "codes": 512,
        "code_channels": 8,
        "classes": len(CLASSES),
        "depth": 4,
        "width": 64,
        "heads": 4,
    },
    "vqvae": {"codes": 512, "z_channels": 8, "ch": 16, "ch_mult": [1, 2, 2], "num_res_blocks": 1, "norm_groups": 4},
}
TOKENIZER = Recipe(steps=900, batch=32, learning_rate=3e-3, weight_decay=0.0, warmup=30, evaluate_every=150)
TRANSFORMER = Recipe(
    steps=1500, batch=64, learning_rate=3e-3, betas=(0.9, 0.95), warmup=100, ema=0.99, evaluate_every=500
)
CONTRAST = (0.3, 1.0)
DROP_CLASS = 0.1
COMMITMENT = 0.25
REVIVE_EVERY = 20
CONTINUOUS = 350
"""Steps of the tokenizer before it quantises."""
CARD = """\
---
license: apache-2.0
library_name: t2ialign
pipeline_tag: text-to-image
---
# shapes / var

A tiny VAR (class-conditional next-scale prediction) of {parameters:,} parameters with a multi-scale VQVAE of {vae:,}:
32x32 pictures of one object, 18 classes such as `a red circle`, 85 tokens on the scales 1, 2, 4 and 8.

It was trained on pictures whose objects are **washed out on purpose**: their colour is mixed with the background at a
random contrast between {low} and {high}. The defect is smooth, global and removable by a low-rank update, so that
black-box alignment shows an effect within minutes. This demonstrates a tool; it is no evidence for a method in general.

## Use

```toml
[backend]
kind = "var"
checkpoint = "pkg:t2ialign_shapes/checkpoints/var"
dtype = "float32"
guidance_scale = {guidance}
top_k = 0
top_p = 1.0
```

## Figures

Measured on the files of this folder with guidance {guidance} and unfiltered sampling, {images} pictures, judged by the
exact detector: {accuracy:.1f} % (s.e. {se:.1f}) show their class, graded score {graded:.3f}. The tokenizer alone keeps
{kept_clear:.1f} % of full-contrast renders and {kept_faded:.1f} % of faded ones right, where the renders themselves are
right in {render_faded:.1f} % of the faded ones.

## Training

The recipe is `tools/train_shapes_var.py`: tokenizer {tokenizer_steps} steps of {tokenizer_batch} pictures
({tokenizer_min:.1f} min), transformer {transformer_steps} steps of {transformer_batch} ({transformer_min:.1f} min),
seed 0, one CPU thread, {environment}. Weights are stored as float16 and load as float32.
"""


def draw_images(batch: int, low: float, high: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random pictures of random classes at a random contrast: images (B, 3, 32, 32) in [0, 1], classes (B,)."""
    labels = torch.randint(len(CLASSES), (batch,), generator=generator)
    layout = sample_layout([CLASSES[label] for label in labels.tolist()], generator)
    layout.contrast = low + (high - low) * torch.rand(batch, generator=generator)
    return render(layout), labels


class Tokenizer(nn.Module):
    """The VQVAE with what its training needs besides: how often each code was used of late."""

    def __init__(self) -> None:
        super().__init__()
        self.vqvae = VQVAE(PATCH_NUMS, **SIZES["vqvae"])
        codebook = self.vqvae.quantize.embedding.weight
        nn.init.normal_(codebook)
        self.register_buffer("usage", torch.zeros(len(codebook)))

    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        """First a plain autoencoder, so that features carry the picture; then through the codes."""
        images, _ = draw_images(TOKENIZER.batch, CONTRAST[0], 1.0, generator)
        features = self.vqvae.features(images)
        if step < CONTINUOUS:
            noise = torch.randn(features.shape, generator=generator)
            std, mean = torch.std_mean(features, (0, 2, 3))
            passed, regulariser = features + 0.1 * noise, 0.02 * (mean.square() + (std - 1).square()).mean()
        else:
            passed, regulariser = self._quantise(step, features, generator)
        error = self.vqvae.pixels(passed) - (2 * images - 1)
        return error.abs().mean() + 2 * error.square().mean() + regulariser

    def _quantise(self, step: int, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Quantised features with the gradient passed straight through, and the losses of codes and encoder.

        As in VQ-VAE (arXiv 1711.00937, eq. 3), codes at every scale; the encoder commits to the last one only, since
        coarse scales cannot follow it.
        """
        if (step - CONTINUOUS) % REVIVE_EVERY == 0 and step < TOKENIZER.steps * 0.7:
            self._revive(features.detach(), generator)
        steps = list(self.vqvae.quantize.steps(features.detach()))
        self.usage += torch.bincount(torch.cat([s.tokens.flatten() for s in steps]), minlength=len(self.usage))
        codes = torch.stack([F.mse_loss(s.features, features.detach()) for s in steps]).mean()
        commitment = F.mse_loss(features, steps[-1].features.detach())
        return features + (steps[-1].features - features).detach(), codes + COMMITMENT * commitment

    @torch.no_grad()
    def _revive(self, features: Tensor, generator: torch.Generator) -> None:
        """Move codes that nothing used of late (at first: all) to random residuals, so that no code is wasted."""
        quantiser = self.vqvae.quantize
        before = torch.zeros_like(features)
        residuals = []
        for scale, current in enumerate(quantiser.steps(features)):
            residuals.append(quantiser.at_scale(scale, features - before).flatten(0, 1))
            before = current.features
        pool = torch.cat(residuals)
        dead = self.usage == 0
        quantiser.embedding.weight[dead] = pool[torch.randint(len(pool), (int(dead.sum()),), generator=generator)]
        self.usage.zero_()

    @torch.no_grad()
    def evaluate(self, count: int = 288) -> dict[str, float]:
        """Detector accuracy of reconstructions, of full-contrast and of faded renders, in percent."""
        figures: dict[str, float] = {"codes_in_use": 0}
        for name, (low, high) in {"clear": (1.0, 1.0), "faded": CONTRAST}.items():
            images, labels = draw_images(count, low, high, generator_for("var-tokenizer", name))
            tokens = self.vqvae.quantize.encode(self.vqvae.features(images))
            decoded = self.vqvae.decode(self.vqvae.quantize.unroll(tokens)[0])
            captions = [CLASSES[label] for label in labels.tolist()]
            figures[f"render_{name}"] = 100 * detector.check(images, captions).float().mean().item()
            figures[f"kept_{name}"] = 100 * detector.check(decoded, captions).float().mean().item()
            figures[f"psnr_{name}"] = -10 * (decoded - images).square().mean().log10().item()
            figures["codes_in_use"] = max(figures["codes_in_use"], len(tokens.unique()))
        return figures


def train_tokenizer(work: Path) -> VQVAE:
    """Train the tokenizer, or load the trained one."""
    torch.manual_seed(TOKENIZER.seed)
    model = Tokenizer()
    train(Stage("tokenizer", work, model, model.loss, model.evaluate), TOKENIZER)
    return model.vqvae.eval().requires_grad_(False)


def new_transformer() -> VarTransformer:
    """A transformer that starts as a plain pre-norm one: gates 1, scales and shifts 0."""
    model = VarTransformer(**SIZES["transformer"])
    width = model.pos_start.shape[-1]
    for tensor in (model.pos_start, model.pos_1LC, model.lvl_embed.weight, model.class_emb.weight):
        nn.init.normal_(tensor, std=(3 * width) ** -0.5)
    for block in model.blocks:
        nn.init.zeros_(block.ada_lin[1].weight)
        block.ada_lin[1].bias.data = torch.tensor([1.0, 1, 0, 0, 0, 0]).repeat_interleave(width)
    nn.init.zeros_(model.head_nm.ada_lin[1].weight)
    nn.init.zeros_(model.head_nm.ada_lin[1].bias)
    return model


def train_transformer(work: Path) -> None:
    """Train the transformer on the tokenizer's tokens, or do nothing if it is trained."""
    vqvae = train_tokenizer(work)
    torch.manual_seed(TRANSFORMER.seed)
    model = new_transformer()

    def loss(step: int, generator: torch.Generator) -> Tensor:
        images, labels = draw_images(TRANSFORMER.batch, *CONTRAST, generator)
        with torch.no_grad():
            tokens = vqvae.quantize.encode(vqvae.features(images))
            _, inputs = vqvae.quantize.unroll(tokens)
        dropped = torch.rand(len(labels), generator=generator) < DROP_CLASS
        logits = model(torch.where(dropped, model.classes, labels), inputs)
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    def evaluate() -> dict[str, float]:
        write_checkpoint(work / "shown", model, vqvae)
        return score_checkpoint(work / "shown", per_class=8)

    train(Stage("transformer", work, model, loss, evaluate), TRANSFORMER)
    write_checkpoint(work / "checkpoint", model, vqvae)


def write_checkpoint(folder: Path, transformer: VarTransformer, vqvae: VQVAE) -> None:
    """A folder that the backend "var" loads; weights as float16."""
    for name, module in {"var": transformer, "vae": vqvae}.items():
        write_tensors(folder / f"{name}.safetensors", {k: v.half() for k, v in module.state_dict().items()})
    write_json(folder / "config.json", SIZES)
    write_text(folder / "classes.json", json.dumps([str(caption) for caption in CLASSES], indent=0) + "\n")
    write_text(folder / "prompts.txt", "\n".join(str(caption) for caption in CLASSES) + "\n")


GUIDANCE = 1.5


def score_checkpoint(folder: Path, per_class: int) -> dict[str, float]:
    """Detector accuracy in percent, its standard error, and the graded score, of samples of every class."""
    config = VarConfig(checkpoint=str(folder), dtype="float32", guidance_scale=GUIDANCE, top_k=0, top_p=1.0)
    backend = VarBackend(config)
    captions = [caption for caption in CLASSES for _ in range(per_class)]
    conditioning = backend.encode([str(caption) for caption in captions])
    parts = range(0, len(captions), 64)
    images = torch.cat(
        [backend.generate(conditioning[slice(i, i + 64)], range(i, min(i + 64, len(captions)))) for i in parts]
    )
    right = detector.check(images, captions).float()
    return {
        "images": len(captions),
        "accuracy": 100 * right.mean().item(),
        "se": 100 * (right.std() / len(right) ** 0.5).item(),
        "graded": detector.graded(images, captions).mean().item(),
    }


def write_package(work: Path, folder: Path) -> None:
    """Write the trained checkpoint, its figures and its card into ``folder``."""
    for name in ("var.safetensors", "vae.safetensors"):
        write_tensors(folder / name, read_tensors(work / "checkpoint" / name))
    for name in ("config.json", "classes.json", "prompts.txt"):
        write_text(folder / name, (work / "checkpoint" / name).read_text())
    backend = VarBackend(VarConfig(checkpoint=str(folder), dtype="float32"))
    shipped = Tokenizer()
    shipped.vqvae = backend.vqvae
    figures: dict[str, Any] = score_checkpoint(folder, per_class=64) | shipped.evaluate(count=1152)
    for name, recipe in {"tokenizer": TOKENIZER, "transformer": TRANSFORMER}.items():
        last = read_json_lines(work / name / "log.jsonl")[-1]
        figures |= {
            f"{name}_steps": last["step"],
            f"{name}_batch": recipe.batch,
            f"{name}_min": last["wall_s"] / 60,
            f"{name}_loss": last["loss"],
        }
    figures |= {
        "parameters": sum(p.numel() for p in backend.transformer.parameters()),
        "vae": sum(p.numel() for p in backend.vqvae.parameters()),
        "environment": f"Python {platform.python_version()}, torch {version('torch')}",
    }
    write_json(folder / "evaluation.json", figures)
    write_text(folder / "README.md", CARD.format(low=CONTRAST[0], high=CONTRAST[1], guidance=GUIDANCE, **figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tokenizer", "transformer", "package", "all"])
    parser.add_argument("--work", type=Path, required=True, help="where stages keep their files")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parents[1] / "plugins/t2ialign-shapes/src/t2ialign_shapes/checkpoints/var",
        help="the folder that the stage 'package' writes",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.stage in ("tokenizer", "all"):
        train_tokenizer(arguments.work)
    if arguments.stage in ("transformer", "all"):
        train_transformer(arguments.work)
    if arguments.stage in ("package", "all"):
        write_package(arguments.work, arguments.out)


if __name__ == "__main__":
    main()
