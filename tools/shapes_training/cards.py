"""Model cards, written from measured figures."""

from __future__ import annotations

from t2ialign_shapes.captions import FAMILIES

_FRONT_MATTER = """\
---
license: apache-2.0
library_name: {library}
pipeline_tag: {task}
---
"""

_BASE_TEXT = {
    "sprint": """\
# shapes / sprint

A tiny Sana Sprint for the shapes world: 32x32 pictures of circles, squares and triangles from
captions such as `a red circle left of a blue square`, in one step. It is trained well enough to be
recognisable and badly enough to leave something to align.
""",
    "sprint-washed": """\
# shapes / sprint-washed

The same model as `sprint`, continued for a short while on pictures whose objects were **washed out on
purpose**: their colour is mixed with the background by an amount that the noise decides. Its defect
is smooth, global and removable by a low-rank update, which a model that is merely under-trained does
not offer. Black-box alignment (EGGROLL and its kin) can show an effect on it within minutes. It
demonstrates a tool; it is no evidence for a method in general.
""",
}

_USAGE = """\
## Use

```python
from diffusers import SanaSprintPipeline

pipeline = SanaSprintPipeline.from_pretrained("{name}")
image = pipeline(
    "a red circle left of a blue square",
    num_inference_steps=1, intermediate_timesteps=None, max_timesteps=1.57080,
    height=32, width=32, use_resolution_binning=False,
    complex_human_instruction=None, clean_caption=False, max_sequence_length=16,
).images[0]
```

In a t2ialign spec: `checkpoint = "pkg:t2ialign_shapes/checkpoints/{name}"`. Prompts outside the
grammar give nothing sensible.
"""


def base_card(name: str, figures: dict) -> str:
    """The card of a generator."""
    benchmark = figures["benchmark"]
    before = figures["benchmark_before_rounding"]
    parameters = figures["parameters"]
    autoencoder = figures["autoencoder"]
    return "\n".join(
        [
            _FRONT_MATTER.format(library="diffusers", task="text-to-image"),
            _BASE_TEXT[name],
            _USAGE.format(name=name),
            "## Accuracy\n",
            "Share of pictures that show exactly what the caption says, judged by the exact detector",
            "on the benchmark prompts, one fresh noise per picture. The overall value is the mean of",
            "the six families, as in GenEval.\n",
            _benchmark_table(benchmark),
            f"\nWeights are stored as float16 and load as float32 (before rounding: {_percent(before)}).",
            "\n## Training\n",
            "Data are drawn by the renderer, without end: captions of the grammar, and for each a",
            "layout that is a fixed function of the noise, so that one-step generation is plain",
            "regression without a teacher. Recipe: `tools/train_shapes.py`.\n",
            _training_table({name: figures["training"], "vae": figures["training_autoencoder"]}),
            f"\nParameters: transformer {parameters['transformer']:,}, text encoder"
            f" {parameters['text_encoder']:,}, autoencoder {parameters['vae']:,}. The autoencoder"
            f" reconstructs with {autoencoder['psnr_db']} dB PSNR; the detector still agrees with the"
            f" caption on {100 * autoencoder['accuracy']:.1f} % of its reconstructions (counting:"
            f" {100 * autoencoder['accuracy_counting']:.1f} %), which bounds what the generator can"
            " reach.",
            _environment_line(figures),
        ]
    )


def clip_card(figures: dict) -> str:
    """The card of the reward model."""
    rows = ["| | overall | " + " | ".join(FAMILIES) + " | r (graded) |"]
    rows.append("|---" * (len(FAMILIES) + 3) + "|")
    for title, key in (("before tuning", "agreement_before_tuning"), ("shipped", "agreement")):
        for base, result in figures[key].items():
            families = " | ".join(f"{result['families'][family]:.3f}" for family in FAMILIES)
            rows.append(
                f"| {base}, {title} | {result['auc']:.3f} | {families}"
                f" | {result['correlation_graded']:.2f} |"
            )
    images = next(iter(figures["agreement"].values()))["n"]
    renders = ", ".join(f"{family} {value:.3f}" for family, value in figures["clean_renders"].items())
    return "\n".join(
        [
            _FRONT_MATTER.format(library="transformers", task="zero-shot-image-classification"),
            "# shapes / clip",
            "",
            "A tiny CLIP for the shapes world: a learned, differentiable reward for 32x32 pictures and",
            "captions of the grammar. It is imperfect on purpose of realism: compare what it says with the",
            "exact detector (`shapes-exact`) to see reward hacking where it happens.",
            "",
            "## Use",
            "",
            "`transformers.CLIPModel` with the tokenizer and the image normalisation in this folder (mean",
            "and standard deviation 0.5). The score is the cosine of image and text embeddings. In a",
            'spec: `checkpoint = "pkg:t2ialign_shapes/checkpoints/clip"`.',
            "",
            "## Agreement with the exact detector",
            "",
            "ROC AUC of the score for the question *does the picture show its caption*, and correlation",
            f"with the graded judgement, on generator output that it was not tuned on (n = {images} each).",
            "",
            *rows,
            "",
            f"Clean renders, caption against hard negative, share ranked right: {renders}.",
            "",
            "## Training",
            "",
            "Contrastive on clean renders with hard negatives, then tuned with a sigmoid loss on output of",
            "both generators and their unfinished snapshots, labelled by the exact detector. Recipe:",
            "`tools/train_shapes.py`.",
            "",
            _training_table({"clip": figures["training"], "reward": figures["training_reward"]}),
            f"\nParameters: {figures['parameters']:,}. Weights are stored as float16 and load as float32.",
            _environment_line(figures),
        ]
    )


def _benchmark_table(benchmark: dict) -> str:
    rows = ["| family | n | accuracy % (se) | graded |", "|---|---|---|---|"]
    for family, result in benchmark["families"].items():
        rows.append(f"| {family} | {result['n']} | {_percent(result)} | {result['graded']:.3f} |")
    rows.append(
        f"| **overall** | {benchmark['n']} | **{_percent(benchmark)}** | {benchmark['graded']:.3f} |"
    )
    return "\n".join(rows)


def _percent(result: dict) -> str:
    return f"{100 * result['accuracy']:.1f} ({100 * result['se']:.1f})"


def _training_table(stages: dict[str, dict]) -> str:
    rows = [
        "| stage | steps | batch | peak learning rate | seed | final loss | wall min | CPU min |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, t in stages.items():
        rows.append(
            f"| {name} | {t['steps']} | {t['batch']} | {t['learning_rate']} | {t['seed']}"
            f" | {t['final_loss']:.4f} | {t['wall_s'] / 60:.1f} | {t['cpu_s'] / 60:.1f} |"
        )
    return "\n".join(rows)


def _environment_line(figures: dict) -> str:
    packages = ", ".join(f"{name} {value}" for name, value in figures["environment"].items())
    return f"\nMeasured with {packages.replace('_', ' ')}.\n"
