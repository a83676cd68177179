"""Images from a spec: any backend and sampler, with or without an exported LoRA or a search."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2ialign import places
from t2ialign.errors import PartError, UsageError, blaming
from t2ialign.foreign import shown
from t2ialign.problem import checks
from t2ialign.problem.optimizer import load_optimizer
from t2ialign.problem.problem import assemble
from t2ialign.remarks.collect import DRAWING, SEARCHING, remarks
from t2ialign.run.display import Display
from t2ialign.spec.model import Spec
from t2ialign.spec.parse import unfit
from t2ialign.spec.prompts import Prompt
from t2ialign.storage import files, images
from t2ialign.storage.image_files import read_image
from t2ialign.tensors import distributed
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World

#: Prompts and images of each that the grid shows.
SHOWN = 8
#: Rows of the prompts' conditioning and seeds to images (n, 3, H, W), and each reward (n,) by name where it was asked.
Draw = Callable[[list[int], list[int]], tuple[Tensor, dict[str, Tensor]]]


@torch.no_grad()
def sample(
    spec: Spec,
    texts: Sequence[str],
    count: int,
    seed: int,
    lora: str | None,
    out: Path,
    world: World | None = None,
    search: bool = False,
) -> list[Path]:
    """Write ``count`` images of every prompt and a grid; each rank draws a share, and rank 0 writes.

    Image i of every prompt starts from ``torch.randn(latent_shape, generator=g)`` with g a CPU generator seeded with
    ``seed + i``, so that a plain diffusers script can make the same picture. File names and PNG text chunks carry it.

    Args:
        search: the spec's optimizer is a search, which starts there; ``search.json`` says what the rewards give.

    Returns:
        The image files, prompt-major.

    Raises:
        UsageError: the folder has images already, or a reward cannot score a prompt.
    """
    world = world or World()
    if world.is_main and out.exists() and out.is_dir() and any(out.glob("[0-9]*.png")):
        raise UsageError(f"--out {out}: has images already; choose another folder")
    if world.is_main and (reason := places.unwritable(out)):
        raise UsageError(f"--out {out}: {reason}")
    display = Display(quiet=not world.is_main)
    rows = [row for row in range(len(texts)) for _ in range(count)]
    seeds = [seed + image for _ in texts for image in range(count)]
    mine = world.mine(len(rows))
    size = min(spec.run.micro_batch, len(mine))
    draw = _searching(spec, texts, lora, size, display) if search else _plain(spec, texts, lora, display)
    named = zip(rows, seeds, strict=True)
    paths = [out / f"{row:04d}_{slug(texts[row])}_seed{image_seed}.png" for row, image_seed in named]
    told: dict[int, dict[str, float]] = {}
    lost: list[int] = []
    with display.bar("images", len(rows)) as bar:
        for chunk in split(len(mine), size):
            numbers = mine[chunk]
            batch, scores = draw([rows[i] for i in numbers], [seeds[i] for i in numbers])
            texts_of = [{"prompt": texts[rows[i]], "seed": str(seeds[i])} for i in numbers]
            drawn = [
                images.png(image, known) if bool(image.isfinite().all()) else b""
                for image, known in zip(batch, texts_of, strict=True)
            ]
            said = [{name: round(values[k].item(), 6) for name, values in scores.items()} for k in range(len(numbers))]
            shares = world.send(list(zip(numbers, drawn, said, strict=True)))
            received = {i: (file, rewards) for share in shares for i, file, rewards in share}
            for place, (file, rewards) in received.items():
                out.mkdir(parents=True, exist_ok=True)
                told[place] = rewards
                if file:
                    files.write_bytes(paths[place], file)
                else:
                    lost.append(place)
            bar.advance(min(len(received), len(rows) - bar.done))
    if not world.is_main:
        return paths
    if search:
        options = {"kind": spec.optimizer.kind, **spec.optimizer.config.model_dump(mode="json", exclude_none=True)}
        found: list[dict[str, Any]] = [
            {"file": path.name, "prompt": texts[row], "seed": own, **told[place]}
            for place, (path, row, own) in enumerate(zip(paths, rows, seeds, strict=True))
        ]
        files.write_json(out / "search.json", {"search": options, "images": found})
    if lost:
        listed = [f"'{shown(texts[rows[i]], 80)}' (seed {seeds[i]})" for i in sorted(lost)[:SHOWN]]
        raise PartError(
            f"{len(lost)} of {len(paths)} images hold no finite numbers and are not written; the others are in {out}:"
            f" {', '.join(listed)}{', ...' * (len(lost) > SHOWN)}"
        )
    columns = range(min(SHOWN, len(texts)))
    grid = [
        torch.stack([read_image(paths[row * count + number])[0] for row in columns])
        for number in range(min(SHOWN, count))
    ]
    legend = images.numbered(texts[:SHOWN])
    images.save_png(images.grid(grid), out / "grid.png", {"prompts": legend})
    files.write_text(out / "grid.txt", legend)
    return paths


def _plain(spec: Spec, texts: Sequence[str], lora: str | None, display: Display) -> Draw:
    device = distributed.device(spec.run.device)
    display.say(f"loading {spec.backend.kind} from {spec.backend_config.checkpoint}")
    backend = spec.backend.build(device)
    for remark in remarks(spec, texts, DRAWING):
        display.say(f"note: {remark}")
    sampler = spec.sampler.build(device) if spec.sampler else None
    conditioning: Conditioning = backend.encode(list(texts))
    if lora is not None:
        backend.load_lora(lora)
    told: list[str] = []

    def draw(rows: list[int], seeds: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        found = backend.generate(conditioning[rows], seeds, sampler)
        good = found.isfinite().flatten(1).all(1)
        if not bool(good.all()) and not told:
            bad = int((~good).nonzero()[0])
            told.append(checks.broken_at(backend, sampler, conditioning[[rows[bad]]], seeds[bad]))
            display.say(f"note: images are no finite numbers: {told[0]}")
        return found, {}

    return draw


def _searching(spec: Spec, texts: Sequence[str], lora: str | None, size: int, display: Display) -> Draw:
    """``size`` images are searched at a time, whatever the spec's run would do."""
    _check_prompts(spec, texts)
    at_once = spec.prompts.model_copy(update={"per_step": size, "images_per_prompt": 1})
    problem = assemble(replace(spec, prompts=at_once), report=display.say, prompts=texts)
    for remark in remarks(spec, texts, SEARCHING):
        display.say(f"note: {remark}")
    if lora is not None:
        problem.backend.load_lora(lora)
    optimizer, rewards = load_optimizer(problem), problem.rewards

    def draw(rows: list[int], seeds: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        conditioning = problem.conditioning[rows]
        with blaming(optimizer.label):
            found = optimizer.generate(conditioning, seeds)
        return found, rewards.score(found, conditioning.prompts, micro_batch=problem.micro_batch)

    return draw


def _check_prompts(spec: Spec, texts: Sequence[str]) -> None:
    """Rewards were validated for the spec's own prompts only."""
    prompts = [text if isinstance(text, Prompt) else Prompt(text) for text in texts]
    for reward in spec.rewards:
        with blaming(reward.declaration.label):
            for reason in unfit(reward, prompts):
                raise UsageError(f"reward '{reward.name}' {reason}")


def slug(text: str, most: int = 60) -> str:
    """A file-name form of a prompt: lower case, words joined by underscores."""
    word = re.sub(r"\W+", "_", unicodedata.normalize("NFC", text).lower()).strip("_")[:most]
    return word.encode()[: 3 * most].decode(errors="ignore") or "prompt"  # file systems count bytes
