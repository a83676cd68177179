"""Base against tuned on the same prompts and the same noise."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ialign.evaluation.comparison import table
from t2ialign.evaluation.counting import counting
from t2ialign.evaluation.drift import alarms
from t2ialign.evaluation.image_statistics import STATISTICS, image_statistics
from t2ialign.evaluation.statistics import category_of, compare, summarise
from t2ialign.problem.checks import finite_images
from t2ialign.problem.optimizer import Optimizer
from t2ialign.problem.problem import Generate, Problem
from t2ialign.spec.prompts import Prompt, data_of
from t2ialign.storage import files, images
from t2ialign.tensors import seeding
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World

Scores = dict[str, Tensor]
Cost = dict[str, float]
PAIRS = 8


@dataclass(frozen=True)
class Items:
    """The evaluated images: one row per (prompt, image), prompt-major.

    Seeds depend on the evaluation seed, the text and the image's number: neither on the run's seed nor on the other
    prompts, so that any two runs can be compared image by image.

    Attributes:
        per_prompt: so many neighbours belong to one line of the prompt file.
    """

    prompts: list[str]
    seeds: list[int]
    per_prompt: int


def items(problem: Problem) -> Items:
    options = problem.spec.evaluation
    return items_of(problem.evaluation_prompts, options.images_per_prompt, options.seed)


def items_of(prompts: Sequence[str], images_per_prompt: int, seed: int) -> Items:
    """The items of some prompts; a prompt that comes again goes on with the numbers of its images."""
    numbers = range(images_per_prompt)
    before: Counter[str] = Counter()
    seeds = []
    for prompt in prompts:
        seeds += [seeding.derive(seed, "evaluation", str(prompt), before[prompt] + image) for image in numbers]
        before[prompt] += images_per_prompt
    return Items([p for p in prompts for _ in numbers], seeds, images_per_prompt)


@torch.no_grad()
def score(
    problem: Problem,
    variants: Mapping[str, Generate],
    wanted: Items,
    folder: Path | None = None,
    tick: Callable[[int], None] = lambda n: None,
    kept: dict[tuple[int, ...], dict[str, Tensor]] | None = None,
) -> dict[str, Scores]:
    """Generate and score all items in micro-batches, every variant on the same ones.

    All ranks call this together. Each draws and scores a share of the prompts, with all their images; the shares are
    equally large, so that the last ranks may do some prompts again, whose results are dropped.

    Args:
        variants: name -> how it draws images.
        folder: where rank 0 writes the images as PNG, a folder per variant, if anywhere; all ranks know of it.
        tick: called on every rank, equally often, with the number of images that all ranks have done since.
        kept: reference images by their seeds, for the next call on the same items.

    Returns:
        variant -> reward, and image statistic as "image/..." -> raw scores (images,), on the CPU of every rank.
    """
    world, per_prompt = problem.world, wanted.per_prompt
    distinct = list(dict.fromkeys(wanted.prompts))
    conditioning = problem.encode(distinct)
    row_of = {prompt: row for row, prompt in enumerate(distinct)}
    parts: dict[str, list[Scores]] = {name: [] for name in variants}
    lines = len(wanted.prompts) // per_prompt
    mine = world.mine(lines)
    for chunk in split(len(mine), max(1, world.least(problem.micro_batch) // per_prompt)):  # whole prompts
        rows = [line * per_prompt + number for line in mine[chunk] for number in range(per_prompt)]
        prompts, seeds = [wanted.prompts[row] for row in rows], [wanted.seeds[row] for row in rows]
        part = conditioning[[row_of[prompt] for prompt in prompts]]
        # One row serves a text that stands twice; each keeps what its own line knows.
        texts = [Prompt(text, data_of(own)) for text, own in zip(part.prompts, prompts, strict=True)]
        references = (kept or {}).get(tuple(seeds)) or problem.references(part, seeds)
        if kept is not None:
            kept[tuple(seeds)] = references
        firsts = [rank * len(mine) + chunk.start for rank in range(world.size)]
        new = [max(0, min(len(mine[chunk]), lines - first)) * per_prompt for first in firsts]  # of every rank
        for name, generate in variants.items():
            batch = generate(part, seeds)
            if not problem.rewards.drop_nonfinite:
                finite_images(problem.backend, problem.sampler, batch, part, seeds)
            # A class-conditional backend spells a prompt out: rewards see its text, as they do while optimising.
            scores = problem.rewards.score(batch, texts, references=references)
            scores |= problem.rewards.compare(batch, texts, references)
            scores |= image_statistics(batch, per_prompt)
            parts[name].append({reward: values.cpu() for reward, values in scores.items()})
            if folder is not None:
                told = problem.rewards.explain(batch, texts, references)
                _save(world, _encoded(batch[: new[world.rank]], prompts, seeds, told), rows[0], folder / name)
            tick(sum(new))
    return {
        name: {
            reward: world.collect(torch.cat([part[reward] for part in chunks]), len(wanted.prompts))
            for reward in [*problem.rewards.reported, *STATISTICS]
        }
        for name, chunks in parts.items()
    }


def base_of(problem: Problem) -> Generate:
    """How the frozen base model draws."""

    def base(conditioning: Conditioning, seeds: Sequence[int]) -> Tensor:
        with problem.base():
            return problem.generate(conditioning, seeds)

    return base


def summary_of(problem: Problem, scores: Mapping[str, Scores], wanted: Items) -> dict[str, Any]:
    """``summary.json`` of some scored items: the rewards, and under "image_statistics" what the images look like."""
    values = {v: {name: column.tolist() for name, column in columns.items()} for v, columns in scores.items()}
    rewards = problem.rewards
    held_out = [name for name in rewards.reported if name not in rewards.optimised]
    categories = [category_of(prompt) for prompt in wanted.prompts]
    summary = summarise(values, wanted.prompts, rewards.reported, held_out, categories)
    looks = compare(values, wanted.prompts, STATISTICS)
    summary["image_statistics"] = {key: looks[key] for key in ("variants", "paired")}
    if "tuned" in summary["paired"]:
        found = alarms(summary, problem.spec.evaluation.drift_threshold)
        summary["drift"] = [
            {"name": alarm.name, "difference": alarm.difference, "words": alarm.words} for alarm in found
        ]
    return summary


def _encoded(
    batch: Tensor, prompts: Sequence[str], seeds: Sequence[int], told: Mapping[str, Sequence[str]]
) -> list[bytes]:
    """PNG files of some images, with what is known of each."""
    files = []
    for row, image in enumerate(batch):
        texts = {"prompt": prompts[row], "seed": str(seeds[row])}
        if told:
            texts["explanations"] = json.dumps({name: words[row] for name, words in told.items()})
        files.append(images.png(image, texts))
    return files


def _save(world: World, pictures: Sequence[bytes], first: int, folder: Path) -> None:
    """Rank 0 writes what all ranks drew; ``first`` is the place of this rank's first picture."""
    for start, batch in world.send((first, pictures)):
        folder.mkdir(exist_ok=True)
        for offset, picture in enumerate(batch):
            files.write_bytes(folder / f"{start + offset:05d}.png", picture)


@torch.no_grad()
def cost(problem: Problem, generate: Generate, wanted: Items) -> Cost:
    """Network evaluations of one image, counted while it is drawn, and how many of them wait for each other."""
    with counting() as count:
        generate(problem.encode(wanted.prompts[:1]), wanted.seeds[:1])
    return {"evaluations": count.rows, "depth": count.calls}


def evaluate(
    problem: Problem,
    optimizer: Optimizer,
    folder: Path,
    tick: Callable[[int], None] = lambda n: None,
    samplers: Mapping[str, Problem] | None = None,
) -> dict[str, Any]:
    """Evaluate base and tuned and write ``folder``: images, per-image scores, pairs picture, summary.json, table.md.

    All ranks share the work, and rank 0 writes.

    Args:
        samplers: further variants by name: the problem, tuned weights included, with another sampler.
    """
    wanted = items(problem)

    variants: dict[str, Generate] = {"base": base_of(problem), "tuned": optimizer.generate}
    variants |= {name: other.generate for name, other in (samplers or {}).items()}
    main = problem.world.is_main
    with files.new_folder(folder) if main else nullcontext(folder) as new:
        scores = score(problem, variants, wanted, new if problem.spec.evaluation.save_images else None, tick)
        summary = summary_of(problem, scores, wanted)
        if samplers:
            summary["cost"] = {name: cost(problem, generate, wanted) for name, generate in variants.items()}
        spread = torch.linspace(0, len(wanted.prompts) - 1, min(PAIRS, len(wanted.prompts))).long().tolist()
        prompts, seeds = [wanted.prompts[i] for i in spread], [wanted.seeds[i] for i in spread]
        conditioning = problem.encode(prompts)
        pairs = [problem.dealt(generate, conditioning, seeds) for generate in variants.values()]
        if main:
            files.write_json(new / "summary.json", summary)
            (new / "table.md").write_text(table(summary), encoding="utf-8")
            _write_scores(problem, wanted, scores, new / "scores.jsonl")
            texts = {"prompts": "\n".join(prompts)}
            images.save_png(images.grid(pairs, list(variants)), new / "pairs.png", texts)
    return summary


def _write_scores(problem: Problem, wanted: Items, scores: Mapping[str, Scores], file: Path) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for row, (prompt, seed) in enumerate(zip(wanted.prompts, wanted.seeds, strict=True)):
            line: dict[str, Any] = {"prompt": prompt, "seed": seed}
            if data := data_of(prompt):
                line["data"] = data
            line |= {v: {n: _number(s[n][row]) for n in problem.rewards.reported} for v, s in scores.items()}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _number(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None
