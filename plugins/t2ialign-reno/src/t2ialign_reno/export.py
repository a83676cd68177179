"""What a run of searches delivers: images, noises, trajectories, a table, and a benchmark's layout where asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from t2ialign.bench.layouts import LAYOUTS
from t2ialign.errors import ExportError
from t2ialign.evaluation.comparison import table
from t2ialign.evaluation.statistics import summarise
from t2ialign.problem.export import without_folders
from t2ialign.problem.problem import Problem
from t2ialign.storage import files
from t2ialign.tensors.batching import image_tolerance
from t2ialign_reno.archive import Archive
from t2ialign_reno.config import ImageSearchConfig
from t2ialign_reno.engine import draw
from t2ialign_reno.searches import Found, Item

CHECKED = 4
Delivered = dict[Item, Found]


def export_images(
    problem: Problem, archive: Archive, delivered: Delivered, layout: str | None, folder: Path, clean: bool = False
) -> None:
    """Write ``folder``: ``images/<item>/`` with the best start of every finished image, summary, layout, README.

    Args:
        archive: where finished searches lie.
        delivered: the finished images, each with the best of its searches.
        layout: name of a benchmark's layout to write too, if any.
        clean: what was found are clean latents and not noise.

    Raises:
        ExportError: nothing is finished yet.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not delivered:
        raise ExportError("no search has ended yet: there is nothing to export")
    for item, found in delivered.items():
        _link_folder(archive.path(found.search), folder / "images" / item.name)
    summary = _summary(problem, archive, delivered)
    files.write_json(folder / "summary.json", summary)
    if layout:
        write_layout(problem, delivered, layout, folder)
    (folder / "README.md").write_text(card(problem, delivered, summary, clean), encoding="utf-8")


@torch.no_grad()
def check_latents(problem: Problem, delivered: Delivered, folder: Path, clean: bool = False) -> str:
    """Every exported tensor is the one that was found. Some images are drawn from them again, and compared.

    An image depends on its batch within rounding, so that pictures are reported and not judged.

    Returns:
        One line for README.md.

    Raises:
        ExportError: names the file whose latents are others.
    """
    for item, found in delivered.items():
        file = folder / "images" / item.name / "latents.safetensors"
        if found.noise is not None and not torch.equal(load_file(file)["latents"][0], found.noise.cpu()):
            what = "latents that were" if clean else "noise that was"
            raise ExportError(f"{file.relative_to(folder)} does not hold the {what} found")
    some = list(delivered.items())[:CHECKED]
    mine = problem.world.mine(len(some))
    own = [some[place] for place in mine]
    conditioning = problem.conditioning[[item.row for item, _ in own]]
    drawn = problem.world.collect(draw(problem, conditioning, [found for _, found in own], clean), len(some)).cpu()
    saved = torch.stack([_read_png(folder / "images" / item.name / "best.png") for item, _ in some])
    difference = max(0.0, (drawn - saved).abs().max().item() - 0.5 / 255)
    tolerance = image_tolerance(problem.backend.config.dtype, problem.device)
    verdict = "within" if difference <= tolerance else "MORE than"
    return (
        f"every saved {'latent' if clean else 'noise'} is the one that was found; {len(some)} images drawn again differ"
        f" by at most {difference:.1e} beyond eight-bit rounding, {verdict} the {tolerance:g} that rounding explains"
    )


def _read_png(path: Path) -> Tensor:
    import numpy

    with Image.open(path) as picture:
        return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1).float() / 255


def _summary(problem: Problem, archive: Archive, delivered: Delivered) -> dict:
    """First images against best ones, in the form of the evaluation's summary.json."""
    scores = [archive.scores(found.search) for found in delivered.values()]
    names = problem.rewards.names

    def column(which: str) -> dict[str, list[float | None]]:
        return {name: [one[which][name] for one in scores] for name in names}

    prompts = [problem.prompts[item.row] for item in delivered]
    held_out = [name for name in names if name not in problem.rewards.optimised]
    return summarise({"base": column("initial"), "tuned": column("best")}, prompts, names, held_out)


def write_layout(problem: Problem, delivered: Delivered, name: str, folder: Path) -> None:
    """The best images under the names that a benchmark's scorer expects, in a folder with the benchmark's name."""
    layout, target, prompts = LAYOUTS[name], folder / name, problem.prompts
    count, file = problem.spec.prompts.images_per_prompt, problem.spec.prompt_file()
    item_of = {(item.row, int(item.name.rpartition("-")[2])): item for item in delivered}
    for path, index, image in layout.images(prompts, count):
        if item := item_of.get((index, image)):
            _link(folder / "images" / item.name / "best.png", target / path)
    for path, text in layout.texts(prompts, file):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")


def card(problem: Problem, delivered: Delivered, summary: dict, clean: bool = False) -> str:
    """README.md of an export."""
    spec = problem.spec
    held_out = ", ".join(r.name for r in spec.rewards if not r.mix.weight) or "none"
    item = next(iter(delivered))
    file = f"images/{item.name}/latents.safetensors"
    code = "" if clean else problem.backend.noise_snippet(problem.prompts[item.row], file, problem.sampler)
    what = "the clean latents of the best image, before the decoder" if clean else "the noise of the best image"
    alone = "prompt and its latents" if clean else "prompt and its noise"
    assert isinstance(spec.optimizer_config, ImageSearchConfig)
    iterations = spec.optimizer_config.iterations(spec)
    snippet = (
        f"\nThe first image from its saved noise, without t2ialign:\n\n```python\n{code.strip()}\n```\n" if code else ""
    )
    text = f"""# {spec.name}

{len(delivered):,} images of `{problem.backend.info.base_model}`, found by t2ialign's `{spec.optimizer.kind}` in
{iterations} iterations per search. No weight was changed: an image is its {alone}.

| folder `images/<prompt>-<image>/` | |
|---|---|
| `initial.png`, `best.png` | the image of the first noise, and the one that the optimised rewards like most |
| `latents.safetensors` | {what}, `latents`, float32 |
| `trajectory.jsonl` | rewards and norms, one line per iteration |
| `search.json` | prompt, seeds, rewards of both images |

Base is the first image, tuned the best one; held-out rewards (never optimised): {held_out}.

{table(summary)}{snippet}"""
    return without_folders(problem, text)


def _link_folder(source: Path, target: Path) -> None:
    for file in source.iterdir():
        _link(file, target / file.name)


def _link(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none: thousands of images need not exist twice."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
