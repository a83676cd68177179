"""What a search does not see: how far scores of drafted images are from those of real ones, before the first step."""

from __future__ import annotations

import torch
from torch import Tensor

from t2ialign.evaluation.evaluate import items
from t2ialign.problem.problem import Problem

#: Images that are drawn both ways.
IMAGES = 32


@torch.no_grad()
def draft_remarks(problem: Problem) -> list[str]:
    """One sentence for every reward, of images of the base; none where a backend drafts nothing.

    All ranks call this together, and each draws all of these images.
    """
    if not problem.backend.drafts:
        return []
    wanted = items(problem)
    rows = torch.linspace(0, len(wanted.prompts) - 1, min(IMAGES, len(wanted.prompts))).long().unique().tolist()
    conditioning = problem.encode([wanted.prompts[row] for row in rows])
    seeds = [wanted.seeds[row] for row in rows]
    references = problem.references(conditioning, seeds)
    scores = []
    for on in (False, True):
        with problem.base(), problem.backend.drafting(on):
            images = problem.generate(conditioning, seeds)
        found = problem.rewards.score(
            images, conditioning.prompts, micro_batch=problem.micro_batch, references=references, check=False
        )
        scores.append(found)
    real, drafted = scores
    how = f"{len(rows)} images drawn with backend.decoder instead of the checkpoint's own"
    return [f"{how}: {words(name, real[name], values)}" for name, values in drafted.items()]


def words(name: str, real: Tensor, drafted: Tensor) -> str:
    """Means and correlation of scores (B,); those that are no numbers are left out."""
    both = real.isfinite() & drafted.isfinite()
    pair = torch.stack([real[both], drafted[both]]).double().cpu()
    means = f"reward '{name}' {pair[1].mean().item():.4g} instead of {pair[0].mean().item():.4g} on average"
    if pair.shape[1] < 2 or bool((pair.std(1) == 0).any()):
        return f"{means}; no correlation, for one of them is constant"
    return f"{means}, correlation {pair.corrcoef()[0, 1].item():.3f}"
