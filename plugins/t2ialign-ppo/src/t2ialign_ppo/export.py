"""What a run delivers: the table as JSON and as safetensors, a card, and the proof that both files give its images."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from t2ialign import __version__, seeding
from t2ialign.errors import ExportError
from t2ialign.evaluation import evaluate
from t2ialign.problem.problem import Problem
from t2ialign_ppo.rollouts import rollout, sampler_of
from t2ialign_solvers.starts import levers
from t2ialign_solvers.table import SolverTable, load_table

FILES = ("table.json", "table.safetensors")
CHECKED = 2


def export_table(problem: Problem, table: SolverTable, chosen: dict[str, Any], folder: Path) -> None:
    """Write ``table.json``, ``table.safetensors`` and a README, and draw images from both files.

    Args:
        table: what the run delivers.
        chosen: how it was chosen, as JSON; becomes a part of the table's provenance.

    Raises:
        ExportError: a file's images are not bit for bit the run's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = replace(table, info=provenance(problem) | chosen)
    for name in FILES:
        table.save(folder / name)
        check(problem, table, folder / name)
    (folder / "README.md").write_text(card(problem, table), encoding="utf-8")


def check(problem: Problem, table: SolverTable, file: Path) -> None:
    """Compare a few images of the file's table with the run's."""
    prompts = list(dict.fromkeys(problem.prompts))[:CHECKED]
    conditioning = problem.backend.encode(prompts)
    seeds = [seeding.derive(0, "export", prompt) for prompt in prompts]
    images = rollout(problem, table, conditioning, seeds)
    loaded = rollout(problem, load_table(str(file)), conditioning, seeds)
    if not torch.equal(images, loaded):
        difference = (images - loaded).abs().max().item()
        raise ExportError(f"{file.name} gives other images than the run: largest difference {difference:.2g}")


def provenance(problem: Problem) -> dict[str, Any]:
    """Where a table comes from, as JSON."""
    spec, backend = problem.spec, problem.spec.backend_config
    return {
        "backend": spec.backend.kind,
        "checkpoint": backend.checkpoint,
        "guidance_scale": getattr(backend, "guidance_scale", None),
        "image_size": list(problem.backend.info.image_size),
        "optimizer": spec.optimizer.kind,
        "seed": spec.run.seed,
        "rewards": {reward.name: reward.mix.weight for reward in spec.rewards if reward.mix.weight},
        "start": spec.sampler_config.model_dump(mode="json"),
        "t2ialign": __version__,
    }


def card(problem: Problem, table: SolverTable) -> str:
    """README.md: how to use the table, and what is in it."""
    path = problem.backend.denoiser(problem.conditioning[:1]).path
    knots = sampler_of(problem).with_table(table).knots(path)[: table.steps + 1]
    rows = [
        [f"{v:.4g} to {w:.4g}", _numbers(r), _numbers(weights), _numbers(c), _numbers(a), f"{lever:.3f}"]
        for v, w, r, weights, c, a, lever in zip(
            knots[:-1].tolist(),
            knots[1:].tolist(),
            table.positions,
            table.weights,
            table.scale_dir,
            table.scale_time,
            levers(table, knots).tolist(),
            strict=True,
        )
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [_HEADER, ["---"] * len(_HEADER), *rows]]
    cost = evaluate.cost(problem, partial(rollout, problem, table), evaluate.items(problem))
    return f"""# {problem.spec.name}

A solver table for `{problem.backend.info.base_model}`: {table.steps} intervals, {table.points} parallel probes each,
{cost["evaluations"]:g} network evaluations an image, in {cost["depth"]:g} calls one after the other.

```toml
[sampler]
kind = "epd"
table = "table.json"     # or table.safetensors
```

{chr(10).join(lines)}

The lever is the weighted mean place of the probes in the interval; second-order accuracy needs 0.5, and weight x
direction factors that sum to 1.

```json
{json.dumps(table.info, indent=2)}
```
"""


_HEADER = ["noise level", "positions", "weights", "direction factors", "noise-level factors", "lever"]


def _numbers(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4f}" for value in values.tolist())
