"""Draw a suite's images, variant by variant, each source loaded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2ialign.bench.folder import BenchFolder, Lines
from t2ialign.bench.suites import Item, Suited
from t2ialign.bench.variants import Variant
from t2ialign.evaluation.counting import counting
from t2ialign.lora.adapter import guest
from t2ialign.problem.mix import RewardMix
from t2ialign.problem.optimizer import Optimizer
from t2ialign.problem.problem import Problem, load_sampler
from t2ialign.run import runner
from t2ialign.run.display import Display
from t2ialign.spec.prompts import Prompt
from t2ialign.storage import files, images
from t2ialign.tensors import distributed
from t2ialign.tensors.batching import split
from t2ialign.tensors.conditioning import Conditioning
from t2ialign.tensors.distributed import World

Generate = Callable[[Conditioning, Sequence[int]], Tensor]
#: Images whose prompts' encodings are in memory at once.
ENCODED = 256


@torch.no_grad()
def draw(
    folder: BenchFolder,
    suited: Suited,
    items: Sequence[Item],
    variants: Sequence[Variant],
    display: Display,
    world: World | None = None,
    micro_batch: int | None = None,
) -> None:
    """Draw what is not there yet. Every process draws every ``world.size``-th image."""
    world = world or World()
    there, lines = folder.drawn(), Lines(folder.path / f"drawn.{world.rank}.jsonl")
    world.meet()  # all have read before one writes
    missing = {v.name: [item for item in items if (v.name, item.file) not in there] for v in variants}
    mine = {name: found[world.rank :: world.size] for name, found in missing.items()}
    if world.is_main:
        for variant in variants:
            _companions(folder.images / variant.name, suited.texts(items))
    total = sum(map(len, mine.values()))
    with display.bar("drawing", len(items) * len(variants), len(items) * len(variants) - total) as bar:
        for _, group in groupby(variants, key=lambda variant: variant.source):
            todo = [variant for variant in group if mine[variant.name]]
            if not todo:
                continue
            problem, optimizer = _load(todo[0], display)
            for variant in todo:
                with _drawing(problem, optimizer, variant) as generate:
                    _draw(folder, problem, generate, variant, mine[variant.name], lines, bar.advance, micro_batch)
    world.meet()


def _load(variant: Variant, display: Display) -> tuple[Problem, Optimizer | None]:
    """A run as it delivers, or a spec's backend and sampler alone."""
    if variant.run:
        _, restored, optimizer = runner.restore(variant.source, display=display)
        return restored, optimizer
    spec = variant.spec
    device = distributed.device(spec.run.device)
    display.say(f"loading {spec.backend.kind} from {spec.backend_config.checkpoint}")
    backend = spec.backend.build(device)
    sampler = load_sampler(spec.sampler, device) if spec.sampler else None
    return Problem(spec, backend, sampler, RewardMix([]), [], Conditioning((), {}), device), None


@contextmanager
def _drawing(problem: Problem, optimizer: Optimizer | None, variant: Variant) -> Iterator[Generate]:
    if variant.tuned:
        assert optimizer
        yield optimizer.generate
        return
    chosen = problem.with_sampler(variant.sampler) if variant.sampler else problem
    adapted, reference = problem.backend.adapted, variant.lora
    if reference is not None:
        with guest(adapted, lambda name: problem.backend.load_lora(reference, name)):
            yield chosen.generate
        return
    with problem.base():
        yield chosen.generate


def _draw(
    folder: BenchFolder,
    problem: Problem,
    generate: Generate,
    variant: Variant,
    items: Sequence[Item],
    lines: Lines,
    tick: Callable[[int], None],
    micro_batch: int | None,
) -> None:
    target, device = folder.images / variant.name, problem.device
    clock = time.process_time if device.type == "cpu" else time.monotonic  # other programs do not make an image dearer
    for chunk in split(len(items), ENCODED):
        part = items[chunk]
        distinct = list(dict.fromkeys(item.prompt for item in part))
        row_of = {str(prompt): row for row, prompt in enumerate(distinct)}
        encoded = problem.encode(distinct)
        for rows in split(len(part), micro_batch or problem.micro_batch):
            batch = part[rows]
            conditioning = encoded[[row_of[str(item.prompt)] for item in batch]]
            with counting() as count:
                started = clock()
                pictures = generate(conditioning, [item.seed for item in batch])
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds = clock() - started
            cost = {"seconds": seconds / len(batch), "evaluations": count.rows / len(batch)}
            cost["depth"] = count.calls
            for item, text, picture in zip(batch, conditioning.prompts, pictures, strict=True):
                save(picture, target / item.file, item.prompt, item.seed, folder.path)
                said = {"prompt": str(text)} if str(text) != item.prompt else {}
                lines.add({"variant": variant.name, "file": item.file, "seed": item.seed, **cost, **said})
                tick(1)


def save(picture: Tensor, path: Path, prompt: Prompt, seed: int, temporary: Path) -> None:
    """Write an image whole or not at all; a half-written one never lies beside the others, where scorers count files.

    PNG with the texts "prompt" and "seed"; JPEG, where a layout asks for it, of quality 95.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = temporary / f".{abs(hash(path)):x}{path.suffix}"
    image: Image.Image = images.to_pil(picture)
    if path.suffix == ".png":
        images.save_png(image, new, {"prompt": str(prompt), "seed": str(seed)})
    else:
        image.save(new, quality=95, subsampling=0)
    new.replace(path)


def _companions(target: Path, texts: Mapping[str, str]) -> None:
    for name, content in texts.items():
        path = target / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, f"{content}\n" if path.suffix == ".jsonl" else content)


def place(device: torch.device) -> dict[str, Any]:
    """What the seconds were measured on: processor time of this process on a CPU, else time on the wall."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": name, "threads": torch.get_num_threads()}
