"""Images from a spec: any backend and sampler, with or without an exported LoRA."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from t2ialign.run.display import Display
from t2ialign.spec import prompts
from t2ialign.spec.model import Spec
from t2ialign.storage import images
from t2ialign.tensors import distributed
from t2ialign.tensors.batching import split

GRID_COLUMNS = 8


def prompts_of(spec: Spec, most: int = GRID_COLUMNS) -> list[str]:
    """The first evaluation prompts of a spec."""
    return prompts.read(spec.evaluation_file())[:most]


@torch.no_grad()
def sample(spec: Spec, texts: list[str], count: int, seed: int, lora: str | None, out: Path) -> list[Path]:
    """Write ``count`` images of every prompt and a grid.

    Image i of every prompt starts from ``torch.randn(latent_shape, generator=g)`` with g a CPU generator seeded with
    ``seed + i``, so that a plain diffusers script can make the same picture. File names and PNG text chunks carry it.

    Returns:
        The image files, prompt-major.
    """
    display = Display()
    device = distributed.device(spec.run.device)
    display.say(f"loading {spec.backend.kind} from {spec.backend_config.checkpoint}")
    backend = spec.backend.build(device)
    sampler = spec.sampler.build(device) if spec.sampler else None
    conditioning = backend.encode(texts)
    if lora is not None:
        backend.load_lora(lora)
    rows = [row for row in range(len(texts)) for _ in range(count)]
    seeds = [seed + image for _ in texts for image in range(count)]
    out.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    columns: list[torch.Tensor] = []
    with display.bar("images", len(rows)) as bar:
        for chunk in split(len(rows), spec.run.micro_batch):
            batch = backend.generate(conditioning[rows[chunk]], seeds[chunk], sampler)
            for image, row, image_seed in zip(batch, rows[chunk], seeds[chunk], strict=True):
                path = out / f"{row:04d}_{slug(texts[row])}_seed{image_seed}.png"
                images.save_png(image, path, {"prompt": texts[row], "seed": str(image_seed)})
                paths.append(path)
            columns.append(batch.cpu())
            bar.advance(len(batch))
    shown = torch.cat(columns).unflatten(0, (len(texts), count))[:GRID_COLUMNS]
    images.save_png(images.grid(list(shown.transpose(0, 1)), texts[:GRID_COLUMNS]), out / "grid.png")
    return paths


def slug(text: str, most: int = 60) -> str:
    """A file-name form of a prompt: lower case, words joined by underscores."""
    return re.sub(r"\W+", "_", text.lower()).strip("_")[:most] or "prompt"
