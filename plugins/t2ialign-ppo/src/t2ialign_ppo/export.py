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
from t2ialign.problem.export import without_folders
from t2ialign.problem.problem import Problem
from t2ialign.tensors.batching import image_tolerance
from t2ialign_ppo.rollouts import rollout, sampler_of
from t2ialign_solvers.starts import levers
from t2ialign_solvers.table import SolverTable, load_table

FILES = ("table.json", "table.safetensors")
CHECKED = 2


def export_table(problem: Problem, table: SolverTable, chosen: dict[str, Any], folder: Path) -> None:
    """Write ``table.json``, ``table.safetensors`` and a README.

    Args:
        table: what the run delivers.
        chosen: how it was chosen, as JSON; becomes a part of the table's provenance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = replace(table, info=provenance(problem) | chosen)
    for name in FILES:
        table.save(folder / name)
    (folder / "README.md").write_text(card(problem, table), encoding="utf-8")


def check_table(problem: Problem, table: SolverTable, folder: Path) -> str:
    """Both files hold the run's table, number by number; a few images of theirs are compared with the run's.

    Returns:
        One line for README.md.

    Raises:
        ExportError: names the file and the tensor that is another one.
    """
    for name in FILES:
        loaded = load_table(str(folder / name))
        for part in ("positions", "weights", "scale_dir", "scale_time"):
            if not torch.equal(getattr(loaded, part), getattr(table, part).cpu()):
                raise ExportError(f"{name}: '{part}' is not the run's")
    rows = list({prompt: row for row, prompt in reversed(list(enumerate(problem.prompts)))}.values())[-CHECKED:]
    seeds = [seeding.derive(0, "export", problem.prompts[row]) for row in rows]
    images, again = (
        problem.dealt(partial(rollout, problem, one), problem.conditioning[rows], seeds) for one in (table, loaded)
    )
    difference, tolerance = (
        (images - again).abs().max().item(),
        image_tolerance(problem.backend.config.dtype, problem.device),
    )
    verdict = "within" if difference <= tolerance else "MORE than"
    return (
        f"both files hold the run's numbers; {len(rows)} images by them differ from the run's by at most"
        f" {difference:.1e}, {verdict} the {tolerance:g} that rounding explains"
    )


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
    text = f"""# {problem.spec.name}

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
    return without_folders(problem, text)


_HEADER = ["noise level", "positions", "weights", "direction factors", "noise-level factors", "lever"]


def _numbers(values: torch.Tensor) -> str:
    return ", ".join(f"{value:.4f}" for value in values.tolist())
