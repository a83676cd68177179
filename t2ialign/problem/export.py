"""The exported LoRA: a file that diffusers loads as it is, a model card, and the proof that it works."""

from __future__ import annotations

from pathlib import Path

import torch

from t2ialign.errors import ExportError
from t2ialign.lora.file import write_loras
from t2ialign.problem.problem import Problem
from t2ialign.tensors import seeding

#: Largest pixel difference between the run's images and those of the re-loaded file.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}


def export_lora(problem: Problem, folder: Path) -> None:
    """Write the problem's LoRA into ``folder`` and check it in a freshly loaded backend.

    Raises:
        ExportError: the LoRA is zero, changes nothing, or gives other images after loading.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_loras(problem.adapter, problem.backend.info.adapter_prefix, folder)
    difference, change = check_export(problem, folder)
    (folder / "README.md").write_text(model_card(problem, difference, change), encoding="utf-8")


@torch.no_grad()
def check_export(problem: Problem, folder: Path, images: int = 4) -> tuple[float, float]:
    """Generate a few images with the run's LoRA, without it, and with the file loaded into a fresh backend.

    Returns:
        Largest pixel difference (re-loaded against the run, run against base).

    Raises:
        ExportError: the file changes nothing, or not what the run's LoRA changes.
    """
    backend, adapter = problem.backend, problem.adapter
    if all(bool((p == 0).all()) for name, p in adapter.parameters().items() if name.endswith("lora_B.weight")):
        raise ExportError("the LoRA is still zero: there is nothing to export before the first step")
    prompts = list(dict.fromkeys(problem.prompts))[:images]
    conditioning = backend.encode(prompts)
    seeds = [seeding.derive(0, "export", prompt) for prompt in prompts]
    tuned = problem.generate(conditioning, seeds)
    with adapter.disabled():
        base = problem.generate(conditioning, seeds)
    fresh = type(backend)(backend.config, backend.device)
    fresh.load_lora(folder)
    loaded = fresh.generate(conditioning, seeds, problem.sampler)
    difference = (loaded - tuned).abs().max().item()
    change = (loaded - base).abs().max().item()
    tolerance = TOLERANCE[backend.config.dtype]
    if not difference <= tolerance:
        raise ExportError(
            f"the exported LoRA gives other images than the run: largest difference {difference:.2g} > {tolerance:g}"
        )
    if change == 0:
        raise ExportError("the exported LoRA loads but changes nothing: its images equal the base model's")
    return difference, change


def model_card(problem: Problem, difference: float, change: float) -> str:
    """README.md of an export, in the hub's model-card format."""
    spec, info = problem.spec, problem.backend.info
    rewards = ", ".join(f"{r.name} (weight {r.mix.weight:g})" for r in spec.rewards if r.mix.weight)
    held_out = ", ".join(r.name for r in spec.rewards if not r.mix.weight) or "none"
    hub_id = f"base_model: {info.base_model}\n" if "/" in info.base_model and ":" not in info.base_model else ""
    return f"""---
library_name: {"diffusers" if info.pipeline else "t2ialign"}
{hub_id}tags: [lora, text-to-image, t2ialign]
---

# {spec.name}

A LoRA (rank {problem.adapter.config.rank}) for `{info.base_model}`, aligned by t2ialign.

| | |
|---|---|
| optimizer | {spec.optimizer.kind}, {spec.run.steps} steps, seed {spec.run.seed} |
| optimised rewards | {rewards} |
| held-out rewards | {held_out} |
| modules | {", ".join(problem.adapter.targets)} |
| scale | folded into B: load it at strength 1, whatever the loader does with alpha |
| load check | largest pixel difference to the run's images {difference:.1e}, to the base's {change:.1e} |

```python
{problem.backend.snippet().strip()}
```
"""
