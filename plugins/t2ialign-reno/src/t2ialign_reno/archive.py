"""Finished searches on disk, one folder each, written as they end."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from t2ialign.storage import files, images
from t2ialign.storage.tensor_files import write_tensors
from t2ialign_reno.searches import Found, Search

Scores = dict[str, dict[str, float | None]]


class Archive:
    """``<item>-<start>/`` below one folder.

    initial.png, best.png    the image of the search's own noise, and the best one
    latents.safetensors      the noise of the best image: "latents" (1, *latent_shape), float32
    trajectory.jsonl         one line per iteration
    search.json              prompt, seeds, when the best was found, and all rewards of both images
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, search: Search) -> Path:
        return self.folder / f"{search.item.name}-{search.start}"

    def write(self, found: Found, pictures: Mapping[str, Tensor], scores: Scores) -> None:
        """Write one finished search, whole or not at all.

        Args:
            pictures: file stem -> image (3, H, W).
            scores: "initial" and "best" -> reward -> score.
        """
        search = found.search
        texts = {"prompt": search.item.prompt, "seed": str(found.seed)}
        with files.new_folder(self.path(search)) as folder:
            for stem, picture in pictures.items():
                images.save_png(picture, folder / f"{stem}.png", texts)
            if found.noise is not None:
                write_tensors(folder / "latents.safetensors", {"latents": found.noise[None]})
            lines = [json.dumps({name: finite(value) for name, value in line.items()}) for line in found.trajectory]
            (folder / "trajectory.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            summary = {
                "prompt": search.item.prompt,
                "image_seed": search.item.seed,
                "initial_seed": search.seed,
                "best_seed": found.seed,
                "iterations": len(found.trajectory),
                "best_iteration": found.iteration,
                "reward": finite(found.reward),
                "rewards": scores,
            }
            files.write_json(folder / "search.json", summary)

    def scores(self, search: Search) -> Scores:
        return self._summary(search)["rewards"]

    def read(self, search: Search) -> Found:
        """A finished search, without its trajectory."""
        summary, noise = self._summary(search), self.path(search) / "latents.safetensors"
        latents = load_file(noise)["latents"][0] if noise.exists() else None
        reward = -math.inf if summary["reward"] is None else summary["reward"]
        return Found(search, summary["best_seed"], latents, reward, summary["best_iteration"], [])

    def _summary(self, search: Search) -> dict:
        return json.loads((self.path(search) / "search.json").read_text(encoding="utf-8"))


def finite(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
