"""The exported LoRA: a file that diffusers loads as it is, a model card, and the proof that it works."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from t2ialign.errors import ExportError, Unchanged
from t2ialign.lora.adapter import GUEST, factors, guest
from t2ialign.problem.formats import check_formats, clients, write_formats
from t2ialign.problem.problem import Problem
from t2ialign.spec.checkpoints import looks_like_hub_id
from t2ialign.tensors import seeding
from t2ialign.tensors.batching import image_tolerance

CHECKED = 4


def write_export(problem: Problem, folder: Path) -> None:
    """Write the problem's LoRA and its model card into ``folder``. Nothing is drawn, nothing is checked."""
    folder.mkdir(parents=True, exist_ok=True)
    write_formats(problem, folder)
    (folder / "README.md").write_text(model_card(problem), encoding="utf-8")


@torch.no_grad()
def check_export(problem: Problem, folder: Path) -> str:
    """Prove the files of an export in the run's own network, with no second one.

    The file comes in as a second adapter through its users' loader. Every tensor must arrive, and equal the run's. The
    run's images must come out of it, as long as it keeps the file's float32 numbers: what a loader's rounding to the
    network's dtype does to images is reported and not judged.

    Returns:
        One line for the model card.

    Raises:
        Unchanged: the LoRA is zero.
        ExportError: it changes nothing, or is not the run's.
    """
    backend, adapter = problem.backend, problem.adapter
    wanted = adapter.folded()
    if not any(bool(tensor.any()) for name, tensor in wanted.items() if name.endswith("lora_B.weight")):
        raise Unchanged("the LoRA is still zero: no step changed it, so there is nothing that could be used")
    read = backend.read_lora(folder)
    _compare(read, wanted)
    others = check_formats(problem, folder)
    rows = _first_rows(problem)
    conditioning = problem.conditioning[rows]
    seeds = [seeding.derive(0, "export", problem.prompts[row]) for row in rows]

    def draw() -> Tensor:
        return problem.dealt(problem.generate, conditioning, seeds).cpu()

    while True:  # images are comparable only where all were drawn in micro-batches of one size
        size = problem.micro_batch
        with adapter.rescaled():
            tuned = draw()
        with adapter.disabled():
            base = draw()
        with guest(adapter.module, lambda name: backend.load_lora(folder, name)) as layers:
            rounded = _check_loaded(layers, wanted)
            from_file = draw() if rounded else None
            _fill(layers, read)
            exact = draw()
        if problem.world.least(int(problem.micro_batch == size)):
            break
    difference = (exact - tuned).abs().max().item()
    tolerance = image_tolerance(backend.config.dtype, problem.device)
    if not difference <= tolerance:
        raise ExportError(
            f"the exported LoRA gives other images than the run: largest difference {difference:.2g} > {tolerance:g}"
        )
    if torch.equal(exact, base):
        raise ExportError("the exported LoRA loads but changes nothing: its images equal the base model's")
    change = (exact - base).abs().mean().item()
    line = f"every tensor loads; images equal the run's within {difference:.1e} and lie {change:.1e} from the base's"
    line += "".join(f"; the {form} form holds the same changes" for form in others)
    return line if from_file is None else f"{line}; {_rounding(from_file - tuned, backend.config.dtype)}"


def _rounding(difference: Tensor, dtype: str) -> str:
    off = difference.abs().flatten()
    tail = off.kthvalue(max(1, round(0.999 * len(off)))).values.item()
    return (
        f"loaders that round the factors to {dtype} move a pixel by {off.mean():.1e} on average,"
        f" 99.9 % of them by at most {tail:.1e}"
    )


def _first_rows(problem: Problem) -> list[int]:
    """Rows of the first distinct training prompts."""
    first = {prompt: row for row, prompt in reversed(list(enumerate(problem.prompts)))}
    return sorted(first.values())[:CHECKED]


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Equal tensors, as far as the dtype of ``found`` tells them apart.

    Raises:
        ExportError: names the first tensor that is lost, foreign or different.
    """
    if lost := sorted(wanted.keys() - found.keys()):
        raise ExportError(f"the exported LoRA lacks '{lost[0]}'" + (f" and {len(lost) - 1} more" if lost[1:] else ""))
    if foreign := sorted(found.keys() - wanted.keys()):
        raise ExportError(f"the exported LoRA has '{foreign[0]}', which the run's has not")
    for name, tensor in wanted.items():
        if not torch.equal(found[name].detach().cpu(), tensor.to(found[name].dtype)):
            raise ExportError(f"the exported LoRA is not the run's: '{name}' differs")


def _check_loaded(layers: Mapping[str, LoraLayer], wanted: Mapping[str, Tensor]) -> bool:
    """Compare what a loader attached with the run's factors, cast as the loader did. Returns whether that rounds."""
    for path, layer in layers.items():
        if layer.scaling[GUEST] != 1:
            raise ExportError(f"the loader scales '{path}' by {layer.scaling[GUEST]:g}")
    loaded = factors(layers, GUEST)
    _compare(loaded, wanted)
    return any(tensor.dtype != torch.float32 for tensor in loaded.values())


def _fill(layers: Mapping[str, LoraLayer], tensors: Mapping[str, Tensor]) -> None:
    for layer in layers.values():
        layer.lora_A[GUEST].float()
        layer.lora_B[GUEST].float()
    for name, parameter in factors(layers, GUEST).items():
        parameter.data.copy_(tensors[name])


def model_card(problem: Problem) -> str:
    """README.md of an export, in the hub's model-card format."""
    spec, info = problem.spec, problem.backend.info
    rewards = ", ".join(f"{r.name} (weight {r.mix.weight:g})" for r in spec.rewards if r.mix.weight)
    held_out = ", ".join(r.name for r in spec.rewards if not r.mix.weight) or "none"
    hub_id = looks_like_hub_id(info.base_model) and not Path(info.base_model).exists()
    base = f"base_model: {json.dumps(info.base_model)}\n" if hub_id else ""  # the hub refuses cards with anything else
    ranks = sorted(set(problem.adapter.ranks.values()))
    rank = f"{ranks[0]} to {ranks[-1]}" if ranks[1:] else str(ranks[0])
    text = f"""---
library_name: {"diffusers" if info.pipeline else "t2ialign"}
{base}tags: [lora, text-to-image, t2ialign]
---

# {spec.name}

A LoRA (rank {rank}) for `{info.base_model}`, aligned by t2ialign.

| | |
|---|---|
| optimizer | {spec.optimizer.kind}, {spec.run.steps} steps, seed {spec.run.seed} |
| optimised rewards | {rewards} |
| held-out rewards | {held_out} |
| modules | {", ".join(problem.adapter.targets)} |
{clients(problem)}
| scale | folded into B: load it at strength 1, whatever the loader does with alpha |

```python
{problem.backend.snippet(problem.sampler).strip()}
```
"""
    return without_folders(problem, text)


def without_folders(problem: Problem, text: str) -> str:
    """A text without the places of this machine: of a local file or folder it keeps the name."""
    for place in sorted(_places(problem.spec.backend_config.model_dump()), key=len, reverse=True):
        name = PureWindowsPath(place).name
        for written in (place, repr(place)[1:-1], json.dumps(place, ensure_ascii=False)[1:-1]):
            text = text.replace(written, name)
    return text


def _places(value: object) -> set[str]:
    """Absolute paths among options, at any depth."""
    if isinstance(value, str):
        return {value} if Path(value).is_absolute() or PureWindowsPath(value).is_absolute() else set()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return {place for one in inner for place in _places(one)}
