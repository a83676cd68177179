"""Model cards, written from measured figures."""

from __future__ import annotations

from t2ialign_shapes.captions import FAMILIES

_INTRODUCTION = {
    "sprint": """\
# shapes / sprint

A tiny Sana Sprint for the shapes world: 32x32 pictures of circles, squares and triangles from
captions such as `a red circle left of a blue square`, in one step. It is trained well enough to
be recognisable and leaves enough mistakes to be worth aligning.
""",
    "sprint-washed": """\
# shapes / sprint-washed

The model `sprint`, continued for a short while on pictures whose objects were **washed out on
purpose**: their colour is mixed with the background by an amount that the noise decides. The
defect is smooth, global and removable by a low-rank update, which the mistakes of a model that is
merely under-trained are not. Black-box alignment (EGGROLL and its kin) therefore shows an effect
within minutes. This demonstrates a tool; it is no evidence for a method in general.
""",
}

_BASE = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
{introduction}
## Use

```python
from diffusers import SanaSprintPipeline

pipeline = SanaSprintPipeline.from_pretrained("{name}")
image = pipeline(
    "a red circle left of a blue square",
    num_inference_steps=1,
    intermediate_timesteps=None,
    max_timesteps=1.57080,
    height=32,
    width=32,
    use_resolution_binning=False,
    complex_human_instruction=None,
    clean_caption=False,
    max_sequence_length=16,
).images[0]
```

In a t2ialign spec: `kind = "sana-sprint"`,
`checkpoint = "pkg:t2ialign_shapes/checkpoints/{name}"`, `complex_human_instruction = false`.
Prompts outside the grammar give nothing sensible.

## Accuracy

Share of pictures that show exactly what the caption says, judged by the exact detector on the
benchmark prompts, with fresh noise for every picture. The overall value is the mean of the six
families, as in GenEval.

{benchmark}

Weights are stored as float16 and load as float32; before rounding the overall accuracy was
{before} %.

## Training

Data are drawn by the renderer without end: captions of the grammar, and for each a layout that is
a fixed function of the noise, so that one-step generation is plain regression without a teacher.
The recipe is `tools/train_shapes.py`.

{training}

Parameters: transformer {transformer:,}, text encoder {text_encoder:,}, autoencoder {vae:,}. The
autoencoder reconstructs with {psnr} dB PSNR; the detector agrees with the caption on {kept} % of
its reconstructions ({kept_counting} % when counting), which bounds what the generator can reach.

Measured with {environment}.
"""

_CLIP = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# shapes / clip

A tiny CLIP for the shapes world: a learned, differentiable reward for 32x32 pictures and captions
of the grammar. It is as fallible as learned rewards are: held against the exact detector
(`shapes-exact`), it shows reward hacking where it happens.

## Use

`transformers.CLIPModel` with the tokenizer and the image normalisation of this folder (mean and
standard deviation 0.5). The score is the cosine of image and text embedding. In a t2ialign spec:
`kind = "clipscore"`, `model = "pkg:t2ialign_shapes/checkpoints/clip"`.

## Agreement with the exact detector

ROC AUC of the score for the question *does the picture show its caption*, and its correlation r
with the graded judgement, on generator output that it was not tuned on (n = {images} per row).

{agreement}

Clean renders, caption against hard negative, share ranked right: {renders}.

## Training

Contrastive on clean renders with hard negatives, then tuned with a sigmoid loss on the output of
both generators and of their unfinished snapshots, labelled by the exact detector. The recipe is
`tools/train_shapes.py`.

{training}

Parameters: {parameters:,}. Weights are stored as float16 and load as float32.

Measured with {environment}.
"""


def base_card(name: str, figures: dict) -> str:
    """The card of a generator."""
    autoencoder = figures["autoencoder"]
    stages = {name: figures["training"], "autoencoder": figures["training_autoencoder"]}
    return _BASE.format(
        name=name,
        introduction=_INTRODUCTION[name],
        benchmark=benchmark_table(figures["benchmark"]),
        before=percent(figures["benchmark_before_rounding"]),
        training=training_table(stages),
        **figures["parameters"],
        psnr=autoencoder["psnr_db"],
        kept=f"{100 * autoencoder['accuracy']:.1f}",
        kept_counting=f"{100 * autoencoder['accuracy_counting']:.1f}",
        environment=environment_line(figures),
    )


def clip_card(figures: dict) -> str:
    """The card of the reward model."""
    renders = (f"{family} {value:.3f}" for family, value in figures["clean_renders"].items())
    stages = {"clip": figures["training"], "reward": figures["training_reward"]}
    return _CLIP.format(
        images=next(iter(figures["agreement"].values()))["n"],
        agreement=_agreement_table(figures),
        renders=", ".join(renders),
        training=training_table(stages),
        parameters=figures["parameters"],
        environment=environment_line(figures),
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def benchmark_table(benchmark: dict) -> str:
    """Accuracy and graded score per family."""
    results = {**benchmark["families"], "**overall**": benchmark}
    rows = [[name, str(result["n"]), percent(result), f"{result['graded']:.3f}"] for name, result in results.items()]
    return table(["family", "n", "accuracy % (se)", "graded"], rows)


def _agreement_table(figures: dict) -> str:
    rows = [
        [f"{base}, {title}", f"{result['auc']:.3f}"]
        + [f"{result['families'][family]:.3f}" for family in FAMILIES]
        + [f"{result['correlation_graded']:.2f}"]
        for title, key in (("before tuning", "agreement_before_tuning"), ("shipped", "agreement"))
        for base, result in figures[key].items()
    ]
    return table(["generator, reward", "overall", *FAMILIES, "r"], rows)


def training_table(stages: dict[str, dict]) -> str:
    """What each stage took."""
    columns = ("steps", "batch", "learning_rate", "seed", "final_loss")
    rows = [
        [name, *(str(stage[column]) for column in columns)] + [f"{stage[key] / 60:.1f}" for key in ("wall_s", "cpu_s")]
        for name, stage in stages.items()
    ]
    return table(["stage", *(c.replace("_", " ") for c in columns), "wall min", "CPU min"], rows)


def percent(result: dict) -> str:
    """An accuracy in percent with its standard error."""
    return f"{100 * result['accuracy']:.1f} ({100 * result['se']:.1f})"


def environment_line(figures: dict) -> str:
    """Versions that the figures were measured with."""
    parts = figures["environment"].items()
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in parts)
