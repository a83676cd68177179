"""Memory, work and time of a run, added up from its outline."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from t2ialign.estimate.outline import outline
from t2ialign.spec.model import Spec
from t2ialign.tensors import distributed

#: Bytes for each number of a LoRA: the factor, and a change or an average beside it; by gradients, the gradient and
#: two moments of the solver as well.
LORA_BYTES = {"nothing": 8, "network": 16, "image": 16}
#: A backward pass takes twice the operations of the forward pass.
WITH_BACKWARD = 3
#: What a CPU's process takes for each byte of activations: buffers inside of operations, and freed memory that is not
#: given back. Fitted to the peaks of runs, see docs/memory.md.
FREED_LATE = 1.45


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        memory: bytes by component while images are drawn; the largest of ``passes`` is among them.
        passes: bytes that each kind of pass needs for a micro-batch while it runs.
        text: bytes while the prompts are encoded.
        peak: the larger of both phases.
        steps, images, network_calls, decodes: of the run; the last three for a step, in images.
        evaluated: images of the final evaluation.
        operations: floating-point operations of a step, and of an evaluated image.
        unknown: what is not counted.
    """

    memory: dict[str, int]
    passes: dict[str, int]
    text: int
    peak: int
    steps: int
    images: int
    network_calls: int
    decodes: int
    evaluated: int
    micro_batch: int
    operations: dict[str, float]
    unknown: list[str]

    def seconds(self, rate: float) -> float:
        """Of the steps and the final evaluation, at ``rate`` operations a second."""
        return (self.steps * self.operations["step"] + self.evaluated * self.operations["image"]) / rate

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def estimate(spec: Spec, on_cpu: bool | None = None) -> Estimate:
    """Add up what a spec takes on one device.

    Args:
        on_cpu: count the process itself, whose memory is all there is; default: by ``run.device``.

    Raises:
        UsageError: see ``outline``.
    """
    plan = spec.optimizer_config.plan(spec)
    keeps = spec.keeps
    rows = max(1, min(spec.run.micro_batch, plan.images_per_step))
    found = outline(spec, rows)
    if on_cpu is None:
        on_cpu = distributed.device(spec.run.device).type == "cpu"
    evaluations = plan.evaluations or spec.sampler_config.evaluations()
    evaluated = 2 * len(spec.evaluation_prompts()) * spec.evaluation.images_per_prompt
    image = evaluations * found.operations["network call"] + found.operations["decoder"]
    image += found.operations.get("rewards", 0.0)
    factor = WITH_BACKWARD if keeps == "image" else 1
    step = plan.images_per_step * image * factor
    if keeps == "network":
        step += plan.images_per_step * evaluations * found.operations["network call"] * WITH_BACKWARD
    texts = {*spec.training_prompts(), *spec.evaluation_prompts(), *spec.optimizer_config.further_prompts(spec)}
    pixels = 3 * found.image_size[0] * found.image_size[1] * torch.float32.itemsize
    kept = plan.images_per_step if plan.kept_images is None else plan.kept_images
    scale = FREED_LATE if on_cpu else 1.0
    passes = {name: round(scale * size) for name, size in found.activations.items()}
    memory = dict(found.weights)
    memory["LoRA, its updates" if keeps == "nothing" else "LoRA, gradients, solver"] = found.lora * LORA_BYTES[keeps]
    memory["images of a step"] = kept * pixels
    memory["conditioning"] = found.row * (len(texts) if on_cpu else rows)
    if passes:
        largest = max(passes, key=lambda name: passes[name])
        memory[f"activations: {largest}"] = passes[largest]
    text = found.text
    if on_cpu:
        memory["Python and libraries"] = own = _resident(spec) - sum(
            n for k, n in found.weights.items() if "reward" in k
        )
        text += own
    return Estimate(
        memory,
        passes,
        text,
        max(text, sum(memory.values())),
        plan.steps,
        plan.images_per_step,
        plan.images_per_step * evaluations,
        plan.images_per_step,
        evaluated,
        rows,
        {"step": step, "image": image},
        found.unknown,
    )


def _resident(spec: Spec) -> int:
    """Memory of this process once it has imported what a run imports."""
    for part in (spec.backend, spec.sampler, spec.optimizer, *spec.rewards):
        if part:
            part.declaration.load()
    importlib.import_module("t2ialign.run.runner")
    if spec.keeps != "nothing":
        importlib.import_module("torch._dynamo")  # comes with torch's solvers
    try:
        import psutil

        return int(psutil.Process().memory_info().rss)
    except ModuleNotFoundError:
        return 0


def rate(dtype: str, device: torch.device, seconds: float = 1.0) -> float:
    """Operations a second of matrix products on a device: what is left of it in a network is less."""
    import time

    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    done, started = 0, 0.0
    while True:
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if done == 0:
            started = now  # the first one warms up
        elif now - started > seconds:
            return done * 2 * size**3 / (now - started)
        done += 1
