"""Cards of the checkpoints in Stable Diffusion's format, written from measured figures."""

from __future__ import annotations

from shapes_training.cards import benchmark_table, environment_line, percent, table, training_table

_INTRODUCTION = {
    "sd": """\
# shapes / sd

A tiny Stable Diffusion for the shapes world: 32x32 pictures of circles, squares and triangles from
captions such as `a red circle left of a blue square`, in several steps with classifier-free
guidance. It predicts v on Stable Diffusion's schedule, whose signal-to-noise ratio stays positive
at the last timestep, so that every solver over sigma or log SNR applies.
""",
    "sd-turbo": """\
# shapes / sd-turbo

A tiny one-step Stable Diffusion for the shapes world, run as SD-Turbo is: one trailing Euler step
from timestep 999, no guidance, x0 = x - sigma eps. Captions and pictures are those of the model
`sd`.
""",
}

_CALL = {
    "sd": "num_inference_steps={steps}, guidance_scale={guidance}",
    "sd-turbo": "num_inference_steps=1, guidance_scale=0.0",
}

_BACKEND = {"sd": "sd15", "sd-turbo": "sd-turbo"}

_TRAINING = {
    "sd": """\
Random layouts from the renderer, encoded once; squared error of v, timesteps drawn more often
where the caption decides what goes where. The text encoder starts from the text tower of the
shapes CLIP. So trained (stage `sd`), the model left where things are to chance; it went on from the
weights of `sd-turbo`, which had to learn places, with relations in half of every batch (stage
`sd-relations`).""",
    "sd-turbo": """\
No distillation: the renderer makes a layout that is a fixed function of noise and caption, and the
network regresses it. It starts from the weights of the stage `sd`, the multi-step model before it
learnt places.""",
}

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
{introduction}
## Use

```python
from diffusers import StableDiffusionPipeline

pipeline = StableDiffusionPipeline.from_pretrained("{name}")
image = pipeline("a red circle left of a blue square", {call}).images[0]
```

In a t2ialign spec: backend `{backend}` with
`checkpoint = "pkg:t2ialign_shapes/checkpoints/{name}"`. Prompts outside the grammar give nothing
sensible.

## Accuracy

Share of pictures that show exactly what the caption says, judged by the exact detector on the
benchmark prompts, with fresh noise for every picture and the call above. The overall value is the
mean of the six families, as in GenEval.

{benchmark}
{solvers}
## Training

{about_training} The recipe is `tools/train_shapes.py`.

{training}

Parameters: UNet {unet:,}, text encoder {text_encoder:,}, autoencoder {vae:,}. The autoencoder
reconstructs with {psnr} dB PSNR; the detector agrees with the caption on {kept} % of its
reconstructions ({kept_counting} % when counting), which bounds what the generator can reach.
Weights are stored as float16 and load as float32; all figures are those of the stored weights.

Measured with {environment}.
"""

_SOLVERS = """
## Solvers

Accuracy and truncation error by network evaluations (NFE; one evaluation under guidance is two
UNet passes), from the same noise in every row, guidance {guidance}, n = {n}. The error of a picture
is the root mean squared difference of its pixels in [0, 1] to {reference_steps} steps of
DPM-Solver++(2M), whose accuracy is {reference} %; in the table its median, and the root mean square
over all pictures, which a few whose objects end up elsewhere rule. Solvers are t2ialign's, on the checkpoint's own
time grid (native) or evenly in log SNR; Euler in their coordinates is DDIM.

{table}
"""


def card(name: str, figures: dict) -> str:
    """The card of ``sd`` or ``sd-turbo``."""
    autoencoder = figures["autoencoder"]
    return _CARD.format(
        name=name,
        introduction=_INTRODUCTION[name],
        call=_CALL[name].format(**figures.get("sampling", {})),
        backend=_BACKEND[name],
        benchmark=benchmark_table(figures["benchmark"]),
        solvers=_solver_section(figures["solvers"]) if "solvers" in figures else "",
        about_training=_TRAINING[name],
        training=training_table(figures["training"]),
        **figures["parameters"],
        psnr=autoencoder["psnr_db"],
        kept=f"{100 * autoencoder['accuracy']:.1f}",
        kept_counting=f"{100 * autoencoder['accuracy_counting']:.1f}",
        environment=environment_line(figures),
    )


def _solver_section(solvers: dict) -> str:
    return _SOLVERS.format(
        guidance=solvers["guidance"],
        n=solvers["n"],
        reference_steps=solvers["reference"]["steps"],
        reference=percent(solvers["reference"]),
        table=_solver_table(solvers["rows"]),
    )


def _solver_table(rows: list[dict]) -> str:
    return table(
        ["schedule", "solver", "steps", "NFE", "median error", "rms error", "accuracy % (se)", "graded"],
        [
            [
                row["schedule"],
                row["solver"],
                str(row["steps"]),
                str(row["nfe"]),
                f"{row['median']:.4f}",
                f"{row['rmse']:.3f}",
                percent(row),
                f"{row['graded']:.3f}",
            ]
            for row in rows
        ],
    )
