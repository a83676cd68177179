"""Images from a spec: any backend and sampler, with or without an exported LoRA."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from t2ialign.errors import UsageError
from t2ialign.run.display import Display
from t2ialign.spec.model import Spec
from t2ialign.storage import files, images
from t2ialign.storage.image_files import read_image
from t2ialign.tensors import distributed
from t2ialign.tensors.batching import split
from t2ialign.tensors.distributed import World

#: Prompts and images of each that the grid shows.
SHOWN = 8


@torch.no_grad()
def sample(
    spec: Spec, texts: Sequence[str], count: int, seed: int, lora: str | None, out: Path, world: World | None = None
) -> list[Path]:
    """Write ``count`` images of every prompt and a grid; each rank draws a share, and rank 0 writes.

    Image i of every prompt starts from ``torch.randn(latent_shape, generator=g)`` with g a CPU generator seeded with
    ``seed + i``, so that a plain diffusers script can make the same picture. File names and PNG text chunks carry it.

    Returns:
        The image files, prompt-major.

    Raises:
        UsageError: the folder has images already.
    """
    world = world or World()
    if world.is_main and out.exists() and (not out.is_dir() or any(out.glob("[0-9]*.png"))):
        raise UsageError(f"--out {out}: has images already; choose another folder")
    display = Display(quiet=not world.is_main)
    device = distributed.device(spec.run.device)
    display.say(f"loading {spec.backend.kind} from {spec.backend_config.checkpoint}")
    backend = spec.backend.build(device)
    for remark in spec.backend.config.remarks(texts):
        display.say(f"note: backend: {remark}")
    sampler = spec.sampler.build(device) if spec.sampler else None
    conditioning = backend.encode(list(texts))
    if lora is not None:
        backend.load_lora(lora)
    rows = [row for row in range(len(texts)) for _ in range(count)]
    seeds = [seed + image for _ in texts for image in range(count)]
    named = zip(rows, seeds, strict=True)
    paths = [out / f"{row:04d}_{slug(texts[row])}_seed{image_seed}.png" for row, image_seed in named]
    mine = world.mine(len(rows))
    with display.bar("images", len(rows)) as bar:
        for chunk in split(len(mine), spec.run.micro_batch):
            places = mine[chunk]
            batch = backend.generate(conditioning[[rows[i] for i in places]], [seeds[i] for i in places], sampler)
            texts_of = [{"prompt": texts[rows[i]], "seed": str(seeds[i])} for i in places]
            drawn = [images.png(image, known) for image, known in zip(batch, texts_of, strict=True)]
            received = {i: file for share in world.send(list(zip(places, drawn, strict=True))) for i, file in share}
            for place, file in received.items():
                out.mkdir(parents=True, exist_ok=True)
                files.write_bytes(paths[place], file)
            bar.advance(min(len(received), len(rows) - bar.done))
    if not world.is_main:
        return paths
    columns = range(min(SHOWN, len(texts)))
    grid = [
        torch.stack([read_image(paths[row * count + number])[0] for row in columns])
        for number in range(min(SHOWN, count))
    ]
    legend = images.numbered(texts[:SHOWN])
    images.save_png(images.grid(grid), out / "grid.png", {"prompts": legend})
    files.write_text(out / "grid.txt", legend)
    return paths


def slug(text: str, most: int = 60) -> str:
    """A file-name form of a prompt: lower case, words joined by underscores."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:most] or "prompt"
