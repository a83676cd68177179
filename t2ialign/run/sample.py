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
from t2ialign.tensors import distributed
from t2ialign.tensors.batching import split

#: Prompts and images of each that the grid shows.
SHOWN = 8


@torch.no_grad()
def sample(spec: Spec, texts: Sequence[str], count: int, seed: int, lora: str | None, out: Path) -> list[Path]:
    """Write ``count`` images of every prompt and a grid.

    Image i of every prompt starts from ``torch.randn(latent_shape, generator=g)`` with g a CPU generator seeded with
    ``seed + i``, so that a plain diffusers script can make the same picture. File names and PNG text chunks carry it.

    Returns:
        The image files, prompt-major.

    Raises:
        UsageError: the folder has images already.
    """
    if out.exists() and (not out.is_dir() or any(out.glob("[0-9]*.png"))):
        raise UsageError(f"--out {out}: has images already; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    display = Display()
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
    shown: dict[tuple[int, int], torch.Tensor] = {}
    with display.bar("images", len(rows)) as bar:
        for chunk in split(len(rows), spec.run.micro_batch):
            batch = backend.generate(conditioning[rows[chunk]], seeds[chunk], sampler)
            for place, image in zip(range(len(rows))[chunk], batch, strict=True):
                row, number = rows[place], place % count
                images.save_png(image, paths[place], {"prompt": texts[row], "seed": str(seeds[place])})
                if row < SHOWN and number < SHOWN:
                    shown[row, number] = image.cpu()
            bar.advance(len(batch))
    columns = range(min(SHOWN, len(texts)))
    grid = [torch.stack([shown[row, number] for row in columns]) for number in range(min(SHOWN, count))]
    legend = images.numbered(texts[:SHOWN])
    images.save_png(images.grid(grid), out / "grid.png", {"prompts": legend})
    files.write_text(out / "grid.txt", legend)
    return paths


def slug(text: str, most: int = 60) -> str:
    """A file-name form of a prompt: lower case, words joined by underscores."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:most] or "prompt"
